// Promises that were broken once, each as a user would notice it.
import { afterEach, beforeEach, expect, it, jest } from '@jest/globals';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  snooze,
  type CollectingJobEvents,
  type Job,
  type JobContext,
  type JobManagerOptions,
  type PlainTask,
  type WorkerOptions,
  type WorkerPool,
} from '../../lib/index.js';
import { DataSource } from 'typeorm';
import { eventually } from '../support/database.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';
import { asPool, claimAsPool, registerPool } from '../support/pool.claims.js';

let test: TestManager;
let events: CollectingJobEvents;
let pools: WorkerPool[] = [];
let letGo: () => void = () => undefined;
let gate: Promise<void>;

const open = async (options: JobManagerOptions = {}) => {
  test = await createTestManager({ retry: { baseDelayMs: 1, jitter: 0 }, ...options });
};

beforeEach(() => {
  events = createCollectingEvents();
  gate = new Promise((resolve) => (letGo = resolve));
});
afterEach(async () => {
  letGo();
  await Promise.all(pools.map((pool) => pool.forceStop()));
  pools = [];
  await test.close();
});

async function start(tasks: Record<string, PlainTask>, options: WorkerOptions = {}, jobs = test.jobs) {
  const pool = createWorkerPool({ jobs, tasks, events, options: { pollIntervalMs: 50, ...options } });
  pools.push(pool);
  return pool.start();
}

const statusOf = async ({ id }: { id: string }) => (await test.jobs.findJob(id))?.status;
const reaches = (job: { id: string }, status: string) => eventually(async () => (await statusOf(job)) === status);

it('a claim by hand that its worker has forgotten is given back by any pool, without a call', async () => {
  await open();
  const job = await test.jobs.addJob('by-hand', 1);
  await test.jobs.getJobs(WORKER);
  await test.sql(`update jobs.jobs set lease_expires_at = clock_timestamp() - interval '1 s' where id = $1`, [job.id]);
  await start({ other: () => undefined });
  expect(await reaches(job, 'available')).toBe(true);
}, 40_000);

it('a job that is cancelled while it lies in the buffer of a pool never starts', async () => {
  await open();
  const [first, second] = await test.jobs.addJobs([
    { task: 'x', payload: 1 },
    { task: 'x', payload: 2 },
  ]);
  const started: unknown[] = [];
  const pool = await start({ x: (n) => (started.push(n), gate) }, { concurrency: 1 });
  await eventually(() => started.length === 1 && pool.queue.depth === 1);
  await test.jobs.cancelJobs([second!.id], 'not wanted any more');
  await eventually(() => pool.queue.depth === 0);
  letGo();
  await reaches(first!, 'completed');
  await reaches(second!, 'cancelled');
  expect(started).toEqual([1]);
});

it('a task with a limit of its own leaves all that it has no room for to other processes', async () => {
  await open();
  await test.jobs.addJobs(Array.from({ length: 500 }, (_, n) => ({ task: 'narrow', payload: n })));
  let running = 0;
  const handler = async (): Promise<void> => {
    running++;
    await gate;
  };
  await start({ narrow: { handler, concurrency: 1 } }, { concurrency: 10 });
  await eventually(() => running === 1);
  const claims = jest.spyOn(test.jobs.engine.claims, 'claimPlain');
  await eventually(() => claims.mock.calls.length >= 10);
  claims.mockRestore();
  const [row] = await test.sql<{ locked: number }>(
    `select count(*)::integer as locked from jobs.jobs where locked_by is not null`,
  );
  expect(row!.locked).toBeLessThanOrEqual(2);
});

it('one serial queue with thousands of jobs ahead delays no other queue', async () => {
  await open();
  const deep = Array.from({ length: 5_000 }, (_, n) => ({ task: 'x', payload: n, queue: 'noisy', priority: -1 }));
  await test.jobs.addJobs(deep);
  const small = await test.jobs.addJobs(
    Array.from({ length: 50 }, (_, n) => ({ task: 'x', payload: 'small', queue: `tenant ${n}` })),
  );
  await test.jobs.configureQueue('noisy', { concurrency: 1 });
  const order: unknown[] = [];
  const handler = async (payload: unknown): Promise<void> => {
    order.push(payload);
    if (payload !== 'small') await gate;
  };
  await start({ x: handler }, { concurrency: 5 });
  await Promise.all(small.map((job) => test.jobs.waitForJob(job.id, { timeoutMs: 20_000 })));
  expect(order.filter((payload) => payload !== 'small')).toHaveLength(1);
}, 60_000);

it('a snooze of a transactional task counts from its end, not from the beginning of its transaction', async () => {
  await open();
  const dataSource = await new DataSource({ type: 'postgres', url: test.url }).initialize();
  const jobs = await createJobManager({ dataSource });
  const handler = async (_payload: unknown, ctx: JobContext) => {
    await ctx.manager.query('select pg_sleep(1.5)');
    return snooze(60_000);
  };
  await start({ late: { handler, transactional: true } }, {}, jobs);
  const job = await test.jobs.addJob('late', 1);
  await reaches(job, 'snoozed');
  const [row] = await test.sql<{ left: number; took: number }>(
    `select extract(epoch from j.run_at - h.completed_at)::float8 as left,
       extract(epoch from h.completed_at - h.started_at)::float8 as took
     from jobs.jobs j join jobs.job_history h on h.job_id = j.id where j.id = $1`,
    [job.id],
  );
  expect(row!.took).toBeGreaterThanOrEqual(1.5);
  expect(row!.left).toBeGreaterThan(59);
  await pools.pop()!.forceStop();
  await jobs.close();
  await dataSource.destroy();
});

it('a parent and its child that are retried together run one after the other', async () => {
  await open();
  const parent = await test.jobs.addJob('x', 1, { maxAttempts: 1 });
  const child = await test.jobs.addJob('x', 2, { dependsOn: [parent.id] });
  const fail = async (): Promise<void> =>
    void (await test.jobs.permanentlyFailJobs([child.id]), await test.jobs.permanentlyFailJobs([parent.id]));
  await fail();
  await test.jobs.retryJobs([child.id, parent.id]);
  expect([await statusOf(parent), await statusOf(child)]).toEqual(['available', 'blocked']);
  const claimed = await test.jobs.getJobs(WORKER, { batchSize: 10 });
  expect(claimed.map(({ id }) => id)).toEqual([parent.id]);
  await test.jobs.completeJobs(WORKER, claimed, 1);
  expect(await statusOf(child)).toBe('available');
});

it.each(['none', 'failures'] as const)(
  'a settle that is repeated is told what the first one did, where the history keeps %s',
  async (keep) => {
    await open({ history: { keep } });
    await registerPool(test.jobs, 'pool');
    const ids = await test.jobs.addJobs([
      { task: 't', payload: 1 },
      { task: 't', payload: 2 },
    ]);
    const claimed = await claimAsPool(test.jobs, 'pool');
    expect(claimed).toHaveLength(ids.length);
    const requests = claimed.map((job) => ({
      job,
      outcome: { kind: 'completed', result: null } as const,
      executionTimeMs: 1,
    }));
    const { settlement } = test.jobs.engine;
    await settlement.settle(asPool('pool'), requests);
    const { results } = await settlement.settle(asPool('pool'), requests, { repeated: true });
    expect(results.map(({ status }) => status)).toEqual(['completed', 'completed']);
  },
);

it('a child goes on although the record of its parent was collected before it was told, where the history keeps none', async () => {
  await open({ history: { keep: 'none' } });
  await registerPool(test.jobs, 'pool');
  const parent = await test.jobs.addJob('t', 1);
  const child: Job = await test.jobs.addJob('t', 2, { dependsOn: [parent.id] });
  const [claimed] = await claimAsPool(test.jobs, 'pool');
  // The process dies between the settle and the word to the child.
  const { promoter, settlement } = test.jobs.engine;
  const promote = promoter.promote.bind(promoter);
  promoter.promote = () => Promise.resolve();
  const request = { job: claimed!, outcome: { kind: 'completed', result: null } as const, executionTimeMs: 1 };
  await settlement.settle(asPool('pool'), [request]);
  promoter.promote = promote;
  expect(await statusOf(child)).toBe('blocked');
  await test.jobs.gcJobHistory();
  await promoter.sweepNow();
  expect(await statusOf(child)).toBe('available');
});
