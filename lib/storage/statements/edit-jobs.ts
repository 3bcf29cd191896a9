// An operator's hand on waiting and finished jobs: cancel, reschedule, retry, replay, purge. Bodies are found by arrays of
// ids, never joined by them: see migration 6 on pruning.
import { statement } from '../database.js';
import { CANCEL_NEWS } from '../job.notifier.js';
import { forgetNotes } from './prune-jobs.js';

export interface EditedRow {
  id: string;
  /** The job's queue, where a place in its line may have become free. */
  queue: string | null;
}

/**
 * $1 ids, $2 reason or null, $3 retention in ms, $4 channel. Waiting and exhausted jobs leave at once; a running one is
 * marked, its worker is told, and it becomes cancelled however its handler ends.
 */
export const cancelJobs = statement<EditedRow & { running: boolean }>(
  'cancel_jobs',
  (schema) => `
  with held as materialized (
    select * from ${schema}.jobs where id = any($1::uuid[]) order by id for update
  ),
  asked as (
    update ${schema}.jobs j
    set cancel_requested = true, cancel_reason = $2, revision = j.revision + 1, updated_at = now()
    from held h where j.id = h.id and h.locked_by is not null
  ),
  gone as (delete from ${schema}.jobs j using held h where j.id = h.id and h.locked_by is null),
  recorded as (
    insert into ${schema}.job_history (job_id, fence, expires_at, status, attempt, error_message)
    select id, fence + 1, now() + $3::bigint * interval '1 ms', 'cancelled', attempts, $2
    from held where locked_by is null
  ),
  told as materialized (
    select pg_notify($4::text, '${CANCEL_NEWS}') from held where locked_by is not null limit 1
  )
  select id, queue, locked_by is not null as running from held left join told on true`,
);

/**
 * $1 ids, $2 run-at or null, $3 priority or null, $4 max attempts or null. Only what is given changes; running jobs
 * stay as they are. A job with attempts left is ready again, one without is exhausted.
 */
export const rescheduleJobs = statement<EditedRow>(
  'reschedule_jobs',
  (schema) => `
  with held as materialized (
    select * from ${schema}.jobs where id = any($1::uuid[]) order by id for update
  ),
  edited as (
    update ${schema}.jobs j set
      run_at = coalesce($2::timestamptz, j.run_at),
      priority = coalesce($3::integer, j.priority),
      max_attempts = greatest(j.attempts, coalesce($4::smallint, j.max_attempts)),
      snoozed = j.snoozed and $2::timestamptz is null,
      parked = case
        when coalesce($4::smallint, j.max_attempts) <= j.attempts then 'exhausted'
        when j.parked = 'key' then 'key'
        when j.unmet > 0 then 'parents'
      end,
      slot_only = j.queue is not null or j.rate_limit_key is not null or j.crashes > 0
        or j.attempts >= coalesce($4::smallint, j.max_attempts) - 1,
      revision = j.revision + 1, updated_at = now()
    from held h where j.id = h.id and h.locked_by is null
    returning j.id, j.priority, j.max_attempts
  ),
  bodies as (
    update ${schema}.job_bodies b set priority = e.priority, max_attempts = e.max_attempts
    from edited e
    where b.id = any(array(select id from edited)) and b.id::text = e.id::text
      and (b.priority, b.max_attempts) is distinct from (e.priority, e.max_attempts)
  )
  select id, queue from held`,
);

/** Keeps jobs $1 from being purged until the transaction ends. Index: job_bodies_pkey. */
export const keepBodies = statement(
  'keep_bodies',
  (schema) => `
  select b.id from ${schema}.job_bodies b where b.id = any($1::uuid[]) order by b.id for key share`,
);

/** $1 ids: those of them that are exhausted or cancelled, and who holds their keys now. */
export const findRetryable = statement<{ id: string; job_key: string | null; taken: boolean }>(
  'find_retryable',
  (schema) => `
  select b.id, b.job_key, b.job_key is not null and exists (
    select from ${schema}.jobs other where other.job_key = b.job_key and other.id <> b.id
  ) as taken
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

/**
 * $1 ids from findRetryable. Attempts start anew; the fence goes on from where it was. A job that was cancelled while it
 * waited for parents, or for the job whose key it took, waits on. Those whose parents wait to be resolved must have been
 * locked by lockParentsOf.
 */
export const retryJobs = statement<EditedRow>(
  'retry_jobs',
  (schema) => `
  with exhausted as (
    update ${schema}.jobs j set parked = case when j.unmet > 0 then 'parents' end, attempts = 0, crashes = 0,
      run_at = now(), snoozed = false, superseded_by = null, replayed = false,
      slot_only = j.queue is not null or j.rate_limit_key is not null or j.max_attempts = 1,
      revision = j.revision + 1, updated_at = now()
    where j.id = any($1::uuid[]) and j.parked = 'exhausted'
    returning j.id, j.queue
  ),
  cancelled as (
    insert into ${schema}.jobs (id, run_at, fence, updated_at, priority, revision, max_attempts, slot_only, task, queue,
      rate_limit_key, job_key, flags, unmet, parked)
    select b.id, now(), last.fence, now(), b.priority, 1, b.max_attempts,
      b.queue is not null or b.rate_limit_key is not null or b.max_attempts = 1, b.task, b.queue, b.rate_limit_key,
      b.job_key, b.flags, waits.unmet, case
        when exists (select from ${schema}.jobs h where h.superseded_by = b.id and h.locked_by is not null) then 'key'
        when waits.unmet > 0 then 'parents'
      end
    from ${schema}.job_bodies b cross join lateral (
      select fence, status from ${schema}.job_history where job_id = b.id order by fence desc limit 1
    ) last cross join lateral (
      select count(*) as unmet from ${schema}.job_dependencies d where d.child_id = b.id
    ) waits
    where b.id = any($1::uuid[]) and last.status = 'cancelled' and not exists (select from ${schema}.jobs j where j.id = b.id)
    on conflict (id) do nothing
    returning id, queue
  )
  select * from exhausted union all select * from cancelled`,
);

/**
 * Exhausted jobs whose last failure lies in a window and that were not replayed yet. Marks them.
 * $1 from, $2 to, $3 task or null. Index: jobs_exhausted.
 */
export const takeJobsToReplay = statement<{ id: string }>(
  'take_jobs_to_replay',
  (schema) => `
  with taken as (
    update ${schema}.jobs j set replayed = true
    where j.parked = 'exhausted' and not j.replayed and j.updated_at >= $1::timestamptz and j.updated_at < $2::timestamptz
      and ($3::text is null or j.task = $3)
    returning j.id
  )
  select id from taken order by id`,
);

/**
 * Waits for whoever is bringing back what the next statement would purge. $1 status, $2 ms since its end: as there, whose
 * snapshot then shows what has come back.
 */
export const lockPurged = statement(
  'lock_purged',
  (schema) => `
  with locked as materialized (
    select b.id from ${schema}.job_bodies b
    where b.id = any(array(
      select h.job_id from ${schema}.job_history h
      where h.status::text = $1 and h.completed_at <= now() - $2::bigint * interval '1 ms'
    ))
    order by b.id for update
  )
  select count(*) from locked`,
);

/**
 * Removes jobs and all that is known of them. $1 status: exhausted, completed or cancelled, $2 least age in ms since
 * they ended. Also returns which of them others wait for. Indexes: jobs_exhausted, job_dependencies_pkey; finished jobs are
 * found by their records.
 */
export const purgeJobs = statement<{ purged: number; parents: string[] | null }>(
  'purge_jobs',
  (schema) => `
  with exhausted as (
    delete from ${schema}.jobs j
    where $1::text = 'exhausted' and j.parked = 'exhausted' and j.updated_at <= now() - $2::bigint * interval '1 ms'
    returning j.id
  ),
  finished as materialized (
    select distinct h.job_id as id from ${schema}.job_history h
    where h.status::text = $1 and h.completed_at <= now() - $2::bigint * interval '1 ms'
      and not exists (select from ${schema}.jobs j where j.id = h.job_id)
      and not exists (
        select from ${schema}.job_history later where later.job_id = h.job_id and later.fence > h.fence
      )
  ),
  ids as materialized (select id from exhausted union select id from finished),
  records as (delete from ${schema}.job_history h using ids where h.job_id = ids.id),
  bodies as (delete from ${schema}.job_bodies b where b.id = any(array(select id from ids))),
  ${forgetNotes(schema, 'ids')}
  select count(*)::integer as purged, (
    select json_agg(distinct d.parent_id) from ${schema}.job_dependencies d
    where d.parent_id = any(array(select id from ids))
  ) as parents
  from ids`,
);
