// From every earlier version of the schema to the present one, while processes of the earlier release go on.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import {
  createJobManager,
  createWorkerPool,
  DatabaseUnavailableError,
  JobsMigrator,
  type JobManager,
} from '../../lib/index.js';
import { newJobId } from '../../lib/manager/job.id.js';
import { SCHEMA_VERSION } from '../../lib/storage/jobs.migrator.js';
import { createTestDatabase, eventually, type TestDatabase } from '../support/database.js';
import { EarlierRelease } from './releases/earlier.release.js';

const migrations = new URL('../../lib/storage/migrations/', import.meta.url);
const scripts = readdirSync(migrations)
  .filter((name) => name.endsWith('.up.sql'))
  .toSorted();
const earlier = scripts.slice(0, -1).map((name) => Number(name.slice(0, 4)));
const DEAD = 'worker-of-long-ago';

let database: TestDatabase;
let migrator: JobsMigrator;
const closing: (() => Promise<unknown>)[] = [];

beforeEach(async () => {
  database = await createTestDatabase();
  migrator = new JobsMigrator({ connection: database.url });
});
afterEach(async () => {
  for (const close of closing.splice(0).toReversed()) await close();
  await migrator.close();
  await database.drop();
});

const sql = async <Row = Record<string, unknown>>(text: string, values?: unknown[]): Promise<Row[]> =>
  (await database.pool.query(text, values)).rows as Row[];

/** The schema as the release of that version has left it; 0: only the table of migrations. */
async function schemaAt(version: number): Promise<void> {
  await sql(`create schema jobs; create table jobs.migrations (version integer primary key, name text not null,
    applied_at timestamptz not null default now())`);
  const client = await database.pool.connect();
  await client.query('set search_path to jobs');
  for (const name of scripts.slice(0, version)) {
    await client.query(readFileSync(new URL(name, migrations), 'utf8'));
    await client.query('insert into migrations (version, name) values ($1, $2)', [Number(name.slice(0, 4)), name]);
  }
  await client.query('reset search_path');
  client.release();
}

/** Everything the schema consists of, as text. */
const catalog = async (): Promise<unknown> =>
  (
    await sql<{ catalog: unknown }>(`select json_build_object(
      'columns', (select json_agg(concat_ws(' ', c.relname, c.relkind, c.reloptions::text, a.attname,
          format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)) order by c.relname, a.attname)
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
        where c.relnamespace = 'jobs'::regnamespace and c.relkind <> 'i'),
      'indexes', (select json_agg(indexdef order by indexname) from pg_indexes where schemaname = 'jobs'),
      'constraints', (select json_agg(concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid))
        order by conrelid::regclass::text, conname) from pg_constraint where connamespace = 'jobs'::regnamespace
        and contype <> 'n'),
      'functions', (select json_agg(pg_get_functiondef(oid) order by oid::regprocedure::text)
        from pg_proc where pronamespace = 'jobs'::regnamespace),
      'versions', (select json_agg(version order by version) from jobs.migrations)) as catalog`)
  )[0]!.catalog;

interface Fixture {
  /** Where the job must stand in the end. */
  expected: string;
  /** Of the body's row and of the live row; no live row: the job has ended. */
  body?: Record<string, unknown>;
  live?: Record<string, unknown> | null;
  /** Outcome of its last attempt. */
  history?: string;
  id: string;
}

const PAST = '2026-01-01T00:00:00Z';
const FUTURE = '2100-01-01T00:00:00Z';
const held = { locked_by: DEAD, locked_at: PAST, attempts: 1, fence: 1, revision: 1 };

/** A job in every state that a version knew. */
function jobsInEveryState(version: number): Record<string, Fixture> {
  const make = (expected: string, rest: Omit<Fixture, 'expected' | 'id'> = {}): Fixture => ({
    expected,
    id: newJobId(),
    ...rest,
  });
  const successor = make('completed', { body: { job_key: 'k' }, live: { job_key: 'k', parked: 'key' } });
  const parent = make('completed', { live: held });
  const states: Record<string, Fixture> = {
    available: make('completed'),
    scheduled: make('scheduled', { live: { run_at: FUTURE } }),
    retrying: make('completed', { live: { attempts: 2, fence: 2, last_error: 'not yet' }, history: 'failed' }),
    snoozed: make('snoozed', { live: { run_at: FUTURE, snoozed: true, attempts: 1, fence: 1 }, history: 'snoozed' }),
    'on its last attempt': make('completed', { live: { attempts: 24, fence: 24, slot_only: true } }),
    'partly done': make('completed', {
      live: { attempts: 1, fence: 1, previous: { completedSteps: ['a'], failedSteps: [], results: {} } },
      history: 'partial_success',
    }),
    exhausted: make('exhausted', { live: { parked: 'exhausted', attempts: 25, fence: 25 }, history: 'failed' }),
    'held by a dead worker': make('completed', { live: held }),
    'held by hand, overdue': make('completed', {
      live: { ...held, locked_by: 'somebody-by-hand', lease_ms: 1_000, lease_expires_at: PAST },
    }),
    'to be cancelled': make('cancelled', { live: { ...held, cancel_requested: true } }),
    'without its key': make('cancelled', { live: { ...held, superseded_by: successor.id } }),
    'behind a key': successor,
    'first in a queue': make('completed', {
      body: { queue: 'q' },
      live: { ...held, queue: 'q', slot_only: true },
    }),
    'waiting for its queue': make('completed', {
      body: { queue: 'q' },
      live: { queue: 'q', slot_only: true, parked: 'queue' },
    }),
    'waiting for a token': make('completed', {
      body: { rate_limit_key: 'r' },
      live: { rate_limit_key: 'r', slot_only: true, parked: 'tokens' },
    }),
    completed: make('completed', { live: null, history: 'completed' }),
    cancelled: make('cancelled', { live: null, history: 'cancelled' }),
  };
  if (version >= 2) {
    const child = { depends_on: [parent.id], on_parent_failure: 'cancel' };
    states.parent = parent;
    states.child = make('completed', { body: child, live: { parked: 'parents', unmet: 1 } });
  }
  return states;
}

async function insert(table: string, row: Record<string, unknown>): Promise<void> {
  const columns = Object.keys(row).join(', ');
  const text = `insert into jobs.${table} (${columns}) select ${columns} from json_populate_record(null::jobs.${table}, $1)`;
  await sql(text, [JSON.stringify(row)]);
}

async function fill(version: number): Promise<Record<string, Fixture>> {
  const fixtures = jobsInEveryState(version);
  const worker = { id: DEAD, host: 'h', pid: 1, concurrency: 4, lease_ms: 30_000, tasks: ['task'], environment: {} };
  await insert('workers', { ...worker, started_at: PAST, heartbeat_at: PAST });
  await insert('job_queues', { name: 'q', running: 1, locked_by: DEAD, parked_at: PAST });
  const window = { capacity: 1, interval_ms: 100, available: 0, window_started_at: PAST, parked_at: PAST };
  await insert('rate_limits', { key: 'r', ...window });
  for (const { id, body, live, history } of Object.values(fixtures)) {
    const common = { id, run_at: PAST, priority: 0, max_attempts: 25, task: 'task' };
    await insert('job_bodies', { ...common, payload: { by: 'a fixture' }, ...body });
    if (live !== null) await insert('jobs', { ...common, ...live });
    const attempt = { job_id: id, fence: 1, attempt: 1, expires_at: FUTURE, started_at: PAST, queue_time_ms: 1 };
    if (history) await insert('job_history', { ...attempt, execution_time_ms: 1, status: history, worker_id: DEAD });
  }
  if (version >= 2) {
    const [parent, child, partly] = [fixtures.parent!.id, fixtures.child!.id, fixtures['partly done']!.id];
    await insert('job_dependencies', { parent_id: parent, child_id: child });
    await insert('job_steps', { job_id: partly, name: 'a', position: 1, fence: 1, result: 'kept' });
    await insert('job_progress', { job_id: partly, value: 0.5 });
    const cron = { task: 'task', schedule: '0 0 1 1 *', time_zone: 'UTC', payload: {}, options: {}, known_since: PAST };
    await insert('crontabs', { id: 'yearly', ...cron, overlap: 'skip', last_slot_at: '2026-01-01T00:00:00Z' });
  }
  return fixtures;
}

/** This release: a pool that works, and a manager to look with. */
async function startCurrent(): Promise<JobManager> {
  const jobs = await createJobManager({ connection: database.url, retry: { baseDelayMs: 1, jitter: 0 } });
  closing.push(() => jobs.close());
  const effect = (id: string, worker: string): Promise<unknown> =>
    sql('insert into effects values ($1, $2)', [id, worker]);
  const pool = createWorkerPool({
    jobs,
    tasks: { task: async (_, ctx) => void (await effect(ctx.job.id, ctx.workerId)) },
    options: { keepaliveMs: 250, pollIntervalMs: 50 },
  });
  closing.push(() => pool.stop());
  await pool.start();
  return jobs;
}

async function startEarlier(version: number, workerId: string): Promise<EarlierRelease> {
  const release = new EarlierRelease(database.url, version, workerId);
  closing.push(() => release.close());
  await release.register();
  return release;
}

const completedBy = async (workerId: string): Promise<number> =>
  (await sql('select from effects where worker = $1', [workerId])).length;

const prepareEffects = (): Promise<unknown> => sql('create table effects (id uuid not null, worker text not null)');

/** Holds up whoever has run a migration and is about to note that it did, as a slow one would, until `release`. */
async function holdUpMigrations(): Promise<{
  waiting: () => Promise<number | undefined>;
  release: () => Promise<void>;
}> {
  const client = await database.pool.connect();
  await client.query(`select pg_advisory_lock(42)`);
  await client.query(`create function hold_up() returns trigger language plpgsql as $$
    begin perform pg_advisory_xact_lock(42); return new; end $$`);
  await client.query('create trigger hold_up before insert on jobs.migrations for each row execute function hold_up()');
  let held = true;
  const release = async (): Promise<void> => {
    if (!held) return;
    held = false;
    await client.query('select pg_advisory_unlock(42)');
    await client.query('drop trigger hold_up on jobs.migrations; drop function hold_up()');
    client.release();
  };
  closing.push(release);
  const waiting = async (): Promise<number | undefined> =>
    (
      await sql<{ pid: number }>(`select pid from pg_stat_activity
        where datname = current_database() and wait_event = 'advisory' and query like 'insert into %migrations%'`)
    )[0]?.pid;
  return { waiting, release };
}

describe('upgrading (migrate)', () => {
  it.each(earlier)(
    'from version %i loses no job and runs none twice, while both releases enqueue and work',
    async (version) => {
      await schemaAt(version);
      await prepareEffects();
      const fixtures = await fill(version);
      const before = [
        await startEarlier(version, 'earlier-release-a'),
        await startEarlier(version, 'earlier-release-b'),
      ];
      for (const release of before) release.start();
      await eventually(async () => (await completedBy('earlier-release-a')) > 10);

      await Promise.all([migrator.migrate(), migrator.migrate(), migrator.migrate()]);
      expect(await migrator.version()).toBe(SCHEMA_VERSION);
      const jobs = await startCurrent();
      const [known, done] = [before[0]!.added.length, await completedBy('earlier-release-a')];
      const added = await jobs.addJobs(Array.from({ length: 20 }, (_, n) => ({ task: 'task', payload: n })));
      await eventually(
        async () => before[0]!.added.length > known + 10 && (await completedBy('earlier-release-a')) > done,
      );
      for (const release of before) await release.stop();
      expect(before.flatMap(({ failures }) => failures)).toEqual([]);

      const expected = new Map(Object.entries(fixtures).map(([state, fixture]) => [state, fixture.expected]));
      await eventually(async () => {
        await jobs.resetLockedJobs();
        const found = Object.entries(fixtures).map(
          async ([state, { id }]) => [state, (await jobs.findJob(id))?.status] as const,
        );
        expect(new Map(await Promise.all(found))).toEqual(expected);
        expect((await jobs.counts()).byStatus).toMatchObject({ available: 0, running: 0, blocked: 0 });
        return true;
      });

      const mustRun = Object.values(fixtures).filter(({ expected, live }) => expected === 'completed' && live !== null);
      const all = [...before.flatMap((release) => release.added), ...[...added, ...mustRun].map(({ id }) => id)];
      const effects = await sql<{ id: string }>('select id from effects');
      expect(effects.map(({ id }) => id).toSorted()).toEqual(all.toSorted());
      const records = await sql<{ id: string }>(`select job_id as id from jobs.job_history where status = 'completed'`);
      expect(records.map(({ id }) => id).toSorted()).toEqual([...all, fixtures.completed!.id].toSorted());
      if (version < 2) return;
      expect((await jobs.listCrons()).map(({ id }) => id)).toEqual(['yearly']);
      expect(await sql('select name, result from jobs.job_steps')).toEqual([{ name: 'a', result: 'kept' }]);
    },
    60_000,
  );

  it.each(earlier)('from version %i ends at the schema of a fresh installation', async (version) => {
    await schemaAt(version);
    await migrator.migrate();
    const upgraded = await catalog();
    await migrator.rollback();
    await migrator.migrate();
    expect(upgraded).toEqual(await catalog());
  });

  it('is done once where ten processes start it at once', async () => {
    await schemaAt(1);
    const program = fileURLToPath(new URL('../../dist/cli.js', import.meta.url));
    const env = { ...process.env, DATABASE_URL: database.url };
    const children = Array.from({ length: 10 }, () =>
      spawn(process.execPath, [program, 'migrate'], { env, stdio: 'inherit' }),
    );
    const codes = await Promise.all(children.map((child) => once(child, 'exit')));
    expect(codes.map(([code]) => code as number)).toEqual(Array(10).fill(0));
    const applied = await sql<{ version: number }>('select version from jobs.migrations order by version');
    expect(applied.map(({ version }) => version)).toEqual([...earlier, SCHEMA_VERSION]);
  }, 60_000);

  it.each([0, ...earlier])('from version %i that is cut off midway leaves nothing half-done', async (version) => {
    await schemaAt(version);
    const before = await catalog();
    const { waiting, release } = await holdUpMigrations();
    const cut = migrator.migrate().catch((error: unknown) => error);
    const pid = await eventually(waiting);
    await sql('select pg_terminate_backend($1)', [pid]);
    expect(await cut).toBeInstanceOf(DatabaseUnavailableError);
    await release();
    const { columns: _, ...rest } = (await catalog()) as Record<string, unknown>;
    const { columns: __, ...expected } = before as Record<string, unknown>;
    expect(rest).toEqual(expected);
    await migrator.migrate();
    expect(await migrator.version()).toBe(SCHEMA_VERSION);
  });

  it('lets others pass while a transaction that stays open keeps it from its tables', async () => {
    await schemaAt(1);
    await prepareEffects();
    const earlierRelease = await startEarlier(1, 'earlier-release-a');
    await earlierRelease.addOne();
    const blocker = await database.pool.connect();
    await blocker.query('begin; select from jobs.jobs for update');
    const migrated = migrator.migrate();
    await eventually(async () => {
      const waits = await sql(`select from pg_stat_activity where datname = current_database()
        and wait_event_type = 'Lock' and query like '%jobs%' and application_name = 'millrace'`);
      return waits.length === 1;
    });
    await earlierRelease.addOne();
    await blocker.query('commit');
    blocker.release();
    await migrated;
    expect(await migrator.version()).toBe(SCHEMA_VERSION);
  });
});
