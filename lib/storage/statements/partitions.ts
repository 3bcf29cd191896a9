// Retention by dropping: makes, lists and drops the partitions of bodies and history, by the functions of migration 6. An
// `at` moves the present, for specs; null: now.
import { statement } from '../database.js';

export type PartitionedTable = 'job_bodies' | 'job_history';

/** A table whose rows must go one by one. */
export interface SweptPartition {
  /** Its oid. */
  place: string;
  lower: string;
  upper: string;
  /** How many pages it has. */
  blocks: string;
}

export interface OldBodyPartition extends SweptPartition {
  name: string;
  /** Whether few of its jobs are still asked for. */
  droppable: boolean;
}

/**
 * Makes one partition where one is missing. $1 table, $2 from how many ms after now it is needed, $3 for how long after
 * that, $4 its width in ms, $5 how many bytes the default may have, $6 at.
 */
export const makePartition = statement<{ made: string | null; hindrance: string | null }>(
  'make_partition',
  (schema) =>
    `select * from ${schema}.make_partition($1::text, $2::bigint, $3::bigint, $4::bigint, $5::bigint, $6::timestamptz)`,
  { limited: true, slow: 'reads the default partition' },
);

/** Drops one partition of the history of which all has expired. $1 at. */
export const dropHistoryPartition = statement<{ dropped: string; records: number }>(
  'drop_history_partition',
  (schema) => `select * from ${schema}.drop_history_partition($1::timestamptz)`,
  { limited: true, slow: 'counts the records' },
);

/** $1 how many jobs may still be asked for, $2 at. */
export const oldBodyPartitions = statement<OldBodyPartition>(
  'old_body_partitions',
  (schema) => `
  select name, place, lower_id as lower, upper_id as upper, blocks, droppable
  from ${schema}.old_body_partitions($1::integer, $2::timestamptz)`,
  { slow: 'looks for those who ask for their jobs' },
);

/** $1 partition, $2 how many jobs may still be asked for, $3 at. Null: not dropped, this time. */
export const dropBodyPartition = statement<{ moved: number | null }>(
  'drop_body_partition',
  (schema) => `select ${schema}.drop_body_partition($1::text, $2::integer, $3::timestamptz) as moved`,
  { limited: true, slow: 'moves the bodies that are kept' },
);

/**
 * Removes what attempts have written, of all jobs from a range that nobody asks for. $1, $2 the range, $3 how many may
 * still be asked for: a partition with more is not dropped. Indexes: the primary keys, job_dependencies_of_child.
 */
export const forgetNotesOfRange = statement(
  'forget_notes_of_range',
  (schema) => `
  with wanted as materialized (
    select unnest(${schema}.wanted_ids($1::uuid, $2::uuid, $3::integer + 1)) as id
  ),
  ${['job_steps', 'job_progress', 'job_logs']
    .map((table) => forgotten(schema, table, 'job_id'))
    .concat(forgotten(schema, 'job_dependencies', 'child_id'))
    .join(',\n  ')}
  select 1 as forgotten`,
  { brief: true, slow: 'a range may hold millions of notes' },
);

const forgotten = (schema: string, table: string, column: string): string => `no_${table} as (
    delete from ${schema}.${table} n
    where n.${column} >= $1 and n.${column} < $2 and not exists (select from wanted where wanted.id = n.${column})
  )`;

/** The default partition of the bodies. */
export const defaultBodies = statement<SweptPartition>(
  'default_bodies',
  (schema) => `
  select place, '00000000-0000-0000-0000-000000000000' as lower, 'ffffffff-ffff-ffff-ffff-ffffffffffff' as upper, blocks
  from ${schema}.partitions_of('job_bodies') where ends_at is null`,
);

/** The default partition of the history, and those that have expired and are still there. $1 at. */
export const expiredHistory = statement<SweptPartition>(
  'expired_history',
  (schema) => `
  select place, to_json(coalesce(starts_at, '-infinity')) #>> '{}' as lower,
    to_json(coalesce(ends_at, 'infinity')) #>> '{}' as upper, blocks
  from ${schema}.partitions_of('job_history')
  where ends_at is null or ends_at <= coalesce($1::timestamptz, now())`,
);

/** Sessions that hold locks on partitions or their parents, the oldest transaction first. */
export const partitionHolders = statement<{ pid: number; application: string; started_at: string | null }>(
  'partition_holders',
  (schema) => `
  select a.pid, a.application_name as application, to_char(a.xact_start at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC') as started_at
  from pg_catalog.pg_stat_activity a
  where a.pid <> pg_catalog.pg_backend_pid() and exists (
    select from pg_catalog.pg_locks l
    where l.pid = a.pid and l.granted and l.database = a.datid and l.relation in (
      select p.place from ${schema}.partitions_of('job_bodies') p
      union all select p.place from ${schema}.partitions_of('job_history') p
      union all select unnest(array['${schema}.job_bodies', '${schema}.job_history']::regclass[])::oid
    )
  )
  order by a.xact_start limit 5`,
  { repeatable: true },
);

/** Tables with partitions are never analysed by themselves. A role that does not own them gets a warning. */
export const analyzeParents = statement(
  'analyze_parents',
  (schema) => `analyze (skip_locked) ${schema}.job_bodies, ${schema}.job_history`,
  { limited: true, slow: 'reads samples of all partitions' },
);
