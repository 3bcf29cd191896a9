// What a JobQueue is made with.
import type { Claimer } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { JobManager } from '../manager/job.manager.js';
import type { JobNotifier } from '../storage/job.notifier.js';
import type { TaskRoom } from './claim.group.js';
import type { Isolation } from './isolation.js';

export interface JobQueueOptions {
  jobs: JobManager;
  /** At least 10 characters. */
  workerId: string;
  notifier?: JobNotifier | null;
  /** Most jobs in the buffer. Default: adaptive, 50 to 1,000 jobs. In any case at most 16 MiB of payloads, and one job. */
  queueSize?: number | null;
  /** Default 60,000. */
  queueTtlMs?: number;
  /** Fetch when the buffer holds no more than this. Default: half of the buffer's size. */
  refetchThreshold?: number | null;
  /** Pause after a fetch that brought less than was expected. Default 1,000; a notification or a poll comes before it. */
  refetchDelayMs?: number;
  /** Default 2,000. */
  pollIntervalMs?: number;
  /** Default: `pollIntervalMs`, no backoff. */
  maxPollIntervalMs?: number;
  /** Claim only these tasks. A function is asked before each claim. Default: any. */
  taskIdentifiers?: string[] | (() => string[] | null) | null;
  queues?: string[] | null;
  forbiddenFlags?: string[] | null;
  /** How long a claim holds. Default: the manager's `lockTimeoutMs`. */
  leaseMs?: number | null;
  /** For pools: in whose name to claim. Default: by hand, under `workerId`. */
  claimer?: () => Claimer;
  /** Tasks that run no more than so many jobs at once here: no more are claimed than may begin. Default: none. */
  taskRooms?: () => TaskRoom[];
  /**
   * Asked for a place before a job is handed out; `false`: it may not start now, is passed over and keeps its turn.
   * Default: always.
   */
  admit?: (job: ClaimedJob) => boolean;
  /** Default: none; every job may run beside any other. */
  isolation?: Isolation;
  /** Asked before each claim; `false`: claim nothing for now, until `wake()`. Default: always. */
  mayClaim?: () => boolean;
  /**
   * What the pool holds beside the buffer: jobs that run, and outcomes that are not written. Default: nothing can tell, and
   * claims whose answer was lost are left to their lease.
   */
  held?: () => ClaimedJob[];
  onError?: (error: unknown, context: string) => void;
}
