-- What others may do now that a job has ended: its children, the job behind its key. Each is a state that a query finds, so a
-- process that dies in between leaves nothing undone: the sweep finds it. Locks come first, the next statement decides.

-- Jobs that wait for a key though nothing runs any more behind which they wait: of 5,000 that wait for one, behind `from_job`. Returns where the next sweep goes on; null: it has reached the end. Indexes: jobs_blocked_by_key, jobs_pkey.
create function find_passed_over(from_job uuid)
returns table (waiters uuid[], next_job uuid)
language sql stable
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
  with slice as materialized (
    select s.id, s.behind from jobs s where s.parked = 'key' and s.id > from_job order by s.id limit 5000
  )
  select array(
      select s.id from slice s
      where not exists (select from jobs h where h.id = s.behind and h.locked_by is not null)
    ),
    (select max(s.id::text)::uuid from slice s having count(*) = 5000)
$$;

-- Lets jobs go that waited for the holder of their key to leave: those behind these holders, or, where these are null, these
-- waiters. A holder that was given back unstarted gives way now. `retention` in ms. Indexes: jobs_behind, jobs_pkey.
create function free_successors(holders uuid[], waiters uuid[], retention bigint)
returns table (id uuid, lane text, ended boolean)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  behind_ids uuid[];
  waiting_ids uuid[];
  given_back uuid[];
begin
  if holders is null then
    select array_agg(s.id), array_agg(s.behind) into waiting_ids, behind_ids
    from jobs s where s.id = any(waiters) and s.parked = 'key';
  else
    select array_agg(s.id), array_agg(s.behind) into waiting_ids, behind_ids
    from jobs s where s.behind = any(holders) and s.parked = 'key';
  end if;
  if waiting_ids is null then
    return;
  end if;
  given_back := array(
    select h.id from (select distinct unnest(behind_ids) as id order by 1) b cross join lateral (
      select h.id from jobs h
      where h.id = b.id and h.locked_by is null and h.parked is distinct from 'exhausted' limit 1 for update skip locked
    ) h
  );
  waiting_ids := array(
    select s.id from (select unnest(waiting_ids) as id order by 1) w cross join lateral (
      select s.id from jobs s where s.id = w.id and s.parked = 'key' limit 1 for update skip locked
    ) s
  );
  return query
    with gone as (
      delete from jobs h where h.id = any(given_back)
        and exists (select from jobs s where s.behind = h.id and s.parked = 'key')
      returning h.id, h.fence, h.attempts
    ),
    recorded as (
      insert into job_history (job_id, fence, expires_at, status, attempt, error_message)
      select g.id, g.fence + 1, clock_timestamp() + retention * interval '1 ms', 'cancelled', g.attempts,
        'replaced by job ' || (select s.id from jobs s where s.behind = g.id limit 1)
      from gone g
    ),
    freed as (
      update jobs j set parked = case when j.unmet > 0 then 'parents' end, behind = null, updated_at = clock_timestamp(),
        released_at = case when j.unmet > 0 then j.released_at else clock_timestamp() end
      where j.id = any(waiting_ids) and not exists (
        select from jobs h where h.id = j.behind and h.id not in (select g.id from gone g)
          and (h.locked_by is not null or h.parked is distinct from 'exhausted')
      )
      returning j.id, j.lane, j.parked
    )
    select f.id, f.lane, false from freed f where f.parked is null
    union all
    select g.id, null, true from gone g;
end $$;

-- Forgets the owners of these keys, where the owner is gone. Indexes: job_keys_pkey, jobs_pkey.
create function free_keys(keys text[]) returns void
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  locked text[];
begin
  locked := array(
    select held.key from (select distinct n from unnest(keys) n order by n) n cross join lateral (
      select k.key from job_keys k where k.key = n.n limit 1 for update skip locked
    ) held
  );
  delete from job_keys k where k.key = any(locked) and (select j.id from jobs j where j.id = k.job_id limit 1) is null;
end $$;

-- The same for 2,000 keys behind `from_key`. Returns where to go on; null: the end is reached.
create function free_stale_keys(from_key text) returns text
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  seen text[];
begin
  seen := array(select k.key from job_keys k where k.key > from_key order by k.key limit 2000);
  perform free_keys(array(
    select k.key from unnest(seen) n cross join lateral (
      select k.key, k.job_id from job_keys k where k.key = n limit 1
    ) k
    where (select j.id from jobs j where j.id = k.job_id limit 1) is null
  ));
  return case when cardinality(seen) = 2000 then seen[2000] end;
end $$;

-- What a parent that has ended is to its children: `completed`, `failed` (for good, or cancelled), `gone` (nothing is known
-- of it any more), or null: it has not ended. Its last end counts. Indexes: jobs_pkey, job_bodies_pkey, job_history_by_job.
create function end_of_parent(parent uuid) returns text
language sql stable
set search_path from current
set enable_seqscan = off
set enable_partition_pruning = off
as $$
  select case
    when exists (select from jobs j where j.id = parent and j.parked is distinct from 'exhausted') then null
    when exists (select from jobs j where j.id = parent) then 'failed'
    when not exists (select from job_bodies b where b.id = parent) then 'gone'
    when (select h.status from job_history h where h.job_id = parent order by h.fence desc limit 1) = 'cancelled' then 'failed'
    else 'completed'
  end
$$;

-- The job that dependants of `old` wait for instead, because it took the key of `old`: where `old` is gone, was
-- cancelled (as a job is that gives way at its end), or while a successor waits behind it. If `old` has completed, or
-- failed for good, its own outcome counts.
-- Indexes: job_replacements_pkey, jobs_pkey, jobs_behind.
create function successor_of(old uuid) returns uuid
language sql stable
set search_path from current
set enable_seqscan = off
as $$
  select r.new_id from job_replacements r where r.old_id = old and case
    when exists (select from jobs j where j.id = old and j.parked is distinct from 'exhausted')
      then exists (select from jobs s where s.behind = old and s.parked = 'key')
    when exists (select from jobs j where j.id = old) then false
    else end_of_parent(old) <> 'completed'
  end
$$;

-- For which job a child waits that has named `parent`: the last of its successors, as far as that is not the child itself.
create function heir_of(parent uuid, child uuid) returns uuid
language sql stable
set search_path from current
as $$
  with recursive chain(id, depth) as (
    select parent, 0
    union all
    select s.id, c.depth + 1 from chain c cross join lateral successor_of(c.id) as s(id)
    where s.id is not null and s.id is distinct from child and c.depth < 100
  )
  select c.id from chain c order by c.depth desc limit 1
$$;

-- The live jobs that a key may belong to: those that have not failed for good, and its owner. Indexes: jobs_by_key, job_keys_pkey.
create function holders_of(keys text[])
returns table (key text, id uuid)
language sql stable rows 1
set search_path from current
set enable_seqscan = off
set jit = off
as $$
  select j.job_key, j.id from jobs j
  where j.job_key = any(keys) and j.job_key is not null and (
    j.parked is distinct from 'exhausted' or exists (select from job_keys k where k.key = j.job_key and k.job_id = j.id)
  )
$$;

-- Behind which job of its key another one has to wait: one that runs, or has run and is to give way. Index: jobs_by_key.
create function held_by(of_key text, besides uuid) returns uuid
language sql stable
set search_path from current
set enable_seqscan = off
as $$
  select j.id from jobs j
  where j.job_key = of_key and j.job_key is not null and j.id is distinct from besides and j.parked is distinct from 'exhausted'
  order by j.locked_by is not null desc, j.id limit 1
$$;

-- Whether a job that has ended must do without its key: another one has it, and is none that runs and was added before it,
-- behind which it can wait. Decided under the key's lock. Indexes: jobs_by_key, job_keys_pkey, jobs_pkey.
create function is_key_taken(of_key text, job uuid) returns boolean
language sql stable
set search_path from current
set enable_seqscan = off
as $$
  select exists (
    select from holders_of(array[of_key]) h cross join lateral (select j.locked_by from jobs j where j.id = h.id limit 1) j
    where h.id <> job and not (j.locked_by is not null and h.id < job)
  )
$$;

-- Tells children that these parents have ended: all of them, or, where `these` is not null, those. A child whose last parent is
-- met is ready; one whose parent failed for good does as its on_parent_failure says. A parent that was replaced under its
-- key passes its children on. Children that others hold are left, and named. Indexes: job_dependencies_pkey,
-- job_dependencies_of_child, jobs_pkey, job_bodies_pkey, job_replacements_pkey.
create function tell_children(parents uuid[], retention bigint, these uuid[] default null)
returns table (id uuid, became text, lane text)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_partition_pruning = off
set jit = off
as $$
#variable_conflict use_column
declare
  told_parents uuid[];
  told_children uuid[];
  locked uuid[];
  pair_parents uuid[];
  pair_children uuid[];
begin
  select array_agg(d.parent_id), array_agg(d.child_id) into told_parents, told_children from (
    select d.parent_id, d.child_id from job_dependencies d
    where d.parent_id = any(parents) and (these is null or d.child_id = any(these))
    order by d.parent_id, d.child_id
  ) d
  where end_of_parent(d.parent_id) is not null or successor_of(d.parent_id) is not null;
  if told_children is null then
    return;
  end if;
  locked := array(
    select c.id from (select distinct unnest(told_children) as id order by 1) t cross join lateral (
      select j.id from jobs j where j.id = t.id limit 1 for update skip locked
    ) c
  );
  -- Children that are not live keep waiting for what may come back; others' rows are theirs.
  select array_agg(d.parent_id), array_agg(d.child_id) into pair_parents, pair_children
  from (select * from unnest(told_parents, told_children) as t(parent_id, child_id) order by t.child_id, t.parent_id) t
  cross join lateral (
    select d.parent_id, d.child_id from job_dependencies d
    where d.parent_id = t.parent_id and d.child_id = t.child_id limit 1 for update skip locked
  ) d;

  return query
    with pairs as materialized (
      select d.parent_id, d.child_id from unnest(pair_parents, pair_children) as d(parent_id, child_id)
      where d.child_id in (select unnest(locked)) or not exists (select from jobs j where j.id = d.child_id)
    ),
    verdicts as materialized (
      select v.*, v.ended is null or (v.ended = 'failed' and v.policy = 'wait') as stays from (
        select f.*, f.heir <> f.parent_id as is_moved, end_of_parent(f.heir) as ended,
          coalesce((select b.on_parent_failure from job_bodies b where b.id = f.child_id), 'cancel') as policy,
          exists (select from job_dependencies d where d.parent_id = f.heir and d.child_id = f.child_id) as has_pair
        from (select p.*, heir_of(p.parent_id, p.child_id) as heir from pairs p) f
      ) v
    ),
    moved as (
      insert into job_dependencies (parent_id, child_id)
      select distinct v.heir, v.child_id from verdicts v where v.is_moved and v.stays
      on conflict do nothing
    ),
    forgotten as (
      delete from job_dependencies d using verdicts v
      where d.parent_id = v.parent_id and d.child_id = v.child_id and (v.is_moved or not v.stays)
    ),
    children as materialized (
      select v.child_id, (array_agg(v.parent_id) filter (where v.ended = 'gone' or (v.ended = 'failed' and v.policy = 'cancel')))[1]
        as failed_parent,
        -- The pairs that are left: those that the statement's snapshot shows, less those that go, more those that come.
        (select count(*) from job_dependencies d where d.child_id = v.child_id)
          - count(*) filter (where v.is_moved or not v.stays)
          + count(distinct v.heir) filter (where v.is_moved and v.stays and not v.has_pair) as unmet
      from verdicts v where v.child_id in (select unnest(locked)) group by v.child_id
    ),
    gone as (
      delete from jobs j using children c
      where j.id = c.child_id and c.failed_parent is not null and j.locked_by is null and j.parked in ('parents', 'key')
      returning j.id, j.fence, j.attempts, c.failed_parent
    ),
    recorded as (
      insert into job_history (job_id, fence, expires_at, status, attempt, error_message)
      select g.id, g.fence + 1, clock_timestamp() + retention * interval '1 ms', 'cancelled', g.attempts,
        'parent job ' || g.failed_parent || ' did not complete'
      from gone g
    ),
    counted as (
      update jobs j
      set unmet = c.unmet, updated_at = clock_timestamp(),
        parked = case when j.parked = 'parents' and c.unmet = 0 then null else j.parked end,
        released_at = case when j.parked = 'parents' and c.unmet = 0 then clock_timestamp() else j.released_at end
      from children c
      where j.id = c.child_id
        and (c.failed_parent is null or j.locked_by is not null or j.parked is null or j.parked not in ('parents', 'key'))
      returning j.id, j.parked, j.lane
    )
    select g.id, 'cancelled', null::text from gone g
    union all
    select c.id, case when c.parked is null then 'released' else 'waiting' end, c.lane from counted c
    union all
    select h.id, 'held', null from (
      select t.child_id as id from unnest(told_children) as t(child_id)
      where t.child_id not in (select unnest(locked))
      union
      select t.child_id from unnest(told_parents, told_children) as t(parent_id, child_id)
      where (t.parent_id, t.child_id) not in (
          select p.parent_id, p.child_id from unnest(pair_parents, pair_children) as p(parent_id, child_id)
        )
        and exists (select from job_dependencies d where d.parent_id = t.parent_id and d.child_id = t.child_id)
    ) h where exists (select from jobs j where j.id = h.id);
end $$;

-- Pairs whose parent has ended, or was replaced, though the child was not told: the parents among the newest 2,000
-- pairs and among the 5,000 behind `from_parent`. Returns where the next sweep goes on; null: it has reached the end.
-- Indexes: job_dependencies_of_child, job_dependencies_pkey.
create function find_untold(from_parent uuid)
returns table (parents uuid[], next_parent uuid)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
set enable_partition_pruning = off
set jit = off
as $$
#variable_conflict use_column
begin
  return query
    with slice as materialized (
      select d.parent_id from job_dependencies d where d.parent_id > from_parent order by d.parent_id, d.child_id limit 5000
    ),
    newest as materialized (
      select d.parent_id from job_dependencies d order by d.child_id desc limit 2000
    ),
    seen as (select parent_id from slice union select parent_id from newest)
    select array(
        select s.parent_id from seen s
        where end_of_parent(s.parent_id) is not null and (
            end_of_parent(s.parent_id) in ('completed', 'gone') or exists (
              select from job_dependencies d join job_bodies b on b.id = d.child_id
              where d.parent_id = s.parent_id and b.on_parent_failure is distinct from 'wait')
          ) or successor_of(s.parent_id) is not null
        order by 1
      ),
      (select max(s.parent_id::text)::uuid from slice s having count(*) = 5000);
end $$;

-- A job, its ancestors and its descendants, nearest first, at most so many; null where there is no such job. Names are ids
-- under which others know a job: its own, and those of jobs that it has replaced. `parents` of a job may lie outside.
-- Indexes: job_bodies_pkey, job_bodies_children, job_dependencies_pkey, job_dependencies_of_child, job_replacements_pkey,
-- job_replacements_by_new.
create function family_of(job uuid, most integer)
returns table (id uuid, parents uuid[])
language sql stable
set search_path from current
set enable_seqscan = off
set jit = off
as $$
  with recursive up(id, is_name) as (
    select job, false
    union
    select step.id, step.is_name from up u cross join lateral (
      select asked.id, true from job_bodies b cross join lateral unnest(b.depends_on) as asked(id)
      where b.id = u.id and not u.is_name
      union all
      select d.parent_id, true from job_dependencies d where d.child_id = u.id and not u.is_name
      union all
      select coalesce(s.id, u.id), s.id is not null from (select successor_of(u.id) as id) s where u.is_name
    ) as step(id, is_name)
  ),
  down(id, is_name) as (
    select job, false
    union
    select step.id, step.is_name from down w cross join lateral (
      select d.child_id, false from job_dependencies d where d.parent_id = w.id
      union all
      select b.id, false from job_bodies b where b.depends_on @> array[w.id]
      union all
      select r.old_id, true from job_replacements r where r.new_id = w.id and successor_of(r.old_id) = w.id
    ) as step(id, is_name)
  ),
  -- The limits end the recursion.
  relatives as (
    select n.id, min(n.distance) as distance from (
      (select u.id, row_number() over () as distance from (select up.id from up where not is_name limit most) u)
      union all
      (select w.id, row_number() over () from (select down.id from down where not is_name limit most) w)
    ) n
    group by n.id order by 2, 1 limit most
  )
  select b.id, array(
    select heir_of(asked.id, b.id) from unnest(b.depends_on) as asked(id)
    union
    select d.parent_id from job_dependencies d where d.child_id = b.id
  )
  from relatives n join job_bodies b on b.id = n.id
  order by n.distance, n.id
$$;

-- Of pairs of a child and a parent, those that may lie on a circle: a child that nothing waits for and a parent that waits for
-- nothing lie on none, and without them others do not. Two layers a round, at most 40.
create function peel_pairs(children uuid[], parents uuid[])
returns table (child_id uuid, parent_id uuid)
language plpgsql
set search_path from current
set enable_nestloop = off
set jit = off
as $$
#variable_conflict use_column
declare
  size integer;
begin
  for round in 1 .. 20 loop
    size := cardinality(children);
    exit when size is null;
    select array_agg(p.child_id), array_agg(p.parent_id) into children, parents
    from unnest(children, parents) as p(child_id, parent_id)
    where p.parent_id in (select unnest(children)) and p.child_id in (select unnest(parents));
    exit when cardinality(children) = size;
  end loop;
  return query select * from unnest(children, parents);
end $$;

-- The parent of a pair, or the job that took its key: children of what was replaced are told only after the commit.
create function waits_for(parent uuid, child uuid) returns uuid
language sql stable
as $$
  select case when exists (select from job_replacements r where r.old_id = parent) then heir_of(parent, child) else parent end
$$;

-- Pairs among which a circle lies, if jobs wait for each other in one: a circle through these jobs, or, with null, through
-- those of the newest 20,000 pairs. None, nearly always. Two transactions may close a circle together. Only jobs with a key
-- can close one: nothing else knows the id of another before it is there. Goes from child to parent, to each job once; looks at
-- 20,000 jobs and 50,000 pairs at most. Indexes: job_dependencies_of_child, job_dependencies_pkey, jobs_pkey,
-- job_replacements_pkey, job_replacements_by_new.
create function circle_pairs(starts uuid[])
returns table (child_id uuid, parent_id uuid)
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
  nodes uuid[];
  children uuid[];
  parents uuid[];
begin
  if starts is null then
    starts := array(
      select distinct d.child_id from (select d.child_id from job_dependencies d order by d.child_id desc limit 20000) d
      where exists (select from job_dependencies o where o.parent_id = d.child_id)
        and exists (
          select from jobs j where j.id = d.child_id and j.job_key is not null and j.parked in ('parents', 'key')
        )
    );
  else
    starts := array(
      select s.id from unnest(starts) as s(id) where exists (select from job_dependencies o where o.parent_id = s.id)
        or exists (select from job_replacements r where r.new_id = s.id)
    );
  end if;
  if cardinality(starts) = 0 then
    return;
  end if;
  nodes := array(
    with recursive up(id) as (
      select unnest(starts)
      union
      select waits_for(d.parent_id, d.child_id) from up u join job_dependencies d on d.child_id = u.id
    )
    -- The limit ends the recursion.
    select u.id from up u limit 20000
  );
  select array_agg(d.child_id), array_agg(d.parent_id) into children, parents from (
    select d.child_id, waits_for(d.parent_id, d.child_id) as parent_id
    from unnest(nodes) as n(id) join job_dependencies d on d.child_id = n.id limit 50000
  ) d;
  return query select * from peel_pairs(children, parents);
end $$;
