// Looks at lanes as pools make them, with what they remember.
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, jest } from '@jest/globals';
import pg from 'pg';
import type { JobManager } from '../../lib/index.js';
import type { LaneClaimResult } from '../../lib/interfaces/claim.interface.js';
import { LaneMemory } from '../../lib/manager/lane.memory.js';
import { eventually } from '../support/database.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';
import { asPool, lookAsPool, registerPool, type PoolLook } from '../support/pool.claims.js';

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
    jobs.rate_limits, jobs.rate_limit_states`);
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
const passWindow = () => test.sql(`update jobs.rate_limit_states set at = at - interval '1 hour'`);

describe('a queue that no claim has met', () => {
  const looks = () => jest.spyOn(jobs.engine.claims as unknown as { claimLanesOnce: () => unknown }, 'claimLanesOnce');
  beforeEach(() => unlimited('known'));
  afterEach(() => void jest.restoreAllMocks());

  it('gives its job before worse ones of queues that are known', async () => {
    await fill('known', 5, { priority: 5 });
    await fill('new', 2, { priority: 1 });
    expect(await took(2)).toEqual(['new', 'known']);
    // It is known now, and its limit is one.
    expect(await took(1)).toEqual(['known']);
  });

  it('is one of many, in as many priorities, and each gives in its order', async () => {
    await fill('known', 5, { priority: 9 });
    for (const [priority, queue] of ['z', 'y', 'x', 'w'].entries()) await fill(queue, 1, { priority });
    expect(await took(3)).toEqual(['z', 'y', 'x']);
    expect(await took(1)).toEqual(['w']);
    expect(await took(1)).toEqual(['known']);
  });

  it('is registered together with all others that the look can see, and takes its turn among them', async () => {
    const names = Array.from({ length: 60 }, (_, n) => `new-${100 + n}`);
    for (const name of ['known', ...names, 'new-0']) await fill(name, 1);
    const calls = looks();
    const all = await took(62);
    expect([new Set(all).size, calls.mock.calls.length]).toEqual([62, 2]);
  });

  it('costs a look nothing where none is met', async () => {
    await fill('known', 5);
    const calls = looks();
    expect(await took(3)).toHaveLength(3);
    expect(calls).toHaveBeenCalledTimes(1);
  });

  it('keeps nothing waiting while another transaction holds its name', async () => {
    const stranger = new pg.Client(test.url);
    await stranger.connect();
    await stranger.query(`begin; insert into jobs.job_queues (name) values ('held')`);
    await fill('held', 1, { priority: 1 });
    await fill('new', 1, { priority: 2 });
    await fill('known', 2, { priority: 3 });
    expect(await took(3)).toEqual(['new', 'known', 'known']);
    await stranger.query('rollback');
    await stranger.end();
    expect(await took(3)).toEqual(['held']);
  });

  it('is not passed by a claim by hand, nor by a settle that claims', async () => {
    await fill('known', 3, { priority: 5 });
    const [first] = (await look(1)).jobs;
    await fill('new', 1, { priority: 1 });
    const claimer = { ...asPool(POOL), label: POOL };
    const request = { job: first!, outcome: { kind: 'completed', result: null } as const, executionTimeMs: 1 };
    const filter = { taskIdentifiers: null, otherTasks: null, forbiddenFlags: null, worstPriority: null };
    const claim = { ...claimer, ...filter, limit: 1, maxCrashes: null, queue: null, memory: memory.next(1) };
    const values = jobs.engine.claims.valuesAfterSettle(claim, null);
    const answer = await jobs.engine.settlement.completeAndClaim(claimer, [request], values);
    const found = await jobs.engine.claims.readLanes(claim, answer.claimed);
    expect([payloads(found.jobs), found.report!.unknown, found.more]).toEqual([[], ['new'], true]);
    expect(payloads(await jobs.getJobs(WORKER, { batchSize: 1 }))).toEqual(['new']);
  });
});

describe('a lane that a claim has served', () => {
  it('is looked at again as soon as its limit has tokens, not at the next regular look', async () => {
    await jobs.registerRateLimit('smooth', { algorithm: 'smooth', capacity: 60, interval: HOUR });
    await jobs.addJobs(Array.from({ length: 5 }, (_, nth) => ({ task: 'x', payload: nth, rateLimitKey: 'smooth' })));
    expect(await took(1)).toEqual([0]);
    expect(memory.nextInMs).toBeLessThan(HOUR / 2);
  });
});

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

  it('comes to its end, however many lanes it passes on the way, before it begins again', async () => {
    memory = new LaneMemory(0);
    await jobs.addJobs(Array.from({ length: 450 }, (_, n) => ({ task: 'x', payload: 'full', queue: `q${n}` })));
    await test.sql(`insert into jobs.job_queues (name, paused) select 'q' || n, true from generate_series(0, 449) n`);
    await unlimited('zzz');
    await fill('zzz', 1);
    await test.sql(`update jobs.jobs set run_at = run_at - interval '1 hour'`);
    const found: unknown[] = [];
    for (let looks = 0; looks < 3; looks++) found.push(...(await took(8)));
    expect(found).toEqual(['zzz']);
  });

  it('comes when more lanes are told of than can be listed, wherever their stretches end', async () => {
    await unlimited(...Array.from({ length: 150 }, (_, n) => `q${n}`));
    await jobs.pauseQueue('zzz');
    await fill('zzz', 1);
    expect(await took(1)).toEqual([]);
    const ran: unknown[] = [];
    for (let n = 0; n < 150; n++) {
      await fill(`q${n}`, 1);
      memory.noteRunnable([`q${n}\u001f`]);
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
    await test.sql('truncate jobs.rate_limit_states');
    memory.noteRunnable(['q\u001f', 'q\u001f\u001fx']);
    expect(await took(8)).toHaveLength(2);
  });
});

describe('a lane whose head is for other pools', () => {
  const foreign = (count: number) =>
    jobs.addJobs(Array.from({ length: count }, () => ({ task: 'other', payload: null, queue: 'q' })));
  const mine = { taskIdentifiers: ['x'] };
  beforeEach(() => unlimited('q'));

  it('is walked to its end by one look after the other, each of which says that there is more', async () => {
    await foreign(1_600);
    await fill('q', 1);
    for (let n = 0; n < 3; n++) expect(await look(1, mine)).toMatchObject({ jobs: [], more: true });
    expect(await took(1, mine)).toEqual(['q']);
    expect(await look(1, mine)).toMatchObject({ jobs: [], more: false });
  });

  it('is walked on by full looks, however many come before the end', async () => {
    memory = new LaneMemory(0);
    await foreign(1_600);
    await fill('q', 1);
    for (let n = 0; n < 3; n++) expect(await took(1, mine)).toEqual([]);
    expect(await took(1, mine)).toEqual(['q']);
  });

  it('is read from its beginning when it is told of, also during a look, and by the full look after its end', async () => {
    const [first, second, third] = await fill('q', 3);
    const hide = (id: string) => test.sql(`update jobs.jobs set task = 'other' where id = $1`, [id]);
    const show = (id: string) => test.sql(`update jobs.jobs set task = 'x' where id = $1`, [id]);
    for (const { id } of [first!, second!, third!]) await hide(id);
    await foreign(600);
    while ((await look(1, mine)).more);
    await show(first!.id);
    expect(await took(1, mine)).toEqual([]);
    memory.noteRunnable(['q']);
    expect(await took(1, mine)).toEqual(['q']);

    memory.next(1);
    await hide(second!.id);
    memory.forget();
    const passing = look(1, mine);
    memory.noteRunnable(['q']);
    expect((await passing).jobs).toEqual([]);
    await show(second!.id);
    expect(await took(1, mine)).toEqual(['q']);

    await show(third!.id);
    memory = Object.assign(memory, { periodMs: 0 });
    await eventually(async () => (await took(1, mine)).length === 1);
  });
});

describe('a lane whose head others hold', () => {
  const holding = async <T>(ids: string[], work: () => Promise<T>): Promise<T> => {
    const stranger = new pg.Client(test.url);
    await stranger.connect();
    try {
      await stranger.query('begin');
      await stranger.query('select from jobs.jobs where id = any($1) for update', [ids]);
      return await work();
    } finally {
      await stranger.end();
    }
  };

  it('gives what lies behind them to a pool, however many they are', async () => {
    await jobs.configureQueue('q', { concurrency: 5 });
    const added = await fill('q', 305);
    const ids = added.slice(0, 300).map(({ id }) => id);
    expect(await holding(ids, () => eventually(async () => (await took(5)).length === 5))).toBe(true);
  });

  it('gives it to a claim by hand at once', async () => {
    await jobs.configureQueue('q', { concurrency: 5 });
    const added = await fill('q', 305);
    const ids = added.slice(0, 300).map(({ id }) => id);
    const claimed = await holding(ids, () => jobs.getJobs(WORKER, { batchSize: 5 }));
    expect(claimed.map(({ id }) => id)).toEqual(added.slice(300).map(({ id }) => id));
  });

  it('costs no more jobs of other lanes', async () => {
    await unlimited('q', 'r');
    const [first] = await fill('q', 1);
    await fill('r', 40);
    await holding([first!.id], async () => {
      await look(4);
      expect(memory.next(4).spares).toEqual([{ lane: 'q\u001f\u001f', jobs: 20 }]);
    });
  });
});
