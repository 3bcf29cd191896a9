// Settling: what a finished attempt leaves behind. The statements themselves are functions of
// migrations/0001_initial/3_settle.sql, which pin their plans. Nothing here waits for what others hold.
import { statement } from '../database.js';

/** `held`: an open transaction holds the job, try again; `lost`: the claim is over. */
type Unsettled = 'held' | 'lost';

export interface EndedRow {
  id: string;
  fence: string;
  became:
    | 'completed'
    | 'retrying'
    | 'exhausted'
    | 'snoozed'
    | 'cancelled'
    | 'released'
    | 'available'
    | 'unchanged'
    | Unsettled;
  run_at: number | null;
  /** Why it was cancelled, where the canceller said so. */
  reason: string | null;
  /** The queue in which its end has freed a place. */
  queue: string | null;
  /** A key that may be free now, or belongs to a job that waited for this one. */
  job_key: string | null;
  /** Whether others may wait for this job to end, and it has. */
  has_dependents: boolean;
  /** The worker that held the claim. */
  holder?: string | null;
  lane?: string | null;
}

/** What deviates from a plain completion; `parent`: completed like most, but others wait for it. */
export interface CompletedRow extends Omit<EndedRow, 'became' | 'fence'> {
  fence: string | null;
  became: 'completed' | 'cancelled' | 'parent' | Unsettled;
}

/**
 * The hot settle: attempts that completed. $1 the name given by a claim by hand or null, $2 the worker's label, $3 ids,
 * $4 fences, $5 execution times in ms, $6 results (JSON text or null), $7 whether completions leave a history record,
 * $8 retention in ms, $9 environment or null, $10 whether some may hold places in queues, $11 whether to lock first.
 */
export const completeJobs = statement<CompletedRow>(
  'complete_jobs',
  (schema) => `select * from ${schema}.complete_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
  { limited: true },
);

/**
 * One completion in the transaction of the attempt, which waits for tables that others have locked as a whole. $1–$10 as of
 * completeJobs; the job is locked first.
 */
export const completeWithin = statement<CompletedRow>(
  'complete_within',
  (schema) => `
  select * from ${schema}.complete_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, ${schema}.hold_settle_tables())`,
);

/**
 * Completions of a pool, and a claim of lanes in the same transaction. $1–$7 as $2–$8 of completeJobs, $8–$30 as claimLaneJobs;
 * $31–$34 a priority, its lane to be tried alone, or null, and a position in it.
 * Rows as of completeJobs; then, in `claimed`, as of claimLaneJobs.
 */
export const completeAndClaim = statement<CompletedRow & { claimed: string | null }>(
  'complete_and_claim',
  (schema) => `
  select * from ${schema}.complete_and_claim(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25,
    $26, $27, $28::text[]::timestamptz[], $29, $30, $31, $32, $33, $34, $35, $36, $37::text::timestamptz, $38
  )`,
  { limited: true },
);

/** How an attempt ends otherwise: see end_attempts. */
export type EndKind =
  | 'failed'
  | 'partial'
  | 'snoozed'
  | 'cancelled'
  | 'released'
  | 'unlocked'
  | 'crashed'
  | 'spared'
  | 'revoked'
  | 'unknown'
  | 'doomed';

/** One attempt that ended otherwise, as endAttempts reads it from JSON. */
export interface EndedAttempt {
  id: string;
  /** Null: the job as it stands, running or waiting. */
  fence: string | null;
  kind: EndKind;
  /** Until the next attempt. */
  delay_ms?: number;
  /** No further attempt, whatever is left of them. */
  permanent?: boolean;
  execution_time_ms?: number;
  error_message: string | null;
  error_stack?: string | null;
  /** Rate limits that give no tokens until the job comes back. */
  blocks?: { key: string; by_value: string }[] | null;
  /** JSON text. */
  partial_results?: string | null;
}

/**
 * Attempts that did not complete, and ends by others. $1 as in completeJobs, $2 label or null, $3 a JSON array of
 * EndedAttempt, $4 whether failures leave a record, $5 whether snoozes do, $6 retention in ms, $7 environment or null,
 * $8 crashes after which a job is exhausted, or null.
 */
export const endAttempts = statement<EndedRow>(
  'end_attempts',
  (schema) => `select * from ${schema}.end_attempts($1, $2, $3::text::json, $4, $5, $6, $7, $8)`,
  { limited: true },
);

/** The same of one attempt in its own transaction, which waits for tables that others have locked as a whole. */
export const endWithin = statement<EndedRow>(
  'end_within',
  (schema) => `
  select * from ${schema}.end_attempts(
    $1, $2, case when ${schema}.hold_settle_tables() then $3::text::json end, $4, $5, $6, $7, $8
  )`,
);

/**
 * What earlier calls of these settles have done: asked when a settle is repeated because nothing tells whether its commit
 * went through. $1 label, $2 ids, $3 fences, $4 execution times in ms, which tell the worker's own records from those of
 * others that took the claim away. Ends without a record have left a receipt.
 * Index: job_history_by_job; receipts are few.
 */
export const findSettled = statement<EndedRow>(
  'find_settled',
  (schema) => `
  with input as materialized (
    select * from unnest($2::uuid[], $3::bigint[], $4::integer[]) as i(id, fence, execution_time_ms)
  )
  select i.id, i.fence, case
      when h.status in ('completed', 'cancelled', 'snoozed') then h.status::text
      when j.parked = 'exhausted' then 'exhausted'
      else 'retrying'
    end as became,
    (extract(epoch from j.run_at) * 1000)::float8 as run_at, null as reason, null as queue, j.job_key,
    j.id is null or j.parked = 'exhausted' as has_dependents
  from input i
  join ${schema}.job_history h on h.job_id = i.id and h.fence = i.fence and h.worker_id = $1
    and h.execution_time_ms = i.execution_time_ms
  left join ${schema}.jobs j on j.id = i.id
  union all
  select i.id, i.fence, coalesce(settled.outcome, 'completed'), null, null, null, null, true
  from input i cross join lateral (
    select s.outcome from ${schema}.settle_receipts r, unnest(r.job_ids, r.fences, r.outcomes) as s(id, fence, outcome)
    where s.id = i.id and s.fence = i.fence limit 1
  ) settled
  where not exists (select from ${schema}.job_history h where h.job_id = i.id and h.fence = i.fence)`,
  { repeatable: true },
);
