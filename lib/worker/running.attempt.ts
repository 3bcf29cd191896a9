// One attempt while it runs: its claim, which the handler never gets hold of, its signal, and all that the library does for
// the handler. An attempt is not over before all of that is done or given up, and nothing goes on after it.
import type { AsyncResource } from 'node:async_hooks';
import type { ClaimedJob, PartialResults } from '../interfaces/job.interface.js';
import { AttemptOverError } from '../jobs.errors.js';
import type { Claim } from '../manager/attempt.store.js';
import { JobManager } from '../manager/job.manager.js';
import type { JobTransaction } from '../manager/job.transaction.js';
import { openScope } from '../monitoring/async.scope.js';
import { MAX_TIMER_MS, settledWithin } from '../timing.js';
import { JobSteps, type Completion } from './job.steps.js';
import { trackedJobs } from './tracked.jobs.js';

/** Steps under way whose time is over get so long to notice that the signal has aborted. */
const GRACE_MS = 1_000;

/** A promise that knows whether anything waits for it. */
class Watched<T> extends Promise<T> {
  isWatched = false;

  static override get [Symbol.species](): PromiseConstructor {
    return Promise;
  }

  // oxlint-disable-next-line unicorn/no-thenable -- it is a promise
  override then<A = T, B = never>(
    onDone?: ((value: T) => A | PromiseLike<A>) | null,
    onFailure?: ((reason: any) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    this.isWatched = true;
    return super.then(onDone, onFailure);
  }
}

export class RunningAttempt implements Claim {
  transaction: JobTransaction | null = null;
  /** Whether something went on when it was closed. */
  leftBehind = false;
  private controller: AbortController | null = null;
  private aborted: { reason: unknown } | null = null;
  private over = false;
  private children: Set<Promise<unknown>> | null = null;
  private writes: Set<Promise<unknown>> | null = null;
  private failures: { child: Watched<unknown>; error: unknown }[] | null = null;
  private stepsDone: JobSteps | null = null;
  private boundJobs: JobManager | null = null;

  constructor(
    /** The pool's own record. */
    readonly job: ClaimedJob,
    readonly manager: JobManager,
    readonly workerId: string,
    readonly scope: AsyncResource = openScope(),
  ) {}

  /** Made on demand: most handlers never look at it, and it costs more than the rest of the run loop. */
  get signal(): AbortSignal {
    if (!this.controller) {
      this.controller = new AbortController();
      if (this.aborted) this.controller.abort(this.aborted.reason);
    }
    return this.controller.signal;
  }

  /** The JobManager; in a transaction the one that is bound to it. */
  get jobs(): JobManager {
    if (!this.transaction) return this.manager;
    return (this.boundJobs ??= trackedJobs(new JobManager(this.transaction.engine), this));
  }

  get steps(): JobSteps {
    return (this.stepsDone ??= new JobSteps(this.manager.engine.attempts, this));
  }

  get abortReason(): unknown {
    return this.aborted?.reason;
  }

  get isOpen(): boolean {
    return !this.over;
  }

  get isAborted(): boolean {
    return this.aborted !== null;
  }

  /** Whether something of it is under way, or has failed without the handler's knowing. */
  get isUnfinished(): boolean {
    return (this.children?.size ?? 0) + (this.writes?.size ?? 0) > 0 || this.failures !== null;
  }

  /** Aborts the signal; the first reason stays. */
  abort(reason: unknown): void {
    if (this.aborted || this.over) return;
    this.aborted = { reason };
    const { controller } = this;
    if (controller) this.scope.runInAsyncScope(() => controller.abort(reason));
  }

  /** @throws AttemptOverError once the attempt has ended */
  assertOpen(): void {
    if (this.over) throw new AttemptOverError(this.job.id, this.aborted ? { cause: this.aborted.reason } : undefined);
  }

  /** @throws AttemptOverError, or the reason of an abort: nothing new is to begin */
  assertRunning(): void {
    this.assertOpen();
    if (this.aborted) throw this.aborted.reason;
  }

  /**
   * Does something that the attempt waits for. If it fails and the handler never looked at its promise, the attempt fails;
   * that a promise is not awaited never ends the process.
   */
  keep<T>(work: () => Promise<T>): Promise<T> {
    const child = new Watched<T>((resolve) => resolve(this.guarded(work)));
    const remember = (error: unknown): void => void (this.failures ??= []).push({ child, error });
    const ended = hearFailure(child, remember);
    if (!this.over) add((this.children ??= new Set()), ended);
    return child;
  }

  /** The same for what is written beside the work, and may fail without harm. */
  keepAside(work: () => Promise<void>): Promise<void> {
    const write = this.guarded(work);
    const ended = write.catch(() => undefined);
    if (!this.over) add((this.writes ??= new Set()), ended);
    return write;
  }

  /**
   * Waits for what is under way, and for what that begins, although the handler has returned. Answers with the reason where
   * that takes longer than the attempt may: then `expire` is to abort it, which steps get a second to notice.
   */
  async ended(leftMs: number, expire: () => void): Promise<{ error: unknown } | null> {
    const inTime = await this.idle(this.aborted ? GRACE_MS : leftMs);
    if (inTime) return null;
    if (!this.aborted) {
      expire();
      await this.idle(GRACE_MS);
    }
    return { error: this.abortReason };
  }

  /** The same after the handler has thrown: what is under way is told to stop. */
  async endEarly(leftMs: number): Promise<null> {
    const ms = this.aborted ? GRACE_MS : leftMs;
    this.abort(new AttemptOverError(this.job.id));
    await this.idle(ms);
    return null;
  }

  /** Resolves when progress and log lines are stored. */
  async written(): Promise<void> {
    if (this.writes) await Promise.all(this.writes);
  }

  /** A failure that the handler does not know of. */
  unheardFailure(): { error: unknown } | null {
    return this.failures?.find(({ child }) => !child.isWatched) ?? null;
  }

  /** Partial results together with what the steps know. */
  complete(reported: PartialResults): Promise<Completion> {
    return this.steps.complete(reported);
  }

  /** From here on the context refuses everything. */
  close(): void {
    this.leftBehind = (this.children?.size ?? 0) > 0;
    this.over = true;
  }

  private idle(ms: number): Promise<boolean> {
    return settledWithin(Math.min(MAX_TIMER_MS, Math.max(0, ms)), this.allEnded());
  }

  private async guarded<T>(work: () => Promise<T>): Promise<T> {
    this.assertOpen();
    return work();
  }

  private async allEnded(): Promise<void> {
    while (this.children?.size) await Promise.all(this.children);
  }
}

function add(promises: Set<Promise<unknown>>, promise: Promise<unknown>): void {
  promises.add(promise);
  void promise.then(() => promises.delete(promise));
}

/** Hears of a failure without being taken for a handler that waits. */
const hearFailure = (child: Promise<unknown>, onFailure: (error: unknown) => void): Promise<unknown> =>
  Promise.prototype.then.call(child, undefined, onFailure);
