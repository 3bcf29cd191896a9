-- Runs in one transaction with search_path set to the library's schema. Safe while workers of version 1 run: every
-- new column has a default that means what they do.

-- Which jobs a job waits for, and what it does when one of them fails for good.
alter table job_bodies add column depends_on uuid[];
alter table job_bodies add column on_parent_failure text
  constraint on_parent_failure_is_known check (on_parent_failure in ('cancel', 'run', 'wait'));

-- How many parents a job still waits for. Behind the columns that a claim changes, like nothing else: a claim stays
-- heap-only.
alter table jobs add column unmet integer not null default 0
  constraint unmet_is_not_negative check (unmet >= 0);

-- Found at each heartbeat. Its key is the id, not the worker, because claims must change no indexed column.
create index jobs_to_cancel on jobs (id) where cancel_requested;

-- One row for each parent that a job still waits for.
create table job_dependencies (
  parent_id uuid not null,
  child_id uuid not null,
  constraint job_dependencies_pkey primary key (parent_id, child_id)
);

create index job_dependencies_of_child on job_dependencies (child_id);

-- What ctx.step has done: once for each job, whatever attempt did it.
create table job_steps (
  job_id uuid not null,
  name text not null,
  position integer not null,
  fence bigint not null,
  result json,
  completed_at timestamptz not null default clock_timestamp(),
  constraint job_steps_pkey primary key (job_id, name)
);

-- The last word of ctx.progress. A table of its own: the hot row is not rewritten while the job runs.
create table job_progress (
  job_id uuid not null,
  value json not null,
  updated_at timestamptz not null default clock_timestamp(),
  constraint job_progress_pkey primary key (job_id)
) with (fillfactor = 70);

-- What ctx.log has said.
create table job_logs (
  id bigint generated always as identity,
  job_id uuid not null,
  fence bigint not null,
  logged_at timestamptz not null default clock_timestamp(),
  message text not null,
  constraint job_logs_pkey primary key (job_id, id)
);

-- Recurring jobs.
create table crontabs (
  id text not null,
  task text not null,
  schedule text not null,
  time_zone text not null,
  payload json not null,
  -- Options of the jobs: queue, priority, maxAttempts …
  options json not null,
  backfill_ms bigint not null default 0,
  overlap text not null default 'skip',
  -- Whether a @Task decorator declares it: such a crontab goes when no release declares it any more.
  declared boolean not null default false,
  -- The first slot is the first one after this moment.
  known_since timestamptz not null default clock_timestamp(),
  -- The last slot that was fired, or passed over. Moves forward only, in the transaction that adds the slot's job.
  last_slot_at timestamptz,
  last_job_id uuid,
  updated_at timestamptz not null default clock_timestamp(),
  constraint crontabs_pkey primary key (id),
  constraint backfill_is_not_negative check (backfill_ms >= 0),
  constraint overlap_is_known check (overlap in ('skip', 'queue'))
);

-- Jobs of a dead worker that could not be taken away, because a transaction of its still open connection holds them.
alter table workers add column leftovers boolean not null default false;
