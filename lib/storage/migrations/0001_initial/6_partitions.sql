-- Retention by dropping: what becomes of the partitions of job_bodies (ranges of ids, which carry their time) and
-- job_history (ranges of expiry). Nothing depends on any of this being on time: the default partitions take what has no
-- other. Each function is one short transaction that gives up after 100 ms of waiting for a lock, because everything after it
-- waits behind it; callers try again. `at` is the present, for specs; null means now().

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
  if not pg_try_advisory_xact_lock(lock_named('partitions', '')) then
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
  select least(greatest(width_ms * interval '1 ms', (present - min(p.starts_at)) / 6), width_ms * interval '4 ms') into width
  from partitions_of(parent) p;
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
  if parent = 'job_history' then
    execute format('alter table %I replica identity full', made);
  end if;
  execute format('lock table only %I in share update exclusive mode', parent);
  execute format('lock table %I in access exclusive mode', fallback);
  execute format(
    'with moved as (delete from %1$I where %2$I >= %3$L and %2$I < %4$L returning *) insert into %5$I select * from moved',
    fallback, key_column, lower_bound, upper_bound, made
  );
  execute format('alter table %I attach partition %I for values from (%L) to (%L)', parent, made, lower_bound, upper_bound);
  return next;
end $$;

-- Forgets bodies that nothing live or remembered needs any more, of those asked for, and what attempts have written. What
-- others hold is left: perhaps it comes back. Locks first, decides in the next statement. `keep_parents`: not those that
-- a child waits for. Indexes: the primary keys, job_history_by_job, job_dependencies_of_child.
create function forget_bodies(ids uuid[], keep_parents boolean, present timestamptz) returns integer
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_partition_pruning = off
as $$
declare
  locked uuid[];
  gone uuid[];
begin
  if cardinality(ids) = 0 then
    return 0;
  end if;
  locked := array(
    select b.id from job_bodies b
    where b.id = any(ids) order by b.id for update skip locked
  );
  with deleted as (
    delete from job_bodies b
    where b.id = any(locked) and not exists (select from jobs j where j.id = b.id)
      and not exists (select from job_history h where h.job_id = b.id and h.expires_at > present)
      and not (keep_parents and exists (select from job_dependencies d where d.parent_id = b.id))
    returning b.id
  )
  select array_agg(d.id) into gone from deleted d;
  delete from job_steps s where s.job_id = any(gone);
  delete from job_progress p where p.job_id = any(gone);
  delete from job_logs l where l.job_id = any(gone);
  -- Pairs stand before bodies: those that others hold are only tried.
  delete from job_dependencies d where d.ctid = any(array(
    select o.ctid from job_dependencies o where o.child_id = any(gone) for update skip locked
  ));
  return coalesce(cardinality(gone), 0);
end $$;

-- Removes expired records of some pages of one partition, and the bodies of cancelled jobs that they were the last to
-- remember: a job without a record counts as completed. place: the partition's oid, with its bounds; the pages as tids, the
-- last one excluded. Scans these pages and no others. Records that others hold are left.
create function prune_history(place oid, lower_at timestamptz, upper_at timestamptz, first_tid tid, end_tid tid)
returns integer
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set plan_cache_mode = force_custom_plan
as $$
declare
  present timestamptz := clock_timestamp();
  places tid[];
  cancelled uuid[];
begin
  select array_agg(e.place), array_agg(e.job_id) filter (where e.status = 'cancelled') into places, cancelled from (
    select h.ctid as place, h.job_id, h.status from job_history h
    where h.tableoid = place and h.expires_at >= lower_at and h.expires_at <= upper_at
      and h.ctid >= first_tid and h.ctid < end_tid and h.expires_at <= present
    for update skip locked
  ) e;
  delete from job_history h
  where h.tableoid = place and h.expires_at >= lower_at and h.expires_at <= upper_at and h.ctid = any(places);
  perform forget_bodies(coalesce(cancelled, '{}'), false, present);
  return coalesce(cardinality(places), 0);
end $$;

-- Removes the bodies, in some pages of one partition, of jobs that are neither live nor in the history, nor completed
-- within the last hour without leaving a record. Jobs younger than an hour are kept, so that a repeated add finds what it
-- added. Parameters as of prune_history. Indexes: jobs_pkey, job_history_by_job.
create function prune_bodies(place oid, lower_id uuid, upper_id uuid, first_tid tid, end_tid tid) returns integer
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set plan_cache_mode = force_custom_plan
as $$
declare
  present timestamptz := clock_timestamp();
  found_ids uuid[];
begin
  found_ids := array(
    with recent as materialized (select unnest(r.job_ids) as id from settle_receipts r)
    select b.id from job_bodies b
    where b.tableoid = place and b.id >= lower_id and b.id <= upper_id and b.ctid >= first_tid and b.ctid < end_tid
      and b.created_at <= now() - interval '1 hour'
      and not exists (select from jobs j where j.id = b.id)
      and not exists (select from job_history h where h.job_id = b.id)
      and not exists (select from recent where recent.id = b.id)
      and not exists (select from job_dependencies d where d.parent_id = b.id)
  );
  return forget_bodies(found_ids, true, present);
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
  if not pg_try_advisory_xact_lock(lock_named('partitions', '')) then
    return;
  end if;
  select p.name, p.records into dropped, records from partitions_of('job_history') p
  where p.ends_at <= present order by p.starts_at limit 1;
  if not found then
    return;
  end if;
  execute format('select array_agg(job_id) from %I where status = ''cancelled''', dropped) into cancelled;
  perform forget_bodies(coalesce(cancelled, '{}'), false, present);
  execute format('drop table %I', dropped);
  return next;
end $$;

-- The ids from a range that something live, remembered or waiting refers to: live jobs, jobs in the history, those that ended
-- within the hour without a record, parents of those that wait, owners of keys, and what was replaced. At most so many,
-- each once. Indexes: jobs_pkey, job_history_by_job, job_dependencies_pkey, job_replacements_pkey; receipts are few.
create function wanted_ids(lower_id uuid, upper_id uuid, most integer) returns uuid[]
language sql stable
set search_path from current
set enable_seqscan = off
as $$
  select array(
    select distinct wanted.id from (
      (select j.id from jobs j where j.id >= lower_id and j.id < upper_id limit most)
      union all
      (select distinct h.job_id from job_history h where h.job_id >= lower_id and h.job_id < upper_id limit most)
      union all
      (select distinct settled.id from settle_receipts r, unnest(r.job_ids) as settled(id)
        where r.settled_at > now() - interval '1 hour' and settled.id >= lower_id and settled.id < upper_id limit most)
      union all
      (select distinct d.parent_id from job_dependencies d where d.parent_id >= lower_id and d.parent_id < upper_id limit most)
      union all
      (select distinct d.child_id from job_dependencies d join jobs j on j.id = d.child_id
        where d.child_id >= lower_id and d.child_id < upper_id limit most)
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
  if not pg_try_advisory_xact_lock(lock_named('partitions', '')) then
    return null;
  end if;
  -- What is decided below must be seen after the lock.
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'retention needs read committed' using errcode = 'lock_not_available';
  end if;
  -- Nothing can be added to it or settled in it from here on, so what is wanted now is all that ever will be.
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
