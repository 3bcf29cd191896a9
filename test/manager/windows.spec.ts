// Throttled and unique jobs: what comes while a window is open, or while such a job lives, gets no job of its own.
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createJobManager,
  createWorkerPool,
  DatabaseUnavailableError,
  RowsHeldError,
  TransactionConflictError,
  UnknownRateLimitError,
  type AddJobOptions,
  type JobManager,
} from '../../lib/index.js';
import type { Database } from '../../lib/storage/database.js';
import { createJobsTesting } from '../../lib/testing.js';
import { eventually } from '../support/database.js';
import { createTestManager, OTHER, WORKER, type TestManager } from '../support/manager.js';

const MINUTE = 60_000;

let test: TestManager;
let jobs: JobManager;
const clients: pg.Client[] = [];

beforeAll(async () => {
  test = await createTestManager();
  jobs = test.jobs;
});
afterAll(() => test.close());
beforeEach(() =>
  test.sql(
    'truncate jobs.jobs, jobs.job_bodies, jobs.job_history, jobs.job_keys, jobs.job_windows, jobs.job_replacements',
  ),
);
afterEach(async () => {
  await Promise.all(clients.splice(0).map((client) => client.end()));
});

async function connect(): Promise<pg.Client> {
  const client = new pg.Client(test.url);
  await client.connect();
  clients.push(client);
  return client;
}

const live = async () =>
  (await jobs.listJobs()).items.filter(({ status }) => !['completed', 'cancelled'].includes(status));
const ascending = (a: unknown, b: unknown): number => (String(a) < String(b) ? -1 : 1);
const payloads = async (): Promise<unknown[]> => (await live()).map(({ payload }) => payload).toSorted(ascending);

/** As if so much time had passed. */
const pass = (ms: number) =>
  test.sql(
    `with w as (update jobs.job_windows set begins_at = begins_at - $1::int * interval '1 ms',
       until = until - $1::int * interval '1 ms', set_at = set_at - $1::int * interval '1 ms'),
     b as (update jobs.job_bodies set run_at = run_at - $1::int * interval '1 ms')
     update jobs.jobs set run_at = run_at - $1::int * interval '1 ms'`,
    [ms],
  );

const statusesOf = (added: { created: boolean }[]): boolean[] => added.map(({ created }) => created);

describe('throttle that drops', () => {
  const throttle = { key: 't', ms: MINUTE };

  it('adds one job in each window, and answers with it', async () => {
    const first = await jobs.addJob('x', 1, { throttle });
    expect(first).toMatchObject({ created: true, status: 'available', payload: 1 });
    expect(await jobs.addJob('y', 2, { throttle })).toMatchObject({
      id: first.id,
      created: false,
      payload: 1,
      task: 'x',
    });
    await pass(MINUTE - 5_000);
    expect(await jobs.addJob('x', 3, { throttle })).toMatchObject({ id: first.id, created: false });
    await pass(5_000);
    const second = await jobs.addJob('x', 4, { throttle });
    expect(second).toMatchObject({ created: true, payload: 4 });
    expect(second.id).not.toBe(first.id);
    expect(await payloads()).toEqual([1, 4]);
  });

  it('goes by the add, not by what becomes of the job', async () => {
    const first = await jobs.addJob('x', 1, { throttle });
    const [claimed] = await jobs.getJobs(WORKER);
    expect(await jobs.addJob('x', 2, { throttle })).toMatchObject({ id: first.id, created: false, status: 'running' });
    await jobs.completeJobs(WORKER, [claimed!], 1);
    expect(await jobs.addJob('x', 3, { throttle })).toMatchObject({
      id: first.id,
      created: false,
      status: 'completed',
    });
  });

  it('answers with the job’s id where nothing else is known of it any more', async () => {
    const first = await jobs.addJob('x', 1, { throttle });
    await test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_keys');
    expect(await jobs.addJob('x', 2, { throttle })).toMatchObject({
      id: first.id,
      created: false,
      status: 'completed',
    });
  });

  it('keeps other keys apart', async () => {
    const added = await Promise.all(
      ['a', 'b', 'c'].map((key) => jobs.addJob('x', key, { throttle: { key, ms: MINUTE } })),
    );
    expect(statusesOf(added)).toEqual([true, true, true]);
  });

  it('takes the first of one call', async () => {
    const added = await jobs.addJobs([1, 2, 3].map((payload) => ({ task: 'x', payload, throttle })));
    expect(statusesOf(added)).toEqual([true, false, false]);
    expect(new Set(added.map(({ id }) => id)).size).toBe(1);
    expect(await payloads()).toEqual([1]);
  });

  it('may stand beside other jobs in one call, which come in their order', async () => {
    const added = await jobs.addJobs([
      { task: 'x', payload: 'plain' },
      { task: 'x', payload: 'first', throttle },
      { task: 'x', payload: 'keyed', jobKey: 'k' },
      { task: 'x', payload: 'second', throttle },
      { task: 'x', payload: 'other', throttle: { key: 'other', ms: MINUTE }, delayMs: 5_000 },
    ]);
    expect(statusesOf(added)).toEqual([true, true, true, false, true]);
    expect(added.map(({ payload }) => payload)).toEqual(['plain', 'first', 'keyed', 'first', 'other']);
    expect(await payloads()).toEqual(['first', 'keyed', 'other', 'plain']);
  });

  it('makes one job of twenty adds at once, from two processes', async () => {
    const other = await createJobManager({ connection: test.url });
    const added = await Promise.all(
      Array.from({ length: 20 }, (_, n) => (n % 2 ? jobs : other).addJob('x', n, { throttle })),
    );
    await other.close();
    expect(added.filter(({ created }) => created)).toHaveLength(1);
    expect(new Set(added.map(({ id }) => id)).size).toBe(1);
    expect(await live()).toHaveLength(1);
  });

  it('adds nothing where it is refused, and opens no window', async () => {
    await expect(jobs.addJob('x', 1, { throttle, rateLimitKey: 'none' })).rejects.toThrow(UnknownRateLimitError);
    expect(await test.sql('select from jobs.job_windows')).toEqual([]);
    expect(await jobs.addJob('x', 2, { throttle })).toMatchObject({ created: true });
  });

  it('links a job with its parents only where it is added', async () => {
    const parent = await jobs.addJob('p', 0);
    const first = await jobs.addJob('x', 1, { throttle, dependsOn: [parent.id] });
    expect(first).toMatchObject({ created: true, status: 'blocked', dependsOn: [parent.id] });
    const other = await jobs.addJob('p', 1);
    expect(await jobs.addJob('x', 2, { throttle, dependsOn: [other.id] })).toMatchObject({
      id: first.id,
      created: false,
      dependsOn: [parent.id],
    });
    const pairs = await test.sql('select parent_id, child_id from jobs.job_dependencies');
    expect(pairs).toEqual([{ parent_id: parent.id, child_id: first.id }]);
    await jobs.cancelJobs([parent.id, other.id]);
  });
});

describe('throttle that delays', () => {
  const throttle = { key: 't', ms: MINUTE, mode: 'delay' as const };
  const untilOf = async (): Promise<number> =>
    (await test.sql<{ until: Date }>('select until from jobs.job_windows'))[0]!.until.getTime();

  it('puts one job to the window’s end, with the last payload', async () => {
    const first = await jobs.addJob('x', 1, { throttle });
    expect(first).toMatchObject({ created: true, status: 'available' });
    const end = await untilOf();
    const second = await jobs.addJob('x', 2, { throttle });
    expect(second).toMatchObject({ created: true, status: 'scheduled', payload: 2, jobKeyMode: 'throttle' });
    expect(second.runAt.getTime()).toBe(end);
    const third = await jobs.addJob('x', 3, { throttle, priority: 4 });
    expect(third).toMatchObject({ id: second.id, created: false, payload: 3, priority: 4 });
    expect(third.runAt.getTime()).toBe(end);
    expect(await payloads()).toEqual([1, 3]);
    expect(await jobs.explain(second.id)).toMatchObject({
      reason: 'future',
      message: expect.stringContaining('throttle'),
    });
  });

  it('opens the next window with the job at the end of the last one', async () => {
    await jobs.addJob('x', 1, { throttle });
    const second = await jobs.addJob('x', 2, { throttle });
    await pass(MINUTE + 5_000);
    const third = await jobs.addJob('x', 3, { throttle });
    expect(third.runAt.getTime()).toBeGreaterThan(Date.now() + 30_000);
    expect(third.id).not.toBe(second.id);
    await pass(2 * MINUTE);
    expect(await jobs.addJob('x', 4, { throttle })).toMatchObject({ created: true, status: 'available' });
  });

  it('fills the place at the end again where its job was cancelled', async () => {
    await jobs.addJob('x', 1, { throttle });
    const second = await jobs.addJob('x', 2, { throttle });
    await jobs.cancelJobs([second.id]);
    const third = await jobs.addJob('x', 3, { throttle });
    expect(third).toMatchObject({ created: true });
    expect(third.runAt).toEqual(second.runAt);
    expect(await jobs.addJob('x', 4, { throttle })).toMatchObject({ id: third.id, created: false });
  });

  it('decides among the jobs of one call', async () => {
    const added = await jobs.addJobs([1, 2, 3].map((payload) => ({ task: 'x', payload, throttle })));
    expect(statusesOf(added)).toEqual([true, true, false]);
    expect(await payloads()).toEqual([1, 3]);
  });

  it('makes two jobs of twenty adds at once', async () => {
    const added = await Promise.all(Array.from({ length: 20 }, (_, n) => jobs.addJob('x', n, { throttle })));
    expect(added.filter(({ created }) => created)).toHaveLength(2);
    expect(await live()).toHaveLength(2);
  });

  it('encrypts what may get an older job’s id so that it can be read', async () => {
    const keys = [{ id: 'k', key: Buffer.alloc(32, 7) }];
    const sealed = await createJobManager({ connection: test.url, encryption: { keys } });
    for (const payload of [1, 2, 3]) await sealed.addJob('x', payload, { throttle });
    const found = (await sealed.listJobs()).items.map(({ payload }) => payload);
    expect(found.toSorted(ascending)).toEqual([1, 3]);
    await sealed.close();
  });
});

describe('unique', () => {
  it('compares payloads by what they say, within the task', async () => {
    const first = await jobs.addJob('x', { a: 1, b: [1, { c: 2, d: 3 }] }, { unique: {} });
    expect(first).toMatchObject({ created: true, jobKeyMode: 'unique' });
    const same = await jobs.addJob('x', { b: [1, { d: 3, c: 2 }], a: 1 }, { unique: {} });
    expect(same).toMatchObject({ id: first.id, created: false });
    expect(await jobs.addJob('x', { a: 1, b: [{ c: 2, d: 3 }, 1] }, { unique: {} })).toMatchObject({ created: true });
    expect(await jobs.addJob('y', { a: 1, b: [1, { c: 2, d: 3 }] }, { unique: {} })).toMatchObject({ created: true });
  });

  it('lasts while the job waits, runs or waits for a retry, and no longer', async () => {
    const unique = { while: 'live' as const };
    const first = await jobs.addJob('x', 1, { unique });
    const [claimed] = await jobs.getJobs(WORKER);
    expect(await jobs.addJob('x', 1, { unique })).toMatchObject({ id: first.id, created: false, status: 'running' });
    await jobs.failJobs(WORKER, [{ job: claimed!, error: new Error('no') }], 1);
    expect(await jobs.addJob('x', 1, { unique })).toMatchObject({ id: first.id, created: false });
    await jobs.rescheduleJobs([first.id], { runAt: new Date() });
    const [again] = await jobs.getJobs(WORKER);
    await jobs.completeJobs(WORKER, [again!], 1);
    expect(await jobs.addJob('x', 1, { unique })).toMatchObject({ created: true });
  });

  it('is not kept out by a job that has failed for good, which stays', async () => {
    const first = await jobs.addJob('x', 1, { unique: {} });
    await jobs.permanentlyFailJobs([first.id]);
    const second = await jobs.addJob('x', 1, { unique: {} });
    expect(second).toMatchObject({ created: true, status: 'available' });
    expect(await jobs.addJob('x', 1, { unique: {} })).toMatchObject({ id: second.id, created: false });
    expect(await jobs.findJob(first.id)).toMatchObject({ status: 'exhausted' });
    await expect(jobs.retryJobs([first.id])).rejects.toMatchObject({ code: 'ERR_JOBS_JOB_KEY_CONFLICT' });
  });

  it('compares what it is told to', async () => {
    const unique = { by: ['payload.user.id' as const, 'queue' as const] };
    const first = await jobs.addJob('x', { user: { id: 1 }, at: 1 }, { unique, queue: 'a' });
    expect(await jobs.addJob('x', { user: { id: 1 }, at: 2 }, { unique, queue: 'a' })).toMatchObject({ id: first.id });
    expect(await jobs.addJob('x', { user: { id: '1' } }, { unique, queue: 'a' })).toMatchObject({ created: true });
    expect(await jobs.addJob('x', { user: { id: 1 } }, { unique, queue: 'b' })).toMatchObject({ created: true });
    const turned = { by: ['queue' as const, 'payload.user.id' as const] };
    expect(await jobs.addJob('x', { user: { id: 1 } }, { unique: turned, queue: 'a' })).toMatchObject({ id: first.id });
  });

  it('refuses a payload that lacks what is compared: a misspelt path would make all jobs the same', async () => {
    const unique = { by: ['payload.user.name' as const] };
    await expect(jobs.addJob('x', { user: { id: 1 } }, { unique })).rejects.toThrow(
      'Expected the payload of task "x" to have payload.user.name, which unique.by names, got none.',
    );
    expect(await jobs.addJob('x', { user: { name: null } }, { unique })).toMatchObject({ created: true });
  });

  it('lasts for its window, whatever became of the job', async () => {
    const unique = { withinMs: MINUTE };
    const first = await jobs.addJob('x', 1, { unique });
    const [claimed] = await jobs.getJobs(WORKER);
    await jobs.completeJobs(WORKER, [claimed!], 1);
    expect(await jobs.addJob('x', 1, { unique })).toMatchObject({ id: first.id, created: false });
    await pass(MINUTE);
    expect(await jobs.addJob('x', 1, { unique })).toMatchObject({ created: true });
    await pass(MINUTE);
    expect(await jobs.addJob('x', 1, { unique })).toMatchObject({ created: true });
  });

  it('lasts for its window and while the job lives, where both are asked for', async () => {
    const unique = { withinMs: MINUTE, while: 'live' as const };
    const first = await jobs.addJob('x', 1, { unique });
    await pass(MINUTE);
    expect(await jobs.addJob('x', 1, { unique })).toMatchObject({ id: first.id, created: false });
    const [claimed] = await jobs.getJobs(WORKER);
    await jobs.completeJobs(WORKER, [claimed!], 1);
    const second = await jobs.addJob('x', 1, { unique });
    expect(second).toMatchObject({ created: true });
    await jobs.cancelJobs([second.id]);
    expect(await jobs.addJob('x', 1, { unique })).toMatchObject({ id: second.id, created: false });
  });

  it('tells nothing of encrypted payloads to those without the key', async () => {
    const managerOf = (...bytes: number[]): Promise<JobManager> =>
      createJobManager({
        connection: test.url,
        encryption: { keys: bytes.map((byte) => ({ id: `k${byte}`, key: Buffer.alloc(32, byte) })) },
      });
    const [one, other, rotated] = await Promise.all([managerOf(1), managerOf(2), managerOf(2, 1)]);
    const add = (by: JobManager) => by.addJob('x', 'secret', { unique: { withinMs: MINUTE, while: 'live' } });
    const [plain, first, second] = [await add(jobs), await add(one), await add(other)];
    expect(statusesOf([plain, first, second])).toEqual([true, true, true]);
    expect(await add(one)).toMatchObject({ id: first.id, created: false });
    // The first key is what counts.
    expect(await add(rotated)).toMatchObject({ id: second.id, created: false });
    for (const by of [one, other, rotated]) await by.close();
  });

  it('makes one job of twenty adds at once', async () => {
    for (const unique of [{}, { withinMs: MINUTE }, { withinMs: MINUTE, while: 'live' as const }]) {
      await test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_keys, jobs.job_windows');
      const added = await Promise.all(Array.from({ length: 20 }, () => jobs.addJob('x', 1, { unique })));
      expect(added.filter(({ created }) => created)).toHaveLength(1);
      expect(new Set(added.map(({ id }) => id)).size).toBe(1);
    }
  });
});

describe('as options of a task', () => {
  const unique = { by: ['payload.id' as const] };
  const throttle = { key: 'reports', ms: MINUTE, mode: 'delay' as const };

  async function withTasks(): Promise<JobManager> {
    const manager = await createJobManager({ connection: test.url });
    const run = (): void => undefined;
    createWorkerPool({
      jobs: manager,
      tasks: { mail: { handler: run, unique, cron: '* * * * * *' }, report: { handler: run, throttle } },
    });
    return manager;
  }

  it('they hold for adds that say nothing else', async () => {
    const manager = await withTasks();
    const first = await manager.addJob('mail', { id: 1, at: 1 });
    expect(await manager.addJob('mail', { id: 1, at: 2 })).toMatchObject({ id: first.id, created: false });
    const others = await Promise.all([
      manager.addJob('mail', { id: 1 }, { unique: null }),
      manager.addJob('mail', { id: 1 }, { jobKey: 'k' }),
      manager.addJob('mail', { id: 1 }, { throttle: { key: 'm', ms: MINUTE } }),
      manager.addJob('mail', { id: 1 }, { unique: { by: ['payload'] } }),
      manager.addJob('other', { id: 1 }),
    ]);
    expect(statusesOf(others)).toEqual([true, true, true, true, true]);
    const reports = await manager.addJobs([1, 2, 3].map((payload) => ({ task: 'report', payload })));
    expect(statusesOf(reports)).toEqual([true, true, false]);
    await expect(manager.addJob('report', 1, { delayMs: 5 })).rejects.toThrow('Pass throttle: null');
    expect(await manager.addJob('report', 1, { delayMs: 5, throttle: null })).toMatchObject({ created: true });
    await manager.close();
  });

  it('they do not hold for crontabs, whose payloads need not have what is compared', async () => {
    const manager = await withTasks();
    await manager.scheduleCron({ id: 'mails', task: 'mail', schedule: '* * * * * *', payload: null });
    expect(await eventually(async () => (await manager.engine.crontabs.fire('mails')).fired.length)).toBe(1);
    await manager.unscheduleCron('mails');
    await manager.close();
  });

  it('throttle and unique together are refused', async () => {
    const tasks = { x: { handler: () => undefined, unique, throttle } };
    expect(() => createWorkerPool({ jobs, tasks })).toThrow('Expected either throttle or unique, got both.');
  });
});

describe('in specs of an application', () => {
  it('time can be made to pass, and windows are cleared with the jobs', async () => {
    const testing = createJobsTesting({ jobs, tasks: { x: () => undefined } });
    const throttle = { key: 't', ms: MINUTE, mode: 'delay' as const };
    for (const payload of [1, 2, 3]) await jobs.addJob('x', payload, { throttle });
    await testing.expectEnqueued({ task: 'x' }, { times: 2 });
    expect((await testing.drain()).map(({ job }) => job.payload)).toEqual([1]);
    await testing.travel(MINUTE);
    expect((await testing.drain()).map(({ job }) => job.payload)).toEqual([3]);
    await testing.travel(MINUTE);
    expect(await jobs.addJob('x', 4, { throttle })).toMatchObject({ created: true, status: 'available' });
    await testing.clear();
    expect(await jobs.addJob('x', 5, { throttle })).toMatchObject({ created: true, status: 'available' });
    testing.inline();
    const unique = { withinMs: MINUTE };
    expect(statusesOf([await jobs.addJob('x', 6, { unique }), await jobs.addJob('x', 6, { unique })])).toEqual([
      true,
      false,
    ]);
    expect(testing.ran.map(({ job }) => job.payload)).toEqual([5, 6]);
    await jobs.addJob('x', 7, { debounce: { key: 'd', ms: MINUTE } });
    await jobs.addJob('x', 8, { debounce: { key: 'd', ms: MINUTE } });
    await testing.expectEnqueued({ payload: 8, status: 'scheduled' }, { times: 1 });
    await testing.close();
  });
});

describe('windows in a caller’s transaction', () => {
  const throttle = { key: 't', ms: MINUTE };

  it('go with it where it rolls back, and savepoints too', async () => {
    const client = await connect();
    await client.query('begin');
    expect(await jobs.addJob('x', 1, { throttle, manager: client })).toMatchObject({ created: true });
    expect(await jobs.addJob('x', 2, { throttle, manager: client })).toMatchObject({ created: false });
    await client.query('rollback');
    expect(await jobs.addJob('x', 3, { throttle })).toMatchObject({ created: true });

    await pass(MINUTE);
    await client.query('begin; savepoint s');
    expect(await jobs.addJob('x', 4, { throttle, manager: client })).toMatchObject({ created: true });
    await client.query('rollback to s');
    expect(await jobs.addJob('x', 5, { throttle, manager: client })).toMatchObject({ created: true });
    await client.query('commit');
    expect(await payloads()).toEqual([3, 5]);
  });

  it('are waited for by another caller’s, for as long as its lock_timeout says', async () => {
    const [first, second] = [await connect(), await connect()];
    await first.query('begin');
    await second.query('begin');
    const held = await jobs.addJob('x', 1, { throttle, manager: first });
    const adding = jobs.addJob('x', 2, { throttle, manager: second });
    await eventually(async () => (await test.sql('select from pg_locks where not granted')).length > 0);
    await first.query('commit');
    expect(await adding).toMatchObject({ id: held.id, created: false });
    await second.query('commit');

    await pass(MINUTE);
    await first.query('begin');
    await jobs.addJob('x', 3, { throttle, manager: first });
    await second.query(`begin; set local lock_timeout = '20ms'`);
    await expect(jobs.addJob('x', 4, { throttle, manager: second })).rejects.toThrow(RowsHeldError);
    await second.query('rollback');
    await first.query('rollback');
  });

  it('hold up the library’s own adds until they end, and no connection meanwhile', async () => {
    const client = await connect();
    await client.query('begin');
    await jobs.addJob('x', 1, { throttle, manager: client });
    const adding = jobs.addJob('x', 2, { throttle });
    await jobs.addJob('x', 'beside');
    await client.query('rollback');
    expect(await adding).toMatchObject({ created: true, payload: 2 });
  });

  it.each(['drop', 'delay'] as const)('begin with their job where that has waited for a key (%s)', async (mode) => {
    const [first, second] = [await connect(), await connect()];
    await first.query('begin');
    await second.query('begin');
    await jobs.addJob('x', 1, { jobKey: 'busy', manager: first });
    const specs = [
      { task: 'x', payload: 2, throttle: { ...throttle, mode } },
      { task: 'x', payload: 3, jobKey: 'busy' },
    ];
    const adding = jobs.addJobs(specs, { manager: second });
    await eventually(async () => (await test.sql('select from pg_locks where not granted')).length > 0);
    await first.query('commit');
    const [added] = await adding;
    await second.query('commit');
    const [window] = await test.sql<{ begins: string; until: string; due: string }>(
      `select begins_at::text as begins, (until - $2 * interval '1 ms')::text as until, b.run_at::text as due
       from jobs.job_windows w join jobs.job_bodies b on b.id = $1`,
      [added!.id, MINUTE],
    );
    expect([window!.begins > window!.due, window!.until > window!.due]).toEqual([true, true]);
  });

  it('turn others away without a lock, once they are committed', async () => {
    const { id } = await jobs.addJob('x', 1, { throttle });
    const client = await connect();
    await client.query(`begin; select from jobs.job_windows for update`);
    expect(await jobs.addJob('x', 2, { throttle })).toMatchObject({ id, created: false });
    await client.query('rollback');
  });

  it.each(['repeatable read', 'serializable'])('at %s are right, or fail as a conflict', async (level) => {
    const client = await connect();
    await client.query(`begin isolation level ${level}; select 1`);
    await jobs.addJob('x', 1, { throttle });
    await expect(jobs.addJob('x', 2, { throttle, manager: client })).rejects.toThrow(TransactionConflictError);
    await client.query('rollback');
    expect(await payloads()).toEqual([1]);
  });

  it('of many keys are taken in one order', async () => {
    const keys = Array.from({ length: 30 }, (_, n) => `key-${n}`);
    const specsOf = (order: string[]) =>
      order.map((key) => ({ task: 'x', payload: key, throttle: { key, ms: MINUTE } }));
    const [first, second] = [await connect(), await connect()];
    await first.query('begin');
    await second.query('begin');
    const adding = [
      jobs.addJobs(specsOf(keys), { manager: first }).then(() => first.query('commit')),
      jobs.addJobs(specsOf(keys.toReversed()), { manager: second }).then(() => second.query('commit')),
    ];
    await Promise.all(adding);
    expect(await live()).toHaveLength(30);
  });
});

describe('windows and clocks', () => {
  const throttle = { key: 't', ms: MINUTE };

  it('a window that a clock ahead has opened is over', async () => {
    await jobs.addJob('x', 1, { throttle });
    await pass(-24 * 60 * MINUTE);
    expect(await jobs.addJob('x', 2, { throttle })).toMatchObject({ created: true });
    expect(await jobs.addJob('x', 3, { throttle })).toMatchObject({ created: false });
  });

  it('a window that a server some seconds ahead has opened holds', async () => {
    await jobs.addJob('x', 1, { throttle });
    await pass(-10_000);
    expect(await jobs.addJob('x', 2, { throttle })).toMatchObject({ created: false });
  });

  it('windows that have passed go with the sweep, and others stay', async () => {
    for (const [key, ms] of [
      ['old', 1_000],
      ['new', 10 * MINUTE],
    ] as const) {
      await jobs.addJob('x', key, { throttle: { key, ms } });
    }
    await pass(MINUTE);
    await jobs.forceUnlockQueues();
    expect(await test.sql('select key from jobs.job_windows')).toEqual([{ key: 'throttle:new' }]);
  });

  it('a window that the sweep removes under an add is made again', async () => {
    await jobs.addJob('x', 1, { throttle });
    await pass(MINUTE);
    const client = await connect();
    await client.query('begin; delete from jobs.job_windows');
    const adding = jobs.addJob('x', 2, { throttle });
    await client.query('commit');
    expect(await adding).toMatchObject({ created: true });
    expect(await jobs.addJob('x', 3, { throttle })).toMatchObject({ created: false });
  });
});

describe('adds whose answer was lost', () => {
  let database: Database;
  beforeEach(() => void (database = jobs.engine.database));
  afterEach(() => void Reflect.deleteProperty(database, 'run'));

  /** The connection breaks after the next add has been done, and after what happens `meanwhile`. */
  function breakAfter(meanwhile: () => Promise<unknown> = async () => undefined): void {
    const run = database.run.bind(database) as (...args: unknown[]) => Promise<unknown>;
    database.run = (async (statement: { name: string }, ...rest: unknown[]) => {
      if (statement.name !== 'add_windowed_jobs') return run(statement, ...rest);
      Reflect.deleteProperty(database, 'run');
      await run(statement, ...rest);
      await meanwhile();
      throw Object.assign(new DatabaseUnavailableError('The connection broke.'), { inDoubt: true });
    }) as never;
  }

  it.each<[string, AddJobOptions]>([
    ['a throttle', { throttle: { key: 't', ms: MINUTE } }],
    ['a throttle that delays', { throttle: { key: 't', ms: MINUTE, mode: 'delay' } }],
    ['unique', { unique: { withinMs: MINUTE } }],
    ['unique while live', { unique: { withinMs: MINUTE, while: 'live' } }],
  ])('find their own window: %s', async (_what, options) => {
    breakAfter();
    expect(await jobs.addJob('x', 1, options)).toMatchObject({ created: true, payload: 1 });
    expect(await live()).toHaveLength(1);
  });

  it('find their own window where the job is gone already', async () => {
    breakAfter(() => test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_keys'));
    expect(await jobs.addJob('x', 1, { throttle: { key: 't', ms: MINUTE } })).toMatchObject({ created: true });
    expect(await live()).toEqual([]);
  });

  it('tell what was dropped from what was added', async () => {
    const throttle = { key: 't', ms: MINUTE };
    const holder = await jobs.addJob('x', 0, { throttle });
    breakAfter();
    const added = await jobs.addJobs([
      { task: 'x', payload: 1, throttle },
      { task: 'x', payload: 2 },
    ]);
    expect(added).toMatchObject([
      { id: holder.id, created: false, payload: 0 },
      { created: true, payload: 2 },
    ]);
    expect(await payloads()).toEqual([0, 2]);
  });
});

describe('what makes no sense is refused', () => {
  const throttle = { key: 't', ms: MINUTE };
  it.each<[string, object]>([
    ['Expected throttle alone, which says what jobKey would, got both.', { throttle, jobKey: 'k' }],
    ['Expected throttle alone, which says what unique would, got both.', { throttle, unique: {} }],
    ['Expected unique alone, which says what jobKey would, got both.', { unique: {}, jobKey: 'k' }],
    ['Expected debounce alone, which says what unique would, got both.', { unique: {}, debounce: { key: 'k', ms: 1 } }],
    ["beside a throttle with mode 'delay'", { throttle: { ...throttle, mode: 'delay' }, delayMs: 5 }],
    ['Expected throttle.ms to be a number of milliseconds from 1 to 1e12, got 0.', { throttle: { key: 't', ms: 0 } }],
    ['Expected throttle.key to be', { throttle: { ms: 5 } }],
    ['Expected throttle.key to be', { throttle: { key: 'x'.repeat(1_001), ms: 5 } }],
    ["Expected throttle.mode to be one of 'drop', 'delay'", { throttle: { ...throttle, mode: 'drop ' } }],
    ['Expected unique to be an object, got true.', { unique: true }],
    ['Expected unique.by to be an array of 1 to 20', { unique: { by: [] } }],
    ['Expected unique.by to be an array of 1 to 20', { unique: { by: ['user.id'] } }],
    ['Expected unique.by to be an array of 1 to 20', { unique: { by: ['payload.'] } }],
    ['Expected unique.by to be an array of 1 to 20', { unique: { by: ['payload..id'] } }],
    ['Expected unique.withinMs to be a number', { unique: { withinMs: Infinity } }],
    ["Expected unique.while to be one of 'live'", { unique: { while: 'running' } }],
    ['Unknown option unique.within', { unique: { within: 5 } }],
  ])('%s', async (message, options) => {
    await expect(jobs.addJob('x', 1, options)).rejects.toThrow(message);
    await expect(jobs.addJobs([{ task: 'x', payload: 1, ...options }])).rejects.toThrow(/Expected|Unknown/);
    expect(await live()).toEqual([]);
  });

  it('null is as if it were left out', async () => {
    expect(await jobs.addJob('x', 1, { throttle: null, unique: null })).toMatchObject({ created: true, jobKey: null });
    expect(await jobs.getJobs(OTHER)).toHaveLength(1);
  });
});
