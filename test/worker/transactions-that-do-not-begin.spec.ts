import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
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
/** Whether new transactions are read-only. */
let readOnly = false;
/** What connections wait for. */
let usedUp: Promise<void> | null = null;
let ran = 0;

beforeEach(async () => {
  test = await createTestManager();
  dataSource = await new DataSource({ type: 'postgres', url: test.url, poolSize: 6 }).initialize();
  const create = dataSource.createQueryRunner.bind(dataSource);
  dataSource.createQueryRunner = (...args): QueryRunner => {
    const runner = create(...args);
    const connect = runner.connect.bind(runner);
    runner.connect = async (): Promise<unknown> => {
      tries++;
      if (refusal) throw refusal;
      await usedUp;
      const client = (await connect()) as { query: (text: string) => Promise<unknown> };
      if (readOnly) await client.query('set default_transaction_read_only = on');
      return client;
    };
    return runner;
  };
  tries = 0;
  ran = 0;
  jobs = await createJobManager({ dataSource });
  events = createCollectingEvents();
  const tasks = { t: { handler: () => void ran++, transactional: true } };
  pool = createWorkerPool({ jobs, tasks, events, options: { concurrency: 4, pollIntervalMs: 50 } });
  await pool.start();
});
afterEach(async () => {
  refusal = null;
  readOnly = false;
  usedUp = null;
  await pool.forceStop();
  await jobs.close();
  await dataSource.destroy();
  await test.close();
});

const tooMany = (): Error => Object.assign(new Error('sorry, too many clients already'), { code: '53300' });
const add = (count: number) => test.jobs.addJobs(Array.from({ length: count }, (_, n) => ({ task: 't', payload: n })));
const addFive = () => add(5);
/** How often jobs have been claimed that are not done. */
const claims = async (): Promise<number> =>
  (await test.sql('select coalesce(sum(fence), 0)::integer as claims from jobs.jobs'))[0]!.claims as number;

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

it('open the circuit: however many jobs wait, none is claimed while the trouble lasts', async () => {
  refusal = tooMany();
  await add(500);
  await eventually(() => events.ofType('circuit.open').length === 1);
  await eventually(() => tries >= 6);
  const before = await claims();
  expect(pool.circuit).toBe('open');
  expect(before).toBeLessThan(500);
  const triedBefore = tries;
  await eventually(() => tries >= triedBefore + 2);
  expect(await claims()).toBe(before);
  expect(events.ofType('circuit.open')).toEqual([
    expect.objectContaining({ error: expect.any(DatabaseUnavailableError), unwritten: 0 }),
  ]);
  refusal = null;
  await eventually(() => ran === 500, { timeoutMs: 30_000 });
  expect(pool.circuit).toBe('closed');
  expect(events.ofType('circuit.closed')).toHaveLength(1);
}, 60_000);

it('for another reason put off one job after the other, after longer and longer pauses, of many that wait', async () => {
  refusal = new Error('a subscriber of the application fails');
  await add(500);
  await eventually(() => events.ofType('job.snoozed').length >= 6);
  expect(tries).toBeLessThan(20);
  expect(await test.sql('select max(fence)::integer as fence, max(attempts) as attempts from jobs.jobs')).toEqual([
    { fence: 1, attempts: 1 },
  ]);
}, 60_000);

it('for writing have not begun: a read-only server runs no handler, and no attempt is counted', async () => {
  readOnly = true;
  const added = await addFive();
  await eventually(() => events.ofType('worker.error').length >= 3);
  expect(events.ofType('worker.error')[0]!.error).toMatchObject({
    code: 'ERR_JOBS_DATABASE_UNAVAILABLE',
    message: expect.stringContaining('takes no writes'),
  });
  expect(ran).toBe(0);
  readOnly = false;
  await Promise.all(added.map(({ id }) => test.jobs.waitForJob(id, { timeoutMs: 15_000 })));
  expect(await test.sql('select distinct status, attempt from jobs.job_history')).toEqual([
    { status: 'completed', attempt: 1 },
  ]);
});

describe('for want of a connection, where the application has all of its pool', () => {
  let giveBack: () => void;
  beforeEach(() => {
    usedUp = new Promise((resolve) => (giveBack = resolve));
  });
  afterEach(() => giveBack());

  it('put their job off after some seconds, by a typed error', async () => {
    const { id } = await test.jobs.addJob('t', 1);
    await eventually(() => events.ofType('job.snoozed').length === 1, { timeoutMs: 20_000 });
    expect(events.ofType('worker.error')[0]!.error).toMatchObject({
      code: 'ERR_JOBS_DATABASE_UNAVAILABLE',
      message: expect.stringContaining('gave no connection within'),
    });
    expect(await test.jobs.findJob(id)).toMatchObject({ status: 'snoozed', attempts: 0 });
    giveBack();
    usedUp = null;
    await test.jobs.rescheduleJobs([id], { runAt: new Date() });
    expect(await test.jobs.waitForJob(id, { timeoutMs: 15_000 })).toMatchObject({ status: 'completed' });
  });

  it('end with their job when it is cancelled, and with the pool; a connection that comes later goes back', async () => {
    const added = await addFive();
    await eventually(() => tries >= 4);
    await test.jobs.cancelJobs(added.slice(0, 1).map(({ id }) => id));
    expect(await test.jobs.waitForJob(added[0]!.id, { timeoutMs: 5_000 })).toMatchObject({ status: 'cancelled' });
    await pool.forceStop();
    expect((await test.jobs.counts()).byStatus).toMatchObject({ available: 4, running: 0 });
    giveBack();
    const { master } = dataSource.driver as unknown as { master: { totalCount: number; idleCount: number } };
    await eventually(() => master.totalCount === master.idleCount);
    expect(ran).toBe(0);
  });
});
