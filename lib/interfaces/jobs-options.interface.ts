// The options of JobsModule.forRoot, createJobManager and createWorkerPool, as users write them.
import type { KeyObject } from 'node:crypto';
import type { DataSource } from './typeorm.interface.js';
import type { PgClientOptions, PgPoolOptions } from './connection.interface.js';
import type { Mask, RetryOptions } from './task.interface.js';

export interface WorkerOptions {
  /** Jobs run at once. Default 10. */
  concurrency?: number | undefined;
  /** Most jobs held in the local buffer. Default: adaptive, 50 to 1,000 jobs and at most 16 MiB of payloads. */
  queueSize?: number | undefined;
  /** A job that waited longer in the buffer goes back to the database. Default 60,000. */
  queueTtlMs?: number | undefined;
  /** Fetch more as soon as the buffer holds no more than this. Default: half of the buffer. */
  refetchThreshold?: number | undefined;
  /** Pause after a fetch that brought nothing although more had been expected. Default 1,000. */
  refetchDelayMs?: number | undefined;
  /** How often an idle pool looks for jobs that no notification announced. Default 2,000. */
  pollIntervalMs?: number | undefined;
  /** Idle polling backs off from `pollIntervalMs` up to this, with jitter. Default: `pollIntervalMs` (no backoff). */
  maxPollIntervalMs?: number | undefined;
  /** How long a silent worker keeps its jobs, at least 1,000. Default 30,000. */
  leaseMs?: number | undefined;
  /** How often the lease is renewed. Default 0.7 × `leaseMs`, at most 10,000. */
  keepaliveMs?: number | undefined;
  /** How long one attempt may run unless task or job say otherwise. Default 300,000. */
  timeoutMs?: number | undefined;
  /** How long a stopping pool waits for running jobs before it aborts their signals. Default 30,000. */
  gracefulShutdownTimeoutMs?: number | undefined;
  /** Run only these tasks. Default: all that this process has a handler for. */
  taskIdentifiers?: string[] | undefined;
  /** Take only from these queues, strictly in this order. */
  queues?: string[] | undefined;
  /** Leave jobs that carry one of these flags to others. */
  forbiddenFlags?: string[] | undefined;
  /**
   * A job whose attempts have taken their process down so often in a row is exhausted ("worker died"). Before its last
   * chance it runs alone in its process, so that no innocent neighbour is blamed. Default 3.
   */
  maxCrashes?: number | undefined;
  /** `false`: no LISTEN connection, polling only. Default true. */
  listen?: boolean | undefined;
  /** `false`: the pool waits for `start()`. Default true. */
  autoStart?: boolean | undefined;
}

export interface QueueOptions {
  /**
   * Jobs of the queue that run at once over all processes; `Infinity` for no limit. Default 1; with `partitions`, and for a
   * queue that is declared nowhere and has partitions, no limit.
   */
  concurrency?: number | undefined;
  /** What holds for each partition of the queue, unless `configurePartition` says otherwise. */
  partitions?: PartitionOptions | undefined;
  /**
   * Adds are refused (QueueFullError) while so many jobs of the queue wait for it; `Infinity` for any number. Each process counts
   * once a second, so it is approximate. Default: any number.
   */
  maxWaiting?: number | undefined;
}

/** What one partition of a queue gets. */
export interface PartitionOptions {
  /** Jobs of a partition that run at once over all processes; `Infinity` for no limit. Default: no limit. */
  concurrency?: number | undefined;
  /**
   * The part of the queue's concurrency that one partition gets while others want some, above 0 and up to 1. What no other
   * wants it gets beyond that. Default 1.
   */
  share?: number | undefined;
  /** How many jobs a partition gets in its turn, for each one that a partition of weight 1 gets, 1 to 1,000. Default 1. */
  weight?: number | undefined;
}

/** A declared queue as it is stored. */
export interface QueueSettings {
  /** Null: no limit. */
  concurrency: number | null;
  /** What is not the default. */
  partitions: { concurrency?: number; share?: number; weight?: number };
  /** How many jobs may wait; null: any number. */
  maxWaiting: number | null;
}

export interface HistoryOptions {
  /** Which attempts leave a record. Default 'all'. */
  keep?: 'all' | 'failures' | 'none' | undefined;
  /** How long records are kept. Default 30 days. */
  retentionMs?: number | undefined;
}

export interface MaintenanceOptions {
  /** Crontab expression (seconds allowed), or `false` for never. Default `* * * * *`. */
  resetLockedJobs?: string | false | undefined;
  /** Default `* * * * * *` (every second). */
  refillRateLimits?: string | false | undefined;
  /** Default `0 3 * * *`. */
  gc?: string | false | undefined;
  /** Time zone of these expressions. Default 'UTC'. */
  timeZone?: string | undefined;
}

export interface EncryptionOptions {
  /**
   * The first key encrypts; all of them decrypt. `id`: stored beside what the key has encrypted, so it must stay the
   * same; `key`: 32 bytes, as a Buffer or as base64 or hex text.
   */
  keys: { id: string; key: string | Uint8Array }[];
  /** Only jobs of these tasks are encrypted. Default: all jobs. */
  tasks?: string[] | undefined;
}

export interface JobManagerOptions {
  /** A PostgreSQL URL or a `pg` pool configuration. */
  connection?: string | PgPoolOptions | undefined;
  /** An initialised TypeORM DataSource whose pool is shared. */
  dataSource?: DataSource | undefined;
  /** The PostgreSQL schema that holds the library's tables. Default 'jobs'. */
  schema?: string | undefined;
  /** Bring the schema up to date at start; `false`: fail if it is behind. Default true. */
  migrate?: boolean | undefined;
  retry?: (RetryOptions & { maxAttempts?: number | undefined }) | undefined;
  history?: HistoryOptions | undefined;
  /** How long a claim made by hand (`getJobs`) holds. Default 4 hours. */
  lockTimeoutMs?: number | undefined;
  /** `gcTaskIdentifiers` forgets names unused for so long. Default 7 days. */
  taskIdentifierRetentionMs?: number | undefined;
  /** Keep trying for so long at start while the database cannot be reached. Default 0: fail at once. */
  waitForDatabaseMs?: number | undefined;
  /** A direct URL for LISTEN when `connection` goes through a transaction pooler. */
  listenConnection?: string | PgClientOptions | undefined;
  /**
   * Whether statements are prepared under names, which saves PostgreSQL from parsing them again and a pooler in transaction
   * mode may not keep. Default: unless a pooler is found between this process and the database.
   */
  preparedStatements?: boolean | undefined;
  /** Largest payload accepted, in bytes of JSON. Default 1,048,576. */
  maxPayloadBytes?: number | undefined;
  /**
   * Encrypts (AES-256-GCM) what jobs carry before it reaches the database: payloads, results, partial results, steps,
   * progress and logs. Every process that reads them needs the keys. Default: nothing is encrypted. See docs/security.md.
   */
  encryption?: EncryptionOptions | undefined;
  /** Queues with a concurrency other than one, or a bound of waiting jobs. */
  queues?: Record<string, QueueOptions> | undefined;
}

export interface JobsModuleOptions extends JobManagerOptions {
  /** Names the instance where an application has several. */
  name?: string | undefined;
  /** Whether `JobManager` can be injected everywhere. Default true. */
  isGlobal?: boolean | undefined;
  /** Options of the worker pool; `false`: this process only enqueues. */
  worker?: WorkerOptions | false | undefined;
  maintenance?: MaintenanceOptions | undefined;
  /** What events and the log do not show of payloads and results. Handlers get everything. See docs/security.md. */
  mask?: Mask | undefined;
  /** Jobs of tasks without a handler here: leave them to other processes, or fail them for good. Default 'leave'. */
  unknownTasks?: 'leave' | 'exhaust' | undefined;
  /** `true`: APP_GUARD, APP_INTERCEPTOR, APP_PIPE and APP_FILTER run on jobs too. Default false. */
  globalEnhancers?: boolean | undefined;
}

/** Retry settings with every default filled in. */
export type RetrySettings = Required<RetryOptions>;

/** Encryption with its keys ready for use. */
export interface EncryptionSettings {
  keys: { id: string; key: KeyObject }[];
  /** `null`: all. */
  tasks: string[] | null;
}

/** What a JobManager works with: `JobManagerOptions` with every default filled in. */
export interface ManagerSettings {
  schema: string;
  retry: RetrySettings & { maxAttempts: number };
  history: Required<HistoryOptions>;
  lockTimeoutMs: number;
  taskIdentifierRetentionMs: number;
  maxPayloadBytes: number;
  /** See `WorkerOptions.maxCrashes`. */
  maxCrashes: number;
  /** `null`: nothing is encrypted. */
  encryption: EncryptionSettings | null;
  /** Declared queues. */
  queues: Record<string, QueueSettings>;
}

/** What a worker pool works with: `WorkerOptions` with every default filled in; `null` where unset means adaptive or all. */
export interface WorkerSettings {
  concurrency: number;
  queueSize: number | null;
  queueTtlMs: number;
  refetchThreshold: number | null;
  refetchDelayMs: number;
  pollIntervalMs: number;
  maxPollIntervalMs: number;
  leaseMs: number;
  keepaliveMs: number;
  timeoutMs: number;
  gracefulShutdownTimeoutMs: number;
  taskIdentifiers: string[] | null;
  queues: string[] | null;
  forbiddenFlags: string[] | null;
  maxCrashes: number;
  listen: boolean;
  autoStart: boolean;
  unknownTasks: 'leave' | 'exhaust';
}
