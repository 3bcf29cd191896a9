// Tables that are emptied, or set back to an older state, under a pool that goes on: nothing stays running for ever, limits
// hold, and what is added afterwards runs.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import {
  createCollectingEvents,
  createWorkerPool,
  type CollectingJobEvents,
  type JobContext,
  type JobManager,
  type WorkerPool,
} from '../../lib/index.js';
import { TABLES_OF_JOBS } from '../../lib/storage/statements/testing.js';
import { expectInvariants } from '../invariants/invariants.js';
import { watchLimits } from '../invariants/tables.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
let events: CollectingJobEvents;
let pool: WorkerPool;
let aborted: unknown[];
let ran: unknown[];

beforeEach(async () => {
  test = await createTestManager({ retry: { baseDelayMs: 1, jitter: 0 } });
  jobs = test.jobs;
  await watchLimits(test.sql);
  events = createCollectingEvents();
  [aborted, ran] = [[], []];
  const t = async (payload: unknown, { signal }: JobContext): Promise<void> => {
    ran.push(payload);
    if (payload !== 'long' || ran.filter((other) => other === 'long').length > 1) return;
    await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }));
    aborted.push(payload);
  };
  const options = { concurrency: 4, leaseMs: 5_000, keepaliveMs: 200, pollIntervalMs: 50 };
  pool = createWorkerPool({ jobs, tasks: { t }, events, options });
  await pool.start();
});
afterEach(async () => {
  await pool.forceStop();
  await test.close();
});

const add = (payload: unknown, queue?: string) =>
  jobs.addJob('t', payload, { maxAttempts: 9, ...(queue && { queue }) });
const begun = (payload: unknown, times = 1) =>
  eventually(() => ran.filter((other) => other === payload).length >= times);
/** Nothing that runs, waits or is counted is left, and no claim was one too many. */
const expectRest = async (): Promise<void> => {
  await eventually(async () => !(await test.sql('select from jobs.jobs')).length, { timeoutMs: 20_000 });
  await eventually(async () => !(await test.sql('select from jobs.job_places')).length);
  await eventually(async () => {
    await expectInvariants(test.sql);
    return true;
  });
  const errors = events.ofType('worker.error').map(({ error }) => (error as Error).message);
  expect(errors.filter((message) => /a claim brought|which is not registered|which is paused/.test(message))).toEqual(
    [],
  );
};

/** What the audit asks about, it asks at once: claims that are not quite new. */
const hurryAudits = () =>
  test.sql(`
    with older as (update jobs.jobs set locked_at = locked_at - interval '1 min' where locked_by is not null)
    update jobs.duties set due_at = '2000-01-01'`);

/** Keeps the tables of jobs as they are, and returns what sets them back, whatever has happened since. */
async function keep(): Promise<() => Promise<unknown>> {
  for (const table of TABLES_OF_JOBS) await test.sql(`create table kept_${table} as select * from jobs.${table}`);
  const logs = 'overriding system value';
  const back = TABLES_OF_JOBS.map((table) => `insert into jobs.${table} ${logs} select * from kept_${table}`);
  return () =>
    test.sql(`begin; truncate ${TABLES_OF_JOBS.map((table) => `jobs.${table}`).join()}; ${back.join(';')}; commit`);
}

describe('TRUNCATE under a pool at work', () => {
  it('of the jobs ends what runs, and frees its place in a serial queue', async () => {
    await add('long', 'serial');
    await add('waits', 'serial');
    await begun('long');
    await test.sql('truncate jobs.jobs; delete from jobs.job_bodies');
    await add('next', 'serial');
    await begun('next');
    await eventually(() => aborted.length === 1);
    await expectRest();
    expect(ran).toEqual(['long', 'next']);
  });

  it('of all tables but the version’s leaves a pool that begins again, and duties that are done', async () => {
    await add('long', 'serial');
    await begun('long');
    const tables = await test.sql<{ name: string }>(`
      select relname as name from pg_class where relnamespace = 'jobs'::regnamespace and relkind in ('r', 'p')
        and not relispartition and relname <> 'migrations'`);
    await test.sql(`truncate ${tables.map(({ name }) => `jobs.${name}`).join()}`);
    await eventually(() => aborted.length === 1);
    await add('next', 'serial');
    await begun('next');
    await eventually(async () => (await test.sql(`select from jobs.duties where due_at > now()`)).length === 2, {
      timeoutMs: 20_000,
    });
    await expectRest();
    expect(ran).toEqual(['long', 'next']);
  });
});

describe('an older state', () => {
  it('in which the pool holds claims that it has settled since makes these jobs run again', async () => {
    await add('long', 'serial');
    await add('waits', 'serial');
    await begun('long');
    const restore = await keep();
    await test.sql(`update jobs.jobs set cancel_requested = true where locked_by is not null`);
    await eventually(() => aborted.length === 1);
    await begun('waits');
    await expectRest();
    await restore();
    await hurryAudits();
    await begun('long', 2);
    await begun('waits', 2);
    await expectRest();
    expect(ran).toEqual(['long', 'waits', 'long', 'waits']);
  });

  it('in which another claim holds a job that runs ends the attempt, and no claim', async () => {
    await add('long', 'serial');
    await add('waits', 'serial');
    await begun('long');
    await test.sql(`
      with places as (update jobs.job_places set fence = fence - 1)
      update jobs.jobs set locked_by = 'an-incarnation-of-before', fence = fence - 1 where locked_by is not null`);
    await eventually(() => aborted.length === 1);
    await hurryAudits();
    await begun('long', 2);
    await begun('waits');
    await expectRest();
    expect(ran).toEqual(['long', 'long', 'waits']);
  });

  it('in which a running job has no place in its limited queue gives it one before the queue runs over', async () => {
    await add('long', 'serial');
    await begun('long');
    await test.sql('delete from jobs.job_places');
    await hurryAudits();
    await eventually(async () => (await test.sql('select from jobs.job_places')).length === 1);
    await add('waits', 'serial');
    await jobs.cancelJobs((await jobs.listJobs({ status: 'running' })).items.map(({ id }) => id));
    await begun('waits');
    await expectRest();
    expect(ran).toEqual(['long', 'waits']);
  });
});
