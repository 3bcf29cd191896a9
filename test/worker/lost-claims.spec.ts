// A pool asks before it believes that a claim is its own: of claims that others have ended, of its lease, and of what another
// pool with the same worker id holds.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  LeaseLostError,
  type JobContext,
  type JobManager,
  type PlainTask,
  type WorkerOptions,
  type WorkerPool,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
const pools: WorkerPool[] = [];

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
});
afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.forceStop()));
  await test.close();
});

async function start(tasks: Record<string, PlainTask>, options: WorkerOptions, workerId?: string, manager = jobs) {
  const pool = createWorkerPool({
    jobs: manager,
    tasks,
    options: { pollIntervalMs: 50, ...options },
    ...(workerId && { workerId }),
  });
  pools.push(pool);
  return pool.start();
}

const untilAborted = ({ signal }: JobContext): Promise<unknown> =>
  new Promise((resolve) => signal.addEventListener('abort', () => resolve(signal.reason), { once: true }));

const MINUTE = 60_000;
const ENDS: [string, (id: string) => Promise<unknown>][] = [
  ['forceUnlockJobs', () => jobs.forceUnlockJobs()],
  ['revokeLease', async (id) => jobs.revokeLease(id, (await jobs.findJob(id))!.revision)],
  ['permanentlyFailJobs', (id) => jobs.permanentlyFailJobs([id])],
];

describe.each([
  ['at once, by LISTEN', { listen: true, keepaliveMs: 5 * MINUTE, leaseMs: 20 * MINUTE }],
  ['with the next heartbeat, without LISTEN', { listen: false, keepaliveMs: 100, leaseMs: 20 * MINUTE }],
])('a handler whose claim is taken away hears of it %s', (_how, options) => {
  it.each(ENDS)('from %s', async (_what, end) => {
    const reasons: unknown[] = [];
    const hang = async (_payload: unknown, ctx: JobContext): Promise<void> =>
      void (ctx.attempt === 1 && !reasons.length && reasons.push(await untilAborted(ctx)));
    const pool = await start({ hang }, options);
    const { id } = await jobs.addJob('hang', 1);
    await eventually(() => pool.activeWorkers === 1);
    await end(id);
    await eventually(() => reasons.length === 1);
    expect(reasons).toEqual([expect.any(LeaseLostError)]);
  });
});

/** Holds up everything in this process. */
const blockTheLoop = (ms: number): unknown => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);

describe('a pool that could not renew its lease in time', () => {
  it('starts no job of its buffer before it has', async () => {
    const { user, host, port, database, password } = new pg.Client(test.url);
    // A connection that cannot be handed to a thread: what blocks the loop keeps the heart from beating.
    const manager = await createJobManager({
      connection: { user: user!, host, port, database: database!, password: async () => password ?? '' },
    });
    let isLate = false;
    let beats = 0;
    const { registry } = manager.engine;
    const heartbeat = registry.heartbeat.bind(registry);
    registry.heartbeat = async (incarnation) => {
      const counts = isLate;
      // Time enough for a job to start that does not wait for it.
      await new Promise((resolve) => setTimeout(resolve, 500));
      return heartbeat(incarnation).finally(() => (beats += Number(counts)));
    };
    await jobs.addJobs([1, 2].map((payload) => ({ task: 'block', payload })));
    const beatsAtStart: number[] = [];
    const block = (): void => {
      beatsAtStart.push(beats);
      if (beatsAtStart.length === 1) blockTheLoop(3_500);
      isLate = true;
    };
    await start({ block }, { concurrency: 1, leaseMs: 3_000, keepaliveMs: 1_000 }, undefined, manager);
    await eventually(() => beatsAtStart.length === 2);
    await Promise.all(pools.splice(0).map((pool) => pool.stop()));
    await manager.close();
    expect(beatsAtStart[1]).toBeGreaterThan(0);
  });
});

describe('two pools with the same worker id', () => {
  it('leave each other’s claims alone, also those in a limited queue, which each compares with what it holds', async () => {
    const aborted: unknown[] = [];
    const hang = async (_payload: unknown, ctx: JobContext): Promise<void> =>
      void aborted.push(await untilAborted(ctx));
    const options = { keepaliveMs: 100, leaseMs: MINUTE };
    const first = await start({ hang }, options, 'worker-host-0');
    const { id } = await jobs.addJob('hang', 1, { queue: 'serial' });
    await eventually(() => first.activeWorkers === 1);
    let beats = 0;
    const { registry } = jobs.engine;
    const releaseUnknown = registry.releaseUnknown.bind(registry);
    registry.releaseUnknown = (...asked) => releaseUnknown(...asked).finally(() => beats++);
    await start({ other: () => 1 }, options, 'worker-host-0');
    await eventually(() => beats >= 6);
    expect(aborted).toEqual([]);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'running', attempts: 1 });
    expect(await test.sql('select from jobs.workers where stopped_at is null')).toHaveLength(2);
  });
});

it('a pool that was taken for dead starts nothing of what its buffer held: other claims have these jobs', async () => {
  const lost: unknown[] = [];
  const events = createCollectingEvents();
  const t = async (n: unknown, ctx: JobContext): Promise<void> => {
    if (n === 0 && ctx.attempt === 1) lost.push(await untilAborted(ctx));
  };
  const options = { concurrency: 1, keepaliveMs: 100, leaseMs: 5_000, pollIntervalMs: 50, listen: false };
  const pool = createWorkerPool({ jobs, tasks: { t }, events, options });
  pools.push(await pool.start());
  await jobs.addJobs(Array.from({ length: 20 }, (_, payload) => ({ task: 't', payload })));
  await eventually(() => pool.activeWorkers === 1 && pool.queue.jobs().length > 0);
  // A heartbeat may come in between.
  await eventually(async () => {
    await test.sql(`update jobs.workers set heartbeat_at = now() - interval '1 h'`);
    return (await jobs.engine.registry.rescue()) > 0;
  });
  await eventually(async () => !(await test.sql('select from jobs.jobs')).length, { timeoutMs: 20_000 });
  expect(lost).toEqual([expect.any(LeaseLostError)]);
  expect(events.ofType('job.started').map(({ job }) => job.payload)).toHaveLength(21);
});

/** Calls of `method` of the claims, from the `nth` on, find the live jobs locked as a whole, until `letGo`. */
function lockBefore(method: string, nth: number): { isHeldUp: () => boolean; letGo: () => Promise<void> } {
  const stranger = new pg.Client(test.url);
  const { claims } = jobs.engine as unknown as { claims: Record<string, (...args: unknown[]) => Promise<unknown>> };
  const call = claims[method]!.bind(claims);
  let calls = 0;
  let failed = false;
  claims[method] = async (...args) => {
    if (++calls === nth) {
      await stranger.connect();
      await stranger.query('begin');
      await stranger.query('lock table jobs.jobs in access exclusive mode');
    }
    return call(...args).catch((error: unknown) => {
      failed = true;
      throw error;
    });
  };
  const letGo = async (): Promise<void> => {
    claims[method] = call;
    await stranger.query('rollback');
    await stranger.end();
  };
  return { isHeldUp: () => failed, letGo };
}

describe('a claim that is in hand when the next one meets a locked table', () => {
  it('of plain jobs is run, though the round has failed', async () => {
    await jobs.addJobs(['one', 'two'].flatMap((task) => [1, 2, 3].map((payload) => ({ task, payload }))));
    const lock = lockBefore('claimPlain', 2);
    let ran = 0;
    const run = (): void => void ran++;
    // A claim for each task with a limit of its own, in one round.
    await start({ one: run, two: { handler: run, concurrency: 2 } }, { leaseMs: 20 * MINUTE, keepaliveMs: 5 * MINUTE });
    await eventually(() => lock.isHeldUp());
    await lock.letGo();
    await eventually(() => ran === 6);
    expect(lock.isHeldUp()).toBe(true);
  });

  it('of queues is handed out, though a queue that no claim had met comes late', async () => {
    await jobs.configureQueue('known', { concurrency: 1 });
    await jobs.addJob('t', 'known', { queue: 'known', priority: -1 });
    await jobs.addJob('t', 'new', { queue: 'new' });
    const lock = lockBefore('claimLanesOnce', 2);
    const claimed = await jobs.getJobs('by-hand-0001', { batchSize: 2 });
    await lock.letGo();
    expect(claimed.map(({ payload }) => payload)).toEqual(['known']);
    expect((await jobs.getJobs('by-hand-0001', { batchSize: 2 })).map(({ payload }) => payload)).toEqual(['new']);
  });
});
