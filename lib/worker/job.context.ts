// What a handler knows of its attempt besides the payload.
import type { ClaimedJob, EntityManager, PartialResults, QueryExecutor } from '../interfaces/job.interface.js';
import type { Stored } from '../interfaces/json.interface.js';
import { InvalidStatusError } from '../jobs.errors.js';
import type { Claim } from '../manager/attempt.records.js';
import type { JobManager } from '../manager/job.manager.js';
import type { JobTransaction } from '../manager/job.transaction.js';
import { check } from '../validation.js';
import { rules } from '../validation.rules.js';
import { JobSteps } from './job.steps.js';

/** The second argument of every handler. */
export class JobContext<P = unknown> {
  private controller: AbortController | null = null;
  private aborted: { reason: unknown } | null = null;
  private stepsDone: JobSteps | null = null;
  private writes: Set<Promise<void>> | null = null;

  constructor(
    readonly job: ClaimedJob<P>,
    private readonly plainJobs: JobManager,
    readonly workerId: string,
    private readonly transaction: JobTransaction | null = null,
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

  /**
   * TypeORM's EntityManager of the transaction in which this attempt will be settled. Transactional tasks only.
   * @throws InvalidStatusError in tasks that are not `transactional`
   */
  get manager(): EntityManager {
    if (this.transaction) return this.transaction.manager;
    throw new InvalidStatusError(
      this.job.id,
      `of task "${this.job.task}", which is not`,
      'of a task with the option `transactional: true`, because ctx.manager was asked for',
    );
  }

  /** The JobManager; in a transactional task what it adds is committed, or rolled back, with the attempt. */
  get jobs(): JobManager {
    return this.transaction?.jobs ?? this.plainJobs;
  }

  /**
   * Does something once in the life of the job, however many attempts that takes: its result is kept as JSON, and later
   * attempts get it without calling `work` again, in the form that JSON brings back (a Date as text). A step that throws is not done. In a transactional task the step is
   * kept if the attempt commits.
   *
   * @throws LeaseLostError when the job was given to another worker meanwhile; InvalidArgumentError for a result that
   *   JSON cannot express or of more than 1 MiB
   * @example
   * const charge = await ctx.step('charge', () => payments.charge(order.card, order.total));
   */
  async step<T>(name: string, work: () => T | Promise<T>): Promise<Stored<T>> {
    check({ "the step's name": [name, rules.name], 'the work of the step': [work, rules.callable] });
    return (await this.steps.run(name, work)) as Stored<T>;
  }

  /**
   * Tells other processes how far the job is: any JSON value, shown as `job.progress` by `findJob` and `listJobs`. The
   * last value counts; it is written beside the attempt's transaction. Resolves when it is stored, and never rejects
   * because of the database. A new attempt does not erase it.
   *
   * @throws InvalidArgumentError for what JSON cannot express
   */
  progress(value: unknown): Promise<void> {
    return this.write(this.plainJobs.attempts.setProgress(this.claim, value));
  }

  /**
   * Writes a line to the job's log; read it with `jobLogs(id)`. At most 10,000 characters. Resolves when it is stored,
   * and never rejects because of the database.
   */
  log(message: string): Promise<void> {
    return this.write(this.plainJobs.attempts.log(this.claim, message));
  }

  /**
   * Makes sure, inside a transaction of the handler's own, that the job is still this worker's: until that transaction
   * ends nobody can take it away.
   *
   * @param manager the transaction; default: the one of a transactional task
   * @throws LeaseLostError if the claim was taken away
   * @example
   * await dataSource.transaction(async (manager) => {
   *   await ctx.assertOwned(manager);
   *   await manager.save(result);
   * });
   */
  async assertOwned(manager: QueryExecutor = this.manager): Promise<void> {
    await this.plainJobs.attempts.assertOwned(this.claim, manager);
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

  /** For the pool: partial results together with what the steps know. */
  withSteps(reported: PartialResults): Promise<PartialResults> {
    return this.steps.complete(reported);
  }

  /** For the pool: whether progress or log lines are on their way. */
  get isWriting(): boolean {
    return this.writes !== null && this.writes.size > 0;
  }

  /** For the pool: resolves when progress and log lines are stored. */
  async written(): Promise<void> {
    if (this.writes) await Promise.allSettled(this.writes);
  }

  private get claim(): Claim {
    return { job: this.job, workerId: this.workerId };
  }

  private get steps(): JobSteps {
    return (this.stepsDone ??= new JobSteps(this.plainJobs.attempts, this.claim, this.transaction?.manager));
  }

  /** A promise that nobody awaits must not end the process; what is wrong with the value is the caller's to hear. */
  private write(work: Promise<void>): Promise<void> {
    const writes = (this.writes ??= new Set());
    const kept = work.finally(() => writes.delete(kept));
    kept.catch(() => undefined);
    writes.add(kept);
    return kept;
  }
}
