// Settling: what a finished attempt leaves behind. Job and history change in one statement, matched on (id, fence),
// so nobody settles a claim that he no longer holds.
import { statement } from '../database.js';

export interface SettledRow {
  id: string;
  fence: string;
  became: 'completed' | 'retrying' | 'exhausted' | 'snoozed' | 'cancelled' | 'released';
  run_at: number | null;
  /** The queue in which the attempt's end freed a place that others wait for. */
  promote: string | null;
  /** The job that took over this one's key and waits for it to leave. */
  superseded_by: string | null;
  /** Whether others wait for this job to end, and it has. */
  has_dependents: boolean;
}

/** Gives the places back that the jobs of CTE `from` held in their queues. Locks in the order of names, like claims. */
export const freeQueues = (schema: string, from: string): string => `freed_queues as materialized (
    select q.name from ${schema}.job_queues q
    where q.name in (select queue from ${from} where queue is not null)
    order by q.name for update
  ),
  freed as (
    update ${schema}.job_queues q
    set running = greatest(0, q.running - ended.jobs), last_used_at = now(),
      locked_by = case when q.running > ended.jobs then q.locked_by end
    from freed_queues f
    join (select queue, count(*)::integer as jobs from ${from} where queue is not null group by queue) ended
      on ended.queue = f.name
    where q.name = f.name
    returning q.name, q.parked_at is not null as others_wait
  )`;

/** What deviates from a plain completion; `parent`: completed like most, but others wait for it. */
export interface CompletedRow extends Omit<SettledRow, 'became' | 'fence'> {
  fence: string | null;
  became: 'completed' | 'cancelled' | 'missing' | 'parent';
}

/** For rows that somebody's open transaction holds: fail soon, report them as missing, or wait. */
export type SettleManner = 'direct' | 'skip' | 'wait';

/**
 * The hot settle: attempts that completed. $1 worker, $2 ids, $3 fences, $4 execution times in ms, $5 results (JSON
 * text or null), $6 whether completions leave a history record, $7 retention in ms, $8 environment or null, $9 manner.
 * The statement itself is the function complete_jobs of migration 3, which pins its plan.
 */
const completion = (schema: string): string =>
  `select * from ${schema}.complete_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9)`;
export const completeJobs = statement<CompletedRow>('complete_jobs', completion, { prompt: true });
/** The same, for 'wait'. */
export const completeJobsPatiently = statement<CompletedRow>('complete_jobs', completion);

/** One attempt that ended otherwise, as endAttempts reads it from JSON. */
export interface EndedAttempt {
  id: string;
  fence: string;
  kind: 'failed' | 'partial' | 'snoozed' | 'cancelled' | 'released';
  /** Until the next attempt. */
  delay_ms: number;
  /** No further attempt, whatever is left of them. */
  permanent: boolean;
  execution_time_ms: number;
  error_message: string | null;
  error_stack: string | null;
  /** JSON text. */
  partial_results: string | null;
}

/**
 * Attempts that did not complete: failed, partially done, snoozed, cancelled, or given back unstarted.
 * $1 worker, $2 a JSON array of EndedAttempt, $3 whether failures leave a record, $4 whether snoozes do,
 * $5 retention in ms, $6 environment or null, $7 manner: 'skip' or 'wait'. The statement itself is the function
 * end_attempts of migration 3, which pins its plan.
 */
const ending = (schema: string): string => `select * from ${schema}.end_attempts($1, $2, $3, $4, $5, $6, $7)`;
export const endAttempts = statement<SettledRow>('end_attempts', ending, { prompt: true });
/** The same, for 'wait'. */
export const endAttemptsPatiently = statement<SettledRow>('end_attempts', ending);

/**
 * Lets jobs go that waited for the holder of their key to leave. $1 their ids, or null: all that nobody holds up any
 * more. $2 retention in ms. A statement of its own: the settle of the holder may have begun before they were committed.
 * The statement itself is the function of migration 7, which pins its plan.
 */
export const unblockSuccessors = statement<{ id: string }>(
  'unblock_successors',
  (schema) => `select id from ${schema}.unblock_successors($1::uuid[], $2::bigint) as id`,
);

/**
 * What earlier calls of these settles have done: asked when a settle is repeated because nobody knows whether its
 * commit went through. $1 worker, $2 ids, $3 fences, $4 execution times in ms, which tell the worker's own records from
 * those of somebody who took the claim away. Completions without a record have left a receipt.
 * Index: job_history_by_job; receipts are few.
 */
export const findSettled = statement<SettledRow>(
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
    (extract(epoch from j.run_at) * 1000)::float8 as run_at, null as promote, j.superseded_by,
    j.id is null or j.parked = 'exhausted' as has_dependents
  from input i
  join ${schema}.job_history h on h.job_id = i.id and h.fence = i.fence and h.worker_id = $1
    and h.execution_time_ms = i.execution_time_ms
  left join ${schema}.jobs j on j.id = i.id
  union all
  select i.id, i.fence, 'completed', null, null, null, true
  from input i
  where exists (
    select from ${schema}.settle_receipts r, unnest(r.job_ids, r.fences) as settled(id, fence)
    where settled.id = i.id and settled.fence = i.fence
  )`,
  { repeatable: true },
);
