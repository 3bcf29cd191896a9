// Waiting for a connection of a pool. pg forgets those that still wait when its pool is ended: they would wait for ever. So they
// would for a connection whose opening has no answer, where the application has set no limit: it keeps its place in the pool.
import type pg from 'pg';
import { destroySocket } from './connection.settings.js';

/** How often the pool is looked at while something waits. */
const LOOK_MS = 250;
/** An opening that has had no answer for so long is given up, as every other message is. */
const OPENING_MS = 60_000;

/** Of pg's pool. */
interface Internals {
  _clients?: (pg.ClientBase & { _connecting?: boolean })[];
}

export class PoolQueue {
  private readonly waiting = new Set<(reason: Error) => void>();
  /** When a connection was first seen to be opening. */
  private readonly openings = new WeakMap<pg.ClientBase, number>();
  private timer: NodeJS.Timeout | null = null;

  constructor(
    private readonly pool: pg.Pool,
    /** For specs. */
    private readonly openingMs = OPENING_MS,
  ) {}

  connect(): Promise<pg.PoolClient> {
    return new Promise((resolve, reject) => {
      this.waiting.add(reject);
      this.timer ??= setInterval(() => this.poll(), LOOK_MS).unref();
      this.pool.connect().then(
        (client) => {
          if (this.waiting.delete(reject)) resolve(client);
          else client.release();
        },
        (error: Error) => {
          this.waiting.delete(reject);
          reject(error);
        },
      );
    });
  }

  private poll(): void {
    if (this.pool.ending) {
      for (const reject of this.waiting) reject(new Error('Cannot use a pool after calling end on the pool'));
      this.waiting.clear();
    }
    if (this.waiting.size) return this.cutSilentOpenings();
    if (this.timer) clearInterval(this.timer);
    this.timer = null;
  }

  /** The pool then fails what waits for them, and has room for others. */
  private cutSilentOpenings(): void {
    // With a limit of the application's, pg's pool does so itself.
    if (this.pool.options.connectionTimeoutMillis) return;
    const now = performance.now();
    for (const client of (this.pool as unknown as Internals)._clients ?? []) {
      if (!client._connecting) continue;
      const since = this.openings.get(client) ?? now;
      this.openings.set(client, since);
      if (now - since > this.openingMs) destroySocket(client);
    }
  }
}
