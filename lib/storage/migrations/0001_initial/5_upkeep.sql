-- What pools do beside claims and settles: ending the claims of dead incarnations, comparing what is held with what is
-- locked, moving windows and limits on. Nothing depends on any of it being on time.

-- Renews the lease of an incarnation. No row: it was taken for dead. `held`: another session holds its row, or its table as a
-- whole, and nothing was renewed; the heartbeat comes again soon. `newer_schema`: the highest version that a release which
-- knows the version `known` cannot work with; a table of versions that is locked keeps no lease from being renewed.
-- `has_pauses`: whether there is a pause that the pool should ask for. Indexes: workers_pkey, job_pauses_of_claims.
create function heartbeat(pool text, known integer)
returns table (held boolean, needs_rescue boolean, newer_schema integer, has_pauses boolean)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
#variable_conflict use_column
begin
  begin
    update workers w set heartbeat_at = clock_timestamp() where w.id = (
      select f.id from workers f where f.id = pool and f.stopped_at is null for no key update skip locked
    );
    held := not found;
    if held and not exists (select from workers w where w.id = pool and w.stopped_at is null) then
      return;
    end if;
    needs_rescue := exists (
      select from workers w
      where w.stopped_at is null and (w.heartbeat_at + w.lease_ms * interval '1 ms' <= clock_timestamp()
        or w.heartbeat_at > clock_timestamp() + interval '1 s')
    );
  exception when lock_not_available then
    held := true;
    needs_rescue := false;
  end;
  begin
    newer_schema := (
      select max(m.version) from migrations m
      where m.version > known and coalesce((to_jsonb(m) ->> 'compatible_from')::integer, m.version) > known
    );
  exception when lock_not_available then
    newer_schema := null;
  end;
  begin
    has_pauses := exists (
      select from job_pauses p where p.kind <> 'partition' and is_in_force(true, p.until, clock_timestamp())
    );
  exception when lock_not_available then
    has_pauses := true;
  end;
  return next;
end $$;

-- Marks incarnations as stopped: those that have not been heard of for their lease, or, with a name, that one, unless it
-- still holds a claim. From then on it claims nothing. Claims under way exclude it (see pauses_of_claim); rows that others hold
-- come later. A heartbeat in the future is set back to now: a clock was ahead. Index: workers_pkey.
create function end_incarnations(only_worker text)
returns table (id text)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  silent text[];
begin
  if only_worker is null then
    update workers w set heartbeat_at = clock_timestamp() where w.ctid = any(array(
      select f.ctid from workers f where f.stopped_at is null and f.heartbeat_at > clock_timestamp() + interval '1 s'
      for update skip locked
    ));
  end if;
  silent := array(
    -- Materialized: else the locks below are taken of living incarnations too, which could not claim meanwhile.
    with w as materialized (
      select w.id from workers w
      where w.stopped_at is null and (only_worker is null or w.id = only_worker)
        and (only_worker is not null or w.heartbeat_at + w.lease_ms * interval '1 ms' <= clock_timestamp())
      order by w.id for update skip locked
    )
    select w.id from w
    where pg_try_advisory_xact_lock(lock_named('incarnation', w.id))
  );
  -- A snapshot younger than the locks: what it holds now is all that it ever will.
  return query
    update workers w set stopped_at = clock_timestamp()
    where w.id = any(silent) and (only_worker is null or not exists (
      select from jobs j where j.locked_by = only_worker and j.lease_expires_at is null
    ))
    returning w.id;
end $$;

-- The claims of incarnations that have stopped or are unknown, at most 1,000. `has_left`: its pool was being stopped, and did
-- not crash. `is_spared`: the incarnation held a job that has crashed so often before that it alone is to blame, which its row
-- remembers for claims that others hold now. Reads the live table: an index on locked_by would cost every claim, and dead
-- workers are rare.
create function claims_of_the_dead(most_crashes integer)
returns table (id uuid, fence bigint, is_spared boolean, has_left boolean)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
#variable_conflict use_column
begin
  return query
    with orphans as materialized (
      select j.id, j.fence, j.locked_by, w.left_at is not null as has_left,
        w.left_at is null and j.crashes > 0 and j.crashes >= most_crashes - 1 as is_suspect
      from jobs j left join workers w on w.id = j.locked_by
      where j.locked_by is not null and j.lease_expires_at is null and (w.id is null or w.stopped_at is not null)
      order by 5 desc limit 1000
    ),
    blamed as materialized (select distinct o.locked_by as worker from orphans o where o.is_suspect),
    noted as (
      update workers w set has_blamed = true where w.ctid = any(array(
        select f.ctid from workers f where f.id in (select b.worker from blamed b) and not f.has_blamed for update skip locked
      ))
    )
    select o.id, o.fence, not o.is_suspect and (
      exists (select from blamed b where b.worker = o.locked_by)
      or exists (select from workers w where w.id = o.locked_by and w.has_blamed)
    ), o.has_left from orphans o;
end $$;

-- What a pool should know of claims that it holds: `gone` where another end came first, `cancelled` where an end is asked
-- for. Index: jobs_pkey, by batch.
create function check_claims(ids uuid[], fences bigint[])
returns table (id uuid, fence bigint, standing text, reason text)
language sql stable
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
as $$
  select i.id, i.fence, case when j.id is null then 'gone' else 'cancelled' end, j.cancel_reason
  from unnest(ids, fences) as i(id, fence)
  left join lateral (
    select j.id, j.cancel_requested, j.cancel_reason from jobs j
    where j.id = i.id and j.fence = i.fence and j.locked_by is not null limit 1
  ) j on true
  where j.id is null or j.cancel_requested
$$;

-- Claims that the database counts as this incarnation's and that it does not hold: those that the audit has asked about, and
-- those of 5,000 places behind (from_queue, from_number). The last row, without an id, tells where the next call goes on:
-- nulls, where the places have come to their end. Indexes: jobs_pkey, claims_in_question_pkey, job_places_pkey.
create function unknown_claims(pool text, ids uuid[], fences bigint[], from_queue text, from_number bigint)
returns table (id uuid, fence bigint, next_queue text, next_number bigint)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
declare
  queues text[];
  numbers bigint[];
  job_ids uuid[];
  job_fences bigint[];
begin
  select array_agg(p.queue), array_agg(p.number), array_agg(p.job_id), array_agg(p.fence)
  into queues, numbers, job_ids, job_fences from (
    select p.queue, p.number, p.job_id, p.fence from job_places p
    where (p.queue, p.number) > (from_queue collate "C", from_number) order by p.queue, p.number limit 5000
  ) p;
  return query
    with asked as (
      delete from claims_in_question c where c.ctid = any(array(
        select f.ctid from claims_in_question f where f.worker = pool for update skip locked
      )) returning c.job_id, c.fence
    )
    select j.id, j.fence, null::text, null::bigint from (
      select p.job_id, p.fence from unnest(job_ids, job_fences) as p(job_id, fence)
      union select a.job_id, a.fence from asked a
    ) c
    cross join lateral (
      select j.id, j.fence from jobs j
      where j.id = c.job_id and j.fence = c.fence and j.locked_by = pool and j.lease_expires_at is null limit 1
    ) j
    where not exists (select from unnest(ids, fences) as i(id, fence) where i.id = j.id and i.fence = j.fence)
    union all
    select null, null, queues[5000], numbers[5000];
end $$;

-- The same of all claims, after an answer was lost: reads the live table.
create function unknown_claims_anywhere(worker text, ids uuid[], fences bigint[])
returns table (id uuid, fence bigint)
language sql stable
set search_path from current
set lock_timeout = '100ms'
as $$
  select j.id, j.fence from jobs j
  where j.locked_by = worker and j.lease_expires_at is null
    and not exists (select from unnest(ids, fences) as i(id, fence) where i.id = j.id and i.fence = j.fence)
$$;

-- Claims by hand whose lease has run out, at most 1,000. longest: null for each claim's own lease, or the longest time in ms
-- since its last extension. Index: jobs_leased_by_hand.
create function expired_leases(longest bigint)
returns table (id uuid, fence bigint)
language sql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_bitmapscan = off
as $$
  select j.id, j.fence from jobs j
  where j.lease_expires_at is not null and j.locked_by is not null and case
    when longest is null then j.lease_expires_at <= clock_timestamp()
    else j.lease_expires_at - (j.lease_ms - longest) * interval '1 ms' <= clock_timestamp()
  end
  order by j.lease_expires_at limit 1000
$$;

-- Makes rows for queues that claims came across. One that another transaction is making is left to it: a claim waits for this.
-- A name that ends with \x1f is of a queue with partitions: unless it is declared or configured, it has no limit.
create function register_queues(names text[]) returns void
language plpgsql
set search_path from current
set lock_timeout = '5ms'
as $$
declare
  queue_name text;
begin
  for queue_name in select distinct n from unnest(names) n order by n loop
    begin
      if right(queue_name, 1) = E'\x1f' then
        insert into job_queues as q (name, concurrency) values (rtrim(queue_name, E'\x1f'), null)
        on conflict (name) do update set concurrency = null
        where q.concurrency = 1 and not q.configured and q.declared_at is null;
      else
        insert into job_queues (name) values (queue_name) on conflict (name) do nothing;
      end if;
    exception when lock_not_available then
      null;
    end;
  end loop;
end $$;

-- Notes names of tasks. One that another transaction holds is left.
create function see_tasks(names text[]) returns void
language plpgsql
set search_path from current
set lock_timeout = '5ms'
as $$
declare
  task_name text;
begin
  for task_name in select distinct n from unnest(names) n order by n loop
    begin
      insert into job_tasks (task) values (task_name) on conflict (task) do update set last_seen_at = clock_timestamp();
    exception when lock_not_available then
      null;
    end;
  end loop;
end $$;

-- A stored time of something that has happened and that lies in the future was written by a clock that was ahead. It is set
-- back to now: else what hangs on it would stand still, or be kept, until that time comes. Some are set back where they are
-- looked at: states of rate limits (set_back_states), heartbeats of living pools (end_incarnations), times of live jobs
-- (audit_claims). Releases keep their order; a crontab goes on with its next slot. Up to a minute ahead is left: clocks of two
-- servers differ, and a slot must not fire again. Rows that others hold come later. Index: settle_receipts_by_time; the other
-- tables are small.
create function set_back_times() returns void
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
declare
  present timestamptz := clock_timestamp();
  soon timestamptz := present + interval '1 min';
begin
  update crontabs c
  set known_since = case when greatest(c.known_since, c.last_slot_at) > soon then present else c.known_since end,
    last_slot_at = case when greatest(c.known_since, c.last_slot_at) <= soon then c.last_slot_at end,
    retired_at = case when c.retired_at > soon then present else c.retired_at end
  where c.ctid = any(array(
    select f.ctid from crontabs f where greatest(f.known_since, f.last_slot_at, f.retired_at) > soon for update skip locked
  ));
  with ahead as materialized (
    select r.ctid as place, r.first_seen_at from releases r
    where greatest(r.first_seen_at, r.joined_at) > soon for update skip locked
  ),
  latest as materialized (select max(a.first_seen_at) - present as lead from ahead a where a.first_seen_at > soon)
  update releases r
  set first_seen_at = case when a.first_seen_at > soon then a.first_seen_at - l.lead else a.first_seen_at end,
    joined_at = least(r.joined_at, present)
  from ahead a, latest l where r.ctid = a.place;
  update job_tasks t set last_seen_at = present where t.ctid = any(array(
    select f.ctid from job_tasks f where f.last_seen_at > soon for update skip locked
  ));
  -- Of a stopped one: when it is forgotten.
  update workers w set heartbeat_at = present where w.ctid = any(array(
    select f.ctid from workers f where f.stopped_at is not null and f.heartbeat_at > soon for update skip locked
  ));
  update job_queues q set declared_at = present where q.ctid = any(array(
    select f.ctid from job_queues f where f.declared_at > soon for update skip locked
  ));
  update job_queues q set paused_since = present where q.ctid = any(array(
    select f.ctid from job_queues f where f.paused_since > soon for update skip locked
  ));
  update job_pauses p set since = present where p.ctid = any(array(
    select f.ctid from job_pauses f where f.since > soon for update skip locked
  ));
  update settle_receipts s set settled_at = present where s.ctid = any(array(
    select f.ctid from settle_receipts f where f.settled_at > soon for update skip locked
  ));
  update job_replacements r set replaced_at = present where r.ctid = any(array(
    select f.ctid from job_replacements f where f.replaced_at > soon for update skip locked
  ));
end $$;

-- Compares a slice of the live table, in pages, with what is known: claims older than 15 s are put to their incarnations
-- as a question; jobs that run in limited queues without a place get one. Times in the future are set back (set_back_times): a
-- lease by hand too that ends later than a lease granted now. Returns whether there are more pages.
create function audit_claims(from_page bigint, pages bigint) returns boolean
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  present timestamptz := clock_timestamp();
  soon timestamptz := present + interval '1 min';
begin
  update jobs j
  set locked_at = case when j.locked_at > soon then present else j.locked_at end,
    updated_at = case when j.updated_at > soon then present else j.updated_at end,
    lease_expires_at = case when j.lease_expires_at > soon + j.lease_ms * interval '1 ms'
      then present + j.lease_ms * interval '1 ms' else j.lease_expires_at end
  where j.ctid = any(array(
    select f.ctid from jobs f
    where f.ctid >= format('(%s,0)', from_page)::tid and f.ctid < format('(%s,0)', from_page + pages)::tid
      and (greatest(f.locked_at, f.updated_at) > soon or f.lease_expires_at > soon + f.lease_ms * interval '1 ms')
    for update skip locked
  ));
  insert into claims_in_question (worker, job_id, fence)
  select j.locked_by, j.id, j.fence from jobs j
  where j.ctid >= format('(%s,0)', from_page)::tid and j.ctid < format('(%s,0)', from_page + pages)::tid
    and j.locked_by is not null and j.lease_expires_at is null and j.locked_at < clock_timestamp() - interval '15 s'
  on conflict do nothing;
  -- Only what has no place comes to its queue, so that no other queue is locked.
  with placeless as materialized (
    select j.id, j.fence, j.queue, j.partition from jobs j
    where j.ctid >= format('(%s,0)', from_page)::tid and j.ctid < format('(%s,0)', from_page + pages)::tid
      and j.locked_by is not null and j.queue is not null
      and not exists (select from job_places p where p.queue = j.queue and p.job_id = j.id and p.fence = j.fence)
  )
  insert into job_places (queue, number, job_id, fence, partition)
  select q.name, nextval('job_place_numbers'), p.id, p.fence, p.partition
  from placeless p
  join lateral (
    select q.name from job_queues q where q.name = p.queue and q.limited for no key update skip locked
  ) q on true;
  delete from claims_in_question c where c.ctid = any(array(
    select f.ctid from claims_in_question f
    where not exists (select from workers w where w.id = f.worker and w.stopped_at is null) for update skip locked
  ));
  return from_page + pages < pg_relation_size('jobs') / current_setting('block_size')::bigint;
end $$;

-- Deletes places whose claim is over, of 5,000 behind (from_queue, from_number). Both are read by one snapshot, so a claim that
-- has just begun has both. Returns in which queues places became free, and where the next sweep goes on; nulls: the end is
-- reached. Indexes: job_places_pkey, jobs_pkey.
create function free_places(from_queue text, from_number bigint)
returns table (queues text[], next_queue text, next_number bigint)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
declare
  slice_queues text[];
  slice_numbers bigint[];
begin
  select array_agg(p.queue), array_agg(p.number) into slice_queues, slice_numbers from (
    select p.queue, p.number from job_places p
    where (p.queue, p.number) > (from_queue collate "C", from_number) order by p.queue, p.number limit 5000
  ) p;
  return query
    with stale as materialized (
      select held.place from unnest(slice_queues, slice_numbers) as i(queue, number) cross join lateral (
        select p.ctid as place from job_places p
        where p.queue = i.queue and p.number = i.number and not exists (
          select from jobs j where j.id = p.job_id and j.fence = p.fence and j.locked_by is not null
        )
        limit 1 for update of p skip locked
      ) held
    ),
    freed as (
      delete from job_places p where p.ctid = any(array(select s.place from stale s)) returning p.queue
    )
    select array_agg(distinct f.queue), slice_queues[5000], slice_numbers[5000] from freed f;
end $$;

-- Changes a queue: excludes claims under way, so that what is committed here is followed by no claim that does not know
-- it. Null leaves a setting as it is; `unlimited` sets no limit. Claims that run when a limit appears get places.
-- Where claims keep it busy for 100 ms it raises lock_not_available: callers try again. Index: job_queues_pkey.
create function edit_queue(queue_name text, new_concurrency integer, unlimited boolean, new_partitions jsonb) returns void
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
declare
  was_limited boolean;
begin
  perform pg_advisory_xact_lock(lock_named('queue', queue_name));
  insert into job_queues (name) values (queue_name) on conflict (name) do nothing;
  select q.limited into was_limited from job_queues q where q.name = queue_name for no key update;
  update job_queues q
  set concurrency = case
      when unlimited then null
      when new_concurrency is not null then new_concurrency
      -- A queue that nothing was said of has no limit once it has partitions.
      when new_partitions is not null and q.concurrency = 1 and not q.configured and q.declared_at is null then null
      else q.concurrency
    end,
    partitions = coalesce(new_partitions, q.partitions),
    configured = q.configured or unlimited or new_concurrency is not null or new_partitions is not null
  where q.name = queue_name;
  perform give_places(queue_name, was_limited);
end $$;

-- Begins a pause, or gives one other settings: since when it holds stays. `kind` is one of job_pauses, or 'queue'. Returns since
-- when; nothing where `upto` has passed already. Claims of a queue are excluded as by edit_queue; of the others, those that are
-- under way when this commits are waited for afterwards (claims_under_way). A row that others hold for 100 ms raises
-- lock_not_available: callers try again. Indexes: job_queues_pkey, job_pauses_pkey.
create function pause_target(target_kind text, target_name text, target_partition text, upto timestamptz, why text, who text)
returns table (since timestamptz)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
#variable_conflict use_column
declare
  present timestamptz := clock_timestamp();
begin
  if upto <= present then
    return;
  end if;
  if target_kind = 'queue' then
    perform pg_advisory_xact_lock(lock_named('queue', target_name));
    insert into job_queues (name) values (target_name) on conflict (name) do nothing;
    perform from job_queues q where q.name = target_name for no key update;
    return query
      update job_queues q
      set paused = true, paused_until = upto, pause_reason = why, paused_by = who,
        paused_since = case when is_in_force(q.paused, q.paused_until, present) then coalesce(q.paused_since, present) else present end
      where q.name = target_name
      returning q.paused_since;
    return;
  end if;
  delete from job_pauses p where p.ctid = any(array(
    select o.ctid from job_pauses o where o.until <= present for update skip locked
  ));
  return query
    insert into job_pauses as p (kind, name, partition, since, until, reason, paused_by)
    values (target_kind, target_name, target_partition, present, upto, why, who)
    on conflict (kind, name, partition) do update
    set until = excluded.until, reason = excluded.reason, paused_by = excluded.paused_by,
      since = case when is_in_force(true, p.until, present) then p.since else present end
    returning p.since;
end $$;

-- Ends a pause. Returns it where it was in force. Indexes: job_queues_pkey, job_pauses_pkey.
create function resume_target(target_kind text, target_name text, target_partition text)
returns table (since timestamptz, until timestamptz, reason text, paused_by text)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
#variable_conflict use_column
declare
  present timestamptz := clock_timestamp();
begin
  if target_kind = 'queue' then
    return query
      with held as materialized (
        select q.ctid as place, q.paused_since as since, q.paused_until as until, q.pause_reason as reason, q.paused_by
        from job_queues q where q.name = target_name and q.paused for no key update
      ),
      resumed as (
        update job_queues q
        set paused = false, paused_since = null, paused_until = null, pause_reason = null, paused_by = null
        from held h where q.ctid = h.place
      )
      select h.since, h.until, h.reason, h.paused_by from held h where is_in_force(true, h.until, present);
    return;
  end if;
  return query
    with gone as (
      delete from job_pauses p
      where p.kind = target_kind and p.name = target_name and p.partition = target_partition
      returning p.since, p.until, p.reason, p.paused_by
    )
    select g.since, g.until, g.reason, g.paused_by from gone g where is_in_force(true, g.until, present);
end $$;

-- The pauses in force, the oldest first. Reads the rows of all queues.
create function pauses_in_force()
returns table (kind text, name text, partition text, since timestamptz, until timestamptz, reason text, paused_by text)
language sql stable
set search_path from current
as $$
  select * from (
    select p.kind, p.name, p.partition, p.since, p.until, p.reason, p.paused_by from job_pauses p
    where is_in_force(true, p.until, clock_timestamp())
    union all
    select 'queue', q.name, '', q.paused_since, q.paused_until, q.pause_reason, q.paused_by from job_queues q
    where is_in_force(q.paused, q.paused_until, clock_timestamp())
  ) p
  order by p.since nulls first, p.kind, p.name, p.partition
$$;

-- Transactions that claim now: all, or those of `known` that still do. Each holds a shared lock that names the claimer (see
-- pauses_of_claim). Such claims may have begun before the caller's commit; claims that begin later know what it has changed.
create function claims_under_way(known text[]) returns text[]
language sql stable
set search_path from current
as $$
  with claimers as materialized (
    select lock_named('incarnation', w.id) as key from workers w where w.stopped_at is null
    union all select lock_named('claims by hand', '')
  )
  select coalesce(array_agg(distinct l.virtualtransaction), '{}') from pg_locks l
  where l.locktype = 'advisory' and l.objsubid = 1 and l.mode = 'ShareLock' and l.granted
    and l.database = (select d.oid from pg_database d where d.datname = current_database())
    and (l.classid::bigint << 32) | l.objid::bigint in (select c.key from claimers c)
    and l.pid <> pg_backend_pid() and (known is null or l.virtualtransaction = any(known))
$$;

-- Sets what a partition has of its own; nulls: as its queue says for each. As edit_queue. Index: job_partitions_pkey.
create function edit_partition(queue_name text, partition_name text, new_concurrency integer, new_share real, new_weight smallint)
returns void
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
declare
  was_limited boolean;
begin
  perform pg_advisory_xact_lock(lock_named('queue', queue_name));
  perform register_queues(array[queue_name || E'\x1f']);
  select q.limited into was_limited from job_queues q where q.name = queue_name for no key update;
  if not found then
    raise exception 'queue % is held', queue_name using errcode = 'lock_not_available';
  end if;
  if num_nulls(new_concurrency, new_share, new_weight) = 3 then
    delete from job_partitions p where p.queue = queue_name and p.partition = partition_name;
  else
    insert into job_partitions (queue, partition, concurrency, share, weight)
    values (queue_name, partition_name, new_concurrency, new_share, new_weight)
    on conflict (queue, partition) do update
    set concurrency = excluded.concurrency, share = excluded.share, weight = excluded.weight;
  end if;
  update job_queues q
  set limits_partitions = exists (select from job_partitions p where p.queue = queue_name and p.concurrency < 2147483647)
  where q.name = queue_name;
  perform give_places(queue_name, was_limited);
end $$;

-- How many more jobs of a partition may run, as far as its own limit goes, for statements outside of the claims; null: any number.
create function free_in_partition(queue_name text, partition_name text) returns integer
language sql stable
set search_path from current
as $$
  select p.free from job_queues q
  cross join lateral room_in_partition(q.name, partition_name, q.concurrency, q.partition_concurrency, q.partition_share,
    q.partition_weight, q.places_from) p
  where q.name = queue_name
$$;

-- Partitions of a queue that have jobs in lanes or settings of their own, by name; see statements/queues.ts. One descent along
-- jobs_lanes for each priority, two for each partition of the page in each priority that it has jobs in, and what is counted,
-- `most_counted` rows at most. Index: job_partitions_pkey.
create function list_partitions(queue_name text, most integer, after_name text, most_counted integer)
returns table (partition text, waiting integer, running integer, concurrency integer, share real, weight smallint)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  priorities integer[];
begin
  with recursive hop(priority) as (
    (select j.priority from jobs j where j.parked is null and j.lane is not null order by j.priority limit 1)
    union all
    select next.priority from hop h cross join lateral (
      select j.priority from jobs j where j.parked is null and j.lane is not null and j.priority > h.priority
      order by j.priority limit 1
    ) next
  )
  select array_agg(h.priority) into priorities from hop h;
  return query
    with recursive walk(priority, name, nth) as (
      select p.priority, after_name collate "C", 0 from unnest(priorities) p(priority)
      union all
      select w.priority, next.name, w.nth + 1 from walk w cross join lateral (
        select split_part(j.lane, E'\x1f', 2) collate "C" as name from jobs j
        where j.parked is null and j.lane is not null and j.priority = w.priority
          and j.lane > queue_name || E'\x1f' || coalesce(w.name || ' ', E'\x1f ') and j.lane < queue_name || ' '
        order by j.lane limit 1
      ) next
      where w.nth < most
    ),
    page as materialized (
      select n.name, array_agg(n.priority) filter (where n.priority is not null) as priorities
      from (
        select w.name, w.priority from walk w where w.nth > 0
        union all
        (select s.partition, null from job_partitions s
        where s.queue = queue_name and s.partition > coalesce(after_name, '') order by s.partition limit most)
      ) n
      group by n.name order by n.name limit most
    )
    select w.name, counted.waiting, counted.running, nullif(coalesce(own.concurrency, q.partition_concurrency), 2147483647),
      coalesce(own.share, q.partition_share), coalesce(own.weight, q.partition_weight, 1::smallint)
    from page w
    cross join lateral (
      select count(*) filter (where j.locked_by is null)::integer as waiting,
        count(*) filter (where j.locked_by is not null)::integer as running
      from (
        select j.locked_by from unnest(w.priorities) p(priority) cross join lateral (
          select j.locked_by from jobs j
          where j.parked is null and j.lane is not null and j.priority = p.priority
            and j.lane >= queue_name || E'\x1f' || w.name || E'\x1f' and j.lane < queue_name || E'\x1f' || w.name || ' '
          limit most_counted
        ) j
        limit most_counted
      ) j
    ) counted
    left join lateral (
      select s.* from job_partitions s where s.queue = queue_name and s.partition = w.name limit 1
    ) own on true
    left join lateral (select * from job_queues q where q.name = queue_name limit 1) q on true
    order by w.name;
end $$;

-- Gives a place to each job that runs in a queue and has none, where it is limited and was not. Only under the queue's lock.
-- Reads the live table.
create function give_places(queue_name text, was_limited boolean) returns void
language sql
set search_path from current
as $$
  insert into job_places (queue, number, job_id, fence, partition)
  select j.queue, nextval('job_place_numbers'), j.id, j.fence, j.partition from jobs j
  where not was_limited and exists (select from job_queues q where q.name = queue_name and q.limited)
    and j.queue = queue_name and j.locked_by is not null
    and not exists (select from job_places p where p.queue = j.queue and p.job_id = j.id and p.fence = j.fence)
$$;

-- Whether a pool of this label is alive. A pool joins its release a moment before it has a row: `joined_at` covers for that.
create function worker_is_alive(worker_label text, joined_at timestamptz) returns boolean
language sql stable
set search_path from current
as $$
  select case
    when exists (select from workers w where w.label = worker_label) then exists (
      select from workers w where w.label = worker_label and w.stopped_at is null
        and w.heartbeat_at + w.lease_ms * interval '1 ms' > clock_timestamp())
    else joined_at > clock_timestamp() - interval '1 min'
  end
$$;

-- Whether a release may change what another one has declared: it is not older, or no pool runs the other one any more.
create function may_change(mine text, others text) returns boolean
language sql stable
set search_path from current
as $$
  select not exists (
    select from releases theirs join releases own on own.id = mine
    where theirs.id = others and theirs.first_seen_at > own.first_seen_at
      and exists (select from unnest(theirs.worker_ids) as member(label) where worker_is_alive(member.label, theirs.joined_at))
  )
$$;

-- Bounds how many jobs may wait in a queue; null: any number. As edit_queue, but claims need not know. Index: job_queues_pkey.
create function bound_queue(queue_name text, new_max integer) returns void
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
begin
  insert into job_queues as q (name, max_waiting, waiting_configured) values (queue_name, new_max, true)
  on conflict (name) do update set max_waiting = excluded.max_waiting, waiting_configured = true;
end $$;

-- Writes a declared concurrency (null: no limit), what is declared for each partition, and a bound of waiting jobs (null:
-- none), except over configureQueue's and those of a newer release that runs. Returns whether anything is written. As edit_queue.
create function declare_queue(
  queue_name text, new_concurrency integer, new_partitions jsonb, new_release text, new_max integer
) returns boolean
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
declare
  was record;
begin
  select q.* into was from job_queues q where q.name = queue_name;
  if found and (was.configured and was.waiting_configured or not may_change(new_release, was.release)) then
    return false;
  end if;
  perform pg_advisory_xact_lock(lock_named('queue', queue_name));
  insert into job_queues (name) values (queue_name) on conflict (name) do nothing;
  select q.* into was from job_queues q where q.name = queue_name for no key update;
  if was.configured and was.waiting_configured or not may_change(new_release, was.release) then
    return false;
  end if;
  update job_queues q
  set concurrency = case when q.configured then q.concurrency else new_concurrency end,
    partitions = case when q.configured then q.partitions else new_partitions end,
    max_waiting = case when q.waiting_configured then q.max_waiting else new_max end,
    release = new_release, declared_at = clock_timestamp()
  where q.name = queue_name;
  perform give_places(queue_name, was.limited);
  return true;
end $$;
