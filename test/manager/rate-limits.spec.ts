import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
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
      update jobs.rate_limits set window_started_at = window_started_at - $1::float8 * interval_ms * interval '1 ms' returning *
    )
    update jobs.rate_limit_states s set at = at - $1::float8 * interval_ms * interval '1 ms', full_at = full_at - $1::float8 * interval_ms * interval '1 ms'
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

  it.each<[string, object, RegExp]>([
    ['an algorithm that there is not', { algorithm: 'slidng' }, /did you mean sliding/],
    ['a burst beside windows', { algorithm: 'sliding', burst: 3 }, /burst beside algorithm 'bucket' alone/],
    [
      'a burst that takes ages to come back',
      { algorithm: 'bucket', capacity: 1, interval: 1e12, burst: 3 },
      /comes back within 1e12 ms/,
    ],
    ['an interval of ages', { interval: '40 years' }, /from 1 ms to 1e12 ms/],
    ['no capacity', { capacity: undefined }, /capacity to be an integer from 1/],
    ['an option that there is not', { intervalMs: 5 }, /did you mean interval/],
  ])('refuses %s', async (_, wrong, message) => {
    const refused = jobs.registerRateLimit('api', { capacity: 5, interval: 1_000, ...wrong });
    await expect(refused).rejects.toThrow(InvalidArgumentError);
    await expect(refused).rejects.toThrow(message);
  });

  it.each([
    ['fixed', {}, { burst: 5, availableTokens: 5 }],
    ['sliding', {}, { burst: 5, availableTokens: 5 }],
    ['bucket', {}, { burst: 5, availableTokens: 5 }],
    ['bucket', { burst: 12 }, { burst: 12, availableTokens: 12 }],
    ['smooth', {}, { burst: 1, availableTokens: 1 }],
  ] as const)('answers what is registered (%s, %p)', async (algorithm, more, state) => {
    const limit = { algorithm, capacity: 5, interval: '1 minute', ...more };
    const expected = { key: 'api', algorithm, capacity: 5, intervalMs: 60_000, ...state, blockedUntil: null };
    expect(await jobs.registerRateLimit('api', limit)).toMatchObject(expected);
  });

  it('keeps the current window and clamps tokens to a smaller capacity', async () => {
    const { lastRefillAt } = await jobs.registerRateLimit('api', 10, HOUR);
    await add(4);
    await claim();
    expect(await jobs.registerRateLimit('api', 3, HOUR)).toMatchObject({ availableTokens: 3, lastRefillAt });
    expect(await jobs.registerRateLimit('api', 5, HOUR)).toMatchObject({ availableTokens: 5, lastRefillAt });
  });
});

describe('a change of a limit', () => {
  const algorithms = ['fixed', 'sliding', 'bucket'] as const;
  const pairs = algorithms.flatMap((from) => algorithms.map((to) => [from, to] as const));

  it.each(pairs)(
    'from %s to %s counts for the next claim, and keeps what was taken of each value',
    async (from, to) => {
      await jobs.registerRateLimit('api', { algorithm: from, capacity: 6, interval: HOUR });
      await jobs.takeTokens('api', { weight: 4 });
      await jobs.takeTokens('api', { by: 'acme', weight: 6 });
      const changed = await jobs.registerRateLimit('api', { algorithm: to, capacity: 8, interval: HOUR });
      expect(changed).toMatchObject({ algorithm: to, availableTokens: 4 });
      await add(8);
      await add(8, { rateLimitKey: undefined, rateLimit: { key: 'api', by: 'acme' } });
      expect(await claim()).toHaveLength(4 + 2);
    },
  );

  it('to a smooth one waits for the token that was taken', async () => {
    await jobs.registerRateLimit('api', { algorithm: 'bucket', capacity: 6, interval: HOUR });
    await jobs.takeTokens('api', { weight: 4 });
    const smooth = { algorithm: 'smooth', capacity: 6, interval: HOUR } as const;
    expect(await jobs.registerRateLimit('api', smooth)).toMatchObject({ availableTokens: 0 });
  });

  it('to a smaller capacity leaves no tokens of a sliding window or a bucket that took more', async () => {
    for (const algorithm of ['sliding', 'bucket'] as const) {
      await jobs.registerRateLimit(algorithm, { algorithm, capacity: 6, interval: HOUR });
      await jobs.takeTokens(algorithm, { weight: 4 });
      const smaller = { algorithm, capacity: 3, interval: HOUR };
      expect(await jobs.registerRateLimit(algorithm, smaller)).toMatchObject({ availableTokens: 0 });
    }
  });

  it('to a sliding window of another length counts what was taken as taken now', async () => {
    await jobs.registerRateLimit('api', { algorithm: 'sliding', capacity: 6, interval: HOUR });
    await jobs.takeTokens('api', { weight: 4 });
    await test.sql(
      `update jobs.rate_limit_states set at = at - interval '50 min', full_at = full_at - interval '50 min'`,
    );
    await jobs.registerRateLimit('api', { algorithm: 'sliding', capacity: 6, interval: 2 * HOUR });
    await test.sql(
      `update jobs.rate_limit_states set at = at - interval '100 min', full_at = full_at - interval '100 min'`,
    );
    expect(await jobs.takeTokens('api', { weight: 3 })).toMatchObject({ ok: false });
    await test.sql(
      `update jobs.rate_limit_states set at = at - interval '31 min', full_at = full_at - interval '31 min'`,
    );
    expect(await jobs.takeTokens('api', { weight: 6 })).toMatchObject({ ok: true });
  });

  it('during claims never lets more through than the larger of both', async () => {
    await jobs.registerRateLimit('api', { algorithm: 'sliding', capacity: 6, interval: HOUR });
    await add(80);
    const claims = Array.from({ length: 6 }, (_, n) => claim(3, `${OTHER}-${n}`));
    const changes = [9, 4, 9, 5].map((capacity) =>
      jobs.registerRateLimit('api', { algorithm: 'sliding', capacity, interval: HOUR }),
    );
    const more = Array.from({ length: 6 }, (_, n) => claim(3, `${OTHER}-${n}`));
    await Promise.all(changes);
    const claimed = [...(await Promise.all(claims)), ...(await Promise.all(more))].flat();
    expect(claimed.length).toBeLessThanOrEqual(9);
  });
});

describe('a clock that was ahead', () => {
  it.each([
    ['sliding', 0],
    ['bucket', 0],
    ['smooth', 0],
  ] as const)('keeps %s from giving tokens no longer than its interval', async (algorithm, left) => {
    await jobs.registerRateLimit('api', { algorithm, capacity: 1, interval: HOUR });
    await add(3);
    expect(await claim()).toHaveLength(1);
    await test.sql(`update jobs.rate_limit_states set at = at + interval '9 h', full_at = full_at + interval '9 h'`);
    expect(await claim()).toHaveLength(left);
    await passWindows(algorithm === 'sliding' ? 13 / 12 : 1);
    expect(await claim()).toHaveLength(1);
  });

  it.each(['a call', 'a refill'])('is noticed by %s, too', async (who) => {
    await jobs.registerRateLimit('api', { algorithm: 'sliding', capacity: 1, interval: HOUR });
    await jobs.takeTokens('api', { by: 'x' });
    await test.sql(`update jobs.rate_limit_states set at = at + interval '9 h', full_at = full_at + interval '9 h'`);
    await (who === 'a call' ? jobs.takeTokens('api', { by: 'x' }) : jobs.refillRateLimits());
    await passWindows(13 / 12);
    expect(await jobs.takeTokens('api', { by: 'x' })).toMatchObject({ ok: true });
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

  it('forgets values of which nothing is taken any more, and no others', async () => {
    await jobs.registerRateLimit('api', { algorithm: 'sliding', capacity: 2, interval: HOUR });
    for (const by of ['old', 'older', 'young']) await jobs.takeTokens('api', { by });
    await test.sql(
      `update jobs.rate_limit_states set at = at - interval '2 h', full_at = full_at - interval '2 h' where by_value <> 'young'`,
    );
    expect(await jobs.refillRateLimits()).toBe(2);
    expect(await test.sql('select by_value from jobs.rate_limit_states')).toEqual([{ by_value: 'young' }]);
  });

  it('leaves nothing behind that would count again, where others hold what is to go', async () => {
    await jobs.registerRateLimit('api', 2, HOUR);
    await jobs.takeTokens('api');
    await test.sql(`insert into jobs.rate_limit_states
      select key, by_value, number - 1, at, '{2}', full_at + interval '9 h' from jobs.rate_limit_states`);
    await test.sql(
      `update jobs.rate_limit_states set at = at - interval '2 h', full_at = full_at - interval '2 h' where number = 1`,
    );
    const stranger = new pg.Client(test.url);
    await stranger.connect();
    await stranger.query('begin; select from jobs.rate_limit_states where number = 0 for update');
    await jobs.refillRateLimits();
    await stranger.query('rollback');
    await stranger.end();
    expect(await jobs.takeTokens('api', { weight: 2 })).toMatchObject({ ok: true });
    await passWindows(2);
    for (let n = 0; n < 2; n++) await jobs.refillRateLimits();
    expect(await test.sql(`select from jobs.rate_limit_states where full_at <= now()`)).toEqual([]);
  });
});

describe('listRateLimits (list-rate-limits)', () => {
  it('lists limits by key, and the values of one, page by page', async () => {
    await jobs.registerRateLimit('b', { algorithm: 'bucket', capacity: 5, interval: HOUR });
    await jobs.registerRateLimit('a', 3, HOUR);
    for (const by of ['x', 'y', 'z']) await jobs.takeTokens('b', { by, weight: 2 });
    await jobs.takeTokens('b');
    const first = await jobs.listRateLimits({ limit: 1 });
    expect(first.items).toMatchObject([{ key: 'a', algorithm: 'fixed', availableTokens: 3 }]);
    expect((await jobs.listRateLimits({ limit: 1, cursor: first.cursor })).items).toMatchObject([
      { key: 'b', algorithm: 'bucket', burst: 5, availableTokens: 4 },
    ]);
    const values = await jobs.listRateLimitValues('b', { limit: 2 });
    expect(values.items).toMatchObject([
      { by: 'x', availableTokens: 3, blockedUntil: null },
      { by: 'y', availableTokens: 3 },
    ]);
    expect(await jobs.listRateLimitValues('b', { cursor: values.cursor })).toMatchObject({
      items: [{ by: 'z', availableTokens: 3 }],
      cursor: null,
    });
  });

  it('goes on behind a key of the greatest length', async () => {
    const key = '"'.repeat(999);
    for (const end of ['a', 'b']) await jobs.registerRateLimit(key + end, 1, HOUR);
    const { cursor } = await jobs.listRateLimits({ limit: 1 });
    expect((await jobs.listRateLimits({ cursor })).items.map((limit) => limit.key)).toEqual([`${key}b`]);
  });
});
