// Jobs that come back: retried by an operator, or replayed from their history.
import { statement } from '../database.js';
import type { EditedRow } from './edit-jobs.js';

export interface RetryableRow {
  id: string;
  job_key: string | null;
  /** Another job has its key. */
  taken: boolean;
}

/**
 * $1 ids: those of them that are exhausted or cancelled, and whether others have their keys. A proposal, until the keys, the jobs
 * and their bodies are locked.
 */
export const findRetryable = statement<RetryableRow>(
  'find_retryable',
  (schema) => `
  select b.id, b.job_key, b.job_key is not null and ${schema}.is_key_taken(b.job_key, b.id) as taken
  from ${schema}.job_bodies b
  left join ${schema}.jobs j on j.id = b.id
  where b.id = any($1::uuid[]) and case
    when j.id is not null then j.parked = 'exhausted'
    else exists (
      select from (
        select status from ${schema}.job_history where job_id = b.id order by fence desc limit 1
      ) last where last.status = 'cancelled'
    )
  end
  order by b.id`,
);

/** The same of exhausted jobs with a key that have fewer than $2 attempts behind them. $1 ids. Index: jobs_pkey. */
export const findRevivable = statement<RetryableRow>(
  'find_revivable',
  (schema) => `
  select j.id, j.job_key, ${schema}.is_key_taken(j.job_key, j.id) as taken from ${schema}.jobs j
  where j.id = any($1::uuid[]) and j.parked = 'exhausted' and j.job_key is not null and j.attempts < $2::smallint
  order by j.id`,
  { patient: true },
);

/** Makes rows for keys that nothing owns. $1 keys, $2 jobs, pair by pair. */
export const claimFreeKeys = statement(
  'claim_free_keys',
  (schema) => `
  insert into ${schema}.job_keys (key, job_id)
  select key, job_id from unnest($1::text[], $2::uuid[]) as asked(key, job_id) order by key
  on conflict (key) do nothing`,
);

/** Locks keys, in their order: what the next statement sees of their owners is what is. $1 keys. */
export const lockKeys = statement(
  'lock_keys',
  (schema) => `select key from ${schema}.job_keys where key = any($1::text[]) order by key for update`,
);

/** Gives keys that are locked to jobs that may have them. $1 keys, $2 jobs, pair by pair. */
export const takeKeys = statement(
  'take_keys',
  (schema) => `
  update ${schema}.job_keys k set job_id = asked.job_id
  from unnest($1::text[], $2::uuid[]) as asked(key, job_id) where k.key = asked.key`,
);

/** Jobs that come back have no successor any more, so others wait for them again. $1 ids. Index: job_replacements_pkey. */
export const forgetSuccessors = statement(
  'forget_successors',
  (schema) => `delete from ${schema}.job_replacements where old_id = any($1::uuid[])`,
);

/**
 * $1 ids from findRetryable. Attempts start again from 0; the fence goes on from where it was. Their parents are linked
 * by the next statement, which sees all that come back.
 */
export const retryJobs = statement<EditedRow>(
  'retry_jobs',
  (schema) => `
  with locked as materialized (
    select j.id from ${schema}.jobs j where j.id = any($1::uuid[]) order by j.id for update
  ),
  exhausted as (
    update ${schema}.jobs j set
      parked = case when ${schema}.held_by(j.job_key, j.id) is not null then 'key' when j.unmet > 0 then 'parents' end,
      behind = ${schema}.held_by(j.job_key, j.id),
      attempts = 0, crashes = 0, run_at = clock_timestamp(), snoozed = false, replayed = false, ended_before = true,
      slot_only = j.max_attempts = 1, lane = ${schema}.lane_of(j.queue, j.partition, j.limits, j.max_attempts = 1),
      revision = j.revision + 1, updated_at = clock_timestamp()
    where j.id = any(array(select id from locked)) and j.parked = 'exhausted'
    returning j.id, j.lane
  ),
  cancelled as (
    insert into ${schema}.jobs (id, run_at, fence, updated_at, priority, revision, max_attempts, slot_only, lane,
      payload_kib, task, queue, partition, limits, job_key, flags, ended_before, behind, parked)
    select b.id, clock_timestamp(), last.fence, clock_timestamp(), b.priority, 1, b.max_attempts, b.max_attempts = 1,
      ${schema}.lane_of(b.queue, b.partition, b.limits, b.max_attempts = 1),
      least(32767, octet_length(b.payload::text) / 1024)::smallint, b.task, b.queue, b.partition, b.limits,
      b.job_key, b.flags, true, holder.id, case when holder.id is not null then 'key' end
    from ${schema}.job_bodies b cross join lateral (
      select fence, status from ${schema}.job_history where job_id = b.id order by fence desc limit 1
    ) last cross join lateral ${schema}.held_by(b.job_key, b.id) as holder(id)
    where b.id = any($1::uuid[]) and last.status = 'cancelled' and not exists (select from ${schema}.jobs j where j.id = b.id)
    on conflict (id) do nothing
    returning id, lane
  )
  select * from exhausted union all select * from cancelled`,
);

/**
 * Exhausted jobs whose last failure lies in a window and that were not replayed yet: a proposal. $1 from, $2 to, $3 task or
 * null. Index: jobs_exhausted.
 */
export const findJobsToReplay = statement<{ id: string }>(
  'find_jobs_to_replay',
  (schema) => `
  select j.id from ${schema}.jobs j
  where j.parked = 'exhausted' and not j.replayed and j.updated_at >= $1::timestamptz and j.updated_at < $2::timestamptz
    and ($3::text is null or j.task = $3)
  order by j.id`,
  { slow: 'a window may hold any number of jobs' },
);

/** Marks those of the jobs that are still to be replayed, once they are locked: others' are left. $1 ids. Index: jobs_pkey. */
export const takeJobsToReplay = statement<{ id: string }>(
  'take_jobs_to_replay',
  (schema) => `
  with locked as materialized (
    select j.id from ${schema}.jobs j where j.id = any($1::uuid[]) and j.parked = 'exhausted' and not j.replayed
    order by j.id for update skip locked
  ),
  taken as (
    update ${schema}.jobs j set replayed = true where j.id = any(array(select id from locked)) returning j.id
  )
  select id from taken order by id`,
  { slow: 'a window may hold any number of jobs' },
);
