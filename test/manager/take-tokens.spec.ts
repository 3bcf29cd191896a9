import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createJobManager,
  InvalidArgumentError,
  type JobManager,
  RateLimitWeightError,
  RowsHeldError,
  UnknownRateLimitError,
} from '../../lib/index.js';
import { createTestManager, managerWithin, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
const clients: pg.Client[] = [];

beforeAll(async () => {
  test = await createTestManager();
  jobs = test.jobs;
});
afterAll(async () => {
  for (const client of clients) await client.end();
  await test.close();
});
beforeEach(() =>
  test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.rate_limits, jobs.rate_limit_states, jobs.rate_limit_blocks'),
);

const HOUR = 3_600_000;

async function connect(): Promise<pg.Client> {
  const client = new pg.Client(test.url);
  await client.connect();
  clients.push(client);
  return client;
}

describe('takeTokens', () => {
  it('takes what there is, and says when there is more', async () => {
    await jobs.registerRateLimit('api', { algorithm: 'bucket', capacity: 60, interval: HOUR, burst: 3 });
    expect(await jobs.takeTokens('api', { weight: 2 })).toEqual({ ok: true, retryInMs: 0 });
    expect(await jobs.takeTokens('api')).toEqual({ ok: true, retryInMs: 0 });
    const { ok, retryInMs } = await jobs.takeTokens('api');
    expect(ok).toBe(false);
    expect(retryInMs).toBeGreaterThan(50_000);
    expect(retryInMs).toBeLessThanOrEqual(60_000);
    const all = await jobs.takeTokens('api', { weight: 3 });
    expect(all.retryInMs).toBeGreaterThan(170_000);
    expect(all.retryInMs).toBeLessThanOrEqual(180_000);
  });

  it('shares them with the claims of jobs, value by value', async () => {
    await jobs.registerRateLimit('api', 3, HOUR);
    const rateLimit = { key: 'api', by: 'acme' };
    await jobs.addJobs([1, 2, 3].map((payload) => ({ task: 'x', payload, rateLimit })));
    expect(await jobs.takeTokens('api', { by: 'acme', weight: 2 })).toMatchObject({ ok: true });
    expect(await jobs.getJobs(WORKER, { batchSize: 10 })).toHaveLength(1);
    expect(await jobs.takeTokens('api', { by: 'acme' })).toMatchObject({ ok: false });
    expect(await jobs.takeTokens('api', { by: 'globex' })).toMatchObject({ ok: true });
    expect(await jobs.takeTokens('api', { weight: 3 })).toMatchObject({ ok: true });
  });

  it('refuses what is wrong', async () => {
    await jobs.registerRateLimit('api', 3, HOUR);
    await expect(jobs.takeTokens('other')).rejects.toThrow(new UnknownRateLimitError(['other']));
    await expect(jobs.takeTokens('api', { weight: 4 })).rejects.toThrow(new RateLimitWeightError('api', 4, 3));
    await expect(jobs.takeTokens('api', { weight: 0 })).rejects.toThrow(InvalidArgumentError);
    await expect(jobs.takeTokens('api', { by: '' })).rejects.toThrow(InvalidArgumentError);
    await expect(jobs.takeTokens('api', { value: 'x' } as object)).rejects.toThrow('Unknown option value');
    expect((await jobs.registerRateLimit('api', 3, HOUR)).availableTokens).toBe(3);
  });

  it.each(['fixed', 'sliding', 'bucket'] as const)(
    'never gives more than there are, however many ask (%s)',
    async (algorithm) => {
      await jobs.registerRateLimit('api', { algorithm, capacity: 20, interval: HOUR });
      const others = await Promise.all([1, 2].map(() => createJobManager({ connection: test.url })));
      const answers = await Promise.all(
        Array.from({ length: 60 }, (_, n) => [jobs, ...others][n % 3]!.takeTokens('api', { weight: 1 + (n % 2) })),
      );
      const taken = answers.reduce((sum, { ok }, n) => sum + (ok ? 1 + (n % 2) : 0), 0);
      expect(taken).toBe(20);
      for (const one of others) await one.close();
    },
  );
});

describe('takeTokens in a transaction', () => {
  it('gives them back with a rollback, and keeps them with the commit', async () => {
    await jobs.registerRateLimit('api', 2, HOUR);
    const client = await connect();
    for (const [end, left] of [
      ['rollback', 2],
      ['commit', 1],
    ] as const) {
      await client.query('begin');
      expect(await jobs.takeTokens('api', { manager: client })).toMatchObject({ ok: true });
      await client.query(end);
      expect((await jobs.registerRateLimit('api', 2, HOUR)).availableTokens).toBe(left);
    }
  });

  it('keeps others from the same tokens until it ends: claims pass on, and calls wait', async () => {
    await jobs.registerRateLimit('api', 2, HOUR);
    await jobs.addJob('x', 'limited', { rateLimit: 'api' });
    await jobs.addJob('x', 'plain');
    const client = await connect();
    await client.query('begin');
    await jobs.takeTokens('api', { manager: client });
    const claimed = await jobs.getJobs(WORKER, { batchSize: 5 });
    expect(claimed.map(({ payload }) => payload)).toEqual(['plain']);
    const waiting = jobs.takeTokens('api');
    await client.query('rollback');
    expect(await waiting).toMatchObject({ ok: true });
    expect(await jobs.getJobs(WORKER, { batchSize: 5 })).toHaveLength(1);
  });

  it('fails after some seconds where a transaction keeps them for longer', async () => {
    await jobs.registerRateLimit('api', 2, HOUR);
    const client = await connect();
    await client.query('begin');
    await jobs.takeTokens('api', { by: 'kept', manager: client });
    await Promise.all([
      expect(jobs.takeTokens('api', { by: 'kept' })).rejects.toThrow(RowsHeldError),
      expect(jobs.registerRateLimit('api', 3, HOUR)).rejects.toThrow(RowsHeldError),
    ]);
    await client.query('commit');
  }, 40_000);

  it.each(['repeatable read', 'serializable'])('is refused at %s, which cannot see what others took', async (level) => {
    await jobs.registerRateLimit('api', 2, HOUR);
    const client = await connect();
    await client.query(`begin isolation level ${level}`);
    await expect(jobs.takeTokens('api', { manager: client })).rejects.toThrow(
      /Expected a transaction at read committed/,
    );
    await client.query('rollback');
    await client.query(`begin isolation level ${level}`);
    const within = managerWithin(jobs, client);
    await expect(within.registerRateLimit('api', 3, HOUR)).rejects.toThrow(/Expected a transaction at read committed/);
    await client.query('rollback');
  });

  it('is that of the manager that a transactional task is given', async () => {
    await jobs.registerRateLimit('api', 2, HOUR);
    const client = await connect();
    await client.query('begin');
    expect(await managerWithin(jobs, client).takeTokens('api', { weight: 2 })).toMatchObject({ ok: true });
    await client.query('rollback');
    expect((await jobs.registerRateLimit('api', 2, HOUR)).availableTokens).toBe(2);
  });
});
