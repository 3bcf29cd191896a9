// What the handler of a batch knows besides its jobs, and how it says what becomes of each.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { EntityManager } from '../interfaces/typeorm.interface.js';
import type { JobManager } from '../manager/job.manager.js';
import { check } from '../validation.js';
import { rules } from '../validation.rules.js';
import type { JobContext } from './job.context.js';
import { snooze } from './outcome.js';

/** The batch, as its context asks it. */
export interface BatchHandle {
  readonly workerId: string;
  readonly signal: AbortSignal;
  readonly jobs: JobManager;
  readonly manager: EntityManager;
  return(job: unknown, value: unknown): void;
  throw(job: unknown, error: unknown): void;
  contextOf(job: unknown): JobContext;
}

/**
 * The second argument of a batch handler. A job that the handler says nothing of completes when the handler returns, and
 * fails when it throws. The last word about a job counts, and takes effect when the handler ends. After that
 * everything here refuses with an `AttemptOverError`.
 */
export class BatchContext<P = unknown> {
  readonly #batch: BatchHandle;

  /** Made by the library. */
  constructor(batch: BatchHandle) {
    this.#batch = batch;
  }

  get workerId(): string {
    return this.#batch.workerId;
  }

  /**
   * Aborts when no job is left to work for: each is decided, cancelled, lost, or out of its time. In a transactional task it
   * aborts with the first job, since the batch can no longer commit. `for(job).signal` is the signal of one job.
   */
  get signal(): AbortSignal {
    return this.#batch.signal;
  }

  /** The JobManager. In a transactional task what it adds is committed, or rolled back, with the batch. */
  get jobs(): JobManager {
    return this.#batch.jobs;
  }

  /**
   * TypeORM's EntityManager of the transaction in which all jobs of the batch will be settled. Transactional tasks only.
   * @throws InvalidStatusError in tasks that are not `transactional`
   */
  get manager(): EntityManager {
    return this.#batch.manager;
  }

  /**
   * The job completes, with a result for its history, whatever becomes of the others.
   * @throws InvalidArgumentError for a job of another batch, AttemptOverError
   */
  complete(job: Pick<ClaimedJob<P>, 'id'>, result?: unknown): void {
    this.#batch.return(job, result);
  }

  /**
   * The job fails as if a handler of its own had thrown the error: it is retried after its backoff, a `PermanentFailure`
   * fails it for good, a `CancelJob` cancels it.
   * @throws InvalidArgumentError for a job of another batch, and in transactional tasks, which settle all jobs or none;
   *   AttemptOverError
   */
  fail(job: Pick<ClaimedJob<P>, 'id'>, error: unknown): void {
    this.#batch.throw(job, error);
  }

  /**
   * The job runs again after `ms` without using up an attempt.
   * @throws InvalidArgumentError as `fail`, and unless `ms` is a number of at least 0; AttemptOverError
   */
  snooze(job: Pick<ClaimedJob<P>, 'id'>, ms: number): void {
    check({ 'the ms of snooze': [ms, rules.duration] });
    this.#batch.return(job, snooze(ms));
  }

  /**
   * The context of one job: its signal, attempt, previous results, fence, progress and log. Its `step` is refused with an
   * `InvalidArgumentError`.
   * @throws InvalidArgumentError for a job of another batch
   */
  for(job: Pick<ClaimedJob<P>, 'id'>): JobContext<P> {
    return this.#batch.contextOf(job) as JobContext<P>;
  }
}
