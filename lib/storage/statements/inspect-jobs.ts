// Looking at jobs without touching them. None of this has an index on the hot table: lists walk the bodies by id.
import type { PartialResults } from '../../interfaces/job.interface.js';
import type { HistoryStatus } from '../../interfaces/report.interface.js';
import { statement } from '../database.js';
import type { PauseRow } from './pauses.js';
import { anyJobColumns, joinLiveAndLast, ms, type JobRow } from './job-columns.js';

/** $1 ids. Index: job_bodies_pkey. */
export const findJobs = statement<JobRow>(
  'find_jobs',
  (schema) => `
  select ${anyJobColumns(schema)}
  from ${schema}.job_bodies b
  ${joinLiveAndLast(schema)}
  where b.id = any($1::uuid[])`,
  { repeatable: true, patient: true },
);

/** As findJobs, with the result of what has completed. $1 ids. */
export const findResults = statement<JobRow & { result: unknown }>(
  'find_results',
  (schema) => `
  select ${anyJobColumns(schema)}, h.result
  from ${schema}.job_bodies b
  ${joinLiveAndLast(schema)}
  where b.id = any($1::uuid[])`,
  { repeatable: true },
);

/**
 * $1 task, $2 queue, $3 status, $4 tag, $5 group, $6 flag, $7 from, $8 to, $9 search (like patterns, any of them), each or null;
 * $10 only ids below, or null; $11 how many; $12 the job that is its own group, or null. Newest first. Index:
 * job_bodies_pkey, backwards.
 */
export const listJobs = statement<JobRow>(
  'list_jobs',
  (schema) => `
  select * from (
    select ${anyJobColumns(schema)}
    from ${schema}.job_bodies b
    ${joinLiveAndLast(schema)}
    where ($1::text is null or b.task = $1)
      and ($2::text is null or b.queue = $2)
      and ($4::text is null or $4 = any(b.tags))
      and ($5::text is null or b.group_id = $5 or (b.id = $12::uuid and b.group_id is null))
      and ($6::text is null or $6 = any(b.flags))
      and ($7::timestamptz is null or b.created_at >= $7)
      and ($8::timestamptz is null or b.created_at < $8)
      and ($9::text[] is null or b.payload::text ilike any($9) or b.task ilike any($9)
        or coalesce(j.last_error, h.error_message) ilike any($9))
      and ($10::uuid is null or b.id < $10)
  ) found
  where $3::text is null or status = $3
  order by id desc
  limit $11`,
  { repeatable: true, patient: true, slow: 'a filter without an index may read all bodies' },
);

export interface HistoryRow {
  job_id: string;
  fence: string;
  task: string | null;
  payload: unknown;
  worker_id: string | null;
  status: HistoryStatus;
  started_at: number | null;
  completed_at: number | null;
  queue_time_ms: string | null;
  execution_time_ms: number | null;
  attempt: number;
  error_message: string | null;
  error_stack: string | null;
  partial_results: PartialResults | null;
  result: unknown;
  environment: Record<string, unknown> | null;
  expires_at: number | null;
}

const historyColumns = `h.job_id, h.fence, b.task, b.payload, h.worker_id, h.status::text as status,
    ${ms('h.started_at')} as started_at, ${ms('h.completed_at')} as completed_at, h.queue_time_ms, h.execution_time_ms,
    h.attempt, h.error_message, h.error_stack, h.partial_results, h.result,
    coalesce(h.environment, w.environment) as environment, ${ms('h.expires_at')} as expires_at`;

/**
 * The attempts of one job, oldest first. $1 id. The running one is not in the history yet: it is what a locked job is.
 * Index: job_history_by_job.
 */
export const jobHistory = statement<HistoryRow>(
  'job_history',
  (schema) => `
  with running as (
    select id as job_id, fence, locked_by as worker_id, locked_at as started_at, attempts as attempt,
      greatest(0, extract(epoch from locked_at - greatest(run_at, released_at)) * 1000)::bigint as queue_time_ms
    from ${schema}.jobs where id = $1::uuid and locked_by is not null
  )
  select ${historyColumns}
  from ${schema}.job_history h
  left join ${schema}.job_bodies b on b.id = h.job_id
  left join lateral (
    select w.environment from ${schema}.workers w where w.label = h.worker_id and w.started_at <= h.completed_at
    order by w.started_at desc limit 1
  ) w on true
  where h.job_id = $1::uuid
  union all
  select r.job_id, r.fence, b.task, b.payload, coalesce(w.label, r.worker_id), 'started', ${ms('r.started_at')}, null, r.queue_time_ms,
    null, r.attempt, null, null, null, null, w.environment, null
  from running r
  left join ${schema}.job_bodies b on b.id = r.job_id
  left join ${schema}.workers w on w.id = r.worker_id
  order by fence`,
  { repeatable: true, patient: true },
);

/**
 * $1 job, $2 task, $3 status, $4 worker, $5 from, $6 to, each or null; $7, $8, $9 the last record of the page before
 * (completed-at, job, fence) or nulls; $10 how many. Newest first.
 */
export const listHistory = statement<HistoryRow & { position: string }>(
  'list_history',
  (schema) => `
  select ${historyColumns}, to_json(h.completed_at) #>> '{}' as position
  from ${schema}.job_history h
  left join ${schema}.job_bodies b on b.id = h.job_id
  left join lateral (
    select w.environment from ${schema}.workers w where w.label = h.worker_id and w.started_at <= h.completed_at
    order by w.started_at desc limit 1
  ) w on true
  where ($1::uuid is null or h.job_id = $1)
    and ($2::text is null or b.task = $2)
    and ($3::text is null or h.status::text = $3)
    and ($4::text is null or h.worker_id = $4)
    and ($5::timestamptz is null or h.completed_at >= $5)
    and ($6::timestamptz is null or h.completed_at < $6)
    and ($7::timestamptz is null or (h.completed_at, h.job_id, h.fence) < ($7, $8::uuid, $9::bigint))
  order by h.completed_at desc, h.job_id desc, h.fence desc
  limit $10`,
  { repeatable: true, patient: true, slow: 'a filter without an index may read the whole history' },
);

export interface CountRow {
  kind: 'status' | 'task' | 'queue' | 'oldest_due';
  name: string | null;
  jobs: number;
}

/** Live jobs by status, task and queue, and finished ones by status as far as the history goes. */
export const countJobs = statement<CountRow>(
  'count_jobs',
  (schema) => `
  with live as materialized (
    select case
        when locked_by is not null then 'running'
        when parked = 'exhausted' then 'exhausted'
        when parked in ('parents', 'key') then 'blocked'
        when run_at > clock_timestamp() and snoozed then 'snoozed'
        when run_at > clock_timestamp() then 'scheduled'
        else 'available'
      end as status, task, queue, count(*)::float8 as jobs, min(greatest(run_at, released_at)) as ready_since
    from ${schema}.jobs group by 1, 2, 3
  )
  select 'status' as kind, status as name, sum(jobs)::float8 as jobs from live group by status
  union all
  select 'status', status::text, count(distinct job_id)::float8 from ${schema}.job_history h
  where status in ('completed', 'cancelled') and not exists (select from ${schema}.jobs j where j.id = h.job_id)
  group by status
  union all
  select 'task', task, sum(jobs) from live group by task
  union all
  select 'queue', queue, sum(jobs) from live where queue is not null group by queue
  union all
  select 'oldest_due', null, greatest(0, extract(epoch from now() - min(ready_since)) * 1000)::float8
  from live where status = 'available' having min(ready_since) is not null`,
  { repeatable: true, patient: true, slow: 'reads the live table and the history' },
);

/** One rate limit of a job. */
export interface LimitNow {
  key: string;
  by: string | null;
  weight: number;
  known: boolean;
  /** None while it is blocked. */
  tokens: number | null;
  burst: number | null;
  blocked_until: number | null;
  /** Null: never. */
  enough_at: number | null;
}

export interface ExplainRow {
  parked: string | null;
  running: boolean;
  run_at: number;
  due: boolean;
  queue_concurrency: number | null;
  queue_known: boolean;
  /** How many more jobs of its partition may run; null: any number. */
  partition_free: number | null;
  partition_jobs: string[] | null;
  /** The pause of everything, the task, the queue or the partition, in this order. */
  pause: PauseRow | null;
  queue_jobs: string[] | null;
  /** Of the job's rate limits, as they are now. */
  limits: LimitNow[] | null;
  blocked_by: string[] | null;
  /** How the last attempt ended, where its history is kept. */
  last_outcome: HistoryStatus | null;
  /** The holder's pool is being stopped: when its lease runs out. */
  left_until: number | null;
  /** Its holder gathers jobs of the task: until when at the latest, where it may still do so. */
  gathers_until: number | null;
  /** Whether its holder runs jobs of the task in batches. */
  in_batch: boolean;
  has_worker: boolean;
  has_handler: boolean;
  /** Of those that handle the task, whether one takes from the queue. */
  has_queue_taker: boolean;
  has_taker: boolean;
  /** Where all of these are paused: the pause that ends first. */
  taker_pause: PauseRow | null;
  /** Flags of the job that pools leave to others. */
  forbidden: string[] | null;
}

const pauseAsJson = `json_build_object('kind', p.kind, 'name', p.name, 'partition', p.partition, 'since', ${ms('p.since')},
      'until', ${ms('p.until')}, 'reason', p.reason, 'paused_by', p.paused_by)`;

/** What stands between a live job and a worker: readiness as the claim computes it. $1 id. */
export const explainJob = statement<ExplainRow>(
  'explain_job',
  (schema) => `
  select j.parked, j.locked_by is not null as running, ${ms('j.run_at')} as run_at, j.run_at <= clock_timestamp() as due,
    case when j.partition is null or q.concurrency > 1 or q.configured or q.declared_at is not null then q.concurrency end
      as queue_concurrency, q.name is not null or j.partition is not null as queue_known, ${schema}.free_in_partition(j.queue, j.partition) as partition_free,
    (select json_agg(o.job_id) from (
      select p.job_id from ${schema}.job_places p
      where p.queue = j.queue and p.partition = j.partition and p.number >= q.places_from and p.job_id <> j.id
      order by p.number limit 100
    ) o) as partition_jobs,
    (select ${pauseAsJson} from (
      select 1 as nth, 'queue' as kind, q.name, '' as partition, q.paused_since as since, q.paused_until as until,
        q.pause_reason as reason, q.paused_by
      where ${schema}.is_in_force(q.paused, q.paused_until, clock_timestamp())
      union all
      select case p.kind when 'partition' then 2 else 0 end, p.kind, p.name, p.partition, p.since, p.until, p.reason, p.paused_by
      from ${schema}.job_pauses p
      where ${schema}.is_in_force(true, p.until, clock_timestamp()) and (p.kind = 'all' or p.kind = 'task' and p.name = j.task
        or p.kind = 'partition' and p.name = j.queue and p.partition = j.partition)
    ) p order by p.nth, p.kind limit 1) as pause,
    (select json_agg(o.job_id) from (
      select p.job_id from ${schema}.job_places p
      where p.queue = j.queue and p.number >= q.places_from and p.job_id <> j.id order by p.number limit 100
    ) o) as queue_jobs,
    (select json_agg(json_build_object('key', l.key, 'by', nullif(l.by_value, ''), 'weight', l.weight, 'known', l.known,
      'tokens', l.tokens, 'burst', l.burst, 'blocked_until', ${ms('l.blocked_until')}, 'enough_at', ${ms('l.enough_at')}))
      from ${schema}.limits_now(j.limits) l where j.limits is not null) as limits,
    case when j.parked = 'parents'
      then (select json_agg(d.parent_id order by d.parent_id) from ${schema}.job_dependencies d where d.child_id = j.id)
      else (select json_agg(o.id) from ${schema}.jobs o where o.id = j.behind)
    end as blocked_by,
    (select ${ms("h.heartbeat_at + h.lease_ms * interval '1 ms'")} from ${schema}.workers h
      where h.id = j.locked_by and h.left_at is not null) as left_until,
    b.wait is not null as in_batch, case when j.crashes = 0 and j.locked_at + b.wait > clock_timestamp() then ${ms('j.locked_at + b.wait')} end as gathers_until,
    (select h.status::text from ${schema}.job_history h where h.job_id = j.id order by h.fence desc limit 1) as last_outcome,
    takers.*
  from ${schema}.jobs j
  left join ${schema}.job_queues q on q.name = j.queue
  left join lateral (
    select (h.batch_waits ->> j.task)::integer * interval '1 ms' as wait from ${schema}.workers h where h.id = j.locked_by
  ) b on true
  cross join lateral (
    select count(*) > 0 as has_worker, coalesce(bool_or(t.of_task), false) as has_handler,
      coalesce(bool_or(t.of_task and t.of_queue), false) as has_queue_taker,
      coalesce(bool_or(t.of_task and t.of_queue and t.of_flags), false) as has_taker,
      case when bool_and(t.pause is not null) filter (where t.of_task and t.of_queue and t.of_flags)
        then (array_agg(t.pause order by t.pause_until) filter (where t.of_task and t.of_queue and t.of_flags))[1]
      end as taker_pause,
      (select json_agg(distinct f.flag) from ${schema}.workers x cross join lateral unnest(x.forbidden_flags) as f(flag)
        where x.stopped_at is null and f.flag = any(j.flags)) as forbidden
    from (
      select x.takes_any_task or j.task = any(x.tasks) as of_task, x.queues is null or coalesce(j.queue = any(x.queues), false) as of_queue,
        x.forbidden_flags is null or j.flags is null or not j.flags && x.forbidden_flags as of_flags, y.pause, y.pause_until
      from ${schema}.workers x
      left join lateral (
        select ${pauseAsJson} as pause, p.until as pause_until from ${schema}.job_pauses p
        where ${schema}.is_in_force(true, p.until, clock_timestamp())
          and (p.kind = 'instance' and p.name = x.instance or p.kind = 'worker' and p.name = x.label)
        order by p.until desc nulls first limit 1
      ) y on true
      where x.stopped_at is null and x.left_at is null and x.heartbeat_at + x.lease_ms * interval '1 ms' > clock_timestamp()
    ) t
  ) takers
  where j.id = $1::uuid`,
  { repeatable: true, patient: true },
);
