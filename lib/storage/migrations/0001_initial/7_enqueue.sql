-- Adding under a job key, and adding from SQL. Replacing a job updates and deletes rows, which a role that may only enqueue
-- cannot: so add_keyed_jobs, and nothing else, runs with the rights of the tables' owner, and does nothing but what a job key
-- asks for. Everything here is qualified and typed, and pg_temp comes last, so that nothing a caller has made can take the
-- place of what is called.

-- What rate limits refuse of these jobs: see refused_limits. Index: rate_limits_pkey.
create function missing_limits(asked json) returns setof text
language sql stable
set search_path from current
as $$
  select distinct r.name
  from (select distinct spec.limits from pg_catalog.json_to_recordset(asked) as spec(limits text)) s
  cross join lateral refused_limits(s.limits) r(name)
  where s.limits is not null
$$;

-- Adds jobs that all have a job key, each key once: see statements/add-jobs.ts. Locks keys in their order, then the jobs
-- that hold them, by id: the holder of a key is read from the live jobs, so a job that runs keeps its key from others
-- whatever became of those that waited for it. Its row is left alone, the new job only names it: also where its claim
-- ends meanwhile, which lets the new one go (see free_successors), and `behind` names it for the caller. patient: the
-- caller's transaction, which waits as long as its lock_timeout says; else lock_not_available is raised after 100 ms,
-- and the caller tries again. repeated: an earlier try may have gone through. If it has stored the job, and
-- that has given way to another one since, nothing is done: job_replacements tells, whatever the clocks say by which ids
-- were made. Only what a try changed in place (action update) leaves no id behind: there, what looks newer is left as it is.
-- Delays are measured once the keys are locked: of two adds that meet at a key, the later one is due later.
-- The pairs of a job and its parents are written here, where they are counted: they are those of the job that stays,
-- whatever else of the call has its key.
-- Indexes: job_replacements_pkey, job_replacements_by_new, job_keys_pkey, jobs_by_key, jobs_pkey, job_bodies_pkey.
create function add_keyed_jobs(asked json, payloads json, patient boolean, repeated boolean)
returns table (requested uuid, id uuid, created boolean, missing text, replaced uuid, behind uuid)
language plpgsql
security definer
set search_path from current
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  present timestamptz;
  spec record;
  holder record;
  ids uuid[];
  keys text[];
  locked integer;
  owner uuid;
  before_it uuid;
  waiting uuid[];
  action text;
  new_lane text;
  debounced timestamptz;
begin
  if not patient then
    perform pg_catalog.set_config('lock_timeout'::text, '100ms'::text, true);
  end if;
  -- New jobs only: a caller must not write over what another job was.
  ids := array(select spec.id from pg_catalog.json_to_recordset(asked) as spec(id uuid));
  if exists (select from job_bodies b where b.id = any(ids)) then
    raise exception 'a job with one of these ids exists already' using errcode = 'unique_violation';
  end if;
  return query
    select null::uuid, null::uuid, null::boolean, m.name, null::uuid, null::uuid from missing_limits(asked) m(name);
  if found then
    return;
  end if;

  keys := array(select distinct spec.job_key from pg_catalog.json_to_recordset(asked) as spec(job_key text));
  -- A key that nothing owns may go before it is locked, and is made again then.
  loop
    insert into job_keys (key, job_id)
    select spec.job_key, spec.id from pg_catalog.json_to_recordset(asked) as spec(id uuid, job_key text) order by spec.job_key
    on conflict (key) do nothing;
    perform from job_keys k where k.key = any(keys) order by k.key for update;
    get diagnostics locked = row_count;
    exit when locked = pg_catalog.cardinality(keys);
  end loop;
  -- A claim may be at one of them: what it has become is read by the statements that follow.
  if patient then
    waiting := array(
      select j.id from (select h.id from holders_of(keys) h order by 1) h cross join lateral (
        select j.id from jobs j where j.id = h.id and j.locked_by is null limit 1 for update
      ) j
    );
  else
    waiting := array(
      select j.id from (select h.id from holders_of(keys) h order by 1) h cross join lateral (
        select j.id from jobs j where j.id = h.id and j.locked_by is null limit 1 for update skip locked
      ) j
    );
    if exists (
      select from holders_of(keys) h cross join lateral (
        select from jobs j where j.id = h.id and j.locked_by is null limit 1
      ) j where h.id <> all(waiting)
    ) then
      raise exception 'jobs under these keys are held' using errcode = 'lock_not_available';
    end if;
  end if;
  -- All of them before the first body: this is the order of locks.
  perform from job_dependencies d where d.child_id = any(waiting) order by d.child_id, d.parent_id for update;

  present := pg_catalog.clock_timestamp();
  for spec in
    select s.*, coalesce(s.asked_run_at, present + s.delay_ms * interval '1 ms', present) as run_at
    from rows from (
      pg_catalog.json_to_recordset(asked) as (id uuid, task text, priority integer, run_at timestamptz, delay_ms float8,
        max_attempts smallint, timeout_ms integer, queue text, partition text, limits text, job_key text, job_key_mode text,
        flags text[], tags text[], group_id text, depends_on uuid[], on_parent_failure text, payload_kib smallint,
        debounce_max_ms float8),
      pg_catalog.json_array_elements(payloads)
    ) with ordinality as s (id, task, priority, asked_run_at, delay_ms, max_attempts, timeout_ms, queue, partition,
      limits, job_key, job_key_mode, flags, tags, group_id, depends_on, on_parent_failure, payload_kib, debounce_max_ms,
      payload, position)
    order by s.job_key
  loop
    select k.job_id into owner from job_keys k where k.key = spec.job_key;
    select j.id, j.id <> all(waiting) as running, j.parked, j.attempts > 0 or j.snoozed as begun into holder
    from holders_of(array[spec.job_key]) h cross join lateral (select * from jobs j where j.id = h.id limit 1) j
    order by j.id = owner desc, j.locked_by is not null desc, j.id desc limit 1;
    before_it := case when holder.running then holder.id else held_by(spec.job_key, holder.id) end;

    debounced := null;
    action := case
      when repeated and exists (select from job_replacements r where r.old_id = spec.id) then
        case when holder.id is null then 'gone' else 'keep' end
      when holder.id is null or spec.job_key_mode = 'unique' and holder.parked is not distinct from 'exhausted' then 'add'
      when spec.job_key_mode in ('unsafe_dedupe', 'unique') then 'keep'
      when holder.running then 'follow'
      when holder.id = any(spec.depends_on) then 'circle'
      -- What has begun was due: the next add begins to count again.
      when spec.job_key_mode = 'debounce' and holder.begun then 'replace'
      when spec.job_key_mode in ('preserve_run_at', 'debounce', 'throttle') and holder.parked is distinct from 'exhausted' then
        case when repeated and holder.id > spec.id then 'keep' else 'update' end
      else 'replace'
    end;
    new_lane := case when spec.queue is not null or spec.limits is not null or spec.max_attempts = 1
      then coalesce(spec.queue, '') || E'\x1f' || coalesce(spec.partition, '') || E'\x1f' || coalesce(spec.limits, '') end;

    if action = 'circle' then
      raise exception 'job % would wait for itself', holder.id
        using errcode = 'check_violation', constraint = 'no_job_waits_for_itself', detail = holder.id::text;
    end if;
    if action = 'gone' then
      delete from job_keys k where k.key = spec.job_key and k.job_id = spec.id;
      return query select spec.id, spec.id, true, null::text, null::uuid, null::uuid;
      continue;
    end if;
    if action = 'keep' then
      return query select spec.id, holder.id, false, null::text, null::uuid, null::uuid;
      continue;
    end if;
    if action in ('replace', 'update') then
      delete from job_dependencies d
      where d.child_id = holder.id and (action = 'replace' or spec.depends_on is null or d.parent_id <> all(spec.depends_on));
    end if;
    insert into job_dependencies (parent_id, child_id)
    select p.id, case action when 'update' then holder.id else spec.id end
    from pg_catalog.unnest(spec.depends_on) as p(id) order by p.id
    on conflict do nothing;
    if action = 'update' then
      if spec.job_key_mode = 'debounce' then
        select least(spec.run_at, b.created_at + spec.debounce_max_ms * interval '1 ms') into debounced
        from job_bodies b where b.id = holder.id;
      end if;
      update jobs j set
        run_at = coalesce(debounced, j.run_at),
        priority = spec.priority, max_attempts = spec.max_attempts, slot_only = spec.max_attempts = 1, lane = new_lane,
        task = spec.task, queue = spec.queue, partition = spec.partition, limits = spec.limits, flags = spec.flags,
        payload_kib = coalesce(spec.payload_kib, 0::smallint), attempts = 0, crashes = 0, last_error = null, previous = null,
        unmet = coalesce(pg_catalog.cardinality(spec.depends_on), 0),
        parked = case when j.parked = 'key' then 'key' when spec.depends_on is not null then 'parents' end,
        revision = j.revision + 1, updated_at = present
      where j.id = holder.id;
      update job_bodies b set
        run_at = coalesce(debounced, b.run_at), priority = spec.priority, max_attempts = spec.max_attempts, timeout_ms = spec.timeout_ms, task = spec.task,
        payload = spec.payload, queue = spec.queue, partition = spec.partition, limits = spec.limits,
        job_key_mode = spec.job_key_mode, flags = spec.flags, tags = spec.tags, group_id = spec.group_id,
        depends_on = spec.depends_on, on_parent_failure = spec.on_parent_failure
      where b.id = holder.id;
      delete from job_steps s where s.job_id = holder.id;
      delete from job_progress p where p.job_id = holder.id;
      update job_keys k set job_id = holder.id where k.key = spec.job_key and k.job_id <> holder.id;
      return query select spec.id, holder.id, false, null::text, null::uuid, null::uuid;
      continue;
    end if;

    if action = 'replace' then
      delete from jobs j where j.id = holder.id;
      delete from job_bodies b where b.id = holder.id;
      delete from job_steps s where s.job_id = holder.id;
      delete from job_progress p where p.job_id = holder.id;
      delete from job_logs l where l.job_id = holder.id;
    end if;
    -- What it has replaced itself is replaced by the new job from here on: nothing leads to a job that is not there.
    if action = 'replace' then
      update job_replacements r set new_id = spec.id, replaced_at = present where r.new_id = holder.id;
    end if;
    if action in ('replace', 'follow') then
      insert into job_replacements (old_id, new_id) values (holder.id, spec.id)
      on conflict (old_id) do update set new_id = excluded.new_id, replaced_at = excluded.replaced_at;
    end if;
    insert into jobs (id, run_at, priority, max_attempts, slot_only, lane, payload_kib, task, queue, partition, limits, flags,
      job_key, unmet, behind, parked)
    values (spec.id, spec.run_at, spec.priority, spec.max_attempts, spec.max_attempts = 1, new_lane,
      coalesce(spec.payload_kib, 0::smallint), spec.task, spec.queue, spec.partition, spec.limits, spec.flags, spec.job_key,
      coalesce(pg_catalog.cardinality(spec.depends_on), 0),
      before_it, case when before_it is not null then 'key' when spec.depends_on is not null then 'parents' end);
    insert into job_bodies (id, created_at, run_at, priority, max_attempts, timeout_ms, task, payload, queue, partition, limits, job_key,
      job_key_mode, flags, tags, group_id, depends_on, on_parent_failure)
    values (spec.id, present, spec.run_at, spec.priority, spec.max_attempts, spec.timeout_ms, spec.task, spec.payload, spec.queue, spec.partition,
      spec.limits, spec.job_key, spec.job_key_mode, spec.flags, spec.tags, spec.group_id, spec.depends_on,
      spec.on_parent_failure);
    update job_keys k set job_id = spec.id where k.key = spec.job_key and k.job_id <> spec.id;
    return query select spec.id, spec.id, true, null::text,
      case when action in ('replace', 'follow') then holder.id end, before_it;
  end loop;
end $$;

revoke all on function add_keyed_jobs(json, json, boolean, boolean) from public;

-- Adds jobs of which some have a window, each window and each key once: see statements/add-jobs.ts. Parameters as of
-- add_keyed_jobs, which adds what no window keeps out; windows are locked in their order, before the keys. A window that is
-- committed and open stays so until its end: where it only turns jobs away, it is read and not locked. The time is read once a
-- window is locked. A window that was opened more than a minute from now was opened by a clock that was ahead: it is over.
-- A job without a key gets one of its own, of its window and when that begins: so the job at a window's end is found.
-- Indexes: job_windows_pkey, and those of add_keyed_jobs.
create function add_windowed_jobs(asked json, payloads json, patient boolean, repeated boolean)
returns table (requested uuid, id uuid, created boolean, missing text, replaced uuid, behind uuid)
language plpgsql
security definer
set search_path from current
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  present timestamptz;
  spec record;
  held record;
  is_open boolean;
  opens timestamptz;
  closes timestamptz;
  -- What goes on to its key: first what has no window.
  next_specs jsonb[] := array(
    select s.one::jsonb from pg_catalog.json_array_elements(asked) with ordinality as s(one, nth)
    where s.one ->> 'window_key' is null order by s.nth
  );
  next_payloads json[] := array(
    select p.one from pg_catalog.json_array_elements(asked) with ordinality as s(one, nth)
    join pg_catalog.json_array_elements(payloads) with ordinality as p(one, nth) on p.nth = s.nth
    where s.one ->> 'window_key' is null order by s.nth
  );
  -- What becomes of windows, side by side.
  jobs_of_windows uuid[] := '{}';
  names text[] := '{}';
  begins timestamptz[] := '{}';
  ends timestamptz[] := '{}';
  kept boolean[] := '{}';
begin
  if not patient then
    perform pg_catalog.set_config('lock_timeout'::text, '100ms'::text, true);
  end if;
  return query
    select null::uuid, null::uuid, null::boolean, m.name, null::uuid, null::uuid from missing_limits(asked) m(name);
  if found then
    return;
  end if;
  for spec in
    select s.one::jsonb as given, (s.one ->> 'id')::uuid as wanted, s.one ->> 'window_key' as name,
      (s.one ->> 'window_ms')::float8 * interval '1 ms' as width, s.one ->> 'window_mode' = 'delay' as delays, p.one as payload
    from pg_catalog.json_array_elements(asked) with ordinality as s(one, nth)
    join pg_catalog.json_array_elements(payloads) with ordinality as p(one, nth) on p.nth = s.nth
    where s.one ->> 'window_key' is not null order by (s.one ->> 'window_key') collate "C"
  loop
    select w.* into held from job_windows w where w.key = spec.name;
    present := pg_catalog.clock_timestamp();
    if held.key is null or spec.delays or not (held.until > present and held.set_at <= present + interval '1 min') then
      -- A window that has passed may go before it is locked, and is made again then.
      loop
        insert into job_windows (key, begins_at, until, set_at, job_id) values (spec.name, present, present, present, spec.wanted)
        on conflict (key) do nothing;
        select w.* into held from job_windows w where w.key = spec.name for update;
        exit when found;
      end loop;
      present := pg_catalog.clock_timestamp();
    end if;
    is_open := held.until > present and held.set_at <= present + interval '1 min';
    -- An earlier try has opened it.
    if held.job_id = spec.wanted and held.until > held.begins_at then
      return query select spec.wanted, spec.wanted, true, null::text, null::uuid, null::uuid;
      continue;
    end if;
    if is_open and not spec.delays then
      return query select spec.wanted, held.job_id, false, null::text, null::uuid, null::uuid;
      continue;
    end if;
    opens := case when not is_open then present when held.begins_at > present then held.begins_at else held.until end;
    closes := case when is_open and held.begins_at > present then held.until else opens + spec.width end;
    next_payloads := pg_catalog.array_append(next_payloads, spec.payload);
    next_specs := pg_catalog.array_append(next_specs,
      pg_catalog.jsonb_build_object('job_key', spec.name || '@' || pg_catalog.floor(extract(epoch from opens) * 1000)::bigint)
      || spec.given || case when is_open then pg_catalog.jsonb_build_object('run_at', opens) else '{}' end);
    jobs_of_windows := pg_catalog.array_append(jobs_of_windows, spec.wanted);
    names := pg_catalog.array_append(names, spec.name);
    begins := pg_catalog.array_append(begins, opens);
    ends := pg_catalog.array_append(ends, closes);
    kept := pg_catalog.array_append(kept, is_open);
  end loop;

  if next_specs = '{}' then
    return;
  end if;
  -- A job that waits or runs may have kept out what no window did: that opens none. A window that opens now lasts from its job on,
  -- which may have waited for keys since the window was locked.
  return query
    with done as materialized (
      select k.* from add_keyed_jobs(pg_catalog.to_json(next_specs), pg_catalog.to_json(next_payloads), patient, repeated) k
    ),
    opened as (
      update job_windows w set begins_at = case when o.stays then o.opens else made.at end,
        until = case when o.stays then o.closes else made.at + (o.closes - o.opens) end, set_at = made.at, job_id = d.id
      from done d join rows from (
        pg_catalog.unnest(jobs_of_windows), pg_catalog.unnest(names), pg_catalog.unnest(begins), pg_catalog.unnest(ends),
        pg_catalog.unnest(kept)
      ) as o(wanted, name, opens, closes, stays)
        on o.wanted = d.requested and (d.created or o.stays)
      -- After the jobs: read for each of them.
      cross join lateral (select pg_catalog.clock_timestamp() as at where d.requested is not null offset 0) made
      where w.key = o.name
    )
    select d.requested, d.id, d.created, d.missing, d.replaced, d.behind from done d;
end $$;

revoke all on function add_windowed_jobs(json, json, boolean, boolean) from public;

-- Forgets windows that have passed: so many at most, oldest first. Returns how many. Index: job_windows_passed.
create function prune_windows(most integer) returns integer
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
as $$
declare
  present timestamptz := clock_timestamp();
  pruned integer;
begin
  delete from job_windows w where w.ctid = any(array(
    select o.ctid from job_windows o where o.until <= present order by o.until limit most for update skip locked
  ));
  get diagnostics pruned = row_count;
  return pruned;
end $$;

-- Adds jobs without a key outside of a caller's transaction, where the session does not limit how long it waits for locks: the
-- statements of statements/add-jobs.ts, which say what they do, with that limit. A row for each rate limit that refuses them, and
-- nothing added then; else the time.
create function add_jobs(asked json, payloads json) returns table (now float8, missing text)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
#variable_conflict use_column
declare
  present timestamptz := pg_catalog.clock_timestamp();
begin
  return query select null::float8, m.name from missing_limits(asked) m(name);
  if found then
    return;
  end if;
  with specs as materialized (
    select s.*, coalesce(s.asked_run_at, present + s.delay_ms * interval '1 ms', present) as run_at
    from rows from (
      pg_catalog.json_to_recordset(asked) as (id uuid, task text, priority integer, run_at timestamptz, delay_ms float8,
        max_attempts smallint, timeout_ms integer, queue text, partition text, limits text, job_key text, job_key_mode text,
        flags text[], tags text[], group_id text, depends_on uuid[], on_parent_failure text, payload_kib smallint),
      pg_catalog.json_array_elements(payloads)
    ) as s (id, task, priority, asked_run_at, delay_ms, max_attempts, timeout_ms, queue, partition, limits, job_key,
      job_key_mode, flags, tags, group_id, depends_on, on_parent_failure, payload_kib, payload)
  ),
  bodies as (
    insert into job_bodies (created_at, id, run_at, priority, max_attempts, timeout_ms, task, payload, queue,
      partition, limits, job_key, job_key_mode, flags, tags, group_id, depends_on, on_parent_failure)
    select present, s.id, s.run_at, s.priority, s.max_attempts, s.timeout_ms, s.task, s.payload, s.queue,
      s.partition, s.limits, s.job_key, s.job_key_mode, s.flags, s.tags, s.group_id, s.depends_on, s.on_parent_failure
    from specs s
    on conflict (id) do nothing
    returning id
  )
  insert into jobs
    (id, run_at, priority, max_attempts, slot_only, lane, payload_kib, task, queue, partition, limits, flags, unmet, parked)
  select s.id, s.run_at, s.priority, s.max_attempts, s.max_attempts = 1,
    lane_of(s.queue, s.partition, s.limits, s.max_attempts = 1), coalesce(s.payload_kib, 0), s.task, s.queue,
    s.partition, s.limits, s.flags, coalesce(pg_catalog.cardinality(s.depends_on), 0),
    case when s.depends_on is not null then 'parents' end
  from bodies b join specs s on s.id = b.id;
  return query select (extract(epoch from present) * 1000)::float8, null::text;
end $$;

-- The same of jobs that differ in id and payload alone. Payloads: one in a line. Returns the time.
create function add_alike_jobs(
  ids uuid[], payloads text, of_task text, of_priority integer, attempts smallint, asked_run_at timestamptz,
  delay_ms float8, sizes smallint[]
) returns float8
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
declare
  present timestamptz := pg_catalog.clock_timestamp();
  due timestamptz := coalesce(asked_run_at, present + delay_ms * interval '1 ms', present);
begin
  insert into job_bodies (id, created_at, run_at, priority, max_attempts, task, payload)
  select s.id, present, due, of_priority, attempts, of_task, s.payload::json
  from rows from (pg_catalog.unnest(ids), pg_catalog.string_to_table(payloads, E'\n')) as s (id, payload);
  insert into jobs (id, run_at, priority, max_attempts, slot_only, lane, payload_kib, task)
  select s.id, due, of_priority, attempts, attempts = 1, lane_of(null, null, null, attempts = 1), coalesce(s.payload_kib, 0),
    of_task
  from rows from (pg_catalog.unnest(ids), pg_catalog.unnest(sizes)) as s (id, payload_kib);
  return extract(epoch from present) * 1000;
end $$;

-- How many jobs wait for a queue, up to `most`: those that run, that wait for parents or a key, and that have failed for good are
-- not counted. From priority to priority, at most 1,000 of them. Index: jobs_lanes, and the row of each job counted.
create function waiting_in(queue_name text, most integer) returns integer
language plpgsql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  first_lane text collate "C" := queue_name || E'\x1f';
  behind_lanes text collate "C" := queue_name || E'\x20';
  from_priority integer := -2147483648;
  next_priority integer;
  total integer := 0;
  here integer;
begin
  for nth in 1..1000 loop
    select j.priority into next_priority from jobs j
    where j.parked is null and j.lane is not null and j.priority >= from_priority
    order by j.priority, j.lane, j.run_at, j.id limit 1;
    exit when not found;
    select pg_catalog.count(*) into here from (
      select from jobs j
      where j.priority = next_priority and j.lane >= first_lane and j.lane < behind_lanes
        and j.parked is null and j.lane is not null and j.locked_by is null
      order by j.priority, j.lane, j.run_at, j.id limit most - total
    ) waiting;
    total := total + here;
    exit when total >= most or next_priority = 2147483647;
    from_priority := next_priority + 1;
  end loop;
  return total;
end $$;

-- Queues with a bound, and how many jobs wait in those asked for. Null: not counted, because the transaction's snapshot may be old
-- (and at serializable a count would make it fail for what others add). Indexes: job_queues_bounded, and those of waiting_in.
create function queue_bounds(asked text[]) returns table (queue text, most integer, found integer)
language sql
set search_path from current
as $$
  select q.name, q.max_waiting, case
    when q.name = any(asked) and pg_catalog.current_setting('transaction_isolation') = 'read committed'
      then waiting_in(q.name, q.max_waiting)
    end
  from job_queues q where q.max_waiting is not null
$$;

-- For add_job: raises program_limit_exceeded where as many jobs wait as the queue's bound allows. A session counts once a second
-- at most, and what it adds itself since: the last count is kept in a setting of the session. Index: job_queues_pkey.
create function refuse_if_full(queue_name text) returns void
language plpgsql
set search_path from current
as $$
declare
  present float8 := extract(epoch from pg_catalog.clock_timestamp());
  place text := pg_catalog.current_schema() || E'\x1f' || queue_name;
  last_count text[] := pg_catalog.string_to_array(pg_catalog.current_setting('millrace.waiting', true), E'\x1e');
  bound integer;
  total integer;
begin
  select q.max_waiting into bound from job_queues q where q.name = queue_name;
  if bound is null or pg_catalog.current_setting('transaction_isolation') <> 'read committed' then
    return;
  end if;
  if last_count[1] = place and last_count[2]::float8 between present - 1 and present and last_count[3]::integer < bound then
    present := last_count[2]::float8;
    total := last_count[3]::integer;
  else
    total := waiting_in(queue_name, bound);
  end if;
  if total >= bound then
    raise exception 'Expected room in queue %, got % waiting jobs where its bound is %.',
      pg_catalog.quote_literal(queue_name), total, bound
      using errcode = 'program_limit_exceeded', hint = 'Add later, or raise maxWaiting of the queue.';
  end if;
  perform pg_catalog.set_config('millrace.waiting', pg_catalog.concat_ws(E'\x1e', place, present, total + 1), false);
end $$;

-- An id as the library makes them: a UUID of version 7, with microseconds where it has room, so that ids of one session
-- are in order.
create function new_job_id() returns uuid
language sql volatile
set search_path from current
as $$
  select (pg_catalog.lpad(pg_catalog.to_hex(t.us / 1000), 12, '0') || '7'
    || pg_catalog.lpad(pg_catalog.to_hex(t.us % 1000 * 4096 / 1000), 3, '0')
    || pg_catalog.substr(pg_catalog.replace(pg_catalog.gen_random_uuid()::text, '-', ''), 17))::uuid
  from (select pg_catalog.floor(extract(epoch from pg_catalog.clock_timestamp()) * 1000000)::bigint as us) t
$$;

-- The text of the rate limits that add_job is given, as limits_of reads it: a key, or a JSON array of { key, by, weight }.
create function limits_text(rate_limit_key text, rate_limits json) returns text
language sql immutable
set search_path from current
as $$
  select case when rate_limits is null then rate_limit_key else (
    select pg_catalog.string_agg(l.name, E'\x1e' order by l.name collate "C") from (
      select case
          when l ->> 'by' is null and coalesce(l ->> 'weight', '1') = '1' then l ->> 'key'
          else pg_catalog.concat(l ->> 'key', E'\x1d', l ->> 'by', E'\x1d', coalesce(l ->> 'weight', '1'))
        end as name
      from pg_catalog.json_array_elements(rate_limits) l
    ) l
  ) end
$$;

-- Whether add_job is given what limits_text can read: 1 to 3 limits, each once.
create function are_limits(rate_limits json) returns boolean
language plpgsql immutable
set search_path from current
as $$
begin
  if pg_catalog.json_typeof(rate_limits) <> 'array' or pg_catalog.json_array_length(rate_limits) not between 1 and 3 then
    return false;
  end if;
  if exists (select from pg_catalog.json_array_elements(rate_limits) l where pg_catalog.json_typeof(l) <> 'object') then
    return false;
  end if;
  return not exists (
    select from pg_catalog.json_array_elements(rate_limits) l
    where (pg_catalog.json_typeof(l -> 'key') = 'string' and pg_catalog.octet_length(l ->> 'key') between 1 and 1000
        and l ->> 'key' !~ '[\u0001-\u001f]') is not true
      or l ->> 'by' is not null and (pg_catalog.json_typeof(l -> 'by') <> 'string'
        or pg_catalog.octet_length(l ->> 'by') not between 1 and 600 or l ->> 'by' ~ '[\u0001-\u001f]')
      or l ->> 'weight' is not null and l ->> 'weight' !~ '^[1-9][0-9]{0,8}$'
      or exists (select from pg_catalog.json_object_keys(l) k where k not in ('key', 'by', 'weight'))
  ) and pg_catalog.json_array_length(rate_limits) = (
    select pg_catalog.count(distinct pg_catalog.concat(l ->> 'key', E'\x1d', l ->> 'by'))
    from pg_catalog.json_array_elements(rate_limits) l
  ) and pg_catalog.octet_length(limits_text(null, rate_limits)) <= 1000;
end $$;

-- What keeps add_job from adding, and what to do about it; null: nothing.
create function fault_of_add(
  task text, queue text, run_at timestamptz, max_attempts integer, job_key text, job_key_mode text, flags text[],
  tags text[], group_id text, rate_limit_key text, timeout_ms integer, partition text, rate_limits json
) returns text[]
language plpgsql stable
set search_path from current
as $$
declare
  a_name constant text := 'to be 1 to 1,000 bytes long';
  a_lane constant text := 'to be 1 to 1,000 bytes long, without control characters';
  names constant text := 'to hold names of 1 to 1,000 bytes';
begin
  return case
    when task is null or not pg_catalog.octet_length(task) between 1 and 1000 then
      array['task ' || a_name, task, 'Name the task as its handler does: @Task(name).']
    when not pg_catalog.octet_length(queue) between 1 and 1000 or queue ~ '[\u0001-\u001f]' then
      array['queue ' || a_lane, queue, 'Leave it out, or pass null, for a job without a queue.']
    when not pg_catalog.octet_length(partition) between 1 and 600 or partition ~ '[\u0001-\u001f]' then
      array['partition to be 1 to 600 bytes long, without control characters', partition, 'Leave it out, or pass null, for a job of no partition.']
    when partition is not null and queue is null then
      array['queue beside partition', null, 'Pass queue => …, or leave partition out.']
    when not pg_catalog.octet_length(rate_limit_key) between 1 and 1000 or rate_limit_key ~ '[\u0001-\u001f]' then
      array['rate_limit_key ' || a_lane, rate_limit_key, 'Leave it out, or pass null, for a job without a rate limit.']
    when rate_limit_key is not null and rate_limits is not null then
      array['rate_limit_key or rate_limits, not both', rate_limit_key, 'Leave one of them out.']
    when rate_limits is not null and not are_limits(rate_limits) then
      array['rate_limits to be an array of 1 to 3 objects { key, by, weight }, each limit once', rate_limits::text,
        'Pass json: ''[{"key": "api", "by": "acme", "weight": 2}]''.']
    when exists (select from refused_limits(limits_text(rate_limit_key, rate_limits)) r(name) where pg_catalog.strpos(r.name, E'\x1d') = 0) then
      array[case when rate_limits is null then 'rate_limit_key to be registered' else 'rate_limits to be registered' end,
        (select r.name from refused_limits(limits_text(rate_limit_key, rate_limits)) r(name) where pg_catalog.strpos(r.name, E'\x1d') = 0 limit 1),
        'Register it first: jobs.registerRateLimit(key, capacity, interval).']
    when exists (select from refused_limits(limits_text(rate_limit_key, rate_limits))) then
      (select array['a weight of at most ' || pg_catalog.split_part(r.name, E'\x1d', 3) || ' for the rate limit ' ||
          pg_catalog.quote_literal(pg_catalog.split_part(r.name, E'\x1d', 1)), pg_catalog.split_part(r.name, E'\x1d', 2),
          'Ask for less: the limit never has more tokens at once.']
        from refused_limits(limits_text(rate_limit_key, rate_limits)) r(name) limit 1)
    when run_at < '0001-01-01 00:00:00+00' or run_at >= '10000-01-01 00:00:00+00' then
      array['run_at to lie between the years 1 and 9999', run_at::text, 'Leave it out, or pass null, for a job that is due now.']
    when not max_attempts between 1 and 32767 then
      array['max_attempts to be an integer from 1 to 32767', max_attempts::text, 'Leave it out for 25 attempts.']
    when timeout_ms < 1 then
      array['timeout_ms to be at least 1', timeout_ms::text, 'Leave it out for the timeout of the task or the worker.']
    when not pg_catalog.octet_length(job_key) between 1 and 2000 then
      array['job_key to be 1 to 2,000 bytes long', job_key, 'Leave it out, or pass null, for a job without a key.']
    when job_key is null and job_key_mode is not null then
      array['job_key beside job_key_mode', null, 'Pass job_key => …, or leave job_key_mode out.']
    when job_key_mode not in ('replace', 'preserve_run_at', 'unsafe_dedupe') then
      array['job_key_mode to be replace, preserve_run_at or unsafe_dedupe', job_key_mode, 'Leave it out for replace.']
    when not pg_catalog.octet_length(group_id) between 1 and 1000 then
      array['group_id ' || a_name, group_id, 'Leave it out, or pass null, for a job that is its own group.']
    when exists (select from pg_catalog.unnest(flags) f where f is null or not pg_catalog.octet_length(f) between 1 and 1000) then
      array['flags ' || names, flags::text, 'Pass an array of texts: array[''slow''].']
    when exists (select from pg_catalog.unnest(tags) t where t is null or not pg_catalog.octet_length(t) between 1 and 1000) then
      array['tags ' || names, tags::text, 'Pass an array of texts: array[''import''].']
  end;
end $$;

-- Adds one job, as JobManager.addJob does, for SQL and triggers; see docs/adding-from-sql.md. Runs with the rights of its
-- caller, in the caller's transaction; a key that another transaction holds is waited for, as its lock_timeout says.
-- Returns the job's id: an older job's where a key kept one. Indexes: rate_limits_pkey, jobs_pkey.
create function add_job(
  task text, payload json default 'null', queue text default null, priority integer default 0,
  run_at timestamptz default null, max_attempts integer default 25, job_key text default null,
  job_key_mode text default null, flags text[] default null, tags text[] default null, group_id text default null,
  rate_limit_key text default null, timeout_ms integer default null, partition text default null,
  rate_limits json default null
) returns uuid
language plpgsql
set search_path from current
as $$
declare
  present timestamptz := pg_catalog.clock_timestamp();
  job_id uuid := new_job_id();
  content json := coalesce(add_job.payload, 'null');
  kib smallint := least(32767, pg_catalog.octet_length(content::text) / 1024)::smallint;
  attempts smallint;
  limits text;
  fault text[];
  others uuid[];
  added record;
  channel text := 'millrace_' || pg_catalog.md5(pg_catalog.convert_to(pg_catalog.current_schema()::text, 'UTF8'));
begin
  priority := coalesce(add_job.priority, 0);
  max_attempts := coalesce(add_job.max_attempts, 25);
  flags := nullif(add_job.flags, '{}');
  tags := nullif(add_job.tags, '{}');
  fault := fault_of_add(add_job.task, add_job.queue, add_job.run_at, add_job.max_attempts, add_job.job_key,
    add_job.job_key_mode, add_job.flags, add_job.tags, add_job.group_id, add_job.rate_limit_key, add_job.timeout_ms,
    add_job.partition, add_job.rate_limits);
  if fault is not null then
    raise exception 'Expected %, got %.', fault[1], pg_catalog.left(pg_catalog.quote_nullable(fault[2]), 60)
      using errcode = 'invalid_parameter_value', hint = fault[3];
  end if;
  attempts := add_job.max_attempts;
  limits := limits_text(add_job.rate_limit_key, add_job.rate_limits);
  if add_job.queue is not null then
    perform refuse_if_full(add_job.queue);
  end if;

  if add_job.job_key is null then
    insert into job_bodies (id, created_at, run_at, priority, max_attempts, timeout_ms, task, payload, queue,
      partition, limits, flags, tags, group_id)
    values (job_id, present, coalesce(add_job.run_at, present), add_job.priority, attempts, add_job.timeout_ms,
      add_job.task, content, add_job.queue, add_job.partition, limits, add_job.flags, add_job.tags, add_job.group_id);
    insert into jobs (id, run_at, priority, max_attempts, slot_only, lane, payload_kib, task, queue, partition, limits, flags)
    values (job_id, coalesce(add_job.run_at, present), add_job.priority, attempts, attempts = 1,
      lane_of(add_job.queue, add_job.partition, limits, attempts = 1), kib, add_job.task, add_job.queue,
      add_job.partition, limits, add_job.flags);
  else
    select k.id, pg_catalog.array_remove(array[k.replaced, k.behind], null) into job_id, others from add_keyed_jobs(
      pg_catalog.json_build_array(pg_catalog.json_build_object(
        'id', job_id, 'task', add_job.task, 'priority', add_job.priority, 'run_at', add_job.run_at,
        'max_attempts', attempts, 'timeout_ms', add_job.timeout_ms, 'queue', add_job.queue,
        'partition', add_job.partition, 'limits', limits, 'job_key', add_job.job_key,
        'job_key_mode', coalesce(add_job.job_key_mode, 'replace'), 'flags', add_job.flags, 'tags', add_job.tags,
        'group_id', add_job.group_id, 'payload_kib', kib)),
      pg_catalog.json_build_array(content), true, false) k;
    -- Pools let children of the job that it replaced follow it, and let it go where the one before it has ended meanwhile.
    if others <> '{}' then
      perform pg_catalog.pg_notify(channel,
        pg_catalog.json_build_object('kind', 'parents', 'ids', pg_catalog.to_json(others))::text);
    end if;
  end if;

  -- Pools that would look only later are told with the commit; the shortest message is for plain jobs of priority 0.
  select j.lane, j.priority into added from jobs j
  where j.id = job_id and j.locked_by is null and j.parked is null and j.run_at <= present + interval '2 s';
  if found then
    perform pg_catalog.pg_notify(channel, case
      when added.lane is not null then
        pg_catalog.json_build_object('kind', 'lanes', 'lanes', pg_catalog.json_build_array(added.lane))::text
      when added.priority = 0 then ''
      else pg_catalog.json_build_object('kind', 'jobs', 'priorities', pg_catalog.json_build_array(added.priority))::text
    end);
  end if;
  return job_id;
end $$;
