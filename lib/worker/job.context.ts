// What a handler knows of its attempt besides the payload.
import type { ClaimedJob, PartialResults, QueryExecutor } from '../interfaces/job.interface.js';
import type { EntityManager } from '../interfaces/typeorm.interface.js';
import type { Stored } from '../interfaces/json.interface.js';
import { InvalidStatusError } from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import { check } from '../validation.js';
import { rules } from '../validation.rules.js';
import { RunningAttempt } from './running.attempt.js';

/**
 * The second argument of every handler. After the attempt has ended, `step`, `progress`, `log` and `assertOwned` refuse
 * with an `AttemptOverError`, and so do the `jobs` of a transactional task; its `manager` refuses every query.
 */
export class JobContext<P = unknown> {
  readonly #attempt: RunningAttempt;
  #job: ClaimedJob<P> | null = null;

  constructor(
    job: ClaimedJob<P>,
    jobs: JobManager,
    workerId: string,
    attempt: RunningAttempt = new RunningAttempt(job, jobs, workerId),
  ) {
    this.#attempt = attempt;
  }

  /** The job as it was claimed: a copy, which the library does not read. */
  get job(): ClaimedJob<P> {
    return (this.#job ??= { ...(this.#attempt.job as ClaimedJob<P>) });
  }

  get workerId(): string {
    return this.#attempt.workerId;
  }

  /**
   * Aborts on timeout, shutdown, cancellation and a lost lease, and when the handler throws while steps are under way;
   * `signal.reason` is the error that says which. Hand it to whatever takes long.
   */
  get signal(): AbortSignal {
    return this.#attempt.signal;
  }

  /** Which attempt this is, from 1. */
  get attempt(): number {
    return this.#attempt.job.attempts;
  }

  /** What the last partially successful attempt left behind; attempts that failed outright do not erase it. */
  get previous(): PartialResults | null {
    return this.#attempt.job.previous;
  }

  /** A decimal number that only grows with each claim of the job: a guard for the handler's own writes. */
  get fence(): string {
    return this.#attempt.job.fence;
  }

  /**
   * TypeORM's EntityManager of the transaction in which this attempt will be settled. Transactional tasks only. Commit,
   * rollback and release belong to the library.
   * @throws InvalidStatusError in tasks that are not `transactional`
   */
  get manager(): EntityManager {
    const { transaction, job } = this.#attempt;
    if (transaction) return transaction.manager;
    throw new InvalidStatusError(
      job.id,
      `of task "${job.task}", which is not`,
      'of a task with the option `transactional: true`, because ctx.manager was asked for',
    );
  }

  /**
   * The JobManager. In a transactional task what it adds is committed, or rolled back, with the attempt, which waits for
   * its calls even where the handler does not.
   */
  get jobs(): JobManager {
    return this.#attempt.jobs;
  }

  /**
   * Does something once in the life of the job, however many attempts that takes: its result is kept as JSON, and later
   * attempts get it without calling `work` again, in the form that JSON brings back (a Date as text). A step that throws
   * is not done. In a transactional task the step is kept if the attempt commits. The attempt does not end before its
   * steps have, awaited or not; one that fails without the handler's looking fails the attempt.
   *
   * @throws the reason of `signal` when it has aborted: no step begins after that. StepResultError, which fails the job
   *   for good, for a result that JSON cannot keep or of more than 1 MiB. InvalidArgumentError for a step that would wait
   *   for itself. LeaseLostError when the job was given to another worker meanwhile. AttemptOverError
   * @example
   * const charge = await ctx.step('charge', () => payments.charge(order.card, order.total));
   */
  step<T>(name: string, work: () => T | Promise<T>): Promise<Stored<T>> {
    return this.#attempt.keep(async () => {
      check({ "the step's name": [name, rules.name], 'the work of the step': [work, rules.callable] });
      return (await this.#attempt.steps.run(name, work)) as Stored<T>;
    });
  }

  /**
   * Tells other processes how far the job is: any JSON value, shown as `job.progress` by `findJob` and `listJobs`. The
   * last value counts; it is written beside the attempt's transaction. Resolves when it is stored, and never rejects
   * because of the database. A new attempt does not erase it.
   *
   * @throws InvalidArgumentError for what JSON cannot keep, AttemptOverError
   */
  progress(value: unknown): Promise<void> {
    const attempt = this.#attempt;
    return attempt.keepAside(() => attempt.manager.engine.attempts.setProgress(attempt, value));
  }

  /**
   * Writes a line to the job's log; read it with `jobLogs(id)`. At most 10,000 characters. Resolves when it is stored,
   * and never rejects because of the database.
   *
   * @throws AttemptOverError
   */
  log(message: string): Promise<void> {
    const attempt = this.#attempt;
    return attempt.keepAside(() => attempt.manager.engine.attempts.log(attempt, message));
  }

  /**
   * Makes sure, inside a transaction of the handler's own, that the job is still this worker's: until that transaction
   * ends no other worker can take it.
   *
   * @param manager the transaction; default: the one of a transactional task
   * @throws LeaseLostError if the claim was taken away, AttemptOverError
   * @example
   * await dataSource.transaction(async (manager) => {
   *   await ctx.assertOwned(manager);
   *   await manager.save(result);
   * });
   */
  async assertOwned(manager: QueryExecutor = this.manager): Promise<void> {
    this.#attempt.assertOpen();
    await this.#attempt.manager.engine.attempts.assertOwned(this.#attempt, manager);
  }
}
