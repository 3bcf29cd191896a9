// The library's face: one method checks what it is given, calls the part that does it, and maps the answer. The parts are in
// JobEngine.
import { inspect } from 'node:util';
import type { CronInfo, CronSpec } from '../interfaces/cron.interface.js';
import type { JobGraph } from '../interfaces/job.graph.interface.js';
import type {
  AddedJob,
  AddJobOptions,
  AddJobsOptions,
  ClaimedJob,
  ClaimOptions,
  CompleteOptions,
  Job,
  JobLogEntry,
  JobSpec,
  JobStatus,
  PartialResults,
  QueryExecutor,
  SettleReport,
  WorkedOnce,
} from '../interfaces/job.interface.js';
import type {
  HistoryFilter,
  HistoryRecord,
  JobCounts,
  JobExplanation,
  JobFilter,
  JobResult,
  Page,
  PageRequest,
  QueueState,
  RateLimit,
  ReplayWindow,
  WorkerInfo,
} from '../interfaces/report.interface.js';
import type { JobSpecs, PayloadOf, TaskToken } from '../interfaces/task.interface.js';
import { InvalidArgumentError, NoHandlersError } from '../jobs.errors.js';
import { withLockRetries, retryOnContention } from '../storage/retry.js';
import * as byHandClaims from '../storage/statements/claims-by-hand.js';
import * as garbage from '../storage/statements/prune-jobs.js';
import * as lanes from '../storage/statements/queues.js';
import * as limits from '../storage/statements/rate-limits.js';
import { check, throwIfAny } from '../validation.js';
import { INT4_MAX, MAX_MS, rules } from '../validation.rules.js';
import { callOptions, checkAdd, checkAddMany, checkWorkerId, copyOf, idsOf } from './arguments.js';
import { ClaimsByHand, resultsByHand } from './claims.by.hand.js';
import { JobEdits } from './job.edits.js';
import { JobEngine } from './job.engine.js';
import { replayOf, toQueueState, toRateLimit } from './job.mapper.js';
import { newsOf } from './job.promoter.js';
import type { JobRetention } from './job.retention.js';
import type { WaitOptions } from './job.waiter.js';
import { lanesOfQueue } from './lane.names.js';
import { reencrypt, type Reencryption, type ReencryptOptions } from './reencryption.js';
import { byHand } from './worker.registry.js';

const ALWAYS: [Date, Date] = [new Date(0), new Date(Date.UTC(9999, 0, 1))];

/**
 * Adds jobs, claims and settles them by hand, and looks after queues, rate limits and history. Inject it.
 *
 * @example
 * await this.jobs.addJob('send-email', { to: 'ada@example.org' }, { manager: entityManager });
 */
export class JobManager {
  /**
   * What pools, handlers, maintenance and millrace/testing work with.
   * @internal
   */
  readonly engine: JobEngine;
  private readonly byHand: ClaimsByHand;
  private readonly edits: JobEdits;

  constructor(engine: JobEngine) {
    if (!(engine instanceof JobEngine)) throwIfAny([CONSTRUCTOR]);
    this.engine = engine;
    const { database, settings, settlement, inspector, promoter, publisher, revival } = engine;
    const { retentionMs } = settings.history;
    this.byHand = new ClaimsByHand(database, settings, settlement, engine.ends, inspector);
    this.edits = new JobEdits({ database, promoter, publisher, revival, inspector, retentionMs });
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
   * @throws InvalidWorkerIdError (shorter than 10 characters), InvalidArgumentError, RowsHeldError (a table is locked)
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

  // An operator's hand

  /** Exhausts jobs, waiting or running, whatever attempts are left. Returns those that were; others are not live. */
  async permanentlyFailJobs(ids: string[], reason = 'failed by an operator'): Promise<Job[]> {
    check({ ids: [ids, rules.uuids], reason: [reason, rules.reason] });
    const jobs = idsOf(ids).map((id) => ({ id, fence: null }));
    return this.engine.inspector.findAll(await this.engine.ends.end(jobs, 'doomed', reason));
  }

  /**
   * Cancels jobs. A waiting or exhausted one leaves at once; a running one is returned as `running`, gets its signal
   * aborted wherever it runs, and becomes cancelled however its handler ends.
   */
  async cancelJobs(ids: string[], reason?: string): Promise<Job[]> {
    check({ ids: [ids, rules.uuids], reason: [reason, rules.optional(rules.reason)] });
    return this.edits.cancel(idsOf(ids), reason ?? null);
  }

  /**
   * Changes what is given of waiting jobs. Running ones are left alone and returned as they are.
   * An exhausted job that gets attempts left is ready again.
   * @throws JobKeyConflictError if another live job holds the key of one that would be ready again
   */
  async rescheduleJobs(
    ids: string[],
    changes: { runAt?: Date | undefined; priority?: number | undefined; maxAttempts?: number | undefined },
  ): Promise<Job[]> {
    check({ ids: [ids, rules.uuids] }, [callOptions.rescheduleJobs, changes]);
    const { runAt, priority, maxAttempts } = changes;
    return this.edits.reschedule(idsOf(ids), [runAt?.toISOString() ?? null, priority ?? null, maxAttempts ?? null]);
  }

  /** The live jobs that have these keys, oldest first; of a key that is free, none. */
  async findJobsByKey(jobKeys: string[]): Promise<Job[]> {
    check({ jobKeys: [jobKeys, rules.names] });
    return this.edits.findOfKeys([...jobKeys]);
  }

  /** As cancelJobs, for the jobs that have these keys; one that is added under them meanwhile may be cancelled, too. */
  async cancelJobsByKey(jobKeys: string[], reason?: string): Promise<Job[]> {
    check({ jobKeys: [jobKeys, rules.names], reason: [reason, rules.optional(rules.reason)] });
    return this.edits.ofKeys([...jobKeys], (ids) => this.edits.cancel(ids, reason ?? null));
  }

  /** As rescheduleJobs, for the jobs that have these keys. @throws JobKeyConflictError as there */
  async rescheduleJobsByKey(
    jobKeys: string[],
    changes: { runAt?: Date | undefined; priority?: number | undefined; maxAttempts?: number | undefined },
  ): Promise<Job[]> {
    check({ jobKeys: [jobKeys, rules.names] }, [callOptions.rescheduleJobs, changes]);
    const { runAt, priority, maxAttempts } = changes;
    const values: [unknown, unknown, number | null] = [
      runAt?.toISOString() ?? null,
      priority ?? null,
      maxAttempts ?? null,
    ];
    return this.edits.ofKeys([...jobKeys], (ids) => this.edits.reschedule(ids, values));
  }

  /**
   * Brings exhausted and cancelled jobs back, with all their attempts.
   * @throws JobKeyConflictError if another live job holds a key of theirs, RowsHeldError where open transactions hold one of them
   *   for seconds; none is changed then
   */
  async retryJobs(ids: string[]): Promise<Job[]> {
    check({ ids: [ids, rules.uuids] });
    const { inspector, revival } = this.engine;
    const asked = idsOf(ids);
    return inspector.findAll(await this.inPatientTransaction((executor) => revival.retry(asked, executor)));
  }

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
   * Takes running jobs away from these workers (none given: from all) and frees their queues. Their attempts count:
   * those out of attempts are exhausted.
   */
  async forceUnlockJobs(workerIds?: string[]): Promise<Job[]> {
    check({ workerIds: [workerIds, rules.optional(rules.names)] });
    const found = await this.engine.database.run(byHandClaims.findClaimsOf, [copyOf(workerIds)]);
    return this.engine.inspector.findAll(await this.engine.ends.end(found, 'unlocked', 'force-unlocked'));
  }

  /** Frees places in queues that no running job takes, and wakes pools that wait for one. Maintenance does so too. */
  async forceUnlockQueues(queueNames?: string[]): Promise<QueueState[]> {
    check({ queueNames: [queueNames, rules.optional(rules.laneNames)] });
    const asked = copyOf(queueNames);
    await withLockRetries(this.engine.database.isBound)(() => this.engine.promoter.sweepNow());
    const names = (await this.engine.database.run(lanes.findQueues, [asked])).map(({ name }) => name);
    await this.engine.publisher.publish(...newsOf(names.map(lanesOfQueue)));
    return (await this.engine.database.run(lanes.listQueues, [names])).map(toQueueState);
  }

  /**
   * Takes away claims made by hand that were not extended in time (by their own lease, or since `lockTimeoutMs`), and
   * those of workers that died. Returns how many.
   */
  async resetLockedJobs(options: { lockTimeoutMs?: number | undefined } = {}): Promise<number> {
    check({}, [callOptions.resetLockedJobs, options]);
    const doing = withLockRetries(this.engine.database.isBound);
    const reset = await this.engine.registry.resetExpired(options.lockTimeoutMs ?? null, doing);
    const rescued = await this.engine.registry.rescue(undefined, doing);
    await doing(() => this.engine.promoter.sweepNow());
    return reset + rescued;
  }

  /** Removes jobs that ended so long ago, with their history; jobs that wait for one are cancelled. Returns a count. */
  async purgeJobs(options: { status: JobStatus; olderThanMs: number }): Promise<number> {
    check({}, [callOptions.purgeJobs, options]);
    const { status, olderThanMs } = options;
    return this.inPatientTransaction((executor) => this.engine.revival.purge(status, olderThanMs, executor));
  }

  // Queues and rate limits

  /** Claims nothing more from the queue until `resumeQueue`. Running jobs go on. @throws RowsHeldError */
  async pauseQueue(name: string): Promise<void> {
    check({ name: [name, rules.laneName] });
    await this.editQueue(name, [true, null, false]);
  }

  async resumeQueue(name: string): Promise<void> {
    check({ name: [name, rules.laneName] });
    await this.editQueue(name, [false, null, false]);
  }

  /** Sets how many jobs of the queue run at once over all processes; wins over what processes declare. */
  async configureQueue(name: string, options: { concurrency: number }): Promise<void> {
    check({ name: [name, rules.laneName] }, [callOptions.configureQueue, options]);
    const { concurrency } = options;
    await this.editQueue(name, concurrency === Infinity ? [null, null, true] : [null, concurrency, false]);
  }

  async listQueues(): Promise<QueueState[]> {
    return (await this.engine.database.run(lanes.listQueues, [null])).map(toQueueState);
  }

  /**
   * Registers or changes a rate limit: at most `capacity` claims in each window of `interval` (ms, or an SQL interval
   * such as '1 minute'). The current window goes on; tokens are clamped to a smaller capacity.
   */
  async registerRateLimit(key: string, capacity: number, interval: number | string): Promise<RateLimit> {
    check({
      key: [key, rules.laneName],
      capacity: [capacity, rules.positive],
      interval: [interval, typeof interval === 'number' ? rules.integer(1, MAX_MS) : rules.name],
    });
    const [ms, sql] = typeof interval === 'number' ? [interval, null] : [null, interval];
    const register = () => this.engine.database.run(limits.registerRateLimit, [key, capacity, ms, sql]);
    const rows = await retryOnContention(register, this.engine.database.isBound).catch((error: unknown) => {
      throw limits.refusesInterval(error)
        ? new InvalidArgumentError([
            `Expected interval to be ms or an SQL interval of at least 1 ms, got "${interval}".`,
          ])
        : error;
    });
    await this.engine.publisher.publish({ kind: 'all' });
    return toRateLimit(rows[0] as limits.RateLimitRow);
  }

  /** Starts the next window of every limit whose window has passed. Returns how many. Claims do so by themselves. */
  async refillRateLimits(): Promise<number> {
    const { database } = this.engine;
    const [row] = await withLockRetries(database.isBound)(() => database.run(limits.refillRateLimits, []));
    return row?.refilled ?? 0;
  }

  // Recurring jobs

  /**
   * Adds a job of the task at each slot of the schedule, from the first slot after now, for as long as some process
   * runs workers. Scheduling an existing id replaces it: the new schedule takes effect from now on. See docs/crons.md.
   *
   * @throws InvalidArgumentError, PayloadValidationError, PayloadNotSerializableError, PayloadTooLargeError,
   *   CrontabLockedError where some transaction holds the crontab's row for seconds
   * @example
   * await jobs.scheduleCron({ id: 'digest', task: 'send-digest', schedule: '0 8 * * 1-5', timeZone: 'Europe/Berlin' });
   */
  scheduleCron<T extends string>(cron: CronSpec<PayloadOf<T>> & { task: T }): Promise<CronInfo<PayloadOf<T>>>;
  scheduleCron<P>(cron: CronSpec<NoInfer<P>> & { task: TaskToken<P, any> }): Promise<CronInfo<P>>;
  async scheduleCron(cron: CronSpec & { task: string | TaskToken }): Promise<CronInfo> {
    return this.engine.crontabs.schedule(cron);
  }

  /** Forgets a crontab; jobs that it has added stay. Returns whether there was one. @throws InvalidArgumentError, CrontabLockedError */
  async unscheduleCron(id: string): Promise<boolean> {
    return this.engine.crontabs.unschedule(id);
  }

  /** All crontabs, by id. */
  async listCrons(): Promise<CronInfo[]> {
    return this.engine.crontabs.list();
  }

  // Garbage

  /** Removes expired history and its jobs, and makes partitions. Returns how many records; estimated where many went. */
  async gcJobHistory(): Promise<number> {
    return this.engine.retention.collect();
  }

  /** Forgets queues without jobs, pause or settings that no process has declared for a month. Returns how many. */
  async gcJobQueues(): Promise<number> {
    return (await this.engine.database.run(lanes.pruneQueues, [Object.keys(this.engine.settings.queues)])).length;
  }

  /** Forgets names of tasks without jobs that were not seen for so long (default 7 days). Returns how many. */
  async gcTaskIdentifiers(options: { keepSinceMs?: number | undefined } = {}): Promise<number> {
    check({}, [callOptions.gcTaskIdentifiers, options]);
    const keepSinceMs = options.keepSinceMs ?? this.engine.settings.taskIdentifierRetentionMs;
    const [row] = await this.engine.database.run(garbage.pruneTasks, [keepSinceMs]);
    this.engine.claims.clearRememberedTasks();
    return row?.pruned ?? 0;
  }

  /**
   * Re-encrypts what is encrypted with other keys than the first one, live and kept, beside running workers; see
   * docs/security.md. Repeat it until nothing is left. @throws InvalidArgumentError where nothing is to be encrypted
   */
  async reencryptJobs(options: ReencryptOptions = {}): Promise<Reencryption> {
    check({}, [callOptions.reencryptJobs, options]);
    if (!this.engine.cipher) throw new InvalidArgumentError(['Expected the option encryption.keys, got none.']);
    return reencrypt(this.engine.database, this.engine.cipher, options);
  }

  // Looking

  /** A job, live or as its history last knew it; null where no job has the id. */
  async findJob(id: string): Promise<Job | null> {
    check({ id: [id, rules.uuid] });
    return this.engine.inspector.find(id);
  }

  /** Jobs, newest first. */
  async listJobs(filter: JobFilter = {}, page?: PageRequest): Promise<Page<Job>> {
    check({}, [callOptions.jobFilter, filter]);
    return this.engine.inspector.list(filter, page);
  }

  /**
   * A job with all that it depends on and all that depends on it, through any number of generations, as far as they are
   * remembered; at most 1,000 jobs.
   * @throws JobNotFoundError
   */
  async jobGraph(id: string): Promise<JobGraph> {
    check({ id: [id, rules.uuid] });
    return this.engine.inspector.graph(id.toLowerCase());
  }

  /** The attempts of a job, oldest first; the running one comes last, as `started`. */
  async jobHistory(id: string): Promise<HistoryRecord[]> {
    check({ id: [id, rules.uuid] });
    return this.engine.inspector.history(id);
  }

  /** What the attempts of a job wrote with `ctx.log`, oldest first. */
  async jobLogs(id: string, page?: PageRequest): Promise<Page<JobLogEntry>> {
    return this.engine.attempts.findLogs(id, page);
  }

  /** Finished attempts, newest first. */
  async listHistory(filter: HistoryFilter = {}, page?: PageRequest): Promise<Page<HistoryRecord>> {
    check({}, [callOptions.historyFilter, filter]);
    return this.engine.inspector.listHistory(filter, page);
  }

  /** How many jobs there are, by status, task and queue. Reads all live rows: for people, not for loops. */
  async counts(): Promise<JobCounts> {
    return this.engine.inspector.counts();
  }

  /** Why is this job not running? @throws JobNotFoundError */
  async explain(id: string): Promise<JobExplanation> {
    check({ id: [id, rules.uuid] });
    return this.engine.inspector.explain(id);
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

  /** The workers that are alive. */
  async workers(): Promise<WorkerInfo[]> {
    return this.engine.inspector.workers();
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

  /** Claims keep a busy queue for some milliseconds each: tried until they let it through. */
  private async editQueue(name: string, settings: [paused: boolean | null, limit: number | null, unlimited: boolean]) {
    await retryOnContention(
      () => this.engine.database.run(lanes.editQueue, [name, ...settings]),
      this.engine.database.isBound,
    );
    await this.engine.publisher.publish({ kind: 'lanes', lanes: [lanesOfQueue(name)] });
  }

  /** One transaction, for as long as others' locks are in its way. @throws RowsHeldError after some seconds */
  private inPatientTransaction<T>(work: (executor: QueryExecutor) => Promise<T>): Promise<T> {
    return retryOnContention(() => this.engine.database.transaction(work), this.engine.database.isBound);
  }
}

const CONSTRUCTOR =
  'A JobManager is injected, or made by createJobManager({ connection }); its constructor is the library’s.';
