-- Adding under a job key. Replacing a job updates and deletes rows, which a role that may only enqueue cannot: so this one
-- function runs with the rights of the tables' owner, and does nothing but what a job key asks for. Everything in it is
-- qualified and typed, and pg_temp comes last, so that nothing its caller has made can take the place of what it calls.

-- Adds jobs that all have a job key, each key once: see statements/add-jobs.ts. Locks keys in their order, then the jobs
-- that hold them, by id; the row of a holder that runs is left alone, the new job only names it: also where its claim ends
-- meanwhile, which lets the new one go (see free_successors). patient: the caller's transaction, which
-- waits as long as its lock_timeout says; else lock_not_available is raised after 100 ms, and the caller tries again.
-- repeated: an earlier try may have gone through, so nothing that is newer is replaced.
-- Indexes: job_keys_pkey, jobs_pkey, job_bodies_pkey.
create function add_keyed_jobs(asked json, payloads json, patient boolean, repeated boolean)
returns table (requested uuid, id uuid, created boolean, missing text, replaced uuid)
language plpgsql
security definer
set search_path from current
as $$
#variable_conflict use_column
declare
  present timestamptz := pg_catalog.clock_timestamp();
  spec record;
  holder record;
  owner uuid;
  waiting uuid[];
  action text;
  still_held boolean;
  new_lane text;
begin
  if not patient then
    perform pg_catalog.set_config('lock_timeout'::text, '100ms'::text, true);
  end if;
  -- New jobs only: a caller must not write over what another job was.
  if exists (
    select from pg_catalog.json_to_recordset(asked) as spec(id uuid) join job_bodies b on b.id = spec.id
  ) then
    raise exception 'a job with one of these ids exists already' using errcode = 'unique_violation';
  end if;
  return query
    select null::uuid, null::uuid, null::boolean, s.rate_limit_key, null::uuid
    from (select distinct rate_limit_key from pg_catalog.json_to_recordset(asked) as spec(rate_limit_key text)) s
    where s.rate_limit_key is not null and not exists (select from rate_limits r where r.key = s.rate_limit_key);
  if found then
    return;
  end if;

  insert into job_keys (key, job_id)
  select spec.job_key, spec.id from pg_catalog.json_to_recordset(asked) as spec(id uuid, job_key text) order by spec.job_key
  on conflict (key) do nothing;
  perform from job_keys k
  where k.key in (select spec.job_key from pg_catalog.json_to_recordset(asked) as spec(job_key text))
  order by k.key for update;
  -- A claim may be at one of them: what it has become is read by the statements that follow.
  if patient then
    waiting := array(
      select j.id from jobs j where j.locked_by is null and j.id in (
        select k.job_id from pg_catalog.json_to_recordset(asked) as spec(job_key text) join job_keys k on k.key = spec.job_key
      )
      order by j.id for update
    );
  else
    waiting := array(
      select j.id from jobs j where j.locked_by is null and j.id in (
        select k.job_id from pg_catalog.json_to_recordset(asked) as spec(job_key text) join job_keys k on k.key = spec.job_key
      )
      order by j.id for update skip locked
    );
    if exists (
      select from pg_catalog.json_to_recordset(asked) as spec(job_key text) join job_keys k on k.key = spec.job_key
      join jobs j on j.id = k.job_id where j.locked_by is null and j.id <> all(waiting)
    ) then
      raise exception 'jobs under these keys are held' using errcode = 'lock_not_available';
    end if;
  end if;
  -- All of them before the first body: this is the order of locks.
  perform from job_dependencies d where d.child_id = any(waiting) order by d.child_id, d.parent_id for update;

  for spec in
    select s.*, coalesce(s.asked_run_at, present + s.delay_ms * interval '1 ms', present) as run_at
    from rows from (
      pg_catalog.json_to_recordset(asked) as (id uuid, task text, priority integer, run_at timestamptz, delay_ms float8,
        max_attempts smallint, timeout_ms integer, queue text, rate_limit_key text, job_key text, job_key_mode text,
        flags text[], tags text[], group_id text, depends_on uuid[], on_parent_failure text, payload_kib smallint),
      pg_catalog.json_array_elements(payloads)
    ) with ordinality as s (id, task, priority, asked_run_at, delay_ms, max_attempts, timeout_ms, queue,
      rate_limit_key, job_key, job_key_mode, flags, tags, group_id, depends_on, on_parent_failure, payload_kib, payload,
      position)
    order by s.job_key
  loop
    select k.job_id into owner from job_keys k where k.key = spec.job_key;
    select j.id, j.id <> all(waiting) as running, j.parked, j.behind into holder from jobs j where j.id = owner;

    action := case
      when holder.id is null then 'add'
      when spec.job_key_mode = 'unsafe_dedupe' or (repeated and holder.id > spec.id) then 'keep'
      when holder.running then 'follow'
      when holder.id = any(spec.depends_on) then 'circle'
      when spec.job_key_mode = 'preserve_run_at' and holder.parked is distinct from 'exhausted' then 'update'
      else 'replace'
    end;
    new_lane := case when spec.queue is not null or spec.rate_limit_key is not null or spec.max_attempts = 1
      then coalesce(spec.queue, '') || E'\x1f\x1f' || coalesce(spec.rate_limit_key, '') end;

    if action = 'circle' then
      raise exception 'job % would wait for itself', holder.id
        using errcode = 'check_violation', constraint = 'no_job_waits_for_itself', detail = holder.id::text;
    end if;
    if action = 'keep' then
      return query select spec.id, holder.id, false, null::text, null::uuid;
      continue;
    end if;
    if action = 'replace' or (action = 'update' and spec.depends_on is null) then
      delete from job_dependencies d where d.child_id = holder.id;
    end if;
    if action = 'update' then
      update jobs j set
        priority = spec.priority, max_attempts = spec.max_attempts, slot_only = spec.max_attempts = 1, lane = new_lane,
        task = spec.task, queue = spec.queue, rate_limit_key = spec.rate_limit_key, flags = spec.flags,
        payload_kib = coalesce(spec.payload_kib, 0::smallint), attempts = 0, crashes = 0, last_error = null, previous = null,
        unmet = coalesce(pg_catalog.cardinality(spec.depends_on), 0),
        parked = case when j.parked = 'key' then 'key' when spec.depends_on is not null then 'parents' end,
        revision = j.revision + 1, updated_at = present
      where j.id = holder.id;
      update job_bodies b set
        priority = spec.priority, max_attempts = spec.max_attempts, timeout_ms = spec.timeout_ms, task = spec.task,
        payload = spec.payload, queue = spec.queue, rate_limit_key = spec.rate_limit_key,
        job_key_mode = spec.job_key_mode, flags = spec.flags, tags = spec.tags, group_id = spec.group_id,
        depends_on = spec.depends_on, on_parent_failure = spec.on_parent_failure
      where b.id = holder.id;
      delete from job_steps s where s.job_id = holder.id;
      delete from job_progress p where p.job_id = holder.id;
      return query select spec.id, holder.id, false, null::text, null::uuid;
      continue;
    end if;

    still_held := exists (
      select from jobs h where h.id = holder.behind and (h.locked_by is not null or h.parked is distinct from 'exhausted'));
    if action = 'replace' then
      delete from jobs j where j.id = holder.id;
      delete from job_bodies b where b.id = holder.id;
      delete from job_steps s where s.job_id = holder.id;
      delete from job_progress p where p.job_id = holder.id;
      delete from job_logs l where l.job_id = holder.id;
    end if;
    if action in ('replace', 'follow') then
      insert into job_replacements (old_id, new_id) values (holder.id, spec.id)
      on conflict (old_id) do update set new_id = excluded.new_id, replaced_at = excluded.replaced_at;
    end if;
    insert into jobs (id, run_at, priority, max_attempts, slot_only, lane, payload_kib, task, queue, rate_limit_key, flags,
      job_key, unmet, behind, parked)
    values (spec.id, spec.run_at, spec.priority, spec.max_attempts, spec.max_attempts = 1, new_lane,
      coalesce(spec.payload_kib, 0::smallint), spec.task, spec.queue, spec.rate_limit_key, spec.flags, spec.job_key,
      coalesce(pg_catalog.cardinality(spec.depends_on), 0),
      case when action = 'follow' then holder.id when action = 'replace' and still_held then holder.behind end,
      case
        when action = 'follow' or (action = 'replace' and still_held) then 'key'
        when spec.depends_on is not null then 'parents'
      end);
    insert into job_bodies (id, created_at, run_at, priority, max_attempts, timeout_ms, task, payload, queue, rate_limit_key, job_key,
      job_key_mode, flags, tags, group_id, depends_on, on_parent_failure)
    values (spec.id, present, spec.run_at, spec.priority, spec.max_attempts, spec.timeout_ms, spec.task, spec.payload, spec.queue,
      spec.rate_limit_key, spec.job_key, spec.job_key_mode, spec.flags, spec.tags, spec.group_id, spec.depends_on,
      spec.on_parent_failure);
    update job_keys k set job_id = spec.id where k.key = spec.job_key and k.job_id <> spec.id;
    return query select spec.id, spec.id, true, null::text,
      case when action in ('replace', 'follow') then holder.id end;
  end loop;
end $$;

revoke all on function add_keyed_jobs(json, json, boolean, boolean) from public;
