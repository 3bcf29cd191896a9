// Waiting for a connection of a pool. pg forgets those that still wait when its pool is ended: they would wait for ever.
import type pg from 'pg';

/** How often it is looked whether the pool was ended, while there is something that waits. */
const LOOK_MS = 250;

export class PoolQueue {
  private readonly waiting = new Set<(reason: Error) => void>();
  private timer: NodeJS.Timeout | null = null;

  constructor(private readonly pool: pg.Pool) {}

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
    if (this.waiting.size) return;
    if (this.timer) clearInterval(this.timer);
    this.timer = null;
  }
}
