// Through PgBouncer in transaction mode. scripts/matrix.mjs starts it: MILLRACE_TEST_URL leads through it,
// MILLRACE_TEST_DIRECT_URL around it.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
// @ts-expect-error plain JavaScript, without types
import { startPgBouncer } from '../../scripts/pgbouncer.mjs';
import {
  createJobManager,
  createWorkerPool,
  type JobManager,
  type JobManagerOptions,
  type PlainTask,
  PoolerModeError,
  type WorkerOptions,
  type WorkerPool,
} from '../../lib/index.js';
import { createTestDatabase, eventually, type TestDatabase } from '../support/database.js';

let database: TestDatabase;
/** The same database, not through the pooler. */
let direct: string;
const closing: (() => Promise<unknown>)[] = [];

beforeEach(async () => {
  database = await createTestDatabase();
  const url = new URL(process.env.MILLRACE_TEST_DIRECT_URL!);
  url.pathname = new URL(database.url).pathname;
  direct = url.href;
});
afterEach(async () => {
  for (const close of closing.splice(0).toReversed()) await close();
  await database.drop();
});

async function connect(options: JobManagerOptions = {}): Promise<JobManager> {
  const jobs = await createJobManager({ connection: database.url, ...options });
  closing.push(() => jobs.close());
  return jobs;
}

async function start(jobs: JobManager, tasks: Record<string, PlainTask>, options: WorkerOptions): Promise<WorkerPool> {
  const pool = createWorkerPool({ jobs, tasks, options });
  closing.push(() => pool.stop());
  await pool.start();
  return pool;
}

/** Several transactions at once, so that each connection of the client meets several of the server. */
const mixed = (work: (n: number) => Promise<unknown>): Promise<unknown[]> =>
  Promise.all(Array.from({ length: 40 }, (_, n) => work(n)));

describe('through PgBouncer in transaction mode', () => {
  it('is really what these specs go through', async () => {
    const client = new pg.Client(database.url) as pg.Client & { processID: number };
    await client.connect();
    const { rows } = await client.query('select pg_backend_pid() as pid');
    await client.end();
    expect(rows[0].pid).not.toBe(client.processID);
  });

  it('every job runs once, with the default options', async () => {
    const jobs = await connect();
    const ran: unknown[] = [];
    for (const _ of [1, 2]) await start(jobs, { x: (n) => void ran.push(n) }, { pollIntervalMs: 50 });
    await mixed((n) => jobs.addJob('x', n, n % 4 ? {} : { queue: 'serial' }));
    await eventually(async () => (await jobs.counts()).byStatus.completed === 40);
    expect(ran.toSorted((a, b) => Number(a) - Number(b))).toEqual(Array.from({ length: 40 }, (_, n) => n));
  });

  it('an add joins the caller’s transaction, and leaves with it', async () => {
    const jobs = await connect();
    await mixed(async (n) => {
      const client = await database.pool.connect();
      await client.query('begin');
      await jobs.addJob('x', n, { manager: client });
      await client.query(n % 2 ? 'rollback' : 'commit');
      client.release();
    });
    expect((await jobs.counts()).byStatus.available).toBe(20);
  });

  it('new jobs are heard of at once where LISTEN has a direct connection', async () => {
    const jobs = await connect({ listenConnection: direct });
    const hour = 3_600_000;
    await start(jobs, { x: () => undefined }, { pollIntervalMs: hour, refetchDelayMs: hour });
    const { id } = await jobs.addJob('x', 1);
    const heard = await eventually(async () => (await jobs.findJob(id))?.status === 'completed');
    expect(heard).toBe(true);
  });

  it('without one they are found by polling, and running ones are cancelled by the heartbeat', async () => {
    const jobs = await connect();
    const aborted = new Promise<void>((resolve) => {
      void start(
        jobs,
        { x: (_, ctx) => new Promise<void>((end) => ctx.signal.addEventListener('abort', () => (resolve(), end()))) },
        { pollIntervalMs: 100, keepaliveMs: 200, listen: false },
      );
    });
    const { id } = await jobs.addJob('x', 1);
    await eventually(async () => (await jobs.findJob(id))?.status === 'running');
    await jobs.cancelJobs([id]);
    await aborted;
    const cancelled = await eventually(async () => (await jobs.findJob(id))?.status === 'cancelled');
    expect(cancelled).toBe(true);
  });

  it('ten processes may migrate at once', async () => {
    await mixed(async () => (await createJobManager({ connection: database.url })).close());
    const { rows } = await database.pool.query(
      'select count(*)::integer as count, max(version) as last from jobs.migrations',
    );
    expect(rows[0].count).toBe(rows[0].last);
  });

  it('names for statements are what it cannot keep: they are left out unless they are asked for', async () => {
    // PgBouncer 1.21 with max_prepared_statements would keep them.
    const jobs = await connect({ preparedStatements: true });
    const failures: unknown[] = [];
    await mixed((n) => jobs.addJob('x', n).catch((error: unknown) => failures.push(error)));
    await mixed(() => jobs.counts().catch((error: unknown) => failures.push(error)));
    expect(String(failures[0])).toContain('prepared statement');
    const careful = await connect();
    await mixed(() => careful.counts());
  });
});

describe('through PgBouncer in statement mode', () => {
  it.each([{}, { migrate: false }, { preparedStatements: true }])(
    'a start is refused with what to do about it (%j)',
    async (options) => {
      const pooler = await startPgBouncer(direct, { pool_mode: 'statement' });
      closing.push(() => pooler.stop());
      const starting = createJobManager({ connection: pooler.url, ...options });
      await expect(starting).rejects.toThrow(PoolerModeError);
      await expect(starting).rejects.toThrow('pool_mode = transaction');
    },
  );
});
