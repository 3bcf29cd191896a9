// Hears of new jobs: one LISTEN connection of its own, which reconnects by itself. Polling is correct without it, so
// nothing here ever fails a pool.
import pg from 'pg';
import { backoffMs } from '../timing.js';
import { destroySocket, singleConnection } from './connection.settings.js';
import { quoteIdentifier } from './database.js';
import { readMessage, type News } from './job.news.js';

const FIRST_RETRY_MS = 250;
const MAX_RETRY_MS = 30_000;
/** A connection may die silently, so it is asked now and then. */
const CHECK_INTERVAL_MS = 30_000;
const CHECK_TIMEOUT_MS = 10_000;
const STOP_MS = 1_000;

export class JobNotifier {
  private readonly subscribers = new Set<(news: News) => void>();
  private client: pg.Client | null = null;
  private opening: pg.Client | null = null;
  private timer: NodeJS.Timeout | null = null;
  private connecting: Promise<void> | null = null;
  private failures = 0;
  private stopped = true;

  constructor(
    private readonly config: pg.ClientConfig,
    private readonly channel: string,
    private readonly onError: (error: unknown) => void,
  ) {}

  get connected(): boolean {
    return this.client !== null;
  }

  /** Connects; where that fails it reports the error and keeps trying. */
  async start(): Promise<void> {
    if (!this.stopped) return;
    this.stopped = false;
    await this.connect();
  }

  async stop(): Promise<void> {
    this.stopped = true;
    if (this.timer) clearTimeout(this.timer);
    this.timer = null;
    // A server that does not answer must not hold up the end of the process.
    const timer = setTimeout(() => this.opening && destroySocket(this.opening), STOP_MS);
    await this.connecting;
    clearTimeout(timer);
    const client = this.client;
    this.client = null;
    if (client) await end(client);
  }

  /**
   * Calls the handler whenever there may be something new; after a reconnection with `all`. Returns how to unsubscribe.
   */
  subscribe(handler: (news: News) => void): () => void {
    this.subscribers.add(handler);
    return () => void this.subscribers.delete(handler);
  }

  private connect(): Promise<void> {
    this.connecting ??= this.open().finally(() => (this.connecting = null));
    return this.connecting;
  }

  private async open(): Promise<void> {
    let client: pg.Client | null = null;
    try {
      client = await this.listen();
    } catch (error) {
      this.retry(error);
    }
    this.opening = null;
    if (!client) return;
    if (this.stopped) return end(client);
    this.client = client;
    this.failures = 0;
    this.schedule(CHECK_INTERVAL_MS, () => void this.check(client));
    // What was told while nothing listened is found now.
    this.publish({ kind: 'all' });
    this.publish({ kind: 'ended', ids: [] });
  }

  private async listen(): Promise<pg.Client> {
    const client = new pg.Client(singleConnection(this.config));
    this.opening = client;
    client.on('error', (error) => this.lose(client, error));
    client.on('end', () => this.lose(client, new Error('The LISTEN connection ended: Connection terminated')));
    client.on('notification', ({ payload }) => this.publish(readMessage(payload ?? '')));
    try {
      await client.connect();
      await client.query({
        text: `listen ${quoteIdentifier(this.channel)}`,
        query_timeout: CHECK_TIMEOUT_MS,
      } as pg.QueryConfig);
      return client;
    } catch (error) {
      void end(client);
      throw error;
    }
  }

  private publish(news: News): void {
    for (const handler of this.subscribers) handler(news);
  }

  private lose(client: pg.Client, error: unknown): void {
    if (this.client !== client) return;
    this.client = null;
    void end(client);
    this.retry(error);
  }

  private retry(error: unknown): void {
    if (this.stopped) return;
    // Node's complaint about a URL carries the URL.
    this.onError(error instanceof Error && 'input' in error ? new Error(error.message) : error);
    this.schedule(backoffMs(this.failures++, MAX_RETRY_MS, FIRST_RETRY_MS), () => void this.connect());
  }

  private async check(client: pg.Client): Promise<void> {
    try {
      await client.query({ text: 'select 1', query_timeout: CHECK_TIMEOUT_MS } as pg.QueryConfig);
      if (this.client === client) this.schedule(CHECK_INTERVAL_MS, () => void this.check(client));
    } catch (error) {
      this.lose(client, error);
    }
  }

  private schedule(ms: number, work: () => void): void {
    if (this.timer) clearTimeout(this.timer);
    this.timer = this.stopped ? null : setTimeout(work, ms);
  }
}

/** Closes the connection, and destroys its socket if the server does not answer. Never rejects. */
async function end(client: pg.Client): Promise<void> {
  const timer = setTimeout(() => destroySocket(client), STOP_MS);
  await client.end().catch(() => undefined);
  clearTimeout(timer);
}
