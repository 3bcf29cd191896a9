// A network between a spec and its database that can be in every kind of trouble.
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

/** ReadyForQuery, idle. */
const READY = Buffer.from('Z\0\0\0\x05I', 'latin1');
const TERMINATED = errorResponse('SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0');

function errorResponse(fields: string): Buffer {
  const head = Buffer.from('E\0\0\0\0', 'latin1');
  head.writeInt32BE(fields.length + 4, 1);
  return Buffer.concat([head, Buffer.from(fields, 'latin1')]);
}

interface Link {
  client: Socket;
  server: Socket;
  /** Nothing more is carried; both ends believe that the other one is there. */
  silent: boolean;
}

export class TcpProxy {
  private readonly links = new Set<Link>();
  private mode: 'open' | 'refuse' | 'swallow' = 'open';
  private delayMs = 0;
  private hearsGoodbyes = true;
  private stillborn = 0;
  private readonly losing: {
    request: string;
    left: number;
    reaches: boolean;
    refuses?: boolean;
    silently?: boolean;
  }[] = [];

  private constructor(
    private readonly listener: Server,
    /** The database's URL, by way of the proxy. */
    readonly url: string,
    private readonly target: { host: string; port: number },
  ) {
    listener.on('connection', (client) => this.accept(client));
  }

  static async before(databaseUrl: string): Promise<TcpProxy> {
    const url = new URL(databaseUrl);
    const target = { host: url.hostname, port: Number(url.port) };
    const listener = createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1');
    await once(listener, 'listening');
    url.hostname = '127.0.0.1';
    url.port = String((listener.address() as AddressInfo).port);
    return new TcpProxy(listener, url.href, target);
  }

  get connections(): number {
    return this.links.size;
  }

  /** Cuts every connection now. */
  cut(): void {
    for (const link of this.links) this.end(link);
  }

  /** Cuts every connection and hangs up on new ones, until `heal`. */
  refuse(): void {
    this.mode = 'refuse';
    this.cut();
  }

  /**
   * Carries nothing any more, on old connections and on new ones, without a word to anybody, until `heal`. Connections that a
   * client ends are gone, unless their goodbyes are swallowed too.
   */
  swallow({ goodbyes = false } = {}): void {
    this.mode = 'swallow';
    this.hearsGoodbyes = !goodbyes;
    for (const link of this.links) link.silent = true;
  }

  /** New connections work. Those that were swallowed stay dead, as they would behind a firewall that has forgotten them. */
  heal(): void {
    this.mode = 'open';
    this.hearsGoodbyes = true;
    this.delayMs = 0;
    this.losing.length = 0;
  }

  /** Every answer takes so long from now on. */
  delay(ms: number): void {
    this.delayMs = ms;
  }

  /** Says goodbye to the clients (FIN) while what they send is still taken. */
  halfClose(): void {
    for (const { client } of this.links) client.end();
  }

  /**
   * The next `times` statements whose message holds this text reach the database, which does them; the connection is cut
   * instead of their answer.
   */
  loseAnswerTo(request: string, times = 1): void {
    this.losing.push({ request, left: times, reaches: true });
  }

  /** The connection is cut instead of carrying a statement whose message holds this text, until `heal`. */
  neverCarry(request: string): void {
    this.losing.push({ request, left: Infinity, reaches: false });
  }

  /** The connection that carries the next statement whose message holds this text carries nothing else, and stays open. */
  silenceAt(request: string): void {
    this.losing.push({ request, left: 1, reaches: true, silently: true });
  }

  /** Instead of carrying a statement whose message holds this text, cuts every connection and hangs up on new ones. */
  refuseAt(request: string): void {
    this.losing.push({ request, left: 1, reaches: false, refuses: true });
  }

  /** The next `times` connections are told, in the very packet that opens them, that they are terminated. */
  killAtBirth(times: number): void {
    this.stillborn = times;
  }

  get killedThem(): boolean {
    return this.stillborn === 0;
  }

  /** Whether all answers that were to be lost are. */
  get lostThem(): boolean {
    return this.losing.every(({ left }) => left === 0);
  }

  async close(): Promise<void> {
    this.cut();
    this.listener.close();
    await once(this.listener, 'close');
  }

  private accept(client: Socket): void {
    client.on('error', () => undefined);
    if (this.mode === 'refuse') return void client.resetAndDestroy();
    const server = connect({ ...this.target, allowHalfOpen: true });
    const link: Link = { client, server, silent: this.mode === 'swallow' };
    let losesNext = false;
    this.links.add(link);
    client.on('data', (data) => {
      if (link.silent) return;
      const lost = this.losing.find(({ request, left }) => left > 0 && data.includes(request));
      if (lost?.refuses) return this.refuse();
      if (lost && !lost.reaches) return this.end(link);
      if (lost) {
        lost.left--;
        link.silent = lost.silently ?? false;
        losesNext = !link.silent;
      }
      server.write(data);
    });
    server.on('data', (data) => {
      if (link.silent) return;
      // PostgreSQL answers when it has committed: by now it has.
      if (losesNext) this.end(link);
      else if (this.stillborn > 0 && data.subarray(-READY.length).equals(READY)) {
        this.stillborn--;
        link.silent = true;
        client.end(Buffer.concat([data, TERMINATED]));
        server.destroy();
      } else if (this.delayMs) setTimeout(() => link.silent || client.write(data), this.delayMs);
      else client.write(data);
    });
    server.on('error', () => this.end(link));
    for (const socket of [client, server]) socket.on('close', () => this.end(link));
    client.on('end', () => {
      if (!link.silent) server.end();
      else if (this.hearsGoodbyes) this.end(link);
    });
    server.on('end', () => link.silent || client.end());
  }

  private end(link: Link): void {
    this.links.delete(link);
    link.silent = true;
    if (!link.client.destroyed) link.client.resetAndDestroy();
    // Quietly: the server does what it has been told.
    link.server.destroy();
  }
}
