import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import type { JobManager } from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, OTHER, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;

beforeAll(async () => {
  test = await createTestManager();
  jobs = test.jobs;
});
afterAll(() => test.close());
beforeEach(() => test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_history'));

const live = async () =>
  (await jobs.listJobs()).items.filter(({ status }) => !['completed', 'cancelled'].includes(status));

describe('replace', () => {
  it('lets the new job take the place of a waiting one', async () => {
    const old = await jobs.addJob('x', 'old', { jobKey: 'k' });
    const fresh = await jobs.addJob('y', 'new', { jobKey: 'k', delayMs: 1_000 });
    expect(fresh).toMatchObject({ created: true, task: 'y', payload: 'new', jobKey: 'k', jobKeyMode: 'replace' });
    expect(fresh.id).not.toBe(old.id);
    expect(await jobs.findJob(old.id)).toBeNull();
    expect(await live()).toHaveLength(1);
  });

  it('does not delete a running job under its worker: the new one waits behind it', async () => {
    const old = await jobs.addJob('x', 'old', { jobKey: 'k' });
    const [running] = await jobs.getJobs(WORKER);
    const fresh = await jobs.addJob('x', 'new', { jobKey: 'k' });
    expect(fresh).toMatchObject({ created: true, status: 'blocked', jobKey: 'k' });
    expect(await jobs.findJob(old.id)).toMatchObject({ status: 'running', jobKey: null });
    expect(await jobs.explain(fresh.id)).toMatchObject({ reason: 'job_key', blockedBy: [old.id] });
    expect(await jobs.getJobs(OTHER)).toEqual([]);

    await jobs.completeJobs(WORKER, [running!], 1);
    expect((await jobs.getJobs(OTHER)).map(({ id }) => id)).toEqual([fresh.id]);
  });

  it('a replaced job that fails is not retried beside its successor', async () => {
    const old = await jobs.addJob('x', 'old', { jobKey: 'k' });
    const [running] = await jobs.getJobs(WORKER);
    const fresh = await jobs.addJob('x', 'new', { jobKey: 'k' });
    await jobs.failJobs(WORKER, [{ job: running!, error: new Error('late') }], 1);
    expect(await jobs.findJob(old.id)).toMatchObject({ status: 'cancelled' });
    expect((await jobs.getJobs(OTHER)).map(({ id }) => id)).toEqual([fresh.id]);
  });

  it('a waiting successor can be replaced in turn', async () => {
    await jobs.addJob('x', 1, { jobKey: 'k' });
    const [running] = await jobs.getJobs(WORKER);
    await jobs.addJob('x', 2, { jobKey: 'k' });
    const third = await jobs.addJob('x', 3, { jobKey: 'k' });
    await jobs.completeJobs(WORKER, [running!], 1);
    expect((await jobs.getJobs(OTHER, { batchSize: 9 })).map(({ id }) => id)).toEqual([third.id]);
  });

  it('replaces an exhausted job', async () => {
    await jobs.addJob('x', 'old', { jobKey: 'k', maxAttempts: 1 });
    const [running] = await jobs.getJobs(WORKER);
    await jobs.failJobs(WORKER, [{ job: running!, error: 'x' }], 1);
    await jobs.addJob('x', 'new', { jobKey: 'k' });
    expect((await live()).map(({ payload }) => payload)).toEqual(['new']);
  });
});

describe('preserve_run_at', () => {
  it('updates everything but the run-at and starts the attempts again', async () => {
    const old = await jobs.addJob('x', 'old', { jobKey: 'k' });
    const [claimed] = await jobs.getJobs(WORKER);
    await jobs.failJobs(WORKER, [{ job: claimed!, error: 'x' }], 1);
    const before = await jobs.findJob(old.id);
    const updated = await jobs.addJob('y', 'new', {
      jobKey: 'k',
      jobKeyMode: 'preserve_run_at',
      delayMs: 999_999,
      priority: 4,
      tags: ['t'],
    });
    expect(updated).toMatchObject({
      id: old.id,
      created: false,
      task: 'y',
      payload: 'new',
      priority: 4,
      tags: ['t'],
      attempts: 0,
      runAt: before!.runAt,
      revision: before!.revision + 1,
    });
  });

  it.each(['running', 'exhausted'])('acts as replace on a job that is %s', async (status) => {
    const old = await jobs.addJob('x', 'old', { jobKey: 'k', maxAttempts: 1 });
    const [claimed] = await jobs.getJobs(WORKER);
    if (status === 'exhausted') await jobs.failJobs(WORKER, [{ job: claimed!, error: 'x' }], 1);
    const fresh = await jobs.addJob('x', 'new', { jobKey: 'k', jobKeyMode: 'preserve_run_at' });
    expect(fresh.created).toBe(true);
    expect(fresh.id).not.toBe(old.id);
    expect(fresh.status).toBe(status === 'running' ? 'blocked' : 'available');
  });
});

describe('unsafe_dedupe', () => {
  it.each(['waiting', 'running', 'exhausted'])('keeps the old job while it is %s', async (status) => {
    const old = await jobs.addJob('x', 'old', { jobKey: 'k', maxAttempts: 1 });
    const claimed = status === 'waiting' ? [] : await jobs.getJobs(WORKER);
    if (status === 'exhausted') await jobs.failJobs(WORKER, [{ job: claimed[0]!, error: 'x' }], 1);
    const kept = await jobs.addJob('y', 'new', { jobKey: 'k', jobKeyMode: 'unsafe_dedupe' });
    expect(kept).toMatchObject({ id: old.id, created: false, task: 'x', payload: 'old' });
  });
});

it('keys that repeat within one addJobs take their turns', async () => {
  const added = await jobs.addJobs([
    { task: 'a', payload: 1, jobKey: 'k' },
    { task: 'plain', payload: 2 },
    { task: 'b', payload: 3, jobKey: 'k', jobKeyMode: 'unsafe_dedupe' },
    { task: 'c', payload: 4, jobKey: 'other' },
  ]);
  expect(added.map(({ task, created }) => [task, created])).toEqual([
    ['a', true],
    ['plain', true],
    ['a', false],
    ['c', true],
  ]);
});

it('many enqueuers of one key leave exactly one live job, and each is told the truth', async () => {
  const added = await Promise.all(
    Array.from({ length: 40 }, (_, n) => jobs.addJob('x', n, { jobKey: 'k', jobKeyMode: 'unsafe_dedupe' })),
  );
  expect(await live()).toHaveLength(1);
  expect(added.filter(({ created }) => created)).toHaveLength(1);
  expect(new Set(added.map(({ id }) => id)).size).toBe(1);

  await Promise.all(Array.from({ length: 40 }, (_, n) => jobs.addJob('x', n, { jobKey: 'k' })));
  expect(await live()).toHaveLength(1);
});

it('an enqueuer whose key is being claimed meanwhile is not told nothing', async () => {
  await jobs.addJob('x', 'old', { jobKey: 'k' });
  const client = new pg.Client(test.url);
  await client.connect();
  await client.query('begin');
  await client.query(`select from jobs.jobs where job_key = 'k' for update`);
  const adding = jobs.addJob('x', 'new', { jobKey: 'k' });
  await client.query(
    `update jobs.jobs set locked_by = $1, locked_at = now(), attempts = 1, fence = 1 where job_key = 'k'`,
    [WORKER],
  );
  await client.query('commit');
  await client.end();
  expect(await adding).toMatchObject({ created: true, status: 'blocked' });
});

describe('by their keys', () => {
  it('jobs are reached by keys of any length that addJob takes', async () => {
    const jobKey = 'k'.repeat(2_000);
    const { id } = await jobs.addJob('x', 1, { jobKey });
    expect(await jobs.findJobsByKey([jobKey])).toMatchObject([{ id }]);
    expect(await jobs.rescheduleJobsByKey([jobKey], { priority: 1 })).toMatchObject([{ id, priority: 1 }]);
    expect(await jobs.cancelJobsByKey([jobKey])).toMatchObject([{ id, status: 'cancelled' }]);
  });

  it('jobs are found, rescheduled and cancelled', async () => {
    const waiting = await jobs.addJob('x', 1, { jobKey: 'waits', delayMs: 60_000 });
    await jobs.addJob('x', 2, { jobKey: 'other' });
    expect(await jobs.findJobsByKey(['waits', 'free'])).toMatchObject([{ id: waiting.id, status: 'scheduled' }]);

    const rescheduled = await jobs.rescheduleJobsByKey(['waits'], { runAt: new Date(), priority: 3 });
    expect(rescheduled).toMatchObject([{ id: waiting.id, status: 'available', priority: 3 }]);
    expect(await jobs.cancelJobsByKey(['waits', 'free'], 'not needed')).toMatchObject([
      { id: waiting.id, status: 'cancelled' },
    ]);
    expect(await jobs.findJobsByKey(['waits'])).toEqual([]);
    expect((await live()).map(({ jobKey }) => jobKey)).toEqual(['other']);
  });

  it('the job that waits behind a running one is meant, which goes on', async () => {
    const old = await jobs.addJob('x', 'old', { jobKey: 'k' });
    const [running] = await jobs.getJobs(WORKER);
    expect(await jobs.findJobsByKey(['k'])).toMatchObject([{ id: old.id, status: 'running' }]);
    const fresh = await jobs.addJob('x', 'new', { jobKey: 'k' });
    expect((await jobs.cancelJobsByKey(['k'])).map(({ id }) => id)).toContain(fresh.id);
    expect((await jobs.completeJobs(WORKER, [running!], 1)).settled).toHaveLength(1);
    expect(await live()).toEqual([]);
  });

  it('a running job is asked to stop, and an exhausted one leaves', async () => {
    const [first, second] = await jobs.addJobs([
      { task: 'x', payload: 1, jobKey: 'runs' },
      { task: 'x', payload: 2, jobKey: 'failed' },
    ]);
    await jobs.permanentlyFailJobs([second!.id]);
    await jobs.getJobs(WORKER);
    const cancelled = await jobs.cancelJobsByKey(['runs', 'failed']);
    expect(cancelled).toMatchObject([
      { id: first!.id, status: 'running' },
      { id: second!.id, status: 'cancelled' },
    ]);
  });

  it('a job that takes the key while others are cancelled is cancelled as well, or left: none is cancelled in part', async () => {
    const added = Promise.all(
      Array.from({ length: 20 }, (_, n) => jobs.addJob('x', n, { jobKey: 'busy', delayMs: 60_000 })),
    );
    await jobs.cancelJobsByKey(['busy']);
    await added;
    await jobs.cancelJobsByKey(['busy']);
    expect(await live()).toEqual([]);
  });
});

describe('debounce', () => {
  const debounce = { key: 'd', ms: 60_000, maxMs: 100_000 };
  const dueInMs = async (id: string): Promise<number> => {
    const [row] = await test.sql<{ ms: number }>(
      `select (extract(epoch from j.run_at - clock_timestamp()) * 1000)::float8 as ms
       from jobs.jobs j join jobs.job_bodies b on b.id = j.id and b.run_at = j.run_at where j.id = $1`,
      [id],
    );
    return row!.ms;
  };
  /** As if the job had been added, and put off, so much earlier. */
  const age = (id: string, ms: number) =>
    test.sql(
      `with body as (update jobs.job_bodies set created_at = created_at - $2::int * interval '1 ms',
         run_at = run_at - $2::int * interval '1 ms' where id = $1)
       update jobs.jobs set run_at = run_at - $2::int * interval '1 ms' where id = $1`,
      [id, ms],
    );

  it('makes one job of many adds, with the last payload, due so long after the last of them', async () => {
    const first = await jobs.addJob('x', 1, { debounce, tags: ['old'] });
    expect(first).toMatchObject({ created: true, status: 'scheduled', jobKey: 'd', jobKeyMode: 'debounce' });
    await age(first.id, 30_000);
    expect(await dueInMs(first.id)).toBeLessThan(31_000);
    const second = await jobs.addJob('y', 2, { debounce, priority: 3 });
    expect(second).toMatchObject({ id: first.id, created: false, task: 'y', payload: 2, priority: 3, tags: [] });
    expect(await dueInMs(first.id)).toBeGreaterThan(55_000);
    expect(await live()).toHaveLength(1);
  });

  it('waits no longer than maxMs after the first add', async () => {
    const { id } = await jobs.addJob('x', 1, { debounce });
    await age(id, 90_000);
    await jobs.addJob('x', 2, { debounce });
    expect(await dueInMs(id)).toBeLessThanOrEqual(10_000);
    await age(id, 20_000);
    expect(await jobs.addJob('x', 3, { debounce })).toMatchObject({ id, status: 'available', payload: 3 });
  });

  it('waits without end where no maxMs is given', async () => {
    const { id } = await jobs.addJob('x', 1, { debounce: { key: 'd', ms: 60_000 } });
    await age(id, 3_600_000);
    await jobs.addJob('x', 2, { debounce: { key: 'd', ms: 60_000 } });
    expect(await dueInMs(id)).toBeGreaterThan(55_000);
  });

  it('adds another job where the first one runs, which waits its time and for its end', async () => {
    const first = await jobs.addJob('x', 1, { debounce });
    await age(first.id, 60_000);
    const [running] = await jobs.getJobs(WORKER);
    const second = await jobs.addJob('x', 2, { debounce });
    expect(second).toMatchObject({ created: true, status: 'blocked' });
    expect(await jobs.addJob('x', 3, { debounce })).toMatchObject({ id: second.id, created: false, payload: 3 });
    await jobs.completeJobs(WORKER, [running!], 1);
    expect(await jobs.findJob(second.id)).toMatchObject({ status: 'scheduled', payload: 3 });
  });

  it('counts again where the job waits for a retry: it was due, so a new one takes its place', async () => {
    const first = await jobs.addJob('x', 1, { debounce });
    await age(first.id, 200_000);
    const [running] = await jobs.getJobs(WORKER);
    await jobs.failJobs(WORKER, [{ job: running!, error: new Error('no') }], 1);
    const second = await jobs.addJob('x', 2, { debounce });
    expect(second).toMatchObject({ created: true, status: 'scheduled', payload: 2 });
    expect(await dueInMs(second.id)).toBeGreaterThan(55_000);
    expect(await live()).toMatchObject([{ id: second.id }]);
  });

  it('counts again where the job is snoozed, or has failed for good', async () => {
    const first = await jobs.addJob('x', 1, { debounce });
    await age(first.id, 200_000);
    const [running] = await jobs.getJobs(WORKER);
    await jobs.snoozeJob(WORKER, running!, 5_000);
    const second = await jobs.addJob('x', 2, { debounce });
    expect(second.created).toBe(true);
    await age(second.id, 200_000);
    await jobs.permanentlyFailJobs([second.id]);
    const third = await jobs.addJob('x', 3, { debounce });
    expect(third.created).toBe(true);
    expect(await dueInMs(third.id)).toBeGreaterThan(55_000);
    expect(await live()).toMatchObject([{ id: third.id }]);
  });

  it('measures from when the key is free, where another transaction has it', async () => {
    const { id } = await jobs.addJob('x', 1, { debounce });
    const [holder, adder] = [new pg.Client(test.url), new pg.Client(test.url)];
    await Promise.all([holder.connect(), adder.connect()]);
    await holder.query(`begin; select from jobs.job_keys where key = 'd' for update`);
    await adder.query('begin');
    const adding = jobs.addJob('x', 2, { debounce: { key: 'd', ms: 60_000 }, manager: adder });
    await eventually(async () => (await test.sql(`select from pg_locks where not granted`)).length > 0);
    await age(id, 10);
    const freed = (await test.sql<{ at: Date }>('select clock_timestamp() as at'))[0]!.at;
    await holder.query('commit');
    expect((await adding).runAt.getTime()).toBeGreaterThanOrEqual(freed.getTime() + 60_000);
    await adder.query('commit');
    await Promise.all([holder.end(), adder.end()]);
  });

  it('is not fooled by a first add whose clock was ahead', async () => {
    const { id } = await jobs.addJob('x', 1, { debounce });
    await age(id, -3_600_000);
    await jobs.addJob('x', 2, { debounce });
    expect(await dueInMs(id)).toBeLessThanOrEqual(60_000);
  });

  it('makes one job of twenty adds at once', async () => {
    const added = await Promise.all(Array.from({ length: 20 }, (_, n) => jobs.addJob('x', n, { debounce })));
    expect(new Set(added.map(({ id }) => id)).size).toBe(1);
    expect(added.filter(({ created }) => created)).toHaveLength(1);
    expect(await live()).toHaveLength(1);
  });

  it('is undone with the transaction of the caller', async () => {
    const { id } = await jobs.addJob('x', 1, { debounce });
    const client = new pg.Client(test.url);
    await client.connect();
    await client.query('begin');
    expect(await jobs.addJob('x', 2, { debounce, manager: client })).toMatchObject({ id, payload: 2 });
    await client.query('rollback');
    await client.end();
    expect(await live()).toMatchObject([{ id, payload: 1 }]);
  });

  it('waits for the parents of the last add, and for its time', async () => {
    const [one, other] = await jobs.addJobs([1, 2].map((payload) => ({ task: 'p', payload })));
    const { id } = await jobs.addJob('x', 1, { debounce, dependsOn: [one!.id] });
    expect(await jobs.addJob('x', 2, { debounce, dependsOn: [other!.id] })).toMatchObject({ id, status: 'blocked' });
    const parents = await jobs.getJobs(WORKER, { batchSize: 2 });
    await jobs.completeJobs(
      WORKER,
      parents.filter((job) => job.id === other!.id),
      1,
    );
    expect(await jobs.findJob(id)).toMatchObject({ status: 'scheduled', payload: 2 });
    await jobs.cancelJobs([one!.id, id]);
  });

  it('counts each of the jobs of one call', async () => {
    const added = await jobs.addJobs([1, 2, 3].map((payload) => ({ task: 'x', payload, debounce })));
    expect(new Set(added.map(({ id }) => id)).size).toBe(1);
    expect(await live()).toMatchObject([{ payload: 3 }]);
  });

  it.each<[string, object]>([
    ['Expected debounce alone, which says what runAt would, got both.', { debounce, runAt: new Date() }],
    ['Expected debounce alone, which says what jobKey would, got both.', { debounce, jobKey: 'k' }],
    ['Expected debounce.maxMs to be at least debounce.ms (5), got 4.', { debounce: { key: 'd', ms: 5, maxMs: 4 } }],
    ['Expected debounce.key to be', { debounce: { ms: 5 } }],
    ['Unknown option debounce.wait', { debounce: { ...debounce, wait: 5 } }],
  ])('refuses what makes no sense: %s', async (message, options) => {
    await expect(jobs.addJob('x', 1, options)).rejects.toThrow(message);
  });
});
