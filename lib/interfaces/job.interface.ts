// The shapes of a job on its way through the library: how it is described, stored, claimed and remembered.

/**
 * Where a job stands. `scheduled`: its run-at lies in the future (retries too). `blocked`: it waits for parents or
 * for the running job whose key it took. Waiting for a queue, a token or the end of a pause is `available`.
 */
export type JobStatus =
  'available' | 'scheduled' | 'blocked' | 'running' | 'snoozed' | 'exhausted' | 'cancelled' | 'completed';

/** How `addJob` treats a live job with the same `jobKey`. */
export type JobKeyMode = 'replace' | 'preserve_run_at' | 'unsafe_dedupe';

/** Adds that come close together become one job. */
export interface Debounce {
  /** Of the job: a `jobKey`. */
  key: string;
  /** The job runs so many milliseconds after the last add. */
  ms: number;
  /** And at most so many after the first one, however many follow. Default: no limit. */
  maxMs?: number | undefined;
}

/** At most one job of a key in a length of time. */
export interface Throttle {
  /** Shared by all tasks, 1 to 1,000 bytes long. */
  key: string;
  /** How long the window of a job is, from its add on, at least 1. */
  ms: number;
  /**
   * What becomes of an add while the window is open. `drop`: nothing is added. `delay`: one job waits for the window's end, with
   * the payload of the last of these adds. Default `drop`.
   */
  mode?: 'drop' | 'delay' | undefined;
}

/** What is compared: the payload, the queue, the partition, or a part of the payload by its path. */
export type UniqueBy = 'payload' | 'queue' | 'partition' | `payload.${string}`;

/** Adds that say the same become one job. The task's name is always part of what is compared. */
export interface Unique {
  /** Default `['payload']`. */
  by?: UniqueBy[] | undefined;
  /** Not again within so many milliseconds of the add that made the job, at least 1. */
  withinMs?: number | undefined;
  /** Not again while such a job waits or runs. Default where no `withinMs` is given; with both, both hold. */
  while?: 'live' | undefined;
}

/** How an add meets jobs of its key: what `jobKeyMode`, `debounce`, `throttle` and `unique` have asked for. */
export type StoredKeyMode = JobKeyMode | 'debounce' | 'throttle' | 'unique';

/** A rate limit that a job takes tokens of when it is claimed. */
export interface JobRateLimit {
  /** Must have been registered with `registerRateLimit`. */
  key: string;
  /**
   * Each value has tokens of its own: a tenant, a customer; 1 to 200 characters without control characters, at most 600 bytes.
   * Default: the tokens of all jobs that name none.
   */
  by?: string | null | undefined;
  /** How many tokens the job takes, from 1 to the limit's capacity, or its burst. Default 1. */
  weight?: number | undefined;
}

/** The same as a job shows it. */
export interface RateLimitUse {
  key: string;
  by: string | null;
  weight: number;
}

/** A job as the database knows it. Dates are `Date`, absent values `null`, absent lists empty. */
export interface Job<P = unknown> {
  id: string;
  task: string;
  payload: P;
  status: JobStatus;
  /** Lower runs first. Default 0. */
  priority: number;
  queue: string | null;
  /** Whose turn it is within the queue. */
  partition: string | null;
  /** The key of its rate limit; of the first one where it has several. */
  rateLimitKey: string | null;
  /** Its rate limits, sorted by key. */
  rateLimits: RateLimitUse[];
  runAt: Date;
  /** Attempts begun so far, the running one included. */
  attempts: number;
  maxAttempts: number;
  lastError: string | null;
  jobKey: string | null;
  jobKeyMode: StoredKeyMode | null;
  flags: string[];
  tags: string[];
  /** The group it was added to; without one, its own id. */
  groupId: string;
  /** The parents that it was added with; see `JobManager.jobGraph`. */
  dependsOn: string[];
  timeoutMs: number | null;
  lockedBy: string | null;
  lockedAt: Date | null;
  /** Grows with every claim, release, settle, edit and lease extension. */
  revision: number;
  progress: unknown;
  createdAt: Date;
  updatedAt: Date;
}

/** A job as `addJob` returns it. */
export interface AddedJob<P = unknown> extends Job<P> {
  /** `false` where a job key, a throttle or a unique job kept an older job. */
  created: boolean;
}

/** A job in the hands of a worker. */
export interface ClaimedJob<P = unknown> extends Job<P> {
  /** Names this claim in the job's history. */
  correlationId: string;
  /** Grows with every claim of the job and never falls; a decimal string. Settling matches on it. */
  fence: string;
  /** What the last partially successful attempt left behind. */
  previous: PartialResults | null;
  /** How many of its attempts have taken their process down since one ended in an orderly way. */
  crashes: number;
}

/** A line that a handler wrote with `ctx.log`. */
export interface JobLogEntry {
  at: Date;
  message: string;
  /** The attempt that wrote it, as its history record names it. */
  correlationId: string;
}

/** What an attempt that got only half-way reports, and the next attempt gets as `ctx.previous`. */
export interface PartialResults {
  completedSteps?: string[] | undefined;
  failedSteps?: string[] | undefined;
  retryFromStep?: string | null | undefined;
  results?: unknown;
}

export interface AddJobOptions {
  /**
   * The lane to run in, 1 to 1,000 bytes without control characters. A queue that is declared nowhere runs one job at a
   * time, in order. Default: the task's; `null`: none, whatever the task says.
   */
  queue?: string | null | undefined;
  /**
   * Whose job it is, within its queue: a tenant, a customer; 1 to 200 characters without control characters, at most 600
   * bytes. Partitions take turns, and each may have limits of its own. Needs a queue. Default: the task's; `null`: none.
   */
  partition?: string | null | undefined;
  /** Lower runs first, a 32-bit integer. Default 0. */
  priority?: number | undefined;
  /** Not before this moment, by the database's clock. */
  runAt?: Date | undefined;
  /** Not before so many milliseconds from now; instead of `runAt`. */
  delayMs?: number | undefined;
  /** From 1 to 32,767. Default: the task's, else the module's `retry.maxAttempts` (25). */
  maxAttempts?: number | undefined;
  /** At most one live job has a given key, 1 to 2,000 bytes long. */
  jobKey?: string | undefined;
  /** Default `replace`. */
  jobKeyMode?: JobKeyMode | undefined;
  /**
   * Runs once for many adds: a waiting job of the key takes over everything, and waits again. Instead of `jobKey`, `jobKeyMode`,
   * `runAt` and `delayMs`.
   * @example
   * await jobs.addJob('reindex', { shop: 7 }, { debounce: { key: 'reindex-7', ms: 5_000, maxMs: 60_000 } });
   */
  debounce?: Debounce | undefined;
  /**
   * At most one job of the key in each `ms`. An add that makes none answers with the job of the window, and `created: false`.
   * Instead of `jobKey` and `jobKeyMode`; with `mode: 'delay'` also instead of `runAt` and `delayMs`. Default: the task's;
   * `null`: none, whatever the task says.
   * @example
   * await jobs.addJob('digest', { user: 7 }, { throttle: { key: 'digest-7', ms: 60_000, mode: 'delay' } });
   */
  throttle?: Throttle | null | undefined;
  /**
   * Adds nothing where such a job is there: the answer is that job, and `created: false`. Instead of `jobKey` and `jobKeyMode`.
   * Default: the task's; `null`: none, whatever the task says.
   * @example
   * await jobs.addJob('invoice', { order: 7, note: 'x' }, { unique: { by: ['payload.order'], withinMs: 3_600_000 } });
   */
  unique?: Unique | null | undefined;
  /** Labels that a worker may refuse by `forbiddenFlags`. */
  flags?: string[] | undefined;
  /** Labels to search by. */
  tags?: string[] | undefined;
  /** Names a group of jobs, to list them by. Default: the job's own id. */
  groupId?: string | undefined;
  /** Ids of jobs that must complete before this one runs; they must exist. */
  dependsOn?: string[] | undefined;
  /**
   * When a parent is exhausted or cancelled: `cancel` this job, with all that depends on it; `run` it all the same; or
   * `wait` until the parent is retried. Default `cancel`.
   */
  onParentFailure?: 'cancel' | 'run' | 'wait' | undefined;
  /** One rate limit, by its key alone: as `rateLimit: key`. Must have been registered with `registerRateLimit`. */
  rateLimitKey?: string | undefined;
  /**
   * Up to three rate limits, each a key or an object; the job takes tokens of all of them or of none. Together the keys and
   * values are at most 1,000 bytes long. Default: the task's; `null`: none, whatever the task says.
   * @example
   * await jobs.addJob('sync', { tenant: 'acme' }, { rateLimit: [{ key: 'api', by: 'acme', weight: 2 }, 'all'] });
   */
  rateLimit?: string | JobRateLimit | (string | JobRateLimit)[] | null | undefined;
  /** How long one attempt may run. Default: the task's, else the worker's `timeoutMs`. */
  timeoutMs?: number | undefined;
  /**
   * Insert on this connection, in its transaction: a TypeORM `EntityManager` or `QueryRunner`, a `pg` client, or
   * anything with `query(text, values)`. Default: the active transaction of typeorm-transactional or
   * @nestjs-cls/transactional on the module's `dataSource`, else a commit of its own.
   */
  manager?: QueryExecutor | undefined;
  /** `false`: do not wake idle workers; they find the job at their next poll. Default true. */
  notify?: boolean | undefined;
}

/** Options of `addJobs`, for all its jobs together. */
export type AddJobsOptions = Pick<AddJobOptions, 'manager' | 'notify'>;

/** One job of `addJobs`. */
export interface JobSpec<P = unknown> extends Omit<AddJobOptions, 'manager' | 'notify'> {
  task: string;
  payload: P;
}

/** Whatever can run SQL: TypeORM's EntityManager and QueryRunner, pg's Client and Pool, and adapters around others. */
export interface QueryExecutor {
  query(text: string, values?: any[]): Promise<any>;
}

export interface ClaimOptions {
  /** Default 1. */
  batchSize?: number | undefined;
  /** Claim only these tasks. Default: any. */
  taskIdentifiers?: string[] | undefined;
  /** Skip jobs that carry one of these flags. */
  forbiddenFlags?: string[] | undefined;
  /** Claim only from these queues, in the given order; jobs without a queue are left alone. */
  queues?: string[] | undefined;
  /** How long the claim holds unless `extendLease` renews it. Default: `lockTimeoutMs` (4 h). */
  leaseMs?: number | undefined;
}

export interface CompleteOptions {
  /** The jobs' results, as `waitForJob` reports them: one for each job, in the order of the jobs. Default: none. */
  results?: unknown[] | undefined;
}

/** What became of the jobs handed to a settling call. */
export interface SettleReport {
  settled: ClaimedJob[];
  /** Jobs whose claim had been taken away in the meantime; nothing was changed for them. */
  lost: ClaimedJob[];
}

/** What `workOnce` has done. */
export interface WorkedOnce {
  /** The job as it stands now. */
  job: Job;
  /** What its handler threw. */
  error?: unknown;
}
