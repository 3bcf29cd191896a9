// How many jobs may wait in a queue: adds to a full one are refused. Every process counts for itself, once a second at most
// while it adds to queues with a bound, so a queue may get as many too many as other processes add in a second.
import type { QueryExecutor } from '../interfaces/job.interface.js';
import type { Database } from '../storage/database.js';
import { findQueueBounds } from '../storage/statements/queues.js';
import type { PreparedJob } from './job.preparer.js';
import { QueueFullError } from './queue.errors.js';

/** A count is used for so long, */
const MAX_AGE_MS = 1_000;
/** and for so long where it says that the queue is full. */
const MAX_AGE_OF_FULL_MS = 100;

interface Bound {
  most: number;
  /** At the last count, up to `most`; null: not counted. */
  found: number | null;
  /** By this process, since. */
  added: number;
}

export class QueueBounds {
  /** Of queues with a bound, as of the last look. */
  private bounds = new Map<string, Bound>();
  private readAt = -Infinity;
  /** The look under way, and of which queues it asks. */
  private reading: { names: ReadonlySet<string>; done: Promise<void> } | null = null;
  /** The one after it, and of which queues calls have asked for it so far. */
  private next: Promise<void> | null = null;
  private wanted = new Set<string>();
  /** Queues with a bound that were added to since the last look. */
  private readonly used = new Set<string>();

  /**
   * Before anything of a call is inserted, and once for each call. `executor`: the caller's transaction, on whose connection the
   * library asks: it may hold the last one of a pool.
   * @throws QueueFullError
   */
  async admit(jobs: PreparedJob[], database: Database, executor?: QueryExecutor): Promise<void> {
    const asked = new Map<string, number>();
    for (const { row } of jobs) if (row.queue !== null) asked.set(row.queue, (asked.get(row.queue) ?? 0) + 1);
    if (!asked.size) return;
    if (!this.isKnown(asked)) await this.read(asked, database, executor);
    if (this.fullOf(asked) && this.ageMs >= MAX_AGE_OF_FULL_MS) await this.read(asked, database, executor);
    const full = this.fullOf(asked);
    if (full) throw new QueueFullError(full.queue, full.most, full.found);
    for (const [queue, jobsOfQueue] of asked) {
      const bound = this.bounds.get(queue);
      if (!bound) continue;
      bound.added += jobsOfQueue;
      this.used.add(queue);
    }
  }

  /** The next add counts. */
  forget(): void {
    this.readAt = -Infinity;
  }

  private get ageMs(): number {
    return performance.now() - this.readAt;
  }

  private isKnown(asked: Map<string, number>): boolean {
    if (this.ageMs >= MAX_AGE_MS) return false;
    return [...asked.keys()].every((queue) => this.bounds.get(queue)?.found !== null);
  }

  private fullOf(asked: Map<string, number>): { queue: string; most: number; found: number } | null {
    for (const [queue, jobsOfQueue] of asked) {
      const { most = Infinity, found, added = 0 } = this.bounds.get(queue) ?? {};
      // What is not counted has its reason: see queue_bounds.
      if (typeof found === 'number' && found + added + jobsOfQueue > most) return { queue, most, found: found + added };
    }
    return null;
  }

  private read(asked: Map<string, number>, database: Database, executor?: QueryExecutor): Promise<void> {
    // Calls on the library's connections share a look; one in a transaction must not wait for a connection.
    if (executor || database.isBound) return this.look(asked.keys(), database, executor);
    const { reading } = this;
    const names = [...asked.keys()];
    if (reading && names.every((name) => reading.names.has(name))) return reading.done;
    for (const name of names) this.wanted.add(name);
    this.next ??= this.lookNext(database);
    return this.next;
  }

  /** A look under way does not count what is asked for after it began. */
  private async lookNext(database: Database): Promise<void> {
    await this.reading?.done.catch(() => undefined);
    const names = this.wanted;
    this.wanted = new Set();
    this.next = null;
    const done = this.look(names, database).finally(() => (this.reading = null));
    this.reading = { names, done };
    await done;
  }

  private async look(asked: Iterable<string>, database: Database, executor?: QueryExecutor): Promise<void> {
    const names = [...new Set([...asked, ...this.used])];
    const startedAt = performance.now();
    const rows = await database.run(findQueueBounds, [names], executor);
    this.bounds = new Map(rows.map(({ queue, most, found }) => [queue, { most, found, added: 0 }]));
    this.readAt = startedAt;
    this.used.clear();
  }
}
