// What operators do, as JobManager offers it: one method checks what it is given, calls the part that does it, and maps the
// answer.
import type { CronInfo, CronSpec } from '../interfaces/cron.interface.js';
import type { Job, JobStatus, QueryExecutor } from '../interfaces/job.interface.js';
import type { PartitionOptions, QueueOptions } from '../interfaces/jobs-options.interface.js';
import type {
  Page,
  PageRequest,
  PartitionState,
  Pause,
  PauseOptions,
  ResumeOptions,
  PauseTarget,
  QueueState,
  RateLimit,
  RateLimitOptions,
  RateLimitValue,
  TokenOptions,
  TokensTaken,
} from '../interfaces/report.interface.js';
import type { PayloadOf, TaskToken } from '../interfaces/task.interface.js';
import { InvalidArgumentError } from '../jobs.errors.js';
import { withLockRetries, retryOnContention } from '../storage/retry.js';
import * as byHandClaims from '../storage/statements/claims-by-hand.js';
import * as garbage from '../storage/statements/prune-jobs.js';
import * as lanes from '../storage/statements/queues.js';
import { check, refuseCall } from '../validation.js';
import { INT4_MAX, rules } from '../validation.rules.js';
import { callOptions, copyOf, idsOf } from './arguments.js';
import { BulkActions } from './bulk.actions.js';
import { JobEdits } from './job.edits.js';
import { JobEngine } from './job.engine.js';
import { toPartitionState, toQueueState } from './job.mapper.js';
import { newsOf } from './job.promoter.js';
import { lanesOfQueue } from './lane.names.js';
import { pageOf, readCursor, readPageRequest } from './page.js';
import { partitionSettings } from './queue.settings.js';
import { reencrypt, type Reencryption, type ReencryptOptions } from './reencryption.js';

import { JobReports } from './job.reports.js';

/** Of each partition. */
const MAX_COUNTED = 1_000;
const NOTHING_TO_CONFIGURE = 'Expected concurrency, partitions or maxWaiting, got none.';

type QueueEdit = [limit: number | null, unlimited: boolean, partitions: string | null];

/** What operators do: to jobs, queues, rate limits, crontabs and what is left behind. */
export abstract class JobOperations extends JobReports {
  /** Actions on many jobs at once, by a filter. */
  readonly bulk: BulkActions;
  private readonly edits: JobEdits;

  constructor(engine: JobEngine) {
    super(engine);
    this.bulk = new BulkActions(engine);
    const { database, settings, inspector, promoter, publisher, revival } = engine;
    const { retentionMs } = settings.history;
    this.edits = new JobEdits({ database, promoter, publisher, revival, inspector, retentionMs });
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
    check({ jobKeys: [jobKeys, rules.jobKeys] });
    return this.edits.findOfKeys([...jobKeys]);
  }

  /** As cancelJobs, for the jobs that have these keys; one that is added under them meanwhile may be cancelled, too. */
  async cancelJobsByKey(jobKeys: string[], reason?: string): Promise<Job[]> {
    check({ jobKeys: [jobKeys, rules.jobKeys], reason: [reason, rules.optional(rules.reason)] });
    return this.edits.ofKeys([...jobKeys], (ids) => this.edits.cancel(ids, reason ?? null));
  }

  /** As rescheduleJobs, for the jobs that have these keys. @throws JobKeyConflictError as there */
  async rescheduleJobsByKey(
    jobKeys: string[],
    changes: { runAt?: Date | undefined; priority?: number | undefined; maxAttempts?: number | undefined },
  ): Promise<Job[]> {
    check({ jobKeys: [jobKeys, rules.jobKeys] }, [callOptions.rescheduleJobs, changes]);
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

  /**
   * Claims nothing more of the target, until it is resumed or until a time. Running jobs go on, claimed ones that have not started
   * are given back, jobs can be added. When the call has resolved, no claim ignores the pause. A target that is paused already
   * gets the new time, reason and `by`. In a caller's transaction it takes effect with the commit; claims under way then may
   * commit shortly after.
   *
   * @throws InvalidArgumentError, also where `until` has passed; RowsHeldError; ClaimsUnderWayError where the pause holds, but
   *   transactions of callers that have claimed before it stay open
   * @example
   * await jobs.pause({ task: 'charge' }, { until: new Date(Date.now() + 600_000), reason: 'the bank is down', by: 'ada' });
   */
  async pause(target: PauseTarget, options: PauseOptions): Promise<void> {
    check({}, [callOptions.pause, options]);
    await this.engine.pauses.pause(target, options);
  }

  /**
   * Ends the pause of exactly this target; others that hold its jobs stay. Pools go on at once. Returns whether there was one.
   * Give your name in `by`: the log tells who has resumed what.
   * @throws InvalidArgumentError, RowsHeldError
   */
  async resume(target: PauseTarget, options: ResumeOptions = {}): Promise<boolean> {
    check({}, [callOptions.resume, options]);
    return this.engine.pauses.resume(target, options);
  }

  /** The pauses in force, the oldest first. */
  async listPauses(): Promise<Pause[]> {
    return this.engine.pauses.list();
  }

  /** The same as `pause({ queue: name }, …)`: until `resumeQueue`, or until a time. @throws RowsHeldError */
  async pauseQueue(name: string, options: Partial<PauseOptions> = {}): Promise<void> {
    check({ name: [name, rules.laneName] }, [callOptions.pauseQueue, options]);
    await this.engine.pauses.pause({ queue: name }, options);
  }

  /** The same as `resume({ queue: name })`. @throws RowsHeldError */
  async resumeQueue(name: string, options: ResumeOptions = {}): Promise<void> {
    check({ name: [name, rules.laneName] }, [callOptions.resume, options]);
    await this.engine.pauses.resume({ queue: name }, options);
  }

  /**
   * Sets how many jobs of the queue run at once over all processes, what each of its partitions gets, and how many may wait
   * before adds are refused (QueueFullError); `Infinity` for no limit. What is given wins over what processes declare, what
   * is left out stays as it is.
   *
   * @throws InvalidArgumentError, RowsHeldError
   * @example
   * await jobs.configureQueue('mail', { concurrency: 5, maxWaiting: 100_000 });
   */
  async configureQueue(name: string, options: QueueOptions): Promise<void> {
    check({ name: [name, rules.laneName] }, [callOptions.configureQueue, options]);
    const { concurrency, partitions, maxWaiting } = options;
    const asksForNothing = concurrency === undefined && maxWaiting === undefined && !partitions;
    refuseCall(asksForNothing ? [NOTHING_TO_CONFIGURE] : []);
    if (maxWaiting !== undefined) await this.boundQueue(name, maxWaiting === Infinity ? null : maxWaiting);
    if (concurrency === undefined && !partitions) return;
    const settings = partitions ? JSON.stringify(partitionSettings(partitions)) : null;
    const isUnlimited = concurrency === Infinity;
    await this.editQueue(name, [isUnlimited ? null : (concurrency ?? null), isUnlimited, settings]);
  }

  /**
   * Sets what a partition of a queue gets, whatever its queue says for each of them. What is left out is as the queue says;
   * nothing at all: the partition is as all others again.
   *
   * @throws InvalidArgumentError, RowsHeldError
   * @example
   * await jobs.configurePartition('render', 'acme', { concurrency: 20, weight: 4 });
   */
  async configurePartition(queue: string, partition: string, options: PartitionOptions): Promise<void> {
    check({ queue: [queue, rules.laneName], partition: [partition, rules.partition] }, [
      callOptions.configurePartition,
      options,
    ]);
    const { concurrency, share, weight } = options;
    const limit = concurrency === Infinity ? INT4_MAX : concurrency;
    const values = [queue, partition, limit ?? null, share ?? null, weight ?? null];
    const { database, publisher } = this.engine;
    await retryOnContention(() => database.run(lanes.editPartition, values), database.isBound);
    await publisher.publish({ kind: 'lanes', lanes: [lanesOfQueue(queue)] });
  }

  /** Partitions of a queue that have jobs or settings of their own, by name. */
  async listPartitions(queue: string, page?: PageRequest): Promise<Page<PartitionState>> {
    check({ queue: [queue, rules.laneName] });
    const { limit, cursor } = readPageRequest(page);
    const [behind] = readCursor(cursor, (key) => rules.partition(key) === null);
    const rows = await this.engine.database.run(lanes.listPartitions, [queue, limit + 1, behind, MAX_COUNTED]);
    return pageOf(rows, limit, toPartitionState, ({ partition }) => [partition]);
  }

  async listQueues(): Promise<QueueState[]> {
    return (await this.engine.database.run(lanes.listQueues, [null])).map(toQueueState);
  }

  /**
   * Registers or changes a rate limit. `registerRateLimit(key, capacity, interval)` is the `fixed` one: at most `capacity` tokens
   * in each window. A change counts for the next claim, and what was taken stays taken; in a fixed window the tokens left are
   * clamped to a smaller capacity, and a larger one adds the difference.
   *
   * @throws InvalidArgumentError, RowsHeldError where transactions hold the limit for seconds
   * @example
   * await jobs.registerRateLimit('smtp', { algorithm: 'sliding', capacity: 100, interval: '1 minute' });
   */
  registerRateLimit(key: string, options: RateLimitOptions): Promise<RateLimit>;
  registerRateLimit(key: string, capacity: number, interval: number | string): Promise<RateLimit>;
  async registerRateLimit(
    key: string,
    given: RateLimitOptions | number,
    interval?: number | string,
  ): Promise<RateLimit> {
    const options = typeof given === 'number' ? { capacity: given, interval: interval! } : given;
    return this.engine.limiter.register(key, options);
  }

  /**
   * Takes tokens of a rate limit, for work that is no job: all that are asked for, or none. By the database's clock, and shared
   * with the claims of jobs that name the limit. In a transaction (`manager`) the tokens come back if it rolls back.
   *
   * @throws InvalidArgumentError (in a transaction that keeps its first snapshot, too), UnknownRateLimitError,
   *   RateLimitWeightError, RowsHeldError where a transaction keeps the tokens from others for seconds
   * @example
   * const { ok, retryInMs } = await jobs.takeTokens('api', { by: 'acme' });
   */
  async takeTokens(key: string, options: TokenOptions = {}): Promise<TokensTaken> {
    return this.engine.limiter.take(key, options);
  }

  /** Rate limits, by key. */
  async listRateLimits(page?: PageRequest): Promise<Page<RateLimit>> {
    return this.engine.limiter.list(page);
  }

  /** Values of `by` that have taken tokens of a rate limit which are not all back yet, or that are blocked; in their order. */
  async listRateLimitValues(key: string, page?: PageRequest): Promise<Page<RateLimitValue>> {
    return this.engine.limiter.listValues(key, page);
  }

  /** Forgets what has been taken of limits that have all their tokens back. Returns of how many. Claims need none of it. */
  async refillRateLimits(): Promise<number> {
    return this.engine.limiter.refill();
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

  /** Forgets queues without jobs, pause or settings, also of partitions, that no process has declared for a month. Returns how many. */
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

  private async boundQueue(name: string, maxWaiting: number | null): Promise<void> {
    const { database, bounds } = this.engine;
    await retryOnContention(() => database.run(lanes.boundQueue, [name, maxWaiting]), database.isBound);
    bounds.forget();
  }

  /** Claims keep a busy queue for some milliseconds each: tried until they let it through. */
  private async editQueue(name: string, settings: QueueEdit) {
    await retryOnContention(
      () => this.engine.database.run(lanes.editQueue, [name, ...settings]),
      this.engine.database.isBound,
    );
    await this.engine.publisher.publish({ kind: 'lanes', lanes: [lanesOfQueue(name)] });
  }

  /** One transaction, for as long as others' locks are in its way. @throws RowsHeldError after some seconds */
  protected inPatientTransaction<T>(work: (executor: QueryExecutor) => Promise<T>): Promise<T> {
    return retryOnContention(() => this.engine.database.transaction(work), this.engine.database.isBound);
  }
}
