// Claiming: takes due jobs in order (priority, run-at, id), within the limits of their queues and rate limits. The
// statement itself is the function claim_jobs of migration 3, which pins its plan.
import type { JobKeyMode, PartialResults } from '../../interfaces/job.interface.js';
import { statement } from '../database.js';

/**
 * What became of a job that the claim came across. `queue`, `tokens`: its queue is full or its rate limit used up, and
 * it was parked out of the claims' way. `unknown_queue`: the queue must be registered first. `later`: it needs a free
 * slot, and jobs ahead of it got them all; nothing was changed.
 */
export type Verdict = 'claimed' | 'queue' | 'tokens' | 'unknown_queue' | 'later';

/** What few jobs have. */
export interface ClaimExtra {
  rateLimitKey: string | null;
  lastError: string | null;
  jobKey: string | null;
  jobKeyMode: JobKeyMode | null;
  flags: string[] | null;
  tags: string[] | null;
  groupId: string | null;
  timeoutMs: number | null;
  previous: PartialResults | null;
  crashes: number;
}

/** Without a claim only what tells its place: verdict, slot_only, id, priority, run_at and queue. */
export interface CandidateRow {
  verdict: Verdict;
  slot_only: boolean;
  /** For `tokens`: milliseconds until the window ends. */
  refill_in_ms: number | null;
  /** The job was parked although its queue has a free place: another one should get it. */
  promote: boolean;
  id: string;
  priority: number;
  run_at: number;
  queue: string | null;
  task: string;
  payload: unknown;
  attempts: number;
  max_attempts: number;
  locked_at: number;
  revision: number;
  created_at: number;
  fence: string;
  extra: ClaimExtra | null;
}

/**
 * $1 worker, $2 most jobs, $3 how many of the first may be jobs for free slots, $4 tasks or null, $5 forbidden flags or
 * null, $6 queue or null, $7 lease in ms or null, $8–$11 the cursor (lane, priority, run-at, id), $12–$14 the gaps
 * between its priorities (lane, lower, upper), $15 the worst priority that may take a free slot, or null, $16 whether
 * to look for jobs for free slots at all. `run_at` has microseconds behind its point.
 */
export const claimJobs = statement<CandidateRow>(
  'claim_jobs',
  (schema) => `
  select * from ${schema}.claim_jobs(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text[]::timestamptz[], $11, $12, $13, $14, $15, $16
  )`,
  { prompt: true },
);

/** What claim_plain_jobs tells of a job, as a JSON array: one text costs less to print and to read than columns. */
export type PlainJob = [
  id: string,
  priority: number,
  runAt: number,
  task: string,
  attempts: number,
  maxAttempts: number,
  revision: number,
  createdAt: number,
  fence: string,
  extra: ClaimExtra | null,
  payload: unknown,
];

/**
 * Jobs without limits, for a pool. $1 worker, $2 most jobs, $3 tasks or null, $4 forbidden flags or null, $5–$7 the
 * cursor, best priority first. First comes the time of the claim in ms, then each job's text, see PlainJob; nothing
 * where the pool was taken for dead. The statement itself is the function claim_plain_jobs of migration 4.
 */
export const claimPlainJobs = statement<{ job: string }>(
  'claim_plain_jobs',
  (schema) => `
  select claimed as job from ${schema}.claim_plain_jobs($1, $2, $3, $4, $5, $6::text[]::timestamptz[], $7) claimed`,
  { prompt: true },
);
