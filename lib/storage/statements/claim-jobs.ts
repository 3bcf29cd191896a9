// Claiming: takes due jobs within the limits of their queues and rate limits. The statements themselves are the functions
// claim_plain_jobs and claim_lane_jobs of migrations/0001_initial/2_claim.sql, which pin their plans.
import type { PartialResults, StoredKeyMode } from '../../interfaces/job.interface.js';
import { statement } from '../database.js';

/** What few jobs have. */
export interface ClaimExtra {
  queue?: string | null;
  partition?: string | null;
  /** As textOfLimits writes them. */
  limits?: string | null;
  lastError: string | null;
  jobKey: string | null;
  jobKeyMode: StoredKeyMode | null;
  flags: string[] | null;
  tags: string[] | null;
  groupId: string | null;
  dependsOn: string[] | null;
  timeoutMs: number | null;
  previous: PartialResults | null;
  crashes: number;
}

/** What a claim tells of a job, as the text of a JSON array: one text costs less to print and to read than columns. */
export type ClaimedText = [
  id: string,
  fence: string,
  priority: number,
  runAt: number,
  task: string,
  attempts: number,
  maxAttempts: number,
  revision: number,
  createdAt: number,
  extra: Partial<ClaimExtra> | null,
  /** Missing where the job's body is gone. */
  payload?: unknown,
];

/**
 * Jobs without limits. $1 worker, $2 most jobs, $3 most KiB of payloads, $4 tasks, $5 other tasks, $6 forbidden flags,
 * $7 lease in ms, $8 worst priority, each or null; $9–$11 the cursor, best priority first; $12, $13 a quiet stretch of
 * priorities or nulls. First comes the time of the claim in ms, then each job's text, perhaps a quiet stretch at last;
 * nothing where the incarnation has ended.
 */
export const claimPlainJobs = statement<{ job: string }>(
  'claim_plain_jobs',
  (schema) => `
  select claimed as job from ${schema}.claim_plain_jobs(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text[]::timestamptz[], $11, $12, $13
  ) claimed`,
  { limited: true },
);

/**
 * Jobs of lanes, for free slots. $1 worker, $2 most jobs, $3 tasks, $4 other tasks, $5 forbidden flags, $6 most crashes,
 * $7 lease in ms, $8 worst priority, $9 queue, each or null; $10–$13 where turns go on, and with which shares; $14, $15 where in
 * queues; $16, $17 blocked stretches, $18 lanes to look at all the same, $19 since when to look for lanes that became due;
 * $20–$22 positions in lanes; $23, $24 in which lanes to try how many more jobs; $25, $26 where the look before
 * has ended; $27 most lanes to look at; $28 queues that could not be registered. Rows as of claimPlainJobs, a LaneReport last.
 */
export const claimLaneJobs = statement<{ job: string }>(
  'claim_lane_jobs',
  (schema) => `
  select claimed as job from ${schema}.claim_lane_jobs(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21::text[]::timestamptz[], $22,
    $23, $24, $25, $26, $27, $28
  ) claimed`,
  { limited: true },
);

/**
 * The best priority, worse than $1, in which a plain job is due. Index: jobs_ready, one descent for each priority on the
 * way.
 */
export const nextPlainPriority = statement<{ priority: number }>(
  'next_plain_priority',
  (schema) => `select priority from ${schema}.next_plain_priority($1) priority where priority is not null`,
  { repeatable: true, limited: true },
);
