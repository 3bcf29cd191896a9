// What was committed although its answer never came: no process knows of it, so one must find it.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createJobManager,
  createWorkerPool,
  DatabaseUnavailableError,
  type JobManager,
  type PlainTask,
  type WorkerOptions,
  type WorkerPool,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
let beside: pg.Client;
const pools: WorkerPool[] = [];

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  beside = new pg.Client(test.url);
  await beside.connect();
});
afterEach(async () => {
  await beside.end();
  for (const pool of pools.splice(0)) await pool.forceStop();
  await test.close();
});

async function start(tasks: Record<string, PlainTask>, options: WorkerOptions = {}): Promise<WorkerPool> {
  const pool = createWorkerPool({ jobs, tasks, options: { pollIntervalMs: 50, listen: false, ...options } });
  pools.push(pool);
  await pool.start();
  return pool;
}

/** Ends the connection that calls `statement` (a part of its text) while the jobs are locked. */
async function cutOff(statement: string): Promise<void> {
  const waiting = await eventually(async () => {
    const cut = await test.sql<{ pid: number }>(
      `select pid, pg_terminate_backend(pid) from pg_stat_activity
       where datname = current_database() and wait_event_type = 'Lock' and query like $1`,
      [`%${statement}%`],
    );
    return cut.length > 0 && cut;
  });
  const pids = waiting.map(({ pid }) => pid);
  await eventually(async () => !(await test.sql('select from pg_stat_activity where pid = any($1)', [pids])).length);
}

/** As if the pool had claimed the job, and the answer had been lost. */
const claimUnheard = (pool: WorkerPool, id: string) =>
  beside.query(
    `update jobs.jobs set locked_by = (select id from jobs.workers where label = $1), locked_at = now(), attempts = attempts + 1, fence = fence + 1,
       run_at = now() where id = $2`,
    [pool.workerId, id],
  );

describe('answers that were lost', () => {
  it('jobs that a living pool has claimed without knowing it run all the same, and the attempt does not count', async () => {
    const attempts: number[] = [];
    const pool = await start({ echo: (_, { attempt }) => void attempts.push(attempt) });
    const { id } = await jobs.addJob('echo', 1, { delayMs: 3_600_000 });
    await beside.query('begin');
    await claimUnheard(pool, id);
    await beside.query('lock table jobs.jobs in access exclusive mode');
    await cutOff('claim_');
    await beside.query('commit');
    await eventually(() => attempts.length > 0);
    expect(attempts).toEqual([1]);
    await eventually(async () => (await jobs.findJob(id))?.status === 'completed');
    expect((await jobs.jobHistory(id)).map(({ status }) => status)).toEqual(['completed']);
  });

  it('what the pool does hold is left to it: running jobs run once', async () => {
    let runs = 0;
    let finish!: () => void;
    const finished = new Promise<void>((resolve) => (finish = resolve));
    const pool = await start({ long: () => (runs++, finished), echo: () => undefined }, { concurrency: 2 });
    const { id: held } = await jobs.addJob('long', 1);
    await eventually(() => runs === 1);
    const { id } = await jobs.addJob('echo', 1, { delayMs: 3_600_000 });
    await beside.query('begin');
    await claimUnheard(pool, id);
    await beside.query('lock table jobs.jobs in access exclusive mode');
    await cutOff('claim_');
    await beside.query('commit');
    await eventually(async () => (await jobs.findJob(id))?.status === 'completed');
    expect(await jobs.findJob(held)).toMatchObject({ status: 'running', attempts: 1 });
    finish();
    await eventually(async () => (await jobs.findJob(held))?.status === 'completed');
    expect(runs).toBe(1);
  });

  it('a pool that could not give its buffer back when it stopped leaves no job locked', async () => {
    let finish!: () => void;
    const finished = new Promise<void>((resolve) => (finish = resolve));
    await jobs.addJobs(Array.from({ length: 5 }, (_, n) => ({ task: 'long', payload: n })));
    // Its buffer is full: nothing but its end asks for the table.
    let begin!: () => void;
    const begun = new Promise<void>((resolve) => (begin = resolve));
    const long = (): Promise<void> => {
      begin();
      return finished;
    };
    const pool = await start({ long }, { concurrency: 1, queueSize: 5 });
    await begun;
    expect((await jobs.counts()).byStatus).toMatchObject({ running: 5 });
    await beside.query('begin; lock table jobs.jobs in access exclusive mode');
    const stopped = pool.stop();
    await cutOff('end_attempts');
    await beside.query('commit');
    finish();
    await stopped;
    expect((await jobs.counts()).byStatus).toMatchObject({ running: 0, available: 4, completed: 1 });
  });

  it('children of a job whose worker died before it told them are told by the worker that finds it dead', async () => {
    const { id: parent } = await jobs.addJob('parent', 1);
    const { id: child } = await jobs.addJob('child', 1, { dependsOn: [parent] });
    await test.sql('delete from jobs.jobs where id = $1', [parent]);
    await test.sql(
      `insert into jobs.workers (id, label, host, pid, concurrency, lease_ms, tasks, environment, heartbeat_at)
       values ('worker-that-died', 'worker', 'host', 1, 1, 1000, '{}', '{}', now() - interval '1 min')`,
    );
    await start({ child: () => undefined }, { leaseMs: 1_000, keepaliveMs: 100 });
    const told = await eventually(async () => (await jobs.findJob(child))?.status === 'completed');
    expect(told).toBe(true);
  });

  it('a child that an open transaction holds when its parent ends is told when that has ended', async () => {
    let finish!: () => void;
    const finished = new Promise<void>((resolve) => (finish = resolve));
    await start({ parent: () => finished, child: () => undefined });
    const { id: parent } = await jobs.addJob('parent', 1);
    const { id: child } = await jobs.addJob('child', 1, { dependsOn: [parent] });
    await eventually(async () => (await jobs.findJob(parent))?.status === 'running');
    await beside.query('begin');
    await beside.query('select from jobs.jobs where id = $1 for update', [child]);
    finish();
    await eventually(async () => (await jobs.findJob(parent))?.status === 'completed');
    await beside.query('commit');
    const told = await eventually(async () => (await jobs.findJob(child))?.status === 'completed');
    expect(told).toBe(true);
  });

  it('a settle that has claimed the next job of its queue, and whose answer is lost, loses neither', async () => {
    const { settlement } = jobs.engine;
    const real = settlement.completeAndClaim.bind(settlement);
    let lost = 0;
    settlement.completeAndClaim = async (...args) => {
      const answer = await real(...args);
      if (!answer.claimed.some(({ job }) => job.startsWith('["')) || lost++) return answer;
      throw new DatabaseUnavailableError('The connection broke.');
    };
    const done: unknown[] = [];
    const pool = await start({ serial: (n) => void done.push(n) });
    await jobs.addJobs(Array.from({ length: 20 }, (_, n) => ({ task: 'serial', payload: n, queue: 'q' })));
    await eventually(async () => (await jobs.counts()).byStatus.completed === 20);
    expect(lost).toBeGreaterThan(0);
    expect(done).toEqual(Array.from({ length: 20 }, (_, n) => n));
    expect(pool.stats()).toMatchObject({ completed: 20, failed: 0 });
  });

  it('a place that was freed by a settle whose answer was lost is told to others', async () => {
    let finish!: () => void;
    const finished = new Promise<void>((resolve) => (finish = resolve));
    await start({ first: () => finished }, { taskIdentifiers: ['first'] });
    await jobs.addJob('first', 1, { queue: 'q' });
    await eventually(async () => (await jobs.counts()).byStatus.running === 1);
    const other = await createJobManager({ connection: test.url });
    const done: unknown[] = [];
    const pool = createWorkerPool({
      jobs: other,
      tasks: { second: (n) => void done.push(n) },
      options: { pollIntervalMs: 60_000 },
    });
    try {
      await pool.start();
      await jobs.addJob('second', 2, { queue: 'q' });
      const { settlement } = jobs.engine;
      const real = settlement['complete'].bind(settlement);
      let lost = 0;
      settlement['complete'] = async (...args) => {
        const answer = await real(...args);
        if (lost++) return answer;
        throw new DatabaseUnavailableError('The connection broke.');
      };
      finish();
      await eventually(() => done.length === 1);
      expect(lost).toBeGreaterThan(0);
    } finally {
      await pool.stop(0);
      await other.close();
    }
  });
});
