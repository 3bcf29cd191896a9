// RateLimitedError: a handler that finds another service asked too often blocks its rate limits, for all processes.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import {
  type BatchContext,
  type ClaimedJob,
  createJobManager,
  createWorkerPool,
  type JobEvent,
  JobEvents,
  type JobManager,
  type PlainTasks,
  RateLimitedError,
  type WorkerPool,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, OTHER, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
let other: JobManager;
let pool: WorkerPool | undefined;
let seen: JobEvent[];

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  other = await createJobManager({ connection: test.url });
  seen = [];
});
afterEach(async () => {
  await pool?.stop(100);
  pool = undefined;
  await other.close();
  await test.close();
});

const HOUR = 3_600_000;
const inOrder = (a: string, b: string): number => (a < b ? -1 : 1);

async function start(tasks: PlainTasks): Promise<void> {
  const events = new JobEvents();
  events.on('all', (event) => void seen.push(event));
  pool = createWorkerPool({ jobs, tasks, events, options: { pollIntervalMs: 100, concurrency: 1 } });
  await pool.start();
}
const snoozed = (id: string) => eventually(async () => (await jobs.findJob(id))!.status === 'snoozed');
const claimElsewhere = () => other.getJobs(OTHER, { batchSize: 10 });
const register = () => jobs.registerRateLimit('api', { algorithm: 'sliding', capacity: 100, interval: HOUR });
const limited = (more: object = {}) => new RateLimitedError({ retryAfterMs: HOUR, ...more });
const throwing = (error: unknown) => ({
  call: () => {
    throw error;
  },
});

describe('RateLimitedError', () => {
  it('blocks the limits of its job in every process, and gives the attempt back', async () => {
    await register();
    const { id } = await jobs.addJob('call', 1, { rateLimit: 'api', maxAttempts: 1 });
    await start(throwing(limited()));
    await snoozed(id);
    expect(await jobs.findJob(id)).toMatchObject({ attempts: 0, lastError: 'Rate limited: try again in 3600000 ms.' });
    expect(await jobs.jobHistory(id)).toMatchObject([{ status: 'snoozed', attempt: 1 }]);
    expect(seen.map(({ type }) => type)).toContain('job.snoozed');
    expect(seen.map(({ type }) => type)).not.toContain('job.failed');

    const next = await other.addJob('other', 2, { rateLimit: 'api' });
    expect(await claimElsewhere()).toEqual([]);
    const { ok, retryInMs } = await other.takeTokens('api');
    expect(ok).toBe(false);
    expect(retryInMs).toBeGreaterThan(HOUR - 60_000);
    const why = await other.explain(next.id);
    expect(why.reason).toBe('no_tokens');
    expect(why.message).toMatch(/gives no tokens until .*a handler has blocked it \(RateLimitedError\)/);
    expect(why.until!.getTime()).toBe((await jobs.findJob(id))!.runAt.getTime());
    expect((await jobs.listRateLimits()).items[0]!.blockedUntil).toEqual(why.until);
  });

  it('lets the limit go when its time has come', async () => {
    await register();
    const ran: number[] = [];
    let isFirst = true;
    const ids = (await jobs.addJobs([1, 2, 3].map((payload) => ({ task: 'call', payload, rateLimit: 'api' })))).map(
      ({ id }) => id,
    );
    await start({
      call: (payload) => {
        if (isFirst) {
          isFirst = false;
          throw new RateLimitedError({ retryAfterMs: 400 });
        }
        ran.push(payload as number);
      },
    });
    await eventually(async () =>
      (await Promise.all(ids.map((id) => jobs.findJob(id)))).every((job) => job!.status === 'completed'),
    );
    expect(ran.toSorted((a, b) => a - b)).toEqual([1, 2, 3]);
    const [block] = await test.sql('select until from jobs.rate_limit_blocks');
    const starts = await test.sql('select started_at from jobs.job_history where status = $1', ['completed']);
    for (const { started_at: at } of starts) expect(at.getTime()).toBeGreaterThanOrEqual(block!.until.getTime());
    await jobs.refillRateLimits();
    expect(await test.sql('select from jobs.rate_limit_blocks')).toEqual([]);
  });

  it('blocks the value that its job names, and no other', async () => {
    await register();
    const { id } = await jobs.addJob('call', 1, { rateLimit: [{ key: 'api', by: 'acme' }] });
    await start(throwing(limited()));
    await snoozed(id);
    await jobs.addJobs(
      ['acme', 'globex', undefined].map((by) => ({ task: 'o', payload: by ?? 'none', rateLimit: { key: 'api', by } })),
    );
    expect((await claimElsewhere()).map(({ payload }) => payload as string).toSorted(inOrder)).toEqual([
      'globex',
      'none',
    ]);
    expect((await jobs.listRateLimitValues('api')).items).toMatchObject([
      { by: 'acme', availableTokens: 0, blockedUntil: expect.any(Date) },
      { by: 'globex', blockedUntil: null },
    ]);
  });

  it.each<[string, object, string[]]>([
    ['a key of the job: what the job says of it', { key: 'b' }, ['a', 'b of globex', 'c']],
    ['a key and a value', { key: 'b', by: 'globex' }, ['a', 'b of acme', 'c']],
    ['another key: all values of it', { key: 'c' }, ['a', 'b of acme', 'b of globex']],
    ['a value that the job does not name', { by: 'initech' }, ['a', 'b of acme', 'b of globex', 'c']],
  ])('may name %s', async (_, named, free) => {
    for (const key of ['a', 'b', 'c']) await jobs.registerRateLimit(key, 100, HOUR);
    const { id } = await jobs.addJob('call', 1, { rateLimit: ['a', { key: 'b', by: 'acme' }] });
    await start(throwing(limited(named)));
    await snoozed(id);
    await jobs.addJobs([
      { task: 'o', payload: 'a', rateLimit: 'a' },
      { task: 'o', payload: 'b of acme', rateLimit: { key: 'b', by: 'acme' } },
      { task: 'o', payload: 'b of globex', rateLimit: { key: 'b', by: 'globex' } },
      { task: 'o', payload: 'c', rateLimit: { key: 'c', by: 'x' } },
    ]);
    expect((await claimElsewhere()).map(({ payload }) => payload as string).toSorted(inOrder)).toEqual(free);
  });

  it('only snoozes a job without rate limits', async () => {
    const { id } = await jobs.addJob('call', 1);
    await start(throwing(limited()));
    await snoozed(id);
    expect((await jobs.findJob(id))!.attempts).toBe(0);
    expect(await test.sql('select from jobs.rate_limit_blocks')).toEqual([]);
  });

  it.each([[-1], [Number.NaN], ['5'], [undefined]])(
    'fails its job like any other error where it asks for %p ms',
    async (ms) => {
      await register();
      const { id } = await jobs.addJob('call', 1, { rateLimit: 'api', maxAttempts: 1 });
      await start(throwing(new RateLimitedError({ retryAfterMs: ms as number })));
      await eventually(async () => (await jobs.findJob(id))!.status === 'exhausted');
      expect(await test.sql('select from jobs.rate_limit_blocks')).toEqual([]);
    },
  );

  it('fails its job for good where only its class is thrown', async () => {
    const { id } = await jobs.addJob('call', 1);
    await start(throwing(RateLimitedError));
    await eventually(async () => (await jobs.findJob(id))!.status === 'exhausted');
    expect((await jobs.findJob(id))!.lastError).toMatch(/throw new RateLimitedError/);
  });

  it('is understood of one job of a batch', async () => {
    await register();
    const [first, second] = await jobs.addJobs(
      ['acme', 'globex'].map((by) => ({ task: 'call', payload: by, rateLimit: { key: 'api', by } })),
    );
    await start({
      call: {
        batch: { size: 2, waitMs: 2_000 },
        handler: (batch: ClaimedJob[], ctx: BatchContext) => {
          for (const job of batch) if (job.payload === 'acme') ctx.fail(job, limited());
        },
      },
    });
    await snoozed(first!.id);
    await eventually(async () => (await jobs.findJob(second!.id))!.status === 'completed');
    expect(await test.sql('select key, by_value from jobs.rate_limit_blocks')).toEqual([
      { key: 'api', by_value: 'acme' },
    ]);
  });

  it('rolls the transaction of its handler back, tokens included, and blocks all the same', async () => {
    await register();
    await jobs.registerRateLimit('quota', 5, HOUR);
    await test.sql('create table effects (what text)');
    const { id } = await jobs.addJob('call', 1, { rateLimit: 'api' });
    const taken: boolean[] = [];
    await start({
      call: {
        transactional: true,
        handler: async (_payload, ctx) => {
          await ctx.manager.query(`insert into effects values ('written')`);
          taken.push((await ctx.jobs.takeTokens('quota', { weight: 5 })).ok);
          throw limited();
        },
      },
    });
    await snoozed(id);
    expect(taken).toEqual([true]);
    expect(await test.sql('select from effects')).toEqual([]);
    expect(await jobs.findJob(id)).toMatchObject({ attempts: 0 });
    expect(await jobs.takeTokens('quota', { weight: 5 })).toMatchObject({ ok: true });
    expect(await other.takeTokens('api')).toMatchObject({ ok: false });
  });

  it('is understood by failJobs, and by a job that a claim has lost it blocks nothing', async () => {
    await register();
    await jobs.addJobs([1, 2].map((payload) => ({ task: 'x', payload, rateLimit: 'api' })));
    const [one, lost] = await jobs.getJobs(WORKER, { batchSize: 2 });
    await jobs.forceUnlockJobs([WORKER]);
    await jobs.failJobs(WORKER, [{ job: lost!, error: limited() }], 1);
    expect(await test.sql('select from jobs.rate_limit_blocks')).toEqual([]);
    const [again] = await jobs.getJobs(WORKER);
    expect(again!.id).toBe(one!.id);
    await jobs.failJobs(WORKER, [{ job: again!, error: limited() }], 1);
    expect(await jobs.findJob(again!.id)).toMatchObject({ status: 'snoozed' });
    expect(await claimElsewhere()).toEqual([]);
  });

  it('blocks for as long as the longest says, and once', async () => {
    await register();
    await jobs.addJobs([1, 2, 3].map((payload) => ({ task: 'x', payload, rateLimit: 'api' })));
    const claimed = await jobs.getJobs(WORKER, { batchSize: 3 });
    const failures = claimed.map((job, n) => ({ job, error: limited({ retryAfterMs: [1_000, HOUR, 2_000][n] }) }));
    await jobs.failJobs(WORKER, failures, 1);
    expect(await test.sql('select from jobs.rate_limit_blocks')).toHaveLength(1);
    expect((await jobs.takeTokens('api')).retryInMs).toBeGreaterThan(HOUR - 60_000);
  });

  it('counts no block that a clock which was ahead has set', async () => {
    await register();
    await jobs.addJob('x', 1, { rateLimit: 'api' });
    const [job] = await jobs.getJobs(WORKER);
    await jobs.failJobs(WORKER, [{ job: job!, error: limited() }], 1);
    expect(await jobs.takeTokens('api')).toMatchObject({ ok: false });
    await test.sql(
      `update jobs.rate_limit_blocks set set_at = set_at + interval '9 h', until = until + interval '9 h'`,
    );
    expect(await jobs.takeTokens('api')).toMatchObject({ ok: true });
  });
});
