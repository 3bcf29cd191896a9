// What the other specs of this folder have found, each as the shortest story that shows it.
import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import type { AddJobOptions, ClaimedJob, JobManager } from '../../lib/index.js';
import { byHand } from '../../lib/manager/worker.registry.js';
import { createTestManager, OTHER, WORKER, type TestManager } from '../support/manager.js';
import { expectInvariants } from './invariants.js';
import { emptyTables } from './tables.js';

let test: TestManager;
let jobs: JobManager;

beforeAll(async () => {
  test = await createTestManager();
  jobs = test.jobs;
});
afterAll(() => test.close());
beforeEach(() => emptyTables(test.sql));

const add = (options: AddJobOptions = {}) => jobs.addJob('x', 1, options);
const claim = (worker = WORKER) => jobs.getJobs(worker, { batchSize: 10 });
const claimOne = async (): Promise<ClaimedJob> => (await claim())[0]!;
const statusOf = async ({ id }: { id: string }) => (await jobs.findJob(id))?.status;

describe('jobs that wait for parents', () => {
  it('an exhausted child that is retried does not wait for a parent that has failed meanwhile', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent.id] });
    await jobs.permanentlyFailJobs([child.id]);
    await jobs.permanentlyFailJobs([parent.id]);
    await expectInvariants(test.sql);
    await jobs.retryJobs([child.id]);
    expect(await statusOf(child)).toBe('available');
  });

  it('a cancelled child that is retried waits for its parents as before', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent.id] });
    await jobs.cancelJobs([child.id]);
    await jobs.retryJobs([child.id]);
    expect(await statusOf(child)).toBe('blocked');
    await expectInvariants(test.sql);

    await jobs.completeJobs(WORKER, [await claimOne()], 1);
    expect(await statusOf(child)).toBe('available');
    await expectInvariants(test.sql);
  });

  it('a cancelled child that is retried after its parent has completed is ready', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent.id] });
    await jobs.cancelJobs([child.id]);
    await jobs.completeJobs(WORKER, [await claimOne()], 1);
    await jobs.retryJobs([child.id]);
    expect(await statusOf(child)).toBe('available');
    await expectInvariants(test.sql);
  });
});

describe('jobs whose key was taken while they ran', () => {
  it('one that is given back unstarted gives way', async () => {
    const old = await add({ jobKey: 'k' });
    const running = await claimOne();
    const fresh = await add({ jobKey: 'k' });
    await jobs.settlement.release(byHand(WORKER, 60_000), [running]);
    expect([await statusOf(old), await statusOf(fresh)]).toEqual(['cancelled', 'available']);
    expect((await claim()).map(({ id }) => id)).toEqual([fresh.id]);
    await expectInvariants(test.sql);
  });

  it('one that an operator fails and retries, once its key is free, has all its attempts again', async () => {
    const old = await add({ jobKey: 'k' });
    await claim();
    await add({ jobKey: 'k' });
    await jobs.permanentlyFailJobs([old.id]);
    await jobs.completeJobs(WORKER, await claim(), 1);
    await jobs.retryJobs([old.id]);
    await jobs.failJobs(WORKER, [{ job: await claimOne(), error: 'once more' }], 1);
    expect(await statusOf(old)).toBe('scheduled');
    await expectInvariants(test.sql);
  });

  it('a successor that is cancelled and retried still waits behind it', async () => {
    await add({ jobKey: 'k' });
    const running = await claimOne();
    const fresh = await add({ jobKey: 'k' });
    await jobs.cancelJobs([fresh.id]);
    await jobs.retryJobs([fresh.id]);
    await expectInvariants(test.sql);
    expect(await claim(OTHER)).toEqual([]);
    await jobs.completeJobs(WORKER, [running], 1);
    expect((await claim(OTHER)).map(({ id }) => id)).toEqual([fresh.id]);
  });
});

it('a job that is asked to stop, then failed for good, then retried, can be completed', async () => {
  const job = await add();
  await claim();
  await jobs.cancelJobs([job.id]);
  await jobs.permanentlyFailJobs([job.id]);
  await jobs.retryJobs([job.id]);
  await jobs.completeJobs(WORKER, [await claimOne()], 1);
  expect(await statusOf(job)).toBe('completed');
});

it('a parent that is exhausted by a lower maximum of attempts tells its children', async () => {
  const parent = await add({ maxAttempts: 5 });
  const child = await add({ dependsOn: [parent.id] });
  await jobs.failJobs(WORKER, [{ job: await claimOne(), error: 'x' }], 1);
  await jobs.rescheduleJobs([parent.id], { maxAttempts: 1 });
  expect(await statusOf(child)).toBe('cancelled');
  await expectInvariants(test.sql);
});

/** In a transaction of a stranger, open until the end. */
async function beside(text: string, values: unknown[], work: (client: pg.Client) => Promise<void>): Promise<void> {
  const client = new pg.Client(test.url);
  await client.connect();
  try {
    await client.query('begin');
    await client.query(text, values);
    await work(client);
    await client.query('commit');
  } finally {
    await client.end();
  }
}

it('a claim takes the next in line while an open transaction holds the first, and nothing while it holds the queue', async () => {
  const first = await add({ queue: 'q' });
  const second = await add({ queue: 'q' });
  await jobs.pauseQueue('q');
  await jobs.resumeQueue('q');
  await beside('select from jobs.job_queues where name = $1 for update', ['q'], async () => {
    expect(await claim()).toEqual([]);
  });
  await beside('select from jobs.jobs where id = $1 for update', [first.id], async () => {
    const claimed = await claim();
    expect(claimed.map(({ id }) => id)).toEqual([second.id]);
    await jobs.completeJobs(WORKER, claimed, 1);
  });
  expect((await claim()).map(({ id }) => id)).toEqual([first.id]);
  await expectInvariants(test.sql);
});

it('an open transaction that adds a child keeps nothing from its parent, and the child is told when it is there', async () => {
  const parent = await add({ queue: 'q' });
  const client = new pg.Client(test.url);
  await client.connect();
  try {
    await client.query('begin');
    const child = await jobs.addJob('x', 1, { dependsOn: [parent.id], manager: client });
    expect((await jobs.completeJobs(WORKER, await claim(), 1)).settled).toHaveLength(1);
    await client.query('commit');
    await jobs.promoter.sweepNow();
    expect(await statusOf(child)).toBe('available');
  } finally {
    await client.end();
  }
  await expectInvariants(test.sql);
});

describe('a chain of jobs with one key', () => {
  it('a job that takes the key of a waiting successor waits behind the running job as well', async () => {
    await add({ jobKey: 'k' });
    await claim();
    await add({ jobKey: 'k' });
    await add({ jobKey: 'k' });
    expect(await claim(OTHER)).toEqual([]);
  });

  it('a waiting successor that is described anew still waits behind the running job', async () => {
    await add({ jobKey: 'k' });
    await claim();
    await add({ jobKey: 'k' });
    await add({ jobKey: 'k', jobKeyMode: 'preserve_run_at' });
    expect(await claim(OTHER)).toEqual([]);
  });

  it('a job that is described anew without parents forgets those that it had', async () => {
    const parent = await add();
    const child = await add({ jobKey: 'k', dependsOn: [parent.id] });
    await add({ jobKey: 'k', jobKeyMode: 'preserve_run_at' });
    await jobs.cancelJobs([child.id]);
    await jobs.retryJobs([child.id]);
    expect(await statusOf(child)).toBe('available');
  });
});

it('a cancelled job that is retried while others purge is not purged', async () => {
  const job = await add();
  await jobs.cancelJobs([job.id]);
  const client = new pg.Client(test.url);
  await client.connect();
  try {
    await client.query('begin');
    await jobs.within(client).retryJobs([job.id]);
    expect(await jobs.purgeJobs({ status: 'cancelled', olderThanMs: 0 })).toBe(0);
    await client.query('commit');
  } finally {
    await client.end();
  }
  expect(await statusOf(job)).toBe('available');
  await expectInvariants(test.sql);
});
