import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createWorkerPool,
  InvalidArgumentError,
  InvalidOptionsError,
  type AddJobOptions,
  type ClaimedJob,
  type JobManager,
  RateLimitWeightError,
  UnknownRateLimitError,
} from '../../lib/index.js';
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
    `truncate jobs.jobs, jobs.job_bodies, jobs.job_history, jobs.job_queues, jobs.job_places, jobs.rate_limits,
      jobs.rate_limit_states, jobs.rate_limit_blocks`,
  ),
);

const HOUR = 3_600_000;
const add = (count: number, options: AddJobOptions) =>
  jobs.addJobs(Array.from({ length: count }, (_, n) => ({ task: 'x', payload: n, ...options })));
const claim = (batchSize = 100, worker = WORKER) => jobs.getJobs(worker, { batchSize });
const ALGORITHMS = ['fixed', 'sliding', 'bucket', 'smooth'] as const;
/** Lets so many ms go by for what has been taken. */
const pass = (ms: number) =>
  test.sql(
    `update jobs.rate_limit_states set at = at - $1 * interval '1 ms', full_at = full_at - $1 * interval '1 ms'`,
    [ms],
  );
/** The most that was taken of each state, by the jobs that run. */
const weightsOf = (claimed: ClaimedJob[]): Record<string, number> => {
  const sums: Record<string, number> = {};
  for (const { rateLimits } of claimed)
    for (const { key, by, weight } of rateLimits) sums[`${key} ${by}`] = (sums[`${key} ${by}`] ?? 0) + weight;
  return sums;
};

describe('a job of a rate limit', () => {
  it.each(ALGORITHMS)('takes a token with its claim (%s)', async (algorithm) => {
    await jobs.registerRateLimit('api', { algorithm, capacity: 3, interval: HOUR });
    await add(5, { rateLimit: 'api' });
    expect(await claim()).toHaveLength(algorithm === 'smooth' ? 1 : 3);
    expect(await claim()).toEqual([]);
    await pass(HOUR / 3 + 1);
    expect(await claim()).toHaveLength({ fixed: 0, sliding: 0, bucket: 1, smooth: 1 }[algorithm]);
  });

  it('shows its limits wherever it is shown', async () => {
    for (const key of ['a', 'b', 'c']) await jobs.registerRateLimit(key, 5, HOUR);
    const rateLimits = [
      { key: 'a', by: 'acme', weight: 2 },
      { key: 'b', by: null, weight: 1 },
      { key: 'c', by: null, weight: 3 },
    ];
    const asked = [{ key: 'c', weight: 3 }, { key: 'a', by: 'acme', weight: 2 }, 'b'];
    const added = await jobs.addJob('x', 1, { rateLimit: asked });
    expect(added).toMatchObject({ rateLimitKey: 'a', rateLimits });
    expect(await jobs.findJob(added.id)).toMatchObject({ rateLimitKey: 'a', rateLimits });
    const [claimed] = await claim();
    expect(claimed).toMatchObject({ id: added.id, rateLimitKey: 'a', rateLimits });
    await jobs.completeJobs(WORKER, [claimed!], 1);
    expect(await jobs.findJob(added.id)).toMatchObject({ status: 'completed', rateLimits });
    expect(await jobs.addJob('x', 1)).toMatchObject({ rateLimitKey: null, rateLimits: [] });
  });

  it.each<[string, unknown, RegExp]>([
    ['four of them', ['a', 'b', 'c', 'd'], /an array of 1 to 3/],
    ['none of them', [], /an array of 1 to 3/],
    ['a number', 5, /the key of a rate limit/],
    ['one of them twice', ['a', { key: 'a' }], /"a" twice/],
    ['a weight of nothing', { key: 'a', weight: 0 }, /rateLimit.weight to be an integer from 1/],
    ['a property that there is not', { key: 'a', wieght: 2 }, /did you mean weight/],
    ['a value with a control character', { key: 'a', by: 'x\u001dy' }, /rateLimit.by/],
    ['a function of the payload', { key: 'a', by: () => 'x' }, /rateLimit.by/],
    ['more than an index holds', { key: 'k'.repeat(800), by: 'v'.repeat(200) }, /at most 1000 bytes together/],
  ])('is refused with %s', async (_, rateLimit, message) => {
    const refused = jobs.addJob('x', 1, { rateLimit: rateLimit as string });
    await expect(refused).rejects.toThrow(InvalidArgumentError);
    await expect(refused).rejects.toThrow(message);
  });

  it('is refused where it says both rateLimit and rateLimitKey, or names what is not registered', async () => {
    await expect(jobs.addJob('x', 1, { rateLimit: 'a', rateLimitKey: 'a' })).rejects.toThrow('got both');
    await jobs.registerRateLimit('a', 1, HOUR);
    await expect(jobs.addJob('x', 1, { rateLimit: ['a', { key: 'b', by: 'v' }] })).rejects.toThrow(
      new UnknownRateLimitError(['b']),
    );
  });
});

describe('by', () => {
  it('gives each value tokens of its own', async () => {
    await jobs.registerRateLimit('api', { algorithm: 'sliding', capacity: 2, interval: HOUR });
    for (const by of ['acme', 'globex']) await add(3, { rateLimit: { key: 'api', by } });
    await add(3, { rateLimit: 'api' });
    expect(weightsOf(await claim())).toEqual({ 'api acme': 2, 'api globex': 2, 'api null': 2 });
    expect(await claim()).toEqual([]);
    expect(await jobs.registerRateLimit('api', { algorithm: 'sliding', capacity: 3, interval: HOUR })).toMatchObject({
      availableTokens: 1,
    });
    expect(weightsOf(await claim())).toEqual({ 'api acme': 1, 'api globex': 1, 'api null': 1 });
  });

  it('lets claims for two values go on beside each other, and none for the same one', async () => {
    await jobs.registerRateLimit('api', 5, HOUR);
    await add(1, { rateLimit: { key: 'api', by: 'held' } });
    await add(1, { rateLimit: { key: 'api', by: 'free' } });
    const taking = await beginTaking({ by: 'held' });
    expect((await claim()).map(({ rateLimits }) => rateLimits[0]!.by)).toEqual(['free']);
    await taking.end();
    expect((await claim()).map(({ rateLimits }) => rateLimits[0]!.by)).toEqual(['held']);
  });

  it('of a task is a function of the payload as it is stored, called once', async () => {
    await jobs.registerRateLimit('api', 5, HOUR);
    const seen: unknown[] = [];
    const by = (payload: { at: string; user?: string }) => {
      seen.push(payload);
      return payload.user;
    };
    const rateLimit = { key: 'api', by, weight: 2 };
    const pool = createWorkerPool({ jobs, tasks: { named: { handler: () => undefined, rateLimit } } });
    const at = new Date(0);
    const added = await jobs.addJobs([
      { task: 'named', payload: { at, user: 'ada' } },
      { task: 'named', payload: { at } },
      { task: 'named', payload: { at, user: 'ada' }, rateLimit: null },
      { task: 'named', payload: { at, user: 'ada' }, rateLimitKey: 'api' },
    ]);
    expect(added.map(({ rateLimits }) => rateLimits)).toEqual([
      [{ key: 'api', by: 'ada', weight: 2 }],
      [{ key: 'api', by: null, weight: 2 }],
      [],
      [{ key: 'api', by: null, weight: 1 }],
    ]);
    expect(seen).toEqual([{ at: at.toISOString(), user: 'ada' }, { at: at.toISOString() }]);
    await expect(jobs.addJob('named', { at, user: 'a\u0001' })).rejects.toThrow(
      'Expected the value of rate limit "api" that task "named" names to be a string of 1 to 200 characters',
    );
    await pool.stop();
  });

  it('of a task, and its limits, are checked where it is declared', () => {
    const declare = (rateLimit: unknown) => () =>
      createWorkerPool({ jobs, tasks: { x: { handler: () => undefined, rateLimit: rateLimit as string } } });
    expect(declare({ key: 'a', by: 5 })).toThrow(InvalidOptionsError);
    expect(declare({ key: 'a', by: 5 })).toThrow(/or a function of the payload/);
    expect(declare(['a', 'a'])).toThrow(/"a" twice/);
  });
});

describe('a weight', () => {
  it('takes so many tokens, and waits for all of them', async () => {
    await jobs.registerRateLimit('api', { algorithm: 'bucket', capacity: 10, interval: HOUR });
    await add(4, { rateLimit: { key: 'api', weight: 3 } });
    expect(await claim()).toHaveLength(3);
    await pass(HOUR / 10 + 1);
    expect(await claim()).toEqual([]);
    await pass(HOUR / 10 + 1);
    expect(await claim()).toHaveLength(1);
  });

  it('of different jobs is counted together', async () => {
    await jobs.registerRateLimit('api', 10, HOUR);
    for (const weight of [1, 4, 7]) await add(5, { rateLimit: { key: 'api', weight } });
    for (let n = 0; n < 20; n++) await claim(3);
    const running = (await jobs.listJobs({ status: 'running' }, { limit: 100 })).items;
    const taken = running.reduce((sum, { rateLimits }) => sum + rateLimits[0]!.weight, 0);
    expect(taken).toBeGreaterThanOrEqual(7);
    expect(taken).toBeLessThanOrEqual(10);
  });

  it.each([
    ['fixed', 5, undefined, 5],
    ['sliding', 5, undefined, 5],
    ['bucket', 5, undefined, 5],
    ['bucket', 5, 8, 8],
    ['smooth', 5, undefined, 1],
  ] as const)('that %s never has at once is refused by the add', async (algorithm, capacity, burst, most) => {
    await jobs.registerRateLimit('api', { algorithm, capacity, interval: HOUR, burst });
    const ofWeight = (weight: number) => ({ rateLimit: { key: 'api', weight } });
    const error = new RateLimitWeightError('api', most + 1, most);
    await expect(jobs.addJob('x', 1, ofWeight(most + 1))).rejects.toThrow(error);
    await expect(jobs.addJob('x', 1, { ...ofWeight(most + 1), jobKey: 'k' })).rejects.toThrow(error);
    await expect(
      jobs.addJobs([
        { task: 'x', payload: 1 },
        { task: 'x', payload: 1, ...ofWeight(most + 1) },
      ]),
    ).rejects.toThrow(error);
    await add(1, ofWeight(most));
    expect(await claim()).toHaveLength(1);
  });

  it('that a change has put out of reach is explained', async () => {
    await jobs.registerRateLimit('api', 5, HOUR);
    const [job] = await add(1, { rateLimit: { key: 'api', weight: 5 } });
    await jobs.registerRateLimit('api', 4, HOUR);
    expect(await claim()).toEqual([]);
    expect(await jobs.explain(job!.id)).toMatchObject({
      reason: 'no_tokens',
      message: 'Rate limit "api" never has the 5 tokens that it takes: at most 4.',
      until: null,
    });
    await jobs.registerRateLimit('api', 5, HOUR);
    expect(await claim()).toHaveLength(1);
  });
});

describe('a job of several rate limits', () => {
  const available = async (key: string, capacity: number) =>
    (await jobs.registerRateLimit(key, capacity, HOUR)).availableTokens;

  it('takes tokens of all of them, or of none', async () => {
    await jobs.registerRateLimit('wide', 10, HOUR);
    await jobs.registerRateLimit('middle', 5, HOUR);
    await jobs.registerRateLimit('narrow', 2, HOUR);
    await add(4, { rateLimit: ['wide', { key: 'middle', weight: 2 }, 'narrow'] });
    expect(await claim()).toHaveLength(2);
    expect(await claim()).toEqual([]);
    expect([await available('wide', 10), await available('middle', 5), await available('narrow', 2)]).toEqual([
      8, 1, 0,
    ]);
  });

  it('shares each of them with the jobs that name others beside it', async () => {
    await jobs.registerRateLimit('shared', 5, HOUR);
    for (const key of ['a', 'b', 'c']) {
      await jobs.registerRateLimit(key, 3, HOUR);
      await add(6, { rateLimit: ['shared', key] });
    }
    const claimed: ClaimedJob[] = [];
    for (let n = 0; n < 10; n++) claimed.push(...(await claim()));
    const weights = weightsOf(claimed);
    expect(weights['shared null']).toBe(5);
    for (const key of ['a', 'b', 'c']) expect(weights[`${key} null`] ?? 0).toBeLessThanOrEqual(3);
  });

  it('waits while one of them is not registered any more, which is explained', async () => {
    await jobs.registerRateLimit('a', 5, HOUR);
    await jobs.registerRateLimit('b', 5, HOUR);
    const [job] = await add(1, { rateLimit: ['a', 'b'] });
    await test.sql(`delete from jobs.rate_limits where key = 'b'`);
    expect(await claim()).toEqual([]);
    expect((await jobs.explain(job!.id)).message).toBe('Rate limit "b" is not registered.');
  });
});

describe('several claimers at once', () => {
  it.each(ALGORITHMS)('never take more than %s has, by any value, limit and weight', async (algorithm) => {
    await jobs.registerRateLimit('one', { algorithm, capacity: 7, interval: HOUR });
    await jobs.registerRateLimit('two', { algorithm: 'sliding', capacity: 9, interval: HOUR });
    const most = algorithm === 'smooth' ? 1 : 7;
    const weight = algorithm === 'smooth' ? 1 : 2;
    for (const by of ['a', 'b', 'c']) {
      await add(12, { rateLimit: { key: 'one', by } });
      await add(12, { rateLimit: [{ key: 'one', by, weight }, 'two'] });
      await add(12, { rateLimit: ['two', { key: 'one', by }], queue: 'q' });
    }
    await jobs.configureQueue('q', { concurrency: Infinity });
    const rounds = Array.from({ length: 6 }, (_, n) => `${OTHER}-${n}`);
    const claimed: ClaimedJob[] = [];
    for (let n = 0; n < 6; n++) claimed.push(...(await Promise.all(rounds.map((worker) => claim(4, worker)))).flat());
    for (let more = await claim(); more.length; more = await claim()) claimed.push(...more);
    const weights = weightsOf(claimed);
    // The one token of each value of a smooth limit may go to jobs that take nothing of the other limit.
    const both = algorithm === 'smooth' ? [] : ['two null'];
    expect(Object.keys(weights)).toEqual(expect.arrayContaining(['one a', 'one b', 'one c', ...both]));
    for (const by of ['a', 'b', 'c']) expect(weights[`one ${by}`]).toBeLessThanOrEqual(most);
    expect(weights['two null'] ?? 0).toBeLessThanOrEqual(9);
    // Nothing is lost between them either: what is left of a limit is less than its lightest job takes.
    for (const by of ['a', 'b', 'c']) expect(weights[`one ${by}`]).toBe(most);
  });
});

describe('a lane without tokens', () => {
  it('is passed over at one descent, however much waits in it, and names when there are some', async () => {
    await jobs.registerRateLimit('api', { algorithm: 'smooth', capacity: 60, interval: HOUR });
    await add(500, { rateLimit: { key: 'api', by: 'noisy' } });
    expect(await claim()).toHaveLength(1);
    await add(1, { rateLimit: { key: 'api', by: 'quiet' } });
    const [claimed, ...none] = await claim();
    expect([claimed!.rateLimits[0]!.by, none]).toEqual(['quiet', []]);
    const waiting = (await jobs.listJobs({ status: 'available' }, { limit: 1 })).items[0]!;
    const why = await jobs.explain(waiting.id);
    expect(why.message).toMatch(/^Rate limit "api" has no tokens for "noisy" until /);
    const secondsLeft = (why.until!.getTime() - Date.now()) / 1_000;
    expect(secondsLeft).toBeGreaterThan(30);
    expect(secondsLeft).toBeLessThanOrEqual(61);
  });

  it('says of a heavy job how many tokens there are, and when enough', async () => {
    await jobs.registerRateLimit('api', { algorithm: 'bucket', capacity: 10, interval: HOUR });
    await jobs.takeTokens('api', { weight: 8 });
    const [job] = await add(1, { rateLimit: { key: 'api', weight: 3 } });
    expect((await jobs.explain(job!.id)).message).toMatch(
      /^Rate limit "api" has 2 tokens, and the 3 that it takes at /,
    );
  });
});

describe('beside an old snapshot', () => {
  it('the newest state is found at once, whatever was taken since', async () => {
    await jobs.registerRateLimit('api', { algorithm: 'sliding', capacity: 1_000_000, interval: HOUR });
    const taking = await beginReading();
    for (let n = 0; n < 300; n++) await jobs.takeTokens('api', { by: 'busy' });
    const plan = await test.sql<{ 'QUERY PLAN': string }>(
      `explain (analyze, buffers, costs off, timing off, summary off)
       select * from jobs.rate_limit_states where key = 'api' and by_value = 'busy' order by number desc limit 1`,
    );
    const text = plan.map((row) => row['QUERY PLAN']).join('\n');
    expect(text).toMatch(/Index Scan Backward using rate_limit_states_pkey/);
    const buffers = Number(/shared hit=(\d+)/.exec(text)![1]);
    expect(buffers).toBeLessThan(15);
    expect(await test.sql(`select counts[1] from jobs.rate_limit_states`)).toEqual([{ counts: 300 }]);
    await taking.end();
  });
});

/** A transaction that keeps the tokens of a value. */
async function beginTaking(options: object): Promise<{ end: () => Promise<void> }> {
  const { client, end } = await connect('begin');
  expect(await jobs.takeTokens('api', { ...options, manager: client })).toMatchObject({ ok: true });
  return { end };
}

const beginReading = () => connect('begin isolation level repeatable read; select 1');

async function connect(begin: string) {
  const client = new pg.Client(test.url);
  await client.connect();
  await client.query(begin);
  return {
    client,
    end: async () => {
      await client.query('commit');
      await client.end();
    },
  };
}
