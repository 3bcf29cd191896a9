-- Bulk actions: which jobs one page of an action is about. An action goes through jobs by their ids, and looks at a bounded number
-- of them a page, whatever its filter says. What a page finds is a proposal: it locks the jobs, and the next statement decides.

-- The next ids that may match, behind `from_id` up to `to_id`: of live jobs, of exhausted ones, or of all that are known.
-- Indexes: jobs_pkey, jobs_exhausted, job_bodies_pkey.
create function bulk_slice(source text, from_id uuid, to_id uuid, most integer) returns uuid[]
language plpgsql stable
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
begin
  if source = 'live' then
    return array(select j.id from jobs j where j.id > from_id and j.id <= to_id order by j.id limit most);
  elsif source = 'exhausted' then
    return array(
      select j.id from jobs j where j.parked = 'exhausted' and j.id > from_id and j.id <= to_id order by j.id limit most
    );
  end if;
  return array(select b.id from job_bodies b where b.id > from_id and b.id <= to_id order by b.id limit most);
end $$;

-- Those of the jobs that a filter matches, with their status, by id. `wanted`: the filter; `states`: any of these;
-- `known_by`: not those that were added later. A job counts as completed by its record alone.
-- Indexes: job_bodies_pkey, jobs_pkey, job_history_by_job.
create function bulk_matches(ids uuid[], wanted json, states text[], known_by timestamptz)
returns table (id uuid, status text)
language plpgsql stable
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  of_task text := wanted ->> 'task';
  of_queue text := wanted ->> 'queue';
  of_tag text := wanted ->> 'tag';
  of_group text := wanted ->> 'groupId';
  of_flag text := wanted ->> 'flag';
  from_time timestamptz := wanted ->> 'from';
  to_time timestamptz := wanted ->> 'to';
  patterns text[] := case when wanted ->> 'patterns' is not null then array(select json_array_elements_text(wanted -> 'patterns')) end;
begin
  return query
    select i.id, x.status from unnest(ids) as i(id) cross join lateral (
      select s.status from job_bodies b
      left join jobs j on j.id = b.id
      left join lateral (
        select h.status, h.error_message from job_history h where h.job_id = b.id and j.id is null order by h.fence desc limit 1
      ) h on true
      cross join lateral (
        select case
          when j.locked_by is not null then 'running'
          when j.parked = 'exhausted' then 'exhausted'
          when j.parked in ('parents', 'key') then 'blocked'
          when j.id is not null and j.run_at > clock_timestamp() then case when j.snoozed then 'snoozed' else 'scheduled' end
          when j.id is not null then 'available'
          when h.status = 'cancelled' then 'cancelled'
          when h.status is not null then 'completed'
        end as status
      ) s
      where b.id = i.id and b.created_at <= known_by
        and (of_task is null or b.task = of_task)
        and (of_queue is null or b.queue = of_queue)
        and (of_tag is null or of_tag = any(b.tags))
        and (of_group is null or b.group_id = of_group or b.group_id is null and b.id::text = lower(of_group))
        and (of_flag is null or of_flag = any(b.flags))
        and (from_time is null or b.created_at >= from_time)
        and (to_time is null or b.created_at < to_time)
        and s.status = any(states)
        and (patterns is null or b.payload::text ilike any(patterns) or b.task ilike any(patterns)
          or coalesce(j.last_error, h.error_message) ilike any(patterns))
      limit 1
    ) x
    order by i.id;
end $$;

-- The next page: at most `most_matches` jobs that match, of at most `most_ids` that are looked at. `next_id`: behind which the next
-- one begins; null: there is none. `looked_at`: how many it took to find these.
create function bulk_page(
  source text, from_id uuid, to_id uuid, wanted json, states text[], known_by timestamptz, most_matches integer, most_ids integer
)
returns table (ids uuid[], next_id uuid, looked_at integer)
language plpgsql stable
set search_path from current
set lock_timeout = '100ms'
as $$
#variable_conflict use_column
declare
  reached uuid := from_id;
  slice uuid[];
  found_ids uuid[];
  size integer;
begin
  ids := '{}';
  looked_at := 0;
  loop
    size := least(most_ids - looked_at, greatest(most_matches, 100));
    slice := bulk_slice(source, reached, to_id, size);
    found_ids := array(select m.id from bulk_matches(slice, wanted, states, known_by) m order by m.id);
    if cardinality(ids) + cardinality(found_ids) > most_matches then
      found_ids := found_ids[1 : most_matches - cardinality(ids)];
      ids := ids || found_ids;
      next_id := ids[most_matches];
      looked_at := looked_at + array_position(slice, next_id);
      return next;
      return;
    end if;
    ids := ids || found_ids;
    looked_at := looked_at + cardinality(slice);
    if cardinality(slice) < size then
      return next;
      return;
    end if;
    reached := slice[size];
    if looked_at >= most_ids or cardinality(ids) >= most_matches then
      next_id := reached;
      return next;
      return;
    end if;
  end loop;
end $$;

-- Locks jobs for an action and returns them; those of which another transaction holds a row are left out. `how`: the lock on
-- their bodies: none, no key update, or update. Indexes: jobs_pkey, job_bodies_pkey.
create function lock_bulk_jobs(ids uuid[], how text) returns uuid[]
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set jit = off
as $$
declare
  live_ids uuid[];
  candidates uuid[];
begin
  live_ids := array(
    select held.id from (select distinct unnest(ids) as id order by 1) i cross join lateral (
      select j.id from jobs j where j.id = i.id limit 1 for update skip locked
    ) held
  );
  -- A younger snapshot: what has ended before the lock is live no more, and what came back is held by who brought it back.
  candidates := array(
    select i.id from unnest(ids) as i(id)
    where i.id = any(live_ids) or not exists (select from jobs j where j.id = i.id) order by i.id
  );
  if how = 'none' then
    return candidates;
  elsif how = 'update' then
    return array(
      select held.id from unnest(candidates) as i(id) cross join lateral (
        select b.id from job_bodies b where b.id = i.id limit 1 for update skip locked
      ) held
    );
  end if;
  return array(
    select held.id from unnest(candidates) as i(id) cross join lateral (
      select b.id from job_bodies b where b.id = i.id limit 1 for no key update skip locked
    ) held
  );
end $$;

-- Gives waiting jobs another queue, or none; the caller has locked them and their bodies. A running one keeps its place, so it is
-- left. Indexes: jobs_pkey, job_bodies_pkey.
create function move_jobs(ids uuid[], new_queue text)
returns table (id uuid, lane text)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  moved_ids uuid[];
begin
  moved_ids := array(
    select held.id from (select distinct unnest(ids) as id order by 1) i cross join lateral (
      select j.id from jobs j where j.id = i.id and j.locked_by is null limit 1 for update skip locked
    ) held
  );
  update job_bodies b set queue = new_queue, partition = case when new_queue is not null then b.partition end
  where b.id = any(moved_ids) and b.queue is distinct from new_queue;
  return query
    update jobs j set queue = new_queue, partition = case when new_queue is not null then j.partition end,
      lane = lane_of(new_queue, case when new_queue is not null then j.partition end, j.limits, j.slot_only),
      revision = j.revision + 1, updated_at = clock_timestamp()
    where j.id = any(moved_ids)
    returning j.id, j.lane;
end $$;

-- Takes the turn of one action, until the transaction ends: the one that is due for longest. A process that freezes in the middle of
-- its page keeps neither the jobs nor the turn for long. Index: job_bulk_actions_open.
create function take_bulk_action() returns setof job_bulk_actions
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
as $$
declare
  proposed uuid;
begin
  perform set_config('idle_in_transaction_session_timeout', '30s', true);
  for proposed in
    select a.id from job_bulk_actions a
    where a.finished_at is null and not a.next_at between clock_timestamp() and clock_timestamp() + interval '2 min'
    order by a.next_at, a.id limit 20
  loop
    if pg_try_advisory_xact_lock(lock_named('bulk', proposed::text)) then
      return query
        select a.* from job_bulk_actions a
        where a.id = proposed and a.finished_at is null
          and not a.next_at between clock_timestamp() and clock_timestamp() + interval '2 min';
      if found then
        return;
      end if;
    end if;
  end loop;
end $$;
