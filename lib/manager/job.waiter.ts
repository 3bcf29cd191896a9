// Waits for jobs to end, wherever they run: one query for all that this process waits for, now and then; at once for
// those that it settles itself.
import type { JobResult } from '../interfaces/job.interface.js';
import { JobNotFoundError, StoppedError, WaitTimeoutError } from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import { findResults } from '../storage/statements/inspect-jobs.js';
import { after } from '../timers.js';
import { opened, type JobCipher } from './job.cipher.js';
import { toJob } from './job.mapper.js';

export interface WaitOptions {
  /** Reject with a WaitTimeoutError after so many milliseconds. Default: wait as long as it takes. */
  timeoutMs?: number | undefined;
  /** Reject with its reason when it aborts. */
  signal?: AbortSignal | undefined;
}

interface Waiter {
  id: string;
  resolve: (result: JobResult) => void;
  reject: (reason: unknown) => void;
}

const FIRST_LOOK_MS = 20;
const LONGEST_PAUSE_MS = 1_000;
const SLOWER = 1.5;
const FINAL = ['completed', 'exhausted', 'cancelled'];

export class JobWaiter {
  private readonly waiters = new Set<Waiter>();
  private pauseMs = FIRST_LOOK_MS;
  private timer: NodeJS.Timeout | null = null;
  private looking: Promise<void> | null = null;
  private again = false;

  constructor(
    private readonly database: Database,
    private readonly cipher: JobCipher | undefined,
  ) {}

  async wait(id: string, { timeoutMs, signal }: WaitOptions): Promise<JobResult> {
    signal?.throwIfAborted();
    let waiter!: Waiter;
    let endTimer: (() => void) | undefined;
    let onAbort: (() => void) | undefined;
    try {
      return await new Promise<JobResult>((resolve, reject) => {
        waiter = { id, resolve, reject };
        this.waiters.add(waiter);
        onAbort = () => reject(signal!.reason as Error);
        signal?.addEventListener('abort', onAbort);
        if (typeof timeoutMs === 'number') endTimer = after(timeoutMs, () => reject(timedOut(id, timeoutMs)));
        this.lookNow();
      });
    } finally {
      endTimer?.();
      if (onAbort) signal?.removeEventListener('abort', onAbort);
      this.waiters.delete(waiter);
      if (!this.waiters.size) this.rest();
    }
  }

  /** These jobs have been settled by this process. */
  notice(ids: Set<string>): void {
    for (const { id } of this.waiters) if (ids.has(id)) return this.lookNow();
  }

  close(): void {
    this.rest();
    for (const { id, reject } of this.waiters) {
      reject(new StoppedError(`Nobody waits for job ${id} any more: the JobManager was closed.`));
    }
  }

  private lookNow(): void {
    this.pauseMs = FIRST_LOOK_MS;
    this.again = true;
    this.rest();
    this.looking ??= this.look().finally(() => (this.looking = null));
  }

  private async look(): Promise<void> {
    while (this.again) {
      this.again = false;
      // A database that is away is asked again; whoever does not want to wait so long has a timeout.
      await this.ask().catch(() => undefined);
    }
    if (!this.waiters.size) return;
    this.timer = setTimeout(() => {
      this.timer = null;
      this.again = true;
      this.looking ??= this.look().finally(() => (this.looking = null));
    }, this.pauseMs);
    this.pauseMs = Math.min(LONGEST_PAUSE_MS, this.pauseMs * SLOWER);
  }

  private async ask(): Promise<void> {
    const asked = [...this.waiters];
    const rows = await this.database.run(findResults, [[...new Set(asked.map(({ id }) => id))]]);
    const found = new Map(rows.map((row) => [row.id, row]));
    for (const { id, resolve, reject } of asked) {
      const row = found.get(id);
      if (!row) reject(new JobNotFoundError(id));
      else if (FINAL.includes(row.status)) this.answer(row, resolve, reject);
    }
  }

  private answer(row: ResultRow, resolve: Waiter['resolve'], reject: Waiter['reject']): void {
    try {
      resolve(toResult(row, this.cipher));
    } catch (error) {
      reject(error);
    }
  }

  private rest(): void {
    if (this.timer) clearTimeout(this.timer);
    this.timer = null;
  }
}

type ResultRow = Parameters<typeof toJob>[0] & { result: unknown };

/** @throws DecryptionError for a result that cannot be decrypted */
const toResult = (row: ResultRow, cipher: JobCipher | undefined): JobResult => ({
  status: row.status,
  result: row.status === 'completed' ? opened(cipher, row.result ?? null, 'result', row.id) : null,
  error: row.status === 'completed' ? null : row.last_error,
  job: toJob(row, cipher),
});

const timedOut = (id: string, timeoutMs: number): WaitTimeoutError =>
  new WaitTimeoutError(`Job ${id} has not ended within ${timeoutMs} ms; it goes on. Wait longer, or ask explain(id).`);
