// An operator's hand on waiting and finished jobs: cancel, reschedule, retry, replay, purge. Bodies are found by arrays of
// ids, never joined by them: see migration 6 on pruning.
import { statement } from '../database.js';
import { forgetNotes } from './prune-jobs.js';

export interface EditedRow {
  id: string;
  lane: string | null;
  /** An open transaction holds the job: nothing was changed. */
  held?: boolean;
  /** It has no attempts left. Of rescheduled jobs alone. */
  exhausted?: boolean;
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

/** The live jobs of these keys, those included that have given way to another one and still run. $1 keys. Indexes: jobs_by_key, job_keys_pkey. */
export const findJobsOfKeys = statement<{ id: string }>(
  'find_jobs_of_keys',
  (schema) => `select h.id from ${schema}.holders_of($1::text[]) h order by h.id`,
  { repeatable: true, patient: true },
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
      lane = ${schema}.lane_of(j.queue, j.partition, j.limits, j.crashes > 0 or j.attempts >= p.most - 1),
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
  select h.id, e.lane, false as held, e.parked is not distinct from 'exhausted' as exhausted
  from held h left join edited e on e.id = h.id
  union all
  select j.id, null, true, false from ${schema}.jobs j where j.id = any($1::uuid[]) and j.id not in (select id from locked)`,
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
