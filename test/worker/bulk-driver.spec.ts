// Pools perform bulk actions, whatever they take of jobs, and whatever happens to the one that is at it.
import { afterEach, describe, expect, it } from '@jest/globals';
import { createWorkerPool, type WorkerOptions, type WorkerPoolOptions } from '../../lib/index.js';
import { JobLogger } from '../../lib/monitoring/job.logger.js';
import { createJobsTesting } from '../../lib/testing.js';
import { eventually } from '../support/database.js';
import { sceneOfEachTest } from '../support/pools.js';
import { WorkerProcess } from '../support/workers.js';

const scene = sceneOfEachTest();
const BY = { by: 'ada' };
const WAIT = { timeoutMs: 60_000 };

async function startPool(options: WorkerOptions = {}, more: Partial<WorkerPoolOptions> = {}): Promise<void> {
  const { jobs, events } = scene;
  scene.pool = createWorkerPool({ jobs, events, tasks: {}, options, ...more });
  await scene.pool.start();
}

const add = (count: number, task = 't') =>
  scene.jobs.addJobs(Array.from({ length: count }, (_, n) => ({ task, payload: n })));

describe('a pool', () => {
  it('performs bulk actions at once, beside its slots, and tells and logs when they begin and end', async () => {
    const lines: string[] = [];
    const note = (line: string): void => void lines.push(line);
    new JobLogger({ error: note, warn: note, log: note, debug: note }).subscribe(scene.events);
    await add(1_001);
    await startPool();
    const { id } = await scene.jobs.bulk.cancel({ task: 't' }, { ...BY, reason: 'wrong prices' });
    expect(await scene.jobs.bulk.wait(id, WAIT)).toMatchObject({ state: 'completed', done: 1_001 });
    await eventually(() => scene.events.ofType('bulk.finished').length);
    expect(scene.events.ofType('bulk.started')).toMatchObject([{ bulk: { id, state: 'running', done: 1_000 } }]);
    expect(scene.events.ofType('bulk.finished')).toMatchObject([{ bulk: { id, state: 'completed', done: 1_001 } }]);
    expect(JSON.stringify(scene.events.ofType('bulk.finished'))).not.toContain('filter');
    expect(lines.filter((line) => line.startsWith('Bulk'))).toEqual([
      `Bulk cancel ${id} by ada (wrong prices) has begun`,
      `Bulk cancel ${id} by ada (wrong prices) has completed: 1001 jobs matched, 1001 done, 0 failed, 0 skipped`,
    ]);
  });

  it.each<[string, WorkerOptions, Partial<WorkerPoolOptions>]>([
    ['other tasks', { taskIdentifiers: ['other'] }, {}],
    ['other queues', { queues: ['other'] }, {}],
    ['no flags', { forbiddenFlags: ['f'] }, {}],
    ['unknown tasks to exhaust them', {}, { unknownTasks: 'exhaust' } as Partial<WorkerPoolOptions>],
    ['no news', { listen: false }, {}],
  ])('that takes %s performs them all the same', async (_, options, more) => {
    const [job] = await scene.jobs.addJobs([{ task: 't', payload: 1, queue: 'q', flags: ['f'], delayMs: 3_600_000 }]);
    await startPool(options, more);
    const { id } = await scene.jobs.bulk.cancel({ task: 't' }, BY);
    expect(await scene.jobs.bulk.wait(id, WAIT)).toMatchObject({ done: 1 });
    expect(await scene.jobs.findJob(job!.id)).toMatchObject({ status: 'cancelled' });
    expect(await scene.jobs.listJobs({ status: 'exhausted' })).toMatchObject({ items: [] });
  });

  it('aborts jobs that run where an action cancels them', async () => {
    const reasons: unknown[] = [];
    const handler = (_: unknown, { signal }: { signal: AbortSignal }): Promise<void> =>
      new Promise((_, reject) => {
        signal.addEventListener('abort', () => {
          reasons.push(signal.reason);
          reject(signal.reason as Error);
        });
      });
    await startPool({}, { tasks: { t: handler } });
    const [job] = await add(1);
    await eventually(async () => (await scene.jobs.findJob(job!.id))?.status === 'running');
    const { id } = await scene.jobs.bulk.cancel({ status: 'running' }, { ...BY, reason: 'enough' });
    expect(await scene.jobs.bulk.wait(id, WAIT)).toMatchObject({ matched: 1, done: 1 });
    await eventually(async () => (await scene.jobs.findJob(job!.id))?.status === 'cancelled');
    expect(reasons).toMatchObject([{ code: 'ERR_JOBS_CANCELLED', message: 'enough' }]);
  });

  it('runs at once what an action has retried, or moved to a free queue', async () => {
    const ran: number[] = [];
    await startPool({ pollIntervalMs: 60_000 }, { tasks: { t: (n: unknown) => void ran.push(n as number) } });
    await scene.jobs.pauseQueue('full');
    await scene.jobs.addJob('t', 1, { queue: 'full' });
    await scene.jobs.addJob('t', 2, { delayMs: 3_600_000, jobKey: 'k' });
    await scene.jobs.cancelJobsByKey(['k']);
    await scene.jobs.bulk.move({ queue: 'full' }, { ...BY, queue: 'free' });
    await scene.jobs.bulk.retry({ status: 'cancelled' }, BY);
    await eventually(() => ran.length === 2);
    expect(new Set(ran)).toEqual(new Set([1, 2]));
  });

  it('that is stopped leaves the rest of an action to others', async () => {
    await add(5);
    await startPool();
    const { id } = await scene.jobs.bulk.cancel({ task: 't' }, { ...BY, ratePerS: 1 });
    await eventually(async () => (await scene.jobs.bulk.find(id))?.state === 'running');
    await scene.pool!.stop();
    const left = (await scene.jobs.bulk.find(id))!;
    expect(left).toMatchObject({ state: 'running' });
    await scene.test.sql('update jobs.job_bulk_actions set rate_per_s = null');
    await startPool();
    expect(await scene.jobs.bulk.wait(id, WAIT)).toMatchObject({ state: 'completed', matched: 5, done: 5 });
  });
});

describe('a process without a pool', () => {
  it('only writes an action down', async () => {
    await add(1);
    const { id } = await scene.jobs.bulk.cancel({ task: 't' }, BY);
    expect(await scene.jobs.bulk.find(id)).toMatchObject({ state: 'waiting', matched: 0 });
  });
});

describe('killed in the middle', () => {
  const workers: WorkerProcess[] = [];
  afterEach(() => Promise.all(workers.splice(0).map((worker) => worker.end())));
  const start = async (): Promise<WorkerProcess> => {
    const worker = await WorkerProcess.start(scene.test.url, { taskIdentifiers: ['none'], listen: false });
    workers.push(worker);
    return worker;
  };

  it('an action does each page once, whichever process goes on with it', async () => {
    const { jobs, test } = scene;
    const ids: string[] = [];
    for (let added = 0; added < 12_000; added += 4_000) ids.push(...(await add(4_000)).map(({ id }) => id));
    await add(10, 'other');
    const { id } = await jobs.bulk.cancel({ task: 't' }, BY);
    let kills = 0;
    for (let before = -1; ;) {
      const worker = await start();
      const { done, finishedAt } = await eventually(async () => {
        const action = (await jobs.bulk.find(id))!;
        return (action.finishedAt || action.done > before) && action;
      }, WAIT);
      if (finishedAt || kills === 4) break;
      await worker.end('SIGKILL');
      before = done;
      kills++;
    }
    const action = await jobs.bulk.wait(id, WAIT);
    expect(kills).toBeGreaterThan(0);
    expect(action).toMatchObject({ state: 'completed', matched: 12_000, done: 12_000, failed: 0, skipped: 0, held: 0 });
    const records = await test.sql<{ job_id: string; n: number }>(
      `select job_id, count(*)::int as n from jobs.job_history where status = 'cancelled' group by 1`,
    );
    expect(records.filter(({ n }) => n !== 1)).toEqual([]);
    expect(records.map(({ job_id }) => job_id).toSorted()).toEqual(ids.toSorted());
    expect(await test.sql('select from jobs.jobs')).toHaveLength(10);
  }, 120_000);
});

describe('drain', () => {
  it('performs bulk actions that are due, before jobs and after them', async () => {
    const { jobs } = scene;
    const [first, second] = [await jobs.addJob('t', 1), await jobs.addJob('later', 1, { delayMs: 3_600_000 })];
    const tasks = { t: () => undefined, clean: () => jobs.bulk.cancel({ task: 'later' }, BY).then(() => undefined) };
    const testing = createJobsTesting({ jobs, tasks });
    const { id } = await jobs.bulk.cancel({ task: 't' }, BY);
    await jobs.addJob('clean', 1);
    expect((await testing.drain()).map(({ job }) => job.task)).toEqual(['clean']);
    expect(await jobs.bulk.find(id)).toMatchObject({ state: 'completed', done: 1 });
    expect(await jobs.findJob(first.id)).toMatchObject({ status: 'cancelled' });
    expect(await jobs.findJob(second.id)).toMatchObject({ status: 'cancelled' });
    await testing.clear();
    expect((await jobs.bulk.list()).items).toEqual([]);
    await testing.close();
  });
});
