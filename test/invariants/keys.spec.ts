// What the other specs of this folder have found about job keys, each as the shortest story that shows it.
import { beforeAll, describe, expect, it } from '@jest/globals';
import { byHand } from '../../lib/manager/worker.registry.js';
import { OTHER, WORKER } from '../support/manager.js';
import { expectInvariants } from './invariants.js';
import { tellStories } from './stories.js';

const { scene, add, claim, claimOne, statusOf } = tellStories();
let { test, jobs } = scene;
beforeAll(() => void ({ test, jobs } = scene));

describe('jobs whose key was taken while they ran', () => {
  it('one that is given back unstarted gives way', async () => {
    const old = await add({ jobKey: 'k' });
    const running = await claimOne();
    const fresh = await add({ jobKey: 'k' });
    await jobs.engine.settlement.release(byHand(WORKER, 60_000), [running]);
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

describe('a job that took the key of one that still runs waits for it to leave', () => {
  const takeKey = async () => {
    await add({ jobKey: 'k' });
    const running = await claimOne();
    return { running, fresh: await add({ jobKey: 'k' }) };
  };

  it('also after it was failed for good and retried', async () => {
    const { fresh } = await takeKey();
    await jobs.permanentlyFailJobs([fresh.id]);
    await jobs.retryJobs([fresh.id]);
    expect(await claim(OTHER)).toEqual([]);
  });

  it('also after it was failed for good and rescheduled', async () => {
    const { fresh } = await takeKey();
    await jobs.permanentlyFailJobs([fresh.id]);
    await jobs.rescheduleJobs([fresh.id], { maxAttempts: 9 });
    expect(await claim(OTHER)).toEqual([]);
  });

  it('also where another one in between was replaced, and it was cancelled and retried', async () => {
    await takeKey();
    const last = await add({ jobKey: 'k' });
    await jobs.cancelJobs([last.id]);
    await jobs.retryJobs([last.id]);
    expect(await claim(OTHER)).toEqual([]);
  });

  it('also where the one before it had failed for good', async () => {
    const { fresh } = await takeKey();
    await jobs.permanentlyFailJobs([fresh.id]);
    await add({ jobKey: 'k' });
    expect(await claim(OTHER)).toEqual([]);
  });
});

it('a retried child waits for the job that has replaced its parent, however often that was replaced', async () => {
  const parent = await add({ jobKey: 'k' });
  const child = await add({ dependsOn: [parent.id] });
  await jobs.permanentlyFailJobs([parent.id]);
  expect(await statusOf(child)).toBe('cancelled');
  await add({ jobKey: 'k' });
  await add({ jobKey: 'k' });
  await jobs.retryJobs([child.id]);
  expect(await statusOf(child)).toBe('blocked');
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

  it('a waiting successor that is described again still waits behind the running job', async () => {
    await add({ jobKey: 'k' });
    await claim();
    await add({ jobKey: 'k' });
    await add({ jobKey: 'k', jobKeyMode: 'preserve_run_at' });
    expect(await claim(OTHER)).toEqual([]);
  });

  it('a job that is described again without parents forgets those that it had', async () => {
    const parent = await add();
    const child = await add({ jobKey: 'k', dependsOn: [parent.id] });
    await add({ jobKey: 'k', jobKeyMode: 'preserve_run_at' });
    await jobs.cancelJobs([child.id]);
    await jobs.retryJobs([child.id]);
    expect(await statusOf(child)).toBe('available');
  });
});
