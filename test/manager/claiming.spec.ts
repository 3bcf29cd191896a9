import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { InvalidArgumentError, InvalidWorkerIdError, type JobManager } from '../../lib/index.js';
import { createTestManager, OTHER, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;

beforeAll(async () => {
  test = await createTestManager({ retry: { baseDelayMs: 60_000, jitter: 0 } });
  jobs = test.jobs;
});
afterAll(() => test.close());
beforeEach(() => test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_history'));

const payloads = (claimed: { payload: unknown }[]): unknown[] => claimed.map(({ payload }) => payload);

describe('getJobs (get-jobs)', () => {
  it('claims by priority, then run-at, then id', async () => {
    const at = (ms: number): Date => new Date(1_000_000 + ms);
    await jobs.addJobs([
      { task: 'x', payload: 'late', runAt: at(500) },
      { task: 'x', payload: 'first of two', runAt: at(100) },
      { task: 'x', payload: 'second of two', runAt: at(100) },
      { task: 'x', payload: 'urgent', runAt: at(900), priority: -10 },
      { task: 'x', payload: 'unimportant', runAt: at(0), priority: 10 },
      { task: 'x', payload: 'in a queue', runAt: at(300), queue: 'q' },
    ]);
    expect(payloads(await jobs.getJobs(WORKER, { batchSize: 4 }))).toEqual([
      'urgent',
      'first of two',
      'second of two',
      'in a queue',
    ]);
    expect(payloads(await jobs.getJobs(WORKER, { batchSize: 4 }))).toEqual(['late', 'unimportant']);
  });

  it('claims one job unless told otherwise, counts the attempt and names the claim', async () => {
    await jobs.addJobs([
      { task: 'x', payload: 1 },
      { task: 'x', payload: 2 },
    ]);
    const [job, ...others] = await jobs.getJobs(WORKER);
    expect(others).toEqual([]);
    expect(job).toMatchObject({
      payload: 1,
      status: 'running',
      attempts: 1,
      lockedBy: WORKER,
      revision: 1,
      fence: '1',
    });
    expect(job!.lockedAt).toBeInstanceOf(Date);
    expect(job!.correlationId).toMatch(/^[0-9a-f-]{36}$/);
    expect(await jobs.jobHistory(job!.id)).toMatchObject([
      { status: 'started', correlationId: job!.correlationId, workerId: WORKER, attempt: 1, payload: 1 },
    ]);
  });

  it('gives each claim of a job a correlation id and a fence of its own', async () => {
    await jobs.addJob('x', 1);
    const [first] = await jobs.getJobs(WORKER);
    await jobs.snoozeJob(WORKER, first!, 0);
    const [second] = await jobs.getJobs(WORKER);
    expect(second!.id).toBe(first!.id);
    expect(second!.correlationId).not.toBe(first!.correlationId);
    expect(BigInt(second!.fence)).toBeGreaterThan(BigInt(first!.fence));
  });

  it('refuses worker ids shorter than ten characters', async () => {
    await expect(jobs.getJobs('short')).rejects.toThrow(InvalidWorkerIdError);
    await expect(jobs.getJobs(WORKER, { batchSize: 0 })).rejects.toThrow(InvalidArgumentError);
  });

  it('claims only the named tasks and leaves forbidden flags to others', async () => {
    await jobs.addJobs([
      { task: 'a', payload: 'a' },
      { task: 'b', payload: 'flagged', flags: ['gpu', 'slow'] },
      { task: 'b', payload: 'b' },
    ]);
    expect(
      payloads(await jobs.getJobs(WORKER, { batchSize: 9, taskIdentifiers: ['b'], forbiddenFlags: ['gpu'] })),
    ).toEqual(['b']);
    expect(payloads(await jobs.getJobs(WORKER, { batchSize: 9 }))).toEqual(['a', 'flagged']);
  });

  it('takes queues in the given order and leaves jobs without a queue alone', async () => {
    await jobs.addJobs([
      { task: 'x', payload: 'none' },
      { task: 'x', payload: 'first', queue: 'a' },
      { task: 'x', payload: 'second', queue: 'b' },
    ]);
    expect(payloads(await jobs.getJobs(WORKER, { batchSize: 9, queues: ['b', 'a'] }))).toEqual(['second', 'first']);
  });

  it('never gives one job to two workers, however many claim at once', async () => {
    await jobs.addJobs(Array.from({ length: 300 }, (_, n) => ({ task: 'x', payload: n })));
    const claim = async (worker: number): Promise<unknown[]> => {
      const mine: unknown[] = [];
      for (let batch = await jobs.getJobs(`${WORKER}-${worker}`, { batchSize: 7 }); batch.length;) {
        mine.push(...payloads(batch));
        batch = await jobs.getJobs(`${WORKER}-${worker}`, { batchSize: 7 });
      }
      return mine;
    };
    const all = (await Promise.all([1, 2, 3, 4, 5, 6].map(claim))).flat();
    expect(all.toSorted((a, b) => (a as number) - (b as number))).toEqual(Array.from({ length: 300 }, (_, n) => n));
  });

  it('finds jobs of many priorities', async () => {
    const priorities = Array.from({ length: 60 }, (_, n) => (n * 37) % 61);
    await jobs.addJobs(priorities.map((priority) => ({ task: 'x', payload: priority, priority })));
    expect(payloads(await jobs.getJobs(WORKER, { batchSize: 60 }))).toEqual(priorities.toSorted((a, b) => a - b));
  });
});

describe('completeJobs (complete-jobs)', () => {
  it('removes the job and completes its history row', async () => {
    const { id } = await jobs.addJob('x', { a: 1 });
    const claimed = await jobs.getJobs(WORKER);
    expect(await jobs.completeJobs(WORKER, claimed, 42)).toEqual({ settled: claimed, lost: [] });
    expect(await jobs.findJob(id)).toMatchObject({ status: 'completed', attempts: 1, payload: { a: 1 } });
    const [record, ...others] = await jobs.jobHistory(id);
    expect(others).toEqual([]);
    expect(record).toMatchObject({
      jobId: id,
      correlationId: claimed[0]!.correlationId,
      task: 'x',
      payload: { a: 1 },
      workerId: WORKER,
      status: 'completed',
      executionTimeMs: 42,
      attempt: 1,
      errorMessage: null,
    });
    expect(record!.executionEnvironment).toMatchObject({ pid: process.pid });
    expect(record!.expiresAt!.getTime() - record!.completedAt!.getTime()).toBe(30 * 86_400_000);
  });

  it('keeps the results that it is given, job by job', async () => {
    await jobs.addJobs(['a', 'b', 'c'].map((payload) => ({ task: 't', payload })));
    const claimed = await jobs.getJobs(WORKER, { batchSize: 3 });
    const [first, second, third] = claimed.map(({ id }) => id);
    await jobs.completeJobs(WORKER, claimed, 1, { results: [{ pages: 7 }, undefined, 'done'] });
    expect((await jobs.waitForJob(first!)).result).toEqual({ pages: 7 });
    expect((await jobs.waitForJob(second!)).result).toBeNull();
    expect(await jobs.jobHistory(third!)).toMatchObject([{ status: 'completed', result: 'done' }]);
  });

  it('settles nothing where a result is missing, or is one that JSON cannot keep', async () => {
    const { id } = await jobs.addJob('t', 1);
    const claimed = await jobs.getJobs(WORKER);
    const wrong: [unknown, RegExp][] = [
      [{ results: [] }, /a result for each of the 1 jobs, got 0/],
      [{ results: [new Map()] }, /results\[0\]/],
      [{ results: ['x'.repeat(1_100_000)] }, /at most 1048576 bytes/],
      [{ results: 'done' }, /an array/],
      [{ result: [1] }, /did you mean results/i],
    ];
    for (const [options, message] of wrong) {
      await expect(jobs.completeJobs(WORKER, claimed, 1, options as object)).rejects.toThrow(message);
    }
    expect(await jobs.findJob(id)).toMatchObject({ status: 'running' });
  });

  it('settles only jobs locked by that worker', async () => {
    await jobs.addJob('x', 1);
    const claimed = await jobs.getJobs(WORKER);
    expect(await jobs.completeJobs(OTHER, claimed, 1)).toEqual({ settled: [], lost: claimed });
    expect(await jobs.findJob(claimed[0]!.id)).toMatchObject({ status: 'running' });
  });

  it('a worker whose lock was taken cannot complete the job, even if it claimed it again itself', async () => {
    await jobs.addJob('x', 1);
    const stale = await jobs.getJobs(WORKER);
    await jobs.forceUnlockJobs([WORKER]);
    const fresh = await jobs.getJobs(WORKER);
    expect(fresh[0]!.id).toBe(stale[0]!.id);
    expect(await jobs.completeJobs(WORKER, stale, 1)).toEqual({ settled: [], lost: stale });
    expect(await jobs.completeJobs(WORKER, fresh, 1)).toEqual({ settled: fresh, lost: [] });
  });

  it('settles what it can of a batch and reports the rest', async () => {
    await jobs.addJobs([
      { task: 'x', payload: 1 },
      { task: 'x', payload: 2 },
    ]);
    const [one, two] = await jobs.getJobs(WORKER, { batchSize: 2 });
    await jobs.completeJobs(WORKER, [one!], 1);
    expect(await jobs.completeJobs(WORKER, [one!, two!], 1)).toEqual({ settled: [two], lost: [one] });
  });
});

describe('failJobs (fail-jobs)', () => {
  it('retries with backoff and keeps message and stack', async () => {
    await jobs.addJob('x', 1);
    const [job] = await jobs.getJobs(WORKER);
    const error = new Error('smtp is down', { cause: new Error('socket') });
    await jobs.failJobs(WORKER, [{ job: job!, error }], 7);
    const failed = await jobs.findJob(job!.id);
    expect(failed).toMatchObject({ status: 'scheduled', attempts: 1, lastError: 'smtp is down', lockedBy: null });
    expect(failed!.runAt.getTime() - failed!.updatedAt.getTime()).toBe(60_000);
    const [record] = await jobs.jobHistory(job!.id);
    expect(record).toMatchObject({ status: 'failed', errorMessage: 'smtp is down', executionTimeMs: 7 });
    expect(record!.errorStack).toContain('caused by: Error: socket');
  });

  it('exhausts the job with its last attempt', async () => {
    await jobs.addJob('x', 1, { maxAttempts: 1 });
    const [job] = await jobs.getJobs(WORKER);
    await jobs.failJobs(WORKER, [{ job: job!, error: 'gone' }], 1);
    expect(await jobs.findJob(job!.id)).toMatchObject({ status: 'exhausted', attempts: 1, lastError: 'gone' });
    expect(await jobs.getJobs(WORKER)).toEqual([]);
    expect(await jobs.explain(job!.id)).toMatchObject({
      reason: 'exhausted',
      message: expect.stringContaining('gone'),
    });
  });

  const hostile = {
    get message(): string {
      throw new Error('trap');
    },
  };
  const cyclic = new Error('cyclic');
  cyclic.cause = cyclic;
  it.each([
    ['undefined', undefined, 'undefined'],
    ['null', null, 'null'],
    ['a string', 'plain', 'plain'],
    ['an object', { code: 7 }, '{"code":7}'],
    ['an error with NUL', new Error('a\0b'), 'a\uFFFDb'],
    ['a cyclic cause', cyclic, 'cyclic'],
    ['hostile getters', hostile, 'unknown error'],
    ['a symbol', Symbol('s'), 'Symbol(s)'],
  ])('stores what was thrown: %s', async (_name, error, message) => {
    await jobs.addJob('x', 1);
    const [job] = await jobs.getJobs(WORKER);
    expect((await jobs.failJobs(WORKER, [{ job: job!, error }], 1)).settled).toHaveLength(1);
    expect((await jobs.findJob(job!.id))?.lastError).toContain(message);
  });
});

describe('reportPartialSuccess (report-partial-success)', () => {
  const partial = { completedSteps: ['a'], failedSteps: ['b'], retryFromStep: 'b', results: { a: 1 } };

  it('reschedules with backoff, and the next attempt sees the previous partial results', async () => {
    await jobs.addJob('x', 1);
    const [job] = await jobs.getJobs(WORKER);
    expect(job!.previous).toBeNull();
    await jobs.reportPartialSuccess(WORKER, job!, partial, 3);
    expect(await jobs.findJob(job!.id)).toMatchObject({ status: 'scheduled', attempts: 1 });
    expect(await jobs.jobHistory(job!.id)).toMatchObject([{ status: 'partial_success', partialResults: partial }]);
    await jobs.rescheduleJobs([job!.id], { runAt: new Date(0) });
    expect((await jobs.getJobs(WORKER))[0]).toMatchObject({ id: job!.id, previous: partial, attempts: 2 });
  });

  it('exhausts at max attempts', async () => {
    await jobs.addJob('x', 1, { maxAttempts: 1 });
    const [job] = await jobs.getJobs(WORKER);
    await jobs.reportPartialSuccess(WORKER, job!, partial, 3);
    expect(await jobs.findJob(job!.id)).toMatchObject({
      status: 'exhausted',
      lastError: 'max-attempts reached on partial-success',
    });
  });
});

describe('snoozeJob (snooze!)', () => {
  it('puts the job off without using up an attempt', async () => {
    await jobs.addJob('x', 1);
    const [job] = await jobs.getJobs(WORKER);
    await jobs.snoozeJob(WORKER, job!, 60_000);
    expect(await jobs.findJob(job!.id)).toMatchObject({ status: 'snoozed', attempts: 0 });
    expect(await jobs.getJobs(WORKER)).toEqual([]);
    expect(await jobs.explain(job!.id)).toMatchObject({ reason: 'snoozed' });
  });
});
