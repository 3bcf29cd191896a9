// What a handler knows of its attempt besides the payload.
import type { ClaimedJob, PartialResults } from '../interfaces/job.interface.js';
import type { JobManager } from '../manager/job.manager.js';

/** The second argument of every handler. */
export class JobContext<P = unknown> {
  private controller: AbortController | null = null;
  private aborted: { reason: unknown } | null = null;

  constructor(
    readonly job: ClaimedJob<P>,
    readonly jobs: JobManager,
    readonly workerId: string,
  ) {}

  /**
   * Aborts on timeout, shutdown, cancellation and a lost lease; `signal.reason` is the error that says which. Hand it
   * to whatever takes long.
   */
  get signal(): AbortSignal {
    if (!this.controller) {
      // Made on demand: most handlers never look at it, and it costs more than the rest of the run loop.
      this.controller = new AbortController();
      if (this.aborted) this.controller.abort(this.aborted.reason);
    }
    return this.controller.signal;
  }

  /** Which attempt this is, from 1. */
  get attempt(): number {
    return this.job.attempts;
  }

  /** What the last partially successful attempt left behind; attempts that failed outright do not erase it. */
  get previous(): PartialResults | null {
    return this.job.previous;
  }

  /** A decimal number that only grows with each claim of the job: a guard for the handler's own writes. */
  get fence(): string {
    return this.job.fence;
  }

  /** The reason of an abort so far, whether anybody looked at the signal or not. */
  get abortReason(): unknown {
    return this.aborted?.reason;
  }

  /** For the pool: aborts the signal; the first reason stays. */
  abort(reason: unknown): void {
    if (this.aborted) return;
    this.aborted = { reason };
    this.controller?.abort(reason);
  }
}
