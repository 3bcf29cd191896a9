// Garbage: what is remembered of finished jobs until it expires, and names that are no longer used. Most of it goes
// with whole partitions (statements/partitions.ts); here are the rows of those that cannot be dropped.
import { statement } from '../database.js';

/** Removes what the attempts of the jobs in CTE `from` have written. Indexes: their primary keys. */
export const forgetNotes = (schema: string, from: string): string => `
  no_steps as (delete from ${schema}.job_steps s using ${from} f where s.job_id = f.id),
  no_progress as (delete from ${schema}.job_progress p using ${from} f where p.job_id = f.id),
  no_logs as (delete from ${schema}.job_logs l using ${from} f where l.job_id = f.id),
  no_parents as (
    delete from ${schema}.job_dependencies d where d.ctid = any(array(
      select o.ctid from ${schema}.job_dependencies o where o.child_id in (select f.id from ${from} f) for update skip locked
    ))
  )`;

/**
 * Removes expired records of some pages of one partition, and the bodies of cancelled jobs that they were the last to
 * remember. $1 partition (oid), $2 and $3 its bounds, $4 first page, $5 the page after the last, as tids. The function is of
 * migrations/0001_initial/6_partitions.sql.
 */
export const pruneHistory = statement<{ pruned: number }>(
  'prune_history',
  (schema) => `select ${schema}.prune_history($1::oid, $2::timestamptz, $3::timestamptz, $4::tid, $5::tid) as pruned`,
  { limited: true, slow: 'pages may hold thousands of records' },
);

/** Removes receipts that are older than an hour and that no waiting child needs. Index: settle_receipts_by_time. */
export const pruneReceipts = statement(
  'prune_receipts',
  (schema) => `
  delete from ${schema}.settle_receipts r where r.ctid = any(array(
    select o.ctid from ${schema}.settle_receipts o
    where o.settled_at <= clock_timestamp() - interval '1 hour'
      and not exists (select from ${schema}.job_dependencies d where d.parent_id = any(o.job_ids))
    for update of o skip locked
  ))`,
  { slow: 'any number of them may be left' },
);

/** Removes the bodies, in some pages of one partition, of jobs that nothing remembers. Parameters as of pruneHistory. */
export const pruneBodies = statement<{ pruned: number }>(
  'prune_bodies',
  (schema) => `select ${schema}.prune_bodies($1::oid, $2::uuid, $3::uuid, $4::tid, $5::tid) as pruned`,
  { limited: true, slow: 'pages may hold thousands of bodies and their notes' },
);

/** Forgets stopped workers whose last sign of life is older than the history that names them. $1 retention in ms. */
export const pruneWorkers = statement(
  'prune_workers',
  (schema) => `
  delete from ${schema}.workers w where w.ctid = any(array(
    select o.ctid from ${schema}.workers o
    where o.stopped_at is not null and o.heartbeat_at <= now() - $1::bigint * interval '1 ms' for update skip locked
  ))`,
  { slow: 'any number of them may be left' },
);

/** $1 names seen by this process. */
export const rememberTasks = statement(
  'see_tasks',
  (schema) => `
  select ${schema}.see_tasks($1::text[])`,
  { repeatable: true, limited: true },
);

/** Notes names that live jobs carry, then forgets those unused for $1 ms. */
export const pruneTasks = statement<{ pruned: number }>(
  'prune_tasks',
  (schema) => `
  with live as materialized (select distinct task from ${schema}.jobs),
  pruned as (
    delete from ${schema}.job_tasks t where t.ctid = any(array(
      select o.ctid from ${schema}.job_tasks o
      where o.last_seen_at <= now() - $1::bigint * interval '1 ms'
        and not exists (select from live where live.task = o.task)
      for update of o skip locked
    ))
    returning 1
  )
  select count(*)::integer as pruned from pruned`,
  { patient: true, slow: 'reads the live table' },
);

/** Forgets what was replaced an hour ago, where nothing waits for it, and its job is gone. */
export const pruneReplacements = statement(
  'prune_replacements',
  (schema) => `
  delete from ${schema}.job_replacements r where r.ctid = any(array(
    select o.ctid from ${schema}.job_replacements o
    where o.replaced_at <= clock_timestamp() - interval '1 hour'
      and not exists (select from ${schema}.job_dependencies d where d.parent_id = o.old_id)
      and not exists (select from ${schema}.jobs j where j.id = o.old_id)
    for update of o skip locked
  ))`,
  { slow: 'any number of them may be left' },
);

/** Forgets passed windows of throttled and unique jobs, so many at most. Of 7_enqueue.sql. */
export const pruneWindows = statement<{ pruned: number }>(
  'prune_windows',
  (schema) => `select ${schema}.prune_windows($1::integer) as pruned`,
  { limited: true },
);
