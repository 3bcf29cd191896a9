// Actions on many jobs: what they meet, what becomes of it, and that each page is done once, whatever happens beside it.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  BulkActionNotFoundError,
  type BulkAction,
  type JobFilter,
  type JobManager,
  WaitTimeoutError,
} from '../../lib/index.js';
import { createTestManager, managerWithin, OTHER, type TestManager, WORKER } from '../support/manager.js';

const BY = { by: 'ada' };
const HOUR = 3_600_000;
let test: TestManager;
let jobs: JobManager;
let strangers: pg.Client[] = [];

beforeEach(async () => {
  test = await createTestManager({ history: { keep: 'all' } });
  jobs = test.jobs;
});
afterEach(async () => {
  await Promise.all(strangers.map((client) => client.end()));
  strangers = [];
  await test.close();
});

/** What pools do: all pages that are due. Returns how many there were. */
async function performPages(manager = jobs): Promise<number> {
  let pages = 0;
  while (await manager.engine.bulk.doNext()) pages++;
  return pages;
}

async function perform({ id }: BulkAction): Promise<BulkAction> {
  await performPages();
  return (await jobs.bulk.find(id))!;
}

const add = async (count: number, task = 't', options: object = {}): Promise<string[]> =>
  (await jobs.addJobs(Array.from({ length: count }, (_, n) => ({ task, payload: n, ...options })))).map(({ id }) => id);

const statuses = async (ids: string[]): Promise<(string | undefined)[]> =>
  Promise.all(ids.map(async (id) => (await jobs.findJob(id))?.status));

/** An open transaction that holds these jobs. */
async function hold(ids: string[], table = 'jobs'): Promise<pg.Client> {
  const client = new pg.Client(test.url);
  await client.connect();
  strangers.push(client);
  await client.query('begin');
  await client.query(`select from jobs.${table} where id = any($1) for update`, [ids]);
  return client;
}

/** Nothing is put off: what waits for its time is due now. */
const hurry = () => test.sql('update jobs.job_bulk_actions set next_at = clock_timestamp()');

describe('a bulk action', () => {
  it('is written down at once, done page by page, and shows what came of it', async () => {
    const ids = await add(2_500);
    const others = await add(2, 'other');
    const begun = await jobs.bulk.cancel({ task: 't' }, { ...BY, reason: 'wrong prices' });
    expect(begun).toMatchObject({ action: 'cancel', state: 'waiting', filter: { task: 't' }, by: 'ada', matched: 0 });
    expect(begun).toMatchObject({ reason: 'wrong prices', startedAt: null, finishedAt: null, error: null });
    expect(await performPages()).toBe(3);
    const action = await jobs.bulk.wait(begun.id);
    expect(action).toMatchObject({ state: 'completed', matched: 2_500, done: 2_500, failed: 0, skipped: 0, held: 0 });
    expect(action.startedAt!.getTime()).toBeLessThanOrEqual(action.finishedAt!.getTime());
    expect(await statuses([ids[0]!, ids[2_499]!, ...others])).toEqual([
      'cancelled',
      'cancelled',
      'available',
      'available',
    ]);
    expect(await jobs.jobHistory(ids[0]!)).toMatchObject([{ status: 'cancelled', errorMessage: 'wrong prices' }]);
    expect(await performPages()).toBe(0);
  });

  it('touches no job that is added later, wherever its id stands', async () => {
    await add(2);
    const action = await jobs.bulk.cancel({ all: true }, BY);
    const [late] = await add(1);
    // The clock of the process that added it was behind.
    const [early] = await add(1);
    await test.sql(`update jobs.jobs set id = '00000000-0000-7000-8000-000000000001' where id = $1`, [early]);
    await test.sql(`update jobs.job_bodies set id = '00000000-0000-7000-8000-000000000001' where id = $1`, [early]);
    expect(await perform(action)).toMatchObject({ matched: 2, done: 2 });
    expect(await statuses([late!, '00000000-0000-7000-8000-000000000001'])).toEqual(['available', 'available']);
  });

  it('has an end where there is no job at all', async () => {
    expect(await jobs.engine.bulk.dueInMs()).toBeNull();
    expect(await perform(await jobs.bulk.purge({ all: true }, BY))).toMatchObject({ state: 'completed', matched: 0 });
  });

  it('meets the same jobs as listJobs does, and a dry run counts them', async () => {
    await jobs.addJobs([
      { task: 'a', payload: 1 },
      { task: 'b', payload: { n: 'needle' }, queue: 'q', tags: ['x', 'y'], flags: ['f'], groupId: 'g', delayMs: HOUR },
      { task: 'a', payload: 3, tags: ['y'] },
    ]);
    const [old] = await add(1, 'old');
    await test.sql(`update jobs.job_bodies set created_at = created_at - interval '2 hours' where id = $1`, [old]);
    const then = new Date(Date.now() - HOUR);
    const found = async (filter: JobFilter) => (await jobs.listJobs(filter)).items.map(({ id }) => id).toSorted();
    const filters: JobFilter[] = [
      { task: 'b' },
      { queue: 'q' },
      { tag: 'x' },
      { tag: 'y' },
      { flag: 'f' },
      { groupId: 'g' },
      { groupId: old! },
      { search: 'needle' },
      { status: 'scheduled' },
      { from: then },
      { to: then },
      { task: 'b', tag: 'x', status: 'scheduled', from: then, search: 'B' },
    ];
    for (const filter of filters) {
      const listed = await found(filter);
      expect(listed.length).toBeGreaterThan(0);
      const preview = await jobs.bulk.cancel(filter, { ...BY, dryRun: true });
      expect(preview).toEqual({ action: 'cancel', matched: listed.length, isEstimate: false, sample: listed });
    }
    expect(await jobs.bulk.list()).toEqual({ items: [], cursor: null });
    const last = filters.at(-1)!;
    const listed = await found(last);
    const action = await perform(await jobs.bulk.cancel(last, BY));
    expect(action).toMatchObject({ matched: listed.length, done: listed.length, filter: last });
    expect(await found({ status: 'cancelled' })).toEqual(listed);
  });

  it('looks at a bounded number of jobs a page, and goes on where none of them matched', async () => {
    for (let added = 0; added < 12_000; added += 4_000) await add(4_000, 'rest');
    const [needle] = await add(1, 'needle');
    const preview = await jobs.bulk.cancel({ task: 'rest' }, { ...BY, dryRun: true });
    expect(preview).toMatchObject({ isEstimate: true, matched: expect.any(Number) });
    expect(preview.matched).toBeGreaterThanOrEqual(10_000);
    expect(preview.sample).toHaveLength(10);
    const action = await jobs.bulk.cancel({ task: 'needle' }, BY);
    expect(await performPages()).toBeGreaterThan(1);
    expect(await jobs.bulk.find(action.id)).toMatchObject({ state: 'completed', matched: 1, done: 1 });
    expect(await statuses([needle!])).toEqual(['cancelled']);
  });
});

describe('cancelling', () => {
  it('asks running jobs to stop, and lets waiting and exhausted ones leave', async () => {
    const [running] = await add(1);
    const [claimed] = await jobs.getJobs(WORKER);
    const [waiting, failed, blocked] = [...(await add(2)), (await jobs.addJob('t', 1, { dependsOn: [running!] })).id];
    await jobs.permanentlyFailJobs([failed!]);
    const action = await perform(await jobs.bulk.cancel({ task: 't' }, { ...BY, reason: 'enough' }));
    expect(action).toMatchObject({ matched: 4, done: 4, skipped: 0 });
    expect(await statuses([running!, waiting!, failed!, blocked!])).toEqual([
      'running',
      'cancelled',
      'cancelled',
      'cancelled',
    ]);
    const report = await jobs.completeJobs(WORKER, [claimed!], 1);
    expect(report).toMatchObject({ settled: [expect.anything()] });
    expect(await statuses([running!])).toEqual(['cancelled']);
  });

  it('passes over a job that was claimed after it was found, where the filter’s status says so', async () => {
    const ids = await add(2);
    const action = await jobs.bulk.cancel({ status: 'available' }, BY);
    await jobs.getJobs(WORKER);
    expect(await perform(action)).toMatchObject({ matched: 1, done: 1 });
    expect(await statuses(ids)).toEqual(['running', 'cancelled']);
  });

  it('frees keys and tells children, as cancelJobs does', async () => {
    const { id } = await jobs.addJob('t', 1, { jobKey: 'k', delayMs: HOUR });
    const child = await jobs.addJob('child', 1, { dependsOn: [id] });
    await perform(await jobs.bulk.cancel({ task: 't' }, BY));
    expect(await statuses([id, child.id])).toEqual(['cancelled', 'cancelled']);
    expect(await test.sql('select from jobs.job_keys')).toEqual([]);
  });
});

describe('retrying', () => {
  it('brings exhausted and cancelled jobs of a family back, parents first', async () => {
    const [parent] = await add(1, 'parent');
    const child = await jobs.addJob('child', 1, { dependsOn: [parent!] });
    const [done] = await add(1, 'done', { priority: -1 });
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER), 1);
    await jobs.permanentlyFailJobs([parent!]);
    expect(await statuses([parent!, child.id, done!])).toEqual(['exhausted', 'cancelled', 'completed']);
    const action = await perform(await jobs.bulk.retry({ all: true }, { ...BY, ratePerS: 1 }));
    expect(action).toMatchObject({ state: 'running', matched: 1, done: 1 });
    expect(await statuses([parent!, child.id])).toEqual(['available', 'cancelled']);
    await hurry();
    expect(await perform(action)).toMatchObject({ state: 'completed', matched: 2, done: 2, failed: 0 });
    expect(await statuses([parent!, child.id, done!])).toEqual(['available', 'blocked', 'completed']);
  });

  it('counts jobs whose keys others have as failed, says why, and goes on with the rest', async () => {
    const { id: old } = await jobs.addJob('t', 1, { jobKey: 'k' });
    await jobs.cancelJobs([old]);
    await jobs.addJob('u', 1, { jobKey: 'k' });
    const { id: first } = await jobs.addJob('t', 1, { jobKey: 'twice' });
    await jobs.cancelJobs([first]);
    const { id: second } = await jobs.addJob('t', 1, { jobKey: 'twice' });
    const [plain] = await add(1);
    await jobs.cancelJobs([second, plain!]);
    const action = await perform(await jobs.bulk.retry({ task: 't' }, BY));
    expect(action).toMatchObject({ state: 'completed', matched: 4, done: 2, failed: 2, skipped: 0 });
    expect(action.reasons).toEqual([
      { jobId: old, outcome: 'failed', reason: 'another live job has its key' },
      { jobId: second, outcome: 'failed', reason: 'another live job has its key' },
    ]);
    expect(await statuses([old, first, second, plain!])).toEqual(['cancelled', 'available', 'cancelled', 'available']);
  });

  it('comes to the rest of a page where one job’s key is held', async () => {
    const ids = await Promise.all(['a', 'b', 'c'].map(async (jobKey) => (await jobs.addJob('t', 1, { jobKey })).id));
    await jobs.permanentlyFailJobs(ids);
    const client = new pg.Client(test.url);
    strangers.push(client);
    await client.connect();
    await client.query(`begin; select from jobs.job_keys where key = 'b' for update`);
    const action = await perform(await jobs.bulk.retry({ status: 'exhausted' }, BY));
    expect(action).toMatchObject({ state: 'running', matched: 3, done: 2, held: 1 });
    await client.query('rollback');
    await hurry();
    expect(await perform(action)).toMatchObject({ state: 'completed', matched: 3, done: 3, held: 0 });
  });
});

describe('retrying beside what happens meanwhile', () => {
  it('leaves one job of many for later where its key is held', async () => {
    const specs = Array.from({ length: 200 }, (_, n) => ({ task: 't', payload: n, jobKey: `k${n}` }));
    await jobs.permanentlyFailJobs((await jobs.addJobs(specs)).map(({ id }) => id));
    const client = new pg.Client(test.url);
    strangers.push(client);
    await client.connect();
    await client.query(`begin; select from jobs.job_keys where key = 'k17' for update`);
    const action = await perform(await jobs.bulk.retry({ status: 'exhausted' }, BY));
    expect(action).toMatchObject({ state: 'running', matched: 200, done: 199, held: 1 });
    await client.query('rollback');
    await hurry();
    expect(await perform(action)).toMatchObject({ state: 'completed', done: 200, held: 0 });
  });

  it('finds the one job of many of which another row is held', async () => {
    const ids = await add(100);
    await jobs.cancelJobs(ids);
    const client = new pg.Client(test.url);
    strangers.push(client);
    await client.connect();
    await client.query(`begin; select from jobs.job_history where job_id = '${ids[77]}' for update`);
    const action = await perform(await jobs.bulk.purge({ all: true }, BY));
    expect(action).toMatchObject({ state: 'running', matched: 100, done: 99, held: 1 });
    await client.query('rollback');
    await hurry();
    expect(await perform(action)).toMatchObject({ state: 'completed', done: 100, held: 0 });
  });

  it('brings no job back a second time that has failed again', async () => {
    const ids = await add(3);
    await jobs.permanentlyFailJobs(ids);
    const action = await jobs.bulk.retry({ task: 't' }, { ...BY, ratePerS: 1 });
    for (let pages = 0; pages < 6; pages++) {
      await performPages();
      await jobs.permanentlyFailJobs(ids);
      await hurry();
    }
    expect(await jobs.bulk.find(action.id)).toMatchObject({ state: 'completed', matched: 3, done: 3 });
    expect(await statuses(ids)).toEqual(['exhausted', 'exhausted', 'exhausted']);
  });
});

describe('rescheduling', () => {
  it('changes waiting jobs, skips running ones, and leaves exhausted ones unless they get attempts', async () => {
    const [running] = await add(1);
    await jobs.getJobs(WORKER);
    const [waiting, failed] = await add(2);
    await jobs.permanentlyFailJobs([failed!]);
    const runAt = new Date(Date.now() + HOUR);
    const action = await perform(await jobs.bulk.reschedule({ task: 't' }, { ...BY, runAt, priority: 7 }));
    expect(action).toMatchObject({ matched: 2, done: 1, skipped: 1, settings: { runAt, priority: 7 } });
    expect(action.reasons).toEqual([{ jobId: running, outcome: 'skipped', reason: 'it runs' }]);
    expect(await jobs.findJob(waiting!)).toMatchObject({ runAt, priority: 7, status: 'scheduled' });
    const again = await perform(await jobs.bulk.reschedule({ status: 'exhausted' }, { ...BY, maxAttempts: 9 }));
    expect(again).toMatchObject({ matched: 1, done: 1 });
    expect(await jobs.findJob(failed!)).toMatchObject({ status: 'available', maxAttempts: 9 });
  });

  it('exhausts jobs that get fewer attempts than they have made, and tells their children', async () => {
    const [parent] = await add(1);
    const child = await jobs.addJob('child', 1, { dependsOn: [parent!] });
    await jobs.failJobs(
      WORKER,
      (await jobs.getJobs(WORKER)).map((job) => ({ job, error: new Error('x') })),
      1,
    );
    await perform(await jobs.bulk.reschedule({ task: 't' }, { ...BY, maxAttempts: 1 }));
    expect(await statuses([parent!, child.id])).toEqual(['exhausted', 'cancelled']);
  });

  it('gives failed jobs attempts together with their keys, unless others have these', async () => {
    const mine = await jobs.addJob('t', 1, { jobKey: 'mine' });
    const lost = await jobs.addJob('t', 1, { jobKey: 'lost' });
    await jobs.getJobs(WORKER, { batchSize: 2 });
    await jobs.addJob('u', 1, { jobKey: 'lost' });
    await jobs.permanentlyFailJobs([mine.id, lost.id]);
    const action = await perform(await jobs.bulk.reschedule({ task: 't' }, { ...BY, maxAttempts: 9 }));
    expect(action).toMatchObject({ matched: 2, done: 1, failed: 1 });
    expect(await statuses([mine.id, lost.id])).toEqual(['available', 'exhausted']);
  });
});

describe('purging', () => {
  it('forgets what has ended, and nothing that is live', async () => {
    const [completed] = await add(1);
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER), 1);
    const [cancelled, failed, waiting] = await add(3);
    await jobs.cancelJobs([cancelled!]);
    await jobs.permanentlyFailJobs([failed!]);
    const action = await perform(await jobs.bulk.purge({ task: 't' }, BY));
    expect(action).toMatchObject({ state: 'completed', matched: 3, done: 3, skipped: 0 });
    expect(await statuses([completed!, cancelled!, failed!, waiting!])).toEqual([
      undefined,
      undefined,
      undefined,
      'available',
    ]);
    expect(await test.sql('select from jobs.job_history')).toEqual([]);
  });

  it('skips what has completed and has still to be told to children', async () => {
    const [parent] = await add(1);
    const child = await jobs.addJob('child', 1, { dependsOn: [parent!] });
    const stranger = await hold([child.id]);
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER), 1);
    const action = await perform(await jobs.bulk.purge({ all: true }, BY));
    expect(action).toMatchObject({ matched: 1, done: 0, skipped: 1 });
    expect(action.reasons).toMatchObject([{ jobId: parent, outcome: 'skipped', reason: 'other jobs wait for it' }]);
    await stranger.query('rollback');
  });
});

describe('moving', () => {
  it('gives waiting jobs their new lane, with which limits and places stay right', async () => {
    await jobs.registerRateLimit('l', 100, HOUR);
    await jobs.configureQueue('new', { concurrency: 1 });
    await add(3, 't', { queue: 'old', rateLimitKey: 'l' });
    const [running] = await jobs.getJobs(WORKER, { queues: ['old'] });
    const action = await perform(await jobs.bulk.move({ queue: 'old' }, { ...BY, queue: 'new' }));
    expect(action).toMatchObject({ matched: 3, done: 2, skipped: 1, settings: { queue: 'new' } });
    expect((await jobs.listJobs({ queue: 'new' })).items).toHaveLength(2);
    expect(await jobs.findJob(running!.id)).toMatchObject({ queue: 'old', status: 'running' });
    expect(await test.sql('select distinct lane from jobs.jobs where locked_by is null')).toEqual([
      { lane: 'new\x1f\x1fl' },
    ]);
    expect(await jobs.getJobs(OTHER, { queues: ['new'], batchSize: 5 })).toHaveLength(1);
    expect(await jobs.getJobs(OTHER, { queues: ['new', 'old'], batchSize: 5 })).toEqual([]);
    await jobs.completeJobs(WORKER, [running!], 1);
    expect(await test.sql('select queue from jobs.job_places')).toEqual([{ queue: 'new' }]);
  });

  it('takes jobs out of any queue', async () => {
    const [plain] = await add(1, 't', { queue: 'old' });
    await perform(await jobs.bulk.move({ queue: 'old' }, { ...BY, queue: null }));
    expect(await jobs.findJob(plain!)).toMatchObject({ queue: null });
    expect(await test.sql('select lane from jobs.jobs')).toEqual([{ lane: null }]);
    expect(await jobs.getJobs(WORKER)).toHaveLength(1);
  });
});

describe('what open transactions hold', () => {
  it('waits for the end of the action, which does not wait for it meanwhile', async () => {
    const ids = await add(5);
    const stranger = await hold(ids.slice(0, 2));
    const action = await perform(await jobs.bulk.cancel({ all: true }, BY));
    expect(action).toMatchObject({ state: 'running', matched: 5, done: 3, held: 2 });
    await hurry();
    expect(await perform(action)).toMatchObject({ state: 'running', matched: 5, done: 3, held: 2 });
    await stranger.query('rollback');
    await hurry();
    expect(await perform(action)).toMatchObject({ state: 'completed', matched: 5, done: 5, held: 0, skipped: 0 });
  });

  it('is skipped at last, and told', async () => {
    const ids = await add(2);
    await hold(ids.slice(1));
    const action = await jobs.bulk.cancel({ all: true }, BY);
    for (let tries = 0; tries < 12; tries++) {
      await performPages();
      await hurry();
    }
    const ended = await jobs.bulk.find(action.id);
    expect(ended).toMatchObject({ state: 'completed', matched: 2, done: 1, held: 0, skipped: 1 });
    expect(ended!.reasons).toEqual([{ jobId: ids[1], outcome: 'skipped', reason: 'an open transaction holds it' }]);
  });

  it('is counted once, whatever becomes of it', async () => {
    const ids = await add(2);
    const stranger = await hold(ids);
    const action = await perform(await jobs.bulk.cancel({ status: 'available' }, BY));
    expect(action).toMatchObject({ matched: 2, held: 2 });
    await stranger.query('rollback');
    await jobs.getJobs(WORKER);
    await hurry();
    expect(await perform(action)).toMatchObject({ state: 'completed', matched: 2, done: 1, skipped: 1, held: 0 });
  });
});

describe('a page', () => {
  it('is undone where its action is stopped meanwhile: what stop returned stays', async () => {
    const ids = await add(3);
    const { id } = await jobs.bulk.cancel({ all: true }, BY);
    const { database } = jobs.engine;
    const run = database.run.bind(database);
    database.run = async (statement, ...rest) => {
      if (statement.name === 'cancel_jobs') await jobs.bulk.stop(id);
      return run(statement, ...rest);
    };
    expect(await jobs.engine.bulk.doNext()).toBeNull();
    expect(await statuses(ids)).toEqual(['available', 'available', 'available']);
    expect(await jobs.bulk.stop(id)).toMatchObject({ state: 'stopped', matched: 0, done: 0 });
    expect(await performPages()).toBe(0);
  });

  it('belongs to one process at a time: another one finds none', async () => {
    await add(3);
    const { id } = await jobs.bulk.cancel({ all: true }, BY);
    const client = new pg.Client(test.url);
    strangers.push(client);
    await client.connect();
    await client.query(`set search_path = jobs; begin; select pg_advisory_xact_lock(lock_named('bulk', '${id}'))`);
    expect(await performPages()).toBe(0);
    await client.query('rollback');
    expect(await performPages()).toBe(1);
  });

  it('that goes wrong as a whole is tried again, and ends the action at last', async () => {
    await add(1);
    const { id } = await jobs.bulk.cancel({ all: true }, BY);
    await test.sql(`create function fail() returns trigger language plpgsql as $$
      begin raise exception 'the disk is on fire' using errcode = 'P0001'; end $$`);
    await test.sql('create trigger fail before delete on jobs.jobs for each row execute function fail()');
    await expect(performPages()).rejects.toThrow('the disk is on fire');
    expect(await jobs.bulk.find(id)).toMatchObject({ state: 'waiting', error: 'the disk is on fire', done: 0 });
    for (let tries = 1; tries < 9; tries++) {
      await hurry();
      await expect(performPages()).rejects.toThrow('the disk is on fire');
    }
    await hurry();
    expect(await performPages()).toBe(1);
    expect(await jobs.bulk.wait(id)).toMatchObject({ state: 'failed', error: 'the disk is on fire', done: 0 });
  });

  it('becomes smaller where it went wrong, and as large as before once it went well', async () => {
    await add(400);
    const { id } = await jobs.bulk.cancel({ all: true }, BY);
    await test.sql('update jobs.job_bulk_actions set failures = 3');
    await jobs.engine.bulk.doNext();
    expect(await jobs.bulk.find(id)).toMatchObject({ done: 125 });
    await performPages();
    expect(await jobs.bulk.find(id)).toMatchObject({ state: 'completed', done: 400 });
  });

  it('loses the one job that fails, and no other', async () => {
    const ids = await add(5);
    await test.sql(`create function refuse() returns trigger language plpgsql as $$
      begin if old.id = '${ids[2]}' then raise exception 'not this one' using errcode = '23514'; end if; return old; end $$`);
    await test.sql('create trigger refuse before delete on jobs.jobs for each row execute function refuse()');
    const action = await perform(await jobs.bulk.cancel({ all: true }, BY));
    expect(action).toMatchObject({ state: 'completed', matched: 5, done: 4, failed: 1 });
    expect(action.reasons).toMatchObject([
      { jobId: ids[2], outcome: 'failed', reason: expect.stringContaining('not this one') },
    ]);
    expect(await statuses(ids)).toEqual(['cancelled', 'cancelled', 'available', 'cancelled', 'cancelled']);
  });
});

describe('ratePerS', () => {
  it('makes pages as small as that, and each wait for its share of a second', async () => {
    await add(25);
    const { id } = await jobs.bulk.cancel({ all: true }, { ...BY, ratePerS: 10 });
    const done: number[] = [];
    for (let pages = 0; pages < 3; pages++) {
      expect(await performPages()).toBe(1);
      done.push((await jobs.bulk.find(id))!.done);
      const [row] = await test.sql(
        `select extract(epoch from next_at - started_at)::float8 as s, next_at > clock_timestamp() - interval '1 h' as sane
        from jobs.job_bulk_actions`,
      );
      // By the database's clock, no page begins before so many jobs may have been done.
      expect(row!.s).toBeGreaterThanOrEqual((done.at(-1)! - (done.at(-2) ?? 0)) / 10);
      await hurry();
    }
    expect(done).toEqual([10, 20, 25]);
    expect(await jobs.bulk.find(id)).toMatchObject({ state: 'completed', ratePerS: 10 });
  });
});

describe('two actions', () => {
  it('over the same jobs do each of them once', async () => {
    const ids = await add(3_000);
    const [one, two] = await Promise.all([
      jobs.bulk.cancel({ task: 't' }, BY),
      jobs.bulk.cancel({ task: 't' }, { by: 'grace' }),
    ]);
    const other = await createTestManagerOn(test.url);
    try {
      for (let rounds = 0; rounds < 20; rounds++) {
        await Promise.all([performPages(), performPages(other)]);
        await hurry();
      }
    } finally {
      await other.close();
    }
    const ended = [(await jobs.bulk.find(one.id))!, (await jobs.bulk.find(two.id))!];
    for (const { state, matched, done, failed, skipped, held } of ended) {
      expect([state, matched, held]).toEqual(['completed', done + failed + skipped, 0]);
    }
    expect(ended[0]!.done + ended[1]!.done).toBe(3_000);
    const records = await test.sql('select job_id, count(*)::int as n from jobs.job_history group by 1');
    expect(records).toHaveLength(ids.length);
    expect(records.every(({ n }) => n === 1)).toBe(true);
  });

  it('take turns, so that a long one does not keep a short one waiting', async () => {
    await add(3_000);
    await add(1, 'short');
    const long = await jobs.bulk.cancel({ task: 't' }, BY);
    const short = await jobs.bulk.cancel({ task: 'short' }, BY);
    for (let pages = 0; pages < 2; pages++) await jobs.engine.bulk.doNext();
    expect(await jobs.bulk.find(long.id)).toMatchObject({ state: 'running', done: 1_000 });
    expect((await jobs.bulk.find(short.id))!.startedAt).not.toBeNull();
  });
});

const createTestManagerOn = async (url: string): Promise<JobManager> =>
  (await import('../../lib/index.js')).createJobManager({ connection: url, history: { keep: 'all' } });

describe('in a transaction', () => {
  it('an action begins with its commit', async () => {
    await add(1);
    const client = new pg.Client(test.url);
    strangers.push(client);
    await client.connect();
    await client.query('begin');
    const executor = { query: async (text: string, values?: unknown[]) => (await client.query(text, values)).rows };
    const { id } = await managerWithin(jobs, executor).bulk.cancel({ all: true }, BY);
    expect(await jobs.bulk.find(id)).toBeNull();
    expect(await performPages()).toBe(0);
    await client.query('commit');
    expect(await performPages()).toBe(1);
    expect(await jobs.bulk.find(id)).toMatchObject({ done: 1 });
  });
});

describe('the record of actions', () => {
  it('is listed newest first, in pages', async () => {
    const ids: string[] = [];
    for (let n = 0; n < 3; n++) ids.unshift((await jobs.bulk.cancel({ all: true }, BY)).id);
    const first = await jobs.bulk.list({ limit: 2 });
    const rest = await jobs.bulk.list({ limit: 2, cursor: first.cursor });
    expect([...first.items, ...rest.items].map(({ id }) => id)).toEqual(ids);
    expect(rest.cursor).toBeNull();
  });

  it('is kept as long as history, and no action that goes on is forgotten', async () => {
    const ended = await perform(await jobs.bulk.cancel({ all: true }, BY));
    const open = await jobs.bulk.cancel({ all: true }, BY);
    await test.sql(`update jobs.job_bulk_actions set finished_at = finished_at - interval '1 year',
      created_at = created_at - interval '1 year'`);
    await jobs.gcJobHistory();
    expect(await jobs.bulk.find(ended.id)).toBeNull();
    expect(await jobs.bulk.find(open.id)).not.toBeNull();
  });

  it('says that it knows no such action', async () => {
    const id = '00000000-0000-7000-8000-00000000000f';
    expect(await jobs.bulk.find(id)).toBeNull();
    await expect(jobs.bulk.stop(id)).rejects.toThrow(BulkActionNotFoundError);
    await expect(jobs.bulk.wait(id)).rejects.toMatchObject({ code: 'ERR_JOBS_BULK_ACTION_NOT_FOUND', actionId: id });
  });

  it('is waited for as long as is said', async () => {
    const { id } = await jobs.bulk.cancel({ all: true }, BY);
    await expect(jobs.bulk.wait(id, { timeoutMs: 1 })).rejects.toThrow(WaitTimeoutError);
    const reason = new Error('no longer');
    await expect(jobs.bulk.wait(id, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  });

  it('an action that was stopped stays stopped', async () => {
    const { id } = await jobs.bulk.cancel({ all: true }, BY);
    const stopped = await jobs.bulk.stop(id);
    expect(stopped).toMatchObject({ state: 'stopped', finishedAt: expect.any(Date) });
    expect(await jobs.bulk.stop(id)).toEqual(stopped);
  });
});

describe('a call that cannot be meant is refused', () => {
  const filters: [string, unknown, RegExp][] = [
    ['no filter', undefined, /Expected the filter to be an object/],
    ['an empty filter', {}, /an empty one; all: true means all/],
    ['a value that is undefined', { task: undefined }, /Expected filter\.task to have a value, got undefined/],
    ['one among others', { tag: 'x', task: undefined }, /Expected filter\.task to have a value/],
    ['null', { task: null }, /Expected filter\.task to be a string/],
    ['all beside others', { all: true, task: 't' }, /Expected filter\.all alone/],
    ['all: false', { all: false }, /Expected filter\.all to be true/],
    ['an empty search', { search: '' }, /Expected filter\.search to be a text to look for/],
    ['a misspelt field', { tsak: 't' }, /Unknown option filter\.tsak; did you mean task\?/],
    ['a misspelt status', { status: 'availble' }, /did you mean available\?/],
    ['a status that it cannot be done to', { status: 'cancelled' }, /one that cancel can be done to \(available/],
    ['another one', { status: 'completed' }, /one that cancel can be done to/],
    ['an invalid date', { from: new Date(NaN) }, /Expected filter\.from to be a valid Date/],
  ];
  it('by its filter', async () => {
    for (const [, filter, problem] of filters) {
      await expect(jobs.bulk.cancel(filter as never, BY)).rejects.toThrow(problem);
      await expect(jobs.bulk.cancel(filter as never, { ...BY, dryRun: true })).rejects.toThrow(problem);
    }
    expect((await jobs.bulk.list()).items).toEqual([]);
  });

  const options: [string, object, RegExp][] = [
    ['without a name', {}, /Expected by to be a string/],
    ['an empty name', { by: '' }, /Expected by to be a string/],
    ['a rate of nothing', { ...BY, ratePerS: 0 }, /Expected ratePerS to be an integer from 1/],
    ['an endless rate', { ...BY, ratePerS: Infinity }, /Expected ratePerS to be an integer/],
    ['dryRun: "no"', { ...BY, dryRun: 'no' }, /Expected dryRun to be true or false/],
    ['a misspelt option', { ...BY, dryrun: true }, /Unknown option dryrun; did you mean dryRun\?/],
  ];
  it('by its options', async () => {
    for (const [, given, problem] of options)
      await expect(jobs.bulk.purge({ all: true }, given as never)).rejects.toThrow(problem);
    expect((await jobs.bulk.list()).items).toEqual([]);
  });

  it('a status of jobs that would all be skipped', async () => {
    const filter = { status: 'running' } as const;
    await expect(jobs.bulk.move(filter, { ...BY, queue: 'q' })).rejects.toThrow(/one that move can be done to/);
    await expect(jobs.bulk.reschedule(filter, { ...BY, priority: 1 })).rejects.toThrow(/one that reschedule can be/);
  });

  it('a reschedule to nothing, and a move to nowhere', async () => {
    await expect(jobs.bulk.reschedule({ all: true }, BY)).rejects.toThrow(/Expected runAt, priority or maxAttempts/);
    await expect(jobs.bulk.move({ all: true }, BY as never)).rejects.toThrow(
      /Expected queue to be a string .*, or null/,
    );
  });
});

describe('encryption', () => {
  it('covers filters, which may name persons, and rotates with the rest', async () => {
    const key = (fill: string) => Buffer.alloc(32, fill);
    const keysOf = (...ids: string[]) => ({ encryption: { keys: ids.map((id) => ({ id, key: key(id) })) } });
    await test.close();
    test = await createTestManager(keysOf('a'));
    jobs = test.jobs;
    await add(1, 't', { groupId: 'ada@example.org' });
    const { id } = await jobs.bulk.cancel({ groupId: 'ada@example.org' }, BY);
    const stored = async () => JSON.stringify(await test.sql('select filter::text from jobs.job_bulk_actions'));
    expect(await stored()).not.toContain('ada@example.org');
    const { createJobManager, EncryptedValue } = await import('../../lib/index.js');
    const blind = await createJobManager({ connection: test.url });
    expect((await blind.bulk.find(id))!.filter).toEqual(new EncryptedValue('a'));
    // Another process may have the key: the action neither fails nor is put off.
    for (let tries = 0; tries < 11; tries++)
      await expect(blind.engine.bulk.doNext()).rejects.toThrow(/encryption\.keys/);
    expect(await blind.bulk.find(id)).toMatchObject({ state: 'waiting', error: null });
    await blind.close();
    const rotating = await createJobManager({ connection: test.url, ...keysOf('b', 'a') });
    expect(await rotating.reencryptJobs()).toMatchObject({ left: 0, unreadable: [] });
    expect(await stored()).toContain('\\"key\\":\\"b\\"');
    await hurry();
    await performPages(rotating);
    expect(await rotating.bulk.find(id)).toMatchObject({
      state: 'completed',
      done: 1,
      filter: { groupId: 'ada@example.org' },
    });
    await rotating.close();
  });
});
