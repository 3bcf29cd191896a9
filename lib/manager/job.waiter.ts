// Waits for jobs to end, wherever they run: one loop asks the database for the jobs whose turn has come, at once for
// those that this process settles itself. Payloads and results are read once, when a job has ended.
import type { JobResult } from '../interfaces/report.interface.js';
import { JobNotFoundError, StoppedError, WaitTimeoutError } from '../jobs.errors.js';
import { mayAnswerSoon } from '../storage/database.errors.js';
import { isContention, isStatementTimeout } from '../storage/sql.states.js';
import type { Database } from '../storage/database.js';
import { findResults } from '../storage/statements/inspect-jobs.js';
import { findEnded } from '../storage/statements/wait-jobs.js';
import { after } from '../timing.js';
import { openValue, type JobCipher } from './job.cipher.js';
import { toJob } from './job.mapper.js';

export interface WaitOptions {
  /** Reject with a WaitTimeoutError after so many milliseconds. Default: wait as long as it takes. */
  timeoutMs?: number | undefined;
  /** Reject with its reason when it aborts. */
  signal?: AbortSignal | undefined;
}

interface Waiter {
  id: string;
  /** When to ask for the job again, by `performance.now()`. */
  dueAt: number;
  pauseMs: number;
  resolve: (result: JobResult) => void;
  reject: (reason: unknown) => void;
}

const FIRST_PAUSE_MS = 20;
const MAX_PAUSE_MS = 1_000;
const SLOWER = 1.5;
/** Waiters that are due this soon are asked for together. */
const TOGETHER_MS = 10;
const FINAL = ['completed', 'exhausted', 'cancelled'];
/** Payloads and results have a megabyte each at most. */
const MAX_RESULTS = 50;

/**
 * idle ──first wait──▶ looping ──last waiter leaves──▶ idle
 *
 * What is to be asked stands in the waiters (`dueAt`), so that nothing that happens while the loop asks is lost, and the
 * loop decides to end and ends in one turn.
 */
export class JobWaiter {
  private readonly waiters = new Set<Waiter>();
  private readonly signals = new Map<AbortSignal, SharedSignal>();
  private looping = false;
  private closed = false;
  private wakeUp: (() => void) | null = null;

  constructor(
    private readonly database: Database,
    private readonly cipher: JobCipher | undefined,
  ) {}

  async wait(id: string, { timeoutMs, signal }: WaitOptions): Promise<JobResult> {
    signal?.throwIfAborted();
    if (this.closed) throw closedError(id);
    let endTimer: (() => void) | undefined;
    let waiter!: Waiter;
    const ended = new Promise<JobResult>((resolve, reject) => {
      waiter = { id, dueAt: 0, pauseMs: FIRST_PAUSE_MS, resolve, reject };
      if (typeof timeoutMs === 'number') endTimer = after(timeoutMs, () => reject(timedOut(id, timeoutMs)));
    });
    this.enter(waiter, signal);
    try {
      return await ended;
    } finally {
      endTimer?.();
      this.leave(waiter, signal);
    }
  }

  /** These jobs have been settled by this process. */
  notice(ids: Set<string>): void {
    let known = false;
    for (const waiter of this.waiters) {
      if (!ids.has(waiter.id)) continue;
      waiter.dueAt = 0;
      known = true;
    }
    if (known) this.wakeUp?.();
  }

  close(): void {
    this.closed = true;
    for (const { id, reject } of this.waiters) reject(closedError(id));
  }

  private enter(waiter: Waiter, signal: AbortSignal | undefined): void {
    this.waiters.add(waiter);
    if (signal) {
      const shared = this.signals.get(signal) ?? new SharedSignal(signal);
      this.signals.set(signal, shared);
      shared.add(waiter);
    }
    this.wakeUp?.();
    if (!this.looping) void this.loop();
  }

  private leave(waiter: Waiter, signal: AbortSignal | undefined): void {
    this.waiters.delete(waiter);
    if (signal && this.signals.get(signal)?.remove(waiter)) this.signals.delete(signal);
    if (!this.waiters.size) this.wakeUp?.();
  }

  private async loop(): Promise<void> {
    this.looping = true;
    while (this.waiters.size) {
      const due = this.takeDue();
      if (due.length) await this.ask(due);
      else await this.sleep();
    }
    this.looping = false;
  }

  /** Those whose turn has come. Their next turn is set first: `notice` may bring it forward while they are asked for. */
  private takeDue(): Waiter[] {
    const now = performance.now();
    const due = [...this.waiters].filter(({ dueAt }) => dueAt <= now + TOGETHER_MS);
    for (const waiter of due) {
      waiter.dueAt = now + waiter.pauseMs;
      waiter.pauseMs = Math.min(MAX_PAUSE_MS, waiter.pauseMs * SLOWER);
    }
    return due;
  }

  private async sleep(): Promise<void> {
    let next = Infinity;
    for (const { dueAt } of this.waiters) next = Math.min(next, dueAt);
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.wakeUp = resolve;
      timer = setTimeout(resolve, Math.max(0, next - performance.now()));
    });
    clearTimeout(timer);
    this.wakeUp = null;
  }

  /** Never rejects. A database that is away is asked again; any other failure rejects every waiting call. */
  private async ask(asked: Waiter[]): Promise<void> {
    try {
      const rows = await this.database.run(findEnded, [[...new Set(asked.map(({ id }) => id))]]);
      const endedOf = new Map(rows.map(({ id, ended }) => [id, ended]));
      for (const { id, reject } of asked) if (!endedOf.has(id)) reject(new JobNotFoundError(id));
      const ended = asked.filter(({ id }) => endedOf.get(id));
      for (let from = 0; from < ended.length; from += MAX_RESULTS) {
        await this.answer(ended.slice(from, from + MAX_RESULTS));
      }
    } catch (error) {
      if (mayPass(error)) return;
      for (const { reject } of asked) reject(error);
    }
  }

  /** A job that was retried meanwhile is waited for again. */
  private async answer(ended: Waiter[]): Promise<void> {
    const rows = await this.database.run(findResults, [[...new Set(ended.map(({ id }) => id))]]);
    const found = new Map(rows.map((row) => [row.id, row]));
    for (const { id, resolve, reject } of ended) {
      const row = found.get(id);
      if (!row) reject(new JobNotFoundError(id));
      else if (FINAL.includes(row.status)) this.resolve(row, resolve, reject);
    }
  }

  private resolve(row: ResultRow, resolve: Waiter['resolve'], reject: Waiter['reject']): void {
    try {
      resolve(toResult(row, this.cipher));
    } catch (error) {
      reject(error);
    }
  }
}

/** One listener for all that wait with the same signal: Node.js warns of a leak from the eleventh on. */
class SharedSignal {
  private readonly waiters = new Set<Waiter>();
  private readonly onAbort = (): void => {
    for (const { reject } of this.waiters) reject(this.signal.reason);
  };

  constructor(private readonly signal: AbortSignal) {
    signal.addEventListener('abort', this.onAbort);
  }

  add(waiter: Waiter): void {
    this.waiters.add(waiter);
  }

  /** Returns whether it was the last one: then the signal is left alone. */
  remove(waiter: Waiter): boolean {
    this.waiters.delete(waiter);
    if (this.waiters.size) return false;
    this.signal.removeEventListener('abort', this.onAbort);
    return true;
  }
}

type ResultRow = Parameters<typeof toJob>[0] & { result: unknown };

const mayPass = (error: unknown): boolean => mayAnswerSoon(error) || isContention(error) || isStatementTimeout(error);

/** @throws DecryptionError for a result that cannot be decrypted */
const toResult = (row: ResultRow, cipher: JobCipher | undefined): JobResult => ({
  status: row.status,
  result: row.status === 'completed' ? openValue(cipher, row.result ?? null, 'result', row.id) : null,
  error: row.status === 'completed' ? null : row.last_error,
  job: toJob(row, cipher),
});

const timedOut = (id: string, timeoutMs: number): WaitTimeoutError =>
  new WaitTimeoutError(`Job ${id} has not ended within ${timeoutMs} ms; it goes on. Wait longer, or ask explain(id).`);

const closedError = (id: string): StoppedError =>
  new StoppedError(`Expected an open JobManager to wait for job ${id}, got one that was closed.`);
