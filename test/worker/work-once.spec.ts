import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import {
  createWorkerPool,
  type JobContext,
  type JobManager,
  type PlainTask,
  ShutdownError,
  StoppedError,
} from '../../lib/index.js';
import { createJobManager } from '../../lib/index.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;

beforeEach(async () => {
  test = await createTestManager();
  jobs = await createJobManager({ connection: test.url });
});
afterEach(async () => {
  await jobs.close();
  await test.close();
});

const handle = (handler: PlainTask): unknown => createWorkerPool({ jobs, tasks: { t: handler } });

function later() {
  let resolve!: () => void;
  const promise = new Promise<void>((done) => (resolve = done));
  return { promise, resolve };
}

describe('closing a manager while workOnce runs', () => {
  it('aborts the handler, and gives the job back without counting the attempt', async () => {
    const started = later();
    let reason: unknown;
    handle(async (_: unknown, ctx: JobContext) => {
      started.resolve();
      await new Promise((_resolve, reject) => {
        ctx.signal.addEventListener('abort', () => reject((reason = ctx.signal.reason) as Error));
      });
    });
    const { id } = await test.jobs.addJob('t', 1);
    const work = jobs.workOnce();
    await started.promise;
    await jobs.close();
    expect(await work).toMatchObject({ job: { id, status: 'available', attempts: 0 } });
    expect(reason).toBeInstanceOf(ShutdownError);
  });

  it('leaves a handler to its lease that does not stop, and ends', async () => {
    const [started, deaf] = [later(), later()];
    handle(() => (started.resolve(), deaf.promise));
    const { id } = await test.jobs.addJob('t', 1);
    const work = jobs.workOnce().catch((error: unknown) => error);
    await started.promise;
    await jobs.close();
    expect(await test.jobs.findJob(id)).toMatchObject({ status: 'running' });
    deaf.resolve();
    expect(await work).toBeInstanceOf(StoppedError);
    await test.sql('update jobs.jobs set locked_by = null');
  });

  it('may be the handler’s own doing', async () => {
    handle(() => jobs.close());
    await test.jobs.addJob('t', 1);
    await expect(jobs.workOnce()).rejects.toBeInstanceOf(StoppedError);
  });

  it('takes nothing more', async () => {
    handle(() => undefined);
    await test.jobs.addJob('t', 1);
    await jobs.close();
    await expect(jobs.workOnce()).rejects.toBeInstanceOf(StoppedError);
  });
});

it('a transaction that could not be prepared once is prepared the next time, and the job is given back', async () => {
  handle({ handler: () => 'done', transactional: true });
  const { id } = await test.jobs.addJob('t', 1);
  const allow = (allowed: boolean) =>
    test.sql(`update pg_database set datallowconn = ${allowed} where datname = current_database()`);
  await jobs.counts();
  await allow(false);
  await expect(jobs.workOnce()).rejects.toThrow('not currently accepting connections');
  await allow(true);
  expect(await test.jobs.findJob(id)).toMatchObject({ status: 'available', attempts: 0 });
  expect(await jobs.workOnce()).toMatchObject({ job: { id, status: 'completed' } });
});

it('runs the tasks of all pools of its manager', async () => {
  createWorkerPool({ jobs, tasks: { first: () => 1 } });
  createWorkerPool({ jobs, tasks: { second: () => 2 } });
  await test.jobs.addJobs([
    { task: 'first', payload: 1 },
    { task: 'second', payload: 2 },
  ]);
  expect([(await jobs.workOnce())?.job.task, (await jobs.workOnce())?.job.task]).toEqual(['first', 'second']);
  expect(await jobs.workOnce()).toBeNull();
});
