// What the manager and the runtime say to each other: claims with a cursor, outcomes, and what became of them.
import type { ClaimedJob, PartialResults, WorkedOnce } from './job.interface.js';

/** Where a scan of the ready jobs of one priority goes on. Opaque to everybody but the claim statement. */
export interface CursorPosition {
  /** Whether the position lies in the lane of jobs that are claimed for free slots only. */
  slotOnly: boolean;
  priority: number;
  /** As the database printed it, with microseconds. */
  runAt: string;
  id: string;
}

/** Positions by lane and priority: a claim starts behind them instead of re-reading what is gone. */
export type ClaimCursor = CursorPosition[];

export interface ClaimRequest {
  workerId: string;
  /** Most jobs to claim, in all. */
  limit: number;
  /** Most jobs to claim of those that may not wait in a buffer (limited queues, rate limits, last attempts). */
  slots: number;
  /** Whether to look for such jobs at all: without, a claim is cheaper. */
  lookForSlots: boolean;
  /** Jobs for free slots only of this priority or a better (lower) one; `null`: of any. */
  slotPriorityLimit: number | null;
  /** `null`: any task. */
  taskIdentifiers: string[] | null;
  forbiddenFlags: string[] | null;
  /** Only these queues; `null`: all jobs. */
  queues: string[] | null;
  /** Empty: from the start. Known positions save reading dead entries again; start positions may be dropped any time. */
  cursor: ClaimCursor;
  /** Set for claims by hand: they live by their own lease; `null` for pools, which live by their heartbeat. */
  leaseMs: number | null;
}

export interface ClaimResult {
  /** Ordered by priority, run-at and id. */
  jobs: ClaimedJob[];
  /** Hand it to the next claim of the same scan. */
  cursor: ClaimCursor;
  /** The scan ended at its limit: there is probably more to claim right now. */
  more: boolean;
  /** Why some of them are not among `jobs`: they were put off, because nobody here can decrypt them. */
  unreadable?: unknown;
  /** Milliseconds until something that was passed over can run (a window's refill); `null` if nothing is known. */
  retryInMs: number | null;
}

/** How one attempt ended. What a handler returns or throws becomes one of these in a single place. */
export type Outcome =
  | { kind: 'completed'; result: string | null }
  | { kind: 'partial'; partialResults: PartialResults; delayMs: number; sealed?: string }
  | { kind: 'failed'; error: unknown; delayMs: number }
  | { kind: 'permanent'; error: unknown }
  | { kind: 'snoozed'; delayMs: number; error?: unknown }
  | { kind: 'cancelled'; reason: string | null }
  | { kind: 'released' };

export interface SettleRequest {
  job: ClaimedJob;
  outcome: Outcome;
  executionTimeMs: number;
  /** A transaction that may or may not have been committed has tried to settle it before. */
  inDoubt?: boolean;
}

/** What became of the job: `lost` where the claim had been taken away, then nothing was changed. */
export type SettledStatus = 'completed' | 'retrying' | 'exhausted' | 'snoozed' | 'cancelled' | 'released' | 'lost';

export interface SettleResult {
  job: ClaimedJob;
  status: SettledStatus;
  /** When the job can run again; `null` where it will not. */
  runAt: Date | null;
}

/** What a process says of itself. */
export interface WorkerRegistration {
  id: string;
  host: string;
  pid: number;
  concurrency: number;
  tasks: string[];
  leaseMs: number;
}

/** What a thread needs to send heartbeats by itself. */
export interface HeartbeatPlan {
  /** pg's client configuration, without anything that cannot be handed to a thread. */
  config: object;
  query: { text: string; values: unknown[] };
}

/** What a heartbeat brings back. */
export interface HeartbeatReport {
  /** The worker's row was gone or expired: it was taken for dead, and its jobs may have been given to others. */
  expired: boolean;
  /** Ids of the worker's running jobs that somebody asked to cancel. */
  cancelRequested: string[];
  /** Whether processes that are gone have left something for others to finish. */
  needsRescue: boolean;
  /** Whether any rate limit is registered. */
  hasRateLimits: boolean;
  /** The version of the schema, where a newer release has changed what this one needs. */
  newerSchema: number | null;
}

/** Runs single jobs, for `workOnce`. */
export interface JobsOnce {
  workOnce(queues: string[] | null): Promise<WorkedOnce | null>;
  /** Aborts what runs, and takes nothing more. */
  close(): Promise<void>;
}
