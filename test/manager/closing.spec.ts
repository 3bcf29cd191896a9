// What becomes of adds that are under way when their manager is closed.
import { afterEach, beforeEach, expect, it, jest } from '@jest/globals';
import pg from 'pg';
import { DataSource } from 'typeorm';
import { createJobManager, defineTask, StoppedError, type JobManager } from '../../lib/index.js';
import type { StandardSchema } from '../../lib/interfaces/task.interface.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let dataSource: DataSource;
let shared: JobManager;

beforeEach(async () => {
  test = await createTestManager();
  dataSource = await new DataSource({ type: 'postgres', url: test.url }).initialize();
  shared = await createJobManager({ dataSource });
});
afterEach(async () => {
  await dataSource.destroy();
  await test.close();
});

const stored = async () => (await test.sql('select task from jobs.job_bodies')).map(({ task }) => task as string);
const reasonsOf = async (adds: Promise<unknown>[]) =>
  (await Promise.allSettled(adds)).map((add) => (add as PromiseRejectedResult).reason as unknown);

it('close() ends although a payload’s check does not, and what was not sent by then never is', async () => {
  let answer!: () => void;
  const answered = new Promise<void>((resolve) => (answer = resolve));
  const schema: StandardSchema<any> = {
    '~standard': { version: 1, vendor: 'test', validate: (value) => answered.then(() => ({ value })) },
  };
  const checked = defineTask('checked', schema);
  const adds = [test.jobs, shared].flatMap((jobs) => [
    jobs.addJob(checked, 1),
    jobs.addJob(checked, 2, { jobKey: 'k' }),
  ]);
  const reasons = reasonsOf(adds);
  await Promise.all([test.jobs.close(), shared.close()]);
  answer();
  expect(await reasons).toEqual(Array(4).fill(expect.any(StoppedError)));
  expect(await stored()).toEqual([]);
}, 30_000);

it('close() ends although a locked table keeps the adds of a DataSource waiting, and they are refused', async () => {
  const holder = new pg.Client(test.url);
  await holder.connect();
  await holder.query('begin; lock table jobs.jobs');
  const adds = Array.from({ length: 6 }, (_, n) => shared.addJob('x', n, n % 2 ? { jobKey: `k${n}` } : {}));
  adds.push(shared.addJobs([{ task: 'x', payload: 1 }]) as never);
  const reasons = reasonsOf(adds);
  await shared.close();
  // While the lock is held: a try that is under way may still go through.
  expect(await reasons).toEqual(Array(7).fill(expect.any(StoppedError)));
  await holder.query('commit');
  await holder.end();
  expect(await stored()).toEqual([]);
}, 30_000);

it('close() ends although the application goes on adding, whose adds are refused from then on', async () => {
  let refused = 0;
  let closed = false;
  const goOn = async (): Promise<void> => {
    while (!refused || !closed) await shared.addJob('x', 1).catch(() => refused++);
  };
  const loops = [goOn(), goOn()];
  await shared.close();
  closed = true;
  await Promise.all(loops);
  const count = (await stored()).length;
  await expect(shared.addJob('x', 1)).rejects.toThrow(StoppedError);
  await expect(shared.addJobs([{ task: 'x', payload: 1, jobKey: 'k' }])).rejects.toThrow(StoppedError);
  expect(await stored()).toHaveLength(count);
  // A caller's transaction is the caller's.
  await dataSource.transaction((manager) => shared.addJob('y', 1, { manager }));
  expect(await stored()).toHaveLength(count + 1);
}, 30_000);

it('an add does not fail because the manager was closed after its commit', async () => {
  const parent = await shared.addJob('parent', 1);
  jest.spyOn(shared.engine.promoter, 'resolve').mockRejectedValueOnce(new StoppedError('closed'));
  await expect(shared.addJob('child', 1, { dependsOn: [parent.id] })).resolves.toMatchObject({ status: 'blocked' });

  const { database } = shared.engine;
  const run = database.run.bind(database);
  jest.spyOn(database, 'run').mockImplementation((statement, values, executor) => {
    if (statement.name === 'find_jobs') return Promise.reject(new StoppedError('closed'));
    return run(statement, values, executor);
  });
  await expect(shared.addJob('keyed', 1, { jobKey: 'k' })).resolves.toMatchObject({ created: true });
  await expect(shared.addJob('kept', 1, { jobKey: 'k', jobKeyMode: 'preserve_run_at' })).rejects.toMatchObject({
    inDoubt: true,
  });
  await shared.close();
});
