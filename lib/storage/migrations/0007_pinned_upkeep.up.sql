-- Runs in one transaction with search_path set to the library's schema. Safe while workers of earlier versions run.
-- What pools do now and then beside claims and settles, each as a function so that it can carry planner settings: planned
-- while the tables were empty, as plain statements, both went on to read the whole backlog when a load had arrived.

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
