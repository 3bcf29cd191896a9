// The database's clock, which a spec cannot set: where it jumps, every time that it has written moves the other way, all at once.
import type { Sql } from './invariants.js';

/** What a stored time tells, and what becomes of one that a clock which was ahead has written. */
export type TimeKind =
  /** Decides something: what finds it in the future sets it back to now. */
  | 'set back'
  /** Lies in the future by right: it was reckoned from a clock, and moves with it. */
  | 'scheduled'
  /** Is only shown, or counts as now where it lies in the future. */
  | 'shown';

/** Every time in the tables. A column that is missing here fails a spec. */
export const TIMES: Record<string, Record<string, TimeKind>> = {
  crontabs: { known_since: 'set back', last_slot_at: 'set back', retired_at: 'set back', updated_at: 'shown' },
  duties: { due_at: 'scheduled' },
  job_bodies: { created_at: 'shown', run_at: 'scheduled' },
  job_bulk_actions: { created_at: 'shown', started_at: 'shown', finished_at: 'shown', next_at: 'scheduled' },
  job_history: { started_at: 'shown', completed_at: 'shown', expires_at: 'scheduled' },
  job_logs: { logged_at: 'shown' },
  job_pauses: { since: 'shown', until: 'scheduled' },
  job_progress: { updated_at: 'shown' },
  job_queues: { declared_at: 'set back', paused_since: 'shown', paused_until: 'scheduled' },
  job_replacements: { replaced_at: 'set back' },
  job_steps: { completed_at: 'shown' },
  job_tasks: { last_seen_at: 'set back' },
  job_windows: { begins_at: 'scheduled', until: 'scheduled', set_at: 'shown' },
  jobs: {
    run_at: 'scheduled',
    released_at: 'shown',
    lease_expires_at: 'scheduled',
    updated_at: 'set back',
    locked_at: 'set back',
  },
  migrations: { applied_at: 'shown' },
  rate_limit_blocks: { until: 'scheduled', set_at: 'shown' },
  rate_limit_states: { at: 'set back', full_at: 'scheduled' },
  rate_limits: { window_started_at: 'shown' },
  releases: { first_seen_at: 'set back', joined_at: 'set back' },
  settle_receipts: { settled_at: 'set back' },
  workers: { started_at: 'shown', heartbeat_at: 'set back', stopped_at: 'shown', left_at: 'shown' },
};

/** A time that is no further ahead is left: clocks of two machines are never quite the same. */
const TOLERANCE = '90 s';

/** The times that the schema has, as `table.column`. */
export async function timesOfSchema(sql: Sql): Promise<string[]> {
  const rows = await sql<{ name: string }>(`
    select c.relname || '.' || a.attname as name from pg_class c join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace = 'jobs'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
      and a.attnum > 0 and not a.attisdropped
      and a.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype)
    order by 1`);
  return rows.map(({ name }) => name);
}

/** The clock jumps by so many ms: forward, or, below zero, back to what it should have been. At once, as clocks do. */
export async function letClockJump(sql: Sql, ms: number): Promise<void> {
  const tables = Object.keys(TIMES);
  const updates = Object.entries(TIMES).map(([table, columns]) => {
    const sets = Object.keys(columns).map((column) => `${column} = ${column} - shift`);
    return `update jobs.${table} set ${sets.join(', ')};`;
  });
  // Locked together or not at all, so that no session waits for a part of it.
  await sql(`
    do $$
    declare
      shift interval := ${ms} * interval '1 ms';
    begin
      for tries in 1..2000 loop
        begin
          lock table ${tables.map((table) => `jobs.${table}`).join(', ')} in exclusive mode nowait;
          ${updates.join('\n          ')}
          return;
        exception when lock_not_available then
          perform pg_sleep(0.002);
        end;
      end loop;
      raise exception 'no moment came in which no session held a row';
    end $$`);
}

/** Times of what has happened that lie in the future all the same, as `table.column`. */
export async function timesAhead(sql: Sql, tables = Object.keys(TIMES)): Promise<string[]> {
  const columns = tables.flatMap((table) =>
    Object.entries(TIMES[table]!).flatMap(([column, kind]) => (kind === 'set back' ? [[table, column]] : [])),
  );
  const selects = columns.map(
    ([table, column]) =>
      `select '${table}.${column}' as name where exists (
        select from jobs.${table} where ${column} > clock_timestamp() + interval '${TOLERANCE}')`,
  );
  return (await sql<{ name: string }>(selects.join(' union all '))).map(({ name }) => name);
}
