// An SMTP server that plays the world outside: most addresses work, some only after a while, some never. It counts
// what it accepted, which is the sample's only witness.
import { SMTPServer, type SMTPServerAddress } from 'smtp-server';

export class MailServer {
  /** How often each address was delivered to. */
  readonly delivered = new Map<string, number>();
  readonly refusedForGood = new Set<string>();
  private readonly postponements = new Map<string, number>();
  private readonly server = new SMTPServer({
    authOptional: true,
    disabledCommands: ['STARTTLS', 'AUTH'],
    disableReverseLookup: true,
    onRcptTo: (address, _session, answer) => answer(this.judge(address.address)),
    onData: (stream, session, answer) => {
      stream.resume().on('end', () => {
        session.envelope.rcptTo.forEach(({ address }: SMTPServerAddress) => this.count(address));
        answer();
      });
    },
  });

  /** Resolves with the port. */
  listen(): Promise<number> {
    return new Promise((resolve, reject) => {
      this.server.once('error', reject);
      const listener = this.server.listen(0, '127.0.0.1', () => {
        this.server.off('error', reject);
        // Clients that go away in the middle are part of life.
        this.server.on('error', () => undefined);
        resolve((listener.address() as { port: number }).port);
      });
    });
  }

  close(): Promise<void> {
    return new Promise((resolve) => this.server.close(resolve));
  }

  private judge(address: string): Error | null {
    if (address.startsWith('gone.')) {
      this.refusedForGood.add(address);
      return refusal(550, 'no such user');
    }
    const postponed = this.postponements.get(address) ?? 0;
    if (address.startsWith('busy.') && postponed < 2) {
      this.postponements.set(address, postponed + 1);
      return refusal(451, 'mailbox busy, try again later');
    }
    return null;
  }

  private count(address: string): void {
    this.delivered.set(address, (this.delivered.get(address) ?? 0) + 1);
  }
}

const refusal = (responseCode: number, message: string): Error => Object.assign(new Error(message), { responseCode });
