-- Runs in one transaction with search_path set to the library's schema.

-- What a job is. Written once; a finished job stays here until its last history record expires. UUID v7 ids carry
-- their time, so ranges of ids are ranges of time, and whole partitions can be dropped.
create table job_bodies (
  id uuid not null,
  created_at timestamptz not null default now(),
  run_at timestamptz not null,
  priority integer not null,
  max_attempts smallint not null,
  timeout_ms integer,
  task text not null,
  payload json not null,
  queue text,
  rate_limit_key text,
  job_key text,
  job_key_mode text,
  flags text[],
  tags text[],
  group_id text,
  constraint job_bodies_pkey primary key (id)
) partition by range (id);

create table job_bodies_default partition of job_bodies default;

create index job_bodies_group on job_bodies (group_id, id) where group_id is not null;

-- Where a job stands: one narrow row for each job that is not completed or cancelled.
-- A claim changes no indexed column, and only columns that lie side by side at the row's end: it is a heap-only
-- update that logs a few dozen bytes. The free part of each page is its room.
create table jobs (
  id uuid not null,
  run_at timestamptz not null,
  updated_at timestamptz,
  priority integer not null,
  max_attempts smallint not null,
  crashes smallint not null default 0,
  -- Claimed for a free slot only, never buffered: limited queues, rate limits, last attempts, suspects of crashes.
  slot_only boolean not null default false,
  cancel_requested boolean not null default false,
  replayed boolean not null default false,
  -- Why the job is out of the range that claims read; null: it is ready, or will be at run_at.
  parked text,
  task text not null,
  queue text,
  rate_limit_key text,
  job_key text,
  flags text[],
  -- The job that took over this running job's key and waits for it to leave.
  superseded_by uuid,
  last_error text,
  cancel_reason text,
  previous json,
  -- From here on: what a claim changes.
  -- Grows with every claim and never falls: whoever settles must name it.
  fence bigint not null default 0,
  locked_at timestamptz,
  -- Set for claims made by hand only; a pool's claims live by its row in workers.
  lease_expires_at timestamptz,
  lease_ms bigint,
  revision integer not null default 0,
  attempts smallint not null default 0,
  snoozed boolean not null default false,
  locked_by text,
  constraint jobs_pkey primary key (id),
  constraint attempts_within_max check (attempts between 0 and max_attempts),
  constraint max_attempts_at_least_one check (max_attempts >= 1),
  constraint parked_for_a_known_reason check (parked in ('queue', 'tokens', 'parents', 'key', 'exhausted')),
  constraint locked_jobs_are_not_parked check (locked_by is null or parked is null)
) with (fillfactor = 40);

create index jobs_ready on jobs (priority, run_at, id) where parked is null and not slot_only;
create index jobs_ready_for_slots on jobs (priority, run_at, id) where parked is null and slot_only;
create index jobs_of_queue on jobs (queue, priority, run_at, id)
  where queue is not null and (parked is null or parked = 'queue');
create index jobs_waiting_for_tokens on jobs (rate_limit_key, priority, run_at, id) where parked = 'tokens';
create index jobs_blocked_by_key on jobs (id) where parked = 'key';
create index jobs_superseded on jobs (superseded_by) where superseded_by is not null;
create index jobs_exhausted on jobs (id) where parked = 'exhausted';
create index jobs_leased_by_hand on jobs (lease_expires_at) where lease_expires_at is not null;
create unique index job_key_is_unique_among_live_jobs on jobs (job_key) where job_key is not null;

create type job_outcome as enum ('completed', 'failed', 'partial_success', 'snoozed', 'cancelled');

-- One narrow row for each finished attempt. (job_id, fence) names the attempt.
create table job_history (
  job_id uuid not null,
  fence bigint not null,
  started_at timestamptz,
  completed_at timestamptz not null default now(),
  expires_at timestamptz not null,
  queue_time_ms bigint,
  execution_time_ms integer,
  status job_outcome not null,
  attempt smallint not null,
  worker_id text,
  error_message text,
  error_stack text,
  result json,
  partial_results json,
  environment json
) partition by range (expires_at);

create table job_history_default partition of job_history default;

create index job_history_by_job on job_history (job_id);

-- Completions that leave no history record are still known for an hour: one row for each settled batch.
create table settle_receipts (
  settled_at timestamptz not null default now(),
  job_ids uuid[] not null,
  fences bigint[] not null
);

-- Registries: filled by claims and maintenance, never by an enqueue.
create table job_queues (
  name text not null,
  -- Null: no limit.
  concurrency integer default 1,
  -- Set by configureQueue, which wins over what processes declare.
  configured boolean not null default false,
  paused boolean not null default false,
  running integer not null default 0,
  locked_by text,
  -- When a job was last made to wait; null: none has been for a while.
  parked_at timestamptz,
  last_used_at timestamptz not null default now(),
  constraint job_queues_pkey primary key (name),
  constraint running_is_not_negative check (running >= 0),
  constraint concurrency_at_least_one check (concurrency >= 1)
);

create table job_tasks (
  task text not null,
  last_seen_at timestamptz not null default now(),
  constraint job_tasks_pkey primary key (task)
);

create table rate_limits (
  key text not null,
  capacity integer not null,
  interval_ms bigint not null,
  available integer not null,
  window_started_at timestamptz not null,
  parked_at timestamptz,
  constraint rate_limits_pkey primary key (key),
  constraint capacity_at_least_one check (capacity >= 1),
  constraint interval_is_positive check (interval_ms >= 1),
  constraint tokens_within_capacity check (available between 0 and capacity)
);

create table workers (
  id text not null,
  host text not null,
  pid integer not null,
  concurrency integer not null,
  lease_ms bigint not null,
  started_at timestamptz not null default now(),
  heartbeat_at timestamptz not null default now(),
  -- Null: alive, or dead and not yet noticed.
  stopped_at timestamptz,
  tasks text[] not null,
  environment json not null,
  constraint workers_pkey primary key (id)
);
