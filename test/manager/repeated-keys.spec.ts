// Adds with a job key whose answer was lost, and which are repeated: whether they were done is not a matter of clocks.
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from '@jest/globals';
import { DatabaseUnavailableError, type AddJobOptions, type JobManager } from '../../lib/index.js';
import type { Database } from '../../lib/storage/database.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';

const HOUR = 3_600_000;
const key = { jobKey: 'k' };

let test: TestManager;
let jobs: JobManager;
let database: Database;

beforeAll(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  database = jobs.engine.database;
});
afterAll(() => test.close());
beforeEach(() => test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_keys, jobs.job_replacements'));
afterEach(() => void Reflect.deleteProperty(database, 'run'));

/** By another host, whose clock is ahead: its ids are. */
async function addBy(aheadMs: number, payload: string, options: AddJobOptions = key): Promise<void> {
  const { id } = await jobs.addJob('t', payload, options);
  const time = (Date.now() + aheadMs).toString(16).padStart(12, '0');
  const other = `${time.slice(0, 8)}-${time.slice(8)}${id.slice(13)}`;
  const columns = ['jobs.id', 'job_bodies.id', 'job_keys.job_id', 'job_replacements.new_id'];
  for (const [table, column] of columns.map((name) => name.split('.'))) {
    await test.sql(`update jobs.${table} set ${column} = $1 where ${column} = $2`, [other, id]);
  }
}

/** The connection breaks at the next keyed add: before it has been done, or after it, and after what happens `meanwhile`. */
function breakAt(when: 'before' | 'after', meanwhile: () => Promise<unknown> = async () => undefined): void {
  const run = database.run.bind(database) as (...args: unknown[]) => Promise<unknown>;
  database.run = (async (statement: { name: string }, ...rest: unknown[]) => {
    if (statement.name !== 'add_keyed_jobs') return run(statement, ...rest);
    Reflect.deleteProperty(database, 'run');
    if (when === 'after') await run(statement, ...rest);
    await meanwhile();
    throw Object.assign(new DatabaseUnavailableError('The connection broke.'), { inDoubt: true });
  }) as never;
}

const live = async (): Promise<unknown[]> => (await jobs.listJobs({})).items.map(({ payload }) => payload);

it.each([0, 2_000, HOUR])(
  'replaces the job of a host whose clock is %d ms ahead, where it was not done',
  async (ms) => {
    await addBy(ms, 'old');
    breakAt('before');
    await expect(jobs.addJob('t', 'new', key)).resolves.toMatchObject({ payload: 'new', created: true });
    expect(await live()).toEqual(['new']);
  },
);

it.each([-HOUR, 0, HOUR])(
  'leaves what has replaced it since, by a clock %d ms ahead, where it was done',
  async (ms) => {
    breakAt('after', () => addBy(ms, 'newer'));
    await expect(jobs.addJob('t', 'ours', key)).resolves.toMatchObject({ payload: 'newer', created: false });
    expect(await live()).toEqual(['newer']);
  },
);

it('is not done twice where what has replaced it since has completed', async () => {
  breakAt('after', async () => {
    await addBy(0, 'newer');
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER, { batchSize: 1 }), 1);
    await test.sql('delete from jobs.job_keys');
  });
  await expect(jobs.addJob('t', 'ours', key)).resolves.toMatchObject({ payload: 'ours', created: true });
  expect(await test.sql('select from jobs.jobs')).toEqual([]);
  expect(await test.sql('select from jobs.job_keys')).toEqual([]);
});

it('changes in place the job of a host whose clock is behind, and leaves one that looks newer', async () => {
  const options = { ...key, jobKeyMode: 'preserve_run_at' } as const;
  await addBy(-HOUR, 'old');
  breakAt('before');
  await expect(jobs.addJob('t', 'new', options)).resolves.toMatchObject({ payload: 'new', created: false });
  breakAt('after', () => addBy(0, 'newer'));
  await expect(jobs.addJob('t', 'ours', options)).resolves.toMatchObject({ payload: 'newer', created: false });
});
