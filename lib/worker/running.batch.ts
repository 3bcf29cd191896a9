// A batch while it runs: the attempts of its jobs, what was decided of each, and the signal that they share.
import type { AsyncResource } from 'node:async_hooks';
import type { Outcome } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { EntityManager } from '../interfaces/typeorm.interface.js';
import { InvalidArgumentError, InvalidStatusError } from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import { show } from '../validation.js';
import type { BatchHandle } from './batch.context.js';
import { BatchedAttempt } from './batched.attempt.js';
import { JobContext } from './job.context.js';
import { isVerdict } from './outcome.js';
import { RunningAttempt } from './running.attempt.js';

/** What an answer of the handler means for a job. */
export interface Reader {
  returned: (value: unknown, attempt: BatchedAttempt) => Outcome;
  thrown: (error: unknown, attempt: BatchedAttempt) => Outcome;
}

export class RunningBatch implements BatchHandle {
  /** Stands for all: has what they share, and ends when the handler does. */
  readonly whole: RunningAttempt;
  readonly attempts: BatchedAttempt[];
  private readonly byId: Map<string, BatchedAttempt>;
  private readonly contexts = new Map<string, JobContext>();

  constructor(
    jobs: ClaimedJob[],
    jobManager: JobManager,
    readonly workerId: string,
    scope: AsyncResource,
    /** All jobs are settled in one transaction. */
    readonly isTransactional: boolean,
    private readonly read: Reader,
  ) {
    this.whole = new RunningAttempt(jobs[0]!, jobManager, workerId, scope);
    this.attempts = jobs.map((job) => new BatchedAttempt(job, jobManager, workerId, scope, this));
    this.byId = new Map(this.attempts.map((attempt) => [attempt.job.id, attempt]));
  }

  get signal(): AbortSignal {
    return this.whole.signal;
  }

  get jobs(): JobManager {
    return this.whole.jobs;
  }

  get manager(): EntityManager {
    const { transaction, job } = this.whole;
    if (transaction) return transaction.manager;
    throw new InvalidStatusError(
      job.id,
      `of task "${job.task}", which is not`,
      'of a task with the option `transactional: true`, because ctx.manager was asked for',
    );
  }

  /** Those of which nothing is decided. */
  get undecided(): BatchedAttempt[] {
    return this.attempts.filter(({ outcome }) => outcome === null);
  }

  /** The handler says of a job what one of its own would return. */
  return(job: unknown, value: unknown): void {
    if (isVerdict(value)) return this.throw(job, value);
    const attempt = this.attemptOf(job);
    const outcome = this.read.returned(value, attempt);
    if (outcome.kind !== 'completed') this.assertNotTransactional('to complete', attempt);
    attempt.decide(outcome, false);
  }

  /** The handler says of a job what one of its own would throw. */
  throw(job: unknown, error: unknown): void {
    const attempt = this.attemptOf(job);
    this.assertNotTransactional('to complete, or a throw', attempt);
    attempt.decide(this.read.thrown(error, attempt), true);
  }

  contextOf(job: unknown): JobContext {
    const { job: record, manager } = this.memberOf(job);
    let context = this.contexts.get(record.id);
    if (!context) {
      const attempt = this.byId.get(record.id)!;
      attempt.transaction = this.whole.transaction;
      context = new JobContext(record, manager, this.workerId, attempt);
      this.contexts.set(record.id, context);
    }
    return context;
  }

  /** Ends the work where none is left: a transaction that has lost one job cannot commit. */
  noteAbort(_attempt: BatchedAttempt, reason: unknown): void {
    const isOver = (attempt: BatchedAttempt): boolean => attempt.isAborted || attempt.outcome !== null;
    if (this.isTransactional || this.attempts.every(isOver)) this.whole.abort(reason);
  }

  private attemptOf(job: unknown): BatchedAttempt {
    this.whole.assertOpen();
    return this.memberOf(job);
  }

  private memberOf(job: unknown): BatchedAttempt {
    const attempt = this.byId.get((job as ClaimedJob | null | undefined)?.id as string);
    if (attempt) return attempt;
    throw new InvalidArgumentError([`Expected a job of the batch, got ${show(job)}.`]);
  }

  private assertNotTransactional(expected: string, { job }: BatchedAttempt): void {
    if (!this.isTransactional) return;
    throw new InvalidArgumentError([
      `Expected each job of a transactional batch ${expected}, got another end for job ${job.id} of task "${job.task}": ` +
        'all jobs are settled in one transaction, or none.',
    ]);
  }
}
