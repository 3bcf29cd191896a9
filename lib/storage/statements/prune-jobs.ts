// Garbage: what is remembered of finished jobs until it expires, and names that nobody uses any more. Most of it goes with
// whole partitions (statements/partitions.ts); here are the rows of those that cannot be dropped.
import { statement } from '../database.js';

/** Removes what the attempts of the jobs in CTE `from` have written. Indexes: their primary keys. */
export const forgetNotes = (schema: string, from: string): string => `
  no_steps as (delete from ${schema}.job_steps s using ${from} f where s.job_id = f.id),
  no_progress as (delete from ${schema}.job_progress p using ${from} f where p.job_id = f.id),
  no_logs as (delete from ${schema}.job_logs l using ${from} f where l.job_id = f.id),
  no_parents as (delete from ${schema}.job_dependencies d using ${from} f where d.child_id = f.id)`;

/**
 * Removes expired records of some pages of one partition, and the bodies of cancelled jobs that they were the last to
 * remember: a job without a record counts as completed. $1 partition (oid), $2 and $3 its bounds, $4 first page, $5 the
 * page after the last, as tids. Scans these pages and no others.
 */
export const pruneHistory = statement<{ pruned: number }>(
  'prune_history',
  (schema) => `
  with expired as (
    delete from ${schema}.job_history h
    where h.tableoid = $1::oid and h.expires_at >= $2::timestamptz and h.expires_at <= $3::timestamptz
      and h.ctid >= $4::tid and h.ctid < $5::tid and h.expires_at <= clock_timestamp()
    returning h.job_id, h.status
  ),
  forgotten as (
    delete from ${schema}.job_bodies b
    where b.id = any(array(select e.job_id from expired e where e.status = 'cancelled'))
      and b.created_at <= now() - interval '1 hour'
      and not exists (select from ${schema}.jobs j where j.id = b.id)
      and not exists (select from ${schema}.job_history h where h.job_id = b.id and h.expires_at > clock_timestamp())
    returning b.id
  ),
  ${forgetNotes(schema, 'forgotten')}
  select count(*)::integer as pruned from expired`,
);

/** Removes receipts that are older than an hour and that no waiting child needs. Index: settle_receipts_by_time. */
export const pruneReceipts = statement(
  'prune_receipts',
  (schema) => `
  delete from ${schema}.settle_receipts r
  where r.settled_at <= clock_timestamp() - interval '1 hour'
    and not exists (select from ${schema}.job_dependencies d where d.parent_id = any(r.job_ids))`,
);

/**
 * Removes the bodies, in some pages of one partition, of jobs that are neither live nor in the history, nor completed
 * within the last hour without leaving a record. Jobs younger than an hour are kept, so that a repeated add finds what it
 * added. Parameters as of pruneHistory. Indexes: jobs_pkey, job_history_by_job.
 */
export const pruneBodies = statement<{ pruned: number }>(
  'prune_bodies',
  (schema) => `
  with recent as materialized (
    select unnest(job_ids) as id from ${schema}.settle_receipts
  ),
  pruned as (
    delete from ${schema}.job_bodies b
    where b.tableoid = $1::oid and b.id >= $2::uuid and b.id <= $3::uuid and b.ctid >= $4::tid and b.ctid < $5::tid
      and b.created_at <= now() - interval '1 hour'
      and not exists (select from ${schema}.jobs j where j.id = b.id)
      and not exists (select from ${schema}.job_history h where h.job_id = b.id)
      and not exists (select from recent where recent.id = b.id)
      and not exists (select from ${schema}.job_dependencies d where d.parent_id = b.id)
    returning b.id
  ),
  ${forgetNotes(schema, 'pruned')}
  select count(*)::integer as pruned from pruned`,
);

/** Forgets stopped workers whose last sign of life is older than the history that names them. $1 retention in ms. */
export const pruneWorkers = statement(
  'prune_workers',
  (schema) => `
  delete from ${schema}.workers
  where stopped_at is not null and heartbeat_at <= now() - $1::bigint * interval '1 ms'`,
);

/** $1 names seen by this process. */
export const seeTasks = statement(
  'see_tasks',
  (schema) => `
  select ${schema}.see_tasks($1::text[])`,
  { repeatable: true, prompt: true },
);

/** Notes names that live jobs carry, then forgets those unused for $1 ms. */
export const pruneTasks = statement<{ pruned: number }>(
  'prune_tasks',
  (schema) => `
  with live as materialized (select distinct task from ${schema}.jobs),
  pruned as (
    delete from ${schema}.job_tasks t
    where t.last_seen_at <= now() - $1::bigint * interval '1 ms'
      and not exists (select from live where live.task = t.task)
    returning 1
  )
  select count(*)::integer as pruned from pruned`,
);

/** Forgets what was replaced an hour ago, where nothing waits for it, and its job is gone. */
export const pruneReplacements = statement(
  'prune_replacements',
  (schema) => `
  delete from ${schema}.job_replacements r
  where r.replaced_at <= clock_timestamp() - interval '1 hour'
    and not exists (select from ${schema}.job_dependencies d where d.parent_id = r.old_id)
    and not exists (select from ${schema}.jobs j where j.id = r.old_id)`,
);
