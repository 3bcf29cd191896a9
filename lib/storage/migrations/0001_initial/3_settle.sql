-- Settling. A settle matches (id, fence) in every join, answers for each request, and never waits for what others hold:
-- such a job is reported as held, and comes again by itself.

-- Whether a claim is held by this name: an incarnation, its label, or the name that a claim by hand has given; null: by any.
create function is_holder(worker text, locked_by text) returns boolean
language sql stable
set search_path from current
as $$
  select worker is null or locked_by = worker or exists (
    select from workers w where w.id = locked_by and w.label = worker
  )
$$;

-- What became of settles that matched nothing: `held` where the claim still stands and an open transaction holds the job,
-- else `lost`. Index: jobs_pkey.
create function standing_of_claims(worker text, ids uuid[], fences bigint[])
returns table (id uuid, fence bigint, standing text)
language sql stable
as $$
  select i.id, i.fence, case when j.id is null then 'lost' else 'held' end
  from unnest(ids, fences) as i(id, fence)
  left join lateral (
    select j.id from jobs j
    where j.id = i.id and j.fence = i.fence and j.locked_by is not null and is_holder(worker, j.locked_by) limit 1
  ) j on true
$$;

-- Locks the jobs of these claims, one by one along the primary key; those that others hold are left out.
create function lock_claims(worker text, ids uuid[], fences bigint[]) returns uuid[]
language plpgsql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
begin
  return array(
    select held.id from (select distinct i.id, i.fence from unnest(ids, fences) as i(id, fence) order by 1) i
    cross join lateral (
      select j.id from jobs j
      where j.id = i.id and j.fence = i.fence and j.locked_by is not null and is_holder(worker, j.locked_by)
      limit 1 for update skip locked
    ) held
  );
end $$;

-- Ends a settle that took for granted that its fences are right.
create function refuse_stale_claim(actual bigint, claimed bigint) returns boolean
language plpgsql
as $$
begin
  if actual is distinct from claimed then
    raise exception 'claim % of the job is over, it is at %', claimed, actual using errcode = 'lock_not_available';
  end if;
  return false;
end $$;

-- Waits for the tables of a settle, in the transaction of an attempt that would end with a settle that gives up: ten seconds
-- for each that another session has locked as a whole. Always true.
create function hold_settle_tables() returns boolean
language plpgsql
set search_path from current
set lock_timeout = '10s'
as $$
begin
  lock table jobs, job_places, job_history, settle_receipts, workers, job_dependencies, rate_limit_blocks in row exclusive mode;
  return true;
end $$;

-- Waits for tables as long as the caller's lock_timeout says: see storage/awaited.tables.ts.
create function hold_tables(writes text[], reads text[]) returns void
language plpgsql
set search_path from current
as $$
declare
  listed text;
begin
  listed := (select string_agg(quote_ident(named), ', ') from unnest(writes) as named);
  if listed is not null then
    execute 'lock table ' || listed || ' in row exclusive mode';
  end if;
  listed := (select string_agg(quote_ident(named), ', ') from unnest(reads) as named);
  if listed is not null then
    execute 'lock table ' || listed || ' in access share mode';
  end if;
end $$;

-- Settles attempts that completed: job and history change in one statement. Returns only what is not simply completed and
-- done with: jobs that were cancelled meanwhile, that others wait for in some way, that are `held` or `lost`.
--
-- worker: the worker that must hold the claims, which needs `careful`; null: any, they are known by their fences.
-- placed: whether jobs may hold places in queues. careful: lock the jobs first. Almost all batches go without, on the
-- guess that no row is held and no fence is stale, which spares each job the locking before it is deleted; where the
-- guess fails, lock_not_available is raised.
--
-- Indexes: jobs_pkey for the batch, job_dependencies_pkey, job_places_pkey for jobs of limited queues.
create function complete_jobs(
  worker text, label text, ids uuid[], claim_fences bigint[], execution_times integer[], results text[],
  keep boolean, retention bigint, own_environment json, placed boolean, careful boolean
)
returns table (
  id uuid, fence bigint, became text, run_at float8, reason text, queue text, job_key text, has_dependents boolean
)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_bitmapscan = off
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  present timestamptz := clock_timestamp();
  held_ids uuid[] := ids;
  place_queues text[];
  place_numbers bigint[];
begin
  if careful then
    held_ids := lock_claims(worker, ids, claim_fences);
  end if;
  if placed then
    select array_agg(p.queue), array_agg(p.number) into place_queues, place_numbers
    from places_of(held_ids, ids, claim_fences) p;
  end if;

  return query
    with input as materialized (
      select * from unnest(ids, claim_fences, execution_times, results) as i(id, fence, execution_time_ms, result)
    ),
    deleted as (
      delete from jobs j
      where j.id = any(held_ids) and j.locked_by is not null
      returning j.id, j.fence, j.locked_at, greatest(j.run_at, j.released_at) as ready_at, j.attempts, j.queue,
        j.cancel_requested, j.cancel_reason, j.job_key, j.place, j.ended_before
    ),
    gone as materialized (
      select d.*, i.execution_time_ms, i.result, i.fence as claimed_fence
      from deleted d left join input i on i.id = d.id and i.fence = d.fence
    ),
    recorded as (
      insert into job_history (job_id, fence, started_at, completed_at, expires_at, queue_time_ms, execution_time_ms,
        status, attempt, worker_id, result, error_message, environment)
      select g.id, g.fence, g.locked_at, present, present + retention * interval '1 ms',
        greatest(0, date_part('epoch', g.locked_at - g.ready_at) * 1000)::bigint, g.execution_time_ms,
        case when g.cancel_requested then 'cancelled' else 'completed' end::job_outcome, g.attempts, label,
        g.result::json, case when g.cancel_requested then g.cancel_reason end, own_environment
      from gone g
      where keep or g.cancel_requested or g.ended_before
    ),
    receipt as (
      insert into settle_receipts (job_ids, fences)
      select array_agg(g.id), array_agg(g.fence) from gone g where not keep having count(*) > 0
    )
    select g.id, g.fence, case when g.cancel_requested then 'cancelled' else 'completed' end, null::float8,
      g.cancel_reason, case when g.place is not null or g.queue = any(place_queues) then g.queue end, g.job_key, false
    from gone g
    where g.cancel_requested or g.job_key is not null or g.place is not null or g.queue = any(place_queues)
    union all
    select s.id, s.fence, s.standing, null, null, null, null, false
    from (
      select array_agg(i.id) as ids, array_agg(i.fence) as fences from input i
      where not exists (select from gone g where g.id = i.id and g.fence = i.fence)
    ) missing cross join lateral standing_of_claims(worker, missing.ids, missing.fences) s
    union all
    -- The job was claimed again, by a claim that is not in this batch: nothing of this may stay. It raises.
    select g.id, g.fence, 'lost', null, null, null, null, false
    from gone g where g.claimed_fence is null and refuse_stale_claim(g.fence, g.claimed_fence);

  if place_numbers is not null then
    perform give_back_places(place_queues, place_numbers);
  end if;

  -- A statement of its own: children may have been added meanwhile.
  return query
    select d.parent_id, null::bigint, 'parent', null::float8, null, null, null, true
    from job_dependencies d where d.parent_id = any(ids) group by d.parent_id;
end $$;

-- Completions, and then a look at lanes in the same transaction: a place that becomes free is filled by the commit that
-- frees it. `claimed`: what claim_lane_jobs returns; the rows before it are complete_jobs's. Each statement of the claim has
-- a snapshot of its own, younger than the settle. Of what stands before jobs in the order of locks, the claim only tries.
-- next_lane: where the pool has other free slots too, so that nothing else waits for this one, the lane that is tried alone,
-- behind (after_run_at, after_id) at `next_priority`, for as many jobs as are settled; the look comes where that gives nothing.
create function complete_and_claim(
  label text, ids uuid[], fences bigint[], execution_times integer[], results text[], keep boolean, retention bigint,
  worker text, wanted integer, tasks text[], other_tasks text[], forbidden text[],
  most_crashes integer, lease bigint, worst_priority integer, only_queue text, turns text[],
  turns_left integer[], turn_shares integer[], next_shares integer[], queue_turns text[], queue_turns_left integer[], skip_after text[], skip_upto text[], told text[], due_since timestamptz,
  known_places text[], known_run_ats timestamptz[], known_ids uuid[], spare_lanes text[], spares integer[],
  resume_at text, resume_upto text, hop_limit integer, next_priority bigint, next_lane text, after_run_at timestamptz, after_id uuid
)
returns table (
  id uuid, fence bigint, became text, run_at float8, reason text, queue text, job_key text, has_dependents boolean,
  claimed text
)
language plpgsql
set search_path from current
as $$
begin
  return query select c.*, null::text
    from complete_jobs(null, label, ids, fences, execution_times, results, keep, retention, null, true, false) c;
  if next_lane is not null then
    return query select null::uuid, null::bigint, null::text, null::float8, null::text, null::text, null::text, null::boolean, c
      from claim_next_in_lane(worker, least(wanted, cardinality(ids)), tasks, other_tasks, forbidden, most_crashes, lease,
        next_priority, next_lane, after_run_at, after_id) c;
    if found then
      return;
    end if;
  end if;
  return query select null::uuid, null::bigint, null::text, null::float8, null::text, null::text, null::text, null::boolean, c
    from claim_lane_jobs(worker, wanted, tasks, other_tasks, forbidden, most_crashes, lease, worst_priority,
      only_queue, turns, turns_left, turn_shares, next_shares, queue_turns, queue_turns_left, skip_after, skip_upto, told, due_since, known_places, known_run_ats, known_ids,
      spare_lanes, spares, resume_at, resume_upto, hop_limit) c;
end $$;

-- Deletes places. One that others hold is left: its claim is over, so the sweep finds it. Index: job_places_pkey.
create function give_back_places(queues text[], numbers bigint[]) returns void
language sql
set search_path from current
as $$
  delete from job_places p where p.ctid = any(array(
    select held.ctid from unnest(queues, numbers) as u(queue, number) cross join lateral (
      select q.ctid from job_places q where q.queue = u.queue and q.number = u.number limit 1 for update skip locked
    ) held
  ))
$$;

-- The places in queues that these claims hold, of jobs in `held`. A claim made before its queue had a limit has no number:
-- its place is found by the claim. The limits keep the order of the joins, so that no dead place is read that an old
-- snapshot keeps. Indexes: jobs_pkey, job_places_pkey.
create function places_of(held uuid[], ids uuid[], fences bigint[])
returns table (queue text, number bigint)
language plpgsql stable
set search_path from current
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
begin
  return query
    select p.queue, p.number
    from unnest(ids, fences) as i(id, fence)
    cross join lateral (
      select j.queue, j.place from jobs j
      where j.id = i.id and j.fence = i.fence and j.locked_by is not null and j.queue is not null limit 1
    ) j
    cross join lateral (
      select p.queue, p.number from job_places p
      where p.queue = j.queue and p.number >= coalesce(j.place, 0) and p.number <= coalesce(j.place, 9223372036854775807)
        and p.job_id = i.id and p.fence = i.fence limit 1
    ) p
    where i.id = any(held);
end $$;

-- Every other way a claim ends, and an operator's word on a waiting job: what a retry or an exhausted job's row looks like
-- is decided here. `input`: an array of { id, fence, kind, delay_ms, permanent, execution_time_ms, error_message,
-- error_stack, partial_results }; a fence of null means the job as it stands, running or waiting. Kinds:
--   by the holder: failed, partial, snoozed, cancelled, released (unstarted: the attempt does not count);
--   by others: unlocked, crashed (its worker died), spared (its worker died of another job: the attempt does not count),
--   revoked (the attempt does not count), unknown (its holder does not know of it: as released), doomed (no further attempt).
-- A job whose key another one took is not retried.
--
-- `fence` of the answer: the claim's. `queue`: where a place became free; `holder`: the worker that held the claim;
-- `held` and `lost` as in complete_jobs. Indexes: jobs_pkey, jobs_behind, job_places_pkey.
create function end_attempts(
  worker text, own_label text, input json, keep_failures boolean, keep_snoozes boolean, retention bigint, own_environment json,
  max_crashes integer
)
returns table (
  id uuid, fence bigint, became text, run_at float8, reason text, queue text, job_key text, has_dependents boolean,
  holder text, lane text
)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_bitmapscan = off
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  present timestamptz := clock_timestamp();
  asked_ids uuid[];
  asked_fences bigint[];
  held_ids uuid[];
  held_fences bigint[];
  place_queues text[];
  place_numbers bigint[];
begin
  select array_agg(i.id), array_agg(i.fence) into asked_ids, asked_fences
  from (select distinct i.id, i.fence from json_to_recordset(input) as i(id uuid, fence bigint)) i;
  select array_agg(held.id), array_agg(held.fence) into held_ids, held_fences
  from (select i.id, i.fence from unnest(asked_ids, asked_fences) as i(id, fence) order by 1) i
  cross join lateral (
    select j.id, j.fence from jobs j
    where j.id = i.id and (i.fence is null or (j.fence = i.fence and j.locked_by is not null))
      and is_holder(worker, j.locked_by)
    limit 1 for update skip locked
  ) held;
  select array_agg(p.queue), array_agg(p.number) into place_queues, place_numbers
  from places_of(held_ids, held_ids, held_fences) p;

  return query
    with read as materialized (
      select h.*, h.locked_by is not null as running, i.kind, i.error_stack, i.partial_results, i.blocks,
        -- A clock that was ahead may have locked it.
        least(2147483647, greatest(0, coalesce(i.execution_time_ms::float8,
          date_part('epoch', present - h.locked_at) * 1000)))::integer as execution_time_ms,
        present + i.delay_ms * interval '1 ms' as next_run_at,
        case
          when i.kind = 'doomed' then 'exhausted'
          when h.locked_by is null then 'unchanged'
          when i.kind in ('released', 'unknown') and not h.cancel_requested then 'released'
          when h.cancel_requested or i.kind = 'cancelled'
            or exists (select from jobs s where s.behind = h.id and s.parked = 'key') then 'cancelled'
          when i.kind = 'snoozed' then 'snoozed'
          when i.kind in ('revoked', 'spared') then 'available'
          when i.permanent or h.attempts >= h.max_attempts or (i.kind = 'crashed' and h.crashes + 1 >= max_crashes)
            then 'exhausted'
          when i.kind in ('unlocked', 'crashed') then 'available'
          else 'retrying'
        end as became,
        case
          when i.kind = 'partial' and not coalesce(i.permanent, false) and h.attempts >= h.max_attempts
            then 'max-attempts reached on partial-success'
          else i.error_message
        end as error_message
      from (select * from jobs j where j.id = any(held_ids)) h
      join (
        select distinct on (i.id, i.fence) i.* from json_to_recordset(input) as i(id uuid, fence bigint, kind text,
          delay_ms float8, permanent boolean, execution_time_ms integer, error_message text, error_stack text,
          partial_results text, blocks json)
      ) i on i.id = h.id and (i.fence is null or i.fence = h.fence)
      where i.kind <> 'doomed' or h.parked is distinct from 'exhausted'
    ),
    ended as materialized (
      -- The last attempt that is left must not wait in a buffer: a crash could not be told from a start.
      select e.*, lane_of(e.queue, e.partition, e.limits, e.slot_only_after) as lane_after from (
        select e.*, e.crashes_after > 0 or e.attempts - e.given_back >= e.max_attempts - 1 as slot_only_after from (
          select e.*,
            case when e.running and (e.became in ('released', 'snoozed') or e.kind in ('revoked', 'spared')) then 1 else 0 end
              as given_back,
            case
              when e.kind = 'crashed' then e.crashes + 1
              when e.kind in ('failed', 'partial', 'snoozed', 'cancelled') then 0
              else e.crashes
            end as crashes_after
          from read e
        ) e
      ) e
    ),
    gone as (
      delete from jobs j
      where j.id = any(array(select e.id from ended e where e.became = 'cancelled'))
    ),
    kept as (
      update jobs j set
        locked_by = null, locked_at = null, lease_ms = null, lease_expires_at = null, place = null,
        fence = j.fence + case when e.running then 0 else 1 end,
        revision = j.revision + 1, updated_at = present, cancel_requested = false, cancel_reason = null,
        run_at = case when e.became in ('retrying', 'snoozed') then e.next_run_at else j.run_at end,
        attempts = j.attempts - e.given_back,
        snoozed = e.became = 'snoozed',
        parked = case when e.became = 'exhausted' then 'exhausted' end,
        crashes = e.crashes_after,
        slot_only = e.slot_only_after,
        lane = e.lane_after,
        last_error = case when e.kind in ('revoked', 'spared') then j.last_error else coalesce(e.error_message, j.last_error) end,
        previous = coalesce(e.partial_results::json, j.previous)
      from ended e
      where j.id = any(array(select e.id from ended e where e.became not in ('cancelled', 'unchanged'))) and j.id = e.id
    ),
    recorded as (
      insert into job_history (job_id, fence, started_at, completed_at, expires_at, queue_time_ms, execution_time_ms,
        status, attempt, worker_id, error_message, error_stack, partial_results, environment)
      select e.id, e.fence + case when e.running then 0 else 1 end, e.locked_at, present,
        present + retention * interval '1 ms',
        greatest(0, date_part('epoch', e.locked_at - greatest(e.run_at, e.released_at)) * 1000)::bigint, e.execution_time_ms,
        case
          when e.became = 'cancelled' then 'cancelled'
          when e.kind = 'partial' then 'partial_success'
          when e.became = 'snoozed' then 'snoozed'
          else 'failed'
        end::job_outcome,
        e.attempts, coalesce(own_label, (select w.label from workers w where w.id = e.locked_by), e.locked_by),
        case when e.became = 'cancelled' then coalesce(e.cancel_reason, e.error_message) else e.error_message end,
        e.error_stack, e.partial_results::json, own_environment
      from ended e
      where e.became = 'cancelled'
        or (e.became = 'snoozed' and keep_snoozes)
        or (e.became in ('retrying', 'exhausted', 'available') and keep_failures)
    ),
    -- Rate limits that its handler has found exhausted elsewhere.
    blocked as (
      insert into rate_limit_blocks (key, by_value, until, job_id, fence)
      select distinct on (b.key, b.by_value) b.key, b.by_value, e.next_run_at, e.id, e.fence
      from ended e cross join lateral json_to_recordset(e.blocks) as b(key text, by_value text)
      where e.running and e.blocks is not null and not exists (
        select from rate_limit_blocks o
        where o.key = b.key and o.by_value = b.by_value and o.until >= e.next_run_at and o.set_at <= present
      )
      order by b.key, b.by_value, e.next_run_at desc
    ),
    receipt as (
      insert into settle_receipts (job_ids, fences, outcomes)
      select array_agg(e.id), array_agg(e.fence), array_agg(e.became) from ended e
      where e.running and ((e.became = 'snoozed' and not keep_snoozes)
        or (e.became in ('retrying', 'exhausted', 'available') and not keep_failures))
      having count(*) > 0
    )
    select e.id, e.fence, e.became,
      case when e.became in ('retrying', 'snoozed') then date_part('epoch', e.next_run_at) * 1000 end,
      e.cancel_reason, case when e.place is not null or e.queue = any(place_queues) then e.queue end, e.job_key,
      e.became in ('exhausted', 'cancelled'), e.locked_by, e.lane_after
    from ended e
    union all
    select s.id, s.fence, s.standing, null, null, null, null, false, null, null
    from (
      select array_agg(i.id) as ids, array_agg(i.fence) as fences
      from unnest(asked_ids, asked_fences) as i(id, fence)
      where i.fence is not null and not exists (select from ended e where e.id = i.id and e.fence = i.fence)
    ) missing cross join lateral standing_of_claims(worker, missing.ids, missing.fences) s
    union all
    select i.id, null, 'held', null, null, null, null, false, null, null
    from unnest(asked_ids, asked_fences) as i(id, fence)
    where i.fence is null and i.id not in (select unnest(held_ids)) and exists (select from jobs j where j.id = i.id);

  perform give_back_places(place_queues, place_numbers);
end $$;

-- An operator cancels: waiting and exhausted jobs leave at once; a running one is marked, and becomes cancelled however its
-- handler ends. `held`: an open transaction holds the job, and nothing was changed. Index: jobs_pkey.
create function cancel_jobs(ids uuid[], cause text, retention bigint)
returns table (id uuid, became text, job_key text)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  held_ids uuid[];
begin
  held_ids := array(
    select held.id from (select distinct unnest(ids) as id order by 1) i cross join lateral (
      select j.id from jobs j where j.id = i.id limit 1 for update skip locked
    ) held
  );
  return query
    with held as materialized (select * from jobs j where j.id = any(held_ids)),
    asked as (
      update jobs j
      set cancel_requested = true, cancel_reason = coalesce(cause, j.cancel_reason), revision = j.revision + 1,
        updated_at = clock_timestamp()
      where j.id = any(array(select h.id from held h where h.locked_by is not null))
    ),
    gone as (delete from jobs j where j.id = any(array(select h.id from held h where h.locked_by is null))),
    recorded as (
      insert into job_history (job_id, fence, expires_at, status, attempt, error_message)
      select h.id, h.fence + 1, clock_timestamp() + retention * interval '1 ms', 'cancelled', h.attempts, cause
      from held h where h.locked_by is null
    )
    select h.id, case when h.locked_by is not null then 'running' else 'cancelled' end, h.job_key from held h
    union all
    select j.id, 'held', null from jobs j where j.id = any(ids) and j.id not in (select unnest(held_ids));
end $$;

-- Keeps what a step has returned, in the name of a claim. Returns whether the claim stands. It does not lock the job: in a
-- transactional task a lock would outlive the statement, and a frozen process would keep its jobs from being rescued.
-- Indexes: jobs_pkey, job_steps_pkey.
create function save_step(of_job uuid, claim bigint, step text, nth integer, outcome text) returns boolean
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
begin
  insert into job_steps (job_id, fence, name, position, result)
  select j.id, j.fence, step, nth, outcome::json from jobs j
  where j.id = of_job and j.fence = claim and j.locked_by is not null
  on conflict (job_id, name) do update
    set fence = excluded.fence, position = excluded.position, result = excluded.result, completed_at = clock_timestamp();
  return found;
end $$;

-- The latest progress of several attempts. That of a job whose row of progress others hold is left out: the next one comes.
-- Indexes: jobs_pkey, job_progress_pkey.
create function save_progress(ids uuid[], fences bigint[], progress text[]) returns void
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
declare
  held uuid[];
begin
  held := array(
    select p.job_id from job_progress p where p.job_id = any(ids) order by p.job_id for no key update skip locked
  );
  insert into job_progress (job_id, value)
  select j.id, i.value::json
  from unnest(ids, fences, progress) as i(id, fence, value)
  join jobs j on j.id = i.id and j.fence = i.fence and j.locked_by is not null
  where j.id = any(held) or not exists (select from job_progress p where p.job_id = j.id)
  order by j.id
  on conflict (job_id) do update set value = excluded.value, updated_at = clock_timestamp();
end $$;
