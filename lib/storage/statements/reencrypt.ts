// Re-encryption: finds what was encrypted with another key than the present one, and replaces it unless it has
// changed meanwhile. Reads whole tables, in order of their keys: for a rotation, not for every day.
import { statement, type Statement } from '../database.js';

export interface SealedRow {
  /** The row's key, in one or two parts. */
  owner: string;
  part: string | null;
  /** Payloads only. */
  task: string | null;
  /** The envelope, as text. */
  sealed: string;
}

/** A column that may hold envelopes. */
export interface SealedColumn {
  /** What the value is to the cipher. */
  field: 'payload' | 'previous' | 'result' | 'partial' | 'step' | 'progress' | 'log' | 'crontab' | 'filter';
  /**
   * $1 how envelopes begin, $2 how those of the present key begin, $3 the first owner to look at or null, $4 whether to
   * begin behind it, $5 how many.
   */
  find: Statement<SealedRow>;
  /** $1 owners, $2 parts, $3 envelopes as found, $4 new ones. Passes over rows that others hold. */
  replace: Statement<{ replaced: number }>;
  /** $1 how envelopes begin, $2 how those of the present key begin. */
  count: Statement<{ left: number }>;
}

interface Where {
  table: string;
  column: string;
  type?: 'json' | 'text';
  owner: string;
  ownerType?: 'uuid' | 'text';
  part?: string;
  partType?: 'bigint' | 'text';
}

function sealedColumn(field: SealedColumn['field'], where: Where): SealedColumn {
  const { table, column, owner, part, type = 'json', ownerType = 'uuid', partType = 'text' } = where;
  const isSealed = `starts_with(t.${column}::text, $1::text) and not starts_with(t.${column}::text, $2::text)`;
  const find = statement<SealedRow>(
    `find_sealed_${field}`,
    (schema) => `
  select t.${owner}::text as owner, ${part ? `t.${part}::text` : 'null'} as part,
    ${field === 'payload' ? 't.task' : 'null'} as task, t.${column}::text as sealed
  from ${schema}.${table} t
  where ${isSealed} and ($3::${ownerType} is null or t.${owner} > $3 or (t.${owner} = $3 and not $4::boolean))
  order by t.${owner} limit $5`,
    { patient: true, slow: 'reads a whole table' },
  );
  const replace = statement<{ replaced: number }>(
    `replace_sealed_${field}`,
    (schema) => `
  with fresh as materialized (
    select owner::${ownerType} as owner, part::${partType} as part, old, new
    from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as i(owner, part, old, new)
  ),
  held as materialized (
    select t.${owner} as owner, f.part, f.old, f.new
    from fresh f join ${schema}.${table} t on t.${owner}::text = f.owner::text ${part ? `and t.${part} = f.part` : ''}
    where t.${owner} = any(array(select owner from fresh)) and t.${column}::text = f.old
    for update of t skip locked
  ),
  replaced as (
    update ${schema}.${table} t set ${column} = h.new::${type}
    from held h where t.${owner} = any(array(select owner from held)) and t.${owner}::text = h.owner::text ${part ? `and t.${part} = h.part` : ''} and t.${column}::text = h.old
    returning 1
  )
  select count(*)::integer as replaced from replaced`,
    { patient: true },
  );
  const count = statement<{ left: number }>(
    `count_sealed_${field}`,
    (schema) => `select count(*)::float8 as left from ${schema}.${table} t where ${isSealed}`,
    { patient: true, slow: 'reads a whole table' },
  );
  return { field, find, replace, count };
}

const ofJob = { owner: 'job_id' };
const ofAttempt = { ...ofJob, part: 'fence', partType: 'bigint' } as const;

/** Every column that may hold envelopes. */
export const SEALED_COLUMNS: SealedColumn[] = [
  sealedColumn('payload', { table: 'job_bodies', column: 'payload', owner: 'id' }),
  sealedColumn('previous', { table: 'jobs', column: 'previous', owner: 'id' }),
  sealedColumn('result', { table: 'job_history', column: 'result', ...ofAttempt }),
  sealedColumn('partial', { table: 'job_history', column: 'partial_results', ...ofAttempt }),
  sealedColumn('step', { table: 'job_steps', column: 'result', ...ofJob, part: 'name' }),
  sealedColumn('progress', { table: 'job_progress', column: 'value', ...ofJob }),
  sealedColumn('log', { table: 'job_logs', column: 'message', type: 'text', ...ofJob, part: 'id', partType: 'bigint' }),
  sealedColumn('crontab', { table: 'crontabs', column: 'payload', owner: 'id', ownerType: 'text' }),
  sealedColumn('filter', { table: 'job_bulk_actions', column: 'filter', owner: 'id' }),
];
