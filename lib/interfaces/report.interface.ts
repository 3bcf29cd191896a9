// What the library tells about jobs: their history, where they stand and why, what waits, and who works.
import type { JobStatus, Job, PartialResults, QueryExecutor } from './job.interface.js';

export type HistoryStatus = 'started' | 'completed' | 'failed' | 'partial_success' | 'snoozed' | 'cancelled';

/** One attempt of one job. */
export interface HistoryRecord {
  jobId: string;
  correlationId: string;
  task: string;
  payload: unknown;
  workerId: string | null;
  status: HistoryStatus;
  startedAt: Date | null;
  completedAt: Date | null;
  /** How long the job was due before it was claimed. */
  queueTimeMs: number | null;
  executionTimeMs: number | null;
  attempt: number;
  errorMessage: string | null;
  errorStack: string | null;
  partialResults: PartialResults | null;
  result: unknown;
  executionEnvironment: Record<string, unknown> | null;
  expiresAt: Date | null;
}

/** How a rate limit counts; see docs/rate-limits.md. */
export type RateLimitAlgorithm = 'fixed' | 'sliding' | 'bucket' | 'smooth';

/** What `registerRateLimit` takes. */
export interface RateLimitOptions {
  /**
   * `fixed`: at most `capacity` tokens in each window, which begins when the last one ends. `sliding`: at most so many in any
   * stretch of the interval's length. `bucket`: `capacity` tokens come back in each interval, one by one, up to `burst`.
   * `smooth`: the same, with one token at most: claims keep their distance. Default `fixed`.
   */
  algorithm?: RateLimitAlgorithm | undefined;
  /** Tokens for each interval, at least 1. */
  capacity: number;
  /** In ms, or an SQL interval such as '1 minute'; from 1 ms to 1e12 ms. */
  interval: number | string;
  /** How many tokens a bucket holds at most. Default: the capacity. For buckets alone. */
  burst?: number | undefined;
}

/** What `takeTokens` takes. */
export interface TokenOptions {
  /** Whose tokens: see `rateLimit` of jobs. Default: those of all that name none. */
  by?: string | null | undefined;
  /** How many. Default 1. */
  weight?: number | undefined;
  /**
   * Take them on this connection, in its transaction: they come back if it rolls back, and until it ends nothing else takes
   * tokens of this key and value. Default: as for `addJob`.
   */
  manager?: QueryExecutor | undefined;
}

/** What `takeTokens` answers. */
export interface TokensTaken {
  /** Whether they were taken: all of them, or none. */
  ok: boolean;
  /** When there are enough, if nothing else takes them first; 0 where they were taken. */
  retryInMs: number;
}

/** A rate limit as the database knows it. */
export interface RateLimit {
  key: string;
  algorithm: RateLimitAlgorithm;
  /** Tokens for each interval. */
  capacity: number;
  intervalMs: number;
  /** How many tokens there are at once, at most. */
  burst: number;
  /** Of jobs that name no `by`. */
  availableTokens: number;
  /** When tokens came last: the start of a window; of buckets: now. */
  lastRefillAt: Date;
  /** A handler has blocked it until then (`RateLimitedError`); `null`: none has. */
  blockedUntil: Date | null;
}

/** What is left of a rate limit for one value of `by`. */
export interface RateLimitValue {
  by: string;
  availableTokens: number;
  /** When there is a token; in the past where there is one. */
  nextTokenAt: Date;
  /** A handler has blocked it until then; `null`: none has. */
  blockedUntil: Date | null;
}

export interface QueueState {
  name: string;
  /** `Infinity`: no limit. */
  concurrency: number;
  /** More waiting jobs are refused; `Infinity`: no limit. */
  maxWaiting: number;
  paused: boolean;
  /** Its pause; `null`: it is not paused. */
  pause: PauseDetails | null;
  running: number;
  waiting: number;
  /** The worker that claimed from the queue last, while a job of it runs. */
  lockedBy: string | null;
}

export interface PartitionState {
  partition: string;
  /** Jobs that are due or will be, up to 1,000. */
  waiting: number;
  running: number;
  /** Jobs of it that run at once; `Infinity`: no limit. */
  concurrency: number;
  /** How much of the queue's concurrency it gets while other partitions want some; 1: all of it. */
  share: number;
  weight: number;
}

/** What a pause stops. One of these. */
export type PauseTarget =
  /** Jobs of a task, in whatever queue. */
  | { task: string }
  /** Jobs of a queue. */
  | { queue: string }
  /** Jobs of one partition of a queue. */
  | { partition: { queue: string; partition: string } }
  /** The pools of an instance, by the name that `JobsModule` was given; `default` is the instance without a name. */
  | { instance: string }
  /** One pool, or the claims by hand of one name, by its `workerId`. */
  | { worker: string }
  /** Every claim. */
  | { all: true };

export interface PauseOptions {
  /** When the pause ends by itself, by the database's clock. Default: when it is resumed. */
  until?: Date | null | undefined;
  /** Why, for people: at most 1,000 characters. */
  reason: string;
  /** The name of the person or program that pauses it, for people. */
  by: string;
}

export interface ResumeOptions {
  /** The name of the person or program that resumes it, for the event `jobs.resumed` and the log. */
  by?: string | null | undefined;
}

/** When and why something was paused. */
export interface PauseDetails {
  since: Date | null;
  /** `null`: when it is resumed. */
  until: Date | null;
  reason: string | null;
  by: string | null;
}

/** A pause in force, as `listPauses` tells it. */
export interface Pause extends PauseDetails {
  target: PauseTarget;
}

export interface WorkerInfo {
  id: string;
  host: string;
  pid: number;
  concurrency: number;
  startedAt: Date;
  heartbeatAt: Date;
  running: number;
  tasks: string[];
}

export interface Page<T> {
  items: T[];
  /** Hand it in for the next page; `null` on the last one. */
  cursor: string | null;
}

export interface PageRequest {
  /** 1 to 1,000. Default 50. */
  limit?: number | undefined;
  cursor?: string | null | undefined;
}

export interface JobFilter {
  task?: string | undefined;
  queue?: string | undefined;
  status?: JobStatus | undefined;
  tag?: string | undefined;
  groupId?: string | undefined;
  flag?: string | undefined;
  /** Created at or after. */
  from?: Date | undefined;
  /** Created before. */
  to?: Date | undefined;
  /** Text contained in the payload, the task's name or the last error, in any case. */
  search?: string | undefined;
}

export interface HistoryFilter {
  jobId?: string | undefined;
  task?: string | undefined;
  status?: Exclude<HistoryStatus, 'started'> | undefined;
  workerId?: string | undefined;
  /** Finished at or after. */
  from?: Date | undefined;
  /** Finished before. */
  to?: Date | undefined;
}

export interface JobCounts {
  byStatus: Record<JobStatus, number>;
  /** Live jobs per task. */
  byTask: Record<string, number>;
  /** Live jobs per queue. */
  byQueue: Record<string, number>;
  /** How long the oldest job that could run has been due; `null` where none is due. */
  oldestDueAgeMs: number | null;
}

export type ExplainReason =
  | 'running'
  | 'future'
  | 'snoozed'
  | 'queue_busy'
  | 'partition_full'
  | 'queue_paused'
  | 'partition_paused'
  | 'task_paused'
  | 'instance_paused'
  | 'worker_paused'
  | 'all_paused'
  | 'no_tokens'
  | 'parents'
  | 'job_key'
  | 'no_handler'
  | 'no_taker'
  | 'no_worker'
  | 'exhausted'
  | 'cancelled'
  | 'completed'
  | 'ready';

/** Why a job is not running. */
export interface JobExplanation {
  status: JobStatus;
  reason: ExplainReason;
  /** One sentence for people. */
  message: string;
  /** When the obstacle goes away by itself, where that is known. */
  until: Date | null;
  /** Ids of the jobs in its way. */
  blockedBy: string[];
  /** The pause in its way; `null`: none is. */
  pause: PauseDetails | null;
}

/** How a job ended, as `waitForJob` reports it. */
export interface JobResult {
  status: JobStatus;
  result: unknown;
  error: string | null;
  job: Job;
}

/** Which exhausted jobs `replayFailedJobs` adds again, and with how many attempts. */
export interface ReplayWindow {
  /** Exhausted at or after. Default: ever. */
  from?: Date | undefined;
  /** Exhausted before. */
  to?: Date | undefined;
  task?: string | undefined;
  /** Default: as many as the old job had. */
  maxAttempts?: number | undefined;
}
