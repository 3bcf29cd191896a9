-- Runs in one transaction with search_path set to the library's schema. Safe while workers of version 3 run.

-- What most claims are: due jobs without limits, in order (priority, run-at, id), for a pool's buffer. claim_jobs
-- (0003) does the same, and looks at jobs for free slots besides; this one returns each job as the text of one JSON
-- array, which costs both sides of the wire less than columns: [id, priority, run-at, task, attempts, max attempts,
-- revision, created-at, fence, extra, payload], times in milliseconds. Before them comes the time of the claim.
--
-- known_*: the cursor, one position for each priority, best first. `extra` holds what few jobs have, or null.
--
-- Planner settings as in claim_jobs: a walk along jobs_ready, then a row by its place, then its body by
-- job_bodies_pkey; nothing is sorted or read whole, whatever the statistics say. One plan serves every call: left to
-- itself, PostgreSQL takes the known arguments for a gain and plans each claim anew, which takes longer than a small one.
create function claim_plain_jobs(
  worker text, wanted integer, tasks text[], forbidden text[],
  known_priorities integer[], known_run_ats timestamptz[], known_ids uuid[]
)
returns setof text
language plpgsql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  start record;
  at_priority integer;
  at_run_at timestamptz;
  at_id uuid;
  lower_bound bigint := -2147483649;
  open_places integer := wanted;
  claims integer;
begin
  -- A pool that was taken for dead claims nothing: nobody would ever rescue it.
  perform from workers w where w.id = worker and w.stopped_at is null for share;
  if not found then
    return;
  end if;
  return next date_part('epoch', now()) * 1000;

  -- For each priority from the cursor's position to now; before it, those that the cursor does not know, hopping from
  -- one to the next.
  for start in
    select known.priority::bigint, known.run_at, known.id
    from unnest(known_priorities, known_run_ats, known_ids) as known(priority, run_at, id)
    union all
    select 2147483648, null, null
  loop
    loop
      select j.priority into at_priority from jobs j
      where j.parked is null and not j.slot_only and j.priority > lower_bound and j.priority < start.priority
      order by j.priority limit 1;
      if found then
        at_run_at := '-infinity';
        at_id := '00000000-0000-0000-0000-000000000000';
      elsif start.id is not null then
        at_priority := start.priority;
        at_run_at := start.run_at;
        at_id := start.id;
      else
        return;
      end if;
      lower_bound := at_priority;

      return query
        with due as materialized (
          select j.ctid as place from jobs j
          where j.parked is null and not j.slot_only and j.locked_by is null
            and j.priority = at_priority and (j.run_at, j.id) > (at_run_at, at_id) and j.run_at <= now()
            and (tasks is null or j.task = any(tasks))
            and (forbidden is null or j.flags is null or not j.flags && forbidden)
          order by j.run_at, j.id
          limit open_places
          for update skip locked
        )
        -- By place: each row is locked and was seen by this very statement. One that changed in between is left.
        update jobs j
        set locked_by = worker, locked_at = now(), attempts = j.attempts + 1, fence = j.fence + 1,
          revision = j.revision + 1, snoozed = false, lease_ms = null, lease_expires_at = null
        where j.ctid = any(array(select place from due))
        returning (
          select concat('["', j.id, '",', j.priority, ',', date_part('epoch', j.run_at) * 1000, ',', to_json(j.task),
            ',', j.attempts, ',', j.max_attempts, ',', j.revision, ',', date_part('epoch', b.created_at) * 1000,
            ',"', j.fence, '",', case
              when coalesce(j.rate_limit_key, j.last_error, j.job_key, b.group_id) is null and j.flags is null
                and b.tags is null and b.timeout_ms is null and j.previous is null and j.crashes = 0 then 'null'
              else json_build_object('rateLimitKey', j.rate_limit_key, 'lastError', j.last_error, 'jobKey', j.job_key,
                'jobKeyMode', b.job_key_mode, 'flags', j.flags, 'tags', b.tags, 'groupId', b.group_id,
                'timeoutMs', b.timeout_ms, 'previous', j.previous, 'crashes', j.crashes)::text
            end, ',', b.payload, ']')
          from job_bodies b where b.id = j.id
        );
      get diagnostics claims = row_count;
      open_places := open_places - claims;
      if open_places <= 0 then
        return;
      end if;
      exit when at_priority = start.priority;
    end loop;
  end loop;
end $$;

-- The same for the functions of 0003.
alter function claim_jobs set plan_cache_mode = force_generic_plan;
alter function held_claims set plan_cache_mode = force_generic_plan;
alter function complete_jobs set plan_cache_mode = force_generic_plan;
alter function free_queues set plan_cache_mode = force_generic_plan;
alter function end_attempts set plan_cache_mode = force_generic_plan;
