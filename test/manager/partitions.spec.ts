// Partitions of a queue: they take turns by weight, each within limits of its own, and none delays another.
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { createWorkerPool, type ClaimedJob, type JobSpec, type PlainTask } from '../../lib/index.js';
import { LaneMemory } from '../../lib/manager/lane.memory.js';
import { createTestManager, type TestManager } from '../support/manager.js';
import { asPool, lookAsPool, registerPool } from '../support/pool.claims.js';

const HOUR = 3_600_000;
const POOL = 'pool-of-partitions';

let test: TestManager;
let memory: LaneMemory;

beforeAll(async () => {
  test = await createTestManager();
});
afterEach(async () => {
  await test.sql(`truncate jobs.jobs, jobs.job_places, jobs.job_queues, jobs.job_partitions`);
});
afterAll(() => test.close());

/** So many jobs of each partition, those of one after those of the other. */
async function add(queue: string, jobs: Record<string, number>): Promise<void> {
  const specs = Object.entries(jobs).flatMap(([partition, count]): JobSpec[] =>
    Array.from({ length: count }, (_, nth) => ({ task: 't', payload: `${partition}${nth + 1}`, queue, partition })),
  );
  await test.jobs.addJobs(specs);
}

async function begin(): Promise<void> {
  memory = new LaneMemory(HOUR);
  await registerPool(test.jobs, POOL);
}

const claim = async (limit: number): Promise<ClaimedJob[]> => (await lookAsPool(test.jobs, POOL, limit, memory)).jobs;

const payloads = (jobs: ClaimedJob[]): unknown[] => jobs.map(({ payload }) => String(payload)).toSorted(inOrder);

const inOrder = (a: string, b: string): number => (a < b ? -1 : Number(a > b));

async function settle(jobs: ClaimedJob[]): Promise<void> {
  await test.jobs.engine.settlement.settle(
    asPool(POOL),
    jobs.map((job) => ({ job, outcome: { kind: 'completed' as const, result: null }, executionTimeMs: 1 })),
  );
  for (const job of jobs) memory.noteFreed(job.queue!, job.partition);
}

/** How many jobs of each partition were claimed, by claims of so many jobs, each settled before the next. */
async function drain(rounds: number, limit: number): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  for (let round = 0; round < rounds; round++) {
    const jobs = await claim(limit);
    for (const { partition } of jobs) counts[partition!] = (counts[partition!] ?? 0) + 1;
    await settle(jobs);
  }
  return counts;
}

describe('partitions', () => {
  it('of a queue that is declared nowhere have no limit, and take turns', async () => {
    await add('render', { acme: 20, beta: 2, gamma: 1 });
    await begin();
    const first = await claim(3);
    expect(payloads(first)).toEqual(['acme1', 'beta1', 'gamma1']);
    expect(await drain(4, 5)).toEqual({ acme: 19, beta: 1 });
    const [queue] = await test.jobs.listQueues();
    expect(queue).toMatchObject({ name: 'render', concurrency: Infinity });
  });

  it('take the limit from their queue before any claim has met it, and also where it was paused before', async () => {
    await add('render', { acme: 1 });
    await test.jobs.addJob('t', null, { queue: 'serial' });
    await test.jobs.pauseQueue('paused');
    await add('paused', { acme: 1 });
    const found = (await test.jobs.listQueues()).map(({ name, concurrency }) => [name, concurrency]);
    expect(found).toEqual([
      ['paused', Infinity],
      ['render', Infinity],
      ['serial', 1],
    ]);
  });

  it('take turns one job at a time, also where claims are for one job', async () => {
    await add('render', { acme: 5, beta: 5, gamma: 5 });
    await begin();
    const order: unknown[] = [];
    for (let n = 0; n < 9; n++) {
      const jobs = await claim(1);
      order.push(jobs[0]?.partition);
      await settle(jobs);
    }
    expect(order).toEqual(['acme', 'beta', 'gamma', 'acme', 'beta', 'gamma', 'acme', 'beta', 'gamma']);
  });

  it('get as many turns as their weights say, whether claims are for one job or for many', async () => {
    await test.jobs.configurePartition('render', 'two', { weight: 2 });
    await test.jobs.configurePartition('render', 'four', { weight: 4 });
    await add('render', { one: 100, two: 200, four: 400 });
    await begin();
    expect(await drain(70, 1)).toEqual({ one: 10, two: 20, four: 40 });
    const counts = await drain(35, 10);
    expect(counts.one).toBeGreaterThanOrEqual(48);
    expect(counts.one).toBeLessThanOrEqual(52);
    expect(counts.two! / counts.one!).toBeCloseTo(2, 0);
    expect(counts.four! / counts.one!).toBeCloseTo(4, 0);
  });

  it('get them in a queue that has less room than one turn takes, and in claims of which none ends with a circle', async () => {
    await test.jobs.configureQueue('render', { concurrency: 3, partitions: {} });
    await test.jobs.configurePartition('render', 'two', { weight: 2 });
    await test.jobs.configurePartition('render', 'four', { weight: 4 });
    await add('render', { one: 50, two: 100, four: 200 });
    await begin();
    expect(await drain(70, 10)).toEqual({ one: 30, two: 60, four: 120 });
    await test.jobs.configureQueue('render', { concurrency: Infinity, partitions: {} });
    memory.forget();
    expect(await drain(14, 5)).toEqual({ one: 10, two: 20, four: 40 });
  });

  it.each([
    ['as many as wanted', Infinity, { a: 150, b: 150 }],
    ['two', 2, { a: 150, b: 150 }],
  ])('get as many turns as other queues beside theirs, whose room is %s', async (_, concurrency, turns) => {
    for (const queue of ['q', 'r', 's']) await test.jobs.configureQueue(queue, { concurrency, partitions: {} });
    for (const queue of ['r', 's']) await add(queue, { [queue]: 200 });
    await add('q', { a: 200, b: 200 });
    await begin();
    const counts = await drain(200, 3);
    expect({ a: Math.abs(counts.a! - turns.a) <= 3, b: Math.abs(counts.b! - turns.b) <= 3, counts }).toEqual({
      a: true,
      b: true,
      counts,
    });
    expect(Math.abs(counts.r! - 150)).toBeLessThanOrEqual(3);
  });

  it('run no more jobs at once than the queue says for each, or configurePartition for one', async () => {
    await test.jobs.configureQueue('render', { concurrency: 6, partitions: { concurrency: 2 } });
    await test.jobs.configurePartition('render', 'acme', { concurrency: 3 });
    await add('render', { acme: 5, beta: 5, gamma: 5 });
    await begin();
    const first = await claim(10);
    expect(payloads(first)).toHaveLength(6);
    await settle(first.filter(({ partition }) => partition === 'gamma'));
    const second = await claim(10);
    const running = [...first.filter(({ partition }) => partition !== 'gamma'), ...second];
    const most = (name: string): number => running.filter(({ partition }) => partition === name).length;
    expect([most('acme') <= 3, most('beta') <= 2, most('gamma') <= 2, running.length]).toEqual([true, true, true, 6]);
  });

  it('keep their limits when queues that lie idle are forgotten, and when the row of their queue is made again', async () => {
    await test.jobs.configurePartition('render', 'acme', { concurrency: 1 });
    await test.jobs.configurePartition('print', 'acme', { weight: 2 });
    expect(await test.jobs.gcJobQueues()).toBe(0);
    const claimTwice = async (): Promise<ClaimedJob[]> => [...(await claim(4)), ...(await claim(4))];
    await add('render', { acme: 4 });
    await begin();
    expect(await claimTwice()).toHaveLength(1);
    await test.sql(`truncate jobs.jobs, jobs.job_places, jobs.job_queues`);
    await add('render', { acme: 4 });
    await begin();
    expect(await claimTwice()).toHaveLength(1);
  });

  it('that are full are passed over, whatever lies in them', async () => {
    await test.jobs.configureQueue('render', { concurrency: Infinity, partitions: { concurrency: 1 } });
    await add('render', { acme: 300, beta: 1 });
    await begin();
    const first = await claim(10);
    expect(payloads(first)).toEqual(['acme1', 'beta1']);
    expect(await claim(10)).toEqual([]);
    await add('render', { zeta: 1 });
    memory.noteRunnable(['render\x1fzeta\x1f\x1f']);
    expect(payloads(await claim(10))).toEqual(['zeta1']);
    await settle(first);
    expect(payloads(await claim(10))).toEqual(['acme2']);
  });

  it('get their turns in a queue that a few of them fill each time, beside other queues', async () => {
    await test.jobs.configureQueue('render', { concurrency: 2, partitions: {} });
    await test.jobs.configureQueue('other', { concurrency: 1 });
    const names = Array.from({ length: 9 }, (_, nth) => `tenant${nth}`);
    await add('render', Object.fromEntries(names.map((name) => [name, 3])));
    await test.jobs.addJobs(Array.from({ length: 40 }, () => ({ task: 't', payload: null, queue: 'other' })));
    await begin();
    const served: unknown[] = [];
    for (let round = 0; round < 14; round++) {
      const jobs = await claim(10);
      served.push(...jobs.flatMap(({ partition }) => partition ?? []));
      await settle(jobs);
    }
    expect([...new Set(served.slice(0, 10))]).toHaveLength(9);
    expect(served.length).toBe(27);
  });

  it('that a filled queue keeps from running are not passed, however much of them is due', async () => {
    await test.jobs.configureQueue('render', { concurrency: 1, partitions: {} });
    await add('render', { acme: 600, beta: 600 });
    await begin();
    const order: unknown[] = [];
    for (let round = 0; round < 4; round++) {
      const { jobs, report } = await lookAsPool(test.jobs, POOL, 10, memory, { taskIdentifiers: ['t'] });
      expect(report!.passed).toEqual([]);
      order.push(...payloads(jobs));
      await settle(jobs);
    }
    expect(order).toEqual(['acme1', 'beta1', 'acme2', 'beta2']);
  });

  it('get no more than their share of the queue while others want some, and all of it when none does', async () => {
    await test.jobs.configureQueue('render', { concurrency: 10, partitions: { share: 0.5 } });
    await add('render', { acme: 30 });
    await begin();
    const alone = await claim(10);
    expect(alone).toHaveLength(10);
    await add('render', { beta: 20 });
    memory.noteRunnable(['render\x1fbeta\x1f\x1f']);
    await settle(alone.slice(0, 6));
    const next = await claim(10);
    expect(next.map(({ partition }) => partition!).toSorted(inOrder)).toEqual([
      'acme',
      'beta',
      'beta',
      'beta',
      'beta',
      'beta',
    ]);
  });

  it('that are full are named by explain, with the jobs that run', async () => {
    await test.jobs.configureQueue('render', { partitions: { concurrency: 1 } });
    await add('render', { acme: 2 });
    const [running] = await test.jobs.getJobs('worker-of-partitions');
    const waiting = (await test.jobs.listJobs({ status: 'available' })).items[0]!;
    expect(await test.jobs.explain(waiting.id)).toMatchObject({
      reason: 'partition_full',
      blockedBy: [running!.id],
      message: `Its partition "acme" of queue "render" runs 1 job at once and is busy with job ${running!.id}.`,
    });
  });

  it('are named by a function of the payload, which is called once with the payload as it is stored', async () => {
    const given: unknown[] = [];
    const partition = (payload: { tenant: string }): string => {
      given.push(payload);
      return payload.tenant;
    };
    const task: PlainTask = { queue: 'render', partition, handler: () => null };
    const pool = createWorkerPool({ jobs: test.jobs, tasks: { render: task }, options: { autoStart: false } });
    const at = new Date(0);
    const { id } = await test.jobs.addJob('render', { tenant: 'acme', at });
    expect(await test.jobs.findJob(id)).toMatchObject({ queue: 'render', partition: 'acme' });
    expect(given).toEqual([{ tenant: 'acme', at: at.toJSON() }]);
    const own = await test.jobs.addJob('render', { tenant: 'acme' }, { partition: 'beta' });
    const none = await test.jobs.addJob('render', { tenant: 'acme' }, { partition: null });
    expect([own.partition, none.partition, given.length]).toEqual(['beta', null, 1]);
    await expect(test.jobs.addJob('render', { tenant: 5 })).rejects.toThrow(
      'Expected the partition that task "render" names to be a string of 1 to 200 characters',
    );
    await expect(test.jobs.addJob('t', null, { partition: 'acme' })).rejects.toThrow(
      'Expected a queue beside partition',
    );
    await pool.stop();
  });

  it('are compared where `unique` says so, also those that a function names', async () => {
    const task: PlainTask = { queue: 'render', partition: ({ tenant }) => tenant as string, handler: () => null };
    const pool = createWorkerPool({ jobs: test.jobs, tasks: { once: task }, options: { autoStart: false } });
    const unique = { by: ['partition' as const] };
    const added = await Promise.all(
      ['acme', 'beta', 'acme'].map((tenant, n) => test.jobs.addJob('once', { tenant, n }, { unique })),
    );
    expect(added.filter(({ created }) => created)).toHaveLength(2);
    await pool.stop();
  });

  it('are told apart in a claimed job, in lists and in what is found', async () => {
    const { id } = await test.jobs.addJob('t', null, { queue: 'render', partition: 'acme' });
    expect(await test.jobs.findJob(id)).toMatchObject({ queue: 'render', partition: 'acme' });
    const [job] = await test.jobs.getJobs('worker-of-partitions');
    expect(job).toMatchObject({ id, partition: 'acme' });
  });
});

describe('listPartitions', () => {
  it('lists those with jobs or settings, by name and page by page', async () => {
    await test.jobs.configurePartition('render', 'delta', { concurrency: 3, weight: 2 });
    await add('render', { acme: 2, beta: 1, gamma: 4 });
    await test.jobs.addJob('t', null, { queue: 'render', partition: 'beta', priority: 7, delayMs: HOUR });
    await test.jobs.addJob('t', null, { queue: 'zoo', partition: 'zeta' });
    await begin();
    await claim(1);
    const first = await test.jobs.listPartitions('render', { limit: 2 });
    const second = await test.jobs.listPartitions('render', { limit: 2, cursor: first.cursor! });
    expect([...first.items, ...second.items]).toEqual([
      { partition: 'acme', waiting: 1, running: 1, concurrency: Infinity, share: 1, weight: 1 },
      { partition: 'beta', waiting: 2, running: 0, concurrency: Infinity, share: 1, weight: 1 },
      { partition: 'delta', waiting: 0, running: 0, concurrency: 3, share: 1, weight: 2 },
      { partition: 'gamma', waiting: 4, running: 0, concurrency: Infinity, share: 1, weight: 1 },
    ]);
    expect(second.cursor).toBeNull();
  });

  it('reads each priority only for the partitions that have jobs of it', async () => {
    const specs = Array.from({ length: 300 }, (_, nth) => ({
      task: 't',
      payload: nth,
      queue: 'render',
      partition: `p${String(nth % 30).padStart(2, '0')}`,
      priority: nth,
    }));
    await test.jobs.addJobs(specs);
    await test.jobs.configurePartition('render', 'p30', { weight: 2 });
    const client = new pg.Client(test.url);
    await client.connect();
    await client.query('begin');
    const { rows } = await client.query(
      `select partition, waiting from jobs.list_partitions('render', 100, null, 100)`,
    );
    const { rows: scans } = await client.query<{ idx_scan: string }>(
      `select idx_scan from pg_stat_xact_user_tables where schemaname = 'jobs' and relname = 'jobs'`,
    );
    await client.end();
    expect(rows).toEqual([
      ...Array.from({ length: 30 }, (_, nth) => ({ partition: `p${String(nth).padStart(2, '0')}`, waiting: 10 })),
      { partition: 'p30', waiting: 0 },
    ]);
    expect(Number(scans[0]!.idx_scan)).toBeLessThan(1_500);
  });
});
