// What SQL in a transactional handler can do to its transaction and to its connection.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { DataSource } from 'typeorm';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  type CollectingJobEvents,
  type JobContext,
  type JobManager,
  type WorkerPool,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let dataSource: DataSource;
let jobs: JobManager;
let events: CollectingJobEvents;
let pool: WorkerPool | null = null;

/** The application sets up each of its connections. */
const SET_UP = `set statement_timeout = '30s'; set datestyle = 'German, DMY'; set role pg_read_all_data; set role none`;

beforeEach(async () => {
  test = await createTestManager();
  dataSource = await new DataSource({ type: 'postgres', url: test.url, poolSize: 3 }).initialize();
  master().on('connect', (client) => void client.query(SET_UP));
  // TypeORM has opened one already.
  await master().query(SET_UP);
  jobs = await createJobManager({ dataSource, retry: { baseDelayMs: 1, jitter: 0 } });
  events = createCollectingEvents();
  await test.sql('create table effects (what text)');
});
afterEach(async () => {
  await pool?.forceStop();
  pool = null;
  await jobs.close();
  await dataSource.destroy();
  await test.close();
});

const master = () => (dataSource.driver as unknown as { master: import('pg').Pool }).master;

type Handler = (payload: any, ctx: JobContext) => unknown;

async function start(handler: Handler): Promise<void> {
  const tasks = { t: { handler, transactional: true } };
  pool = createWorkerPool({ jobs, tasks, events, options: { concurrency: 1, pollIntervalMs: 50 } });
  await pool.start();
}

async function run(payload: unknown = 1, maxAttempts = 1) {
  const { id } = await test.jobs.addJob('t', payload, { maxAttempts });
  const { status, error } = await test.jobs.waitForJob(id, { timeoutMs: 15_000 });
  return { id, status, error };
}

const write = (ctx: JobContext, what: string) => ctx.manager.query('insert into effects values ($1)', [what]);
const effects = async () =>
  (await test.sql('select what from effects order by what')).map(({ what }) => what as string);
const statements = (ctx: JobContext, list: string[]) =>
  list.reduce((before, sql) => before.then(() => ctx.manager.query(sql)), Promise.resolve());

describe('a handler that ends its transaction', () => {
  const ways: [string, string[], string[]][] = [
    ['COMMIT', ['commit'], ['1']],
    ['COMMIT and BEGIN', ['commit', 'begin'], ['1']],
    ['COMMIT and BEGIN at once', ['commit; begin'], ['1']],
    ['COMMIT AND CHAIN', ['commit and chain'], ['1']],
    ['ROLLBACK', ['rollback'], []],
    ['ROLLBACK and BEGIN', ['rollback', 'begin'], []],
    ['ROLLBACK AND CHAIN behind a savepoint', ['savepoint a', 'rollback to savepoint a', 'rollback and chain'], []],
    ['ROLLBACK, BEGIN and more at once', ['rollback; begin; select 1'], []],
  ];
  for (const [what, sql, left] of ways) {
    it(`by ${what} fails, and its connection is not used again`, async () => {
      const pids: number[] = [];
      await start(async (_, ctx) => {
        pids.push((await ctx.manager.query('select pg_backend_pid() as pid'))[0].pid);
        if (pids.length > 1) return;
        await write(ctx, '1');
        await statements(ctx, sql);
      });
      expect(await run()).toMatchObject({ status: 'exhausted', error: expect.stringContaining('has ended it') });
      expect(await run()).toMatchObject({ status: 'completed' });
      expect(new Set(pids).size).toBe(2);
      expect(await effects()).toEqual(left);
    });
  }

  for (const method of ['commitTransaction', 'rollbackTransaction'] as const) {
    it(`by its query runner (${method}) is refused before anything is ended`, async () => {
      const refusals: unknown[] = [];
      await start(async (_, ctx) => {
        await write(ctx, '1');
        await ctx.manager.queryRunner![method]().catch((error: Error) => refusals.push(error.name));
        await write(ctx, '2');
      });
      expect(await run()).toMatchObject({ status: 'completed' });
      expect([refusals, await effects()]).toEqual([['TransactionOverError'], ['1', '2']]);
    });
  }

  it('may use savepoints as it likes', async () => {
    await start(async (_, ctx) => {
      await statements(ctx, [
        'savepoint a',
        `insert into effects values ('no')`,
        'rollback to savepoint a',
        'release a',
      ]);
      await ctx.manager.transaction((inner) => inner.query(`insert into effects values ('yes')`));
    });
    expect(await run()).toMatchObject({ status: 'completed' });
    expect(await effects()).toEqual(['yes']);
  });

  it('may not leave a nested transaction open', async () => {
    await start((_, ctx) => ctx.manager.queryRunner!.startTransaction());
    expect(await run()).toMatchObject({ status: 'exhausted', error: expect.stringContaining('nested transaction') });
  });

  it('may choose its isolation level first', async () => {
    await start((_, ctx) => ctx.manager.query('set transaction isolation level serializable'));
    expect(await run()).toMatchObject({ status: 'completed' });
  });

  it('says which statement has failed, where the handler caught it', async () => {
    await start(async (_, ctx) => {
      await write(ctx, '1');
      await ctx.manager.query('select * from nope').catch(() => undefined);
      await write(ctx, '2').catch(() => undefined);
    });
    const { status, error } = await run();
    expect(status).toBe('exhausted');
    expect(error).toMatch(/an earlier error has aborted: relation "nope" does not exist/);
  });
});

describe('the connection of a transactional task', () => {
  it('cannot be released by the handler', async () => {
    await start(async (bad: boolean, ctx) => {
      await write(ctx, '1');
      if (bad) await ctx.manager.queryRunner!.release();
    });
    expect(await run(true)).toMatchObject({ status: 'exhausted', error: expect.stringContaining('has released it') });
    expect(await run(false)).toMatchObject({ status: 'completed' });
    // A commit is seen by others before its session is seen to be idle.
    const open = `select from pg_stat_activity where datname = current_database() and state ~ 'idle in'`;
    await eventually(async () => !(await test.sql(open)).length);
  });

  const traces = [
    `set search_path = pg_catalog`,
    `set statement_timeout = '77s'`,
    `select set_config('app.tenant', 'acme', false)`,
    `set datestyle = 'ISO, MDY'`,
    `set timezone = 'Asia/Tokyo'`,
    `set role pg_read_all_data`,
    `select pg_advisory_lock(42)`,
    `listen leak`,
    `create temp table leaky (id int)`,
    `declare leaky cursor with hold for select 1`,
    `set role none`,
  ];
  const LOOK = `select pg_backend_pid() as pid, current_user::text as role, current_setting('search_path') as path,
    current_setting('statement_timeout') as timeout, current_setting('timezone') as zone,
    current_setting('app.tenant', true) as tenant, current_setting('datestyle') as style,
    (select count(*)::int from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) as locks,
    to_regclass('pg_temp.leaky')::text as temp, (select count(*)::int from pg_listening_channels()) as channels,
    (select count(*)::int from pg_cursors) as cursors`;

  for (const [ending, end] of [
    ['a commit', () => undefined],
    ['a rollback', () => Promise.reject(new Error('roll back'))],
  ] as const) {
    it(`comes back as the application has set it up after ${ending}`, async () => {
      let pid = 0;
      await start(async (_, ctx) => {
        pid = (await ctx.manager.query(LOOK))[0].pid;
        await statements(ctx, traces);
        return end();
      });
      await run();
      await pool!.stop();
      // The application's own queries run on it: one on each of its connections.
      const seen = (await Promise.all([1, 2, 3].map(() => dataSource.query(LOOK)))).flat();
      expect(seen.find((row) => row.pid === pid)).toEqual({
        pid,
        role: 'postgres',
        path: '"$user", public',
        timeout: '30s',
        zone: expect.not.stringContaining('Tokyo'),
        tenant: '',
        style: 'German, DMY',
        locks: 0,
        temp: null,
        channels: 0,
        cursors: 0,
      });
    });
  }

  for (const sql of ['deallocate all', 'prepare mine as select 1', 'deallocate all; prepare mine as select 1']) {
    it(`is not used again after "${sql}": the driver knows nothing of it`, async () => {
      let pid = 0;
      await start(async (bad: boolean, ctx) => {
        await ctx.jobs.counts();
        if (!bad) return;
        pid = (await ctx.manager.query('select pg_backend_pid() as pid'))[0].pid;
        await ctx.manager.query(sql);
      });
      for (const bad of [false, true, false, false]) expect(await run(bad)).toMatchObject({ status: 'completed' });
      expect(pid).toBeGreaterThan(0);
      expect(await test.sql('select from pg_stat_activity where pid = $1', [pid])).toEqual([]);
    });
  }

  for (const sql of [
    `set local statement_timeout = '1ms'`,
    `set local lock_timeout = '1ms'`,
    'set local role stranger',
  ]) {
    it(`settles under its own settings, whatever the handler has set (${sql})`, async () => {
      await test.sql(`do $$ begin create role stranger; exception when duplicate_object then null; end $$`);
      await test.sql(
        'create function role_at_commit() returns trigger language plpgsql as $$ begin ' +
          `insert into effects values (current_setting('role')); return null; end $$`,
      );
      await test.sql('create table watched (n int)');
      await test.sql('grant all on effects, watched to stranger');
      await test.sql(`create constraint trigger late after insert on watched deferrable initially deferred
        for each row execute function role_at_commit()`);
      await start(async (_, ctx) => {
        await ctx.manager.query('insert into watched values (1)');
        await ctx.manager.query(sql);
      });
      expect(await run()).toMatchObject({ status: 'completed' });
      // What runs at commit still sees what the handler has set.
      expect(await effects()).toEqual([sql.includes('role') ? 'stranger' : 'none']);
    });
  }

  it('keeps no lock_timeout of the library’s in the handler’s transaction', async () => {
    let timeout: unknown;
    await start(async (_, ctx) => {
      const [claimed] = await ctx.jobs.getJobs('worker-by-hand', { taskIdentifiers: ['other'] });
      await ctx.jobs.completeJobs('worker-by-hand', [claimed!], 1);
      timeout = (await ctx.manager.query('show lock_timeout'))[0].lock_timeout;
    });
    await test.jobs.addJob('other', 1);
    expect(await run()).toMatchObject({ status: 'completed' });
    expect(timeout).toBe('0');
  });

  it('writes nothing for a handler that goes on after its end', async () => {
    const outcomes: unknown[] = [];
    await start((_, ctx) => {
      const { manager } = ctx;
      const goOn = async (): Promise<void> => {
        for (let n = 0; n < 100; n++) {
          await new Promise((resolve) => setImmediate(resolve));
          await manager.query(`insert into effects values ('late')`);
        }
      };
      void goOn().catch((error: Error) => outcomes.push(error.name));
    });
    await run();
    await eventually(() => outcomes.length === 1);
    const before = await effects();
    expect(await test.sql(`select count(distinct xmin::text)::int as transactions from effects`)).toEqual([
      { transactions: before.length ? 1 : 0 },
    ]);
  });

  it('that rolls back instead of committing fails the attempt, although COMMIT raises no error', async () => {
    await start(async (_, ctx) => {
      await write(ctx, String(ctx.attempt));
      if (ctx.attempt > 1) return;
      const runner = ctx.manager.queryRunner!;
      const commit = runner.commitTransaction.bind(runner);
      const client = (await runner.connect()) as import('pg').PoolClient;
      runner.commitTransaction = async () => {
        await client.query('select 1 / 0').catch(() => undefined);
        return commit();
      };
    });
    const { id, status } = await run(1, 2);
    expect(status).toBe('completed');
    expect(await effects()).toEqual(['2']);
    expect((await jobs.jobHistory(id)).map(({ errorMessage }) => errorMessage)).toEqual([
      expect.stringContaining('division by zero'),
      null,
    ]);
  });
});
