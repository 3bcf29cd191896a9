import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { setImmediate } from 'node:timers/promises';
import pg from 'pg';
import { JobKeyConflictError, type AddJobOptions, type ClaimedJob, type JobManager } from '../../lib/index.js';
import { createTestManager, OTHER, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
let client: pg.Client;

beforeEach(async () => {
  test = await createTestManager({ retry: { baseDelayMs: 0, jitter: 0 } });
  jobs = test.jobs;
  client = new pg.Client(test.url);
  await client.connect();
});
afterEach(async () => {
  await client.end();
  await test.close();
});

const add = (options: AddJobOptions = {}) => jobs.addJob('t', null, options);
const statusOf = async ({ id }: { id: string }) => (await jobs.findJob(id))?.status;
const claimOne = async (): Promise<ClaimedJob> => (await jobs.getJobs(WORKER))[0]!;
const complete = (job: ClaimedJob) => jobs.completeJobs(WORKER, [job], 1);
const fail = (job: ClaimedJob) => jobs.failJobs(WORKER, [{ job, error: 'broken' }], 1);

/** A job that runs, and one that waits behind its key. */
async function holderAndSuccessor(options: AddJobOptions = {}) {
  const old = await add({ jobKey: 'k' });
  const running = await claimOne();
  return { old, running, fresh: await add({ jobKey: 'k', ...options }) };
}

describe('a job that runs keeps its key from others', () => {
  it('also after its successor was cancelled', async () => {
    const { running, fresh } = await holderAndSuccessor();
    await jobs.cancelJobs([fresh.id]);
    const third = await add({ jobKey: 'k' });
    expect(third.status).toBe('blocked');
    expect(await jobs.getJobs(OTHER, { batchSize: 5 })).toEqual([]);
    await complete(running);
    expect(await jobs.getJobs(OTHER, { batchSize: 5 })).toMatchObject([{ id: third.id }]);
  });

  it('also after its successor was cancelled by a parent, and gives way to a third where it fails', async () => {
    const parent = await add({ delayMs: 3_600_000 });
    const { old, running, fresh } = await holderAndSuccessor({ dependsOn: [parent.id] });
    await jobs.cancelJobs([parent.id]);
    expect(await statusOf(fresh)).toBe('cancelled');
    const third = await add({ jobKey: 'k' });
    await fail(running);
    expect([await statusOf(old), await statusOf(third)]).toEqual(['cancelled', 'available']);
  });
});

it('two jobs that are added at once share no key that nothing owned any more', async () => {
  const slowly = `create function jobs.linger() returns trigger language plpgsql as $$ begin perform pg_sleep(0.3); return null; end $$`;
  const sleeping = `select from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'`;
  const untilSleeping = async (count: number) => {
    while ((await test.sql(sleeping)).length < count) await setImmediate();
  };
  await test.sql(`insert into jobs.job_keys values ('k', gen_random_uuid())`);
  await Promise.all([jobs.counts(), jobs.counts()]);
  await test.sql(slowly);
  for (const table of ['job_keys', 'jobs'])
    await test.sql(
      `create trigger linger after insert on jobs.${table} for each statement execute function jobs.linger()`,
    );
  const one = add({ jobKey: 'k' });
  await untilSleeping(1);
  await test.sql(`select jobs.free_keys(array['k'])`);
  const other = add({ jobKey: 'k' });
  await untilSleeping(2);
  await Promise.all([one, other]);
  expect(await test.sql(`select from jobs.jobs where job_key = 'k'`)).toHaveLength(1);
});

describe('jobs of one key that come back', () => {
  it('are refused where two of them are retried by one call', async () => {
    const one = await add({ jobKey: 'k' });
    await jobs.cancelJobs([one.id]);
    const two = await add({ jobKey: 'k' });
    await jobs.cancelJobs([two.id]);
    await expect(jobs.retryJobs([one.id, two.id])).rejects.toThrow(JobKeyConflictError);
    expect(await jobs.getJobs(OTHER, { batchSize: 5 })).toEqual([]);
  });

  it('are refused where one gets attempts left while another one has the key', async () => {
    const { old, fresh } = await holderAndSuccessor();
    await jobs.permanentlyFailJobs([old.id]);
    await expect(jobs.rescheduleJobs([old.id], { maxAttempts: 50 })).rejects.toThrow(JobKeyConflictError);
    expect(await jobs.getJobs(OTHER, { batchSize: 5 })).toMatchObject([{ id: fresh.id }]);
  });
});

describe('a child of a job whose key another one took', () => {
  it('waits for it where it came back by a retry', async () => {
    const { old, running } = await holderAndSuccessor();
    await fail(running);
    await complete(await claimOne());
    await jobs.retryJobs([old.id]);
    expect(await add({ dependsOn: [old.id] })).toMatchObject({ status: 'blocked' });
  });

  it('is ready where it has completed, whatever became of its successor', async () => {
    const { old, running, fresh } = await holderAndSuccessor();
    await complete(running);
    await jobs.cancelJobs([fresh.id]);
    expect(await add({ dependsOn: [old.id] })).toMatchObject({ status: 'available' });
  });

  it('waits for it while it runs and its successor has failed for good', async () => {
    const { old, fresh } = await holderAndSuccessor();
    await jobs.permanentlyFailJobs([fresh.id]);
    const child = await add({ dependsOn: [old.id], onParentFailure: 'wait' });
    expect(child.status).toBe('blocked');
  });

  it('is cancelled with it where it took the key itself', async () => {
    const old = await add({ jobKey: 'k' });
    const running = await claimOne();
    const child = await add({ jobKey: 'k', dependsOn: [old.id] });
    await fail(running);
    expect([await statusOf(old), await statusOf(child)]).toEqual(['cancelled', 'cancelled']);
  });

  it.each(['cancel', 'run', 'wait'] as const)(
    'waits for it where it took the key from another successor (onParentFailure %s)',
    async (onParentFailure) => {
      const { old, running } = await holderAndSuccessor();
      const child = await add({ jobKey: 'k', dependsOn: [old.id], onParentFailure });
      expect(child.status).toBe('blocked');
      await complete(running);
      expect(await jobs.getJobs(OTHER)).toMatchObject([{ id: child.id }]);
    },
  );

  it('waits for the last of many that took the key one after the other', async () => {
    const { old, running } = await holderAndSuccessor();
    let last = old;
    for (let i = 0; i < 120; i++) last = await add({ jobKey: 'k' });
    const child = await add({ dependsOn: [old.id] });
    expect(child.status).toBe('blocked');
    await complete(running);
    await complete(await claimOne());
    expect([await statusOf(last), await statusOf(child)]).toEqual(['completed', 'available']);
  });

  it('waits for the last that took the key, where it has run for longer than replaced jobs are remembered', async () => {
    const { old } = await holderAndSuccessor();
    await add({ jobKey: 'k' });
    await test.sql(`update jobs.job_replacements set replaced_at = clock_timestamp() - interval '2 h'`);
    await jobs.gcJobHistory();
    expect(await add({ dependsOn: [old.id] })).toMatchObject({ status: 'blocked' });
  });

  it('is held by no transaction that adds another child', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent.id], onParentFailure: 'wait' });
    await jobs.permanentlyFailJobs([parent.id]);
    await client.query('begin');
    await add({ dependsOn: [parent.id], onParentFailure: 'wait', manager: client });
    expect(await jobs.cancelJobs([child.id])).toMatchObject([{ status: 'cancelled' }]);
    await client.query('commit');
  });

  it('does not run once the record of a parent’s cancellation has expired', async () => {
    const parent = await add({ delayMs: 3_600_000 });
    const child = await add({ dependsOn: [parent.id], onParentFailure: 'wait' });
    await jobs.cancelJobs([parent.id]);
    await test.sql(`update jobs.job_history set expires_at = clock_timestamp() - interval '1 s'`);
    await jobs.gcJobHistory();
    await jobs.engine.promoter.sweepNow();
    expect(await jobs.findJob(parent.id)).toBeNull();
    expect(await statusOf(child)).toBe('cancelled');
  });
});

it('a job of the lowest priority is claimed', async () => {
  const { id } = await add({ priority: -2_147_483_648 });
  expect(await jobs.getJobs(WORKER)).toMatchObject([{ id }]);
});

it('a call by SQL that names a key twice ends, and the later job has the key', async () => {
  const specs = [1, 2].map((n) => ({
    id: `0190f000-0000-7000-8000-00000000000${n}`,
    task: 'x',
    priority: 0,
    max_attempts: 5,
    job_key: 'twice',
    job_key_mode: 'replace',
  }));
  const client = new pg.Client({ connectionString: test.url, statement_timeout: 5_000 });
  await client.connect();
  try {
    await client.query(`select * from jobs.add_keyed_jobs($1, '[1,2]', true, false)`, [JSON.stringify(specs)]);
  } finally {
    await client.end();
  }
  const keyed = (await jobs.listJobs()).items.filter(({ jobKey }) => jobKey === 'twice');
  expect(keyed).toHaveLength(1);
});
