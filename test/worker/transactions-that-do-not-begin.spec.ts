import { afterEach, beforeEach, expect, it } from '@jest/globals';
import { DataSource, type QueryRunner } from 'typeorm';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  DatabaseUnavailableError,
  type CollectingJobEvents,
  type JobManager,
  type WorkerPool,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let dataSource: DataSource;
let jobs: JobManager;
let events: CollectingJobEvents;
let pool: WorkerPool;
/** What becomes of tries to begin: as long as it is an error, it is what they end with. */
let refusal: Error | null = null;
let tries = 0;

beforeEach(async () => {
  test = await createTestManager();
  dataSource = await new DataSource({ type: 'postgres', url: test.url, poolSize: 6 }).initialize();
  const create = dataSource.createQueryRunner.bind(dataSource);
  dataSource.createQueryRunner = (...args): QueryRunner => {
    const runner = create(...args);
    const connect = runner.connect.bind(runner);
    runner.connect = (): Promise<unknown> => {
      if (!refusal) return connect();
      tries++;
      return Promise.reject(refusal);
    };
    return runner;
  };
  tries = 0;
  jobs = await createJobManager({ dataSource });
  events = createCollectingEvents();
  const tasks = { t: { handler: () => undefined, transactional: true } };
  pool = createWorkerPool({ jobs, tasks, events, options: { concurrency: 4, pollIntervalMs: 50 } });
  await pool.start();
});
afterEach(async () => {
  refusal = null;
  await pool.forceStop();
  await jobs.close();
  await dataSource.destroy();
  await test.close();
});

const tooMany = (): Error => Object.assign(new Error('sorry, too many clients already'), { code: '53300' });
const addFive = () => test.jobs.addJobs(Array.from({ length: 5 }, (_, n) => ({ task: 't', payload: n })));

it('are tried again by one slot at a time, after longer and longer pauses; no job is claimed again meanwhile', async () => {
  refusal = tooMany();
  const added = await addFive();
  await eventually(() => tries >= 7);
  // The first try of each slot, then one for each pause.
  const errors = events.ofType('worker.error');
  expect(errors.every(({ error }) => error instanceof DatabaseUnavailableError)).toBe(true);
  expect(errors[0]).toMatchObject({ context: expect.stringContaining('beginning the transaction of job') });
  refusal = null;
  const results = await Promise.all(added.map(({ id }) => test.jobs.waitForJob(id, { timeoutMs: 15_000 })));
  expect(results.map(({ status }) => status)).toEqual(added.map(() => 'completed'));
  const records = (await Promise.all(added.map(({ id }) => test.jobs.jobHistory(id)))).flat();
  expect(records).toHaveLength(5);
  expect(await test.sql('select distinct fence::int as fence from jobs.job_history')).toEqual([{ fence: 1 }]);
});

it('end with the pool: their jobs are given back, and no attempt is counted', async () => {
  refusal = tooMany();
  const added = await addFive();
  await eventually(() => tries >= 4);
  await pool.forceStop();
  const found = await Promise.all(added.map(({ id }) => test.jobs.findJob(id)));
  expect(found.map((job) => [job?.status, job?.attempts])).toEqual(added.map(() => ['available', 0]));
});

it('end with their job when it is cancelled', async () => {
  refusal = tooMany();
  const { id } = await test.jobs.addJob('t', 1);
  await eventually(() => tries >= 1);
  await test.jobs.cancelJobs([id]);
  const { status } = await test.jobs.waitForJob(id, { timeoutMs: 15_000 });
  expect(status).toBe('cancelled');
});

it('for another reason put their job off, and no attempt is counted', async () => {
  refusal = new Error('a subscriber of the application fails');
  const { id } = await test.jobs.addJob('t', 1);
  await eventually(() => events.ofType('job.snoozed').length === 1);
  expect(await test.jobs.findJob(id)).toMatchObject({ status: 'snoozed', attempts: 0 });
  expect(events.ofType('worker.error')[0]!.error).toBe(refusal);
});
