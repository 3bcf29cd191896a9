-- Claiming. Readiness is computed here, from all that can change without the job: places, pauses, tokens, and the tasks
-- and flags that each pool takes. The functions carry planner settings, because a plan made while the tables are empty
-- stays when a load arrives: sorts and scans of tables are priced out, so that an ordered walk along the index made for
-- it is left, whatever the statistics say. One plan serves every call. No statement that locks or changes rows prunes
-- partitions as it runs (PostgreSQL 18 may crash there), so bodies are read apart. Claims skip rows that others hold;
-- the limit on waits is for tables that others have locked as a whole.

-- What a claim has to know before it looks at jobs. `may_claim`: of an incarnation that has not ended. `ends_claim`: everything
-- is paused, or all that this pool would take. `tasks`: those paused, null for none. `soonest`: when the first of these ends by itself.
create type claim_pauses as (may_claim boolean, ends_claim boolean, tasks text[], soonest timestamptz);

-- The shared lock excludes the end of the incarnation (see end_incarnations), waits for nothing, and writes nothing. It is also
-- what a pause looks for, which waits for claims that began before it (see claims_under_way); claims by hand have one of their
-- own. What is paused is read after it: a claim that does not know a pause is found by the session that has committed it. A
-- transaction that keeps one snapshot would not know a pause that has been committed since, so it may not claim.
-- Indexes: workers_pkey, job_pauses_of_claims.
create function pauses_of_claim(worker text, by_hand boolean, present timestamptz) returns claim_pauses
language plpgsql
set search_path from current
as $$
declare
  may_claim boolean;
  has_pauses boolean;
  found claim_pauses;
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'a claim needs read committed' using errcode = '25004';
  end if;
  if not pg_try_advisory_xact_lock_shared(
    case when by_hand then lock_named('claims by hand', '') else lock_named('incarnation', worker) end) then
    return (false, true, null, null)::claim_pauses;
  end if;
  -- Mostly nothing is paused: that is found out by one page.
  select by_hand or exists (select from workers w where w.id = worker and w.stopped_at is null),
    exists (select from job_pauses p where p.kind <> 'partition')
  into may_claim, has_pauses;
  if not has_pauses then
    return (may_claim, false, null, null)::claim_pauses;
  end if;
  select may_claim, coalesce(bool_or(p.kind <> 'task'), false), array_agg(p.name) filter (where p.kind = 'task'), min(p.until)
  into found
  from job_pauses p
  where p.kind <> 'partition' and is_in_force(true, p.until, present) and case p.kind
    when 'instance' then not by_hand and p.name = (select w.instance from workers w where w.id = worker)
    when 'worker' then p.name = coalesce((select w.label from workers w where w.id = worker and not by_hand), worker)
    else true
  end;
  return found;
end $$;

-- The text of what few jobs have, from the live row, and, closing it, from the body. Built as texts: what JSON holds is never
-- decoded here, so no escape in it can end a claim.
create function extra_of(last_error text, job_key text, flags text[], previous json, crashes smallint) returns text
language sql stable
as $$
  select '{"lastError":' || coalesce(to_json(last_error)::text, 'null') || ',"jobKey":'
    || coalesce(to_json(job_key)::text, 'null') || ',"flags":' || coalesce(to_json(flags)::text, 'null')
    || ',"previous":' || coalesce(previous::text, 'null') || ',"crashes":' || crashes
$$;

create function extra_of_body(job_key_mode text, tags text[], group_id text, depends_on uuid[], timeout_ms integer) returns text
language sql stable
as $$
  select ',"jobKeyMode":' || coalesce(to_json(job_key_mode)::text, 'null') || ',"tags":'
    || coalesce(to_json(tags)::text, 'null') || ',"groupId":' || coalesce(to_json(group_id)::text, 'null')
    || ',"dependsOn":' || coalesce(to_json(depends_on)::text, 'null') || ',"timeoutMs":' || coalesce(timeout_ms::text, 'null') || '}'
$$;

-- How the text of a claimed job begins, as each claim returns it.
create function claimed_head(
  id uuid, fence bigint, priority integer, run_at timestamptz, task text, attempts smallint, max_attempts smallint,
  revision integer
) returns text
language sql stable
as $$
  select concat('["', id, '","', fence, '",', priority, ',', date_part('epoch', run_at) * 1000, ',',
    to_json(task), ',', attempts, ',', max_attempts, ',', revision, ',')
$$;

-- The `extra` of a job of a lane: what most have not is left out.
create function claimed_lane_extra(
  last_error text, job_key text, flags text[], previous json, crashes smallint, queue text, partition text,
  limits text
) returns text
language sql stable
as $$
  select concat('{"queue":', coalesce(to_json(queue)::text, 'null'), ',"partition":' || to_json(partition),
    ',"limits":' || to_json(limits), case
      when last_error is not null or job_key is not null or flags is not null or previous is not null or crashes > 0
      then ',' || substr(extra_of(last_error, job_key, flags, previous, crashes), 2)
    end)
$$;

-- The text of a claimed job of a lane.
create function claimed_lane_text(
  head text, extra text, created_at timestamptz, job_key_mode text, tags text[], group_id text, depends_on uuid[],
  timeout_ms integer, payload json
) returns text
language sql stable
as $$
  select concat(head, coalesce(date_part('epoch', created_at) * 1000, 0), ',', extra, case
      when job_key_mode is null and tags is null and group_id is null and depends_on is null and timeout_ms is null then '}'
      else extra_of_body(job_key_mode, tags, group_id, depends_on, timeout_ms)
    end, ',' || payload, ']')
$$;

-- What most claims are: due jobs without limits, in order (priority, run-at, id). Returns first the time of the claim in
-- ms, then each job as the text of one JSON array, which costs both sides of the wire less than columns: [id, fence,
-- priority, run-at, task, attempts, max attempts, revision, created-at, extra, payload], times in ms, `extra` null or an
-- object of what few jobs have; a job whose body is gone has no payload. Last may come an object { quiet: a stretch of
-- priorities (after, upto] in which nothing is due before `until`; passed: [[priority, run-at, id]], up to where there is nothing
-- for this claim, because tasks are paused; cut: whether it ended there, having read 10,000 jobs; pausedUntil: when the first of
-- the pauses that it has met ends by itself, or null }.
--
-- most_kib: how much the payloads may weigh together, except the first. tasks: only these, or null; other_tasks: not
-- these. lease: null for pools. known_*: the cursor, one position for each priority, best first. quiet_*: such a stretch.
--
-- Indexes: jobs_ready for the walk, then each row by its place, then its body by job_bodies_pkey.
create function claim_plain_jobs(
  worker text, wanted integer, most_kib integer, tasks text[], other_tasks text[], forbidden text[], lease bigint,
  worst_priority integer, known_priorities integer[], known_run_ats timestamptz[], known_ids uuid[],
  quiet_after bigint, quiet_upto bigint
)
returns setof text
language plpgsql
set search_path from current
set lock_timeout = '100ms'
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
  present timestamptz := clock_timestamp();
  pauses claim_pauses;
  at_priority bigint;
  at_run_at timestamptz;
  at_id uuid;
  lower_bound bigint := -2147483649;
  open_places integer := wanted;
  open_kib integer := most_kib;
  claimed_ids uuid[];
  heads text[];
  extras text[];
  kib bigint;
  hops bigint;
  hopped_upto bigint;
  soonest timestamptz;
  quiet json;
  upto_run_at timestamptz;
  upto_id uuid;
  -- Of jobs, while tasks are paused: at once, and in all.
  reads integer;
  reads_left integer := 10000;
  is_cut boolean := false;
  passed json[] := '{}';
  passed_id uuid;
begin
  pauses := pauses_of_claim(worker, lease is not null, present);
  if not pauses.may_claim then
    return;
  end if;
  return next date_part('epoch', present) * 1000;
  if pauses.ends_claim or tasks <@ pauses.tasks then
    if pauses.soonest is not null then
      return next json_build_object('pausedUntil', date_part('epoch', pauses.soonest) * 1000);
    end if;
    return;
  end if;
  other_tasks := other_tasks || pauses.tasks;

  -- For each priority from the cursor's position to now; before it, those that the cursor does not know, hopping from one
  -- to the next that has something due.
  for start in
    select known.priority::bigint, known.run_at, known.id
    from unnest(known_priorities, known_run_ats, known_ids) as known(priority, run_at, id)
    union all
    select 2147483648, null, null
  loop
    loop
      if lower_bound >= quiet_after and lower_bound < quiet_upto then
        lower_bound := least(quiet_upto, start.priority - 1);
      end if;
      select j.priority, j.run_at into at_priority, soonest from jobs j
      where j.parked is null and j.lane is null and j.priority > lower_bound and j.priority < start.priority
      order by j.priority, j.run_at, j.id limit 1;
      if soonest > present then
        with recursive hop(priority, run_at) as (
          select at_priority, soonest
          union all
          select next.priority, next.run_at from hop h cross join lateral (
            select j.priority::bigint as priority, j.run_at from jobs j
            where j.parked is null and j.lane is null
              and j.priority > case when h.priority >= quiet_after and h.priority < quiet_upto
                then quiet_upto else h.priority end
              and j.priority < start.priority
            order by j.priority, j.run_at, j.id limit 1
          ) next
          where h.run_at > present
        )
        select min(h.priority) filter (where h.run_at <= present), count(*),
          max(h.priority) filter (where h.run_at > present), min(h.run_at) filter (where h.run_at > present)
        into at_priority, hops, hopped_upto, soonest from hop h;
        if hops > 16 then
          quiet := json_build_array(lower_bound, hopped_upto, date_part('epoch', soonest) * 1000);
        end if;
      end if;
      if at_priority is not null then
        at_run_at := '-infinity';
        at_id := '00000000-0000-0000-0000-000000000000';
      elsif start.id is not null then
        at_priority := start.priority;
        at_run_at := start.run_at;
        at_id := start.id;
      end if;
      exit when at_priority is null or at_priority > worst_priority;
      lower_bound := at_priority;

      passed_id := null;
      reads := greatest(100, open_places * 2);
      loop
        -- Where tasks are paused, any number of their jobs may lie before the others: so many are passed at once.
        if pauses.tasks is not null then
          reads := least(reads, reads_left);
          select j.run_at, j.id into upto_run_at, upto_id from jobs j
          where j.parked is null and j.lane is null
            and j.priority = at_priority and (j.run_at, j.id) > (at_run_at, at_id) and j.run_at <= present
          order by j.run_at, j.id offset reads - 1 limit 1;
          is_cut := upto_id is not null;
        end if;
        if not is_cut then
          upto_run_at := present;
          upto_id := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
        end if;

        with due as materialized (
          select j.ctid as place, j.payload_kib from jobs j
          where j.parked is null and j.lane is null and j.locked_by is null
            and j.priority = at_priority and (j.run_at, j.id) > (at_run_at, at_id) and (j.run_at, j.id) <= (upto_run_at, upto_id)
            and (tasks is null or j.task = any(tasks)) and (other_tasks is null or j.task <> all(other_tasks))
            and (forbidden is null or j.flags is null or not j.flags && forbidden)
          order by j.run_at, j.id
          limit open_places
          for update skip locked
        ),
        weighed as (
          select d.place, sum(d.payload_kib) over (rows unbounded preceding) - d.payload_kib as kib_before from due d
        ),
        -- By place: each row is locked and was seen by this very statement. One that changed in between is left.
        claimed as (
          update jobs j
          set locked_by = worker, locked_at = present, attempts = j.attempts + 1, fence = j.fence + 1,
            revision = j.revision + 1, snoozed = false, lease_ms = lease,
            lease_expires_at = present + lease * interval '1 ms'
          where j.ctid = any(case
              when (select coalesce(sum(d.payload_kib), 0) from due d) <= open_kib then array(select d.place from due d)
              else array(select w.place from weighed w where w.kib_before <= open_kib)
            end)
          returning j.id, j.payload_kib,
            claimed_head(j.id, j.fence, j.priority, j.run_at, j.task, j.attempts, j.max_attempts, j.revision) as head,
            case
              when j.last_error is not null or j.job_key is not null or j.flags is not null or j.previous is not null
                or j.crashes > 0
              then extra_of(j.last_error, j.job_key, j.flags, j.previous, j.crashes)
            end as extra
        )
        select array_agg(c.id), array_agg(c.head), array_agg(c.extra), sum(c.payload_kib)
        into claimed_ids, heads, extras, kib from claimed c;

        -- A statement of its own, which locks nothing.
        return query
          select concat(c.head, coalesce(date_part('epoch', b.created_at) * 1000, 0), ',', case
              when c.extra is null and b.group_id is null and b.tags is null and b.timeout_ms is null
                and b.depends_on is null then 'null'
              else coalesce(c.extra, extra_of(null, null, null, null, 0::smallint))
                || extra_of_body(b.job_key_mode, b.tags, b.group_id, b.depends_on, b.timeout_ms)
            end, ',' || b.payload, ']')
          from unnest(claimed_ids, heads, extras) as c(id, head, extra)
          left join lateral (select * from job_bodies b where b.id = c.id limit 1) b on true;
        open_places := open_places - coalesce(cardinality(claimed_ids), 0);
        open_kib := open_kib - coalesce(kib, 0);
        exit when not is_cut or open_places <= 0 or open_kib < 0;
        reads_left := reads_left - reads;
        at_run_at := upto_run_at;
        at_id := upto_id;
        passed_id := upto_id;
        exit when reads_left <= 0;
        reads := least(2000, reads * 2);
      end loop;
      is_cut := is_cut and reads_left <= 0;
      if passed_id is not null then
        passed := passed || json_build_array(at_priority, date_part('epoch', at_run_at) * 1000, passed_id);
      end if;
      exit when is_cut or open_places <= 0 or open_kib < 0 or at_priority = start.priority;
    end loop;
    exit when is_cut or at_priority is null or at_priority > worst_priority or open_places <= 0 or open_kib < 0;
  end loop;
  if quiet is not null or cardinality(passed) > 0 or pauses.soonest is not null then
    return next json_build_object('quiet', quiet, 'passed', passed, 'cut', is_cut,
      'pausedUntil', date_part('epoch', pauses.soonest) * 1000);
  end if;
end $$;

-- The best priority, worse than this one, in which a plain job is due, for claims by hand. Index: jobs_ready, one descent for
-- each priority on the way.
create function next_plain_priority(worse_than bigint) returns integer
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  present timestamptz := clock_timestamp();
begin
  if exists (select from job_pauses p where p.kind = 'all' and is_in_force(true, p.until, present)) then
    return null;
  end if;
  return (
    with recursive hop(priority, run_at) as (
      (select j.priority, j.run_at from jobs j
      where j.parked is null and j.lane is null and j.priority > worse_than
      order by j.priority, j.run_at, j.id limit 1)
      union all
      select next.priority, next.run_at from hop h cross join lateral (
        select j.priority, j.run_at from jobs j
        where j.parked is null and j.lane is null and j.priority > h.priority
        order by j.priority, j.run_at, j.id limit 1
      ) next
      where h.run_at > present
    )
    select h.priority from hop h where h.run_at <= present
  );
end $$;

-- Lanes. The small functions below are read into the statements that call them.

-- Where a lane stands in the walk of claim_lane_jobs: by priority, then by name.
create function place_in_walk(priority bigint, lane text) returns text
language sql immutable
as $$ select lpad(to_hex(priority + 2147483649), 9, '0') || lane collate "C" $$;

-- Behind which a walk begins that goes on with a turn: of a partition, with the first of its lanes, because what is earlier goes
-- first in it.
create function before_turn(lane text) returns text
language sql immutable
as $$
  select case split_part(lane, E'\x1f', 2) when '' then left(lane, -1)
    else split_part(lane, E'\x1f', 1) || E'\x1f' || split_part(lane, E'\x1f', 2) end collate "C"
$$;

-- What a partition of a queue has left: of its limit, and of its share in the limit of the queue; nulls: no end. Settings of
-- its own come before those that the queue has for each of them. Indexes: job_partitions_pkey, job_places_of_partitions.
create function room_in_partition(
  queue_name text, partition_name text, queue_concurrency integer, most_each integer, share_each real,
  weight_each smallint, places_from bigint
)
returns table (free integer, share_room integer, weight integer)
language sql stable
as $$
  select limits.most - taken.places, limits.part - taken.places, limits.weight
  from (select) one
  left join lateral (
    select s.* from job_partitions s where s.queue = queue_name and s.partition = partition_name limit 1
  ) own on true
  cross join lateral (
    select nullif(coalesce(own.concurrency, most_each), 2147483647) as most,
      case when queue_concurrency is not null and coalesce(own.share, share_each) is not null
        then greatest(1, ceil(coalesce(own.share, share_each) * queue_concurrency))::integer end as part,
      coalesce(own.weight, weight_each)::integer as weight
  ) limits
  cross join lateral (
    select count(*)::integer as places from (
      select from job_places p
      where p.queue = queue_name and p.partition = partition_name and p.number >= places_from
      limit greatest(limits.most, limits.part, 0)
    ) counted
  ) taken
  where partition_name <> ''
$$;

-- What a lane can give now, as the present snapshot shows it: `state` open, unknown (its queue must be registered),
-- paused or full (its queue is), partition paused or full, or tokens (its rate limits give none `until`); `room`: at most so many jobs;
-- `queue_room`: of those, how many its queue has for all its partitions; `share_room`: how many until its partition has its
-- share; `limited`: by places. An undeclared queue that has partitions has no limit, so one that was taken for another kind
-- must be registered too. `until`: when a pause ends, or tokens come.
create function room_in_lane(lane text, known_room integer, present timestamptz)
returns table (
  queue text, state text, room integer, until timestamptz, limited boolean, is_ahead boolean, queue_room integer,
  share_room integer, weight integer
)
language sql stable
as $$
  select n.queue, case
      when n.queue <> '' and q.name is null then 'unknown'
      when n.partition <> '' and q.concurrency = 1 and not q.configured and q.declared_at is null then 'unknown'
      when is_in_force(q.paused, q.paused_until, present) then 'paused'
      when s.is_paused then 'partition paused'
      when q.free <= 0 then 'full'
      when p.free <= 0 then 'partition full'
      when n.limits <> '' and coalesce(t.jobs, 0) <= 0 then 'tokens'
      else 'open'
    end,
    least(coalesce(q.free, 2147483647), coalesce(p.free, 2147483647), coalesce(t.jobs, 2147483647)), case
      when is_in_force(q.paused, q.paused_until, present) then q.paused_until
      when s.is_paused then s.until
      else t.until
    end, q.limited,
    coalesce(t.is_ahead, false), coalesce(q.free, 2147483647), coalesce(p.share_room, 2147483647), coalesce(p.weight, 1)
  from (
    select split_part(lane, E'\x1f', 1) as queue, split_part(lane, E'\x1f', 2) as partition, split_part(lane, E'\x1f', 3) as limits
  ) n
  left join lateral (
    select q.*, case when q.concurrency is not null then coalesce(known_room, q.concurrency - (
      select count(*)::integer from (
        select from job_places p where p.queue = q.name and p.number >= q.places_from limit q.concurrency
      ) taken
    )) end as free
    from job_queues q where q.name = n.queue limit 1
  ) q on n.queue <> ''
  left join lateral room_in_partition(q.name, n.partition, q.concurrency, q.partition_concurrency, q.partition_share,
    q.partition_weight, q.places_from) p on n.partition <> ''
  left join lateral (
    select true as is_paused, p.until from job_pauses p
    where n.partition <> '' and p.kind = 'partition' and p.name = n.queue and p.partition = n.partition
      and is_in_force(true, p.until, present)
    limit 1
  ) s on true
  -- As a condition of the join, it would not keep the function from being called for each lane.
  left join lateral (select t.* from tokens_for(n.limits, present) t where n.limits <> '' offset 0) t on true
$$;

-- The next priority with jobs in lanes. Where the pool has positions, what lies dead before the first one of a priority is
-- not read: one before it is looked for, and then what lies behind it. Runs within claims, with their planner settings.
-- Index: jobs_lanes.
create function next_priority_of_lanes(
  at_priority bigint, known_places text[], known_run_ats timestamptz[], known_ids uuid[]
) returns bigint
language plpgsql
set search_path from current
as $$
#variable_conflict use_column
declare
  seen bigint := at_priority;
  next_priority bigint;
  at_place integer;
  known_priority bigint;
  known_lane text;
begin
  loop
    at_place := width_bucket(place_in_walk(seen + 1, ''), known_places) + 1;
    exit when known_places[at_place] is null;
    known_priority := ('x' || lpad(left(known_places[at_place], 9), 16, '0'))::bit(64)::bigint - 2147483649;
    known_lane := substr(known_places[at_place], 10);
    select j.priority into next_priority from jobs j
    where j.parked is null and j.lane is not null and j.priority > seen
      and (j.priority, j.lane) < (known_priority, known_lane collate "C")
    order by j.priority, j.lane limit 1;
    if found then
      return next_priority;
    end if;
    if exists (
      select from jobs j
      where j.parked is null and j.lane is not null and j.priority = known_priority
        and (j.lane, j.run_at, j.id) > (known_lane collate "C", known_run_ats[at_place], known_ids[at_place])
    ) then
      return known_priority;
    end if;
    seen := known_priority;
  end loop;
  select j.priority into next_priority from jobs j
  where j.parked is null and j.lane is not null and j.priority > seen
  order by j.priority limit 1;
  return next_priority;
end $$;

-- Due jobs of a lane, behind a position, that a claim for these tasks and flags may take. It passes at most 500 others.
create function due_in_lane(
  at_priority bigint, at_lane text, after_run_at timestamptz, after_id uuid, present timestamptz,
  tasks text[], other_tasks text[], forbidden text[], most_crashes integer
)
returns table (place tid, run_at timestamptz, id uuid)
language sql stable
as $$
  select seen.place, seen.run_at, seen.id from (
    select j.ctid as place, j.run_at, j.id, j.task, j.flags, j.crashes from jobs j
    where j.parked is null and j.lane is not null and j.locked_by is null
      and j.priority = at_priority and j.lane = at_lane and j.run_at <= present
      and (j.run_at, j.id) > (coalesce(after_run_at, '-infinity'), coalesce(after_id, '00000000-0000-0000-0000-000000000000'))
    order by j.run_at, j.id limit 500
  ) seen
  where (tasks is null or seen.task = any(tasks)) and (other_tasks is null or seen.task <> all(other_tasks))
    and (forbidden is null or seen.flags is null or not seen.flags && forbidden)
    and (most_crashes is null or seen.crashes <= most_crashes)
$$;

-- Of lanes whose queues or partitions are full, those for which places are freed now, because their claims are over. Looks at
-- the first 20 places of the first 20 of them: a claim must not pay for more, and the sweep looks at all. A claim that has
-- just begun shows its place and its lock to one snapshot. Of a queue with partitions all lanes are named, by how they begin. Indexes: job_queues_pkey, job_places_pkey, job_places_of_partitions, jobs_pkey.
create function lanes_freed_of_dead_places(full_lanes text[]) returns text[]
language plpgsql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  dead tid[];
  freed text[];
begin
  dead := array(
    select p.place
    from (
      select distinct split_part(l, E'\x1f', 1) collate "C" as queue, split_part(l, E'\x1f', 2) collate "C" as partition
      from unnest(full_lanes[1:20]) l
    ) n
    cross join lateral (select q.name, q.places_from from job_queues q where q.name = n.queue limit 1) q
    cross join lateral (
      (select p.ctid as place, p.job_id, p.fence from job_places p
      where p.queue = q.name and p.number >= q.places_from order by p.number limit 20)
      union all
      (select p.ctid, p.job_id, p.fence from job_places p
      where n.partition <> '' and p.queue = q.name and p.partition = n.partition and p.number >= q.places_from
      order by p.number limit 20)
    ) p
    where not exists (select from jobs j where j.id = p.job_id and j.fence = p.fence and j.locked_by is not null)
  );
  if cardinality(dead) = 0 then
    return '{}';
  end if;
  with gone as (
    delete from job_places p where p.ctid = any(array(
      select o.ctid from job_places o where o.ctid = any(dead)
        and not exists (select from jobs j where j.id = o.job_id and j.fence = o.fence and j.locked_by is not null)
      for update skip locked
    )) returning p.queue
  )
  select array_agg(case when split_part(l, E'\x1f', 2) <> '' then split_part(l, E'\x1f', 1) || E'\x1f' else l end)
  into freed from unnest(full_lanes) l
  where split_part(l, E'\x1f', 1) in (select g.queue from gone g);
  return coalesce(freed, '{}');
end $$;

-- Counts of places need not read what is long gone: their start moves on once in some hundred places. The caller has locked
-- the queues. Indexes: job_queues_pkey, job_places_pkey.
create function move_places_from(held_queues text[]) returns void
language sql
set search_path from current
as $$
  update job_queues q set places_from = coalesce((
    select p.number from job_places p where p.queue = q.name and p.number >= q.places_from
    order by p.number limit 1), q.places_from)
  where q.name = any(held_queues) and q.limited
$$;

-- Claims due jobs of lanes, for free slots: priorities best first; in one priority fair turns over the lanes that can run,
-- beginning behind the lane that got a job last; in a lane by run-at and id, among jobs that others do not hold (spare_*: in
-- which lanes to try how many more than are wanted, because they do). In one circle, from the first lane of a priority to the
-- last, each gets as many jobs as the circle's share times its weight, in as many claims as that takes. What cannot give now (a queue
-- that is full or paused, a limit without tokens) costs one hop, however much waits in it. Returns as claim_plain_jobs,
-- `extra` with the queue and the rate limit, and last an object
-- { priority: the last one served; turns: in priorities served, [the place of the last lane that got a job, how many more it
--   may get before its turn is over, the share of the circle, how many lanes a whole circle has served, by weight, or 0, how many
--   jobs the circle has brought here, whether it began here]; more: there is probably more to claim now;
--   lanes: how many were served, by weight; cut: of queues whose partitions took all that the queue could give, or that this claim wanted, [the place of the last lane that
--   got a job, how many more it may get]; ended: queues walked to their end: their turns begin again; full: queues that are full or paused themselves;
--   blocked: [[after, upto, until or null]], stretches of the walk in which nothing can be claimed now;
--   held: lanes of which others hold what is needed; heldStretches: where those lie that gave nothing, if it has looked at as many
--   lanes as it may: [[after, upto]], or null; resumes: where the next look goes on if this one came to as many lanes as it may, and
--   up to which lane of that priority, or null; tokensAt: when the first of the lanes that have none left gets some, or null; crowded: those that gave nothing, because others hold jobs; unknown: queues to register;
--   passed: [[place, run-at, id]], up to where a lane holds nothing for this claim; due: lanes that became due; pausedUntil;
--   ms: how long it took }.
--
-- most_crashes: only jobs that have crashed at most so often. only_queue: only lanes of this queue. turns, turns_left,
-- turn_shares: as reported, one for each priority; each goes on by itself, so that what is served in one does not end the turns
-- of another. next_shares: of the circles that come next. queue_turns, queue_turns_left: what was reported as `cut`, in order:
-- such a queue is entered at that lane, wherever the walk comes from, so that its last partitions get their turns although
-- others fill it each time. skip_*: such stretches
-- (after, upto] as the pool remembers them, in order; told: beginnings of lanes to look at all the same, in order;
-- due_since: also lanes in which something became due since. known_*: positions in lanes behind which to read, in order of
-- the walk. resume_at, resume_upto: what the look before has told, or nulls. unregistered: queues that could not be registered, because others hold their names.
--
-- A queue that has no row yet may be of any kind, so it gives nothing, and ends the walk: what comes after it is not taken
-- before it. The look goes on for the names of others like it, so that all of them are registered at once.
--
-- A look locks nothing: it hops along jobs_lanes, one descent a lane, and brings the places of due rows. Then queues and
-- rate limits are locked, those that others hold skipped, and the next statement, with a snapshot younger than the locks,
-- counts again and checks every condition again. Limited queues are locked by their rows; a shared advisory lock on an
-- unlimited one keeps a pause or a limit from committing meanwhile (see edit_queue).
-- Where a queue is full, places in it whose claims are over are deleted. A limit's state in the future is set back.
-- Indexes: jobs_lanes, jobs_due_in_lanes; the primary keys of job_queues, job_places, rate_limits, rate_limit_states.
create function claim_lane_jobs(
  worker text, wanted integer, tasks text[], other_tasks text[], forbidden text[],
  most_crashes integer, lease bigint, worst_priority integer, only_queue text, turns text[], turns_left integer[],
  turn_shares integer[], next_shares integer[], queue_turns text[], queue_turns_left integer[], skip_after text[], skip_upto text[], told text[], due_since timestamptz,
  known_places text[], known_run_ats timestamptz[], known_ids uuid[], spare_lanes text[], spares integer[],
  resume_at text, resume_upto text, hop_limit integer, unregistered text[] default '{}'
)
returns setof text
language plpgsql
set search_path from current
set lock_timeout = '100ms'
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
  present timestamptz := clock_timestamp();
  pauses claim_pauses;
  open_places integer := wanted;
  -- Whether some lane has more than its share.
  was_cut boolean;
  was_stopped boolean := false;
  hops_left integer := hop_limit;
  at_priority bigint := -2147483649;
  at_lane text;
  -- Of the walk within a priority: lanes of one queue, or all; a queue's lanes all begin with its name and \x1f.
  first_lane text := coalesce(only_queue || E'\x1f', '');
  turn_lane text;
  turn_left integer;
  turn_share integer;
  next_share integer;
  lane_left integer;
  -- Where the walk over the priority began: another look, that came to as many lanes as it may, has walked what lies between.
  walk_from text;
  resumed_lane text;
  leg_from text;
  leg_upto text;
  leg_share integer;
  -- Whatever the shares are.
  is_beyond boolean;
  leg_jobs integer;
  begins_circle boolean;
  -- The lanes that had something, by weight: of the rest of a circle that an earlier claim began, of the last whole one, and of
  -- one before.
  leg_weights integer;
  rest_weights integer;
  circle_weights integer;
  known_weights integer;
  circle_jobs integer := 0;
  ranges_known boolean := cardinality(skip_after) > 0;
  due_lanes text[];
  merged text[];
  told_lane text;
  known_lanes text[];
  -- Not named as columns of the look: those come first.
  known_lane_run_ats timestamptz[];
  known_lane_ids uuid[];
  look record;
  held_queues text[];
  held_limits text[];
  taken record;
  served integer := 0;
  served_priority bigint;
  served_lane text;
  served_left integer;
  served_share integer;
  served_jobs integer;
  served_first boolean;
  served_turns json[] := '{}';
  known_turns text[];
  known_turns_left integer[];
  cut_turns json[] := '{}';
  entered text[];
  walked text[];
  ended text[] := '{}';
  full_queues text[] := '{}';
  next_priority bigint;
  next_lane text;
  hidden_upto text;
  afters text[] := '{}';
  uptos text[] := '{}';
  untils timestamptz[] := '{}';
  blocked record;
  held text[] := '{}';
  held_stretches json[] := '{}';
  resumes json;
  tokens_at timestamptz;
  crowded text[] := '{}';
  unknown text[] := '{}';
  passed json[] := '{}';
begin
  pauses := pauses_of_claim(worker, lease is not null, present);
  if not pauses.may_claim then
    return;
  end if;
  return next date_part('epoch', present) * 1000;
  if pauses.ends_claim or tasks <@ pauses.tasks then
    if pauses.soonest is not null then
      return next json_build_object('pausedUntil', date_part('epoch', pauses.soonest) * 1000);
    end if;
    return;
  end if;
  other_tasks := other_tasks || pauses.tasks;
  if resume_at is not null then
    at_priority := ('x' || lpad(left(resume_at, 9), 16, '0'))::bit(64)::bigint - 2147483649 - 1;
  end if;

  if ranges_known then
    select array_agg(distinct d.lane) into due_lanes from (
      select j.lane from jobs j
      where j.parked is null and j.lane is not null and j.run_at > due_since and j.run_at <= present
      order by j.run_at limit 500
    ) d;
    -- Among so many, skipping no more pays.
    ranges_known := coalesce(cardinality(due_lanes), 0) < 100;
    -- What a shorter beginning covers is left out: so the one before a lane tells whether any covers it.
    merged := array(select distinct t collate "C" from unnest(told || due_lanes) t order by 1);
    told := merged[1:1];
    foreach told_lane in array merged[2:] loop
      if not starts_with(told_lane, told[cardinality(told)]) then
        told := told || told_lane;
      end if;
    end loop;
  end if;

  <<priorities>>
  loop
    loop
      next_priority := next_priority_of_lanes(at_priority, known_places, known_run_ats, known_ids);
      exit priorities when next_priority is null or next_priority > worst_priority;
      -- Between two priorities there is nothing: a stretch that reached the end of one reaches the next.
      if uptos[cardinality(uptos)] = place_in_walk(at_priority + 1, '') then
        uptos[cardinality(uptos)] := place_in_walk(next_priority, '');
      end if;
      at_priority := next_priority;
      exit when not ranges_known or cardinality(told) > 0;
      select r.upto into hidden_upto from unnest(skip_after, skip_upto) r(after, upto)
      where r.after <= place_in_walk(at_priority, '') and r.upto >= place_in_walk(at_priority + 1, '') collate "C";
      exit when not found;
      at_priority := ('x' || lpad(left(hidden_upto, 9), 16, '0'))::bit(64)::bigint - 2147483649 - 1;
    end loop;
    select substr(t.place, 10), t.more, t.share, t.next into turn_lane, turn_left, turn_share, next_share
    from unnest(turns, turns_left, turn_shares, next_shares) t(place, more, share, next)
    where starts_with(t.place, place_in_walk(at_priority, '')) limit 1;
    turn_lane := coalesce(turn_lane, first_lane);
    next_share := coalesce(next_share, 1);
    -- But where the turn itself lies in it.
    select array_agg(substr(t.place, 10) order by t.nth), array_agg(t.more order by t.nth) into known_turns, known_turns_left
    from unnest(queue_turns, queue_turns_left) with ordinality t(place, more, nth)
    where starts_with(t.place, place_in_walk(at_priority, ''))
      and not starts_with(turn_lane, split_part(substr(t.place, 10), E'\x1f', 1) || E'\x1f');
    select array_agg(substr(k.place, 10) order by k.nth), array_agg(k.run_at order by k.nth), array_agg(k.id order by k.nth)
    into known_lanes, known_lane_run_ats, known_lane_ids
    from unnest(known_places, known_run_ats, known_ids) with ordinality k(place, run_at, id, nth)
    where starts_with(k.place, place_in_walk(at_priority, ''));

    -- The rest of the circle that an earlier claim began, then circles of its own, as long as one brings something and some lane
    -- has more: what is left of this priority goes before all that is worse. Each shares equally what is left. The last one knows
    -- no shares.
    walk_from := turn_lane;
    resumed_lane := null;
    -- Without an end, it is the next priority that begins, at its own turn.
    if resume_upto is not null and starts_with(resume_at, place_in_walk(at_priority, '')) then
      resumed_lane := substr(resume_at, 10);
      walk_from := resume_upto;
    end if;
    was_cut := false;
    is_beyond := false;
    entered := '{}';
    circle_weights := 0;
    rest_weights := 0;
    known_weights := 0;
    served_lane := null;
    <<circles>>
    for leg in 1..6 loop
      exit when is_beyond or not was_cut and (leg > 2 or leg = 2 and walk_from = first_lane);
      -- Behind where it began, the look before has walked.
      continue when leg = 1 and resumed_lane < walk_from collate "C";
      if entered <> '{}' then
        select array_agg(k.place order by k.nth), array_agg(k.more order by k.nth) into known_turns, known_turns_left
        from unnest(known_turns, known_turns_left) with ordinality k(place, more, nth)
        where split_part(k.place, E'\x1f', 1) <> all(entered);
      end if;
      leg_from := case
        when resumed_lane is not null and (leg = 1 or leg = 2 and resumed_lane < walk_from collate "C") then resumed_lane
        when leg > 1 then first_lane
        when turn_left > 0 then before_turn(turn_lane)
        else turn_lane
      end;
      -- Those behind the turn have no more.
      leg_upto := case when leg = 2 and not was_cut then walk_from end;
      begins_circle := leg > 1 or turn_lane = first_lane;
      if leg = 2 and turn_lane <> first_lane and resumed_lane is null and split_part(turn_lane, E'\x1f', 1) <> all(full_queues) then
        ended := ended || place_in_walk(at_priority, split_part(turn_lane, E'\x1f', 1) || E'\x1f');
      end if;
      is_beyond := leg > 2 and (leg = 6 or leg_jobs = 0);
      leg_share := case
        when is_beyond then wanted
        when not begins_circle then greatest(1, turn_share)
        when circle_weights = 0 then next_share
        else (open_places + circle_weights - 1) / circle_weights
      end;
      if begins_circle then
        circle_jobs := 0;
      end if;
      leg_jobs := 0;
      leg_weights := 0;
      circle_weights := 0;
      was_cut := false;
      continue when leg_from >= leg_upto collate "C";
      -- Where no lane lies, a look would find none. Positions spare this one the dead rows that it would read.
      if not exists (select from unnest(known_lanes) k where k > leg_from collate "C") then
        select j.lane into next_lane from jobs j
        where j.parked is null and j.lane is not null and j.priority = at_priority and j.lane > leg_from
        order by j.lane limit 1;
        continue when not found or next_lane > leg_upto collate "C";
      end if;
      loop
        with recursive hop(lane, pos, came_from, queue, queue_room, branch, state, until, is_ahead, limited, places, run_ats, ids, quota, weight, got, hops,
          of_branch, of_queue, filled, queue_filled, wrap_upto, is_wrapped, is_cut, stops, blocked_after) as (
          select leg_from collate "C", leg_from collate "C", leg_from collate "C", null::text collate "C", null::integer, null::text collate "C", null::text, null::timestamptz, false, false,
            null::tid[], null::timestamptz[], null::uuid[], 0, 0, 0, 0, 0, 0, false, false, null::text collate "C", false, false, false, null::text collate "C"
          union all
          select case when o.returns_to is null then n.lane else coalesce(n.lane, h.lane) end, case
              when o.returns_to is not null then o.returns_to
              when o.leaves then h.queue || ' '
              when r.state in ('full', 'paused') and o.in_partition then r.queue || ' '
              when o.enters_at is not null then o.enters_at
              else n.lane
            end, h.pos, coalesce(case when o.returns_to is not null then h.queue end, r.queue, u.queue, case when o.enters_at is not null then split_part(n.lane, E'\x1f', 1) end),
            coalesce(r.queue_room, case when u.queue is not null or o.returns_to is not null then h.queue_room end), o.branch,
            case
              when o.returns_to is not null then 'returned'
              when o.leaves then 'left'
              when o.enters_at is not null then 'entered'
              when r.state = 'open' and w.branch_room <= 0 then 'behind'
              when h.stops and r.state <> 'unknown' then 'behind'
              when r.state = 'open' and w.quota <= 0 then 'share'
              else coalesce(r.state, 'skipped')
            end, r.until, r.is_ahead, r.limited, d.places, d.run_ats, d.ids, w.quota, r.weight,
            h.got + g.got, h.hops + 1, u.of_branch + g.of_branch,
            case when o.returns_to is not null then h.of_queue else u.of_queue + g.of_branch end,
            coalesce(r.limited and u.of_branch + g.found >= w.branch_room, false) or (u.branch is not null and h.filled),
            coalesce(r.limited and u.of_queue + g.of_branch >= r.queue_room, u.queue is not null and h.queue_filled),
            case
              when o.enters_at is not null then o.turn
              when u.queue is not null or o.returns_to is not null then h.wrap_upto
            end,
            o.returns_to is not null or (h.is_wrapped and u.queue is not null and not o.leaves),
            coalesce(r.state = 'open' and w.quota < w.branch_room and (w.quota <= 0 or g.found >= w.quota), false),
            h.stops or coalesce(r.state = 'unknown' and r.queue || case when o.in_partition then E'\x1f' else '' end <> all(unregistered), false),
            case when not h.stops and o.enters_at is null and o.returns_to is null and not o.leaves
                and (r.state is null or (r.state <> 'unknown' and d.places is null and not (r.state = 'open' and least(w.quota, w.branch_room) <= 0)))
              then coalesce(h.blocked_after, place_in_walk(at_priority, h.pos)) end
          from hop h
          -- `offset 0` keeps what a subquery computes from being written out, again and again, wherever it is used: that made
          -- the plan so large that beginning it took longer than running it.
          -- The next lane: one before the next in which the pool has a position, or that one, so that what lies dead before
          -- the position need not be read. Behind a queue whose partitions have been proposed all that it can give.
          cross join lateral (
            select case when h.queue_filled and h.of_branch = 0 and h.branch <> h.queue || E'\x1f\x1f' then h.queue || ' ' else h.pos end
              collate "C" as pos
            offset 0
          ) f
          cross join lateral (
            select known_lanes[width_bucket(f.pos, known_lanes) + 1] as lane offset 0
          ) k
          cross join lateral (
            select coalesce((
              select j.lane from jobs j
              where j.parked is null and j.lane is not null and (j.priority, j.lane) > (at_priority, f.pos)
                and (j.priority, j.lane) < (at_priority + case when k.lane is null then 1 else 0 end, coalesce(k.lane, ''))
              order by j.priority, j.lane limit 1
            ), k.lane) as lane offset 0
          ) x
          -- The stretch it lies in, and the first lane from there on that is told of.
          left join lateral (
            select skip_upto[b] as upto from (
              select p.place, width_bucket(p.place, skip_after) as b
              from (select place_in_walk(at_priority, x.lane) as place offset 0) p offset 0
            ) p
            where b > 0 and p.place > skip_after[b] and p.place <= skip_upto[b]
          ) skip on ranges_known
          left join lateral (
            select case when starts_with(x.lane, told[b]) then x.lane else told[b + 1] end as lane from width_bucket(x.lane, told) b
          ) e on skip.upto is not null
          cross join lateral (
            select case
                when skip.upto is null then x.lane
                when place_in_walk(at_priority, e.lane) <= skip.upto then e.lane
                -- To the end of the stretch; null: of the priority.
                when skip.upto < place_in_walk(at_priority + 1, '') then substr(skip.upto, 10)
              end as lane,
              coalesce(skip.upto is not null and (e.lane is null or place_in_walk(at_priority, e.lane) > skip.upto), false)
                as skipped
            offset 0
          ) n
          -- Lanes of one queue lie side by side, and in it those of one partition: a branch. Each lane proposes what its branch
          -- could take, and the earliest are taken.
          cross join lateral (
            select case when q.same then h.queue end as queue, case when b.same then h.branch end as branch,
              case when q.same then h.of_queue else 0 end as of_queue, case when b.same then h.of_branch else 0 end as of_branch
            from (select h.queue <> '' and starts_with(n.lane, h.queue || E'\x1f') as same offset 0) q,
              (select h.branch is not null and starts_with(n.lane, h.branch) as same offset 0) b
            offset 0
          ) u
          cross join lateral (
            -- A queue with a turn of its own is entered at it, walked to its end, and then from its beginning to the turn.
            select p.branch, p.in_partition, known_turns[t.b] as turn, case
                when w.returns_to is null and p.in_partition and u.queue is null and not n.skipped
                  and known_turns[t.b] >= n.lane collate "C"
                  and starts_with(known_turns[t.b], split_part(n.lane, E'\x1f', 1) || E'\x1f')
                then case when known_turns_left[t.b] > 0 then before_turn(known_turns[t.b]) else known_turns[t.b] end
              end as enters_at, w.returns_to,
              coalesce(h.is_wrapped and u.queue is not null and n.lane > h.wrap_upto collate "C", false) as leaves
            from (
              select case when h.wrap_upto is not null and not h.is_wrapped and u.queue is null and not h.queue_filled
                then h.queue || E'\x1f' end as returns_to offset 0
            ) w
            cross join lateral (
              select split_part(n.lane, E'\x1f', 2) <> '' as in_partition,
                nullif(split_part(n.lane, E'\x1f', 1) || E'\x1f' || split_part(n.lane, E'\x1f', 2) || E'\x1f', E'\x1f\x1f') as branch
              offset 0
            ) p
            cross join lateral (
              select width_bucket((split_part(n.lane, E'\x1f', 1) || E'\x1f') collate "C", known_turns) + 1 as b
              offset 0
            ) t
            offset 0
          ) o
          left join lateral (
            select * from room_in_lane(n.lane, case when u.queue is not null then h.queue_room end, present) offset 0
          ) r on not n.skipped and o.enters_at is null and o.returns_to is null and not o.leaves
          cross join lateral (
            select least(r.room, r.queue_room - u.of_queue + u.of_branch) as branch_room,
              case
                when is_beyond then wanted
                when leg = 1 and n.lane = turn_lane and turn_left > 0 then least(turn_left, r.share_room)
                when own.more > 0 and not h.is_wrapped then least(own.more, r.share_room)
                -- Of a queue that has less than is wanted: at first one, then as much less.
                when o.in_partition then least(r.share_room, r.weight * case
                    when r.queue_room >= wanted then leg_share
                    when leg > 2 then greatest(1, leg_share::bigint * r.queue_room / wanted)
                    else 1
                  end)::integer
                else leg_share
              end as quota
            from (
              select case when known_turns[t.b] = n.lane then known_turns_left[t.b] end as more
              from width_bucket(n.lane, known_turns) t(b)
            ) own
            offset 0
          ) w
          left join lateral (
            select array_agg(due.place) as places, array_agg(due.run_at) as run_ats, array_agg(due.id) as ids from (
              select due.place, due.run_at, due.id from (
                select width_bucket(n.lane, known_lanes) as b offset 0
              ) p
              cross join lateral due_in_lane(at_priority, n.lane,
                case when known_lanes[p.b] = n.lane then known_lane_run_ats[p.b] end,
                case when known_lanes[p.b] = n.lane then known_lane_ids[p.b] end, present, tasks, other_tasks, forbidden, most_crashes) due
              limit least(w.branch_room, open_places - h.got + u.of_branch, w.quota)
                + coalesce((select spares[s.b] from width_bucket(n.lane, spare_lanes) s(b) where spare_lanes[s.b] = n.lane), 0)
            ) due
          ) d on r.state = 'open' and not h.stops and least(w.branch_room, w.quota) > 0
          cross join lateral (
            select c.found, greatest(0, least(c.found, w.branch_room - u.of_branch, w.quota)) as got,
              greatest(0, least(w.branch_room - u.of_branch, c.found)) as of_branch
            from (select coalesce(cardinality(d.places), 0) as found offset 0) c
            offset 0
          ) g
          -- Where a branch's places are all proposed, its other lanes may hold what is earlier: the walk ends behind them.
          where h.lane is not null and (h.got < open_places or h.filled) and (h.got < open_places or u.branch is not null)
            and h.hops < hops_left and (o.returns_to is not null or (n.lane is not null or n.skipped)
              and (leg_upto is null or n.lane <= leg_upto) and (only_queue is null or starts_with(n.lane, first_lane)))
        )
        select l.*, p.* into look from (
          select max(h.hops) as hops, bool_or(h.is_cut) as is_cut, max(h.pos) as lane,
          bool_or(h.lane is null) as ended,
          array_agg(h.branch) filter (where h.filled) as filled_branches,
          array_agg(h.lane order by h.hops) filter (where h.places is not null) as lanes,
          array_agg(h.came_from order by h.hops) filter (where h.places is not null) as came_from,
          array_agg(h.limited order by h.hops) filter (where h.places is not null) as limited,
          array_agg(h.quota order by h.hops) filter (where h.places is not null) as quotas,
          sum(h.weight) filter (where h.places is not null) as weights,
          array_agg(distinct h.queue || case when split_part(h.lane, E'\x1f', 2) <> '' then E'\x1f' else '' end)
            filter (where h.state = 'unknown') as unknown,
          array_agg(h.lane) filter (where h.state in ('full', 'partition full')) as full_lanes,
          array_agg(distinct h.queue) filter (where h.state in ('full', 'paused') and h.pos <> h.lane) as full_queues,
          array_agg(h.queue) filter (where h.state = 'entered') as entered,
          array_agg(distinct h.queue) filter (where h.queue_filled and h.places is not null and split_part(h.lane, E'\x1f', 2) <> '') as cut_queues,
          array_agg(h.lane) filter (where h.state = 'tokens' and h.is_ahead) as ahead,
          array_agg(h.lane) filter (where h.state = 'open' and h.places is null) as empty,
          array_agg(h.blocked_after order by h.hops) filter (where h.blocked_after is not null) as afters,
          array_agg(place_in_walk(at_priority + case when h.lane is null then 1 else 0 end, coalesce(h.pos, '')) order by h.hops)
            filter (where h.blocked_after is not null) as uptos,
          array_agg(h.until order by h.hops) filter (where h.blocked_after is not null) as untils,
          (array_agg(h.blocked_after order by h.hops desc))[1] is not null and leg_upto is null
            and max(h.hops) < hops_left and max(h.got) < open_places as ends_blocked,
          max(h.got) >= open_places or max(h.hops) >= hops_left as is_short, bool_or(h.stops) as is_stopped
        from hop h
        ) l
        cross join (
          -- What is proposed, in the order of the walk. lane_nths: in which of `lanes` each lies.
          select array_agg(u.place) as places, array_agg(x.nth) as lane_nths, array_agg(u.run_at) as run_ats, array_agg(u.id) as ids
          from (
            select h.places, h.run_ats, h.ids, row_number() over (order by h.hops)::integer as nth
            from hop h where h.places is not null
          ) x
          cross join lateral unnest(x.places, x.run_ats, x.ids) u(place, run_at, id)
        ) p;
        for blocked in
          select b.after, max(b.upto collate "C") as upto, min(b.until) as until
          from unnest(look.afters, look.uptos, look.untils) b(after, upto, until) group by b.after order by b.after collate "C"
        loop
          if uptos[cardinality(uptos)] = blocked.after then
            uptos[cardinality(uptos)] := blocked.upto;
            untils[cardinality(uptos)] := least(untils[cardinality(uptos)], blocked.until);
          else
            afters := afters || blocked.after;
            uptos := uptos || blocked.upto;
            untils := untils || blocked.until;
          end if;
        end loop;
        -- The priority has no more lanes: the stretch reaches its end.
        if look.ends_blocked then
          uptos[cardinality(uptos)] := place_in_walk(at_priority + 1, '');
        end if;
        hops_left := hops_left - look.hops;
        was_cut := was_cut or look.is_cut;
        leg_weights := leg_weights + coalesce(look.weights, 0);
        walked := array(select e from unnest(look.entered) e where e <> all(coalesce(look.cut_queues, '{}')));
        was_cut := was_cut or walked <> '{}' and look.is_short;
        entered := entered || walked;
        ended := ended || array(select place_in_walk(at_priority, e || E'\x1f') from unnest(walked) e);
        full_queues := full_queues || look.full_queues;
        unknown := unknown || look.unknown;
        was_stopped := look.is_stopped;
        -- A full queue may be full of places whose claims are over: with those gone, its lanes are looked at again at once.
        if look.full_lanes is not null then
          held := held || lanes_freed_of_dead_places(look.full_lanes);
        end if;
        if look.ahead is not null then
          perform set_back_states(array_agg(l.key), array_agg(l.by_value))
          from unnest(look.ahead) a(lane) cross join lateral limits_of(split_part(a.lane, E'\x1f', 3)) l;
        end if;
        at_lane := case when not look.ended then look.lane end;
        if look.empty is not null and (tasks is not null or other_tasks is not null or forbidden is not null or most_crashes is not null) then
          passed := passed || array(
            select json_build_array(place_in_walk(at_priority, e.lane), seen.run_at, seen.id)
            from unnest(look.empty) e(lane) cross join lateral (
              select j.run_at, j.id from jobs j
              where j.parked is null and j.lane is not null and j.locked_by is null
                and j.priority = at_priority and j.lane = e.lane and j.run_at <= present and (j.run_at, j.id) > (
                  coalesce((select known_lane_run_ats[b] from width_bucket(e.lane, known_lanes) b where known_lanes[b] = e.lane), '-infinity'),
                  coalesce((select known_lane_ids[b] from width_bucket(e.lane, known_lanes) b where known_lanes[b] = e.lane), '00000000-0000-0000-0000-000000000000'))
              order by j.run_at, j.id offset 499 limit 1
            ) seen
          );
        end if;

        if look.lanes is not null then
          -- Nothing waits here: what others hold is left to them.
          held_queues := array(
            select n.queue from (
              select distinct split_part(l.lane, E'\x1f', 1) collate "C" as queue, l.limited
              from unnest(look.lanes, look.limited) l(lane, limited) order by 1
            ) n
            where n.queue <> '' and case
              when n.limited then exists (
                select from job_queues q where q.name = n.queue for no key update skip locked)
              else pg_try_advisory_xact_lock_shared(lock_named('queue', n.queue))
            end
          );
          held_limits := array(
            select n.key || E'\x1d' || n.by_value from (
              select distinct k.key collate "C" as key, k.by_value collate "C" as by_value
              from unnest(look.lanes) l(lane) cross join lateral limits_of(split_part(l.lane, E'\x1f', 3)) k
              order by 1, 2
            ) n
            where n.key <> '' and try_tokens(n.key, n.by_value)
          );

          -- A statement of its own: its snapshot is younger than the locks, so it sees every place and every token that was
          -- taken. What was read before the locks is a proposal; each condition is looked at again.
          with queues as materialized (
            select q.name, q.limited, case
                when is_in_force(q.paused, q.paused_until, present) then 0
                when q.concurrency is null then 2147483647
                else q.concurrency - (
                  select count(*)::integer from (
                    select from job_places p where p.queue = q.name and p.number >= q.places_from limit q.concurrency
                  ) taken
                )
              end as room
            from unnest(held_queues) n(name) cross join lateral (select * from job_queues q where q.name = n.name limit 1) q
          ),
          -- What the partition of each lane has left; null: of none, or its queue is held.
          partitions as materialized (
            select array_agg(b.room order by l.nth) as rooms
            from unnest(look.lanes) with ordinality l(lane, nth)
            left join lateral (
              select coalesce(p.free, 2147483647) as room
              from (
                select split_part(l.lane, E'\x1f', 1) as queue, split_part(l.lane, E'\x1f', 2) as partition offset 0
              ) n
              cross join lateral (
                select * from job_queues q where n.partition <> '' and q.name = n.queue and q.name = any(held_queues) limit 1
              ) q
              cross join lateral room_in_partition(q.name, n.partition, q.concurrency, q.partition_concurrency, q.partition_share,
                q.partition_weight, q.places_from) p
            ) b on true
          ),
          states as materialized (
            select t.* from unnest(held_limits) n(name)
            cross join lateral tokens_of(split_part(n.name, E'\x1d', 1), split_part(n.name, E'\x1d', 2), clock_timestamp()) t
          ),
          -- How many jobs of a lane its limits let in, were it alone. One that others hold gives none.
          limits as materialized (
            select l.lane, min(coalesce(s.tokens, 0) / k.weight) as jobs, bool_or(s.key is null) as are_held
            from unnest(look.lanes) l(lane)
            cross join lateral limits_of(split_part(l.lane, E'\x1f', 3)) k
            left join lateral (select s.* from states s where s.key = k.key and s.by_value = k.by_value limit 1) s on true
            where k.key <> '' group by l.lane
          ),
          proposals as materialized (
            select p.place, l.lane, p.run_at, p.id, p.nth, split_part(l.lane, E'\x1f', 1) as queue,
              split_part(l.lane, E'\x1f', 2) as partition, split_part(l.lane, E'\x1f', 3) as limits,
              look.limited[p.lane_nth] as limited, look.quotas[p.lane_nth] as quota, b.rooms[p.lane_nth] as branch_room
            from unnest(look.places, look.lane_nths, look.run_ats, look.ids) with ordinality p(place, lane_nth, run_at, id, nth)
            cross join lateral (select look.lanes[p.lane_nth] as lane offset 0) l
            cross join partitions b
          ),
          possible as materialized (
            select p.*, coalesce(q.room, 2147483647) as room, coalesce(t.jobs, 2147483647) as tokens
            from proposals p
            left join lateral (
              select q.room from queues q where q.name = p.queue and q.limited is not distinct from p.limited limit 1
            ) q on p.queue <> ''
            left join lateral (select t.jobs from limits t where t.lane = p.lane limit 1) t on p.limits <> ''
            where (p.queue = '' or q.room > 0) and (p.partition = '' or p.branch_room > 0) and (p.limits = '' or t.jobs > 0)
          ),
          locked as materialized (
            select p.* from possible p
            cross join lateral (
              select from jobs j
              where j.ctid = p.place and j.lane = p.lane and j.priority = at_priority and j.parked is null
                and j.locked_by is null and j.run_at <= present
                and (tasks is null or j.task = any(tasks)) and (other_tasks is null or j.task <> all(other_tasks))
                and (forbidden is null or j.flags is null or not j.flags && forbidden)
                and (most_crashes is null or j.crashes <= most_crashes)
              limit 1 for update skip locked
            ) j
          ),
          -- The earliest of each partition that others do not hold, and of a queue without partitions; of the others partition by
          -- partition as they were met; then as many as there are tokens.
          in_branches as materialized (
            select l.*, row_number() over (partition by l.queue, l.partition order by l.run_at, l.id) as nth_of_branch,
              row_number() over (partition by l.lane order by l.run_at, l.id) as nth_of_lane,
              min(l.nth) over (partition by l.queue, l.partition) as branch_from
            from locked l
          ),
          in_queues as materialized (
            select b.*, row_number() over (partition by b.queue order by b.branch_from, b.run_at, b.id) as nth_of_queue
            from in_branches b
            where b.nth_of_lane <= least(b.quota, b.tokens) and (b.partition = '' or b.nth_of_branch <= b.branch_room)
          ),
          with_places as materialized (
            select q.* from in_queues q where q.queue = '' or q.nth_of_queue <= q.room
          ),
          -- What those before a job may take counts as taken, whether or not they get all that they need.
          without_tokens as materialized (
            select w.place from (
              select p.place, k.key, k.by_value, sum(k.weight) over (partition by k.key, k.by_value order by p.nth) as weight
              from with_places p cross join lateral limits_of(p.limits) k where p.limits <> ''
            ) w
            where w.weight > coalesce((select s.tokens from states s where s.key = w.key and s.by_value = w.by_value limit 1), 0)
          ),
          due as materialized (
            select p.place, p.lane, p.limited, p.nth from with_places p
            where p.limits = '' or p.place not in (select w.place from without_tokens w)
            order by p.nth limit open_places
          ),
          claimed as (
            update jobs j
            set locked_by = worker, locked_at = present, attempts = j.attempts + 1, fence = j.fence + 1,
              revision = j.revision + 1, snoozed = false, lease_ms = lease,
              lease_expires_at = present + lease * interval '1 ms',
              place = case when d.limited then nextval('job_place_numbers') end
            from due d where j.ctid = d.place
            returning j.id, j.fence, j.queue, j.partition, j.place, j.limits, d.lane, d.nth,
              claimed_head(j.id, j.fence, j.priority, j.run_at, j.task, j.attempts, j.max_attempts, j.revision) as head,
              claimed_lane_extra(j.last_error, j.job_key, j.flags, j.previous, j.crashes, j.queue, j.partition, j.limits) as extra
          ),
          placed as (
            insert into job_places (queue, number, job_id, fence, partition)
            select c.queue, c.place, c.id, c.fence, c.partition from claimed c where c.place is not null
          ),
          spent as materialized (
            select s.*, c.weight
            from (
              select k.key, k.by_value, sum(k.weight) as weight from claimed c cross join lateral limits_of(c.limits) k
              where c.limits is not null group by 1, 2
            ) c
            cross join lateral (select * from states s where s.key = c.key and s.by_value = c.by_value limit 1) s
          ),
          counted as (
            insert into rate_limit_states (key, by_value, number, at, counts, full_at)
            select s.key, s.by_value, s.number + 1, n.at, n.counts, n.full_at from spent s
            cross join lateral state_after(s.algorithm, s.at, s.counts, s.capacity, s.interval_us, s.width_us, s.weight) n
          ),
          -- A row that others hold is left: it does not count any more, and a refill finds it.
          forgotten as (
            delete from rate_limit_states t where t.ctid = any(array(
              select o.ctid from spent s cross join lateral (
                select o.ctid from rate_limit_states o where o.key = s.key and o.by_value = s.by_value and o.number = s.number
                limit 1 for update skip locked
              ) o
            ))
          )
          select count(*)::integer as jobs, array_agg(c.id) as ids, array_agg(c.head) as heads, array_agg(c.extra) as extras,
            max(c.place) as place, (array_agg(c.lane order by c.nth desc))[1] as last_lane, array_agg(c.lane) as lanes, (
              select array_agg(q.lane) from (
                select distinct on (o.queue) o.lane from claimed o where o.queue = any(look.cut_queues)
                order by o.queue, o.nth desc
              ) q
            ) as cut_lanes, (
              select array_agg(distinct p.lane) from proposals p
              where (p.queue <> '' and p.queue <> all(held_queues)) or (p.limits <> '' and p.lane in (select t.lane from limits t where t.are_held))
                or (p.place in (select o.place from possible o) and p.place not in (select l.place from locked l))
            ) as held, (
              select array_agg(distinct p.lane) from proposals p
              where p.place in (select o.place from possible o) and p.place not in (select l.place from locked l)
                and p.lane not in (select d.lane from claimed d)
            ) as crowded
          into taken from claimed c;

          -- Lanes that were served are no blocked stretches, nor are those whose tokens others have just taken.
          if held_limits <> '{}' then
            select least(tokens_at, min(t.until)) into tokens_at
            from (select distinct split_part(l, E'\x1f', 3) as limits from unnest(look.lanes[1:50]) l) n
            cross join lateral tokens_for(n.limits, clock_timestamp()) t
            where n.limits <> '' and t.jobs <= 0;
          end if;
          held := held || taken.held;
          held_stretches := held_stretches || array(
            select json_build_array(place_in_walk(at_priority, l.came_from), place_in_walk(at_priority, l.lane))
            from unnest(look.lanes, look.came_from) l(lane, came_from)
            where l.lane = any(taken.held) and l.lane <> all(coalesce(taken.lanes, '{}'))
          );
          crowded := crowded || taken.crowded;
          if taken.jobs > 0 then
            return query
              select claimed_lane_text(c.head, c.extra, b.created_at, b.job_key_mode, b.tags, b.group_id, b.depends_on,
        b.timeout_ms, b.payload)
              from unnest(taken.ids, taken.heads, taken.extras) as c(id, head, extra)
              left join lateral (select * from job_bodies b where b.id = c.id limit 1) b on true;
            open_places := open_places - taken.jobs;
            served := greatest(served, leg_weights);
            leg_jobs := leg_jobs + taken.jobs;
            circle_jobs := circle_jobs + taken.jobs;
            served_priority := at_priority;
            -- Behind the last lane that got a job: those that were proposed after it, and got no token, come first.
            served_lane := taken.last_lane;
            -- What its weight is for may come in several claims.
            lane_left := case
              when not is_beyond and (open_places <= 0 or split_part(served_lane, E'\x1f', 1) = any(look.cut_queues)) then
                (select q.quota from unnest(look.lanes, look.quotas) q(lane, quota) where q.lane = served_lane limit 1)
                - cardinality(array_positions(taken.lanes, served_lane))
              else 0 end;
            -- A branch that is filled goes by run-at over all its lanes, so the turn is behind it, not within it.
            if (lane_left <= 0 or split_part(served_lane, E'\x1f', 2) = '') and split_part(served_lane, E'\x1f', 1) || E'\x1f' || split_part(served_lane, E'\x1f', 2) || E'\x1f' = any(look.filled_branches)
              and (hops_left > 0 or not starts_with(look.lane, split_part(served_lane, E'\x1f', 1) || E'\x1f' || split_part(served_lane, E'\x1f', 2) || E'\x1f')) then
              served_lane := split_part(served_lane, E'\x1f', 1) || E'\x1f' || split_part(served_lane, E'\x1f', 2) || ' ';
              lane_left := 0;
            end if;
            served_left := greatest(0, lane_left);
            served_share := case when is_beyond then 1 else leg_share end;
            served_jobs := circle_jobs;
            served_first := begins_circle;
            cut_turns := cut_turns || array(
              select json_build_array(place_in_walk(at_priority, c.lane), case when is_beyond then 0 else greatest(0, (
                select q.quota from unnest(look.lanes, look.quotas) q(lane, quota) where q.lane = c.lane limit 1
              ) - cardinality(array_positions(taken.lanes, c.lane))) end)
              from (
                select unnest(taken.cut_lanes) as lane
                union all select served_lane where open_places <= 0 and split_part(taken.last_lane, E'\x1f', 2) <> ''
              ) c
            );
            if taken.place % 256 < taken.jobs then
              perform move_places_from(held_queues);
            end if;
          end if;
        end if;
        -- The walk has left the queue of the turn.
        if not begins_circle and served_lane is not null and open_places <= 0
          and split_part(turn_lane, E'\x1f', 1) <> all(full_queues || split_part(served_lane, E'\x1f', 1)) then
          ended := ended || place_in_walk(at_priority, split_part(turn_lane, E'\x1f', 1) || E'\x1f');
        end if;
        if hops_left <= 0 and open_places > 0 and not was_stopped then
          resumes := case
            when leg > 2 or leg = 2 and (leg_upto is null or at_lane is null or at_lane >= leg_upto collate "C")
              then json_build_array(place_in_walk(at_priority + 1, ''), null)
            when at_lane is null then json_build_array(place_in_walk(at_priority, first_lane), walk_from)
            else json_build_array(place_in_walk(at_priority, at_lane), walk_from)
          end;
        end if;
        exit circles when open_places <= 0 or hops_left <= 0 or was_stopped;
        -- A look that was cut short by what it proposed goes on behind it.
        exit when at_lane is null or look.lanes is null or not look.is_short or at_lane >= leg_upto collate "C";
        leg_from := at_lane;
      end loop;
      if begins_circle then
        circle_weights := leg_weights + case when leg_upto is null then 0 else rest_weights end;
        known_weights := coalesce(nullif(circle_weights, 0), known_weights);
      else
        rest_weights := leg_weights;
      end if;
    end loop;
    if served_lane is not null then
      served_turns := served_turns || json_build_array(place_in_walk(at_priority, served_lane), served_left, served_share, known_weights,
        served_jobs, served_first);
    end if;
    exit when open_places <= 0 or hops_left <= 0 or was_stopped;
  end loop;
  return next json_build_object('priority', served_priority, 'turns', served_turns, 'lanes', served, 'cut', cut_turns, 'ended', ended, 'full', full_queues,
    'more', open_places <= 0 or hops_left <= 0 or was_stopped, 'blocked', (
      select coalesce(json_agg(json_build_array(b.after, b.upto, date_part('epoch', b.until) * 1000)), '[]')
      from unnest(afters, uptos, untils) b(after, upto, until)
    ), 'held', held, 'heldStretches', case when hops_left <= 0 then held_stretches end, 'resumes', resumes, 'tokensAt', date_part('epoch', tokens_at) * 1000, 'crowded', crowded, 'unknown', unknown, 'passed', passed, 'due', due_lanes, 'pausedUntil', date_part('epoch', pauses.soonest) * 1000,
    'ms', date_part('epoch', clock_timestamp() - present) * 1000);
end $$;

-- What a settle claims in the lane that it has freed a place in: the due jobs behind a position. Returns as claim_lane_jobs,
-- without its last object; and nothing at all where it would take another look to know what comes next: the queue has
-- other lanes, or something at a better priority; it is paused, unlimited, full or held; others hold one of the jobs; or
-- nothing is due. The lane's queue has no other lane before it: `\x1f\x1f` sorts first. Indexes: jobs_lanes, job_queues_pkey, job_places_pkey.
create function claim_next_in_lane(
  worker text, wanted integer, tasks text[], other_tasks text[], forbidden text[], most_crashes integer, lease bigint,
  at_priority bigint, at_lane text, after_run_at timestamptz, after_id uuid
)
returns setof text
language plpgsql
set search_path from current
set lock_timeout = '100ms'
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
  present timestamptz := clock_timestamp();
  pauses claim_pauses;
  at_queue text := split_part(at_lane, E'\x1f', 1);
  better bigint := -2147483649;
  hops integer := 0;
  taken record;
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    return;
  end if;
  pauses := pauses_of_claim(worker, lease is not null, present);
  if not pauses.may_claim or pauses.ends_claim or exists (
    select from job_pauses p
    where p.kind = 'partition' and p.name = at_queue and p.partition = split_part(at_lane, E'\x1f', 2)
      and is_in_force(true, p.until, present)
  ) then
    return;
  end if;
  other_tasks := other_tasks || pauses.tasks;
  loop
    select j.priority into better from jobs j
    where j.parked is null and j.lane is not null and j.priority > better and j.priority < at_priority
    order by j.priority limit 1;
    exit when not found;
    hops := hops + 1;
    if hops > 16 or exists (
      select from jobs j where j.parked is null and j.lane is not null and j.priority = better
        and j.lane >= at_lane and j.lane < at_queue || E'\x20'
    ) then
      return;
    end if;
  end loop;
  if exists (
    select from jobs j where j.parked is null and j.lane is not null and j.priority = at_priority
      and j.lane > at_lane and j.lane < at_queue || E'\x20'
  ) then
    return;
  end if;
  perform from job_queues q
  where q.name = at_queue and q.concurrency is not null and not is_in_force(q.paused, q.paused_until, present)
  for no key update skip locked;
  if not found then
    return;
  end if;

  -- As in claim_lane_jobs: a statement of its own, younger than the lock.
  with room as materialized (
    select least(wanted, q.concurrency - (
      select count(*)::integer from (
        select from job_places p where p.queue = q.name and p.number >= q.places_from limit q.concurrency
      ) taken
    )) as places
    from job_queues q where q.name = at_queue limit 1
  ),
  proposed as materialized (
    select d.place from due_in_lane(
      at_priority, at_lane, after_run_at, after_id, present, tasks, other_tasks, forbidden, most_crashes) d
    limit greatest(0, (select r.places from room r))
  ),
  locked as materialized (
    select p.place from proposed p
    cross join lateral (
      select from jobs j
      where j.ctid = p.place and j.lane = at_lane and j.priority = at_priority and j.parked is null
        and j.locked_by is null and j.run_at <= present
        and (tasks is null or j.task = any(tasks)) and (other_tasks is null or j.task <> all(other_tasks))
        and (forbidden is null or j.flags is null or not j.flags && forbidden)
        and (most_crashes is null or j.crashes <= most_crashes)
      limit 1 for update skip locked
    ) j
  ),
  claimed as (
    update jobs j
    set locked_by = worker, locked_at = present, attempts = j.attempts + 1, fence = j.fence + 1,
      revision = j.revision + 1, snoozed = false, lease_ms = lease,
      lease_expires_at = present + lease * interval '1 ms', place = nextval('job_place_numbers')
    -- A position behind what others hold would pass it over.
    from locked l where j.ctid = l.place and (select count(*) from locked) = (select count(*) from proposed)
    returning j.id, j.fence, j.place,
      claimed_head(j.id, j.fence, j.priority, j.run_at, j.task, j.attempts, j.max_attempts, j.revision) as head,
      claimed_lane_extra(j.last_error, j.job_key, j.flags, j.previous, j.crashes, j.queue, j.partition, j.limits) as extra
  ),
  placed as (
    insert into job_places (queue, number, job_id, fence)
    select at_queue, c.place, c.id, c.fence from claimed c
  )
  select count(*)::integer as jobs, array_agg(c.id) as ids, array_agg(c.head) as heads, array_agg(c.extra) as extras,
    max(c.place) as place
  into taken from claimed c;
  if taken.jobs = 0 then
    return;
  end if;

  return next date_part('epoch', present) * 1000;
  return query
    select claimed_lane_text(c.head, c.extra, b.created_at, b.job_key_mode, b.tags, b.group_id, b.depends_on,
        b.timeout_ms, b.payload)
    from unnest(taken.ids, taken.heads, taken.extras) as c(id, head, extra)
    left join lateral (select * from job_bodies b where b.id = c.id limit 1) b on true;
  if taken.place % 256 < taken.jobs then
    perform move_places_from(array[at_queue]);
  end if;
end $$;
