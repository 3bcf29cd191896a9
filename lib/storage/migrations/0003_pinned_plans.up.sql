-- Runs in one transaction with search_path set to the library's schema.
-- The hot statements as functions, because a function carries planner settings and nothing else in a session does. A
-- statement that is planned while the tables are empty keeps its plan when a load arrives, and would sort the whole
-- backlog for each claim until the next autoanalyze. Here sorts and scans of tables are priced out; what is left is an
-- ordered walk along the index that was made for it, whatever the statistics say. `jit` would find that price worth
-- compiling for.

-- Claims due jobs in order (priority, run-at, id), within the limits of their queues and rate limits.
--
-- known_*: the cursor, one position for each lane and priority; gap_*: the ranges between its priorities. slot_priority:
-- the worst priority that may take a free slot, or null. look_for_slots: whether to look at the lane of jobs that are
-- claimed for free slots only; without one of them the claim is a plain walk.
--
-- Indexes: jobs_ready and jobs_ready_for_slots for the walks; the primary keys of jobs, job_bodies, job_queues and
-- rate_limits, and jobs_of_queue, for all else. Rows of job_queues, then of rate_limits, are locked in the order of
-- their names by everyone, so claims and settles cannot deadlock. Their locks also bring back the latest version of each
-- row, so limits hold against claims that committed after a statement's snapshot was taken.
create function claim_jobs(
  worker text, wanted integer, slots integer, tasks text[], forbidden text[], only_queue text, lease bigint,
  known_lanes boolean[], known_priorities integer[], known_run_ats timestamptz[], known_ids uuid[],
  gap_lanes boolean[], gap_lowers bigint[], gap_uppers bigint[], slot_priority integer, look_for_slots boolean
)
-- `extra` holds what few jobs have, as one JSON object, or null: each column costs each job, on both sides of the wire.
returns table (
  verdict text, slot_only boolean, refill_in_ms float8, promote boolean,
  id uuid, priority integer, run_at float8, queue text, task text, payload json, attempts smallint,
  max_attempts smallint, locked_at float8, revision integer, created_at float8, fence bigint, extra json
)
language plpgsql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
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
  started_at float8 := date_part('epoch', now()) * 1000;
begin
  -- A pool that was taken for dead claims nothing: nobody would ever rescue it. Claims by hand have their own lease.
  perform from workers w where w.id = worker and w.stopped_at is null for share;
  if not found and lease is null then
    return;
  end if;

  if only_queue is not null
    or (slots > 0 and look_for_slots and exists (select from jobs j where j.parked is null and j.slot_only))
  then
    return query
      with recursive holder as materialized (
        select from workers where id = worker and stopped_at is null for share
      ),
      plain_gaps as (
        select found.priority, gap.upper_bound
        from unnest(gap_lanes, gap_lowers, gap_uppers) as gap(slot_only, lower_bound, upper_bound)
        cross join lateral (
          select j.priority from jobs j
          where j.parked is null and not j.slot_only
            and j.priority > gap.lower_bound and j.priority < gap.upper_bound
          order by j.priority limit 1
        ) found
        where not gap.slot_only and wanted > 0 and (lease is not null or exists (select from holder))
        union all
        select found.priority, gap.upper_bound
        from plain_gaps gap
        cross join lateral (
          select j.priority from jobs j
          where j.parked is null and not j.slot_only
            and j.priority > gap.priority and j.priority < gap.upper_bound
          order by j.priority limit 1
        ) found
      ),
      slots_gaps as (
        select found.priority, gap.upper_bound
        from unnest(gap_lanes, gap_lowers, gap_uppers) as gap(slot_only, lower_bound, upper_bound)
        cross join lateral (
          select j.priority from jobs j
          where j.parked is null and j.slot_only
            and j.priority > gap.lower_bound and j.priority < gap.upper_bound
          order by j.priority limit 1
        ) found
        where gap.slot_only and slots > 0 and (lease is not null or exists (select from holder))
        union all
        select found.priority, gap.upper_bound
        from slots_gaps gap
        cross join lateral (
          select j.priority from jobs j
          where j.parked is null and j.slot_only
            and j.priority > gap.priority and j.priority < gap.upper_bound
          order by j.priority limit 1
        ) found
      ),
      plain_starts as materialized (
        select priority, run_at, id
        from unnest(known_lanes, known_priorities, known_run_ats, known_ids) as known(slot_only, priority, run_at, id)
        where not slot_only and (lease is not null or exists (select from holder))
        union all
        select priority, '-infinity', '00000000-0000-0000-0000-000000000000' from plain_gaps
        order by priority
      ),
      plain as materialized (
        select due.* from plain_starts start
        cross join lateral (
          select j.id, j.priority, j.run_at, j.slot_only, j.queue, j.rate_limit_key
          from jobs j
          where j.parked is null and not j.slot_only and j.locked_by is null
            and j.priority = start.priority and (j.run_at, j.id) > (start.run_at, start.id) and j.run_at <= now()
            and (tasks is null or j.task = any(tasks))
            and (forbidden is null or j.flags is null or not j.flags && forbidden)
            and (only_queue is null or j.queue = only_queue)
          order by j.run_at, j.id
          limit wanted
          for update skip locked
        ) due
        limit wanted
      ),
      slots_starts as materialized (
        select priority, run_at, id
        from unnest(known_lanes, known_priorities, known_run_ats, known_ids) as known(slot_only, priority, run_at, id)
        where slot_only and (lease is not null or exists (select from holder))
        union all
        select priority, '-infinity', '00000000-0000-0000-0000-000000000000' from slots_gaps
        order by priority
      ),
      slots as materialized (
        select due.* from slots_starts start
        cross join lateral (
          select j.id, j.priority, j.run_at, j.slot_only, j.queue, j.rate_limit_key
          from jobs j
          where j.parked is null and j.slot_only and j.locked_by is null
            and j.priority = start.priority and (j.run_at, j.id) > (start.run_at, start.id) and j.run_at <= now()
            and (tasks is null or j.task = any(tasks))
            and (forbidden is null or j.flags is null or not j.flags && forbidden)
            and (only_queue is null or j.queue = only_queue)
          order by j.run_at, j.id
          limit slots
          for update skip locked
        ) due
        where slot_priority is null or start.priority <= slot_priority
        limit slots
      ),
      candidates as materialized (
        select *, row_number() over (order by priority, run_at, id) as rank
        from (select * from plain union all select * from slots) found
      ),
      in_turn as materialized (
        select *, rank > case when slot_only then least(wanted, slots) else wanted end as later
        from candidates
      ),
      locked_queues as materialized (
        select q.name, case when q.paused then 0 else greatest(0, coalesce(q.concurrency, 2147483647) - q.running) end as free
        from (select distinct queue from in_turn where queue is not null and not later order by queue) named
        cross join lateral (
          select * from job_queues q where q.name = named.queue limit 1 for update
        ) q
      ),
      -- Whose turn it is, whoever may be looking at it: a claim that runs beside this one has locked the jobs it came
      -- across, so the first that this one found need not be the first in line.
      heads as materialized (
        select q.name, head.id
        from locked_queues q cross join lateral (
          select j.id from jobs j
          where j.queue = q.name and (j.parked is null or j.parked = 'queue') and j.locked_by is null
            and j.run_at <= now() and (tasks is null or j.task = any(tasks))
            and (forbidden is null or j.flags is null or not j.flags && forbidden)
          order by j.priority, j.run_at, j.id
          limit q.free
        ) head
      ),
      queued as materialized (
        select c.*, q.name as known_queue, q.free, c.queue is null or h.id is not null as admitted
        from in_turn c
        left join locked_queues q on q.name = c.queue
        left join heads h on h.id = c.id
      ),
      locked_limits as materialized (
        select r.*
        from (
          select distinct rate_limit_key from queued
          where rate_limit_key is not null and admitted and not later order by rate_limit_key
        ) named
        cross join lateral (
          select * from rate_limits r where r.key = named.rate_limit_key limit 1 for update
        ) r
      ),
      windows as materialized (
        select key, capacity, interval_ms, at, clock.started_at,
          case when clock.started_at > window_started_at then capacity else available end as tokens,
          date_part('epoch', (clock.started_at + interval_ms * interval '1 ms') - at) * 1000 as refill_in_ms
        from (select *, clock_timestamp() as at from locked_limits) locked_limit
        cross join lateral (
          -- Windows are fixed: however late the first claim of one comes, it starts a whole number of intervals on.
          select window_started_at + greatest(0, floor(extract(epoch from at - window_started_at) * 1000 / interval_ms))
            * interval_ms * interval '1 ms' as started_at
        ) clock
      ),
      verdicts as materialized (
        select c.*, w.refill_in_ms, case
          when c.later then 'later'
          when c.queue is not null and c.known_queue is null then 'unknown_queue'
          when not c.admitted then 'queue'
          when c.rate_limit_key is null then 'claimed'
          when row_number() over (
            partition by c.rate_limit_key, c.admitted and not c.later order by c.priority, c.run_at, c.id
          ) <= coalesce(w.tokens, 0) then 'claimed'
          else 'tokens'
        end as verdict
        from queued c left join windows w on w.key = c.rate_limit_key
      ),
      claimed as (
        update jobs j
        set locked_by = worker, locked_at = now(), attempts = j.attempts + 1, fence = j.fence + 1,
          revision = j.revision + 1, snoozed = false, lease_ms = lease,
          lease_expires_at = now() + lease * interval '1 ms'
        where j.id = any(array(select v.id from verdicts v where v.verdict = 'claimed'))
        returning j.*
      ),
      refused as (
        update jobs j set parked = (select v.verdict from verdicts v where v.id = j.id)
        where j.id = any(array(select v.id from verdicts v where v.verdict in ('queue', 'tokens')))
      ),
      taken as materialized (
        select v.queue, count(*) filter (where v.verdict = 'claimed') as claims,
          count(*) filter (where v.verdict in ('queue', 'tokens')) as refusals
        from verdicts v where v.known_queue is not null and not v.later group by v.queue
      ),
      counted as (
        update job_queues q
        set running = q.running + (select t.claims from taken t where t.queue = q.name), last_used_at = now(),
          locked_by = case when (select t.claims from taken t where t.queue = q.name) > 0 then worker else q.locked_by end,
          parked_at = case
            when (select t.refusals from taken t where t.queue = q.name) > 0 then clock_timestamp() else q.parked_at
          end
        where q.name = any(array(select t.queue from taken t))
      ),
      tokens_taken as materialized (
        select w.key, w.started_at, w.at, w.tokens - count(*) filter (where v.verdict = 'claimed') as left_over,
          count(*) filter (where v.verdict = 'tokens') as refusals
        from windows w join verdicts v on v.rate_limit_key = w.key group by w.key, w.started_at, w.at, w.tokens
      ),
      spent as (
        update rate_limits r
        set (available, window_started_at, parked_at) = (
          select t.left_over, t.started_at, case when t.refusals > 0 then t.at else r.parked_at end
          from tokens_taken t where t.key = r.key
        )
        where r.key = any(array(select t.key from tokens_taken t))
      )
      select v.verdict, v.slot_only, v.refill_in_ms,
        v.verdict in ('queue', 'tokens') and v.free > count(*) filter (where v.verdict = 'claimed')
          over (partition by v.queue),
        v.id, v.priority, date_part('epoch', v.run_at) * 1000, v.queue,
        j.task, b.payload, j.attempts, j.max_attempts, date_part('epoch', j.locked_at) * 1000, j.revision,
        date_part('epoch', b.created_at) * 1000, j.fence, case
          when coalesce(j.rate_limit_key, j.last_error, j.job_key, b.group_id) is null and j.flags is null
            and b.tags is null and b.timeout_ms is null and j.previous is null and j.crashes = 0 then null
          else json_build_object('rateLimitKey', j.rate_limit_key, 'lastError', j.last_error, 'jobKey', j.job_key,
            'jobKeyMode', b.job_key_mode, 'flags', j.flags, 'tags', b.tags, 'groupId', b.group_id,
            'timeoutMs', b.timeout_ms, 'previous', j.previous, 'crashes', j.crashes)
        end
      from verdicts v
      left join claimed j on j.id = v.id
      left join lateral (select * from job_bodies b where b.id = j.id limit 1) b on true
      order by v.priority, v.run_at, v.id;
    return;
  end if;

  -- Plain jobs only. For each priority, best first, from the cursor's position to now; before it, those that the cursor
  -- does not know, hopping from one to the next.
  for start in
    select known.priority::bigint, known.run_at, known.id
    from unnest(known_lanes, known_priorities, known_run_ats, known_ids) as known(slot_only, priority, run_at, id)
    where not known.slot_only
    union all
    select 2147483648, null, null
    order by 1
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
        ),
        claimed as (
          -- By place: each row is locked and was seen by this very statement. One that changed in between is left.
          update jobs j
          set locked_by = worker, locked_at = now(), attempts = j.attempts + 1, fence = j.fence + 1,
            revision = j.revision + 1, snoozed = false, lease_ms = lease,
            lease_expires_at = now() + lease * interval '1 ms'
          where j.ctid = any(array(select place from due))
          returning j.*
        )
        select 'claimed', false, null::float8, false,
          j.id, j.priority, date_part('epoch', j.run_at) * 1000, null::text, j.task, b.payload, j.attempts,
          j.max_attempts, started_at, j.revision, date_part('epoch', b.created_at) * 1000, j.fence,
          case
            when coalesce(j.rate_limit_key, j.last_error, j.job_key, b.group_id) is null and j.flags is null
              and b.tags is null and b.timeout_ms is null and j.previous is null and j.crashes = 0 then null
            else json_build_object('rateLimitKey', j.rate_limit_key, 'lastError', j.last_error, 'jobKey', j.job_key,
              'jobKeyMode', b.job_key_mode, 'flags', j.flags, 'tags', b.tags, 'groupId', b.group_id,
              'timeoutMs', b.timeout_ms, 'previous', j.previous, 'crashes', j.crashes)
          end
        from claimed j cross join lateral (select * from job_bodies b where b.id = j.id limit 1) b;
      get diagnostics claims = row_count;
      open_places := open_places - claims;
      if open_places <= 0 then
        return;
      end if;
      exit when at_priority = start.priority;
    end loop;
  end loop;
end $$;

-- Locks the jobs that a worker holds by these fences, one by one along the primary key. manner: see complete_jobs.
create function held_claims(worker text, ids uuid[], fences bigint[], manner text) returns uuid[]
language plpgsql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  if manner = 'skip' then
    return array(
      select held.id from unnest(ids, fences) as i(id, fence) cross join lateral (
        select j.id from jobs j where j.id = i.id and j.fence = i.fence and j.locked_by = worker
        limit 1 for update skip locked
      ) held
    );
  end if;
  return array(
    select held.id from unnest(ids, fences) as i(id, fence) cross join lateral (
      select j.id from jobs j where j.id = i.id and j.fence = i.fence and j.locked_by = worker
      limit 1 for update
    ) held
  );
end $$;

-- Ends a settle that took for granted that its fences are right.
create function refuse_stale_claim(actual bigint, claimed bigint) returns boolean
language plpgsql
as $$
begin
  if actual <> claimed then
    raise exception 'claim % of the job is over, it is at %', claimed, actual using errcode = 'lock_not_available';
  end if;
  return false;
end $$;

-- Settles attempts that completed: job, history and the places in queues change in one statement, matched on (id,
-- fence), so nobody settles a claim that he no longer holds. Returns only what is not simply completed and done with:
-- jobs that were cancelled meanwhile, that others wait for in some way, or that are `missing`.
--
-- manner: what to do about rows that somebody's open transaction holds (an addJob that replaces the running job, or adds
-- a child to it). 'direct': hope that there are none, and that no fence is stale, and fail with lock_not_available if
-- there are; 'skip': return them as missing; 'wait': wait for them. Almost all batches go directly, which spares each
-- job the locking of its row before it is deleted.
--
-- Indexes: jobs_pkey for the batch, job_dependencies_pkey, and job_queues_pkey for jobs that have a queue.
create function complete_jobs(
  worker text, ids uuid[], fences bigint[], execution_times integer[], results text[],
  keep boolean, retention bigint, environment json, manner text
)
returns table (
  id uuid, fence bigint, became text, run_at float8, promote text, superseded_by uuid, has_dependents boolean
)
language plpgsql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
declare
  held_ids uuid[] := ids;
begin
  if manner = 'direct' then
    perform set_config('lock_timeout', '100ms', true);
  else
    held_ids := held_claims(worker, ids, fences, manner);
  end if;

  return query
    with input as materialized (
      select * from unnest(ids, fences, execution_times, results) as i(id, fence, execution_time_ms, result)
    ),
    deleted as (
      delete from jobs j where j.id = any(held_ids) and j.locked_by = worker
      returning j.id, j.fence, j.locked_at, j.run_at, j.attempts, j.queue, j.cancel_requested, j.cancel_reason,
        j.superseded_by
    ),
    gone as materialized (
      select d.*, i.execution_time_ms, i.result, i.fence as claimed_fence
      from deleted d join input i on i.id = d.id
    ),
    recorded as (
      insert into job_history (job_id, fence, started_at, expires_at, queue_time_ms, execution_time_ms, status,
        attempt, worker_id, result, error_message, environment)
      select g.id, g.fence, g.locked_at, now() + retention * interval '1 ms',
        greatest(0, date_part('epoch', g.locked_at - g.run_at) * 1000)::bigint, g.execution_time_ms,
        case when g.cancel_requested then 'cancelled' else 'completed' end::job_outcome, g.attempts, worker,
        g.result::json, case when g.cancel_requested then g.cancel_reason end, environment
      from gone g
      where keep or g.cancel_requested
    ),
    receipt as (
      insert into settle_receipts (job_ids, fences)
      select array_agg(g.id), array_agg(g.fence) from gone g where not keep having count(*) > 0
    ),
    freed as (select * from free_queues(array(select g.queue from gone g where g.queue is not null)))
    select g.id, g.fence, case when g.cancel_requested then 'cancelled' else 'completed' end, null::float8,
      case when f.others_wait then g.queue end, g.superseded_by, false
    from gone g left join freed f on f.name = g.queue
    where g.cancel_requested or g.superseded_by is not null or f.others_wait
    union all
    select i.id, i.fence, 'missing', null, null, null, false
    from input i where not exists (select from gone g where g.id = i.id)
    union all
    -- The same worker has claimed the job again: nothing of this may stay. It raises.
    select g.id, g.fence, 'missing', null, null, null, false
    from gone g where g.fence <> g.claimed_fence and refuse_stale_claim(g.fence, g.claimed_fence);

  -- A statement of its own: an open transaction that held a parent may have added children meanwhile.
  return query
    select d.parent_id, null::bigint, 'parent', null::float8, null, null::uuid, true
    from job_dependencies d where d.parent_id = any(ids) group by d.parent_id;
end $$;

-- Gives places back, one for each occurrence of a queue's name, and says in which queues others wait for them. Locks in
-- the order of names, like claims.
create function free_queues(names text[])
returns table (name text, others_wait boolean)
language plpgsql
set search_path from current
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
begin
  if cardinality(names) = 0 then
    return;
  end if;
  perform from (select distinct n from unnest(names) n order by n) named
    cross join lateral (select from job_queues q where q.name = named.n limit 1 for update) q;
  return query
    with ended as materialized (select n, count(*)::integer as jobs from unnest(names) n group by n)
    update job_queues q
    set running = greatest(0, q.running - (select e.jobs from ended e where e.n = q.name)), last_used_at = now(),
      locked_by = case when q.running > (select e.jobs from ended e where e.n = q.name) then q.locked_by end
    where q.name = any(array(select e.n from ended e))
    returning q.name, q.parked_at is not null;
end $$;

-- Attempts that did not complete: failed, partially done, snoozed, cancelled, or given back unstarted. What a retry or
-- an exhausted job's new row looks like is decided here and nowhere else. A job that was superseded under its key is not
-- retried. `input`: an array of { id, fence, kind, delay_ms, permanent, execution_time_ms, error_message, error_stack,
-- partial_results }; manner: 'skip' or 'wait', as in complete_jobs.
create function end_attempts(
  worker text, input json, keep_failures boolean, keep_snoozes boolean, retention bigint, environment json, manner text
)
returns table (
  id uuid, fence bigint, became text, run_at float8, promote text, superseded_by uuid, has_dependents boolean
)
language plpgsql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
declare
  held_ids uuid[];
begin
  select held_claims(worker, array_agg(i.id), array_agg(i.fence), manner) into held_ids
  from json_to_recordset(input) as i(id uuid, fence bigint);

  return query
    with ended as materialized (
      select h.*, i.kind, i.execution_time_ms, i.error_stack, i.partial_results,
        now() + i.delay_ms * interval '1 ms' as next_run_at,
        case
          when i.kind = 'released' and not h.cancel_requested then 'released'
          when h.cancel_requested or i.kind = 'cancelled' or h.superseded_by is not null then 'cancelled'
          when i.kind = 'snoozed' then 'snoozed'
          when i.permanent or h.attempts >= h.max_attempts then 'exhausted'
          else 'retrying'
        end as became,
        case
          when i.kind = 'partial' and not i.permanent and h.attempts >= h.max_attempts
            then 'max-attempts reached on partial-success'
          else i.error_message
        end as error_message
      from (select * from jobs j where j.id = any(held_ids)) h
      join json_to_recordset(input) as i(id uuid, fence bigint, kind text, delay_ms float8, permanent boolean,
        execution_time_ms integer, error_message text, error_stack text, partial_results text) on i.id = h.id
    ),
    gone as (
      delete from jobs j
      where j.id = any(array(select e.id from ended e where e.became = 'cancelled'))
    ),
    kept as (
      update jobs j set
        locked_by = null, locked_at = null, lease_ms = null, lease_expires_at = null,
        revision = j.revision + 1, updated_at = now(),
        run_at = case when e.became in ('retrying', 'snoozed') then e.next_run_at else j.run_at end,
        attempts = j.attempts - case when e.became in ('released', 'snoozed') then 1 else 0 end,
        snoozed = e.became = 'snoozed',
        parked = case when e.became = 'exhausted' then 'exhausted' end,
        crashes = case when e.became = 'released' then j.crashes else 0 end,
        -- The last attempt that is left must not wait in a buffer: a crash could not be told from a start.
        slot_only = j.queue is not null or j.rate_limit_key is not null or j.attempts >= j.max_attempts - 1
          or (e.became = 'released' and j.crashes > 0),
        last_error = coalesce(e.error_message, j.last_error),
        previous = coalesce(e.partial_results::json, j.previous)
      from ended e
      where j.id = any(array(select e.id from ended e where e.became <> 'cancelled')) and j.id = e.id
    ),
    recorded as (
      insert into job_history (job_id, fence, started_at, expires_at, queue_time_ms, execution_time_ms, status,
        attempt, worker_id, error_message, error_stack, partial_results, environment)
      select e.id, e.fence, e.locked_at, now() + retention * interval '1 ms',
        greatest(0, date_part('epoch', e.locked_at - e.run_at) * 1000)::bigint, e.execution_time_ms,
        case
          when e.became = 'cancelled' then 'cancelled'
          when e.kind = 'partial' then 'partial_success'
          when e.became = 'snoozed' then 'snoozed'
          else 'failed'
        end::job_outcome,
        e.attempts, worker, coalesce(e.error_message, e.cancel_reason), e.error_stack, e.partial_results::json,
        environment
      from ended e
      where e.became = 'cancelled'
        or (e.became = 'snoozed' and keep_snoozes)
        or (e.became in ('retrying', 'exhausted') and keep_failures)
    ),
    freed as (select * from free_queues(array(select e.queue from ended e where e.queue is not null)))
    select e.id, e.fence, e.became,
      case when e.became in ('retrying', 'snoozed') then date_part('epoch', e.next_run_at) * 1000 end,
      case when f.others_wait then e.queue end, e.superseded_by, e.became in ('exhausted', 'cancelled')
    from ended e left join freed f on f.name = e.queue;
end $$;
