import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { InvalidArgumentError, UnknownParentError, type AddJobOptions, type JobManager } from '../../lib/index.js';
import { createTestManager, OTHER, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;

beforeEach(async () => {
  test = await createTestManager({ retry: { baseDelayMs: 0, jitter: 0 } });
  jobs = test.jobs;
});
afterEach(() => test.close());

const add = (options: AddJobOptions = {}, payload: unknown = null) => jobs.addJob('t', payload, options);
const statusOf = async (id: string) => (await jobs.findJob(id))?.status;
const claim = (count = 1) => jobs.getJobs(WORKER, { batchSize: count });

async function complete(count = 1): Promise<string[]> {
  const claimed = await claim(count);
  await jobs.completeJobs(WORKER, claimed, 1);
  return claimed.map(({ id }) => id);
}

async function exhaust(id: string): Promise<void> {
  await jobs.permanentlyFailJobs([id], 'broken');
}

const unknown = '01900000-0000-7000-8000-000000000000';

describe('dependsOn (create-task!, parent tasks)', () => {
  it('a job waits until all of its parents have completed', async () => {
    const parents = [await add(), await add()];
    const child = await add({ dependsOn: parents.map(({ id }) => id) });
    expect(child).toMatchObject({ status: 'blocked', created: true });
    expect(await complete(3)).toHaveLength(2);
    expect(await statusOf(child.id)).toBe('available');
    expect(await complete()).toEqual([child.id]);
  });

  it.each([
    ['its parents', async () => (await add({ dependsOn: [(await add()).id] })).id],
    [
      'the holder of its key',
      async () => {
        await add({ jobKey: 'k' });
        const [holder] = await claim();
        const { id } = await add({ jobKey: 'k' });
        await test.sql(`update jobs.jobs set run_at = run_at - interval '1 h' where parked is not null`);
        await jobs.completeJobs(WORKER, [holder!], 1);
        return id;
      },
    ],
  ])('the time for which %s blocked it is no waiting for a worker', async (_what, addBlocked) => {
    const id = await addBlocked();
    await test.sql(`update jobs.jobs set run_at = run_at - interval '1 h' where parked is not null`);
    if ((await statusOf(id)) === 'blocked') await complete();
    expect(await statusOf(id)).toBe('available');
    expect((await jobs.counts()).oldestDueAgeMs).toBeLessThan(60_000);
    expect(await complete()).toEqual([id]);
    expect((await jobs.jobHistory(id)).at(-1)!.queueTimeMs).toBeLessThan(60_000);
  });

  it('explain names the parents it still waits for', async () => {
    const [first, second] = [await add(), await add()];
    const child = await add({ dependsOn: [first.id, second.id] });
    await complete();
    expect(await jobs.explain(child.id)).toEqual({
      status: 'blocked',
      reason: 'parents',
      message: 'It waits for 1 job it depends on.',
      pause: null,
      until: null,
      blockedBy: [second.id],
    });
  });

  it('a parent that has completed already holds up no child', async () => {
    const parent = await add();
    await complete();
    expect(await add({ dependsOn: [parent.id, parent.id] })).toMatchObject({ status: 'available' });
  });

  it('a chain runs in its order, and a fan-in after all of its branches', async () => {
    const root = await add();
    const branches = [await add({ dependsOn: [root.id] }), await add({ dependsOn: [root.id] })];
    const end = await add({ dependsOn: branches.map(({ id }) => id) });
    const order: string[] = [];
    for (let ran = await complete(10); ran.length; ran = await complete(10)) order.push(...ran);
    expect(order).toEqual([root.id, ...branches.map(({ id }) => id), end.id]);
  });

  it('is kept with the other options: a run-at in the future still counts after the parents', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent.id], delayMs: 3_600_000 });
    await complete();
    expect(await statusOf(child.id)).toBe('scheduled');
  });

  it('works in the caller’s transaction, parents included', async () => {
    const client = new pg.Client(test.url);
    await client.connect();
    await client.query('begin');
    const parent = await add({ manager: client });
    const child = await add({ manager: client, dependsOn: [parent.id] });
    await client.query('commit');
    await client.end();
    expect(child.status).toBe('blocked');
    await complete();
    expect(await statusOf(child.id)).toBe('available');
  });

  it('on unknown jobs is refused, and nothing is inserted', async () => {
    const parent = await add();
    await expect(add({ dependsOn: [parent.id, unknown] })).rejects.toThrow(UnknownParentError);
    await expect(
      jobs.addJobs([
        { task: 'a', payload: 1 },
        { task: 't', payload: 1, dependsOn: [unknown] },
      ]),
    ).rejects.toThrow(unknown);
    expect((await jobs.listJobs()).items).toHaveLength(1);
  });

  it('with wrong options is refused', async () => {
    await expect(add({ dependsOn: ['x'] })).rejects.toThrow(InvalidArgumentError);
    await expect(add({ onParentFailure: 'run' })).rejects.toThrow(/dependsOn beside onParentFailure/);
    await expect(add({ dependsOn: [unknown], onParentFailure: 'explode' as 'run' })).rejects.toThrow(
      /'cancel', 'run', 'wait'/,
    );
  });

  it('counts a parent that was retried by an operator once it completes', async () => {
    const parent = await add({ maxAttempts: 1 });
    const child = await add({ dependsOn: [parent.id], onParentFailure: 'wait' });
    await exhaust(parent.id);
    expect(await statusOf(child.id)).toBe('blocked');
    await jobs.retryJobs([parent.id]);
    await complete();
    expect(await statusOf(child.id)).toBe('available');
  });
});

describe('when a parent fails for good', () => {
  it('and is purged, no job waits for it any more: the child that did is cancelled', async () => {
    const [parent, other] = [await add({ maxAttempts: 1 }), await add({ delayMs: 60_000 })];
    const child = await add({ dependsOn: [parent.id, other.id], onParentFailure: 'wait' });
    const grandchild = await add({ dependsOn: [child.id], onParentFailure: 'run' });
    await exhaust(parent.id);
    expect(await statusOf(child.id)).toBe('blocked');
    expect(await jobs.purgeJobs({ status: 'exhausted', olderThanMs: 0 })).toBe(1);
    expect(await jobs.findJob(child.id)).toMatchObject({
      status: 'cancelled',
      lastError: expect.stringContaining(parent.id),
    });
    expect(await statusOf(grandchild.id)).toBe('available');
    expect(await test.sql('select from jobs.job_dependencies where parent_id = $1', [parent.id])).toEqual([]);
  });

  it.each([
    ['cancel', 'cancelled'],
    ['run', 'available'],
    ['wait', 'blocked'],
  ] as const)('onParentFailure: %s leaves the child %s', async (onParentFailure, status) => {
    const parent = await add({ maxAttempts: 1 });
    const child = await add({ dependsOn: [parent.id], onParentFailure });
    const [claimed] = await claim();
    await jobs.failJobs(WORKER, [{ job: claimed!, error: new Error('boom') }], 1);
    expect(await statusOf(child.id)).toBe(status);
  });

  it('the child is cancelled by default, with a reason, and so is all that depends on it', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent.id] });
    const grandchild = await add({ dependsOn: [child.id] });
    await jobs.cancelJobs([parent.id]);
    expect(await jobs.findJob(child.id)).toMatchObject({
      status: 'cancelled',
      lastError: `parent job ${parent.id} did not complete`,
    });
    expect(await statusOf(grandchild.id)).toBe('cancelled');
    expect(await test.sql('select * from jobs.job_dependencies')).toEqual([]);
  });

  it('a child added afterwards is treated the same', async () => {
    const parent = await add();
    await exhaust(parent.id);
    expect(await add({ dependsOn: [parent.id] })).toMatchObject({ status: 'cancelled' });
    expect(await add({ dependsOn: [parent.id], onParentFailure: 'run' })).toMatchObject({ status: 'available' });
  });

  it('a failed attempt that will be retried is no failure for good', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent.id] });
    const [claimed] = await claim();
    await jobs.failJobs(WORKER, [{ job: claimed!, error: 'once' }], 1);
    expect(await statusOf(child.id)).toBe('blocked');
  });

  it('a parent whose worker died on its last attempt counts as failed', async () => {
    const parent = await add({ maxAttempts: 1 });
    const child = await add({ dependsOn: [parent.id] });
    await claim();
    await jobs.forceUnlockJobs();
    expect(await statusOf(child.id)).toBe('cancelled');
  });

  it('a cancelled child can be retried, and then waits for no parent', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent.id] });
    await jobs.cancelJobs([parent.id]);
    expect(await jobs.retryJobs([child.id])).toMatchObject([{ status: 'available' }]);
  });

  it('an exhausted child that is retried goes on waiting for its parents', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent.id] });
    await exhaust(child.id);
    expect(await jobs.retryJobs([child.id])).toMatchObject([{ status: 'blocked' }]);
    await complete();
    expect(await statusOf(child.id)).toBe('available');
  });
});

describe('dependencies and job keys', () => {
  it('dependents follow the job that replaces their parent', async () => {
    const old = await add({ jobKey: 'k' });
    const child = await add({ dependsOn: [old.id] });
    const replacement = await add({ jobKey: 'k' });
    expect((await jobs.explain(child.id)).blockedBy).toEqual([replacement.id]);
    expect(await complete()).toEqual([replacement.id]);
    expect(await statusOf(child.id)).toBe('available');
  });

  it('dependents of a running job follow its replacement, too', async () => {
    const old = await add({ jobKey: 'k' });
    const child = await add({ dependsOn: [old.id] });
    const running = await claim();
    await add({ jobKey: 'k' });
    await jobs.completeJobs(WORKER, running, 1);
    expect(await statusOf(child.id)).toBe('blocked');
    await complete();
    expect(await statusOf(child.id)).toBe('available');
  });

  it('a replacement that is a child waits for the old job to leave, then for its parents', async () => {
    const parent = await add({ priority: 1 });
    const old = await add({ jobKey: 'k' });
    const running = await claim();
    expect(running[0]!.id).toBe(old.id);
    const child = await add({ jobKey: 'k', dependsOn: [parent.id] });
    await jobs.completeJobs(WORKER, running, 1);
    expect((await jobs.explain(child.id)).reason).toBe('parents');
    await complete();
    expect(await statusOf(child.id)).toBe('available');
  });

  it('preserve_run_at takes over the new parents', async () => {
    const [first, second] = [await add({ priority: 5 }), await add()];
    const child = await add({ jobKey: 'k', dependsOn: [first.id] });
    const again = await add({ jobKey: 'k', jobKeyMode: 'preserve_run_at', dependsOn: [second.id] });
    expect(again).toMatchObject({ id: child.id, created: false, status: 'blocked' });
    expect(await complete()).toEqual([second.id]);
    expect(await statusOf(child.id)).toBe('available');
  });
});

describe('races', () => {
  it('two parents that are settled at once leave the child ready, however they meet', async () => {
    for (let round = 0; round < 10; round++) {
      const parents = [await add(), await add()];
      const child = await add({ dependsOn: parents.map(({ id }) => id) });
      const [one] = await jobs.getJobs(WORKER);
      const [two] = await jobs.getJobs(OTHER);
      await Promise.all([jobs.completeJobs(WORKER, [one!], 1), jobs.completeJobs(OTHER, [two!], 1)]);
      expect(await statusOf(child.id)).toBe('available');
      await complete();
    }
  });

  it('a parent is settled while an open transaction adds a child to it, and the child is told after its commit', async () => {
    const parent = await add();
    const [claimed] = await claim();
    const client = new pg.Client(test.url);
    await client.connect();
    await client.query('begin');
    const child = await add({ manager: client, dependsOn: [parent.id] });
    expect(await jobs.completeJobs(WORKER, [claimed!], 1)).toMatchObject({ lost: [] });
    expect(await statusOf(parent.id)).toBe('completed');
    await client.query('commit');
    await client.end();
    expect(await statusOf(child.id)).toBe('blocked');
    await jobs.resetLockedJobs();
    expect(await statusOf(child.id)).toBe('available');
  });

  it('children of a settle that died before it told them are told by the next reset', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent.id] });
    await test.sql(`delete from jobs.jobs where id = $1`, [parent.id]);
    expect(await statusOf(child.id)).toBe('blocked');
    await jobs.resetLockedJobs();
    expect(await statusOf(child.id)).toBe('available');
  });
});
