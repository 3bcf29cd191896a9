import { afterEach, describe, expect, it } from '@jest/globals';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
afterEach(() => test.close());

async function oneOfEach(): Promise<Record<string, string>> {
  const { jobs } = test;
  const [done, failed] = await jobs.addJobs([
    { task: 'done', payload: 1 },
    { task: 'failed', payload: 1 },
  ]);
  const claimed = await jobs.getJobs(WORKER, { batchSize: 2 });
  await jobs.completeJobs(WORKER, [claimed[0]!], 1);
  await jobs.failJobs(WORKER, [{ job: claimed[1]!, error: 'x' }], 1);
  const cancelled = await jobs.addJob('cancelled', 1);
  await jobs.cancelJobs([cancelled.id]);
  return { done: done!.id, failed: failed!.id, cancelled: cancelled.id };
}

describe('history', () => {
  it.each([
    ['all', ['completed', 'failed', 'cancelled']],
    ['failures', ['failed', 'cancelled']],
    ['none', ['cancelled']],
  ] as const)('keep: %s', async (keep, statuses) => {
    test = await createTestManager({ history: { keep } });
    const ids = await oneOfEach();
    const records = (await test.jobs.listHistory()).items.map(({ status }) => status);
    expect(new Set(records)).toEqual(new Set(statuses));
    expect(records).toHaveLength(statuses.length);
    expect(await test.jobs.findJob(ids.done!)).toMatchObject({ status: 'completed' });
    expect(await test.jobs.findJob(ids.cancelled!)).toMatchObject({ status: 'cancelled' });
  });

  it('a job completed without a record is still known for an hour', async () => {
    test = await createTestManager({ history: { keep: 'none' } });
    const ids = await oneOfEach();
    await test.sql(`update jobs.job_bodies set created_at = now() - interval '3 h'`);
    await test.jobs.gcJobHistory();
    expect(await test.jobs.findJob(ids.done!)).toMatchObject({ status: 'completed' });
    await test.sql(`update jobs.settle_receipts set settled_at = now() - interval '2 h'`);
    await test.jobs.gcJobHistory();
    expect(await test.jobs.findJob(ids.done!)).toBeNull();
  });

  it('expires after retentionMs', async () => {
    test = await createTestManager({ history: { retentionMs: 5_000 } });
    await oneOfEach();
    for (const record of (await test.jobs.listHistory({ status: 'completed' })).items) {
      expect(record.expiresAt!.getTime() - record.completedAt!.getTime()).toBe(5_000);
    }
  });
});
