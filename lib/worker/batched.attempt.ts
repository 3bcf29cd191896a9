// The attempt of one job that runs in a batch: its own claim, signal, progress and log; what it shares with the others is the
// batch's.
import type { AsyncResource } from 'node:async_hooks';
import type { Outcome } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { InvalidArgumentError } from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import type { JobSteps } from './job.steps.js';
import { ended, type Attempt } from './outcome.js';
import { RunningAttempt } from './running.attempt.js';

/** What attempts share. */
export interface BatchOfAttempts {
  readonly jobs: JobManager;
  /** All jobs are settled in one transaction. */
  readonly isTransactional: boolean;
  /** The signal of one of them has aborted. */
  noteAbort(attempt: BatchedAttempt, reason: unknown): void;
}

export class BatchedAttempt extends RunningAttempt {
  /** What is to become of the job; null: the end of the handler decides. */
  outcome: Outcome | null = null;
  /** Whether the handler failed it. */
  thrown = false;
  /** Its outcome stands, whatever the handler says. */
  isFinal = false;
  /** Its outcome was taken before the handler ended. */
  isTaken = false;
  private readonly startedAt = performance.now();

  constructor(
    job: ClaimedJob,
    manager: JobManager,
    workerId: string,
    scope: AsyncResource,
    private readonly batch: BatchOfAttempts,
  ) {
    super(job, manager, workerId, scope);
  }

  override get jobs(): JobManager {
    return this.batch.jobs;
  }

  /** @throws InvalidArgumentError always: one call does the work of many jobs, and a step is kept for one */
  override get steps(): JobSteps {
    throw new InvalidArgumentError([
      `Expected no ctx.step in a batch handler, got one for job ${this.job.id} of task "${this.job.task}". Add jobs of a ` +
        'task without `batch` for work in steps.',
    ]);
  }

  override abort(reason: unknown): void {
    if (this.isAborted || !this.isOpen) return;
    super.abort(reason);
    this.batch.noteAbort(this, reason);
  }

  /** Decides what becomes of the job; the last decision stands. */
  decide(outcome: Outcome, thrown: boolean): void {
    if (this.isFinal) return;
    this.outcome = outcome;
    this.thrown = thrown;
  }

  /** The pool waits for the handler no longer: what was decided of the job stands; null: nothing that can stand without the others. */
  take(): Attempt | null {
    if (this.outcome === null || !this.isOpen || this.batch.isTransactional) return null;
    this.isTaken = true;
    this.close();
    return ended(this.job, this.outcome, this.startedAt, this.thrown);
  }
}
