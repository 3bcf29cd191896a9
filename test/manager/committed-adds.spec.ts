// Adds that have been committed are not told as failed, whatever goes wrong after the commit.
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from '@jest/globals';
import type { JobManager } from '../../lib/index.js';
import type { Database } from '../../lib/storage/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
let database: Database;

beforeAll(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  database = jobs.engine.database;
});
afterAll(() => test.close());
beforeEach(() => test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_keys, jobs.job_dependencies'));
afterEach(() => void Reflect.deleteProperty(database, 'run'));

/** The statement is ended by a time limit, `times` times. */
function timeOut(name: string, times = Infinity): void {
  let left = times;
  const run = database.run.bind(database) as (...args: unknown[]) => Promise<unknown>;
  database.run = ((statement: { name: string }, ...rest: unknown[]) => {
    if (statement.name !== name || left-- <= 0) return run(statement, ...rest);
    const message = 'canceling statement due to statement timeout';
    return Promise.reject(Object.assign(new Error(message), { code: '57014' }));
  }) as never;
}

it('a keyed one that cannot be read back', async () => {
  timeOut('find_jobs');
  await expect(jobs.addJob('x', 1, { jobKey: 'k' })).resolves.toMatchObject({ jobKey: 'k', created: true });
});

it('a keyed one that found another job under its key, and that cannot be read back at first', async () => {
  const first = await jobs.addJob('x', 1, { jobKey: 'k' });
  timeOut('find_jobs', 1);
  const kept = await jobs.addJob('x', 2, { jobKey: 'k', jobKeyMode: 'unsafe_dedupe' });
  expect(kept).toMatchObject({ id: first.id, payload: 1, created: false });
});

it('or is in doubt, where it cannot be read back at all', async () => {
  await jobs.addJob('x', 1, { jobKey: 'k' });
  timeOut('find_jobs');
  const keeping = jobs.addJob('x', 2, { jobKey: 'k', jobKeyMode: 'unsafe_dedupe' });
  await expect(keeping).rejects.toMatchObject({ code: 'ERR_JOBS_DATABASE_UNAVAILABLE', inDoubt: true });
});

it('a child that cannot be told at once what became of its parent', async () => {
  const parent = await jobs.addJob('x', 1);
  timeOut('tell_children');
  const child = await jobs.addJob('x', 2, { dependsOn: [parent.id] });
  expect(child).toMatchObject({ status: 'blocked', created: true });
});

it('a keyed one that cannot tell which jobs wait for the one that it replaced', async () => {
  await jobs.addJob('x', 1, { jobKey: 'k' });
  timeOut('has_others_to_tell');
  await expect(jobs.addJob('x', 2, { jobKey: 'k' })).resolves.toMatchObject({ payload: 2, created: true });
});
