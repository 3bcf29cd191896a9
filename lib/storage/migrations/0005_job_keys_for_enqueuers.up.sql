-- Runs in one transaction with search_path set to the library's schema. Safe while workers of earlier versions run:
-- their own statement does the same.

-- Replacing a job by its key updates and deletes rows, which a role that may only enqueue cannot: so this one function
-- runs with the rights of the tables' owner, and does nothing but what a job key asks for. pg_temp comes last, or
-- whoever calls it could put tables of his own in the place of ours.
select set_config('search_path', current_setting('search_path') || ', pg_temp', true);

-- Adds jobs that all have a job key, each key once: see statements/add-jobs.ts.
create function add_keyed_jobs(asked json, payloads json, channel text)
returns table (requested uuid, id uuid, created boolean, missing text, freed_queue text)
language plpgsql
security definer
set search_path from current
as $$
#variable_conflict use_column
begin
  -- New jobs only: a caller must not write over what another job was.
  if exists (
    select from json_to_recordset(asked) as spec(id uuid) join job_bodies b on b.id = spec.id
  ) then
    raise exception 'a job with one of these ids exists already' using errcode = 'unique_violation';
  end if;
  return query
    with specs as materialized (
      select spec.*, coalesce(spec.asked_run_at, now() + spec.delay_ms * interval '1 ms', now()) as run_at
      from rows from (
        json_to_recordset(asked) as (id uuid, task text, priority integer, run_at timestamptz, delay_ms float8,
          max_attempts smallint, timeout_ms integer, queue text, rate_limit_key text, job_key text, job_key_mode text,
          flags text[], tags text[], group_id text, depends_on uuid[], on_parent_failure text),
        json_array_elements(payloads)
      ) with ordinality as spec (id, task, priority, asked_run_at, delay_ms, max_attempts, timeout_ms, queue,
        rate_limit_key, job_key, job_key_mode, flags, tags, group_id, depends_on, on_parent_failure, payload, position)
    ),
    missing as materialized (
      select distinct s.rate_limit_key as key from specs s
      where s.rate_limit_key is not null
        and not exists (select from rate_limits r where r.key = s.rate_limit_key)
    ),
    held as materialized (
      select j.id, j.job_key, j.queue, j.locked_by is not null as running, j.parked
      from jobs j
      where j.job_key in (select job_key from specs) and not exists (select from missing)
      order by j.job_key for update
    ),
    superseded as (
      update jobs j
      set job_key = null, superseded_by = s.id, revision = j.revision + 1, updated_at = now()
      from held h join specs s using (job_key)
      where j.id = h.id and h.running and s.job_key_mode <> 'unsafe_dedupe'
      returning s.id as successor
    ),
    gone as (
      delete from jobs j
      using held h join specs s using (job_key)
      where j.id = h.id and not h.running
        and (s.job_key_mode = 'replace' or (s.job_key_mode = 'preserve_run_at' and h.parked = 'exhausted'))
      returning j.id, s.id as successor, j.queue
    ),
    gone_bodies as (delete from job_bodies b using gone where b.id = gone.id),
    -- The running job that the old one had to wait for: now the new one waits. Index: jobs_superseded.
    inherited as (
      update jobs j set superseded_by = gone.successor, revision = j.revision + 1, updated_at = now()
      from gone where j.superseded_by = gone.id and j.locked_by is not null
      returning gone.successor
    ),
    -- What was done for the old payload says nothing of the new one, whose job may have the same id.
    outdated as (
      select h.id from held h join specs s using (job_key) where not h.running and s.job_key_mode <> 'unsafe_dedupe'
    ),
    no_steps as (delete from job_steps s using outdated o where s.job_id = o.id),
    no_progress as (delete from job_progress p using outdated o where p.job_id = o.id),
    no_logs as (delete from job_logs l using gone f where l.job_id = f.id),
    no_parents as (delete from job_dependencies d using gone f where d.child_id = f.id),
    no_parents_any_more as (
      delete from job_dependencies d using held h join specs s using (job_key)
      where d.child_id = h.id and not h.running and s.job_key_mode = 'preserve_run_at' and s.depends_on is null
    ),
    -- Who waits for the old job waits for the new one.
    followed as (
      update job_dependencies d set parent_id = s.id
      from held h join specs s using (job_key)
      where d.parent_id = h.id and (
        h.id in (select id from gone) or (h.running and s.job_key_mode <> 'unsafe_dedupe')
      )
    ),
    live as (
      insert into jobs as j
        (id, run_at, priority, max_attempts, slot_only, task, queue, rate_limit_key, flags, job_key, unmet, parked)
      select s.id, s.run_at, s.priority, s.max_attempts, (s.queue is not null or s.rate_limit_key is not null or s.max_attempts = 1), s.task, s.queue, s.rate_limit_key, s.flags,
        s.job_key, coalesce(cardinality(s.depends_on), 0),
        case when coalesce(superseded.successor, inherited.successor) is not null then 'key' when s.depends_on is not null then 'parents' end
      from specs s
      left join superseded on superseded.successor = s.id
      -- Reading gone here makes the deletion of the old holder happen first.
      left join gone on gone.successor = s.id
      left join inherited on inherited.successor = s.id
      where not exists (select from missing)
      order by s.job_key
      on conflict (job_key) where job_key is not null do update set
        priority = excluded.priority, max_attempts = excluded.max_attempts, slot_only = excluded.slot_only,
        task = excluded.task, queue = excluded.queue, rate_limit_key = excluded.rate_limit_key, flags = excluded.flags,
        attempts = 0, crashes = 0, last_error = null, previous = null, unmet = excluded.unmet,
        parked = case when j.parked = 'key' then 'key' else excluded.parked end,
        revision = j.revision + 1, updated_at = now()
      where j.locked_by is null and j.parked is distinct from 'exhausted' and exists (
        select from specs s where s.job_key = j.job_key and s.job_key_mode = 'preserve_run_at'
      )
      returning j.id, j.job_key, j.run_at
    ),
    kept as (
      select h.id, h.job_key from held h join specs s using (job_key) where s.job_key_mode = 'unsafe_dedupe'
    ),
    bodies as (
      insert into job_bodies as b (id, run_at, priority, max_attempts, timeout_ms, task, payload, queue, rate_limit_key, job_key,
      job_key_mode, flags, tags, group_id, depends_on, on_parent_failure)
      select live.id, s.run_at, s.priority, s.max_attempts, s.timeout_ms, s.task, s.payload, s.queue, s.rate_limit_key,
        s.job_key, s.job_key_mode, s.flags, s.tags, s.group_id, s.depends_on, s.on_parent_failure
      from live join specs s using (job_key) order by s.position
      on conflict (id) do update set
        priority = excluded.priority, max_attempts = excluded.max_attempts, timeout_ms = excluded.timeout_ms,
        task = excluded.task, payload = excluded.payload, queue = excluded.queue,
        rate_limit_key = excluded.rate_limit_key, job_key_mode = excluded.job_key_mode, flags = excluded.flags,
        tags = excluded.tags, group_id = excluded.group_id, depends_on = excluded.depends_on,
        on_parent_failure = excluded.on_parent_failure
    ),
    announced as materialized (
      select pg_notify(channel, '') from specs
      where channel is not null and run_at <= now() + interval '2 s' limit 1
    )
    select s.id as requested, coalesce(live.id, kept.id) as id, coalesce(live.id = s.id, false) as created,
      null as missing, (select queue from gone where gone.successor = s.id) as freed_queue
    from specs s
    left join live using (job_key)
    left join kept using (job_key)
    left join announced on true
    where not exists (select from missing) and coalesce(live.id, kept.id) is not null
    union all
    select null, null, null, key, null from missing;
end $$;

revoke all on function add_keyed_jobs(json, json, text) from public;
