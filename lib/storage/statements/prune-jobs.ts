// Garbage: what is remembered of finished jobs until it expires, and names that nobody uses any more.
import { statement } from '../database.js';

/** Removes what the attempts of the jobs in CTE `from` have written. Indexes: their primary keys. */
export const forgetNotes = (schema: string, from: string): string => `
  no_steps as (delete from ${schema}.job_steps s using ${from} f where s.job_id = f.id),
  no_progress as (delete from ${schema}.job_progress p using ${from} f where p.job_id = f.id),
  no_logs as (delete from ${schema}.job_logs l using ${from} f where l.job_id = f.id),
  no_parents as (delete from ${schema}.job_dependencies d using ${from} f where d.child_id = f.id)`;

/** Removes expired records. */
export const pruneHistory = statement<{ pruned: number }>(
  'prune_history',
  (schema) => `
  with pruned as (
    delete from ${schema}.job_history where expires_at <= clock_timestamp() returning 1
  )
  select count(*)::integer as pruned from pruned`,
);

/**
 * Removes the bodies of jobs that are neither live nor in the history, nor completed within the last hour without
 * leaving a record. Jobs younger than an hour are kept, so that a repeated add finds what it added.
 */
export const pruneBodies = statement<{ pruned: number }>(
  'prune_bodies',
  (schema) => `
  with old_receipts as (
    delete from ${schema}.settle_receipts where settled_at <= now() - interval '1 hour'
  ),
  recent as materialized (
    select unnest(job_ids) as id from ${schema}.settle_receipts where settled_at > now() - interval '1 hour'
  ),
  pruned as (
    delete from ${schema}.job_bodies b
    where b.created_at <= now() - interval '1 hour'
      and not exists (select from ${schema}.jobs j where j.id = b.id)
      and not exists (select from ${schema}.job_history h where h.job_id = b.id)
      and not exists (select from recent where recent.id = b.id)
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
  insert into ${schema}.job_tasks (task) select distinct task from unnest($1::text[]) as task order by task
  on conflict (task) do update set last_seen_at = now()`,
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
