// The events of pools and jobs: what each type carries.
import type { BulkProgress } from './bulk.interface.js';
import type { Job } from './job.interface.js';
import type { Pause } from './report.interface.js';

export interface JobEventFields {
  'pool.start': { concurrency: number };
  'pool.stop': { forced: boolean };
  'job.started': { job: Job };
  /** `result`: what the handler returned, as `waitForJob` gives it; null where that is nothing. */
  'job.completed': { job: Job; executionTimeMs: number; result?: unknown };
  'job.failed': { job: Job; error: unknown; executionTimeMs: number; retryAt: Date | null };
  'job.exhausted': { job: Job; error: unknown };
  'job.partial-success': { job: Job; executionTimeMs: number; partialResults: unknown };
  'job.snoozed': { job: Job; ms: number };
  'job.cancelled': { job: Job; reason: string | null };
  'job.timeout': { job: Job; timeoutMs: number };
  'job.lost': { job: Job };
  'job.settled': { job: Job; outcome: string };
  'cron.fired': { cronId: string; slot: Date; job: Job };
  /** A bulk action has done its first page; it has ended, in whatever way. */
  'bulk.started': { bulk: BulkProgress };
  'bulk.finished': { bulk: BulkProgress };
  /** A call through this manager has paused something, or given a pause another time, reason or name. Not in a transaction. */
  'jobs.paused': { pause: Pause };
  /** A call through this manager has ended a pause before its time; `by`: the name that it gave. Not in a transaction. */
  'jobs.resumed': { pause: Pause; by: string | null };
  'worker.error': { error: unknown; context: string };
  /** The database cannot be reached, or takes no writes. Once, however many statements fail. */
  'database.lost': { error: unknown };
  /** It answers again; `failures`: statements that failed meanwhile. */
  'database.back': { downMs: number; failures: number };
  /** Outcomes cannot be written: the pool claims and starts nothing. `unwritten`: outcomes that wait. */
  'circuit.open': { error: unknown; unwritten: number };
  'circuit.closed': { openMs: number; unwritten: number };
}

export type JobEventType = keyof JobEventFields;
