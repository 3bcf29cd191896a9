// The rows of the transactional worker and of leased tasks that no other spec carries in its name.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createCollectingEvents,
  createWorkerPool,
  InvalidStatusError,
  JobNotFoundError,
  snooze,
  type JobManager,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, OTHER, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;

beforeEach(async () => {
  test = await createTestManager({ retry: { baseDelayMs: 0, jitter: 0 } });
  jobs = test.jobs;
});
afterEach(() => test.close());

describe('the transactional worker', () => {
  it('schedule: a job is visible only when the caller commits', async () => {
    const client = new pg.Client(test.url);
    await client.connect();
    await client.query('begin');
    const { id } = await jobs.addJob('t', 1, { manager: client });
    expect(await jobs.findJob(id)).toBeNull();
    await client.query('commit');
    await client.end();
    expect(await jobs.findJob(id)).toMatchObject({ status: 'available', queue: null });
  });

  it('schedule-to: a job goes to the queue that is named, else to its task’s', async () => {
    createWorkerPool({ jobs, tasks: { t: { handler: () => 1, queue: 'default' } } });
    const queues = [await jobs.addJob('t', 1), await jobs.addJob('t', 1, { queue: 'explicit' })];
    expect(queues.map(({ queue }) => queue)).toEqual(['default', 'explicit']);
  });

  it('new-worker: does not start by itself; on-fail comes before on-ack', async () => {
    const events = createCollectingEvents();
    const pool = createWorkerPool({ jobs, events, tasks: { t: () => Promise.reject(new Error('no')) } });
    expect(pool.state).toBe('new');
    await jobs.addJob('t', 1, { maxAttempts: 1 });
    await pool.start();
    await eventually(() => events.ofType('job.settled').length === 1);
    await pool.stop();
    const order = events.events().map(({ type }) => type);
    expect(order.indexOf('job.failed')).toBeLessThan(order.indexOf('job.settled'));
    expect(pool.state).toBe('terminated');
  });

  it('every job runs exactly once in a worker of several threads over several queues', async () => {
    const ran: number[] = [];
    const pool = createWorkerPool({
      jobs,
      tasks: { t: (n: number) => void ran.push(n) },
      options: { concurrency: 5, queues: ['a', 'b', 'c'], pollIntervalMs: 20 },
    });
    const queues = ['a', 'b', 'c'];
    await jobs.addJobs(Array.from({ length: 60 }, (_, n) => ({ task: 't', payload: n, queue: queues[n % 3]! })));
    await pool.start();
    await eventually(async () => (await jobs.counts()).byStatus.completed === 60);
    await pool.stop();
    expect(ran.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 60 }, (_, n) => n));
  });

  it('done and failed jobs stay inspectable, can be retried and purged', async () => {
    const { id } = await jobs.addJob('t', 1, { maxAttempts: 1 });
    const [claimed] = await jobs.getJobs(WORKER);
    await jobs.failJobs(WORKER, [{ job: claimed!, error: 'broken' }], 1);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'exhausted', lastError: 'broken' });
    expect(await jobs.retryJobs([id])).toMatchObject([{ status: 'available', attempts: 0 }]);
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER), 1);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'completed' });
    expect(await jobs.purgeJobs({ status: 'completed', olderThanMs: 0 })).toBe(1);
    expect(await jobs.findJob(id)).toBeNull();
  });
});

describe('leased tasks', () => {
  it('create-task!, task (id), tasks (group id): injected ids, groups and tags; null when not found', async () => {
    const added = await jobs.addJob('t', { n: 1 }, { queue: 'topic', tags: ['sub-topic'], groupId: 'g' });
    await jobs.addJob('t', { n: 2 }, { groupId: 'other' });
    expect(await jobs.findJob(added.id)).toMatchObject({ queue: 'topic', tags: ['sub-topic'], groupId: 'g' });
    expect((await jobs.listJobs({ groupId: 'g' })).items.map(({ id }) => id)).toEqual([added.id]);
  });

  it('create-task! injects a group id: a job without one is its own group', async () => {
    const plain = await jobs.addJob('t', 1);
    const keyed = await jobs.addJob('t', 2, { jobKey: 'k', queue: 'q' });
    expect([plain.groupId, keyed.groupId]).toEqual([plain.id, keyed.id]);
    expect((await jobs.findJob(plain.id))?.groupId).toBe(plain.id);
    expect((await jobs.listJobs({ groupId: plain.id })).items.map(({ id }) => id)).toEqual([plain.id]);
    const companion = await jobs.addJob('t', 3, { groupId: plain.id });
    const { items } = await jobs.listJobs({ groupId: plain.id });
    expect(items.map(({ id }) => id)).toEqual([companion.id, plain.id]);
    const claimed = await jobs.getJobs(WORKER, { batchSize: 3 });
    expect(new Set(claimed.map(({ groupId }) => groupId))).toEqual(new Set([plain.id, keyed.id]));
    expect(await jobs.findJob('01900000-0000-7000-8000-000000000000')).toBeNull();
  });

  it('reserve-task!: leases the next one for the lease time, to one worker at a time', async () => {
    const { id } = await jobs.addJob('t', 1);
    expect(await jobs.getJobs(WORKER, { leaseMs: 60_000 })).toMatchObject([{ id, lockedBy: WORKER }]);
    expect(await jobs.getJobs(OTHER)).toEqual([]);
  });

  it('an expired lease is free for others after the next reset (expired leases are cleaned up)', async () => {
    const { id } = await jobs.addJob('t', 1);
    await jobs.getJobs(WORKER, { leaseMs: 1 });
    await eventually(async () => (await jobs.resetLockedJobs()) === 1);
    expect(await jobs.getJobs(OTHER)).toMatchObject([{ id, attempts: 2 }]);
  });

  it('terminate! and fail! end the lease: done, or failed', async () => {
    const [done, failed] = await jobs.addJobs([1, 2].map((payload) => ({ task: 't', payload, maxAttempts: 1 })));
    const claimed = await jobs.getJobs(WORKER, { batchSize: 2 });
    await jobs.completeJobs(WORKER, [claimed[0]!], 1);
    await jobs.failJobs(WORKER, [{ job: claimed[1]!, error: new Error('error-message') }], 1);
    expect(await jobs.findJob(done!.id)).toMatchObject({ status: 'completed' });
    expect(await jobs.findJob(failed!.id)).toMatchObject({ status: 'exhausted', lastError: 'error-message' });
  });

  it('snooze! (outcome snoozed {snooze-time}): not reservable until the time has passed, no attempt used up', async () => {
    const events = createCollectingEvents();
    const answers = [snooze(3_600_000)];
    createWorkerPool({ jobs, events, tasks: { t: () => answers.shift() } });
    const { id } = await jobs.addJob('t', 1);
    await jobs.workOnce();
    expect(await jobs.findJob(id)).toMatchObject({ status: 'snoozed', attempts: 0 });
    expect(await jobs.workOnce()).toBeNull();
    await test.sql(`update jobs.jobs set run_at = now()`);
    expect(await jobs.workOnce()).toMatchObject({ job: { status: 'completed', attempts: 1 } });
  });

  it('extend-lease! on what is not claimed tells why: task-not-found, invalid-status', async () => {
    const { id } = await jobs.addJob('t', 1);
    await expect(jobs.extendLease(WORKER, id)).rejects.toThrow(InvalidStatusError);
    await expect(jobs.extendLease(WORKER, '01900000-0000-7000-8000-000000000000')).rejects.toThrow(JobNotFoundError);
  });

  it('completed and cancelled are final; only retryJobs brings back what was cancelled or exhausted', async () => {
    const [completed, cancelled] = await jobs.addJobs([1, 2].map((payload) => ({ task: 't', payload })));
    await jobs.cancelJobs([cancelled!.id]);
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER), 1);
    const ids = [completed!.id, cancelled!.id];
    expect(await jobs.permanentlyFailJobs(ids)).toEqual([]);
    expect(await jobs.rescheduleJobs(ids, { priority: 1 })).toEqual([]);
    expect((await jobs.retryJobs(ids)).map(({ id }) => id)).toEqual([cancelled!.id]);
  });
});
