// Which rights each kind of process needs, and the statements that give them to a role or take them away. A role cannot
// do what is not here: only the owner of the tables may migrate, alter or truncate.
import type pg from 'pg';
import { InvalidArgumentError } from '../jobs.errors.js';
import { check } from '../validation.js';
import { rules } from '../validation.rules.js';
import { quoteIdentifier } from './database.js';

/**
 * A kind of process. `enqueue`: adds jobs, looks at them and waits for them. `worker`: runs pools, maintenance included.
 * `admin`: whatever `JobManager` can do.
 */
export type RoleKind = 'enqueue' | 'worker' | 'admin';

export const ROLE_KINDS: readonly RoleKind[] = ['enqueue', 'worker', 'admin'];

const EVERYTHING = 'select, insert, update, delete';
const ADDS = 'select, insert';
const LOOKS = 'select';
/** What an add stores of a job. The rest is what claims and ends write: a job that is added has no fence, holder or crash. */
const ADDED_COLUMNS =
  'id, run_at, priority, max_attempts, slot_only, lane, payload_kib, task, queue, partition, limits, flags, unmet, parked';

type Rights = Record<Exclude<RoleKind, 'admin'>, string | null>;

/** By table. Partitions are reached through their parents and need none of their own. `admin`: everything. */
const RIGHTS: Record<string, Rights> = {
  job_bodies: { enqueue: ADDS, worker: EVERYTHING },
  jobs: { enqueue: `select, insert (${ADDED_COLUMNS})`, worker: EVERYTHING },
  // Enqueuers take keys by add_keyed_jobs alone.
  job_keys: { enqueue: LOOKS, worker: EVERYTHING },
  // Enqueuers open windows by add_windowed_jobs alone.
  job_windows: { enqueue: LOOKS, worker: EVERYTHING },
  job_replacements: { enqueue: LOOKS, worker: 'select, delete, update (replaced_at)' },
  // A record is written once: not even a worker rewrites what has happened. To lock a row takes the right to update some
  // column, so there is one where that adds nothing to the right to delete.
  job_history: { enqueue: LOOKS, worker: 'select, insert, delete, update (expires_at)' },
  settle_receipts: { enqueue: null, worker: 'select, insert, delete, update (settled_at)' },
  job_dependencies: { enqueue: LOOKS, worker: EVERYTHING },
  job_steps: { enqueue: null, worker: EVERYTHING },
  job_progress: { enqueue: LOOKS, worker: EVERYTHING },
  job_logs: { enqueue: LOOKS, worker: 'select, insert, delete' },
  job_queues: { enqueue: LOOKS, worker: EVERYTHING },
  job_partitions: { enqueue: LOOKS, worker: LOOKS },
  // What a pause is to stop does not lift it: pausing is for operators. (A queue's is in its own row.)
  job_pauses: { enqueue: LOOKS, worker: 'select, update (since)' },
  job_places: { enqueue: LOOKS, worker: EVERYTHING },
  job_tasks: { enqueue: null, worker: EVERYTHING },
  // Workers take tokens; how many there are is for operators to say.
  rate_limits: { enqueue: LOOKS, worker: LOOKS },
  rate_limit_states: { enqueue: LOOKS, worker: 'select, insert, delete, update (full_at)' },
  rate_limit_blocks: { enqueue: LOOKS, worker: 'select, insert, delete, update (set_at)' },
  workers: { enqueue: LOOKS, worker: EVERYTHING },
  duties: { enqueue: null, worker: 'select, insert, update' },
  claims_in_question: { enqueue: null, worker: 'select, insert, delete, update (fence)' },
  crontabs: { enqueue: LOOKS, worker: EVERYTHING },
  job_bulk_actions: { enqueue: null, worker: EVERYTHING },
  releases: { enqueue: null, worker: EVERYTHING },
};

/** Its version is read at start; only the owner writes it. */
const VERSIONS = 'migrations';

/** Tables that rights are given for. A spec compares this with the schema. */
export const TABLES_WITH_RIGHTS = [...Object.keys(RIGHTS), VERSIONS];

/** Sequences that claims draw from: the same for them. */
export const SEQUENCES_WITH_RIGHTS = ['job_place_numbers'];

/** Gives the role exactly the rights of one kind, whatever it had before. In a transaction. */
export async function grantRights(client: pg.ClientBase, schema: string, kind: RoleKind, role: string): Promise<void> {
  check({ 'the kind of process': [kind, rules.oneOf(...ROLE_KINDS)], role: [role, rules.name] });
  await revokeRights(client, schema, role);
  const to = quoteIdentifier(role);
  const place = quoteIdentifier(schema);
  const grants = Object.entries(RIGHTS).flatMap(([table, rights]) => {
    const right = kind === 'admin' ? EVERYTHING : rights[kind];
    return right ? [`grant ${right} on table ${place}.${table} to ${to}`] : [];
  });
  await client.query(`grant usage on schema ${place} to ${to}`);
  await client.query(`grant ${LOOKS} on table ${place}.${VERSIONS} to ${to}`);
  for (const grant of grants) await client.query(grant);
  if (kind !== 'enqueue')
    await client.query(`grant usage on sequence ${namesIn(place, SEQUENCES_WITH_RIGHTS)} to ${to}`);
  // They run with their caller's rights, but for add_keyed_jobs and add_windowed_jobs, which only do what enqueuers may.
  for (const name of await functionsOf(client, schema))
    await client.query(`grant execute on function ${name} to ${to}`);
}

/** Takes away all that `grantRights` has given. In a transaction. */
export async function revokeRights(client: pg.ClientBase, schema: string, role: string): Promise<void> {
  await refuseUnfit(client, schema, role);
  const from = quoteIdentifier(role);
  const place = quoteIdentifier(schema);
  await client.query(`revoke all on table ${namesIn(place, TABLES_WITH_RIGHTS)} from ${from}`);
  await client.query(`revoke all on sequence ${namesIn(place, SEQUENCES_WITH_RIGHTS)} from ${from}`);
  for (const name of await functionsOf(client, schema))
    await client.query(`revoke all on function ${name} from ${from}`);
  await client.query(`revoke usage on schema ${place} from ${from}`);
}

const namesIn = (schema: string, names: string[]): string => names.map((name) => `${schema}.${name}`).join(', ');

/** As SQL names them. Functions that another role has put into the schema are left alone. */
async function functionsOf(client: pg.ClientBase, schema: string): Promise<string[]> {
  const { rows } = await client.query<{ name: string }>(
    `select p.oid::regprocedure::text as name from pg_proc p
     join pg_namespace n on n.oid = p.pronamespace
     join pg_class c on c.relnamespace = n.oid and c.relname = $2
     where n.nspname = $1 and p.proowner = c.relowner`,
    [schema, VERSIONS],
  );
  return rows.map(({ name }) => name);
}

/** PostgreSQL would take rights away from the owner too, and then no role could use the tables. */
async function refuseUnfit(client: pg.ClientBase, schema: string, role: string): Promise<void> {
  const { rows } = await client.query<{ owns: boolean }>(
    `select exists (
       select from pg_class c join pg_namespace n on n.oid = c.relnamespace
       where n.nspname = $2 and c.relkind in ('r', 'p') and c.relowner = r.oid
     ) or exists (select from pg_namespace n where n.nspname = $2 and n.nspowner = r.oid) as owns
     from pg_roles r where r.rolname = $1`,
    [role, schema],
  );
  if (!rows[0]) {
    throw new InvalidArgumentError([
      `Expected an existing role, got "${role}". Create it first: create role … login password ….`,
    ]);
  }
  if (rows[0].owns) {
    throw new InvalidArgumentError([
      `Expected a role that owns nothing in schema "${schema}", got "${role}": an owner may do everything as it is.`,
    ]);
  }
}
