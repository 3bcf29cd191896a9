// Sends mail through SMTP and tells a refusal for now from a refusal for good.
import { Injectable, type OnModuleDestroy } from '@nestjs/common';
import { createTransport } from 'nodemailer';

/** The server answered with a code of 400 (try later) or 500 (never). */
export class MailRefused extends Error {
  constructor(
    message: string,
    readonly final: boolean,
  ) {
    super(message);
  }
}

@Injectable()
export class Mailer implements OnModuleDestroy {
  private readonly transport = createTransport({
    host: '127.0.0.1',
    port: Number(process.env.SMTP_PORT),
    pool: true,
    maxConnections: 10,
    maxMessages: Infinity,
    secure: false,
    ignoreTLS: true,
  });

  async send(to: string, subject: string, text: string): Promise<void> {
    try {
      await this.transport.sendMail({ from: 'news@millrace.example', to, subject, text });
    } catch (error) {
      const { responseCode, response } = error as { responseCode?: number; response?: string };
      if (responseCode === undefined) throw error;
      throw new MailRefused(response ?? String(responseCode), responseCode >= 500);
    }
  }

  onModuleDestroy(): void {
    this.transport.close();
  }
}
