// Looks at lanes as pools make them, with what they remember.
import { afterAll, beforeAll, beforeEach, describe, expect, it, jest } from '@jest/globals';
import type { JobManager } from '../../lib/index.js';
import type { LaneClaimResult } from '../../lib/interfaces/claim.interface.js';
import { LaneMemory } from '../../lib/manager/lane.memory.js';
import { createTestManager, OTHER, WORKER, type TestManager } from '../support/manager.js';
import { lookAsPool, registerPool, type PoolLook } from '../support/pool.claims.js';

const POOL = 'pool-that-looks';
const HOUR = 3_600_000;

let test: TestManager;
let jobs: JobManager;
let memory: LaneMemory;

beforeAll(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  await registerPool(jobs, POOL, HOUR);
});
afterAll(() => test.close());
beforeEach(async () => {
  memory = new LaneMemory(HOUR);
  await test.sql(`truncate jobs.jobs, jobs.job_bodies, jobs.job_history, jobs.job_queues, jobs.job_places,
    jobs.rate_limits, jobs.rate_limit_windows`);
});

const payloads = (claimed: { payload: unknown }[]): unknown[] => claimed.map(({ payload }) => payload);
const look = (limit: number, options: PoolLook = {}): Promise<LaneClaimResult> =>
  lookAsPool(jobs, POOL, limit, memory, options);
const took = async (limit: number, options: PoolLook = {}): Promise<unknown[]> =>
  payloads((await look(limit, options)).jobs);
const unlimited = async (...queues: string[]): Promise<void> => {
  for (const queue of queues) await jobs.configureQueue(queue, { concurrency: Infinity });
};
const fill = (queue: string, count: number, options: object = {}) =>
  jobs.addJobs(Array.from({ length: count }, () => ({ task: 'x', payload: queue, queue, ...options })));
const passWindow = () => test.sql(`update jobs.rate_limit_windows set started_at = started_at - interval '1 hour'`);

describe('turns', () => {
  beforeEach(() => unlimited('a', 'b', 'c'));

  it('go round the queues that share a rate limit, however few tokens a window has', async () => {
    await jobs.registerRateLimit('shared', 1, HOUR);
    for (const queue of ['a', 'b', 'c']) await fill(queue, 4, { rateLimitKey: 'shared' });
    const order: unknown[] = [];
    for (let window = 0; window < 6; window++) {
      memory.forget();
      order.push(...(await took(8)));
      await passWindow();
    }
    expect(order).toEqual(['a', 'b', 'c', 'a', 'b', 'c']);
  });

  it('of one priority go on where others are served between them', async () => {
    await jobs.registerRateLimit('shared', 1, HOUR);
    for (const queue of ['a', 'b', 'c']) await fill(queue, 4, { rateLimitKey: 'shared' });
    await fill('a', 20, { priority: 5 });
    const order: unknown[] = [];
    for (let window = 0; window < 6; window++) {
      memory.forget();
      const found = await look(2);
      order.push(...payloads(found.jobs.filter(({ priority }) => priority === 0)));
      await passWindow();
    }
    expect(order).toEqual(['a', 'b', 'c', 'a', 'b', 'c']);
  });

  it('go on from one claim by hand to the next', async () => {
    for (const queue of ['a', 'b', 'c']) await fill(queue, 2);
    const order: unknown[] = [];
    for (let n = 0; n < 6; n++) order.push(...payloads(await jobs.getJobs(WORKER, { batchSize: 1 })));
    expect(order).toEqual(['a', 'b', 'c', 'a', 'b', 'c']);
  });
});

describe('the full look', () => {
  it('is not put off by a look that had to wait, nor by the first ones', async () => {
    jest.useFakeTimers({ doNotFake: ['nextTick', 'setImmediate', 'setTimeout', 'clearTimeout', 'setInterval'] });
    try {
      memory = new LaneMemory(500);
      await jobs.pauseQueue('paused');
      await fill('paused', 1);
      const comesNext = (): boolean => memory.next(1).blocked.length === 0;
      for (const ms of [2_000, 1, 3_000, 1_000, 1, 1]) {
        await look(1, { ms });
        expect(comesNext()).toBe(false);
        jest.advanceTimersByTime(600);
        expect(comesNext()).toBe(true);
      }
    } finally {
      jest.useRealTimers();
    }
  });

  it('comes when more lanes are told of than can be listed, wherever their stretches end', async () => {
    await unlimited(...Array.from({ length: 150 }, (_, n) => `q${n}`));
    await jobs.pauseQueue('zzz');
    await fill('zzz', 1);
    expect(await took(1)).toEqual([]);
    const ran: unknown[] = [];
    for (let n = 0; n < 150; n++) {
      await fill(`q${n}`, 1);
      memory.tell([`q${n}\u001f`]);
    }
    await test.sql(`update jobs.jobs set run_at = run_at - interval '1 hour'`);
    for (let n = 0; n < 150; n++) ran.push(...(await took(1)));
    expect(new Set(ran).size).toBe(150);
  });
});

describe('a look', () => {
  it('takes nothing of a worse priority while a lane has more than its share', async () => {
    await unlimited('few', 'many', 'worse');
    await fill('few', 4);
    await fill('many', 40);
    await fill('worse', 40, { priority: 10 });
    const order: unknown[] = [];
    while (order.length < 84) {
      const found = await took(8);
      expect(found).toHaveLength(Math.min(8, 84 - order.length));
      order.push(...found);
    }
    expect(order.lastIndexOf('many')).toBeLessThan(order.indexOf('worse'));
  });

  it('looks at all lanes of a queue that was told of, although one of them was told of as well', async () => {
    await unlimited('q');
    for (const key of ['x', 'z']) {
      await jobs.registerRateLimit(key, 1, HOUR);
      await fill('q', 3, { rateLimitKey: key });
    }
    expect(await took(8)).toHaveLength(2);
    await test.sql(`update jobs.jobs set run_at = run_at - interval '1 hour'`);
    expect(await took(8)).toEqual([]);
    await test.sql('truncate jobs.rate_limit_windows');
    memory.tell(['q\u001f', 'q\u001f\u001fx']);
    expect(await took(8)).toHaveLength(2);
  });
});
