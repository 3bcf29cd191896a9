// Settles of a pool that claim in the same transaction, by what the pool remembers of lanes.
import { afterAll, beforeAll, beforeEach, expect, it } from '@jest/globals';
import pg from 'pg';
import { LaneMemory } from '../../lib/manager/lane.memory.js';
import { claimForPool, completeAndClaim, type HeldClaim } from '../invariants/actions.js';
import { watchLimits } from '../invariants/tables.js';
import { createTestManager, type TestManager } from '../support/manager.js';
import { registerPool } from '../support/pool.claims.js';

const POOL = 'pool-that-settles';
const HOUR = 3_600_000;

let test: TestManager;
let memory: LaneMemory;
beforeAll(async () => {
  test = await createTestManager();
  await registerPool(test.jobs, POOL, HOUR);
});
afterAll(() => test.close());
beforeEach(async () => {
  memory = new LaneMemory(HOUR);
  await test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_history, jobs.job_queues, jobs.job_places');
});

const look = (batch: number) => ({ batch, filter: 0, share: batch });
const add = (queue: string, payloads: unknown[]) =>
  test.jobs.addJobs(
    payloads.map((payload) => ({ task: 'x', payload, queue, runAt: new Date(Date.now() - HOUR), maxAttempts: 3 })),
  );
const toHeld = (job: HeldClaim['job']): HeldClaim => ({ worker: POOL, job });
const claim = async (batch: number): Promise<HeldClaim[]> =>
  (await claimForPool(test.jobs, POOL, { ...look(batch), plain: false }, memory)).map(toHeld);
const completeAnd = async (claims: HeldClaim[], batch: number, alone: boolean): Promise<HeldClaim[]> =>
  (await completeAndClaim(test.jobs, claims, { ...look(batch), alone }, memory)).found!.jobs.map(toHeld);
const payloads = (claims: HeldClaim[]): unknown[] => claims.map(({ job }) => job.payload);

it('a job that a stranger holds is not passed over by those that come after it has let go', async () => {
  await test.jobs.configureQueue('narrow', { concurrency: 2 });
  const [, , third] = await add('narrow', [1, 2, 3, 4, 5, 6]);
  const first = await claim(2);
  const stranger = new pg.Client(test.url);
  await stranger.connect();
  await stranger.query('begin');
  await stranger.query('select from jobs.jobs where id = $1 for update', [third!.id]);
  const others = [...(await completeAnd(first, 2, true)), ...(await claim(1))];
  await stranger.query('rollback');
  await stranger.end();
  expect(payloads(others)[0]).toBe(4);
  expect(payloads(await completeAnd(others, 1, true))).toEqual([3]);
});

it('a queue that no claim has met before is looked at by the next claim', async () => {
  await add('a', [1, 2]);
  await add('c', ['not now']);
  await test.jobs.pauseQueue('c');
  const first = await claim(1);
  expect(await claim(1)).toEqual([]);
  await add('b', [3]);
  memory.noteRunnable(['b\x1f']);
  // Nothing is taken before what may be better.
  expect(payloads(await completeAnd(first, 2, false))).toEqual([]);
  expect(new Set(payloads(await claim(2)))).toEqual(new Set([2, 3]));
});

it('two pools that claim by it side by side run each job once, one at a time in each serial queue', async () => {
  await watchLimits(test.sql);
  const queues = ['q', 'r'];
  for (const queue of queues)
    await add(
      queue,
      Array.from({ length: 30 }, (_, n) => n),
    );
  const ran: string[] = [];
  const live = async (worker: string): Promise<void> => {
    const own = new LaneMemory(0);
    await registerPool(test.jobs, worker, HOUR);
    for (let held: HeldClaim[] = []; ran.length < 60;) {
      const found = held.length
        ? (await completeAndClaim(test.jobs, held, { ...look(2), alone: ran.length % 3 > 0 }, own)).found!.jobs
        : await claimForPool(test.jobs, worker, { ...look(2), plain: false }, own);
      held = found.map((job) => ({ worker, job }));
      ran.push(...found.map(({ id }) => id));
    }
  };
  await Promise.all(['one', 'other'].map(live));
  expect(new Set(ran).size).toBe(60);
});
