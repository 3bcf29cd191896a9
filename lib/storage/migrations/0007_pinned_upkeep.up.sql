-- Runs in one transaction with search_path set to the library's schema. Safe while workers of earlier versions run.
-- What pools do now and then beside claims and settles, each as a function so that it can carry planner settings: planned
-- while the tables were empty, as plain statements, the first two went on to read the whole backlog when a load had
-- arrived; the third must not prune partitions as it runs (see 0006).

-- Starts the next window of every limit whose window has passed and brings as many of its waiting jobs back into the
-- claims' range as there are tokens; tells idle pools so. Returns also when the next window of a limit begins that
-- somebody waits for. `skip locked`: whoever holds a row is doing the same, or claims and will see to it. As with queues,
-- the mark that somebody waits is cleared only when it is older than any running statement.
-- Index: jobs_waiting_for_tokens.
create function refill_rate_limits(channel text)
returns table (refilled integer, promoted integer, retry_in_ms float8)
language sql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
  with due as materialized (
    select key, capacity, parked_at, window_started_at + floor(
      extract(epoch from clock_timestamp() - window_started_at) * 1000 / interval_ms
    ) * interval_ms * interval '1 ms' as started_at
    from rate_limits
    where clock_timestamp() >= window_started_at + interval_ms * interval '1 ms'
      and (parked_at is not null or available < capacity)
    order by key for update skip locked
  ),
  heads as materialized (
    select waiting.id, due.key
    from due cross join lateral (
      select j.id from jobs j
      where j.parked = 'tokens' and j.rate_limit_key = due.key
      order by j.priority, j.run_at, j.id
      limit due.capacity
      for update skip locked
    ) waiting
    where due.parked_at is not null
  ),
  promoted as (
    update jobs j set parked = null from heads where j.id = heads.id
  ),
  refilled as (
    update rate_limits r
    set available = due.capacity, window_started_at = due.started_at,
      parked_at = case
        when due.parked_at < statement_timestamp() - interval '1 min'
          and due.capacity > (select count(*) from heads where heads.key = due.key) then null
        else due.parked_at
      end
    from due where r.key = due.key
    returning r.key
  ),
  announced as materialized (
    select pg_notify(channel, '') from heads limit 1
  )
  select (select count(*)::integer from refilled), (select count(*)::integer from heads),
    (
      select min(
        date_part('epoch', coalesce(due.started_at, r.window_started_at) + r.interval_ms * interval '1 ms'
          - clock_timestamp()) * 1000
      )
      from rate_limits r left join due using (key) where r.parked_at is not null
    )
  from (select 1) as one left join announced on true
$$;

-- Lets jobs go that waited for the holder of their key to leave: these, or, null, all that nobody holds up any more.
-- A holder that was given back unstarted gives way now, as it would have if it had not been claimed; one that is claimed
-- again at this moment is waited for. `retention` in ms.
-- Indexes: jobs_blocked_by_key, jobs_superseded.
create function unblock_successors(ids uuid[], retention bigint) returns setof uuid
language sql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
  with given_back as materialized (
    select h.id, h.superseded_by, h.fence, h.attempts from jobs h
    where h.superseded_by is not null and (ids is null or h.superseded_by = any(ids))
      and h.locked_by is null and h.parked is distinct from 'exhausted'
    for update skip locked
  ),
  gone as (delete from jobs j using given_back g where j.id = g.id),
  recorded as (
    insert into job_history (job_id, fence, expires_at, status, attempt, error_message)
    select id, fence + 1, now() + retention * interval '1 ms', 'cancelled', attempts,
      'replaced by job ' || superseded_by
    from given_back
  ),
  freed as (
    update jobs j set parked = case when j.unmet > 0 then 'parents' end, updated_at = now()
    where j.parked = 'key' and (ids is null or j.id = any(ids))
      and not exists (
        select from jobs holder
        where holder.superseded_by = j.id and holder.id not in (select id from given_back)
          and (holder.locked_by is not null or holder.parked is distinct from 'exhausted')
      )
    returning j.id
  )
  select id from freed
$$;

-- Tells children that these parents have ended. A child whose last parent is met is ready; one whose parent failed for
-- good does as its on_parent_failure says, and one that waits for a parent that is no longer there is cancelled. Two
-- parents that end at once meet at the child's row: unmet is counted on its latest version. `retention` in ms.
-- Indexes: job_dependencies_pkey, the primary keys of jobs and bodies, job_history_by_job.
create function resolve_dependents(parents uuid[], channel text, retention bigint)
returns table (id uuid, became text)
language sql
set search_path from current
set enable_seqscan = off
set enable_partition_pruning = off
as $$
  with ended as materialized (
    select d.parent_id, d.child_id,
      case when b.id is null then 'cancel' else coalesce(child.on_parent_failure, 'cancel') end as policy,
      j.id is null and b.id is not null and h.status is distinct from 'cancelled' as completed
    from job_dependencies d
    left join jobs j on j.id = d.parent_id
    left join job_bodies b on b.id = d.parent_id
    left join job_bodies child on child.id = d.child_id
    left join lateral (
      select status from job_history h where h.job_id = d.parent_id order by h.fence desc limit 1
    ) h on j.id is null
    where d.parent_id = any(parents) and (j.id is null or j.parked = 'exhausted')
    order by d.child_id, d.parent_id
    for update of d
  ),
  verdicts as materialized (
    select child_id, count(*) filter (where completed or policy <> 'wait') as over,
      (array_agg(parent_id) filter (where not completed and policy = 'cancel'))[1] as failed_parent
    from ended group by child_id
  ),
  children as materialized (
    select j.*, v.over, v.failed_parent
    from jobs j join verdicts v on v.child_id = j.id order by j.id for update of j
  ),
  gone as (
    delete from jobs j using children c
    where j.id = c.id and c.failed_parent is not null and j.locked_by is null and j.parked in ('parents', 'key')
    returning j.id, j.fence, j.attempts, c.failed_parent
  ),
  recorded as (
    insert into job_history (job_id, fence, expires_at, status, attempt, error_message)
    select id, fence + 1, now() + retention * interval '1 ms', 'cancelled', attempts,
      'parent job ' || failed_parent || ' did not complete'
    from gone
  ),
  -- Also on a child that is exhausted: it may be retried, and must not wait for a parent that is forgotten.
  counted as (
    update jobs j
    set unmet = greatest(0, j.unmet - c.over), updated_at = now(),
      parked = case when j.parked = 'parents' and j.unmet <= c.over then null else j.parked end
    from children c
    where j.id = c.id and c.over > 0
      and (c.failed_parent is null or c.locked_by is not null or c.parked is null or c.parked not in ('parents', 'key'))
    returning j.id, j.parked
  ),
  forgotten as (
    delete from job_dependencies d using ended e
    where d.parent_id = e.parent_id and d.child_id = e.child_id and (e.completed or e.policy <> 'wait')
  ),
  announced as materialized (
    select pg_notify(channel, '') from counted where parked is null limit 1
  )
  select id, 'cancelled' as became from gone
  union all
  select counted.id, case when counted.parked is null then 'released' else 'waiting' end
  from counted left join announced on true
$$;
