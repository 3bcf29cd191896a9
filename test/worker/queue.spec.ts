import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import pg from 'pg';
import {
  AlreadyRunningError,
  createCollectingEvents,
  createWorkerPool,
  type CollectingJobEvents,
  type WorkerOptions,
  type WorkerPool,
  JobQueue,
  StoppedError,
  type JobManager,
  type JobQueueOptions,
} from '../../lib/index.js';
import { PollTimer } from '../../lib/worker/poll.timer.js';
import { eventually } from '../support/database.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
const queues: JobQueue[] = [];
const pools: WorkerPool[] = [];

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
});
afterEach(async () => {
  await Promise.all([
    ...queues.splice(0).map((queue) => queue.stop()),
    ...pools.splice(0).map((pool) => pool.forceStop()),
  ]);
  await test.close();
});

function create(options: Partial<JobQueueOptions> = {}): JobQueue {
  const queue = new JobQueue({ jobs, workerId: WORKER, pollIntervalMs: 50, ...options });
  queues.push(queue);
  return queue;
}

const add = (count: number, options: object = {}) =>
  jobs.addJobs(Array.from({ length: count }, (_, n) => ({ task: 'x', payload: n, ...options })));

describe('JobQueue (create-queue)', () => {
  it('starts once and returns itself (start!, running?, worker-id)', () => {
    const queue = create();
    expect([queue.running, queue.workerId, queue.depth]).toEqual([false, WORKER, 0]);
    expect(queue.start()).toBe(queue);
    expect(queue.running).toBe(true);
    expect(() => queue.start()).toThrow(AlreadyRunningError);
  });

  it('never starts again after a stop', async () => {
    const queue = create();
    queue.start();
    await queue.stop();
    expect(queue.running).toBe(false);
    expect(() => queue.start()).toThrow(StoppedError);
  });

  it('takeJob (take-job!) gives the next job, or null when the time is up', async () => {
    const queue = create();
    queue.start();
    expect(await queue.takeJob(20)).toBeNull();
    await add(2);
    expect(await queue.takeJob(5_000)).toMatchObject({ payload: 0, status: 'running', lockedBy: WORKER });
    expect(await queue.takeJob(5_000)).toMatchObject({ payload: 1 });
  });

  it('claims ahead into its buffer, up to its size (depth, stats)', async () => {
    await add(40);
    const queue = create({ queueSize: 20 });
    queue.start();
    await eventually(() => queue.depth === 20);
    expect(queue.stats()).toEqual({ fetched: 20, dispatched: 0, staleDropped: 0, refetchCount: 1, errors: 0 });
    for (let n = 0; n < 15; n++) expect(await queue.takeJob(1_000)).toMatchObject({ payload: n });
    await eventually(() => queue.stats().fetched > 20);
    expect(queue.stats().dispatched).toBe(15);
    expect((await jobs.counts()).byStatus.running).toBeLessThanOrEqual(35);
  });

  it('dispatches by priority, also what it fetched later', async () => {
    await add(3, { priority: 5 });
    const queue = create({ queueSize: 10, refetchThreshold: 9 });
    queue.start();
    await eventually(() => queue.depth === 3);
    await jobs.addJob('x', 'urgent', { priority: -1 });
    await eventually(() => queue.depth === 4);
    expect(await queue.takeJob(1_000)).toMatchObject({ payload: 'urgent' });
  });

  it('never buffers jobs of limited queues, rate limits, or on their last attempt', async () => {
    await jobs.registerRateLimit('limit', 5, '1 hour');
    await jobs.addJobs([
      { task: 'x', payload: 'queue', queue: 'q' },
      { task: 'x', payload: 'limited', rateLimitKey: 'limit' },
      { task: 'x', payload: 'last', maxAttempts: 1 },
      { task: 'x', payload: 'plain' },
    ]);
    const queue = create();
    queue.start();
    await eventually(() => queue.depth === 1);
    expect((await jobs.counts()).byStatus).toMatchObject({ running: 1, available: 3 });
    const taken = [];
    for (let n = 0; n < 4; n++) taken.push((await queue.takeJob(5_000))?.payload);
    expect(new Set(taken)).toEqual(new Set(['last', 'limited', 'plain', 'queue']));
  });

  it('stop (stop!) gives the undispatched jobs back at once and returns them', async () => {
    const added = await add(5);
    const queue = create();
    queue.start();
    await eventually(() => queue.depth === 5);
    expect(await queue.takeJob(1_000)).toMatchObject({ payload: 0 });
    const left = await queue.stop();
    expect(left.map(({ payload }) => payload)).toEqual([1, 2, 3, 4]);
    for (const { id } of added.slice(1)) {
      expect(await jobs.findJob(id)).toMatchObject({ status: 'available', attempts: 0, lockedBy: null });
    }
    expect(await queue.takeJob(1_000)).toBeNull();
  });

  it('jobs that get stale in the buffer go back without counting an attempt', async () => {
    await add(3);
    const queue = create({ queueTtlMs: 60, pollIntervalMs: 20, queueSize: 3 });
    queue.start();
    await eventually(() => queue.stats().staleDropped >= 3);
    await queue.stop();
    expect((await jobs.listJobs()).items.map(({ status, attempts }) => [status, attempts])).toEqual(
      Array(3).fill(['available', 0]),
    );
  });

  it('offerJobs (offer-jobs!) re-dispatches without a trace in the history', async () => {
    const [job] = await add(1);
    const claimed = await jobs.getJobs(WORKER);
    const queue = create();
    queue.offerJobs(claimed);
    expect(queue.depth).toBe(1);
    expect(await queue.takeJob(0)).toMatchObject({ id: job!.id });
    expect(await jobs.jobHistory(job!.id)).toMatchObject([{ status: 'started' }]);
  });

  it('gives jobs that were offered back after queueTtlMs, also before it starts', async () => {
    const [job] = await add(1);
    const queue = create({ queueTtlMs: 20 });
    queue.offerJobs(await jobs.getJobs(WORKER));
    const offeredAt = performance.now();
    await eventually(() => performance.now() - offeredAt > 20);
    expect(await queue.takeJob(0)).toBeNull();
    expect(queue.stats()).toMatchObject({ staleDropped: 1, dispatched: 0 });
    await eventually(async () => (await jobs.findJob(job!.id))?.status === 'available');
    expect(await jobs.findJob(job!.id)).toMatchObject({ attempts: 0, lockedBy: null });
  });

  it('fetches no more until the buffer is down to refetchThreshold, however slow its takers are', async () => {
    await add(100);
    const queue = create({ queueSize: 20, refetchThreshold: 5 });
    queue.start();
    await eventually(() => queue.depth === 20);
    for (let n = 0; n < 14; n++) {
      // As after a pause of the taker: lanes are looked at before the next job of the buffer is handed out.
      queue.lookAgain();
      expect(await queue.takeJob(5_000)).toMatchObject({ payload: n });
      expect(queue.stats().fetched).toBe(20);
    }
    await queue.takeJob(5_000);
    await eventually(() => queue.stats().fetched > 20);
  });

  it('only claims what it was told to', async () => {
    await jobs.addJobs([
      { task: 'a', payload: 'a' },
      { task: 'b', payload: 'flagged', flags: ['f'] },
      { task: 'b', payload: 'b' },
    ]);
    const queue = create({ taskIdentifiers: ['b'], forbiddenFlags: ['f'] });
    queue.start();
    expect(await queue.takeJob(5_000)).toMatchObject({ payload: 'b' });
    expect(await queue.takeJob(100)).toBeNull();
  });

  it('finds a job that was committed late, with a run-at before what it has read', async () => {
    const queue = create();
    queue.start();
    await add(1);
    await queue.takeJob(5_000);
    await jobs.addJob('x', 'late', { runAt: new Date(0) });
    expect(await queue.takeJob(5_000)).toMatchObject({ payload: 'late' });
  });

  it('survives a claim that fails', async () => {
    const errors: unknown[] = [];
    const queue = create({ onError: (error) => errors.push(error) });
    await test.sql('alter table jobs.jobs rename to gone');
    queue.start();
    await eventually(() => queue.stats().errors >= 1);
    await test.sql('alter table jobs.gone rename to jobs');
    await add(1);
    expect(await queue.takeJob(10_000)).toMatchObject({ payload: 0 });
    expect(errors.length).toBeGreaterThan(0);
  });
});

describe('idle polling (max-poll-interval)', () => {
  it('backs off from pollIntervalMs towards maxPollIntervalMs, and is back at once when there is work', async () => {
    const pauses = jest.spyOn(PollTimer.prototype, 'sleep');
    const queue = create({ pollIntervalMs: 10, maxPollIntervalMs: 3_600_000 });
    queue.start();
    await eventually(() => pauses.mock.calls.length >= 8);
    const [first, ...others] = pauses.mock.calls.map(([ms]) => ms);
    pauses.mockRestore();
    expect(others[6]).toBeGreaterThan(10 * first!);
    await add(1);
    expect(await queue.takeJob(60_000)).not.toBeNull();
  });
});

describe('waking', () => {
  const HOUR = 3_600_000;
  let events: CollectingJobEvents;

  async function start(
    options: WorkerOptions = { pollIntervalMs: HOUR },
    handler: (n: number) => void = () => undefined,
  ) {
    events = createCollectingEvents();
    const pool = createWorkerPool({ jobs, events, tasks: { x: handler }, options });
    pools.push(pool);
    await pool.start();
  }

  const completed = (count: number) => eventually(() => events.ofType('job.completed').length === count);

  it('a notification wakes an idle pool long before its poll', async () => {
    await start();
    await jobs.addJob('x', 1);
    expect(await completed(1)).toBe(true);
  });

  it('so does the commit of a transaction that added a job', async () => {
    await start();
    const client = new pg.Client(test.url);
    await client.connect();
    try {
      await client.query('begin');
      await jobs.addJob('x', 1, { manager: client });
      expect(events.ofType('job.completed')).toEqual([]);
      await client.query('commit');
    } finally {
      await client.end();
    }
    expect(await completed(1)).toBe(true);
  });

  it('a LISTEN connection that was cut comes back', async () => {
    await start();
    const listeners = () =>
      test.sql<{ pid: number }>(
        `select pid from pg_stat_activity where query like 'listen %' and datname = current_database()`,
      );
    const [before] = await listeners();
    await test.sql('select pg_terminate_backend($1)', [before!.pid]);
    await eventually(async () => (await listeners()).some(({ pid }) => pid !== before!.pid));
    await jobs.addJob('x', 1);
    expect(await completed(1)).toBe(true);
    expect(events.ofType('worker.error')).toHaveLength(1);
  });

  it('polling alone finds jobs', async () => {
    await start({ pollIntervalMs: 20, listen: false });
    await jobs.addJob('x', 1, { notify: false });
    expect(await completed(1)).toBe(true);
    expect(
      await test.sql(`select from pg_stat_activity where query like 'listen %' and datname = current_database()`),
    ).toEqual([]);
  });

  it('a rate limit’s next window wakes the pool by itself', async () => {
    await jobs.registerRateLimit('limit', 1, 200);
    await start();
    await add(4, { rateLimitKey: 'limit' });
    expect(await completed(4)).toBe(true);
  });

  it('a serial queue runs through without waiting for polls, in order', async () => {
    const ran: unknown[] = [];
    await add(30, { queue: 'serial' });
    await start(undefined, (n) => void ran.push(n));
    await eventually(() => ran.length === 30);
    expect(ran).toEqual(Array.from({ length: 30 }, (_, n) => n));
  });

  it('a serial queue’s settles claim the next job by the same commit, and tell of the end before the next start', async () => {
    const { settlement } = jobs.engine;
    const real = settlement.completeAndClaim.bind(settlement);
    let both = 0;
    settlement.completeAndClaim = (...args) => (both++, real(...args));
    await add(30, { queue: 'serial' });
    await start();
    await completed(30);
    expect(both).toBeGreaterThan(0);
    const told = events.collected.filter(({ type }) => type === 'job.started' || type === 'job.completed');
    expect(told.map(({ type }) => type)).toEqual(
      Array.from({ length: 30 }, () => ['job.started', 'job.completed']).flat(),
    );
  });
});

describe('tasks with a limit of their own', () => {
  const start = async (tasks: Parameters<typeof createWorkerPool>[0]['tasks'], options: WorkerOptions) => {
    const pool = createWorkerPool({ jobs, tasks, options: { pollIntervalMs: 50, ...options } });
    pools.push(pool);
    await pool.start();
  };
  const begun: string[] = [];
  const slowly = (name: string) => async (): Promise<void> => {
    begun.push(name);
    await new Promise((resolve) => setTimeout(resolve, 5));
  };

  it.each([{}, { queue: 'wide' }])('start while a backlog of other jobs lasts (%j)', async (options) => {
    begun.length = 0;
    await jobs.configureQueue('wide', { concurrency: 50 });
    await add(400);
    await jobs.addJobs(Array.from({ length: 20 }, () => ({ task: 'limited', payload: 1, ...options })));
    await start({ x: slowly('x'), limited: { handler: slowly('limited'), concurrency: 2 } }, { concurrency: 4 });
    await eventually(() => begun.length === 420, { timeoutMs: 30_000 });
    expect(begun.lastIndexOf('limited')).toBeLessThan(begun.lastIndexOf('x'));
  });

  it('keep others from nothing: as urgent ones take turns', async () => {
    begun.length = 0;
    await jobs.addJobs(Array.from({ length: 200 }, () => ({ task: 'limited', payload: 1 })));
    await add(40);
    await start({ x: slowly('x'), limited: { handler: slowly('limited'), concurrency: 100 } }, { concurrency: 2 });
    await eventually(() => begun.length === 240, { timeoutMs: 30_000 });
    expect(begun.lastIndexOf('x')).toBeLessThan(begun.lastIndexOf('limited'));
  });
});

describe('a claim whose answer comes after the pool was taken for dead', () => {
  it.each(['claimPlain', 'claimLanes'] as const)('brings nothing (%s)', async (kind) => {
    const { claims } = jobs.engine;
    const real = claims[kind].bind(claims) as (request: never) => Promise<{ jobs: unknown[] }>;
    let answered!: () => void;
    const answer = new Promise<void>((resolve) => (answered = resolve));
    let claimed = 0;
    (claims as any)[kind] = async (request: never) => {
      const result = await real(request);
      claimed += result.jobs.length;
      if (claimed) await answer;
      return result;
    };
    await add(3, kind === 'claimLanes' ? { queue: 'q' } : {});
    const queue = create();
    queue.start();
    const waiting = queue.takeJob(200);
    await eventually(() => claimed > 0);
    queue.dropAll();
    answered();
    expect(await waiting).toBeNull();
    expect(queue.depth).toBe(0);
  });
});
