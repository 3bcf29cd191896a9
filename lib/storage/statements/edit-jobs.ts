// An operator's hand on waiting and finished jobs: cancel, reschedule, retry, replay, purge. Bodies are found by arrays of
// ids, never joined by them: see migration 6 on pruning.
import { statement } from '../database.js';
import { forgetNotes } from './prune-jobs.js';

export interface EditedRow {
  id: string;
  lane: string | null;
  /** An open transaction holds the job: nothing was changed. */
  held?: boolean;
}

export interface CancelledRow {
  id: string;
  became: 'running' | 'cancelled' | 'held';
  job_key: string | null;
}

/**
 * $1 ids, $2 reason or null, $3 retention in ms. Waiting and exhausted jobs leave at once; a running one is marked, and
 * becomes cancelled however its handler ends.
 */
export const cancelJobs = statement<CancelledRow>(
  'cancel_jobs',
  (schema) => `select * from ${schema}.cancel_jobs($1::uuid[], $2::text, $3::bigint)`,
  { limited: true, patient: true },
);

/**
 * $1 ids, $2 run-at or null, $3 priority or null, $4 max attempts or null. Only what is given changes; running jobs
 * stay as they are. An exhausted job whose max attempts are raised is ready again, if its key, where it has one, is among $5:
 * those that the caller has locked and taken for it. A job without attempts left is exhausted. Jobs that others hold, or
 * whose keys are still to be locked, are left out, and told.
 */
export const rescheduleJobs = statement<EditedRow>(
  'reschedule_jobs',
  (schema) => `
  with live as materialized (
    select j.id from ${schema}.jobs j
    where j.id = any($1::uuid[])
      and (j.parked is distinct from 'exhausted' or $4::smallint is null or j.attempts >= $4::smallint
        or j.job_key is null or j.job_key = any($5::text[]))
    order by j.id for update skip locked
  ),
  bare as materialized (
    select b.id from ${schema}.job_bodies b where b.id = any(array(select id from live)) order by b.id
    for no key update skip locked
  ),
  locked as materialized (
    select l.id from live l where l.id in (select id from bare) or l.id not in (
      select b.id from ${schema}.job_bodies b where b.id = any(array(select id from live))
    )
  ),
  held as materialized (select j.* from ${schema}.jobs j where j.id = any(array(select id from locked))),
  planned as materialized (
    select h.*, case when h.parked = 'exhausted' and $4::smallint is null then h.max_attempts
        else greatest(h.attempts, coalesce($4::smallint, h.max_attempts)) end as most,
      case
        when h.parked = 'exhausted' and $4::smallint is null then 'exhausted'
        when coalesce($4::smallint, h.max_attempts) <= h.attempts then 'exhausted'
        when behind.id is not null then 'key'
        when h.unmet > 0 then 'parents'
      end as becomes, behind.id as behind_id
    from held h cross join lateral (
      select case when h.parked = 'exhausted' then ${schema}.held_by(h.job_key, h.id)
        when exists (
          select from ${schema}.jobs o where o.id = h.behind
            and (o.locked_by is not null or o.parked is distinct from 'exhausted')
        ) then h.behind end as id
    ) behind where h.locked_by is null
  ),
  edited as (
    update ${schema}.jobs j set
      run_at = coalesce($2::timestamptz, j.run_at),
      priority = coalesce($3::integer, j.priority),
      max_attempts = p.most,
      snoozed = j.snoozed and $2::timestamptz is null,
      parked = p.becomes,
      behind = p.behind_id,
      slot_only = j.crashes > 0 or j.attempts >= p.most - 1,
      lane = ${schema}.lane_of(j.queue, j.rate_limit_key, j.crashes > 0 or j.attempts >= p.most - 1),
      revision = j.revision + 1, updated_at = clock_timestamp()
    from planned p where j.id = p.id
    returning j.id, j.priority, j.max_attempts, j.lane, j.parked
  ),
  bodies as (
    update ${schema}.job_bodies b set priority = e.priority, max_attempts = e.max_attempts
    from edited e
    where b.id = any(array(select id from edited)) and b.id::text = e.id::text
      and (b.priority, b.max_attempts) is distinct from (e.priority, e.max_attempts)
  )
  select h.id, e.lane, false as held from held h left join edited e on e.id = h.id
  union all
  select j.id, null, true from ${schema}.jobs j where j.id = any($1::uuid[]) and j.id not in (select id from locked)`,
  { patient: true },
);

/** Locks jobs $1 that are live, in their order. Index: jobs_pkey. */
export const lockJobs = statement(
  'lock_jobs',
  (schema) => `select j.id from ${schema}.jobs j where j.id = any($1::uuid[]) order by j.id for update`,
);

/** Keeps jobs $1 from being purged until the transaction ends. Index: job_bodies_pkey. */
export const keepBodies = statement(
  'keep_bodies',
  (schema) => `
  select b.id from ${schema}.job_bodies b where b.id = any($1::uuid[]) order by b.id for key share`,
);

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
      slot_only = j.max_attempts = 1, lane = ${schema}.lane_of(j.queue, j.rate_limit_key, j.max_attempts = 1),
      revision = j.revision + 1, updated_at = clock_timestamp()
    where j.id = any(array(select id from locked)) and j.parked = 'exhausted'
    returning j.id, j.lane
  ),
  cancelled as (
    insert into ${schema}.jobs (id, run_at, fence, updated_at, priority, revision, max_attempts, slot_only, lane,
      payload_kib, task, queue, rate_limit_key, job_key, flags, ended_before, behind, parked)
    select b.id, clock_timestamp(), last.fence, clock_timestamp(), b.priority, 1, b.max_attempts, b.max_attempts = 1,
      ${schema}.lane_of(b.queue, b.rate_limit_key, b.max_attempts = 1),
      least(32767, octet_length(b.payload::text) / 1024)::smallint, b.task, b.queue, b.rate_limit_key,
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

/**
 * Finished or exhausted jobs that ended so long ago, locked: those that others hold, perhaps to bring them back or to add a
 * child, are left.
 * An end in the future is one of now.
 * $1 status: exhausted, completed or cancelled, $2 ms since they ended. Indexes: jobs_exhausted; finished jobs are found by
 * their records.
 */
export const lockPurged = statement<{ id: string }>(
  'lock_purged',
  (schema) => `
  with exhausted as materialized (
    select j.id from ${schema}.jobs j
    where $1::text = 'exhausted' and j.parked = 'exhausted'
      and least(j.updated_at, clock_timestamp()) <= clock_timestamp() - $2::bigint * interval '1 ms'
    order by j.id for update skip locked
  ),
  bodies as materialized (
    select b.id from ${schema}.job_bodies b where b.id = any(array(select id from exhausted))
    order by b.id for update skip locked
  ),
  finished as materialized (
    select b.id from ${schema}.job_bodies b
    where $1::text <> 'exhausted' and b.id = any(array(
      select h.job_id from ${schema}.job_history h
      where h.status::text = $1 and least(h.completed_at, clock_timestamp()) <= clock_timestamp() - $2::bigint * interval '1 ms'
    ))
    order by b.id for update skip locked
  )
  select id from bodies union all select id from finished`,
  { slow: 'any number of jobs may have ended' },
);

/**
 * Removes jobs and all that is known of them: of those that the statement before has locked, what has not come back since. A job
 * that has completed stays until its children know of it. $1 ids, $2 status. Also returns which of them others wait for.
 * Indexes: the primary keys, job_history_by_job.
 */
export const purgeJobs = statement<{ purged: number; parents: string[] | null; keys: string[] | null }>(
  'purge_jobs',
  (schema) => `
  with exhausted as (
    delete from ${schema}.jobs j
    where j.id = any($1::uuid[]) and $2::text = 'exhausted' and j.parked = 'exhausted'
    returning j.id, j.job_key
  ),
  finished as materialized (
    select b.id from ${schema}.job_bodies b
    where b.id = any($1::uuid[]) and $2::text <> 'exhausted'
      and not exists (select from ${schema}.jobs j where j.id = b.id)
      and (
        select h.status::text from ${schema}.job_history h where h.job_id = b.id order by h.fence desc limit 1
      ) = $2
      and ($2 <> 'completed' or not exists (select from ${schema}.job_dependencies d where d.parent_id = b.id))
  ),
  ids as materialized (select id from exhausted union select id from finished),
  records as (delete from ${schema}.job_history h using ids where h.job_id = ids.id),
  bodies as (delete from ${schema}.job_bodies b where b.id = any(array(select id from ids))),
  ${forgetNotes(schema, 'ids')}
  select count(*)::integer as purged, (
    select json_agg(distinct d.parent_id) from ${schema}.job_dependencies d
    where d.parent_id = any(array(select id from ids))
  ) as parents, (
    select json_agg(job_key) from exhausted where job_key is not null
  ) as keys
  from ids`,
  { slow: 'any number of jobs may have ended' },
);
