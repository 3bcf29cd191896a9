import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  type CollectingJobEvents,
  type JobContext,
  type JobManager,
  type PlainTask,
  type WorkerOptions,
  type WorkerPool,
} from '../../lib/index.js';
import pg from 'pg';
import { wallClock } from '../../lib/timing.js';
import { eventually } from '../support/database.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';
import { claimAsPool, registerPool } from '../support/pool.claims.js';

let test: TestManager;
let jobs: JobManager;
let events: CollectingJobEvents;
let pools: WorkerPool[] = [];
const opened: (() => void)[] = [];

beforeEach(async () => {
  test = await createTestManager({ retry: { baseDelayMs: 1, jitter: 0 } });
  jobs = test.jobs;
  events = createCollectingEvents();
});
afterEach(async () => {
  for (const open of opened.splice(0)) open();
  for (const pool of pools) await pool.forceStop();
  pools = [];
  await test.close();
});

async function start(tasks: Record<string, PlainTask>, options: WorkerOptions = {}, manager = jobs) {
  const pool = createWorkerPool({ jobs: manager, tasks, events, options: { pollIntervalMs: 50, ...options } });
  pools.push(pool);
  await pool.start();
  return pool;
}

/** A handler that waits until its signal aborts, or the spec is over. */
const untilAborted =
  (reasons: unknown[] = []) =>
  (_payload: unknown, ctx: JobContext): Promise<void> =>
    new Promise((resolve) => {
      // A claim that was lost may be run again, by this very pool.
      if (ctx.attempt > 1) return resolve();
      opened.push(resolve);
      ctx.signal.addEventListener('abort', () => resolve(void reasons.push(ctx.signal.reason)));
    });

const running = (id: string) => eventually(async () => (await jobs.findJob(id))?.status === 'running');

function blockTheLoop(ms: number): void {
  const until = performance.now() + ms;
  while (performance.now() < until);
}

/** Runs SQL in another database of the same server. */
async function elsewhere(text: string): Promise<void> {
  const client = new pg.Client(Object.assign(new URL(test.url), { pathname: '/postgres' }).href);
  await client.connect();
  await client.query(text);
  await client.end();
}

/** Lets a worker look as if it had not been heard of for an hour. */
const forget = (workerId: string) =>
  test.sql(`update jobs.workers set heartbeat_at = now() - interval '1 h' where id = $1`, [workerId]);

describe('the heartbeat', () => {
  it('keeps the lease of a handler that blocks the event loop for longer than it lasts', async () => {
    let rescued: number | undefined;
    await start(
      {
        block: async () => {
          await eventually(async () => {
            const [worker] = await test.sql('select heartbeat_at > started_at as beaten from jobs.workers');
            return worker?.beaten;
          });
          blockTheLoop(3_000);
          rescued = await jobs.engine.registry.rescue();
        },
      },
      { leaseMs: 1_000, keepaliveMs: 200 },
    );
    const { id } = await jobs.addJob('block', 1);
    await jobs.waitForJob(id);
    expect(rescued).toBe(0);
    expect(await jobs.jobHistory(id)).toMatchObject([{ status: 'completed' }]);
  });

  it('comes from the main loop where the connection cannot be handed to a thread, and the start says so', async () => {
    const { password, ...rest } = new pg.Client(test.url);
    const { user, host, port, database } = rest;
    const manager = await createJobManager({
      connection: { user: user!, host, port, database: database!, password: async () => password ?? '' },
    });
    const pool = await start({ t: () => 1 }, { keepaliveMs: 100 }, manager);
    await eventually(() => events.ofType('worker.error').length > 0);
    expect(events.ofType('worker.error').map(({ error }) => String(error))).toEqual([
      expect.stringContaining('the heartbeat runs on the main loop'),
    ]);
    await eventually(async () => {
      const [worker] = await test.sql('select heartbeat_at > started_at as beaten from jobs.workers');
      return worker?.beaten;
    });
    await pool.stop();
    await manager.close();
  });

  it('that fails makes the worker abort its jobs before its lease ends; afterwards it goes on', async () => {
    const reasons: unknown[] = [];
    await start({ t: untilAborted(reasons) }, { leaseMs: 1_000, keepaliveMs: 200 });
    const { id } = await jobs.addJob('t', 1);
    await running(id);
    const name = new URL(test.url).pathname.slice(1);
    await elsewhere(`alter database ${name} with allow_connections false`);
    await elsewhere(`select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '${name}'`);
    await eventually(() => reasons.length === 1);
    await elsewhere(`alter database ${name} with allow_connections true`);
    expect(reasons).toMatchObject([{ code: 'ERR_JOBS_LEASE_LOST' }]);
    await eventually(async () => (await jobs.findJob(id).catch(() => null))?.status === 'completed');
  });
});

describe('cancellation', () => {
  it('reaches a running job by notification, whatever the heartbeat', async () => {
    const reasons: unknown[] = [];
    await start({ t: untilAborted(reasons) }, { leaseMs: 3_600_000, keepaliveMs: 1_800_000 });
    const { id } = await jobs.addJob('t', 1);
    await running(id);
    await jobs.cancelJobs([id], 'changed my mind');
    expect(await jobs.waitForJob(id)).toMatchObject({ status: 'cancelled', error: 'changed my mind' });
    expect(reasons).toMatchObject([{ code: 'ERR_JOBS_CANCELLED' }]);
  });

  it('reaches it by the heartbeat without LISTEN', async () => {
    await start({ t: untilAborted() }, { listen: false, keepaliveMs: 100 });
    const { id } = await jobs.addJob('t', 1);
    await running(id);
    await jobs.cancelJobs([id]);
    expect(await jobs.waitForJob(id)).toMatchObject({ status: 'cancelled' });
  });

  it('leaves the jobs of others alone', async () => {
    await start({ t: untilAborted() });
    const [mine, other] = await jobs.addJobs([1, 2].map((payload) => ({ task: 't', payload })));
    await Promise.all([running(mine!.id), running(other!.id)]);
    await jobs.cancelJobs([mine!.id]);
    await jobs.waitForJob(mine!.id);
    expect(await jobs.findJob(other!.id)).toMatchObject({ status: 'running' });
  });
});

describe('crashes (worker died)', () => {
  /** Makes those whose payload says so jobs that have taken their process down twice. */
  const suspect = (payload: string) =>
    test.sql(
      `update jobs.jobs j set crashes = 2, slot_only = true, lane = jobs.lane_of(j.queue, j.partition, j.limits, true)
       from jobs.job_bodies b where b.id = j.id and b.payload::text like '%' || $1 || '%'`,
      [payload],
    );

  /** A worker claims what there is and dies. */
  async function die(id: string): Promise<void> {
    await registerPool(jobs, id, 1_000);
    await claimAsPool(jobs, id);
    await forget(id);
    await jobs.engine.registry.rescue();
  }

  it('are counted apart from attempts: the third one in a row exhausts the job', async () => {
    const { id } = await jobs.addJob('t', 1, { maxAttempts: 10 });
    for (const n of [1, 2, 3]) await die(`dying-worker-${n}`);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'exhausted', attempts: 3, lastError: 'worker died' });
    expect((await jobs.jobHistory(id)).map(({ status, attempt, workerId }) => [status, attempt, workerId])).toEqual([
      ['failed', 1, 'dying-worker-1'],
      ['failed', 2, 'dying-worker-2'],
      ['failed', 3, 'dying-worker-3'],
    ]);
  });

  it('are forgotten at an orderly end', async () => {
    const { id } = await jobs.addJob('t', 1, { maxAttempts: 10 });
    await die('dying-worker-1');
    await die('dying-worker-2');
    const [claimed] = await jobs.getJobs(WORKER);
    await jobs.failJobs(WORKER, [{ job: claimed!, error: 'orderly' }], 1);
    await test.sql('update jobs.jobs set run_at = now()');
    await die('dying-worker-3');
    expect(await jobs.findJob(id)).toMatchObject({ status: 'available' });
  });

  it('as many as the option says exhaust the job', async () => {
    const { id } = await jobs.addJob('t', 1, { maxAttempts: 10 });
    await registerPool(jobs, 'dying-worker-1', 1_000);
    await claimAsPool(jobs, 'dying-worker-1', { limit: 1 });
    await forget('dying-worker-1');
    await start({ other: () => 1 }, { maxCrashes: 1, keepaliveMs: 100 });
    expect(await jobs.waitForJob(id)).toMatchObject({ status: 'exhausted', error: 'worker died' });
  });

  it('let one suspect run at a time, beside any other job', async () => {
    const together: string[][] = [];
    const now = new Set<string>();
    const handler = async (name: string): Promise<void> => {
      now.add(name);
      together.push([...now]);
      await test.sql('select pg_sleep(0.02)');
      now.delete(name);
    };
    const names = ['a', 'suspect 1', 'b', 'suspect 2', 'c', 'd', 'e', 'f'];
    await jobs.addJobs(names.map((payload) => ({ task: 't', payload })));
    await suspect('suspect');
    await start({ t: handler }, { concurrency: 4 });
    await eventually(async () => (await jobs.counts()).byStatus.completed === names.length);
    const suspects = together.map((group) => group.filter((name) => name.startsWith('suspect')).length);
    expect(Math.max(...suspects)).toBe(1);
    expect(together.some((group) => group.length > 1)).toBe(true);
  });

  it('are blamed on the suspect alone: its neighbours are given back uncounted', async () => {
    const [poison, neighbour] = await jobs.addJobs(
      ['suspect', 'neighbour'].map((payload) => ({ task: 't', payload, maxAttempts: 10 })),
    );
    await suspect('suspect');
    await die('dying-worker-1');
    expect(await jobs.findJob(poison!.id)).toMatchObject({ status: 'exhausted', lastError: 'worker died' });
    expect(await jobs.findJob(neighbour!.id)).toMatchObject({ status: 'available', attempts: 0, lastError: null });
    expect(await test.sql('select crashes from jobs.jobs where id = $1', [neighbour!.id])).toEqual([{ crashes: 0 }]);
  });

  it('of a process that was not missed for months free its jobs all the same', async () => {
    const { id } = await jobs.addJob('x', 1, { maxAttempts: 3 });
    await start({}, { taskIdentifiers: ['nothing'], keepaliveMs: 250 });
    await test.sql(`insert into jobs.workers (id, label, host, pid, concurrency, lease_ms, tasks, environment, heartbeat_at)
      values ('long-gone-worker', 'long-gone', 'h', 1, 1, 1000, '{}', '{}', now() - interval '300 days')`);
    await test.sql(
      `update jobs.jobs set locked_by = 'long-gone-worker', locked_at = now() - interval '300 days',
      attempts = 1, fence = 1 where id = $1`,
      [id],
    );
    await eventually(async () => (await jobs.findJob(id))?.status === 'available');
    expect(await jobs.jobHistory(id)).toMatchObject([{ status: 'failed', errorMessage: 'worker died' }]);
  });

  it('of a frozen process that holds a job in a transaction keep no other job waiting', async () => {
    const [held, free] = await jobs.addJobs([1, 2].map((payload) => ({ task: 't', payload, maxAttempts: 5 })));
    await registerPool(jobs, 'frozen-worker-1', 1_000);
    const claimed = await claimAsPool(jobs, 'frozen-worker-1', { limit: 2 });
    const client = new pg.Client(test.url);
    await client.connect();
    await client.query('begin');
    const claim = { job: claimed.find(({ id }) => id === held!.id)!, workerId: 'frozen-worker-1' };
    await jobs.engine.attempts.assertOwned(claim, client);
    await forget('frozen-worker-1');
    expect(await jobs.engine.registry.rescue()).toBe(1);
    expect(await jobs.findJob(free!.id)).toMatchObject({ status: 'available' });
    expect(await jobs.findJob(held!.id)).toMatchObject({ status: 'running' });
    await client.query('rollback');
    await client.end();
    expect(await jobs.engine.registry.rescue()).toBe(1);
    expect(await jobs.findJob(held!.id)).toMatchObject({ status: 'available', lastError: 'worker died' });
  });
});

describe('a stop beside a handler that ignores its signal', () => {
  const deaf = (): Promise<void> => new Promise((resolve) => opened.push(resolve));
  const incarnation = async (): Promise<string> =>
    (await test.sql('select id from jobs.workers order by started_at desc limit 1'))[0]!.id as string;

  it('counts neither an attempt nor a crash, however often it happens', async () => {
    const { id } = await jobs.addJob('t', 1, { maxAttempts: 2 });
    for (let deploys = 0; deploys < 4; deploys++) {
      const before = opened.length;
      const pool = await start({ t: deaf }, { concurrency: 1 });
      await eventually(() => opened.length > before);
      await pool.stop(0);
      expect(await jobs.explain(id)).toMatchObject({
        reason: 'running',
        message: expect.stringMatching(/is being stopped while it runs: it goes back without counting/),
        until: expect.any(Date),
      });
      await jobs.resetLockedJobs();
      expect(await jobs.findJob(id)).toMatchObject({ status: 'running' }); // the lease still holds
      await forget(await incarnation());
      await jobs.resetLockedJobs();
      expect(await jobs.findJob(id)).toMatchObject({ status: 'available', attempts: 0, lastError: null });
    }
    expect(await test.sql('select crashes from jobs.jobs')).toEqual([{ crashes: 0 }]);
    expect(await jobs.jobHistory(id)).toEqual([]);
  });

  it('is no crash either if the process is killed before the handler has ended', async () => {
    const { id } = await jobs.addJob('t', 1);
    const pool = await start({ t: deaf }, { concurrency: 1 });
    await running(id);
    pool.interrupt();
    await eventually(async () => (await test.sql('select left_at from jobs.workers'))[0]!.left_at !== null);
    await forget(await incarnation());
    await jobs.resetLockedJobs();
    expect(await jobs.findJob(id)).toMatchObject({ attempts: 0 });
    expect(await test.sql('select crashes from jobs.jobs')).toEqual([{ crashes: 0 }]);
  });

  it('blames no suspect', async () => {
    const { id } = await jobs.addJob('t', 'suspect', { maxAttempts: 10 });
    await test.sql(
      'update jobs.jobs set crashes = 2, slot_only = true, lane = jobs.lane_of(queue, partition, limits, true)',
    );
    const pool = await start({ t: deaf }, { concurrency: 1 });
    await running(id);
    await pool.stop(0);
    await forget(await incarnation());
    await jobs.resetLockedJobs();
    expect(await jobs.findJob(id)).toMatchObject({ status: 'available', attempts: 0 });
    expect(await test.sql('select crashes from jobs.jobs')).toEqual([{ crashes: 2 }]);
  });
});

describe('WorkerPool.interrupt / join / state (interrupt, join, state)', () => {
  it('interrupt takes no more and lets running jobs finish; join resolves when they have', async () => {
    let finish: (() => void) | undefined;
    const pool = await start({ t: () => new Promise<void>((resolve) => (finish = resolve)) }, { concurrency: 1 });
    const [first, second] = await jobs.addJobs([1, 2].map((payload) => ({ task: 't', payload })));
    await eventually(() => finish);
    const states: string[] = [pool.state];
    pool.interrupt();
    await eventually(async () => (await jobs.findJob(second!.id))?.status === 'available');
    states.push(pool.state);
    finish?.();
    await pool.join();
    states.push(pool.state);
    expect(states).toEqual(['running', 'running', 'terminated']);
    expect(await jobs.findJob(first!.id)).toMatchObject({ status: 'completed' });
    expect(await jobs.findJob(second!.id)).toMatchObject({ status: 'available', attempts: 0 });
    await expect(pool.start()).rejects.toMatchObject({ code: 'ERR_JOBS_STOPPED' });
  });
});

it('a wall clock that was ahead while the pool started does not hide that the machine slept later', async () => {
  const hour = 3_600_000;
  const wall = wallClock.now;
  const now = jest.spyOn(wallClock, 'now');
  try {
    now.mockImplementation(() => wall() + hour);
    let ran = 0;
    await start({ t: () => void ran++ }, { leaseMs: 4_000, keepaliveMs: 250 });
    now.mockImplementation(wall);
    const beats = async (): Promise<number> =>
      Number(
        (await test.sql<{ at: string }>('select extract(epoch from heartbeat_at) as at from jobs.workers'))[0]!.at,
      );
    const passBeats = async (): Promise<void> => {
      const before = await beats();
      await eventually(async () => (await beats()) > before + 0.4);
    };
    await passBeats();
    // It sleeps: half an hour, by the wall's clock alone, has passed since the last beat.
    now.mockImplementation(() => wall() + hour / 2);
    const { id } = await jobs.addJob('t', 1);
    await passBeats();
    expect(ran).toBe(0);
    now.mockImplementation(wall);
    expect((await jobs.waitForJob(id)).status).toBe('completed');
  } finally {
    now.mockRestore();
  }
});

it('what a spec puts in the place of Date keeps no job from starting', async () => {
  const ran: unknown[] = [];
  await start({ t: (payload: unknown) => void ran.push(payload) }, { leaseMs: 4_000, keepaliveMs: 250 });
  jest.useFakeTimers({ now: new Date('2100-01-01'), doNotFake: ALL_BUT_DATE });
  try {
    const { id } = await jobs.addJob('t', 1);
    expect((await jobs.waitForJob(id)).status).toBe('completed');
  } finally {
    jest.useRealTimers();
  }
  expect(ran).toEqual([1]);
});

const ALL_BUT_DATE = [
  'hrtime',
  'nextTick',
  'performance',
  'queueMicrotask',
  'setImmediate',
  'clearImmediate',
  'setInterval',
  'clearInterval',
  'setTimeout',
  'clearTimeout',
] as const satisfies string[] as never;
