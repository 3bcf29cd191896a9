// Natural batching of adds: while an insert is in flight, the next ones gather, and go together when it is back.
// No caller waits longer than it would alone, and fifty concurrent callers cost a few inserts.
import { DatabaseUnavailableError, RowsHeldError, StoppedError } from '../jobs.errors.js';
import { retryOnContention } from '../storage/retry.js';
import type { PreparedJob } from './job.preparer.js';

/** Inserts jobs in one statement: all or, by throwing, none. */
export type Insert<T> = (jobs: PreparedJob[]) => Promise<T[]>;

interface Waiting<T> {
  job: PreparedJob;
  resolve: (added: T) => void;
  reject: (error: unknown) => void;
}

const MAX_BATCH = 1_000;
const MAX_BYTES = 8 * 1024 * 1024;

export class AddBatcher<T> {
  private waiting: Waiting<T>[] = [];
  private inFlight: Promise<void> | null = null;
  private readonly apart = new Set<Promise<void>>();
  private isClosed = false;

  constructor(private readonly insert: Insert<T>) {}

  /** Resolves after the commit, with the job's own result; fails only for its own reason. */
  add(job: PreparedJob): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.waiting.push({ job, resolve, reject });
      this.inFlight ??= this.drain();
    });
  }

  /** Counts an add that goes by itself as one in flight. */
  track<R>(add: Promise<R>): Promise<R> {
    const ended = add.then(
      () => void this.apart.delete(ended),
      () => void this.apart.delete(ended),
    );
    this.apart.add(ended);
    return add;
  }

  /** Resolves when nothing is waiting or in flight. */
  async idle(): Promise<void> {
    while (this.inFlight || this.apart.size) await Promise.all([this.inFlight, ...this.apart]);
  }

  /** From now on nothing more is sent: what waits, or is still being checked, is refused. */
  close(): void {
    this.isClosed = true;
    for (const { reject } of this.waiting.splice(0)) reject(closed());
  }

  /** Sends in a commit of our own, and again where others' locks are in the way. @throws StoppedError once closed, unsent */
  send<R>(work: () => Promise<R>): Promise<R> {
    return retryOnContention(async () => {
      if (this.isClosed) throw closed();
      return work();
    });
  }

  private async drain(): Promise<void> {
    // One tick: callers that add in the same turn of the event loop share the first insert already.
    await Promise.resolve();
    while (this.waiting.length) await this.insertBatch(this.nextBatch());
    this.inFlight = null;
  }

  private nextBatch(): Waiting<T>[] {
    let bytes = 0;
    let count = 0;
    for (const { job } of this.waiting) {
      bytes += job.json.length;
      if (count > 0 && (bytes > MAX_BYTES || count === MAX_BATCH)) break;
      count++;
    }
    return this.waiting.splice(0, count);
  }

  private async insertBatch(batch: Waiting<T>[]): Promise<void> {
    try {
      const added = await this.insert(batch.map(({ job }) => job));
      batch.forEach(({ resolve }, index) => resolve(added[index] as T));
    } catch (error) {
      if (batch.length === 1 || isOfAll(error)) batch.forEach(({ reject }) => reject(error));
      // One of the jobs is at fault. Each goes alone, so that the others are not refused with it.
      else for (const one of batch) await this.insertBatch([one]);
    }
  }
}

/** No job is at fault. */
const isOfAll = (error: unknown): boolean =>
  error instanceof DatabaseUnavailableError || error instanceof RowsHeldError || error instanceof StoppedError;

const closed = (): StoppedError =>
  new StoppedError('The JobManager was closed before the job could be sent to the database: it was not added.');
