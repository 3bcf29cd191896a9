// Claims that end without their holder's word: dead workers, expired leases, an operator's hand. And what keeps a
// claim alive: the heartbeat of a pool, and extensions of a lease by hand.
import { statement } from '../database.js';
import { newerSchema } from '../jobs.migrator.js';
import { freeQueues } from './settle-jobs.js';
import { ms } from './job-columns.js';

export interface EndedClaimRow {
  id: string;
  became: 'available' | 'exhausted' | 'cancelled';
  /** The job's queue: it may have a place for a waiting job now. */
  queue: string | null;
  /** The job that took over this one's key and waits for it to leave. */
  superseded_by: string | null;
}

/** $1–$6 of every statement below. */
export interface EndClaimSettings {
  /** Stored as the job's last error and in its history. */
  reason: string;
  /** Count it as a crash; a job with that many crashes is exhausted. Null: no crash. */
  maxCrashes: number | null;
  /** No further attempt. */
  permanent: boolean;
  /** The attempt does not count. */
  giveBack: boolean;
  keepFailures: boolean;
  retentionMs: number;
}

export const endClaimValues = (settings: EndClaimSettings): unknown[] => [
  settings.reason,
  settings.maxCrashes,
  settings.permanent,
  settings.giveBack,
  settings.keepFailures,
  settings.retentionMs,
];

/**
 * Ends the claims (or, for `permanent`, the waiting) of the jobs that `which` selects from jobs j. The job keeps its
 * attempt count unless it is given back, and is exhausted when that was its last.
 * Locked rows are found by a scan of the live table: an index on locked_by would cost every claim, and dead workers
 * are rare.
 */
const endClaims =
  (which: (schema: string) => string, patience: '' | 'skip locked' = '') =>
  (schema: string): string => `
  with held as materialized (
    select j.* from ${schema}.jobs j where ${which(schema)} for update of j ${patience}
  ),
  ended as materialized (
    select h.*, case
      when h.locked_by is not null and (h.cancel_requested or h.superseded_by is not null) and not $3::boolean
        then 'cancelled'
      when $3::boolean or (not $4::boolean and h.attempts >= h.max_attempts) or h.crashes + 1 >= $2::integer
        then 'exhausted'
      else 'available'
    end as became
    from held h
  ),
  gone as (delete from ${schema}.jobs j using ended e where j.id = e.id and e.became = 'cancelled'),
  kept as (
    update ${schema}.jobs j set
      locked_by = null, locked_at = null, lease_ms = null, lease_expires_at = null,
      fence = j.fence + case when e.locked_by is null then 1 else 0 end,
      revision = j.revision + 1, updated_at = now(), snoozed = false, superseded_by = null,
      cancel_requested = false, cancel_reason = null,
      last_error = case when $4::boolean and e.locked_by is not null then j.last_error else $1 end,
      attempts = j.attempts - case when $4::boolean and e.locked_by is not null then 1 else 0 end,
      crashes = j.crashes + case when $2::integer is null then 0 else 1 end,
      slot_only = j.queue is not null or j.rate_limit_key is not null or j.attempts >= j.max_attempts - 1
        or $2::integer is not null or j.crashes > 0,
      parked = case when e.became = 'exhausted' then 'exhausted' end
    from ended e
    where j.id = e.id and e.became <> 'cancelled'
  ),
  recorded as (
    insert into ${schema}.job_history (job_id, fence, started_at, expires_at, queue_time_ms, execution_time_ms, status,
      attempt, worker_id, error_message)
    select id, fence + case when locked_by is null then 1 else 0 end, locked_at,
      now() + $6::bigint * interval '1 ms', greatest(0, extract(epoch from locked_at - run_at) * 1000)::bigint,
      -- Held for longer than an integer can tell (25 days), while nobody was there to take it away: it must go still.
      least(2147483647, extract(epoch from now() - locked_at) * 1000)::integer,
      case when became = 'cancelled' then 'cancelled' else 'failed' end::${schema}.job_outcome, attempts, locked_by,
      coalesce(case when became = 'cancelled' then cancel_reason end, $1)
    from ended where $5::boolean or became = 'cancelled'
  ),
  locked as materialized (select * from ended where locked_by is not null),
  ${freeQueues(schema, 'locked')}
  select id, became, queue, superseded_by from ended`;

/** $7 worker ids, or null for all. */
export const forceUnlockJobs = statement<EndedClaimRow>(
  'force_unlock_jobs',
  endClaims(() => `j.locked_by is not null and ($7::text[] is null or j.locked_by = any($7))`),
);

/** $7 ids. Running or waiting, not those exhausted already. */
export const permanentlyFailJobs = statement<EndedClaimRow>(
  'permanently_fail_jobs',
  endClaims(() => `j.id = any($7::uuid[]) and j.parked is distinct from 'exhausted'`),
);

/** $7 id, $8 revision. */
export const revokeLease = statement<EndedClaimRow>(
  'revoke_lease',
  endClaims(() => `j.id = $7::uuid and j.revision = $8::integer and j.locked_by is not null`),
);

/**
 * Claims by hand whose lease has run out. $7: null for each claim's own lease, or the longest time in ms since its
 * last extension. Index: jobs_leased_by_hand.
 */
export const resetExpiredLeases = statement<EndedClaimRow>(
  'reset_expired_leases',
  endClaims(
    () => `j.lease_expires_at is not null and j.locked_by is not null and case
      when $7::bigint is null then j.lease_expires_at <= clock_timestamp()
      else j.lease_expires_at - (j.lease_ms - $7::bigint) * interval '1 ms' <= clock_timestamp()
    end`,
  ),
);

/**
 * $7 ids of workers that were marked dead by an earlier statement of the same transaction. A frozen process may still
 * hold some of its jobs in open transactions: those must not keep the others waiting; see markLeftovers.
 */
export const rescueJobsOf = statement<EndedClaimRow>(
  'rescue_jobs_of',
  endClaims(() => `j.locked_by = any($7::text[]) and j.lease_expires_at is null`, 'skip locked'),
);

/** Waits for claims of worker $1 that are under way, and keeps new ones waiting until the transaction ends. */
export const lockWorker = statement(
  'lock_worker',
  (schema) => `
  select id from ${schema}.workers where id = $1 for update`,
);

/**
 * Claims of a living pool that it does not know of, because their answer was lost. $7 the pool, $8 ids and $9 fences of
 * what it holds. Reads the live table, like all of these: only after trouble.
 */
export const releaseUnknown = statement<EndedClaimRow>(
  'release_unknown',
  endClaims(
    () => `j.locked_by = $7 and j.lease_expires_at is null and not exists (
      select from unnest($8::uuid[], $9::bigint[]) as held(id, fence) where held.id = j.id and held.fence = j.fence
    )`,
    'skip locked',
  ),
);

/** Notes which of these dead workers still hold jobs. $1 ids. */
export const markLeftovers = statement(
  'mark_leftovers',
  (schema) => `
  update ${schema}.workers w set leftovers = true
  where w.id = any($1::text[]) and exists (
    select from ${schema}.jobs j where j.locked_by = w.id and j.lease_expires_at is null
  )`,
);

/** Marks the workers that have not been heard of for their lease. From then on their claims are refused. */
export const markDeadWorkers = statement<{ id: string }>(
  'mark_dead_workers',
  (schema) => `
  with silent as materialized (
    select id from ${schema}.workers
    where (stopped_at is null and heartbeat_at + lease_ms * interval '1 ms' <= clock_timestamp()) or leftovers
    order by id for update skip locked
  ),
  marked as (
    update ${schema}.workers w set stopped_at = coalesce(w.stopped_at, clock_timestamp()), leftovers = false
    from silent where w.id = silent.id returning w.id
  )
  select id from marked`,
);

/** $1 id, $2 host, $3 pid, $4 concurrency, $5 lease in ms, $6 tasks, $7 environment. Also revives a worker. */
export const registerWorker = statement<{ newer_schema: number | null }>(
  'register_worker',
  (schema) => `
  insert into ${schema}.workers (id, host, pid, concurrency, lease_ms, tasks, environment)
  values ($1, $2, $3, $4, $5, $6::text[], $7::text::json)
  on conflict (id) do update set stopped_at = null, leftovers = false, heartbeat_at = clock_timestamp(), tasks = excluded.tasks,
    concurrency = excluded.concurrency, lease_ms = excluded.lease_ms
  returning (${newerSchema(schema)}) as newer_schema`,
  { repeatable: true, prompt: true },
);

/** Ids of the jobs of worker $1 that somebody asked to cancel. Index: jobs_to_cancel, which is all but empty. */
const cancelRequests = (schema: string): string => `
  select j.id from ${schema}.jobs j where j.cancel_requested and j.locked_by = $1`;

/**
 * Whether something was left undone by a process that is gone: a silent worker, a queue whose free places nobody has
 * given on, tokens of a new window that nobody has given out, a job that waits for a key that nobody holds. Indexes:
 * jobs_blocked_by_key, jobs_superseded; workers, queues and rate limits are few.
 */
const needsRescue = (schema: string): string => `
  exists (
    select from ${schema}.workers
    where (stopped_at is null and heartbeat_at + lease_ms * interval '1 ms' <= clock_timestamp()) or leftovers
  ) or exists (
    select from ${schema}.job_queues
    where parked_at is not null and not paused and running < coalesce(concurrency, 2147483647)
  ) or exists (
    select from ${schema}.rate_limits
    where parked_at is not null and window_started_at + interval_ms * interval '1 ms' <= clock_timestamp()
  ) or exists (
    select from ${schema}.jobs j
    where j.parked = 'key' and not exists (
      select from ${schema}.jobs holder where holder.superseded_by = j.id and holder.locked_by is not null
    )
  )`;

/**
 * Renews the lease of everything that a worker holds: one row per process. $1 worker. Returns no row if the worker was
 * taken for dead. Also tells what there is to do, so that an idle process need not ask by statements of their own.
 */
export const heartbeat = statement<{
  cancel_requested: string[] | null;
  needs_rescue: boolean;
  has_rate_limits: boolean;
  newer_schema: number | null;
}>(
  'heartbeat',
  (schema) => `
  with beat as (
    update ${schema}.workers set heartbeat_at = clock_timestamp()
    where id = $1 and stopped_at is null
    returning id
  )
  select (select json_agg(id) from (${cancelRequests(schema)}) asked) as cancel_requested,
    ${needsRescue(schema)} as needs_rescue, exists (select from ${schema}.rate_limits) as has_rate_limits,
    (${newerSchema(schema)}) as newer_schema
  from beat`,
  { prompt: true },
);

/** $1 worker. */
export const findCancelRequests = statement<{ id: string }>('find_cancel_requests', cancelRequests, {
  repeatable: true,
  prompt: true,
});

/** $1 id. */
export const unregisterWorker = statement(
  'unregister_worker',
  (schema) => `
  update ${schema}.workers set stopped_at = clock_timestamp() where id = $1 and stopped_at is null`,
  { repeatable: true, prompt: true },
);

export interface WorkerRow {
  id: string;
  host: string;
  pid: number;
  concurrency: number;
  started_at: number;
  heartbeat_at: number;
  running: number;
  tasks: string[];
}

export const listWorkers = statement<WorkerRow>(
  'list_workers',
  (schema) => `
  with running as materialized (
    select locked_by, count(*)::integer as jobs from ${schema}.jobs where locked_by is not null group by locked_by
  )
  select w.id, w.host, w.pid, w.concurrency, ${ms('w.started_at')} as started_at,
    ${ms('w.heartbeat_at')} as heartbeat_at, coalesce(r.jobs, 0) as running, to_json(w.tasks) as tasks
  from ${schema}.workers w left join running r on r.locked_by = w.id
  where w.stopped_at is null
  order by w.started_at, w.id`,
  { repeatable: true },
);

export interface LeaseRow {
  locked_by: string | null;
  by_hand: boolean;
  expired: boolean;
  status: string;
  expires_at: number | null;
}

/**
 * $1 worker, $2 job. Renews a lease by hand from the database's now. Returns where the job stands; `expires_at` is
 * null where the lease was not extended.
 */
export const extendLease = statement<LeaseRow>(
  'extend_lease',
  (schema) => `
  with held as materialized (
    select * from ${schema}.jobs where id = $2::uuid for update
  ),
  extended as (
    update ${schema}.jobs j
    set lease_expires_at = clock_timestamp() + j.lease_ms * interval '1 ms', revision = j.revision + 1
    from held h
    where j.id = h.id and h.locked_by = $1 and h.lease_expires_at > clock_timestamp()
    returning j.id, j.lease_expires_at
  )
  select h.locked_by, h.lease_ms is not null as by_hand, coalesce(h.lease_expires_at <= clock_timestamp(), false) as expired,
    case when h.locked_by is not null then 'running' when h.parked = 'exhausted' then 'exhausted' else 'waiting' end
      as status,
    ${ms('e.lease_expires_at')} as expires_at
  from held h left join extended e on e.id = h.id`,
);
