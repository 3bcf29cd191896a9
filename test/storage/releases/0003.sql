-- statement: register_worker
insert into jobs.workers (id, host, pid, concurrency, lease_ms, tasks, environment)
  values ($1, $2, $3, $4, $5, $6::text[], $7::json)
  on conflict (id) do update set stopped_at = null, leftovers = false, heartbeat_at = clock_timestamp(), tasks = excluded.tasks,
    concurrency = excluded.concurrency, lease_ms = excluded.lease_ms

-- statement: heartbeat
with beat as (
    update jobs.workers set heartbeat_at = clock_timestamp()
    where id = $1 and stopped_at is null
    returning id
  )
  select (select json_agg(id) from (
  select j.id from jobs.jobs j where j.cancel_requested and j.locked_by = $1) asked) as cancel_requested
  from beat

-- statement: add_jobs
with specs as materialized (
    select spec.*, coalesce(spec.asked_run_at, now() + spec.delay_ms * interval '1 ms', now()) as run_at
    from rows from (
      json_to_recordset($1::json) as (id uuid, task text, priority integer, run_at timestamptz, delay_ms float8,
        max_attempts smallint, timeout_ms integer, queue text, rate_limit_key text, job_key text, job_key_mode text,
        flags text[], tags text[], group_id text, depends_on uuid[], on_parent_failure text),
      json_array_elements($2::json)
    ) with ordinality as spec (id, task, priority, asked_run_at, delay_ms, max_attempts, timeout_ms, queue,
      rate_limit_key, job_key, job_key_mode, flags, tags, group_id, depends_on, on_parent_failure, payload, position)
  ),
  missing as materialized (
    select distinct s.rate_limit_key as key from specs s
    where s.rate_limit_key is not null
      and not exists (select from jobs.rate_limits r where r.key = s.rate_limit_key)
  ),
  bodies as (
    insert into jobs.job_bodies (id, run_at, priority, max_attempts, timeout_ms, task, payload, queue, rate_limit_key, job_key,
    job_key_mode, flags, tags, group_id, depends_on, on_parent_failure)
    select id, run_at, priority, max_attempts, timeout_ms, task, payload, queue, rate_limit_key, job_key,
    job_key_mode, flags, tags, group_id, depends_on, on_parent_failure from specs s where not exists (select from missing)
    on conflict (id) do nothing
    returning id
  ),
  live as (
    insert into jobs.jobs
      (id, run_at, priority, max_attempts, slot_only, task, queue, rate_limit_key, flags, unmet, parked)
    select s.id, s.run_at, s.priority, s.max_attempts, (s.queue is not null or s.rate_limit_key is not null or s.max_attempts = 1), s.task, s.queue, s.rate_limit_key, s.flags,
      coalesce(cardinality(s.depends_on), 0), case when s.depends_on is not null then 'parents' end
    from bodies join specs s using (id)
  ),
  announced as materialized (
    select pg_notify($3::text, '') from specs
    where $3::text is not null and run_at <= now() + interval '2 s' limit 1
  )
  select (extract(epoch from now()) * 1000)::float8 as now, null as missing from (select 1) one left join announced on true
  where not exists (select from missing)
  union all
  select null, key from missing

-- statement: claim_jobs
select * from jobs.claim_jobs(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text[]::timestamptz[], $11, $12, $13, $14, $15, $16
  )

-- statement: complete_jobs
select * from jobs.complete_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9)
