-- Runs in one transaction with search_path set to the library's schema. All tables, their constraints and their indexes.

-- The lane of a job: null where it has no limit and may wait in a buffer.
create function lane_of(queue text, partition text, limits text, slot_only boolean) returns text
language sql immutable
as $$
  select case when queue is not null or limits is not null or slot_only
    then coalesce(queue, '') || E'\x1f' || coalesce(partition, '') || E'\x1f' || coalesce(limits, '') end
$$;

-- What a job is. Written once; a finished job stays here until its last history record expires. UUID v7 ids carry
-- their time, so ranges of ids are ranges of time, and whole partitions can be dropped.
create table job_bodies (
  id uuid not null,
  created_at timestamptz not null default clock_timestamp(),
  run_at timestamptz not null,
  priority integer not null,
  max_attempts smallint not null,
  timeout_ms integer,
  task text not null,
  payload json not null,
  queue text,
  -- Whose turn it is within the queue: a tenant, a customer. Null: its queue has none, or it is of none.
  partition text,
  -- Its rate limits, as limits_of of 1_tokens.sql reads them.
  limits text,
  job_key text,
  job_key_mode text,
  flags text[],
  tags text[],
  group_id text,
  -- Which jobs it waits for, and what it does when one of them fails for good.
  depends_on uuid[],
  on_parent_failure text,
  constraint job_bodies_pkey primary key (id),
  constraint on_parent_failure_is_known check (on_parent_failure in ('cancel', 'run', 'wait')),
  -- Times that JavaScript can hold.
  constraint created_at_is_storable check (created_at > '0001-01-01 00:00:00+00' and created_at < '275760-01-01 00:00:00+00'),
  constraint run_at_is_storable check (run_at > '0001-01-01 00:00:00+00' and run_at < '275760-01-01 00:00:00+00')
) partition by range (id);

create table job_bodies_default partition of job_bodies default;

-- What SQL adds with a time that JavaScript cannot hold gets the nearest that it can: refusing it would lose the job, keeping
-- it would make every read of it fail.
create function storable(at timestamptz) returns timestamptz
language sql immutable
as $$ select least(greatest(at, '0001-01-02 00:00:00+00'), '275759-12-31 00:00:00+00') $$;

-- What an advisory lock is taken on. Installations in one database share its locks, so their schema is part of the name.
create function lock_named(kind text, name text) returns bigint
language sql stable
as $$ select hashtextextended(concat('millrace:', kind, ':', current_schema, ':', name), 0) $$;

create function keep_times_storable() returns trigger
language plpgsql
set search_path from current
as $$
begin
  new.run_at := storable(new.run_at);
  if tg_argv[0] = 'body' then
    new.created_at := storable(new.created_at);
  end if;
  return new;
end $$;

create trigger keep_times_storable before insert on job_bodies for each row
when (new.run_at <= '0001-01-01 00:00:00+00' or new.run_at >= '275760-01-01 00:00:00+00'
  or new.created_at <= '0001-01-01 00:00:00+00' or new.created_at >= '275760-01-01 00:00:00+00')
execute function keep_times_storable('body');

create index job_bodies_group on job_bodies (group_id, id) where group_id is not null;
-- The children of a job, also when they wait no more.
create index job_bodies_children on job_bodies using gin (depends_on) where depends_on is not null;

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
  -- Last attempts and suspects of crashes: claimed for a free slot only, never buffered.
  slot_only boolean not null default false,
  cancel_requested boolean not null default false,
  replayed boolean not null default false,
  -- Its history holds an end already, so its completion must leave a record, whatever history.keep says.
  ended_before boolean not null default false,
  -- The payload's size in units of 1,024 bytes, rounded down: claims bound what they read by it.
  payload_kib smallint not null default 0,
  -- Why the job itself is not ready, whatever may change around it; null: it is ready, or will be at run_at.
  parked text,
  task text not null,
  queue text,
  partition text,
  limits text,
  job_key text,
  flags text[],
  last_error text,
  cancel_reason text,
  previous json,
  -- The running job whose key this one took, and whose end it waits for.
  behind uuid,
  -- How many parents it still waits for: rows of job_dependencies.
  unmet integer not null default 0,
  -- When the last parent, or the holder of its key, ended for which it was blocked: until then it waited for no worker.
  released_at timestamptz,
  -- Everything with a limit lies in a lane: queue, partition and rate limits, in this order, so that lanes of one queue lie
  -- side by side, and in it those of one partition; see lane_of. Jobs for free slots without a limit share the lane of no queue and no limit.
  -- Null: a plain job.
  lane text collate "C",
  -- From here on: what a claim changes.
  -- Grows with every claim and never falls: (id, fence) names the claim.
  fence bigint not null default 0,
  locked_at timestamptz,
  -- Set for claims made by hand only; a pool's claims live by its row in workers.
  lease_expires_at timestamptz,
  lease_ms bigint,
  -- The number of the place in its queue that the claim holds.
  place bigint,
  revision integer not null default 0,
  attempts smallint not null default 0,
  snoozed boolean not null default false,
  -- An incarnation of workers, or the name that a claim by hand has given.
  locked_by text,
  constraint jobs_pkey primary key (id),
  -- Each of these is paid for by each claim: they are few, and begin with what most rows are.
  constraint attempts_within_max check (attempts >= 0 and attempts <= max_attempts and max_attempts >= 1),
  constraint waiting_jobs_have_attempts_left
    check (attempts < max_attempts or locked_by is not null or parked is not distinct from 'exhausted'),
  constraint parked_for_a_known_reason
    check (parked is null or parked in ('parents', 'key', 'exhausted') and locked_by is null),
  constraint unmet_is_not_negative check (unmet >= 0),
  constraint run_at_is_storable check (run_at > '0001-01-01 00:00:00+00' and run_at < '275760-01-01 00:00:00+00'),
  constraint limited_jobs_lie_in_their_lane check (
    lane is null and queue is null and limits is null
    or lane is not distinct from
      coalesce(queue, '') || E'\x1f' || coalesce(partition, '') || E'\x1f' || coalesce(limits, '')
  ),
  constraint partitions_belong_to_queues check (partition is null or queue is not null),
  -- Names fit into an index entry beside each other, and hold no control characters.
  constraint names_fit_into_indexes check (
    queue is null and limits is null and job_key is null
    or (queue is null or octet_length(queue) between 1 and 1000 and queue !~ '[\u0001-\u001f]')
      and (limits is null or octet_length(limits) between 1 and 1000 and limits !~ '[\u0001-\u001c\u001f]')
      and (partition is null or octet_length(partition) between 1 and 600 and partition !~ '[\u0001-\u001f]')
      and (job_key is null or octet_length(job_key) between 1 and 2000)
  )
) with (fillfactor = 40);

create trigger keep_times_storable before insert on jobs for each row
when (new.run_at <= '0001-01-01 00:00:00+00' or new.run_at >= '275760-01-01 00:00:00+00')
execute function keep_times_storable('job');

-- Plain claims.
create index jobs_ready on jobs (priority, run_at, id) where parked is null and lane is null;
-- Claims of lanes: from lane to lane by one descent each, in a lane by run-at and id.
create index jobs_lanes on jobs (priority, lane, run_at, id) where parked is null and lane is not null;
-- Which lanes have become due since the last look. By run-at alone: were it by run-at and id, it would have the order in which a
-- lane is read, and a plan made while statistics know no lane would read all that is due in the others.
create index jobs_due_in_lanes on jobs (run_at) where parked is null and lane is not null;
create index jobs_behind on jobs (behind) where behind is not null;
create index jobs_blocked_by_key on jobs (id) where parked = 'key';
-- The live jobs of a key: at most one of them, beside those that wait for it and those that have failed for good.
create index jobs_by_key on jobs (job_key) where job_key is not null;
create index jobs_exhausted on jobs (id) where parked = 'exhausted';
create index jobs_leased_by_hand on jobs (lease_expires_at) where lease_expires_at is not null;

-- Whose key it is: the last job that got it. Adds and retries of a key lock its row first. A row whose job is gone is free;
-- ends delete what they can, a sweep the rest.
create table job_keys (
  key text not null,
  job_id uuid not null,
  constraint job_keys_pkey primary key (key)
);

-- Windows of throttled and unique jobs: until then adds of the key get no job of their own. One that begins in the future has
-- a job at its beginning. Adds lock a row that they change; a sweep removes what has passed.
create table job_windows (
  key text collate "C" not null,
  begins_at timestamptz not null,
  until timestamptz not null,
  -- When it was opened: one of the future was opened by a clock that was ahead.
  set_at timestamptz not null,
  job_id uuid not null,
  constraint job_windows_pkey primary key (key),
  constraint windows_end_after_they_begin check (until >= begins_at)
) with (fillfactor = 70);

create index job_windows_passed on job_windows (until);

-- Jobs that others have replaced under their key: see successor_of of 4_ends.sql. A job that comes back has no row.
create table job_replacements (
  old_id uuid not null,
  new_id uuid not null,
  replaced_at timestamptz not null default clock_timestamp(),
  constraint job_replacements_pkey primary key (old_id)
);

create index job_replacements_by_new on job_replacements (new_id);

create type job_outcome as enum ('completed', 'failed', 'partial_success', 'snoozed', 'cancelled');

-- One narrow row for each finished attempt. (job_id, fence) names the attempt.
create table job_history (
  job_id uuid not null,
  fence bigint not null,
  started_at timestamptz,
  completed_at timestamptz not null default clock_timestamp(),
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

-- Ends that leave no history record are still known for an hour: one row for each settled batch.
create table settle_receipts (
  settled_at timestamptz not null default clock_timestamp(),
  job_ids uuid[] not null,
  fences bigint[] not null,
  -- Null: all completed.
  outcomes text[]
);

create index settle_receipts_by_time on settle_receipts (settled_at);

-- Under a publication, rows of a table without a key cannot be deleted unless they are identified whole.
alter table job_history replica identity full;
alter table job_history_default replica identity full;
alter table settle_receipts replica identity full;

-- The lane of each queue: its limit and its pause. Filled by claims and maintenance, never by an enqueue. Claims lock a
-- row and do not update it: dead versions of one row would slow down all claims beside an old snapshot.
create table job_queues (
  name text collate "C" not null,
  -- Null: no limit.
  concurrency integer default 1,
  -- Set by configureQueue, which wins over what processes declare.
  configured boolean not null default false,
  -- The release that has declared it, and when it did so last, to the day.
  release text,
  declared_at timestamptz,
  -- The only place where a queue's pause is told; see is_in_force.
  paused boolean not null default false,
  paused_since timestamptz,
  -- Null: until it is resumed.
  paused_until timestamptz,
  pause_reason text,
  paused_by text,
  -- For each of its partitions, unless job_partitions says otherwise: concurrency, share, weight.
  partitions jsonb not null default '{}',
  -- Null: no limit.
  partition_concurrency integer generated always as ((partitions ->> 'concurrency')::integer) stored,
  -- How much of the queue's concurrency one partition gets while others want some. Null: all of it.
  partition_share real generated always as ((partitions ->> 'share')::real) stored,
  partition_weight smallint generated always as (coalesce((partitions ->> 'weight')::smallint, 1)) stored,
  -- Whether job_partitions sets a limit for one of them.
  limits_partitions boolean not null default false,
  -- Whether claims count in places, of the queue, of its partitions, or both.
  limited boolean generated always as (
    concurrency is not null or partitions ->> 'concurrency' is not null or limits_partitions
  ) stored,
  -- How many jobs may wait before adds are refused; null: any number. The flag: set by configureQueue.
  max_waiting integer,
  waiting_configured boolean not null default false,
  -- No place with a lower number is taken: counts start here. Moved on now and then.
  places_from bigint not null default 0,
  constraint job_queues_pkey primary key (name),
  constraint concurrency_at_least_one check (concurrency >= 1 and partition_concurrency >= 1),
  constraint max_waiting_at_least_one check (max_waiting >= 1),
  constraint share_is_a_share check (partition_share > 0 and partition_share <= 1),
  constraint weight_is_within_bounds check (partition_weight between 1 and 1000),
  constraint name_is_a_name check (octet_length(name) between 1 and 1000 and name !~ '[\u0001-\u001f]'),
  constraint paused_until_is_storable check (paused_until > '0001-01-01 00:00:00+00' and paused_until < '275760-01-01 00:00:00+00')
) with (fillfactor = 50);

-- Adds to queues look once a second which of them have a bound.
create index job_queues_bounded on job_queues (name) where max_waiting is not null;

-- A pause holds until its time, by the database's clock: none has to lift it, and its row is deleted whenever another pause is
-- written.
create function is_in_force(paused boolean, until timestamptz, present timestamptz) returns boolean
language sql immutable
as $$ select paused and (until is null or until > present) $$;

-- What claims leave alone beside paused queues: everything, tasks, partitions of queues, and the claims of instances or of
-- single pools. A table of some rows, which each claim reads first.
create table job_pauses (
  kind text collate "C" not null,
  -- Of a task, an instance, a worker (its label), a queue (of a partition); '': of everything.
  name text collate "C" not null default '',
  partition text collate "C" not null default '',
  since timestamptz not null default clock_timestamp(),
  -- Null: until it is resumed.
  until timestamptz,
  reason text not null,
  paused_by text not null,
  constraint job_pauses_pkey primary key (kind, name, partition),
  constraint kind_is_known check (kind in ('all', 'instance', 'partition', 'task', 'worker')),
  constraint until_is_storable check (until > '0001-01-01 00:00:00+00' and until < '275760-01-01 00:00:00+00')
);

-- What each claim reads of it, whatever pauses of partitions there are: one page, mostly an empty one.
create index job_pauses_of_claims on job_pauses (kind) where kind <> 'partition';

-- One row for each claim that counts in a limited queue. Numbers are drawn under the queue's lock, so they only grow in
-- each queue. A limit is kept by counting these rows.
create sequence job_place_numbers;
create table job_places (
  queue text collate "C" not null,
  number bigint not null,
  job_id uuid not null,
  fence bigint not null,
  partition text collate "C",
  constraint job_places_pkey primary key (queue, number)
) with (fillfactor = 70);

-- The limit of a partition is kept by counting along this index.
create index job_places_of_partitions on job_places (queue, partition, number) where partition is not null;

-- Partitions with settings of their own, made by configurePartition.
create table job_partitions (
  queue text collate "C" not null,
  partition text collate "C" not null,
  -- Null: as the queue says for each. 2147483647: no limit.
  concurrency integer,
  share real,
  weight smallint,
  constraint job_partitions_pkey primary key (queue, partition),
  constraint concurrency_at_least_one check (concurrency >= 1),
  constraint share_is_a_share check (share > 0 and share <= 1),
  constraint weight_is_within_bounds check (weight between 1 and 1000),
  constraint names_are_names check (
    octet_length(queue) between 1 and 1000 and queue !~ '[\u0001-\u001f]'
    and octet_length(partition) between 1 and 600 and partition !~ '[\u0001-\u001f]'
  )
) with (fillfactor = 70);

-- A queue's row may be new while its partitions are known: what is set for them holds whichever statement makes the row.
create function know_limits_of_partitions() returns trigger
language plpgsql
set search_path from current
as $$
begin
  new.limits_partitions := exists (select from job_partitions p where p.queue = new.name and p.concurrency < 2147483647);
  return new;
end $$;

create trigger know_limits_of_partitions before insert on job_queues for each row execute function know_limits_of_partitions();

create table job_tasks (
  task text not null,
  last_seen_at timestamptz not null default now(),
  constraint job_tasks_pkey primary key (task)
);

create table rate_limits (
  key text collate "C" not null,
  -- How states count: see 1_tokens.sql.
  algorithm text not null default 'fixed',
  capacity integer not null,
  interval_ms bigint not null,
  -- How many tokens there are at once, at most.
  burst integer not null,
  -- The first fixed window; the later ones begin a whole number of intervals after it.
  window_started_at timestamptz not null,
  constraint rate_limits_pkey primary key (key),
  constraint algorithm_is_known check (algorithm in ('fixed', 'sliding', 'bucket', 'smooth')),
  constraint capacity_at_least_one check (capacity >= 1),
  -- And what is added to a time is one that JavaScript can hold.
  constraint interval_is_positive check (interval_ms between 1 and 1000000000000),
  constraint burst_comes_back_in_time
    check (burst >= 1 and burst::numeric * interval_ms <= capacity::numeric * 1000000000000),
  constraint key_is_a_name check (octet_length(key) between 1 and 1000 and key !~ '[\u0001-\u001f]')
) with (fillfactor = 50);

-- What has been taken of a limit, for each value of `by` ('': of all): the row with the highest number counts. Each claim adds
-- one and deletes the one before, so that a reader finds the newest at once, whatever an old snapshot keeps alive. No row: nothing.
create table rate_limit_states (
  key text collate "C" not null,
  by_value text collate "C" not null default '',
  number bigint not null,
  at timestamptz not null,
  counts integer[] not null,
  -- When all of it has come back, and the state says nothing any more.
  full_at timestamptz not null,
  constraint rate_limit_states_pkey primary key (key, by_value, number)
) with (fillfactor = 70);

create index rate_limit_states_full on rate_limit_states (full_at);

-- Until then a limit gives no tokens, for one value of `by` or (by_value = '') for all: a handler has said so. The latest counts.
-- Rows are added and deleted alone, so none waits for another.
create table rate_limit_blocks (
  key text collate "C" not null,
  by_value text collate "C" not null default '',
  until timestamptz not null,
  -- When it was set: one of the future was set by a clock that was ahead.
  set_at timestamptz not null default clock_timestamp(),
  -- The attempt that has set it.
  job_id uuid not null,
  fence bigint not null,
  constraint rate_limit_blocks_pkey primary key (key, by_value, until, job_id, fence),
  constraint until_is_storable check (until > '0001-01-01 00:00:00+00' and until < '275760-01-01 00:00:00+00')
);

create index rate_limit_blocks_over on rate_limit_blocks (until);

-- One row for each start of a pool: an incarnation. `label` is the name that people know it by.
create table workers (
  id text not null,
  label text not null,
  -- The module's instance that it is a pool of.
  instance text not null default 'default',
  host text not null,
  pid integer not null,
  concurrency integer not null,
  lease_ms bigint not null,
  started_at timestamptz not null default clock_timestamp(),
  heartbeat_at timestamptz not null default clock_timestamp(),
  -- Null: alive, or dead and not yet noticed.
  stopped_at timestamptz,
  -- When its pool began to stop: it claims nothing more, and what it holds when its lease runs out was no crash.
  left_at timestamptz,
  -- Whether a job that it held is to blame for its death, so that the others are not.
  has_blamed boolean not null default false,
  -- What it takes, as its claims say it. Null: no queue in particular, no flag to leave to others.
  tasks text[] not null,
  takes_any_task boolean not null default false,
  queues text[],
  forbidden_flags text[],
  -- Tasks whose jobs it gathers for one call of their handler, and for how many ms at most.
  batch_waits json not null default '{}',
  environment json not null,
  constraint workers_pkey primary key (id)
);

create index workers_by_label on workers (label);

-- One row for each parent that a job still waits for. A pair whose parent has ended is to be told: a state, not a mark.
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
  -- The release that has declared it, and a digest of what it has declared: payloads may be encrypted and cannot be compared.
  release text,
  content text,
  -- When the last release that declared it was gone. It fires no more, but comes back as it was within a day.
  retired_at timestamptz,
  constraint crontabs_pkey primary key (id),
  constraint backfill_is_not_negative check (backfill_ms >= 0),
  constraint overlap_is_known check (overlap in ('skip', 'queue'))
);

-- Releases that have declared crontabs or queues, and the labels of pools that run them. Of two that declare different
-- things, the one that was seen first is the older one, whichever process of it started last.
create table releases (
  -- A digest of what the release declares.
  id text not null,
  first_seen_at timestamptz not null default clock_timestamp(),
  joined_at timestamptz not null default clock_timestamp(),
  worker_ids text[] not null default '{}',
  constraint releases_pkey primary key (id)
);

-- Work that all pools share: the one that gets a row's lock does it, and says when it is to be done next.
create table duties (
  name text not null,
  due_at timestamptz not null default '2000-01-01',
  -- Where the next one goes on, by what it looks for: so all processes together go through all that there is.
  position json not null default '{}',
  constraint duties_pkey primary key (name)
) with (fillfactor = 50);

insert into duties (name) values ('sweep'), ('audit');

-- Claims that a living pool may not know of: it looks at its next heartbeat. Filled by the audit of the live table.
create table claims_in_question (
  worker text not null,
  job_id uuid not null,
  fence bigint not null,
  constraint claims_in_question_pkey primary key (worker, job_id, fence)
);

-- Actions on many jobs that operators have asked for, those that have ended included: what was asked for, by which name, and what
-- has come of it. Pools perform them page by page: each page is one transaction, which moves `position` on.
create table job_bulk_actions (
  id uuid not null,
  action text not null,
  state text not null default 'waiting',
  -- Which jobs. May be encrypted: it may name persons.
  filter json not null,
  -- What the action needs to know: run-at, priority, max attempts, queue.
  settings json not null,
  asked_by text not null,
  reason text,
  -- Jobs a second; null: as many as possible.
  rate_per_s integer,
  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,
  finished_at timestamptz,
  next_at timestamptz not null default clock_timestamp(),
  -- The youngest job that it is about, and the one up to which it has come; null: it has come to the end.
  last_id uuid not null,
  position uuid default '00000000-0000-0000-0000-000000000000',
  -- Jobs that others held when their page came, and how often all of them were tried again without any getting free.
  held uuid[] not null default '{}',
  held_tries smallint not null default 0,
  pages integer not null default 0,
  matched bigint not null default 0,
  done bigint not null default 0,
  failed bigint not null default 0,
  skipped bigint not null default 0,
  -- Why the first of them failed or were skipped.
  reasons json not null default '[]',
  -- Tries of the present page that went wrong as a whole, and why the last of them did.
  failures smallint not null default 0,
  error text,
  constraint job_bulk_actions_pkey primary key (id),
  constraint action_is_known check (action in ('cancel', 'retry', 'reschedule', 'purge', 'move')),
  constraint state_is_known check (state in ('waiting', 'running', 'completed', 'stopped', 'failed')),
  constraint finished_has_its_time check ((finished_at is null) = (state in ('waiting', 'running')))
) with (fillfactor = 50);

create index job_bulk_actions_open on job_bulk_actions (id) where finished_at is null;
