// For specs of applications: moves stored times into the past, and empties the tables. Nothing here is for production.
import { statement } from '../database.js';
import { ms } from './job-columns.js';
import type { PauseRow } from './pauses.js';

/** Every stored time by which the library decides or reports. A spec compares this with the schema. */
export const STORED_TIMES: Record<string, string[]> = {
  jobs: ['run_at', 'released_at', 'updated_at', 'locked_at', 'lease_expires_at'],
  job_bodies: ['created_at', 'run_at'],
  job_history: ['started_at', 'completed_at', 'expires_at'],
  settle_receipts: ['settled_at'],
  job_steps: ['completed_at'],
  job_progress: ['updated_at'],
  job_logs: ['logged_at'],
  job_queues: ['declared_at', 'paused_since', 'paused_until'],
  job_pauses: ['since', 'until'],
  job_replacements: ['replaced_at'],
  job_windows: ['begins_at', 'until', 'set_at'],
  duties: ['due_at'],
  job_bulk_actions: ['created_at', 'started_at', 'finished_at', 'next_at'],
  job_tasks: ['last_seen_at'],
  rate_limits: ['window_started_at'],
  rate_limit_states: ['at', 'full_at'],
  rate_limit_blocks: ['until', 'set_at'],
  workers: ['started_at', 'heartbeat_at', 'stopped_at', 'left_at'],
  crontabs: ['known_since', 'last_slot_at', 'updated_at', 'retired_at'],
  releases: ['first_seen_at', 'joined_at'],
};

/** Tables that hold nothing but what jobs have left. */
export const TABLES_OF_JOBS = [
  'jobs',
  'job_bodies',
  'job_history',
  'settle_receipts',
  'job_dependencies',
  'job_steps',
  'job_progress',
  'job_logs',
  'job_keys',
  'job_replacements',
  'job_windows',
  'job_places',
  'claims_in_question',
  'rate_limit_states',
  'rate_limit_blocks',
  'job_bulk_actions',
];

/** $1 ms. The database's clock decides what is due, and cannot be turned, so everything stored becomes older. */
export const moveTimes = statement(
  'move_times',
  (schema) => {
    const moves = Object.entries(STORED_TIMES).map(([table, columns]) => {
      const older = columns.map((column) => `${column} = ${column} - $1::bigint * interval '1 ms'`);
      return `moved_${table} as (update ${schema}.${table} set ${older.join(', ')})`;
    });
    return `
  with ${moves.join(',\n  ')}
  select 1 as moved`;
  },
  { patient: true, slow: 'writes every row' },
);

/**
 * Empties what jobs fill and takes queues, rate limits and crontabs back to their beginnings. Deletes: after a spec's few
 * jobs that takes 1 ms, truncating 20 ms, and it waits for no reader. Workers that are alive stay known.
 */
export const clearJobs = statement(
  'clear_jobs',
  (schema) => `
  with ${TABLES_OF_JOBS.map((table) => `cleared_${table} as (delete from ${schema}.${table})`).join(',\n  ')},
  stopped_workers as (delete from ${schema}.workers where stopped_at is not null),
  full_limits as (
    update ${schema}.rate_limits
    set window_started_at = clock_timestamp()
  ),
  new_crontabs as (
    update ${schema}.crontabs set known_since = clock_timestamp(), last_slot_at = null, last_job_id = null
  )
  select 1 as cleared`,
  { patient: true, slow: 'deletes every row' },
);

/** Forgets what calls have configured: queues, pauses, rate limits, and crontabs that no decorator declares. */
export const clearConfiguration = statement(
  'clear_configuration',
  (schema) => `
  with queues as (delete from ${schema}.job_queues),
  partitions as (delete from ${schema}.job_partitions),
  pauses as (delete from ${schema}.job_pauses),
  limits as (delete from ${schema}.rate_limits),
  crontabs as (delete from ${schema}.crontabs where not declared)
  select 1 as cleared`,
  { patient: true },
);

/** Due jobs that pauses keep from running, by pause. $1 tasks, $2 queues and $3 forbidden flags, or null. */
export const findPausedJobs = statement<PauseRow & { jobs: { id: string; task: string }[] }>(
  'find_paused_jobs',
  (schema) => `
  select p.kind, p.name, p.partition, ${ms('p.since')} as since, ${ms('p.until')} as until, p.reason, p.paused_by,
    json_agg(json_build_object('id', j.id, 'task', j.task) order by j.priority, j.run_at, j.id) as jobs
  from ${schema}.pauses_in_force() p
  join ${schema}.jobs j on case p.kind
    when 'all' then true
    when 'task' then j.task = p.name
    when 'queue' then j.queue = p.name
    when 'partition' then j.queue = p.name and j.partition = p.partition
    else false
  end
  where j.locked_by is null and j.parked is null and j.run_at <= clock_timestamp()
    and ($1::text[] is null or j.task = any($1)) and ($2::text[] is null or j.queue = any($2))
    and ($3::text[] is null or j.flags is null or not j.flags && $3)
  group by p.kind, p.name, p.partition, p.since, p.until, p.reason, p.paused_by
  order by p.since nulls first, p.kind, p.name, p.partition`,
  { patient: true },
);
