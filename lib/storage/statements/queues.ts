// Queues (lanes with a limit): their registry, their limits and their pauses.
import { statement } from '../database.js';
import { ms } from './job-columns.js';

/** Registers queues that claims came across. $1 names. */
export const registerQueues = statement(
  'register_queues',
  (schema) => `
  select ${schema}.register_queues($1::text[])`,
  { repeatable: true, limited: true },
);

/**
 * Writes a declared concurrency, settings of partitions and bound, except over configureQueue's and those of a newer release that
 * runs. $1 name, $2 concurrency (null: no limit), $3 settings of partitions (JSON), $4 release, $5 how many jobs may wait (null: any
 * number). A queue that is declared again and again is written once a day, so that it is
 * known to be in use.
 */
export const declareQueue = statement<{ changed: boolean }>(
  'declare_queue',
  (schema) => `select ${schema}.declare_queue($1::text, $2::integer, $3::jsonb, $4::text, $5::integer) as changed`,
  { repeatable: true, limited: true },
);

/**
 * Of the queues that a process declares, those that are not as declared; their rows are not locked. $1 names,
 * $2 concurrencies, $3 the release whose name they must bear, or null for any, $4 settings of partitions (JSON), $5 how many jobs
 * may wait.
 */
export const findUndeclaredQueues = statement<{ name: string }>(
  'find_undeclared_queues',
  (schema) => `
  select mine.name from unnest($1::text[], $2::integer[], $4::text[], $5::integer[]) as mine(name, concurrency, partitions, max_waiting)
  left join ${schema}.job_queues q on q.name = mine.name
  where q.name is null or not (q.configured and q.waiting_configured) and (
    not q.configured and (q.concurrency is distinct from mine.concurrency or q.partitions <> mine.partitions::jsonb)
    or not q.waiting_configured and q.max_waiting is distinct from mine.max_waiting or q.release is distinct from coalesce($3, q.release)
    or q.declared_at is null or q.declared_at < clock_timestamp() - interval '1 day'
  )
  order by mine.name`,
  { repeatable: true },
);

/**
 * Changes what is given. $1 name, $2 concurrency or null, $3 no limit, $4 settings of partitions (JSON) or null. No claim that
 * does not know the change is committed after it.
 */
export const editQueue = statement(
  'edit_queue',
  (schema) => `select ${schema}.edit_queue($1::text, $2::integer, $3::boolean, $4::jsonb)`,
  { repeatable: true, limited: true },
);

/**
 * Sets what a partition has of its own. $1 queue, $2 partition, $3 concurrency, $4 share, $5 weight; nulls: as its queue says.
 * No claim that does not know the change is committed after it.
 */
export const editPartition = statement(
  'edit_partition',
  (schema) => `select ${schema}.edit_partition($1::text, $2::text, $3::integer, $4::real, $5::smallint)`,
  { repeatable: true, limited: true },
);

export interface PartitionRow {
  partition: string;
  waiting: number;
  running: number;
  concurrency: number | null;
  share: number | null;
  weight: number;
}

/**
 * Partitions of a queue that have live jobs or settings of their own, by name: $2 of them behind $3. $1 queue. Waiting and
 * running jobs are counted up to $4. Indexes: jobs_lanes, two descents for each partition and priority that has jobs of it, and
 * one for each priority; job_partitions_pkey.
 */
export const listPartitions = statement<PartitionRow>(
  'list_partitions',
  (schema) => `select * from ${schema}.list_partitions($1::text, $2::integer, $3::text, $4::integer)`,
  { repeatable: true, limited: true, patient: true },
);

/** $1 name, $2 how many jobs may wait or null. */
export const boundQueue = statement('bound_queue', (schema) => `select ${schema}.bound_queue($1::text, $2::integer)`, {
  repeatable: true,
  limited: true,
});

/**
 * Queues with a bound of waiting jobs, and how many wait in those of $1. Once a second for each process that adds to queues.
 * Of 7_enqueue.sql.
 */
export const findQueueBounds = statement<{ queue: string; most: number; found: number | null }>(
  'find_queue_bounds',
  (schema) => `select queue, most, found from ${schema}.queue_bounds($1::text[])`,
  { repeatable: true, patient: true },
);

export interface QueueRow {
  name: string;
  concurrency: number | null;
  max_waiting: number | null;
  paused: boolean;
  paused_since: number | null;
  paused_until: number | null;
  pause_reason: string | null;
  paused_by: string | null;
  running: number;
  waiting: number;
  locked_by: string | null;
}

/** $1 names or null for all. Jobs of queues that no claim has met yet are counted too. Reads the live table. */
export const listQueues = statement<QueueRow>(
  'list_queues',
  (schema) => `
  with jobs as materialized (
    select queue, count(*) filter (where locked_by is null and parked is distinct from 'exhausted')::integer as waiting,
      count(*) filter (where locked_by is not null)::integer as running, max(locked_by) as locked_by,
      bool_or(partition is not null) as has_partitions
    from ${schema}.jobs
    where queue is not null and ($1::text[] is null or queue = any($1))
    group by queue
  )
  select coalesce(q.name, j.queue) as name, case
      when q.is_said then q.concurrency
      -- One that nothing is said of has no limit once it has partitions.
      when not coalesce(j.has_partitions, false) then coalesce(q.concurrency, case when q.name is null then 1 end)
    end as concurrency,
    q.max_waiting,
    coalesce(q.is_paused, false) as paused, ${ms('q.paused_since')} as paused_since, ${ms('q.paused_until')} as paused_until,
    q.pause_reason, q.paused_by, coalesce(j.running, 0) as running, coalesce(j.waiting, 0) as waiting,
    coalesce(w.label, j.locked_by) as locked_by
  from (
    select n.name, n.concurrency, n.configured or n.declared_at is not null as is_said, n.max_waiting, p.* from ${schema}.job_queues n
    left join lateral (
      select true as is_paused, n.paused_since, n.paused_until, n.pause_reason, n.paused_by
      where ${schema}.is_in_force(n.paused, n.paused_until, clock_timestamp())
    ) p on true
    where $1::text[] is null or n.name = any($1)
  ) q
  full join jobs j on j.queue = q.name
  left join ${schema}.workers w on w.id = j.locked_by
  order by 1`,
  { repeatable: true, patient: true, slow: 'reads the live table' },
);

/** Names of queues. $1 names or null for all. */
export const findQueues = statement<{ name: string }>(
  'find_queues',
  (schema) => `select name from ${schema}.job_queues where $1::text[] is null or name = any($1) order by name`,
  { repeatable: true, patient: true },
);

/**
 * Forgets queues that nothing uses: no job, no place, no pause, no setting of its own or of a partition, no declaration. $1 names
 * to keep. Locked first, then looked at: a claim under way holds the row.
 */
export const pruneQueues = statement<{ name: string }>(
  'prune_queues',
  (schema) => `
  with idle as materialized (
    select q.name from ${schema}.job_queues q
    where not ${schema}.is_in_force(q.paused, q.paused_until, clock_timestamp()) and not q.configured and not q.waiting_configured and q.name <> all($1::text[])
      and (q.declared_at is null or q.declared_at < clock_timestamp() - interval '30 days')
      and not exists (select from ${schema}.jobs j where j.queue = q.name)
      and not exists (select from ${schema}.job_places p where p.queue = q.name)
      and not q.limits_partitions and not exists (select from ${schema}.job_partitions p where p.queue = q.name)
    for update of q skip locked
  ),
  pruned as (
    delete from ${schema}.job_queues q using idle where q.name = idle.name returning q.name
  )
  select name from pruned`,
  { patient: true },
);
