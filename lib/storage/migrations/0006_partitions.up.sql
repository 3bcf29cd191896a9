-- Runs in one transaction with search_path set to the library's schema. Safe while workers of earlier versions run: they
-- delete from whatever partition a row is in.
-- Retention by dropping: what becomes of the partitions of job_bodies (ranges of ids, which carry their time) and
-- job_history (ranges of expiry). Nothing depends on any of this being on time: the default partitions take what has no
-- other. Each function is one short transaction that gives up after 100 ms of waiting for a lock, because whoever comes
-- after it waits behind it; callers try again. `at` is the present, for specs: null means now().

-- The time that a UUID of version 7 carries, and the first id of a time.
create function time_of_id(id uuid) returns timestamptz
language sql immutable strict
as $$
  select to_timestamp((('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint) / 1000.0)
$$;

create function first_id_at(at timestamptz) returns uuid
language sql immutable strict
as $$
  select (lpad(to_hex(greatest(0, floor(extract(epoch from at) * 1000))::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- The partitions of a table, oldest first, and the default, which has no bounds; `place`: what their rows have as
-- tableoid; `blocks`: pages, without indexes and what is stored out of line.
create function partitions_of(parent text)
returns table (name text, place oid, starts_at timestamptz, ends_at timestamptz, blocks bigint, records float8)
language sql stable
set search_path from current
set timezone = 'UTC'
set datestyle = 'ISO'
as $$
  select c.relname::text, c.oid,
    case parent when 'job_bodies' then time_of_id(bound[1]::uuid) else bound[1]::timestamptz end as starts_at,
    case parent when 'job_bodies' then time_of_id(bound[2]::uuid) else bound[2]::timestamptz end,
    pg_relation_size(c.oid) / current_setting('block_size')::bigint, pg_stat_get_live_tuples(c.oid)::float8
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  cross join lateral regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM \(''(.*)''\) TO \(''(.*)''\)$') as bound
  where i.inhparent = to_regclass(parent)
  order by starts_at
$$;

-- Makes the next partition that is needed from `ahead_ms` after the present, for `lead_ms`; returns its name, or null
-- where none is missing or another process is at it. A partition is `width_ms` long, and wider where old ones could not
-- be dropped for long: planning costs something for each. One that comes late begins in an hour or two, so that what is
-- in the default stays there. What clocks that are ahead have put there comes along; the default is read for that under
-- a lock, which is why a large one is left alone: `hindrance` says so.
create function make_partition(
  parent text, ahead_ms bigint, lead_ms bigint, width_ms bigint, most_bytes bigint, at timestamptz
)
returns table (made text, hindrance text)
language plpgsql
set search_path from current
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '100ms'
as $$
declare
  key_column text := case parent when 'job_bodies' then 'id' else 'expires_at' end;
  fallback text := parent || '_default';
  present timestamptz := coalesce(at, now());
  needed_from timestamptz := present + ahead_ms * interval '1 ms';
  first_at timestamptz := needed_from;
  until_at timestamptz;
  width interval;
  covered timestamptz;
  lower_bound text;
  upper_bound text;
  bytes bigint;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('millrace:partitions:' || current_schema, 0)) then
    return;
  end if;

  perform from partitions_of(parent) p where p.starts_at <= first_at and p.ends_at > first_at;
  if not found then
    first_at := date_trunc('hour', first_at) + interval '2 hours';
  end if;
  loop
    select p.ends_at into covered from partitions_of(parent) p where p.starts_at <= first_at and p.ends_at > first_at;
    exit when not found;
    first_at := covered;
  end loop;
  if first_at >= needed_from + lead_ms * interval '1 ms' then
    return;
  end if;
  select greatest(width_ms * interval '1 ms', (present - min(p.starts_at)) / 6) into width from partitions_of(parent) p;
  until_at := first_at + ceil(extract(epoch from width) / 3600) * interval '1 hour';
  select least(until_at, min(p.starts_at)) into until_at from partitions_of(parent) p where p.starts_at > first_at;

  bytes := pg_relation_size(fallback::regclass);
  if bytes > most_bytes then
    hindrance := format('%s holds %s, more than can be read under a lock', fallback, pg_size_pretty(bytes));
    return next;
    return;
  end if;

  made := format('%s_%s', parent, to_char(first_at, 'YYYYMMDD_HH24'));
  if parent = 'job_bodies' then
    lower_bound := first_id_at(first_at);
    upper_bound := first_id_at(until_at);
  else
    lower_bound := first_at;
    upper_bound := until_at;
  end if;
  execute format('create table %I (like %I including all)', made, parent);
  execute format('alter table %I owner to %I', made,
    (select pg_get_userbyid(relowner) from pg_class where oid = parent::regclass));
  execute format('lock table only %I in share update exclusive mode', parent);
  execute format('lock table %I in access exclusive mode', fallback);
  execute format(
    'with moved as (delete from %1$I where %2$I >= %3$L and %2$I < %4$L returning *) insert into %5$I select * from moved',
    fallback, key_column, lower_bound, upper_bound, made
  );
  execute format('alter table %I attach partition %I for values from (%L) to (%L)', parent, made, lower_bound, upper_bound);
  return next;
end $$;

-- Drops one partition of the history that has expired as a whole. A job without a record counts as completed, so bodies
-- of cancelled ones go at the same moment. Returns its name and about how many records it had, or nothing.
create function drop_history_partition(at timestamptz)
returns table (dropped text, records float8)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
declare
  present timestamptz := coalesce(at, now());
  cancelled uuid[];
begin
  if not pg_try_advisory_xact_lock(hashtextextended('millrace:partitions:' || current_schema, 0)) then
    return;
  end if;
  select p.name, p.records into dropped, records from partitions_of('job_history') p
  where p.ends_at <= present order by p.starts_at limit 1;
  if not found then
    return;
  end if;
  execute format('select array_agg(job_id) from %I where status = ''cancelled''', dropped) into cancelled;
  delete from job_bodies b
  where b.id = any(cancelled) and b.created_at <= now() - interval '1 hour'
    and not exists (select from jobs j where j.id = b.id)
    and not exists (select from job_history h where h.job_id = b.id and h.expires_at > present);
  execute format('drop table %I', dropped);
  return next;
end $$;

-- The ids from a range that somebody still asks for: of live jobs, of jobs in the history, and of those that completed
-- within the hour without a record; at most so many. Indexes: jobs_pkey, job_history_by_job; receipts are few.
create function wanted_ids(lower_id uuid, upper_id uuid, most integer) returns uuid[]
language sql stable
set search_path from current
set enable_seqscan = off
as $$
  select array(
    select wanted.id from (
      (select j.id from jobs j where j.id >= lower_id and j.id < upper_id limit most)
      union
      (select h.job_id from job_history h where h.job_id >= lower_id and h.job_id < upper_id limit most)
      union
      (
        select settled.id from settle_receipts r, unnest(r.job_ids) as settled(id)
        where r.settled_at > now() - interval '1 hour' and settled.id >= lower_id and settled.id < upper_id limit most
      )
    ) wanted limit most
  )
$$;

-- The partitions of bodies of which an hour has passed since the youngest id, and whether few enough of their jobs are
-- still wanted.
create function old_body_partitions(most integer, at timestamptz)
returns table (name text, place oid, lower_id uuid, upper_id uuid, blocks bigint, droppable boolean)
language sql stable
set search_path from current
as $$
  select p.name, p.place, first_id_at(p.starts_at), first_id_at(p.ends_at), p.blocks,
    cardinality(wanted_ids(first_id_at(p.starts_at), first_id_at(p.ends_at), most + 1)) <= most
  from partitions_of('job_bodies') p
  where p.ends_at <= coalesce(at, now()) - interval '1 hour'
$$;

-- Drops a partition that old_body_partitions has named; what is still wanted moves to the default, in the same moment
-- for everybody. Returns how many bodies moved, or null: nothing was done. Index: the partition's primary key.
create function drop_body_partition(partition text, most integer, at timestamptz) returns integer
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
as $$
declare
  lower_id uuid;
  upper_id uuid;
  wanted uuid[];
  moved integer;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('millrace:partitions:' || current_schema, 0)) then
    return null;
  end if;
  -- Nobody can add to it or settle a job of it from here on, so what is wanted now is all that ever will be.
  lock table only job_bodies in access exclusive mode;
  select p.lower_id, p.upper_id into lower_id, upper_id from old_body_partitions(0, at) p where p.name = partition;
  wanted := wanted_ids(lower_id, upper_id, most + 1);
  if lower_id is null or cardinality(wanted) > most then
    return null;
  end if;
  execute format('alter table job_bodies detach partition %I', partition);
  execute format('insert into job_bodies select * from %I where id = any($1)', partition) using wanted;
  get diagnostics moved = row_count;
  execute format('drop table %I', partition);
  return moved;
end $$;

-- PostgreSQL 18 (18.4, at least) may crash where a statement that locks or changes rows also prunes partitions as it runs:
-- when it meets a row that somebody else has just changed, it goes on with memory that was freed. So no such statement
-- does. The claim of plain jobs reads bodies apart from what it locks; all else as in 0004.
create or replace function claim_plain_jobs(
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
  claimed_ids uuid[];
  heads text[];
  tails text[];
  extras json[];
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
      -- By place: each row is locked and was seen by this very statement. One that changed in between is left.
      claimed as (
        update jobs j
        set locked_by = worker, locked_at = now(), attempts = j.attempts + 1, fence = j.fence + 1,
          revision = j.revision + 1, snoozed = false, lease_ms = null, lease_expires_at = null
        where j.ctid = any(array(select place from due))
        returning j.id,
          concat('["', j.id, '",', j.priority, ',', date_part('epoch', j.run_at) * 1000, ',', to_json(j.task),
            ',', j.attempts, ',', j.max_attempts, ',', j.revision, ',') as head,
          concat(',"', j.fence, '",') as tail,
          case
            when j.rate_limit_key is not null or j.last_error is not null or j.job_key is not null
              or j.flags is not null or j.previous is not null or j.crashes > 0
            then json_build_object('rateLimitKey', j.rate_limit_key, 'lastError', j.last_error, 'jobKey', j.job_key,
              'flags', j.flags, 'previous', j.previous, 'crashes', j.crashes)
          end as extra
      )
      select array_agg(c.id), array_agg(c.head), array_agg(c.tail), array_agg(c.extra)
      into claimed_ids, heads, tails, extras from claimed c;

      -- A statement of its own, which locks nothing.
      return query
        select concat(c.head, date_part('epoch', b.created_at) * 1000, c.tail, case
            when c.extra is null and b.group_id is null and b.tags is null and b.timeout_ms is null then 'null'
            else json_build_object('rateLimitKey', c.extra -> 'rateLimitKey', 'lastError', c.extra -> 'lastError',
              'jobKey', c.extra -> 'jobKey', 'jobKeyMode', b.job_key_mode, 'flags', c.extra -> 'flags', 'tags', b.tags,
              'groupId', b.group_id, 'timeoutMs', b.timeout_ms, 'previous', c.extra -> 'previous',
              'crashes', coalesce(c.extra -> 'crashes', '0'))::text
          end, ',', b.payload, ']')
        from unnest(claimed_ids, heads, tails, extras) as c(id, head, tail, extra)
        cross join lateral (select * from job_bodies b where b.id = c.id limit 1) b;
      open_places := open_places - coalesce(cardinality(claimed_ids), 0);
      if open_places <= 0 then
        return;
      end if;
      exit when at_priority = start.priority;
    end loop;
  end loop;
end $$;

-- These are called less often: they look into every partition.
alter function claim_jobs set enable_partition_pruning = off;
alter function add_keyed_jobs set enable_partition_pruning = off;
