// Queues (lanes with a limit): their registry, their pauses, and the promotion of jobs that waited for a place.
import { statement } from '../database.js';
import { mayChange } from './releases.js';

/** Registers queues that claims came across. $1 names. */
export const registerQueues = statement(
  'register_queues',
  (schema) => `
  insert into ${schema}.job_queues (name)
  select distinct name from unnest($1::text[]) as name order by name
  on conflict (name) do nothing`,
  { repeatable: true, prompt: true },
);

/**
 * Writes declared concurrencies, except over configureQueue's and those of a newer release that runs. Returns the queues
 * that it has written. $1 names, $2 concurrencies (null: no limit), $3 release. A queue that is declared again and again
 * is written once a day, so that it is known to be in use.
 */
export const declareQueues = statement<{ name: string }>(
  'declare_queues',
  (schema) => `
  insert into ${schema}.job_queues as q (name, concurrency, release, declared_at)
  select name, concurrency, $3, clock_timestamp()
  from unnest($1::text[], $2::integer[]) as declared(name, concurrency) order by name
  on conflict (name) do update
  set concurrency = excluded.concurrency, release = excluded.release, declared_at = excluded.declared_at
  where not q.configured
    and (
      (q.concurrency, q.release) is distinct from (excluded.concurrency, excluded.release)
      or q.declared_at is null or q.declared_at < clock_timestamp() - interval '1 day'
    )
    and ${mayChange(schema, 'excluded.release', 'q.release')}
  returning q.name`,
  { repeatable: true },
);

/**
 * Of the queues that a process declares, those that are not as declared; their rows are not locked. $1 names,
 * $2 concurrencies, $3 the release whose name they must bear, or null for any.
 */
export const findUndeclaredQueues = statement<{ name: string }>(
  'find_undeclared_queues',
  (schema) => `
  select mine.name from unnest($1::text[], $2::integer[]) as mine(name, concurrency)
  left join ${schema}.job_queues q on q.name = mine.name
  where q.name is null or not q.configured and (
    q.concurrency is distinct from mine.concurrency or q.release is distinct from coalesce($3, q.release)
    or q.declared_at is null or q.declared_at < clock_timestamp() - interval '1 day'
  )
  order by mine.name`,
  { repeatable: true },
);

/** $1 name, $2 concurrency or null for no limit. */
export const configureQueue = statement(
  'configure_queue',
  (schema) => `
  insert into ${schema}.job_queues (name, concurrency, configured) values ($1, $2, true)
  on conflict (name) do update set concurrency = excluded.concurrency, configured = true`,
  { repeatable: true },
);

/** $1 name, $2 whether it is paused. Claims park what they meet of a paused queue. */
export const pauseQueue = statement(
  'pause_queue',
  (schema) => `
  insert into ${schema}.job_queues (name, paused) values ($1, $2)
  on conflict (name) do update set paused = excluded.paused`,
  { repeatable: true },
);

/**
 * Brings waiting jobs back into the claims' range, per queue, while places are free: those among the first in line, or,
 * for a queue that got stuck, the first that wait (a job ahead of them may be one that no worker handles).
 * $1 queue names, $2 whether they got stuck.
 * Runs as a statement of its own after whatever freed the places: only its own snapshot shows a job that a claim
 * parked while the freeing statement waited for the queue's row.
 * A queue whose line is empty is marked so, unless somebody was made to wait within the last minute: that job's
 * parking may be younger than this snapshot. Index: jobs_of_queue.
 */
export const promoteQueued = statement<{ promoted: number }>(
  'promote_queued',
  (schema) => `
  with places as materialized (
    select name, parked_at, case when paused then 0 else coalesce(concurrency, 10000) - running end as free
    from ${schema}.job_queues
    where name = any($1::text[])
    order by name for update
  ),
  line as materialized (
    select waiting.id, waiting.parked, places.name
    from places cross join lateral (
      select j.id, j.parked from ${schema}.jobs j
      where j.queue = places.name and (j.parked is null or j.parked = 'queue') and j.locked_by is null
        and (j.parked = 'queue' or not $2::boolean and j.run_at <= now())
      order by j.priority, j.run_at, j.id
      limit greatest(places.free, 0)
      for update skip locked
    ) waiting
    where places.free > 0
  ),
  promoted as (
    update ${schema}.jobs j set parked = null from line where j.id = line.id and line.parked = 'queue'
  ),
  emptied as (
    update ${schema}.job_queues q set parked_at = null
    from places
    where q.name = places.name and places.parked_at < statement_timestamp() - interval '1 min'
      and places.free > (select count(*) from line where line.name = places.name)
  )
  select count(*)::integer as promoted from line where parked = 'queue'`,
);

/** Queues with a free place whose line may not be empty: what a promotion that was never made leaves behind. */
export const stalledQueues = statement<{ name: string }>(
  'stalled_queues',
  (schema) => `
  select name from ${schema}.job_queues
  where parked_at is not null and not paused and running < coalesce(concurrency, 2147483647)`,
  { repeatable: true },
);

export interface QueueRow {
  name: string;
  concurrency: number | null;
  paused: boolean;
  running: number;
  waiting: number;
  locked_by: string | null;
}

/** $1 names or null for all. Jobs of queues that no claim has met yet are counted too. */
export const listQueues = statement<QueueRow>(
  'list_queues',
  (schema) => `
  with waiting as materialized (
    select queue, count(*)::integer as jobs from ${schema}.jobs
    where queue is not null and locked_by is null and parked is distinct from 'exhausted'
      and ($1::text[] is null or queue = any($1))
    group by queue
  )
  select coalesce(q.name, w.queue) as name, case when q.name is null then 1 else q.concurrency end as concurrency,
    coalesce(q.paused, false) as paused, coalesce(q.running, 0) as running, coalesce(w.jobs, 0) as waiting, q.locked_by
  from (select * from ${schema}.job_queues where $1::text[] is null or name = any($1)) q
  full join waiting w on w.queue = q.name
  order by 1`,
  { repeatable: true },
);

/** Locks queues, in the order of their names. $1 names or null for all. */
export const lockQueues = statement(
  'lock_queues',
  (schema) => `
  select name from ${schema}.job_queues where $1::text[] is null or name = any($1) order by name for update`,
);

/**
 * Sets the count of running jobs to what the jobs say. $1 names or null for all. Only in a transaction that has locked
 * the queues by an earlier statement: this one's snapshot must be younger than the locks.
 */
export const recountQueues = statement<{ name: string }>(
  'recount_queues',
  (schema) => `
  with running as materialized (
    select queue, count(*)::integer as jobs, max(locked_by) as locked_by
    from ${schema}.jobs where queue is not null and locked_by is not null group by queue
  ),
  recounted as (
    update ${schema}.job_queues q
    set running = coalesce(r.jobs, 0), locked_by = r.locked_by, parked_at = coalesce(q.parked_at, now())
    from ${schema}.job_queues old left join running r on r.queue = old.name
    where old.name = q.name and ($1::text[] is null or q.name = any($1))
    returning q.name
  )
  select name from recounted order by name`,
);

/**
 * Forgets queues that are not in use: no job, no pause, no setting, and no process has declared them for a month. Those
 * that run declare them each day. $1 names to keep.
 */
export const pruneQueues = statement<{ name: string }>(
  'prune_queues',
  (schema) => `
  with unused as materialized (
    select q.name from ${schema}.job_queues q
    where q.running = 0 and not q.paused and not q.configured and q.name <> all($1::text[])
      and (q.declared_at is null or q.declared_at < clock_timestamp() - interval '30 days')
      and not exists (select from ${schema}.jobs j where j.queue = q.name)
    for update of q skip locked
  ),
  pruned as (
    delete from ${schema}.job_queues q using unused where q.name = unused.name returning q.name
  )
  select name from pruned`,
);
