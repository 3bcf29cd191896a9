// Every statement of the library, and through them every function of its schema, beside a stranger's open transaction that
// holds what the statement could want: it ends all the same, unless it belongs to an add in a caller's transaction. Where one
// waits, what it holds meanwhile stands no later in the order of locks than what it waits for.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import type { QueryExecutor } from '../../lib/index.js';
import { awaitedTables, holdTables } from '../../lib/storage/awaited.tables.js';
import type { Statement } from '../../lib/storage/database.js';
import { createTestManager, type TestManager, managerWithin } from '../support/manager.js';
import { eventually } from '../support/database.js';
import { ANSWERS, CALLS, CASES, OF_POOLS, setScene, STATEMENTS, type Scene } from './locks.js';

/** The limit that a statement may not reach; the rule says 100 ms. */
const TOO_LONG_MS = 2_000;
/** What may wait is not waited for. */
const SHORT_MS = 60;

/** The order of locks, docs/storage.md; tables of one line are of one class. */
const ORDER = [
  ['crontabs', 'job_bulk_actions', 'duties', 'releases', 'job_tasks', 'job_pauses'],
  ['workers'],
  ['job_windows'],
  ['job_keys'],
  ['job_queues'],
  ['rate_limits', 'rate_limit_states'],
  ['jobs'],
  ['job_places', 'claims_in_question'],
  ['job_dependencies'],
  [
    'job_bodies',
    'job_steps',
    'job_progress',
    'job_logs',
    'job_history',
    'settle_receipts',
    'job_replacements',
    'rate_limit_blocks',
  ],
];
const TABLES = ORDER.flat();
const rankOf = (table: string): number => ORDER.findIndex((tables) => tables.includes(table));

let test: TestManager;
let scene: Scene;
/** Runs the statements. */
let session: pg.Client;
let pid: number;
/** Holds rows. */
let stranger: pg.Client;

beforeAll(async () => {
  test = await createTestManager({ history: { keep: 'all' }, retry: { baseDelayMs: 3_600_000 } });
  scene = await setScene(test);
  // Tables of which another transaction holds rows, or which it holds as a whole.
  await test.sql(`
    create function jobs.audit_held() returns text[] language plpgsql set lock_timeout = '30ms' as $$
    declare
      name text;
      held text[] := '{}';
      total bigint;
      free bigint;
    begin
      foreach name in array '{${TABLES.join()}}'::text[] loop
        begin
          execute format('select count(*) from jobs.%I', name) into total;
          execute format('select count(*) from (select from jobs.%I for update skip locked) f', name) into free;
          if free < total then held := held || name; end if;
        exception when lock_not_available then
          held := held || name;
        end;
      end loop;
      return held;
    end $$`);
  [session, stranger] = [new pg.Client(test.url), new pg.Client(test.url)];
  await Promise.all([session.connect(), stranger.connect()]);
  pid = (await session.query<{ pid: number }>('select pg_backend_pid() as pid')).rows[0]!.pid;
});
afterAll(async () => {
  await Promise.all([session.end(), stranger.end()]);
  await test.close();
});

type End = 'done' | 'gave up' | 'waited too long';

/** Runs one statement as the library does, and undoes it. */
async function run(statement: Statement<unknown>, meanwhile?: () => Promise<void>): Promise<End> {
  const { args, waits, kit, within, rows } = CASES[statement.name]!;
  // A part of a page that is kept or undone has a beginning.
  await session.query(
    `begin; savepoint millrace_part; set local statement_timeout = ${(waits || kit) && !meanwhile ? SHORT_MS : TOO_LONG_MS}`,
  );
  if (rows || within) await session.query(`set local lock_timeout = '100ms'`);
  try {
    await session.query(statement.text('jobs'), args(scene));
    await meanwhile?.();
    return 'done';
  } catch (error) {
    return endBy(error, statement.name);
  } finally {
    await session.query('rollback');
  }
}

function endBy(error: unknown, name: string): End {
  const { code } = error as { code?: string };
  if (code === '55P03') return 'gave up';
  if (code === '57014') return 'waited too long';
  throw new Error(`${name}: ${(error as Error).message}`, { cause: error });
}

/** Outside of any caller's transaction, in a session without a limit: statements that have none of their own get one. */
async function runAlone({ name, text, limited, limitedText }: Statement<unknown>): Promise<End> {
  await session.query(`begin; savepoint millrace_part; set local statement_timeout = ${TOO_LONG_MS}`);
  if (!limited && !limitedText) await session.query(`set local lock_timeout = '5ms'`);
  const { args } = CASES[name]!;
  const patience = { add_keyed_jobs: 2, add_windowed_jobs: 2, take_tokens: 3 }[name];
  const values = patience === undefined ? args(scene) : args(scene).with(patience, false);
  try {
    await session.query((limitedText ?? text)('jobs'), values);
    return 'done';
  } catch (error) {
    return endBy(error, name);
  } finally {
    await session.query('rollback');
  }
}

/** In a caller's transaction, which has no limit: for as long as a statement with a limit of its own would not wait. */
async function runIn(statement: Statement<unknown>): Promise<End> {
  await session.query(`begin; set local statement_timeout = '150ms'`);
  try {
    const tables = awaitedTables(statement);
    if (tables) await session.query(holdTables.text('jobs'), tables);
    await session.query(statement.text('jobs'), CASES[statement.name]!.args(scene));
    return 'done';
  } catch (error) {
    return endBy(error, statement.name);
  } finally {
    await session.query('rollback');
  }
}

const heldTables = async (): Promise<string[]> =>
  (await test.sql<{ held: string[] }>('select jobs.audit_held() as held'))[0]!.held;

/** What a stranger may hold: all rows of a table, single jobs, advisory locks, and what it has added without a commit. */
const HOLDS: Record<string, (scene: Scene) => string> = {
  ...Object.fromEntries(TABLES.map((table) => [`all of ${table}`, () => `select from jobs.${table} for update`])),
  ...Object.fromEntries(
    (['running', 'plain', 'waiting', 'keyed', 'exhausted', 'parent', 'child'] as const).map((job) => [
      `the ${job} job`,
      (found) => `select from jobs.jobs where id = '${found.ids[job]}' for update`,
    ]),
  ),
  'advisory locks': () => `
    set local search_path = jobs;
    select pg_advisory_xact_lock(lock_named(kind, name)) from (values ('incarnation', 'pool-that-lives'),
      ('incarnation', 'pool-that-died'), ('queue', 'q'), ('queue', 'u'), ('queue', 'fresh'), ('partitions', '')) l(kind, name);
    set local search_path to default;
    select pg_advisory_xact_lock(hashtextextended(name, 0)) from unnest(array[
      E'millrace:limit:jobs\\x1dl', E'millrace:tokens:jobs\\x1dl\\x1d']) name`,
  'new rows': ({ ids }) => `
    insert into jobs.job_keys values ('fresh', gen_random_uuid());
    insert into jobs.job_windows values ('throttle:fresh', now(), now() + interval '1 h', now(), gen_random_uuid()); insert into jobs.job_queues (name) values ('fresh');
    insert into jobs.rate_limits values ('fresh', 'fixed', 1, 1, 1, now()); insert into jobs.job_tasks values ('fresh');
    insert into jobs.releases (id) values ('fresh');
    insert into jobs.workers (id, label, host, pid, concurrency, lease_ms, tasks, environment)
      values ('fresh', 'fresh', 'h', 1, 1, 1, '{}', '{}');
    insert into jobs.crontabs (id, task, schedule, time_zone, payload, options)
      values ('fresh', 't', '0 0 1 1 *', 'UTC', '1', '{}');
    insert into jobs.job_steps (job_id, name, position, fence) values ('${ids.running}', 'fresh', 1, 1);
    insert into jobs.job_progress (job_id, value) values ('${ids.plain}', '1');
    insert into jobs.job_dependencies values ('${ids.parent}', '${ids.waiting}');
    insert into jobs.claims_in_question select locked_by, id, fence from jobs.jobs where locked_by = 'pool-that-lives'
      on conflict do nothing`,
};

/** Statements that take locks or write: what takes no transaction id can wait for no row. */
const writing: Statement<unknown>[] = [];
/** What met something that it waited for. */
const waited: { statement: Statement<unknown>; hold: string }[] = [];

describe('the lock audit', () => {
  it('knows every statement, and by them every function of the schema', async () => {
    expect(Object.keys(CASES).toSorted()).toEqual(STATEMENTS.map(({ name }) => name).toSorted());
    const functions = await test.sql<{ name: string; body: string }>(`
      select p.proname as name, p.prosrc as body from pg_proc p
      where p.pronamespace = 'jobs'::regnamespace and p.proname not like 'audit%' and p.prorettype <> 'trigger'::regtype`);
    const reached = new Set<string>();
    // Users call add_job themselves; it adds as add_jobs and add_keyed_jobs do. Waiting is what hold_tables is for.
    let texts = [
      holdTables.text('jobs'),
      ...STATEMENTS.flatMap(({ text, limitedText }) => [text('jobs'), limitedText?.('jobs') ?? '']),
      'add_job(',
    ];
    while (texts.length) {
      const found = functions.filter(
        ({ name }) => !reached.has(name) && texts.some((text) => text.includes(`${name}(`)),
      );
      for (const { name } of found) reached.add(name);
      texts = found.map(({ body }) => body);
    }
    // The bodies of SQL functions that have been read in are no text of the statement, and those for CHECKs and defaults.
    expect(functions.map(({ name }) => name).filter((name) => !reached.has(name))).toEqual(['storable']);
  });

  it('every statement locks what it is said to lock', async () => {
    const found: Record<string, string> = {};
    for (const statement of STATEMENTS) {
      const end = await run(statement, async () => {
        const { rows } = await session.query('select pg_current_xact_id_if_assigned() as id');
        if (rows[0].id === null) return;
        writing.push(statement);
        found[statement.name] = (await heldTables()).join(' ');
      });
      expect([statement.name, end]).toEqual([statement.name, 'done']);
    }
    const said = Object.entries(CASES).flatMap(([name, { locks }]) => (locks === undefined ? [] : [[name, locks]]));
    expect(found).toEqual(Object.fromEntries(said));
  });

  it('no statement waits for a stranger, except those of adds in a caller’s transaction', async () => {
    const faults: string[] = [];
    for (const [hold, text] of Object.entries(HOLDS)) {
      await stranger.query('begin');
      await stranger.query(text(scene));
      const those = hold === 'advisory locks' ? STATEMENTS : writing;
      for (const statement of those) {
        const end = await run(statement);
        if (end !== 'done') waited.push({ statement, hold });
        const { waits, kit } = CASES[statement.name]!;
        if (end === 'waited too long' && !waits && !kit) faults.push(`${statement.name}, ${hold}`);
      }
      await stranger.query('rollback');
    }
    expect(faults).toEqual([]);
  }, 120_000);

  it('no statement waits for a table that a stranger has locked as a whole, and each has an answer', async () => {
    const gaveUp = new Set<string>();
    const faults: string[] = [];
    for (const table of [...TABLES, 'migrations']) {
      await stranger.query('begin');
      await stranger.query(`lock table jobs.${table} in access exclusive mode`);
      for (const statement of STATEMENTS.filter(({ name }) => !CASES[name]!.settles)) {
        const end = await runAlone(statement);
        if (end === 'gave up') gaveUp.add(statement.name);
        if (end === 'waited too long') faults.push(`${statement.name}, ${table}`);
      }
      await stranger.query('rollback');
    }
    expect(faults).toEqual([]);
    const answered = Object.values(ANSWERS).flat();
    const needsNone = ({ name, patient }: Statement<unknown>): boolean =>
      patient === true || CASES[name]!.within === true || CASES[name]!.settles === true;
    const open = STATEMENTS.filter((statement) => gaveUp.has(statement.name) && !needsNone(statement));
    expect(open.map(({ name }) => name).filter((name) => !answered.includes(name))).toEqual([]);
    const names = new Set(STATEMENTS.filter((statement) => !needsNone(statement)).map(({ name }) => name));
    expect(answered.filter((name, at) => !names.has(name) || answered.indexOf(name) < at)).toEqual([]);
  }, 180_000);

  it('in a caller’s transaction every statement waits for a table as long as that says, unless a pool alone runs it', async () => {
    const gaveUp = new Set<string>();
    for (const table of TABLES) {
      for (const mode of ['access exclusive', 'share']) {
        await stranger.query('begin');
        await stranger.query(`lock table jobs.${table} in ${mode} mode`);
        for (const statement of STATEMENTS.filter(({ limited }) => limited)) {
          if ((await runIn(statement)) === 'gave up') gaveUp.add(statement.name);
        }
        await stranger.query('rollback');
      }
    }
    expect([...gaveUp].toSorted()).toEqual(OF_POOLS.toSorted());
  }, 180_000);

  it('what waits holds nothing that stands later in the order of locks', async () => {
    await liftLimits();
    const faults: string[] = [];
    for (const { statement, hold } of waited.filter(({ hold }) => hold.startsWith('all of '))) {
      const { args, kit } = CASES[statement.name]!;
      if (kit) continue;
      const work = () => session.query(statement.text('jobs'), args(scene));
      faults.push(...(await inversions(statement.name, hold, work)));
    }
    expect(faults).toEqual([]);
  }, 60_000);

  it('calls of several statements keep that order too', async () => {
    const faults: string[] = [];
    for (const [name, call] of Object.entries(CALLS)) {
      for (const table of TABLES) {
        const work = () => call(managerWithin(test.jobs, unlimited()), scene);
        faults.push(...(await inversions(name, `all of ${table}`, work)));
      }
    }
    expect(faults).toEqual([]);
  }, 120_000);
});

/** From here on, functions wait for as long as it takes to look at them. */
async function liftLimits(): Promise<void> {
  const limited = await test.sql<{ name: string }>(`
    select p.oid::regprocedure::text as name from pg_proc p
    where p.pronamespace = 'jobs'::regnamespace and p.proname <> 'audit_held'
      and array_to_string(p.proconfig, ' ') like '%lock_timeout%'`);
  for (const { name } of limited) await test.sql(`alter function ${name} set lock_timeout = 0`);
}

/** The session, as a caller's transaction. */
const unlimited = (): QueryExecutor => ({
  query: async (text: string, values?: unknown[]) => (await session.query(text, values)).rows,
});

/** Whether what holds rows while it waits for others holds any that stand later. The work is undone. */
async function inversions(name: string, hold: string, work: () => Promise<unknown>): Promise<string[]> {
  const wanted = hold.replace('all of ', '');
  await stranger.query('begin');
  await stranger.query(HOLDS[hold]!(scene));
  await session.query('begin');
  let ended = false;
  const working = work()
    .catch(() => undefined)
    .finally(() => (ended = true));
  const isBlocked = async (): Promise<boolean> =>
    (await test.sql(`select from pg_stat_activity where pid = $1 and wait_event_type = 'Lock'`, [pid])).length > 0;
  const blocked = await eventually(async () => (ended ? 'ended' : (await isBlocked()) && 'blocked'));
  const held = blocked === 'blocked' ? await heldTables() : [];
  if (blocked === 'blocked') await test.sql('select pg_cancel_backend($1)', [pid]);
  await working;
  await session.query('rollback');
  await stranger.query('rollback');
  const late = held.filter((table) => table !== wanted && rankOf(table) > rankOf(wanted));
  return late.map((table) => `${name} waits for ${wanted} and holds ${table}`);
}
