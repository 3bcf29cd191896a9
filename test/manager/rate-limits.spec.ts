import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { InvalidArgumentError, type JobManager } from '../../lib/index.js';
import { createTestManager, OTHER, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;

beforeAll(async () => {
  test = await createTestManager();
  jobs = test.jobs;
});
afterAll(() => test.close());
beforeEach(() =>
  test.sql(
    'truncate jobs.jobs, jobs.job_bodies, jobs.job_history, jobs.job_queues, jobs.job_places, jobs.rate_limits, jobs.rate_limit_states, jobs.rate_limit_blocks',
  ),
);

const HOUR = 3_600_000;
const add = (count: number, options: object = {}) =>
  jobs.addJobs(Array.from({ length: count }, (_, n) => ({ task: 'x', payload: n, rateLimitKey: 'api', ...options })));
const claim = (batchSize = 100, worker = WORKER) => jobs.getJobs(worker, { batchSize });
const payloads = (claimed: { payload: unknown }[]): unknown[] => claimed.map(({ payload }) => payload);
/** Moves the limit's states into the past, as if so many intervals had gone by. */
const passWindows = (windows: number) =>
  test.sql(
    `with limits as (
      update jobs.rate_limits set window_started_at = window_started_at - $1 * interval_ms * interval '1 ms' returning *
    )
    update jobs.rate_limit_states s set at = at - $1 * interval_ms * interval '1 ms', full_at = full_at - $1 * interval_ms * interval '1 ms'
    from limits l where l.key = s.key`,
    [windows],
  );

describe('registerRateLimit (register-rate-limit)', () => {
  it('takes ms and SQL intervals', async () => {
    expect(await jobs.registerRateLimit('api', 5, 1_500)).toMatchObject({
      key: 'api',
      capacity: 5,
      intervalMs: 1_500,
      availableTokens: 5,
    });
    expect(await jobs.registerRateLimit('other', 5, '2 minutes')).toMatchObject({ intervalMs: 120_000 });
  });

  it.each([
    [0, 1_000],
    [1, 0],
    [1, 'soon'],
    [1, '-1 minute'],
    [1.5, 1_000],
  ])('refuses %p per %p', async (capacity, interval) => {
    await expect(jobs.registerRateLimit('api', capacity, interval)).rejects.toThrow(InvalidArgumentError);
  });

  it('keeps the current window and clamps tokens to a smaller capacity', async () => {
    const { lastRefillAt } = await jobs.registerRateLimit('api', 10, HOUR);
    await add(4);
    await claim();
    expect(await jobs.registerRateLimit('api', 3, HOUR)).toMatchObject({ availableTokens: 3, lastRefillAt });
    expect(await jobs.registerRateLimit('api', 5, HOUR)).toMatchObject({ availableTokens: 5, lastRefillAt });
  });
});

describe('a window', () => {
  const leave = (sql: string) => test.sql(`update jobs.rate_limit_states set at = clock_timestamp() ${sql}`);

  it.each([
    ['a claim', async () => expect(await claim()).toEqual([])],
    ['a refill', () => jobs.refillRateLimits()],
    ['a registration', () => jobs.registerRateLimit('api', 1, HOUR)],
  ])('that begins in the future is set back to now by %s, with what was taken in it', async (_, act) => {
    await jobs.registerRateLimit('api', 1, HOUR);
    await add(3);
    expect(await claim()).toHaveLength(1);
    await leave(`+ interval '5 hours'`);
    await act();
    expect(await claim()).toEqual([]);
    await passWindows(1);
    expect(await claim()).toHaveLength(1);
  });

  it('gives as many tokens as a registration with another interval says', async () => {
    await jobs.registerRateLimit('api', 1, 1_000);
    await add(3);
    expect(await claim()).toHaveLength(1);
    await passWindows(3);
    expect(await jobs.registerRateLimit('api', 1, HOUR)).toMatchObject({ availableTokens: 1 });
    expect(await claim()).toHaveLength(1);
    expect(await claim()).toEqual([]);
    await leave(`- interval '10 s'`);
    expect(await jobs.registerRateLimit('api', 1, 5_000)).toMatchObject({ availableTokens: 1 });
    expect(await claim()).toHaveLength(1);
  });
});

describe('a rate-limited job', () => {
  it('takes a token with its claim and waits where there is none', async () => {
    await jobs.registerRateLimit('api', 2, HOUR);
    await add(5);
    expect(payloads(await claim())).toEqual([0, 1]);
    expect(await claim()).toEqual([]);
    const waiting = (await jobs.listJobs({ status: 'available' })).items;
    expect(waiting).toHaveLength(3);
    const why = await jobs.explain(waiting[0]!.id);
    expect(why).toMatchObject({ reason: 'no_tokens' });
    expect(why.until!.getTime()).toBeGreaterThan(Date.now());
  });

  it('runs in the next window, without a refill by hand', async () => {
    await jobs.registerRateLimit('api', 2, HOUR);
    await add(5);
    await claim();
    await claim();
    await passWindows(1);
    expect(payloads(await claim())).toEqual([2, 3]);
    await passWindows(3); // no carry-over of unused windows
    expect(payloads(await claim())).toEqual([4]);
  });

  it('does not hold back other jobs, nor the rest of its queue', async () => {
    await jobs.registerRateLimit('api', 1, HOUR);
    await add(2, { queue: 'serial' });
    await jobs.addJobs([
      { task: 'x', payload: 'free', queue: 'serial' },
      { task: 'x', payload: 'plain' },
    ]);
    const first = await claim();
    expect(payloads(first)).toEqual([0, 'plain']);
    await jobs.completeJobs(WORKER, first, 1);
    expect(payloads(await claim())).toEqual(['free']);
  });

  it('the limit is never exceeded by racing workers, and windows are fixed', async () => {
    await jobs.registerRateLimit('api', 7, HOUR);
    await add(60);
    for (let window = 1; window <= 4; window++) {
      const claimed = await Promise.all(Array.from({ length: 8 }, (_, n) => claim(3, `${OTHER}-${n}`)));
      const more = await Promise.all(Array.from({ length: 8 }, (_, n) => claim(3, `${OTHER}-${n}`)));
      expect([...claimed, ...more].flat()).toHaveLength(7);
      await passWindows(1);
    }
  });
});

describe('refillRateLimits (refill-rate-limits)', () => {
  it('refills every limit whose window has passed and lets waiting jobs in', async () => {
    await jobs.registerRateLimit('api', 2, HOUR);
    await jobs.registerRateLimit('idle', 2, HOUR);
    await add(4);
    await claim();
    expect(await jobs.refillRateLimits()).toBe(0);
    await passWindows(1);
    expect(await jobs.refillRateLimits()).toBe(1);
    expect(await claim()).toHaveLength(2);
  });
});
