// The library's face and the only caller of its statements: one method is one change of state. No loops over jobs, no
// timers; what a pool needs of the manager stands at the end.
import { inspect } from 'node:util';
import type pg from 'pg';
import type { JobsOnce, Outcome } from '../interfaces/claim.interface.js';
import type { CronInfo, CronSpec } from '../interfaces/cron.interface.js';
import type {
  AddedJob,
  AddJobOptions,
  AddJobsOptions,
  ClaimedJob,
  ClaimOptions,
  CompleteOptions,
  HistoryFilter,
  HistoryRecord,
  Job,
  JobCounts,
  JobExplanation,
  JobFilter,
  JobLogEntry,
  JobSpec,
  JobSpecs,
  JobResult,
  JobStatus,
  Page,
  PageRequest,
  PartialResults,
  QueryExecutor,
  QueueState,
  RateLimit,
  ReplayWindow,
  SettleReport,
  WorkedOnce,
  WorkerInfo,
} from '../interfaces/job.interface.js';
import type { JobGraph } from '../interfaces/job.graph.interface.js';
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import type { PayloadOf, TaskToken } from '../interfaces/task.interface.js';
import {
  InvalidArgumentError,
  InvalidStatusError,
  JobHeldError,
  JobNotFoundError,
  LeaseExpiredError,
  NoHandlersError,
  RevisionConflictError,
  WrongOwnerError,
} from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import { JobNotifier } from '../storage/job.notifier.js';
import { TransactionSource } from '../storage/transaction.source.js';
import { toDate } from '../storage/row.types.js';
import * as edits from '../storage/statements/edit-jobs.js';
import * as inspections from '../storage/statements/inspect-jobs.js';
import type { JobRow } from '../storage/statements/job-columns.js';
import * as byHandClaims from '../storage/statements/claims-by-hand.js';
import * as garbage from '../storage/statements/prune-jobs.js';
import * as lanes from '../storage/statements/queues.js';
import * as limits from '../storage/statements/rate-limits.js';
import { settledWithin } from '../timers.js';
import { check, refuse } from '../validation.js';
import { INT4_MAX, isUuid, MAX_MS, rules } from '../validation.rules.js';
import { AttemptRecords } from './attempt.records.js';
import { callOptions, checkAdd, checkAddMany, checkWorkerId, claimedJobs, copyOf } from './call.arguments.js';
import { Crontabs } from './crontabs.js';
import { Declarations } from './declarations.js';
import { toCounts } from './job.counts.js';
import { cancelledBy, explainLiveJob } from './job.explainer.js';
import { findGraph } from './job.graph.js';
import { resultsByHand } from './results.by.hand.js';
import { JobAdder } from './job.adder.js';
import { JobCipher } from './job.cipher.js';
import { JobClaims } from './job.claims.js';
import { JobPromoter, newsOf } from './job.promoter.js';
import { JobRevival } from './job.revival.js';
import { JobSettlement } from './job.settlement.js';
import { lanesOfQueue } from './lane.names.js';
import { NewsPublisher } from './news.publisher.js';
import { SchemaGuard } from './schema.guard.js';
import { byHand, WorkerRegistry } from './worker.registry.js';
import { listWorkers } from '../storage/statements/workers.js';
import { retryHeld, retryOnContention } from '../storage/contention.js';
import { replayOf, toHistoryRecord, toJob, toQueueState, toRateLimit, toWorkerInfo } from './job.mapper.js';
import { JobPreparer } from './job.preparer.js';
import { JobRetention } from './job.retention.js';
import { JobTransaction } from './job.transaction.js';
import { JobWaiter, type WaitOptions } from './job.waiter.js';
import { keyRules, pageOf, readCursor, readPageRequest, refusingCursor } from './page.js';
import type { PayloadValidator } from './payload.validator.js';
import { reencrypt, type Reencryption, type ReencryptOptions } from './reencryption.js';
import { repeatInDoubt } from './repeat.in.doubt.js';
import { searchPatterns } from './search.patterns.js';
import type { TaskRegistry } from './task.registry.js';

export interface JobManagerParts {
  database: Database;
  settings: ManagerSettings;
  tasks: TaskRegistry;
  validator: PayloadValidator;
  /** Where to LISTEN, if not where the statements go. */
  listenConnection?: string | pg.ClientConfig | undefined;
  /** The transaction that `addJob` joins where it is given none. */
  ambient?: () => QueryExecutor | undefined;
  /** Hears what is no fault but worth knowing. */
  debug?: (message: string) => void;
}

const nowhere = (): undefined => undefined;
const LONGEST_CLOSE_MS = 5_000;
const ALWAYS: [Date, Date] = [new Date(0), new Date(Date.UTC(9999, 0, 1))];
/**
 * Adds jobs, claims and settles them by hand, and looks after queues, rate limits and history. Inject it.
 *
 * @example
 * await this.jobs.addJob('send-email', { to: 'ada@example.org' }, { manager: entityManager });
 */
export class JobManager {
  /** For pools: claims without a user's hand. */
  readonly claims: JobClaims;
  /** For pools: settles, and ends of claims. */
  readonly settlement: JobSettlement;
  /** For pools: what ends leave to others. */
  readonly promoter: JobPromoter;
  /** For pools: incarnations and their heartbeats. */
  readonly registry: WorkerRegistry;
  /** For pools: what other processes should know. */
  readonly publisher: NewsPublisher;
  /** For handlers: what a running attempt writes before it ends. */
  readonly attempts: AttemptRecords;
  /** For pools: firing what is due. */
  readonly crontabs: Crontabs;
  /** For pools: writing down what tasks and options declare. */
  readonly declarations: Declarations;
  /** For maintenance: making partitions ahead. */
  readonly retention: JobRetention;
  private readonly database: Database;
  private readonly settings: ManagerSettings;
  private readonly adder: JobAdder;
  private readonly revival: JobRevival;
  private readonly transactions: TransactionSource;
  private readonly waiter: JobWaiter;
  private readonly cipher: JobCipher | undefined;
  private readonly singleRuns: JobsOnce[] = [];
  private readonly pools = new Set<() => Promise<unknown>>();

  constructor(private readonly parts: JobManagerParts) {
    if (!parts?.database || !parts.settings)
      refuse([
        'A JobManager is injected, or made by createJobManager({ connection }); its constructor is the library’s.',
      ]);
    const { database, settings, tasks, validator, ambient = nowhere, debug = nowhere } = parts;
    this.database = database;
    this.settings = settings;
    const cipher = settings.encryption ? new JobCipher(settings.encryption) : undefined;
    this.cipher = cipher;
    this.waiter = new JobWaiter(database, cipher);
    const schemaGuard = new SchemaGuard(database.schema);
    this.publisher = new NewsPublisher(database);
    const failCircle = async (id: string, path: string[]): Promise<void> => {
      const reason = `it waits for itself: ${path.join(' → ')}`;
      await this.settlement.end([{ id, fence: null }], 'doomed', reason, { patient: false });
    };
    this.promoter = new JobPromoter(database, settings, this.publisher, failCircle);
    const notice = (ids: Set<string>): void => this.waiter.notice(ids);
    this.settlement = new JobSettlement(database, settings, tasks, cipher, this.promoter, this.publisher, notice);
    this.claims = new JobClaims(database, this.settlement, cipher, schemaGuard, settings.maxCrashes);
    this.registry = new WorkerRegistry(database, settings, this.claims, this.settlement, this.promoter, schemaGuard);
    this.revival = new JobRevival(database, this.promoter, this.publisher);
    this.attempts = new AttemptRecords(database, cipher);
    this.transactions = new TransactionSource(database);
    const preparer = new JobPreparer(settings, tasks, validator, cipher);
    this.adder = new JobAdder(database, preparer, this.promoter, this.publisher, ambient, cipher);
    this.retention = new JobRetention(database, settings.history, debug);
    this.crontabs = new Crontabs(database, this.adder, preparer, cipher);
    const tell = (names: string[]): Promise<void> => this.publisher.publish(...newsOf(names.map(lanesOfQueue)));
    this.declarations = new Declarations({ database, crontabs: this.crontabs, queues: settings.queues, tell });
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
    return this.adder.addOne(task, payload, options);
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
    return this.adder.addMany(specs, { manager: options.manager, notify: options.notify !== false });
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
    const { batchSize = 1, leaseMs = this.settings.lockTimeoutMs } = options;
    const [taskIdentifiers, forbiddenFlags] = [copyOf(options.taskIdentifiers), copyOf(options.forbiddenFlags)];
    const claim = { ...byHand(workerId, leaseMs), taskIdentifiers, forbiddenFlags };
    return this.claims.claimExactly(claim, copyOf(options.queues), batchSize);
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
    const singleRun = this.singleRuns.at(-1);
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
    return this.settleByHand(workerId, executionTimeMs, jobs, (_job, index) => {
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
    return this.settleByHand(workerId, executionTimeMs, [...errors.keys()], (job) => {
      const error = errors.get(job);
      const delayMs = this.settlement.retryDelayMs(job, error);
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
    return this.settleByHand(workerId, executionTimeMs, [job], () => {
      const delayMs = this.settlement.retryDelayMs(job, undefined);
      return { kind: 'partial', partialResults: reported, delayMs: delayMs === false ? 0 : delayMs };
    });
  }

  /** Puts a claimed job off without using up an attempt. @throws InvalidWorkerIdError, InvalidArgumentError */
  async snoozeJob(workerId: string, job: ClaimedJob, ms: number): Promise<SettleReport> {
    check({ ms: [ms, rules.duration] });
    return this.settleByHand(workerId, 0, [job], () => ({ kind: 'snoozed', delayMs: ms }));
  }

  /**
   * Renews a claim made by hand by its lease's length and returns its new end.
   * @throws JobNotFoundError, InvalidStatusError, WrongOwnerError, LeaseExpiredError
   */
  async extendLease(workerId: string, jobId: string): Promise<Date> {
    checkWorkerId(workerId);
    check({ jobId: [jobId, rules.uuid] });
    for (let pauseMs = 5; ; pauseMs *= 2) {
      const [row] = await this.database.run(byHandClaims.extendLease, [workerId, jobId]);
      if (row?.expires_at) return toDate(row.expires_at);
      if (!row) throw await this.notLive(jobId, 'claimed');
      if (row.locked_by === null) throw new InvalidStatusError(jobId, row.status, 'claimed');
      if (row.locked_by !== workerId) throw new WrongOwnerError(jobId, row.locked_by, workerId);
      if (!row.by_hand)
        throw new InvalidStatusError(jobId, 'held by a pool, which renews its lease itself', 'claimed by hand');
      if (row.cancel_requested) throw new InvalidStatusError(jobId, cancelledBy(row.cancel_reason), 'claimed');
      if (row.expired) throw new LeaseExpiredError(jobId);
      if (pauseMs > LONGEST_PAUSE_MS) throw new JobHeldError([jobId]);
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
    }
  }

  /**
   * Takes a claim away if nobody has changed the job since `revision`; the job can be claimed again at once, and the
   * attempt does not count.
   * @throws JobNotFoundError, InvalidStatusError, RevisionConflictError
   */
  async revokeLease(jobId: string, revision: number): Promise<Job> {
    check({ jobId: [jobId, rules.uuid], revision: [revision, rules.integer(0, INT4_MAX)] });
    const found = await this.database.run(byHandClaims.findClaimAt, [jobId, revision]);
    const ended = await this.settlement.end(found, 'revoked', 'lease revoked');
    const job = await this.findJob(jobId);
    if (ended.length && job) return job;
    if (!job) throw new JobNotFoundError(jobId);
    if (job.status !== 'running') throw new InvalidStatusError(jobId, job.status, 'running');
    throw new RevisionConflictError(jobId, revision, job.revision);
  }

  // An operator's hand

  /** Exhausts jobs, waiting or running, whatever attempts are left. Returns those that were; others are not live. */
  async permanentlyFailJobs(ids: string[], reason = 'failed by an operator'): Promise<Job[]> {
    check({ ids: [ids, rules.uuids], reason: [reason, rules.reason] });
    const jobs = [...new Set(ids)].map((id) => ({ id, fence: null }));
    return this.jobsOf(await this.settlement.end(jobs, 'doomed', reason));
  }

  /**
   * Cancels jobs. A waiting or exhausted one leaves at once; a running one is returned as `running`, gets its signal
   * aborted wherever it runs, and becomes cancelled however its handler ends.
   */
  async cancelJobs(ids: string[], reason?: string): Promise<Job[]> {
    check({ ids: [ids, rules.uuids], reason: [reason, rules.optional(rules.reason)] });
    const rows: edits.CancelledRow[] = [];
    await retryHeld([...new Set(ids)], async (open) => {
      const found = await this.cancelNow(open, reason ?? null);
      rows.push(...found.filter(({ became }) => became !== 'held'));
      return found.filter(({ became }) => became === 'held').map(({ id }) => id);
    });
    const running = new Set(rows.filter(({ became }) => became === 'running').map(({ id }) => id));
    // Its worker may have heard of it, and settled it, by now.
    return (await this.jobsOf(rows)).map((job) => (running.has(job.id) ? { ...job, status: 'running' } : job));
  }

  /** One try: what an open transaction holds comes back as held, and its holder hears of it all the same. */
  private async cancelNow(ids: string[], reason: string | null): Promise<edits.CancelledRow[]> {
    const rows = await this.database.run(edits.cancelJobs, [ids, reason, this.settings.history.retentionMs]);
    const told = rows.filter(({ became }) => became !== 'cancelled').map(({ id }) => id);
    if (told.length) await this.publisher.publish({ kind: 'cancelled', ids: told, reason });
    const gone = rows.filter(({ became }) => became === 'cancelled');
    const keys = gone.flatMap(({ job_key }) => job_key ?? []);
    await this.promoter.promote({ holders: [], keys, parents: gone.map(({ id }) => id) });
    return rows;
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
    const rows: edits.EditedRow[] = [];
    await retryHeld([...new Set(ids)], async (open) => {
      const values: [unknown, unknown, number | null] = [
        runAt?.toISOString() ?? null,
        priority ?? null,
        maxAttempts ?? null,
      ];
      const found = await this.revival.reschedule(open, values);
      rows.push(...found.filter(({ held }) => !held));
      return found.filter(({ held }) => held).map(({ id }) => id);
    });
    await this.publisher.publish(...newsOf(rows.map(({ lane }) => lane)));
    const jobs = await this.jobsOf(rows);
    await this.promoter.resolve(jobs.filter(({ status }) => status === 'exhausted').map(({ id }) => id));
    return jobs;
  }

  /**
   * Brings exhausted and cancelled jobs back, with all their attempts.
   * @throws JobKeyConflictError if another live job holds a key of theirs, RowsHeldError where open transactions hold one of them
   *   for seconds; none is changed then
   */
  async retryJobs(ids: string[]): Promise<Job[]> {
    check({ ids: [ids, rules.uuids] });
    const asked = [...ids];
    return this.jobsOf(await this.patiently((executor) => this.revival.retry(asked, executor)));
  }

  /**
   * Adds one new job for each job that was exhausted in the window [from, to), with the flag `replay` and the old id
   * as its key, in place of a key that the old job has. A job is replayed once: a second call finds nothing.
   */
  async replayFailedJobs(window: ReplayWindow = {}): Promise<Job[]> {
    check({}, [callOptions.replayFailedJobs, window]);
    const { task, maxAttempts } = window;
    const [from, to] = [window.from ?? ALWAYS[0], window.to ?? ALWAYS[1]];
    return this.patiently(async (manager) => {
      const taken = await this.revival.takeToReplay([from.toISOString(), to.toISOString(), task ?? null], manager);
      const rows = await this.database.run(inspections.findJobs, [taken], manager);
      return this.addJobs(
        rows.map(this.toJob).map((job) => replayOf(job, maxAttempts)),
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
    const found = await this.database.run(byHandClaims.findClaimsOf, [copyOf(workerIds)]);
    return this.jobsOf(await this.settlement.end(found, 'unlocked', 'force-unlocked'));
  }

  /** Frees places in queues that no running job takes, and wakes those who wait for one. Places do so by themselves, soon. */
  async forceUnlockQueues(queueNames?: string[]): Promise<QueueState[]> {
    check({ queueNames: [queueNames, rules.optional(rules.laneNames)] });
    const asked = copyOf(queueNames);
    await this.promoter.sweepNow();
    const names = (await this.database.run(lanes.findQueues, [asked])).map(({ name }) => name);
    await this.publisher.publish(...newsOf(names.map(lanesOfQueue)));
    return (await this.database.run(lanes.listQueues, [names])).map(toQueueState);
  }

  /**
   * Takes away claims made by hand that were not extended in time (by their own lease, or since `lockTimeoutMs`), and
   * those of workers that died. Returns how many.
   */
  async resetLockedJobs(options: { lockTimeoutMs?: number | undefined } = {}): Promise<number> {
    check({}, [callOptions.resetLockedJobs, options]);
    const reset = await this.registry.resetExpired(options.lockTimeoutMs ?? null);
    const rescued = await this.registry.rescue();
    await this.promoter.sweepNow();
    return reset + rescued;
  }

  /** Removes jobs that ended so long ago, with their history; who waits for one is cancelled. Returns how many. */
  async purgeJobs(options: { status: JobStatus; olderThanMs: number }): Promise<number> {
    check({}, [callOptions.purgeJobs, options]);
    const { status, olderThanMs } = options;
    return this.patiently((executor) => this.revival.purge(status, olderThanMs, executor));
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
    return (await this.database.run(lanes.listQueues, [null])).map(toQueueState);
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
    const register = () => this.database.run(limits.registerRateLimit, [key, capacity, ms, sql]);
    const rows = await retryOnContention(register, this.database.isBound).catch((error: unknown) => {
      throw limits.refusesInterval(error)
        ? new InvalidArgumentError([
            `Expected interval to be ms or an SQL interval of at least 1 ms, got "${interval}".`,
          ])
        : error;
    });
    await this.publisher.publish({ kind: 'all' });
    return toRateLimit(rows[0] as limits.RateLimitRow);
  }

  /** Starts the next window of every limit whose window has passed. Returns how many. Claims do so by themselves. */
  async refillRateLimits(): Promise<number> {
    const [row] = await this.database.run(limits.refillRateLimits, []);
    return row?.refilled ?? 0;
  }

  // Recurring jobs

  /**
   * Adds a job of the task at each slot of the schedule, from the first slot after now, for as long as some process
   * runs workers. A known id is described anew: another schedule takes effect from now on. See docs/crons.md.
   *
   * @throws InvalidArgumentError, PayloadValidationError, PayloadNotSerializableError, PayloadTooLargeError,
   *   CrontabLockedError where some transaction holds the crontab's row for seconds
   * @example
   * await jobs.scheduleCron({ id: 'digest', task: 'send-digest', schedule: '0 8 * * 1-5', timeZone: 'Europe/Berlin' });
   */
  scheduleCron<T extends string>(cron: CronSpec<PayloadOf<T>> & { task: T }): Promise<CronInfo<PayloadOf<T>>>;
  scheduleCron<P>(cron: CronSpec<NoInfer<P>> & { task: TaskToken<P, any> }): Promise<CronInfo<P>>;
  async scheduleCron(cron: CronSpec & { task: string | TaskToken }): Promise<CronInfo> {
    return this.crontabs.schedule(cron);
  }

  /** Forgets a crontab; jobs that it has added stay. Returns whether there was one. @throws InvalidArgumentError, CrontabLockedError */
  async unscheduleCron(id: string): Promise<boolean> {
    return this.crontabs.unschedule(id);
  }

  /** All crontabs, by id. */
  async listCrons(): Promise<CronInfo[]> {
    return this.crontabs.list();
  }

  // Garbage

  /** Removes expired history and its jobs, and makes partitions. Returns how many records; estimated where many went. */
  async gcJobHistory(): Promise<number> {
    return this.retention.collect();
  }

  /** Forgets queues without jobs, pause or settings that no process has declared for a month. Returns how many. */
  async gcJobQueues(): Promise<number> {
    return (await this.database.run(lanes.pruneQueues, [Object.keys(this.settings.queues)])).length;
  }

  /** Forgets names of tasks without jobs that were not seen for so long (default 7 days). Returns how many. */
  async gcTaskIdentifiers(options: { keepSinceMs?: number | undefined } = {}): Promise<number> {
    check({}, [callOptions.gcTaskIdentifiers, options]);
    const keepSinceMs = options.keepSinceMs ?? this.settings.taskIdentifierRetentionMs;
    const [row] = await this.database.run(garbage.pruneTasks, [keepSinceMs]);
    this.claims.forgetTasks();
    return row?.pruned ?? 0;
  }

  /**
   * Encrypts anew what is encrypted with other keys than the first one, live and kept, beside running workers; see
   * docs/security.md. Repeat it until nothing is left. @throws InvalidArgumentError where nothing is to be encrypted
   */
  async reencryptJobs(options: ReencryptOptions = {}): Promise<Reencryption> {
    check({}, [callOptions.reencryptJobs, options]);
    if (!this.cipher) throw new InvalidArgumentError(['Expected the option encryption.keys, got none.']);
    return reencrypt(this.database, this.cipher, options);
  }

  // Looking

  /** A job, live or as its history last knew it; null where no job has the id. */
  async findJob(id: string): Promise<Job | null> {
    check({ id: [id, rules.uuid] });
    const [row] = await this.database.run(inspections.findJobs, [[id]]);
    return row ? this.toJob(row) : null;
  }

  /** Jobs, newest first. */
  async listJobs(filter: JobFilter = {}, page?: PageRequest): Promise<Page<Job>> {
    check({}, [callOptions.jobFilter, filter]);
    const { limit, cursor } = readPageRequest(page);
    const rows = await this.database.run(inspections.listJobs, [
      ...[filter.task, filter.queue, filter.status, filter.tag, filter.groupId, filter.flag].map(orNull),
      filter.from?.toISOString() ?? null,
      filter.to?.toISOString() ?? null,
      filter.search == null ? null : searchPatterns(filter.search),
      ...readCursor(cursor, keyRules.uuid),
      limit + 1,
      isUuid(filter.groupId) ? filter.groupId : null,
    ]);
    return pageOf(rows, limit, this.toJob, (row) => [row.id]);
  }

  /**
   * A job with all that it depends on and all that depends on it, through any number of generations, as far as they are
   * remembered; at most 1,000 jobs.
   * @throws JobNotFoundError
   */
  async jobGraph(id: string): Promise<JobGraph> {
    check({ id: [id, rules.uuid] });
    const graph = await findGraph(this.database, id);
    if (!graph) throw new JobNotFoundError(id);
    return graph;
  }

  /** The attempts of a job, oldest first; the running one comes last, as `started`. */
  async jobHistory(id: string): Promise<HistoryRecord[]> {
    check({ id: [id, rules.uuid] });
    return (await this.database.run(inspections.jobHistory, [id])).map(this.toRecord);
  }

  /** What the attempts of a job wrote with `ctx.log`, oldest first. */
  async jobLogs(id: string, page?: PageRequest): Promise<Page<JobLogEntry>> {
    return this.attempts.findLogs(id, page);
  }

  /** Finished attempts, newest first. */
  async listHistory(filter: HistoryFilter = {}, page?: PageRequest): Promise<Page<HistoryRecord>> {
    check({}, [callOptions.historyFilter, filter]);
    const { limit, cursor } = readPageRequest(page);
    const values = [
      ...[filter.jobId, filter.task, filter.status, filter.workerId].map(orNull),
      filter.from?.toISOString() ?? null,
      filter.to?.toISOString() ?? null,
      ...readCursor(cursor, keyRules.time, keyRules.uuid, keyRules.count),
      limit + 1,
    ];
    const rows = await refusingCursor(this.database.run(inspections.listHistory, values));
    return pageOf(rows, limit, this.toRecord, (row) => [row.position, row.job_id, row.fence]);
  }

  /** How many jobs there are, by status, task and queue. Reads all live rows: for people, not for loops. */
  async counts(): Promise<JobCounts> {
    return toCounts(await this.database.run(inspections.countJobs, []));
  }

  /** Why is this job not running? @throws JobNotFoundError */
  async explain(id: string): Promise<JobExplanation> {
    const job = await this.findJob(id);
    if (!job) throw new JobNotFoundError(id);
    const [row] = await this.database.run(inspections.explainJob, [id]);
    return explainLiveJob(job, row);
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
    return this.waiter.wait(id, options);
  }

  /** The workers that are alive. */
  async workers(): Promise<WorkerInfo[]> {
    return (await this.database.run(listWorkers, [])).map(toWorkerInfo);
  }

  /**
   * Stops the pools of this manager that still run, as their `stop()` does, and ends `workOnce`. Then waits for adds that are
   * under way, for 5 s at most, and ends the connection pool, unless it is a DataSource's. What has not been sent by then is
   * refused (StoppedError) and never is; what was sent has its answer from the database, or is in doubt.
   */
  async close(): Promise<void> {
    this.waiter.close();
    await Promise.all([...this.pools].map((stop) => stop()));
    await Promise.all(this.singleRuns.map((singleRun) => singleRun.close()));
    const added = this.adder.idle().then(() => this.publisher.idle());
    await settledWithin(LONGEST_CLOSE_MS, Promise.all([added, this.attempts.idle()]));
    this.adder.close();
    await this.transactions.close();
    await this.database.close();
  }

  // For pools

  /** Who runs the jobs of `workOnce`. */
  runWith(singleRun: JobsOnce): void {
    this.singleRuns.push(singleRun);
  }

  /** Stops a pool when the manager is closed. Returns how to forget it. */
  watchOver(stopPool: () => Promise<unknown>): () => void {
    this.pools.add(stopPool);
    return () => this.pools.delete(stopPool);
  }

  /** Writes the declared queues' concurrency, unless a newer release that runs has declared another one. */
  async declareQueues(): Promise<void> {
    await this.declarations.declareQueues();
  }

  /** This manager inside a transaction: all it does is part of it. */
  within(executor: QueryExecutor): JobManager {
    return new JobManager({ ...this.parts, database: this.database.on(executor), ambient: () => executor });
  }

  /** Makes room for so many transactional attempts at once. @throws InvalidOptionsError, MissingPackageError */
  async prepareTransactions(slots: number): Promise<void> {
    await this.transactions.prepare(slots);
  }

  /** A transaction for one attempt of a transactional task. Waits for a free connection; see TransactionSource. */
  async beginTransaction(signal: AbortSignal, onFailure: (error: unknown) => void): Promise<JobTransaction> {
    const session = await this.transactions.begin(signal, onFailure);
    return new JobTransaction(session, this.within(session.manager), this.settlement);
  }

  /** A LISTEN connection of its own, not started yet. */
  createNotifier(onError: (error: unknown) => void): JobNotifier {
    const direct = this.parts.listenConnection;
    const config =
      typeof direct === 'string' ? { connectionString: direct } : (direct ?? this.database.connectionConfig());
    return new JobNotifier(config, this.database.channel, (error) => onError(this.database.explain(error)));
  }

  /** Logged by mistake, it shows neither connection strings nor keys. */
  toJSON(): object {
    return { schema: this.settings.schema };
  }

  [inspect.custom](): string {
    return `JobManager ${inspect(this.toJSON())}`;
  }

  private readonly toJob = (row: JobRow): Job => toJob(row, this.cipher);
  private readonly toRecord = (row: inspections.HistoryRow): HistoryRecord => toHistoryRecord(row, this.cipher);

  private async settleByHand(
    workerId: string,
    executionTimeMs: number,
    given: ClaimedJob[],
    outcomeOf: (job: ClaimedJob, index: number) => Outcome,
  ): Promise<SettleReport> {
    checkWorkerId(workerId);
    check({ executionTimeMs: [executionTimeMs, rules.duration], jobs: [given, claimedJobs] });
    const jobs = [...given];
    if (!jobs.length) return { settled: [], lost: [] };
    const requests = jobs.map((job, index) => ({ job, outcome: outcomeOf(job, index), executionTimeMs }));
    const claimer = byHand(workerId, this.settings.lockTimeoutMs);
    const settle = (repeated: boolean) => this.settlement.settle(claimer, requests, { repeated });
    const { results: settled, late } = await repeatInDoubt((repeated) =>
      retryOnContention(() => settle(repeated), this.database.isBound),
    );
    const results = [...settled, ...((await late) ?? [])];
    const lost = new Set(results.filter(({ status }) => status === 'lost').map(({ job }) => job));
    return { settled: jobs.filter((job) => !lost.has(job)), lost: [...lost] };
  }

  /** Claims keep a busy queue for some milliseconds each: tried until they let it through. */
  private async editQueue(name: string, settings: [paused: boolean | null, limit: number | null, unlimited: boolean]) {
    await retryOnContention(() => this.database.run(lanes.editQueue, [name, ...settings]), this.database.isBound);
    await this.publisher.publish({ kind: 'lanes', lanes: [lanesOfQueue(name)] });
  }

  /** One transaction, for as long as others' locks are in its way. @throws RowsHeldError after some seconds */
  private patiently<T>(work: (executor: QueryExecutor) => Promise<T>): Promise<T> {
    return retryOnContention(() => this.database.transaction(work), this.database.isBound);
  }

  private async jobsOf(rows: { id: string }[]): Promise<Job[]> {
    if (!rows.length) return [];
    return (await this.database.run(inspections.findJobs, [rows.map(({ id }) => id)])).map(this.toJob);
  }

  private async notLive(jobId: string, expected: string): Promise<Error> {
    const job = await this.findJob(jobId);
    return job ? new InvalidStatusError(jobId, job.status, expected) : new JobNotFoundError(jobId);
  }
}

const orNull = <T>(value: T | undefined): T | null => value ?? null;

const LONGEST_PAUSE_MS = 1_000;
