// Hears of new jobs: one LISTEN connection of its own, which reconnects by itself. Polling is correct without it, so
// nothing here ever fails a pool.
import pg from 'pg';
import { quoteIdentifier } from './database.js';

/** What a notification says: there are new jobs … */
export const NEW_JOBS = '';
/** … or running ones that should be cancelled. */
export const CANCEL_NEWS = 'cancel';

const FIRST_RETRY_MS = 250;
const LONGEST_RETRY_MS = 30_000;
/** A connection may die without a word: ask it now and then. */
const CHECK_INTERVAL_MS = 30_000;
const CHECK_TIMEOUT_MS = 10_000;

export class JobNotifier {
  private readonly subscribers = new Set<(news: string) => void>();
  private client: pg.Client | null = null;
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
    await this.connecting;
    const client = this.client;
    this.client = null;
    await client?.end().catch(() => undefined);
  }

  /**
   * Calls the handler whenever there may be something new: NEW_JOBS, or CANCEL_NEWS for jobs to cancel. Returns how to
   * unsubscribe.
   */
  subscribe(handler: (news: string) => void): () => void {
    this.subscribers.add(handler);
    return () => void this.subscribers.delete(handler);
  }

  private connect(): Promise<void> {
    this.connecting ??= this.open().finally(() => (this.connecting = null));
    return this.connecting;
  }

  private async open(): Promise<void> {
    const client = new pg.Client(this.config);
    client.on('error', (error) => this.lose(client, error));
    client.on('end', () => this.lose(client, new Error('The LISTEN connection ended.')));
    client.on('notification', ({ payload }) => this.tell(payload ?? NEW_JOBS));
    try {
      await client.connect();
      await client.query(`listen ${quoteIdentifier(this.channel)}`);
    } catch (error) {
      this.retry(error);
      return client.end().catch(() => undefined);
    }
    if (this.stopped) return client.end().catch(() => undefined);
    this.client = client;
    this.failures = 0;
    this.schedule(CHECK_INTERVAL_MS, () => void this.check(client));
    // Whatever was announced while nobody listened is found now.
    for (const news of [NEW_JOBS, CANCEL_NEWS]) this.tell(news);
  }

  private tell(news: string): void {
    for (const handler of this.subscribers) handler(news);
  }

  private lose(client: pg.Client, error: unknown): void {
    if (this.client !== client) return;
    this.client = null;
    client.end().catch(() => undefined);
    this.retry(error);
  }

  private retry(error: unknown): void {
    if (this.stopped) return;
    this.onError(error);
    const ceiling = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(this.failures++, 20));
    this.schedule(ceiling * (0.5 + Math.random() / 2), () => void this.connect());
  }

  private async check(client: pg.Client): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const silence = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error('The LISTEN connection does not answer.')), CHECK_TIMEOUT_MS);
    });
    try {
      await Promise.race([client.query('select 1'), silence]);
      if (this.client === client) this.schedule(CHECK_INTERVAL_MS, () => void this.check(client));
    } catch (error) {
      this.lose(client, error);
    } finally {
      clearTimeout(timer);
    }
  }

  private schedule(ms: number, work: () => void): void {
    if (this.timer) clearTimeout(this.timer);
    this.timer = this.stopped ? null : setTimeout(work, ms);
  }
}
