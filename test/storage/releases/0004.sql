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
  select j.id from jobs.jobs j where j.cancel_requested and j.locked_by = $1) asked) as cancel_requested,

  exists (
    select from jobs.workers
    where (stopped_at is null and heartbeat_at + lease_ms * interval '1 ms' <= clock_timestamp()) or leftovers
  ) or exists (
    select from jobs.job_queues
    where parked_at is not null and not paused and running < coalesce(concurrency, 2147483647)
  ) or exists (
    select from jobs.jobs j
    where j.parked = 'key' and not exists (
      select from jobs.jobs holder where holder.superseded_by = j.id and holder.locked_by is not null
    )
  ) as needs_rescue, exists (select from jobs.rate_limits) as has_rate_limits
  from beat

-- statement: add_alike_jobs
with due as materialized (
    select coalesce($6::timestamptz, now() + $7::float8 * interval '1 ms', now()) as at
  ),
  bodies as (
    insert into jobs.job_bodies (id, run_at, priority, max_attempts, task, payload)
    select s.id, (select at from due), $4::integer, $5::smallint, $3::text, s.payload::json
    from rows from (unnest($1::text::uuid[]), string_to_table($2::text, E'\n')) as s (id, payload)
  ),
  live as (
    insert into jobs.jobs (id, run_at, priority, max_attempts, slot_only, task)
    select s.id, (select at from due), $4, $5, $5 = 1, $3 from unnest($1::text::uuid[]) as s (id)
  ),
  announced as materialized (
    select pg_notify($8::text, '') from due where $8::text is not null and at <= now() + interval '2 s'
  )
  select (extract(epoch from now()) * 1000)::float8 as now, null as missing from (select 1) one left join announced on true

-- statement: claim_plain_jobs
select claimed as job from jobs.claim_plain_jobs($1, $2, $3, $4, $5, $6::text[]::timestamptz[], $7) claimed

-- statement: complete_jobs
select * from jobs.complete_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9)
