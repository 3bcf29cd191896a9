// Databases, roles and sessions whose transactions are not read committed by default, and callers' transactions that are
// not: the library decides on fresh snapshots, or says by a typed error that the transaction is to be repeated.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { DataSource } from 'typeorm';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  type JobContext,
  type JobManager,
  TransactionConflictError,
  type WorkerPool,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, OTHER, type TestManager, WORKER } from '../support/manager.js';
import { createSetDatabase, type SetDatabase, LEVELS } from '../support/settings.js';

const ISOLATION = ['repeatable read', 'serializable'];
const QUICK = { retry: { baseDelayMs: 1, jitter: 0 }, queues: { serial: { concurrency: 1 } } };

/** Writes down under which isolation level each table is written to. */
const RECORD_LEVELS = `
  create table levels (place text not null, level text not null, unique (place, level));
  grant all on levels to public;
  create function record_level() returns trigger language plpgsql as $$ begin
    insert into public.levels values (tg_table_name, current_setting('transaction_isolation')) on conflict do nothing;
    return null;
  end $$;
  do $$ declare place text; begin
    for place in select oid::regclass::text from pg_class
      where relnamespace = 'jobs'::regnamespace and relkind in ('r', 'p') and not relispartition
    loop
      execute format('create trigger record_level after insert or update or delete on %s
        for each statement execute function public.record_level()', place);
    end loop;
  end $$`;

describe.each(LEVELS)('a default isolation level of the %s', (level) => {
  let database: SetDatabase;
  const closing: (() => Promise<unknown>)[] = [];

  const open = async (isolation: string): Promise<void> => {
    database = await createSetDatabase(level, { default_transaction_isolation: isolation });
    closing.push(() => database.drop());
  };
  const connect = async (shared: boolean): Promise<JobManager> => {
    const dataSource = shared ? await new DataSource({ type: 'postgres', url: database.url }).initialize() : null;
    if (dataSource) closing.push(() => dataSource.destroy());
    const jobs = await createJobManager({ ...QUICK, ...(dataSource ? { dataSource } : { connection: database.url }) });
    closing.push(() => jobs.close());
    return jobs;
  };
  const start = async (jobs: JobManager): Promise<WorkerPool> => {
    const tasks = {
      echo: async (payload: unknown, ctx: JobContext) => {
        await ctx.progress({ done: 1 });
        await ctx.log('said');
        return ctx.step('step', () => payload);
      },
      flaky: (_: unknown, ctx: JobContext) => {
        if (ctx.attempt === 1) throw new Error('no');
      },
      tick: () => undefined,
    };
    const options = { pollIntervalMs: 50, keepaliveMs: 100 };
    const pool = createWorkerPool({ jobs, tasks, options, events: createCollectingEvents() });
    closing.push(() => pool.stop(0));
    await pool.start();
    return pool;
  };

  afterEach(async () => {
    for (const close of closing.splice(0).toReversed()) await close();
  });

  /** Adds of every kind, runs, settles, retries, crons, heartbeats, operators' calls and maintenance. */
  async function work(jobs: JobManager): Promise<void> {
    await jobs.registerRateLimit('limit', 100, '1 second');
    await jobs.scheduleCron({ id: 'each second', task: 'tick', schedule: '* * * * * *' });
    const first = await jobs.addJob('echo', 1);
    const added = await jobs.addJobs([
      { task: 'echo', payload: 2, queue: 'serial' },
      { task: 'echo', payload: 3, rateLimitKey: 'limit' },
      { task: 'echo', payload: 4, jobKey: 'key' },
      { task: 'echo', payload: 5, jobKey: 'key' },
      { task: 'flaky', payload: 6 },
      { task: 'echo', payload: 7, dependsOn: [first.id] },
    ]);
    await Promise.all([0, 1, 3, 4, 5].map((n) => jobs.waitForJob(added[n]!.id, { timeoutMs: 15_000 })));
    const { id } = await jobs.addJob('echo', 8, { delayMs: 60_000 });
    await jobs.cancelJobs([id]);
    await jobs.retryJobs([id]);
    await jobs.rescheduleJobs([id], { runAt: new Date() });
    await jobs.waitForJob(id, { timeoutMs: 15_000 });
    const [byHand] = await jobs.addJobs([{ task: 'by hand', payload: 9 }]);
    const claimed = await jobs.getJobs(WORKER, { taskIdentifiers: ['by hand'] });
    await jobs.completeJobs(WORKER, claimed, 1);
    expect((await jobs.findJob(byHand!.id))?.status).toBe('completed');
    await jobs.gcJobHistory();
    await jobs.gcJobQueues();
    await jobs.gcTaskIdentifiers();
    await jobs.resetLockedJobs();
    await jobs.refillRateLimits();
    const ticks = `select from jobs.job_history h join jobs.job_bodies b on b.id = h.job_id where b.task = 'tick'`;
    await eventually(async () => (await database.sql(ticks)).length > 0);
  }

  it.each([
    ['repeatable read', 'its own pool'],
    ['serializable', 'a shared DataSource'],
  ])('(%s) is that of no statement of the library, on %s', async (isolation, place) => {
    await open(isolation);
    const jobs = await connect(place === 'a shared DataSource');
    await database.sql(RECORD_LEVELS);
    const pool = await start(jobs);
    await work(jobs);
    const [worker] = await jobs.workers();
    await eventually(async () => (await jobs.workers())[0]!.heartbeatAt > worker!.heartbeatAt);
    await pool.stop();
    const levels = await database.sql(`select level, array_agg(place order by place) as places from levels group by 1`);
    expect(levels).toEqual([{ level: 'read committed', places: expect.arrayContaining(['jobs', 'job_places']) }]);
  });

  it.each(['serializable'])('(%s) lets many processes migrate, add and claim at once', async (isolation) => {
    await open(isolation);
    const managers = await Promise.all([1, 2, 3, 4].map(() => connect(false)));
    await Promise.all(managers.flatMap((jobs, n) => [1, 2].map((m) => jobs.addJob('x', [n, m], { queue: 'serial' }))));
    const claim = async (jobs: JobManager) => (await jobs.getJobs(WORKER)).length;
    let most = 0;
    for (let left = 8; left > 0;) {
      const claimed = await Promise.all(managers.map(claim));
      const held = await database.sql(`select id from jobs.jobs where locked_by is not null`);
      most = Math.max(most, held.length);
      left -= claimed.reduce((sum, n) => sum + n, 0);
      await managers[0]!.forceUnlockJobs([WORKER]);
      await database.sql(`delete from jobs.jobs where id = any($1::uuid[])`, [held.map(({ id }) => id)]);
    }
    expect(most).toBe(1);
  });
});

describe('where the default is read committed', () => {
  it('each connection is asked once, and each statement is sent alone', async () => {
    const test = await createTestManager();
    const dataSource = await new DataSource({ type: 'postgres', url: test.url, poolSize: 1 }).initialize();
    const sent: string[] = [];
    const master = (dataSource.driver as unknown as { master: pg.Pool }).master;
    const client = await master.connect();
    const query = client.query.bind(client) as (...args: unknown[]) => unknown;
    client.query = ((...args: [{ text: string } | string]) => {
      sent.push(typeof args[0] === 'string' ? args[0] : args[0].text);
      return query(...args);
    }) as never;
    client.release();
    const jobs = await createJobManager({ dataSource, migrate: false });
    // The start looks at the schema in transactions.
    sent.length = 0;
    await jobs.addJob('x', 1, { notify: false });
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER), 1);
    await jobs.addJob('x', 2, { notify: false });
    expect(sent.filter((text) => /isolation|^begin|^commit/.test(text))).toEqual([
      expect.stringContaining(`current_setting('default_transaction_isolation')`),
    ]);
    await jobs.close();
    await dataSource.destroy();
    await test.close();
  });
});

describe.each(ISOLATION)('a caller’s transaction at %s', (isolation) => {
  let test: TestManager;
  let client: pg.Client;
  const handlers = new Set<WorkerPool>();

  beforeEach(async () => {
    test = await createTestManager(QUICK);
    client = new pg.Client(test.url);
    await client.connect();
  });
  afterEach(async () => {
    await client.end();
    for (const pool of handlers) await pool.stop(0);
    handlers.clear();
    await test.close();
  });

  /** Begins, and takes the snapshot that the transaction keeps. */
  const begin = async (): Promise<void> => {
    await client.query(`begin isolation level ${isolation}`);
    await client.query('select from jobs.jobs limit 1');
  };
  const refusal = (work: Promise<unknown>): Promise<unknown> => work.catch((error: unknown) => error);
  const conflict = expect.objectContaining({ code: 'ERR_JOBS_TRANSACTION_CONFLICT', sqlState: '40001' });

  it('adds jobs', async () => {
    await begin();
    const [parent] = await test.jobs.addJobs([{ task: 'x', payload: 1 }], { manager: client });
    await test.jobs.addJob('x', 2, { manager: client, jobKey: 'key' });
    await test.jobs.addJob('x', 3, { manager: client, dependsOn: [parent!.id], queue: 'serial' });
    await client.query('commit');
    expect((await test.jobs.counts()).byStatus).toMatchObject({ available: 2, blocked: 1 });
  });

  it('is to be repeated where another has taken the key, run the holder, or replaced it since', async () => {
    for (const [key, meanwhile] of [
      ['new', () => test.jobs.addJob('x', 'theirs', { jobKey: 'new' })],
      ['replaced', () => test.jobs.addJob('x', 'theirs', { jobKey: 'replaced' })],
      ['running', () => test.jobs.getJobs(WORKER, { taskIdentifiers: ['running'] })],
    ] as const) {
      if (key !== 'new') await test.jobs.addJob(key, 'first', { jobKey: key });
      await begin();
      await meanwhile();
      const error = await refusal(test.jobs.addJob('x', 'ours', { jobKey: key, manager: client }));
      expect([key, error]).toEqual([key, conflict]);
      expect(error).toBeInstanceOf(TransactionConflictError);
      await client.query('rollback');
      await begin();
      const { id } = await test.jobs.addJob('x', 'ours', { jobKey: key, manager: client });
      await client.query('commit');
      expect(await test.jobs.findJob(id)).toMatchObject({ payload: 'ours', jobKey: key });
    }
  });

  it('is to be repeated where the claim that it asserts was ended since', async () => {
    const { id } = await test.jobs.addJob('x', 1);
    const [job] = await test.jobs.getJobs(WORKER);
    await begin();
    await test.jobs.forceUnlockJobs([WORKER]);
    const claim = { job: job!, workerId: WORKER };
    expect(await refusal(test.jobs.engine.attempts.assertOwned(claim as never, client))).toEqual(conflict);
    await client.query('rollback');
    expect((await test.jobs.getJobs(OTHER)).map((claimed) => claimed.id)).toEqual([id]);
  });

  /** Runs one transactional job whose transaction has this isolation level. */
  async function runTransactional(
    handler: (payload: unknown, ctx: JobContext) => unknown,
    maxAttempts = 3,
  ): Promise<string> {
    const tasks = {
      t: {
        handler: async (payload: unknown, ctx: JobContext) => {
          await ctx.manager.query(`set transaction isolation level ${isolation}`);
          await ctx.manager.query('select from jobs.jobs limit 1');
          return handler(payload, ctx);
        },
        transactional: true,
      },
    };
    const pool = createWorkerPool({ jobs: test.jobs, tasks, options: { pollIntervalMs: 50 } });
    handlers.add(pool);
    await pool.start();
    const { id } = await test.jobs.addJob('t', 1, { maxAttempts });
    await test.jobs.waitForJob(id, { timeoutMs: 15_000 });
    return id;
  }

  it('settles its own job, and is tried again where the job was changed since', async () => {
    const id = await runTransactional(async (_, ctx) => {
      if (ctx.attempt === 1)
        await test.sql('update jobs.jobs set updated_at = clock_timestamp() where id = $1', [ctx.job.id]);
    });
    const history = await test.jobs.jobHistory(id);
    expect(history.map(({ status, errorMessage }) => [status, errorMessage])).toEqual([
      ['failed', expect.stringMatching(/^serialization failure, rolled back: could not serialize/)],
      ['completed', null],
    ]);
  });

  it('ends as cancelled where it was cancelled since', async () => {
    const id = await runTransactional((_, ctx) => test.jobs.cancelJobs([ctx.job.id]));
    expect(await test.jobs.findJob(id)).toMatchObject({ status: 'cancelled' });
  });

  it('claims no jobs: it knows neither what others have claimed since its snapshot nor what was paused since', async () => {
    await test.jobs.registerRateLimit('limit', 100, '1 hour');
    await test.jobs.addJobs([
      { task: 'plain', payload: 1 },
      { task: 'queue', payload: 2, queue: 'serial' },
      { task: 'limit', payload: 3, rateLimitKey: 'limit' },
    ]);
    const errors: unknown[] = [];
    const claimed: string[] = [];
    for (const task of ['plain', 'queue', 'limit']) {
      const id = await runTransactional(async (_, ctx) => {
        await test.jobs.pause({ task }, { reason: 'the bank is down', by: 'ada' });
        const jobs = await ctx.jobs.getJobs(WORKER, { taskIdentifiers: [task] });
        claimed.push(...jobs.map((job) => job.task));
        await ctx.jobs.completeJobs(WORKER, jobs, 1);
      }, 1);
      for (const pool of handlers) await pool.stop(0);
      handlers.clear();
      const [last] = (await test.jobs.jobHistory(id)).toReversed();
      if (last!.status !== 'completed') errors.push(last!.errorMessage);
    }
    expect(claimed).toEqual([]);
    const expected = expect.stringContaining('Expected a transaction at read committed');
    expect(errors).toEqual([expected, expected, expected]);
  });
});
