// The library's face: one method checks what it is given, calls the part that does it, and maps the answer. The parts are in
// JobEngine.
import { inspect } from 'node:util';
import type {
  AddedJob,
  AddJobOptions,
  AddJobsOptions,
  ClaimedJob,
  ClaimOptions,
  CompleteOptions,
  Job,
  JobSpec,
  PartialResults,
  SettleReport,
  WorkedOnce,
} from '../interfaces/job.interface.js';
import type { JobResult, ReplayWindow } from '../interfaces/report.interface.js';
import type { JobSpecs, PayloadOf, TaskToken } from '../interfaces/task.interface.js';
import { NoHandlersError } from '../jobs.errors.js';
import { check, throwIfAny } from '../validation.js';
import { INT4_MAX, rules } from '../validation.rules.js';
import { callOptions, checkAdd, checkAddMany, checkWorkerId, copyOf } from './arguments.js';
import { ClaimsByHand, resultsByHand } from './claims.by.hand.js';
import { JobEngine } from './job.engine.js';
import { JobOperations } from './job.operations.js';
import { replayOf } from './job.mapper.js';
import { readLimited } from './rate.limits.js';
import type { JobRetention } from './job.retention.js';
import type { WaitOptions } from './job.waiter.js';
import { byHand } from './worker.registry.js';

const ALWAYS: [Date, Date] = [new Date(0), new Date(Date.UTC(9999, 0, 1))];

/**
 * Adds jobs, claims and settles them by hand, and looks after queues, rate limits and history. Inject it.
 *
 * @example
 * await this.jobs.addJob('send-email', { to: 'ada@example.org' }, { manager: entityManager });
 */
export class JobManager extends JobOperations {
  private readonly byHand: ClaimsByHand;

  constructor(engine: JobEngine) {
    if (!(engine instanceof JobEngine)) throwIfAny([CONSTRUCTOR]);
    super(engine);
    const { database, settings, settlement, inspector, ends } = engine;
    this.byHand = new ClaimsByHand(database, settings, settlement, ends, inspector);
  }

  /**
   * Collects history as of another day than today.
   * @internal
   */
  get retention(): JobRetention {
    return this.engine.retention;
  }

  // Adding

  /**
   * Adds one job; once it resolves (or the caller's transaction commits), the job will run at least once.
   * Workers are woken unless the job is for later. Defaults come from the task's options, then the module's.
   * Without `manager`, the job joins the transaction of typeorm-transactional or @nestjs-cls/transactional that is active
   * on the module's `dataSource`, if there is one.
   *
   * @throws InvalidArgumentError, PayloadValidationError, PayloadNotSerializableError, PayloadTooLargeError,
   *   UnknownRateLimitError, TransactionOverError, DatabaseUnavailableError; nothing was inserted, unless that is `inDoubt`
   * @example
   * await dataSource.transaction(async (manager) => {
   *   const user = await manager.save(User, { email });
   *   await jobs.addJob('send-welcome', { userId: user.id }, { manager, maxAttempts: 5 });
   * });
   */
  addJob<T extends string>(task: T, payload: PayloadOf<T>, options?: AddJobOptions): Promise<AddedJob<PayloadOf<T>>>;
  addJob<P>(task: TaskToken<P, any>, payload: NoInfer<P>, options?: AddJobOptions): Promise<AddedJob<P>>;
  async addJob(task: string | TaskToken, payload: unknown, options: AddJobOptions = {}): Promise<AddedJob> {
    checkAdd(task, options);
    return this.engine.adder.addOne(task, payload, options);
  }

  /**
   * Adds all jobs or none, in order.
   *
   * @throws as `addJob`
   * @example
   * await jobs.addJobs(recipients.map((to) => ({ task: 'send-email', payload: { to }, queue: to.domain })));
   */
  addJobs<const T extends readonly string[]>(specs: JobSpecs<T>, options?: AddJobsOptions): Promise<AddedJob[]>;
  async addJobs(specs: JobSpec[], options: AddJobsOptions = {}): Promise<AddedJob[]> {
    checkAddMany(specs, options);
    return this.engine.adder.addMany(specs, { manager: options.manager, notify: options.notify !== false });
  }

  // Claiming and settling by hand

  /**
   * Claims due jobs, best (lowest) priority first, then by run-at and id, and counts an attempt of each. Within the
   * limits of queues and rate limits. The claim holds for `leaseMs`, unless `extendLease` renews it.
   *
   * @throws InvalidWorkerIdError (shorter than 10 characters), InvalidArgumentError (also in a transaction above read committed),
   * RowsHeldError (a table is locked)
   */
  async getJobs(workerId: string, options: ClaimOptions = {}): Promise<ClaimedJob[]> {
    checkWorkerId(workerId);
    check({}, [callOptions.getJobs, options]);
    const { batchSize = 1, leaseMs = this.engine.settings.lockTimeoutMs } = options;
    const [taskIdentifiers, forbiddenFlags] = [copyOf(options.taskIdentifiers), copyOf(options.forbiddenFlags)];
    const claim = { ...byHand(workerId, leaseMs), taskIdentifiers, forbiddenFlags };
    return this.engine.exactClaims.claim(claim, copyOf(options.queues), batchSize);
  }

  /**
   * Claims one due job that this process has a handler for, runs it and settles it: from the queues in the given order,
   * or any. Never throws the handler's error.
   *
   * @returns null where no job is due, else the job, with its error if it failed
   * @throws NoHandlersError where no handlers are known (a manager without Nest and without a pool)
   * @example
   * while (await jobs.workOnce({ queues: ['urgent', 'mail'] })) {}
   */
  async workOnce(options: { queues?: string[] | undefined } = {}): Promise<WorkedOnce | null> {
    check({}, [callOptions.workOnce, options]);
    const singleRun = this.engine.singleRun;
    if (!singleRun) throw new NoHandlersError();
    return singleRun.workOnce(copyOf(options.queues));
  }

  /**
   * Marks claimed jobs as done, with their results if there are any.
   * @throws InvalidWorkerIdError, InvalidArgumentError; no job was settled
   * @example
   * await jobs.completeJobs(workerId, [job], 120, { results: [{ pages: 7 }] });
   */
  async completeJobs(
    workerId: string,
    jobs: ClaimedJob[],
    executionTimeMs: number,
    options: CompleteOptions = {},
  ): Promise<SettleReport> {
    const results = resultsByHand(jobs, options);
    return this.byHand.settle(workerId, executionTimeMs, jobs, (_job, index) => {
      return { kind: 'completed', result: results[index] ?? null };
    });
  }

  /**
   * Marks claimed jobs as failed: they run again after their backoff, or are exhausted if this was the last attempt.
   * @throws InvalidWorkerIdError, InvalidArgumentError
   */
  async failJobs(
    workerId: string,
    failures: { job: ClaimedJob; error: unknown }[],
    executionTimeMs: number,
  ): Promise<SettleReport> {
    check({}, [callOptions.failures, failures, 'failures']);
    const errors = new Map(failures.map(({ job, error }) => [job, error]));
    return this.byHand.settle(workerId, executionTimeMs, [...errors.keys()], (job) => {
      const error = errors.get(job);
      const limited = readLimited(error);
      if (limited) return limited;
      const delayMs = this.engine.settlement.retryDelayMs(job, error);
      return delayMs === false ? { kind: 'permanent', error } : { kind: 'failed', error, delayMs };
    });
  }

  /**
   * Reports an attempt that got half-way: the job runs again after its backoff and finds what was reported as
   * `previous`; after the last attempt it is exhausted.
   * @throws InvalidWorkerIdError, InvalidArgumentError
   */
  async reportPartialSuccess(
    workerId: string,
    job: ClaimedJob,
    partialResults: PartialResults,
    executionTimeMs: number,
  ): Promise<SettleReport> {
    check({}, [callOptions.partialResults, partialResults]);
    const reported = JSON.parse(JSON.stringify(partialResults)) as PartialResults;
    return this.byHand.settle(workerId, executionTimeMs, [job], () => {
      const delayMs = this.engine.settlement.retryDelayMs(job, undefined);
      return { kind: 'partial', partialResults: reported, delayMs: delayMs === false ? 0 : delayMs };
    });
  }

  /** Puts a claimed job off without using up an attempt. @throws InvalidWorkerIdError, InvalidArgumentError */
  async snoozeJob(workerId: string, job: ClaimedJob, ms: number): Promise<SettleReport> {
    check({ ms: [ms, rules.duration] });
    return this.byHand.settle(workerId, 0, [job], () => ({ kind: 'snoozed', delayMs: ms }));
  }

  /**
   * Renews a claim made by hand by its lease's length and returns its new end.
   * @throws JobNotFoundError, InvalidStatusError, WrongOwnerError, LeaseExpiredError
   */
  async extendLease(workerId: string, jobId: string): Promise<Date> {
    checkWorkerId(workerId);
    check({ jobId: [jobId, rules.uuid] });
    return this.byHand.extend(workerId, jobId);
  }

  /**
   * Takes a claim away if the job has not changed since `revision`; the job can be claimed again at once, and the
   * attempt does not count.
   * @throws JobNotFoundError, InvalidStatusError, RevisionConflictError
   */
  async revokeLease(jobId: string, revision: number): Promise<Job> {
    check({ jobId: [jobId, rules.uuid], revision: [revision, rules.integer(0, INT4_MAX)] });
    return this.byHand.revoke(jobId, revision);
  }

  // Again, and until the end

  /**
   * Adds one new job for each job that was exhausted in the window [from, to), with the flag `replay` and the old id
   * as its key, in place of a key that the old job has. A job is replayed once: a second call finds nothing.
   */
  async replayFailedJobs(window: ReplayWindow = {}): Promise<Job[]> {
    check({}, [callOptions.replayFailedJobs, window]);
    const { task, maxAttempts } = window;
    const [from, to] = [window.from ?? ALWAYS[0], window.to ?? ALWAYS[1]];
    return this.inPatientTransaction(async (manager) => {
      const taken = await this.engine.revival.takeToReplay(
        [from.toISOString(), to.toISOString(), task ?? null],
        manager,
      );
      const jobs = await this.engine.inspector.findAll(taken, manager);
      return this.addJobs(
        jobs.map((job) => replayOf(job, maxAttempts)),
        { manager },
      );
    });
  }

  /**
   * Waits until a job is completed, exhausted or cancelled, wherever it runs.
   *
   * @throws JobNotFoundError, WaitTimeoutError, or the signal's reason
   * @example
   * const { status, result } = await jobs.waitForJob(job.id, { timeoutMs: 30_000 });
   */
  async waitForJob(id: string, options: WaitOptions = {}): Promise<JobResult> {
    check({ id: [id, rules.uuid] }, [callOptions.waitForJob, options]);
    return this.engine.waiter.wait(id.toLowerCase(), options);
  }

  /**
   * Stops the pools of this manager that still run, as their `stop()` does, and ends `workOnce`. Then waits for adds that are
   * under way, for 5 s at most, and ends the connection pool, unless it is a DataSource's. What has not been sent by then is
   * refused (StoppedError) and never is; what was sent has its answer from the database, or is in doubt.
   */
  async close(): Promise<void> {
    await this.engine.close();
  }

  /** Logged by mistake, it shows neither connection strings nor keys. */
  toJSON(): object {
    return { schema: this.engine.settings.schema };
  }

  [inspect.custom](): string {
    return `JobManager ${inspect(this.toJSON())}`;
  }
}

const CONSTRUCTOR =
  'A JobManager is injected, or made by createJobManager({ connection }); its constructor is the library’s.';
