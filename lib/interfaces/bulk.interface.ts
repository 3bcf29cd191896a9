// Actions on many jobs at once: what is asked for, and what has come of it.
import type { JobFilter } from './report.interface.js';

export type BulkActionName = 'cancel' | 'retry' | 'reschedule' | 'purge' | 'move';

/**
 * `waiting`: no pool has begun it. `completed`: it has come to the end, whatever became of single jobs. `stopped`: by `stop`.
 * `failed`: a page went wrong again and again; `error` says why.
 */
export type BulkState = 'waiting' | 'running' | 'completed' | 'stopped' | 'failed';

/** Which jobs: as for `listJobs`. A value that is undefined is refused; all jobs are meant by `{ all: true }` alone. */
export interface BulkFilter extends JobFilter {
  all?: true | undefined;
}

export interface BulkOptions {
  /** The person or program that asks for it, for the record. */
  by: string;
  /** Why; cancelled jobs show it, too. */
  reason?: string | undefined;
  /** How many jobs a second at most. Default: as many as possible. */
  ratePerS?: number | undefined;
  /** Only counts what the action would be about. */
  dryRun?: boolean | undefined;
}

export interface BulkRescheduleOptions extends BulkOptions {
  runAt?: Date | undefined;
  priority?: number | undefined;
  maxAttempts?: number | undefined;
}

export interface BulkMoveOptions extends BulkOptions {
  /** `null`: jobs that wait in no queue. */
  queue: string | null;
}

/** What became of one job that the action could not be done to. */
export interface BulkReason {
  jobId: string;
  outcome: 'failed' | 'skipped';
  reason: string;
}

export interface BulkAction {
  id: string;
  action: BulkActionName;
  state: BulkState;
  /** An `EncryptedValue` where this process lacks the key. */
  filter: BulkFilter;
  /** What a reschedule or a move was told. */
  settings: { runAt?: Date; priority?: number; maxAttempts?: number; queue?: string | null };
  by: string;
  reason: string | null;
  ratePerS: number | null;
  /** Jobs that the action has met so far: those done, failed and skipped, and `held`. */
  matched: number;
  done: number;
  failed: number;
  /** Those that ran, were changed meanwhile, or that open transactions held until the end. */
  skipped: number;
  /** Those that open transactions hold at the moment; they are tried again. */
  held: number;
  /** Why jobs failed or were skipped: the first ten of each. */
  reasons: BulkReason[];
  createdAt: Date;
  startedAt: Date | null;
  finishedAt: Date | null;
  error: string | null;
}

/** What a dry run has found. */
export interface BulkPreview {
  action: BulkActionName;
  matched: number;
  /** Whether `matched` is estimated: exact numbers go up to 10,000 matches, and 100,000 jobs that are looked at. */
  isEstimate: boolean;
  /** Ids of the first ten. */
  sample: string[];
}

/** What events tell of an action. Without its filter, which may name persons. */
export type BulkProgress = Omit<BulkAction, 'filter'>;
