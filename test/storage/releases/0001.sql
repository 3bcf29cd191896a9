-- statement: register_worker
insert into jobs.workers (id, host, pid, concurrency, lease_ms, tasks, environment)
  values ($1, $2, $3, $4, $5, $6::text[], $7::json)
  on conflict (id) do update set stopped_at = null, heartbeat_at = clock_timestamp(), tasks = excluded.tasks,
    concurrency = excluded.concurrency, lease_ms = excluded.lease_ms

-- statement: heartbeat
with beat as (
    update jobs.workers set heartbeat_at = clock_timestamp()
    where id = $1 and stopped_at is null
    returning id
  )
  select (
    select json_agg(j.id) from jobs.jobs j where j.id = any($2::uuid[]) and j.locked_by = $1 and j.cancel_requested
  ) as cancel_requested
  from beat

-- statement: add_jobs
with specs as materialized (
    select spec.*, coalesce(spec.asked_run_at, now() + spec.delay_ms * interval '1 ms', now()) as run_at
    from rows from (
      json_to_recordset($1::json) as (id uuid, task text, priority integer, run_at timestamptz, delay_ms float8,
        max_attempts smallint, timeout_ms integer, queue text, rate_limit_key text, job_key text, job_key_mode text,
        flags text[], tags text[], group_id text),
      json_array_elements($2::json)
    ) with ordinality as spec (id, task, priority, asked_run_at, delay_ms, max_attempts, timeout_ms, queue,
      rate_limit_key, job_key, job_key_mode, flags, tags, group_id, payload, position)
  ),
  missing as materialized (
    select distinct s.rate_limit_key as key from specs s
    where s.rate_limit_key is not null
      and not exists (select from jobs.rate_limits r where r.key = s.rate_limit_key)
  ),
  bodies as (
    insert into jobs.job_bodies (id, run_at, priority, max_attempts, timeout_ms, task, payload, queue, rate_limit_key, job_key,
    job_key_mode, flags, tags, group_id)
    select id, run_at, priority, max_attempts, timeout_ms, task, payload, queue, rate_limit_key, job_key,
    job_key_mode, flags, tags, group_id from specs s where not exists (select from missing) order by position
    on conflict (id) do nothing
    returning id, created_at
  ),
  live as (
    insert into jobs.jobs (id, run_at, priority, max_attempts, slot_only, task, queue, rate_limit_key, flags)
    select s.id, s.run_at, s.priority, s.max_attempts, (s.queue is not null or s.rate_limit_key is not null or s.max_attempts = 1), s.task, s.queue, s.rate_limit_key, s.flags
    from bodies join specs s using (id) order by s.position
  ),
  announced as materialized (
    select pg_notify($3::text, '') from specs
    where $3::text is not null and run_at <= now() + interval '2 s' limit 1
  )
  select s.id as requested, s.id, true as created, (extract(epoch from s.run_at) * 1000)::float8 as run_at,
    (extract(epoch from now()) * 1000)::float8 as created_at, null as missing
  from specs s left join announced on true
  where not exists (select from missing)
  union all
  select null, null, null, null, null, key from missing

-- statement: claim_jobs
with recursive holder as materialized (
    select from jobs.workers where id = $1 and stopped_at is null for share
  ),

  plain_gaps as (
    select found.priority, gap.upper_bound
    from unnest($12::boolean[], $13::bigint[], $14::bigint[]) as gap(slot_only, lower_bound, upper_bound)
    cross join lateral (
      select j.priority from jobs.jobs j
      where j.parked is null and not j.slot_only
        and j.priority > gap.lower_bound and j.priority < gap.upper_bound
      order by j.priority limit 1
    ) found
    where not gap.slot_only and $2::integer > 0 and ($7::bigint is not null or exists (select from holder))
    union all
    select found.priority, gap.upper_bound
    from plain_gaps gap
    cross join lateral (
      select j.priority from jobs.jobs j
      where j.parked is null and not j.slot_only
        and j.priority > gap.priority and j.priority < gap.upper_bound
      order by j.priority limit 1
    ) found
  ),

  slots_gaps as (
    select found.priority, gap.upper_bound
    from unnest($12::boolean[], $13::bigint[], $14::bigint[]) as gap(slot_only, lower_bound, upper_bound)
    cross join lateral (
      select j.priority from jobs.jobs j
      where j.parked is null and j.slot_only
        and j.priority > gap.lower_bound and j.priority < gap.upper_bound
      order by j.priority limit 1
    ) found
    where gap.slot_only and $3::integer > 0 and ($7::bigint is not null or exists (select from holder))
    union all
    select found.priority, gap.upper_bound
    from slots_gaps gap
    cross join lateral (
      select j.priority from jobs.jobs j
      where j.parked is null and j.slot_only
        and j.priority > gap.priority and j.priority < gap.upper_bound
      order by j.priority limit 1
    ) found
  ),

  plain_starts as materialized (
    select priority, run_at, id
    from unnest($8::boolean[], $9::integer[], $10::timestamptz[], $11::uuid[]) as known(slot_only, priority, run_at, id)
    where not slot_only and ($7::bigint is not null or exists (select from holder))
    union all
    select priority, '-infinity', '00000000-0000-0000-0000-000000000000' from plain_gaps
    order by priority
  ),
  plain as materialized (
    select due.* from plain_starts start
    cross join lateral (
      select j.id, j.priority, j.run_at, j.slot_only, j.queue, j.rate_limit_key
      from jobs.jobs j
      where j.parked is null and not j.slot_only and j.locked_by is null
        and j.priority = start.priority and (j.run_at, j.id) > (start.run_at, start.id) and j.run_at <= now()
        and ($4::text[] is null or j.task = any($4))
        and ($5::text[] is null or j.flags is null or not j.flags && $5)
        and ($6::text is null or j.queue = $6)
      order by j.run_at, j.id
      limit $2
      for update skip locked
    ) due

    limit $2
  ),

  slots_starts as materialized (
    select priority, run_at, id
    from unnest($8::boolean[], $9::integer[], $10::timestamptz[], $11::uuid[]) as known(slot_only, priority, run_at, id)
    where slot_only and ($7::bigint is not null or exists (select from holder))
    union all
    select priority, '-infinity', '00000000-0000-0000-0000-000000000000' from slots_gaps
    order by priority
  ),
  slots as materialized (
    select due.* from slots_starts start
    cross join lateral (
      select j.id, j.priority, j.run_at, j.slot_only, j.queue, j.rate_limit_key
      from jobs.jobs j
      where j.parked is null and j.slot_only and j.locked_by is null
        and j.priority = start.priority and (j.run_at, j.id) > (start.run_at, start.id) and j.run_at <= now()
        and ($4::text[] is null or j.task = any($4))
        and ($5::text[] is null or j.flags is null or not j.flags && $5)
        and ($6::text is null or j.queue = $6)
      order by j.run_at, j.id
      limit $3
      for update skip locked
    ) due
    where $15::integer is null or start.priority <= $15
    limit $3
  ),
  candidates as materialized (
    select *, row_number() over (order by priority, run_at, id) as rank
    from (select * from plain union all select * from slots) found
  ),
  in_turn as materialized (
    select *, rank > case when slot_only then least($2::integer, $3::integer) else $2::integer end as later
    from candidates
  ),
  locked_queues as materialized (
    select q.name, case when q.paused then 0 else greatest(0, coalesce(q.concurrency, 2147483647) - q.running) end as free
    from jobs.job_queues q
    where q.name in (select queue from in_turn where queue is not null and not later)
    order by q.name for update
  ),
  -- Whose turn it is, whoever may be looking at it: a claim that runs beside this one has locked the jobs it came
  -- across, so the first that this one found need not be the first in line.
  heads as materialized (
    select q.name, head.id
    from locked_queues q cross join lateral (
      select j.id from jobs.jobs j
      where j.queue = q.name and (j.parked is null or j.parked = 'queue') and j.locked_by is null
        and j.run_at <= now() and ($4::text[] is null or j.task = any($4))
        and ($5::text[] is null or j.flags is null or not j.flags && $5)
      order by j.priority, j.run_at, j.id
      limit q.free
    ) head
  ),
  queued as materialized (
    select c.*, q.name as known_queue, q.free, c.queue is null or h.id is not null as admitted
    from in_turn c
    left join locked_queues q on q.name = c.queue
    left join heads h on h.id = c.id
  ),
  locked_limits as materialized (
    select r.* from jobs.rate_limits r
    where r.key in (select rate_limit_key from queued where admitted and not later)
    order by r.key for update
  ),
  windows as materialized (
    select key, capacity, interval_ms, at, clock.started_at,
      case when clock.started_at > window_started_at then capacity else available end as tokens,
      (extract(epoch from (clock.started_at + interval_ms * interval '1 ms') - at) * 1000)::float8 as refill_in_ms
    from (select *, clock_timestamp() as at from locked_limits) locked_limit
    cross join lateral (
      -- Windows are fixed: however late the first claim of one comes, it starts a whole number of intervals on.
      select window_started_at + greatest(0, floor(extract(epoch from at - window_started_at) * 1000 / interval_ms))
        * interval_ms * interval '1 ms' as started_at
    ) clock
  ),
  verdicts as materialized (
    select c.*, w.refill_in_ms, case
      when c.later then 'later'
      when c.queue is not null and c.known_queue is null then 'unknown_queue'
      when not c.admitted then 'queue'
      when c.rate_limit_key is null then 'claimed'
      when row_number() over (
        partition by c.rate_limit_key, c.admitted and not c.later order by c.priority, c.run_at, c.id
      ) <= coalesce(w.tokens, 0) then 'claimed'
      else 'tokens'
    end as verdict
    from queued c left join windows w on w.key = c.rate_limit_key
  ),
  claimed as (
    update jobs.jobs j
    set locked_by = $1, locked_at = now(), attempts = j.attempts + 1, fence = j.fence + 1, revision = j.revision + 1,
      snoozed = false, lease_ms = $7::bigint, lease_expires_at = now() + $7::bigint * interval '1 ms'
    from verdicts v
    where v.verdict = 'claimed' and j.id = v.id
    returning j.*
  ),
  parked as (
    update jobs.jobs j set parked = v.verdict
    from verdicts v
    where v.verdict in ('queue', 'tokens') and j.id = v.id
  ),
  counted as (
    update jobs.job_queues q
    set running = q.running + taken.claims, last_used_at = now(),
      locked_by = case when taken.claims > 0 then $1 else q.locked_by end,
      parked_at = case when taken.refusals > 0 then clock_timestamp() else q.parked_at end
    from (
      select queue, count(*) filter (where verdict = 'claimed') as claims,
        count(*) filter (where verdict in ('queue', 'tokens')) as refusals
      from verdicts where known_queue is not null and not later group by queue
    ) taken
    where q.name = taken.queue
  ),
  spent as (
    update jobs.rate_limits r
    set available = w.tokens - taken.claims, window_started_at = w.started_at,
      parked_at = case when taken.refusals > 0 then w.at else r.parked_at end
    from windows w join (
      select rate_limit_key, count(*) filter (where verdict = 'claimed') as claims,
        count(*) filter (where verdict = 'tokens') as refusals
      from verdicts where rate_limit_key is not null group by rate_limit_key
    ) taken on taken.rate_limit_key = w.key
    where r.key = w.key
  )
  select v.verdict, v.slot_only, v.id as candidate_id, v.priority as candidate_priority,
    v.run_at::text as candidate_run_at, v.queue as candidate_queue, v.refill_in_ms,
    v.verdict in ('queue', 'tokens') and v.free > count(*) filter (where v.verdict = 'claimed')
      over (partition by v.queue) as promote,
    j.id, b.task, b.payload, b.queue, b.rate_limit_key, b.job_key_mode, to_json(b.flags) as flags,
    to_json(b.tags) as tags, b.group_id, b.timeout_ms, (extract(epoch from b.created_at) * 1000)::float8 as created_at,
    case
      when j.locked_by is not null then 'running'
      when j.parked = 'exhausted' then 'exhausted'
      when j.parked in ('parents', 'key') then 'blocked'
      when j.run_at > now() and j.snoozed then 'snoozed'
      when j.run_at > now() then 'scheduled'
      else 'available'
    end as status, j.priority, (extract(epoch from j.run_at) * 1000)::float8 as run_at, j.attempts, j.max_attempts, j.last_error,
    j.job_key, j.locked_by, (extract(epoch from j.locked_at) * 1000)::float8 as locked_at, j.revision,
    (extract(epoch from greatest(b.created_at, j.updated_at, j.locked_at)) * 1000)::float8 as updated_at, j.fence, j.previous
  from verdicts v
  left join claimed j on j.id = v.id
  left join jobs.job_bodies b on b.id = j.id
  order by v.priority, v.run_at, v.id

-- statement: complete_jobs
with input as materialized (
    select * from unnest($2::uuid[], $3::bigint[], $4::integer[], $5::text[]) as i(id, fence, execution_time_ms, result)
  ),
  held as materialized (
    select j.* from jobs.jobs j join input i on i.id = j.id and i.fence = j.fence
    where j.locked_by = $1
    for update of j skip locked
  ),
  gone as (delete from jobs.jobs j using held h where j.id = h.id),
  recorded as (
    insert into jobs.job_history (job_id, fence, started_at, expires_at, queue_time_ms, execution_time_ms, status,
      attempt, worker_id, result, environment)
    select h.id, h.fence, h.locked_at, now() + $7::bigint * interval '1 ms', greatest(0, extract(epoch from h.locked_at - h.run_at) * 1000)::bigint, i.execution_time_ms,
      case when h.cancel_requested then 'cancelled' else 'completed' end::jobs.job_outcome, h.attempts, $1,
      i.result::json, $8::json
    from held h join input i on i.id = h.id
    where $6::boolean or h.cancel_requested
  ),
  receipt as (
    insert into jobs.settle_receipts (job_ids, fences)
    select array_agg(id), array_agg(fence) from held where not $6::boolean having count(*) > 0
  ),
  freed_queues as materialized (
    select q.name from jobs.job_queues q
    where q.name in (select queue from held where queue is not null)
    order by q.name for update
  ),
  freed as (
    update jobs.job_queues q
    set running = greatest(0, q.running - ended.jobs), last_used_at = now(),
      locked_by = case when q.running > ended.jobs then q.locked_by end
    from freed_queues f
    join (select queue, count(*)::integer as jobs from held where queue is not null group by queue) ended
      on ended.queue = f.name
    where q.name = f.name
    returning q.name, q.parked_at is not null as others_wait
  )
  select h.id, h.fence, case when h.cancel_requested then 'cancelled' else 'completed' end as became,
    null::float8 as run_at, case when f.others_wait then h.queue end as promote, h.superseded_by
  from held h left join freed f on f.name = h.queue
