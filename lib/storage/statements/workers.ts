// Incarnations of workers: their beginning, their heartbeat and their end, and what keeps claims and holders in agreement.
import { statement } from '../database.js';
import { newerSchema, SCHEMA_VERSION } from '../schema.version.js';
import { ms } from './job-columns.js';

/**
 * Also changes what a known one takes. $1 incarnation, $2 label, $3 host, $4 pid, $5 concurrency, $6 lease in ms, $7 tasks,
 * $8 whether it takes others as well, $9 queues and $10 forbidden flags (or null), $11 environment, $12 the module's instance or
 * null: the one without a name, $13 how long it gathers jobs of which tasks, in ms.
 */
export const registerWorker = statement<{ newer_schema: number | null }>(
  'register_worker',
  (schema) => `
  insert into ${schema}.workers (id, label, host, pid, concurrency, lease_ms, tasks, takes_any_task, queues, forbidden_flags,
    environment, instance, batch_waits)
  values ($1, $2, $3, $4, $5, $6, $7::text[], $8::boolean, $9::text[], $10::text[], $11::text::json, coalesce($12, 'default'),
    $13::text::json)
  on conflict (id) do update set heartbeat_at = clock_timestamp(), tasks = excluded.tasks, batch_waits = excluded.batch_waits
  returning (${newerSchema(schema)}) as newer_schema`,
  { patient: true },
);

/**
 * Renews the lease of everything that an incarnation holds: one row per process. $1 incarnation. Returns no row if it was
 * taken for dead; `held`: another session holds the row or its table, and nothing was renewed. Also tells what there is to
 * do, so that an idle process need not ask by statements of their own. The function is of 5_upkeep.sql.
 */
export const heartbeat = statement<{
  held: boolean;
  needs_rescue: boolean;
  newer_schema: number | null;
  has_pauses: boolean;
}>('heartbeat', (schema) => `select * from ${schema}.heartbeat($1::text, ${SCHEMA_VERSION})`, { limited: true });

/** $1 incarnation, or null: all that were not heard of for their lease. Returns those that have ended now. */
export const endIncarnations = statement<{ id: string }>(
  'end_incarnations',
  (schema) => `select id from ${schema}.end_incarnations($1::text)`,
  { limited: true },
);

/** Notes that a pool is being stopped: what it leaves behind was no crash. $1 incarnation. */
export const leaveIncarnation = statement(
  'leave_incarnation',
  (schema) => `update ${schema}.workers set left_at = clock_timestamp() where id = $1 and left_at is null`,
);

/** Claims of incarnations that have ended. $1 after how many crashes a job is exhausted. */
export const claimsOfTheDead = statement<{ id: string; fence: string; is_spared: boolean; has_left: boolean }>(
  'claims_of_the_dead',
  (schema) => `select * from ${schema}.claims_of_the_dead($1::integer)`,
  { limited: true },
);

/** Which of these claims are over, or to be cancelled. $1 ids, $2 fences. */
export const checkClaims = statement<{
  id: string;
  fence: string;
  standing: 'gone' | 'cancelled';
  reason: string | null;
}>('check_claims', (schema) => `select * from ${schema}.check_claims($1::uuid[], $2::bigint[])`, {
  repeatable: true,
  limited: true,
});

/**
 * Claims in limited queues, or that the audit asks about, which the database counts as an incarnation's and which it does not
 * hold, of a slice of the places. $1 incarnation, $2 ids and $3 fences of what it holds, $4, $5 where the slice begins. The last
 * row, without an id, tells where the next one begins; nulls: at the start.
 */
export const unknownClaims = statement<{
  id: string | null;
  fence: string;
  next_queue: string | null;
  next_number: string | null;
}>('unknown_claims', (schema) => `select * from ${schema}.unknown_claims($1::text, $2::uuid[], $3::bigint[], $4, $5)`, {
  limited: true,
});

/** The same of all claims: reads the live table. */
export const unknownClaimsAnywhere = statement<{ id: string; fence: string }>(
  'unknown_claims_anywhere',
  (schema) => `select * from ${schema}.unknown_claims_anywhere($1::text, $2::uuid[], $3::bigint[])`,
  { limited: true },
);

/** Stored times of what has happened that lie in the future become now: see the function. Those of live jobs: auditClaims. */
export const setBackTimes = statement('set_back_times', (schema) => `select ${schema}.set_back_times()`, {
  repeatable: true,
});

/** Puts old claims of a slice of the live table to their holders. $1 first page, $2 pages. */
export const auditClaims = statement<{ more: boolean }>(
  'audit_claims',
  (schema) => `select ${schema}.audit_claims($1::bigint, $2::bigint) as more`,
  { limited: true },
);

/**
 * Takes on a duty that all pools share, unless another process has it or it is not due. $1 name, $2 ms until it is due
 * again. Where the table was emptied, the duty is there again for the next call.
 */
export const takeDuty = statement<{ name: string }>(
  'take_duty',
  (schema) => `
  with missing as (
    insert into ${schema}.duties (name) select $1 where not exists (select from ${schema}.duties where name = $1)
    on conflict do nothing
  ),
  due as materialized (
    select name from ${schema}.duties
    where name = $1 and (due_at <= clock_timestamp() or due_at > clock_timestamp() + $2::bigint * interval '1 ms')
    for update skip locked
  )
  update ${schema}.duties d set due_at = clock_timestamp() + $2::bigint * interval '1 ms'
  from due where d.name = due.name returning d.name`,
);

/** When a duty is due again. $1 name, $2 ms. */
export const putOffDuty = statement(
  'put_off_duty',
  (schema) => `
  update ${schema}.duties d set due_at = clock_timestamp() + $2::bigint * interval '1 ms'
  where d.name in (select name from ${schema}.duties where name = $1 for update skip locked)`,
  { repeatable: true },
);

/** Where a duty in slices goes on, in any process; nothing: from the start. */
export interface DutyPosition {
  parent?: string | null;
  key?: string | null;
  successor?: string | null;
  place?: [queue: string, number: string] | null;
}

/** $1 name. */
export const findDutyPosition = statement<{ position: DutyPosition }>(
  'find_duty_position',
  (schema) => `select position from ${schema}.duties where name = $1`,
  { repeatable: true },
);

/** $1 name, $2 position as JSON. A position that others hold is left: the next slice is one that was looked at before. */
export const moveDuty = statement(
  'move_duty',
  (schema) => `
  update ${schema}.duties d set position = $2::text::json
  where d.name in (select name from ${schema}.duties where name = $1 for update skip locked)`,
  { repeatable: true },
);

export interface WorkerRow {
  id: string;
  host: string;
  pid: number;
  concurrency: number;
  started_at: number;
  heartbeat_at: number;
  running: number;
  tasks: string[];
}

export const listWorkers = statement<WorkerRow>(
  'list_workers',
  (schema) => `
  with running as materialized (
    select locked_by, count(*)::integer as jobs from ${schema}.jobs where locked_by is not null group by locked_by
  )
  select w.label as id, w.host, w.pid, w.concurrency, ${ms('w.started_at')} as started_at,
    ${ms('w.heartbeat_at')} as heartbeat_at, coalesce(r.jobs, 0) as running, to_json(w.tasks) as tasks
  from ${schema}.workers w left join running r on r.locked_by = w.id
  where w.stopped_at is null
  order by w.started_at, w.id`,
  { repeatable: true, patient: true, slow: 'reads the live table' },
);
