// What pools do with pauses: claimed jobs that have not started go back, running ones go on, and an idle pool wakes when a pause
// ends.
import { afterEach, describe, expect, it } from '@jest/globals';
import {
  type ClaimedJob,
  createWorkerPool,
  type PlainTasks,
  type WorkerOptions,
  type WorkerPool,
} from '../../lib/index.js';
import { PauseWatch } from '../../lib/worker/pause.watch.js';
import { eventually } from '../support/database.js';
import { sceneOfEachTest } from '../support/pools.js';

const WHY = { reason: 'the bank is down', by: 'ada' };
/** So rarely does it poll that it never does. */
const RARELY: WorkerOptions = { pollIntervalMs: 600_000, concurrency: 1 };

const pools: WorkerPool[] = [];

let ran: string[] = [];
let release: () => void = () => undefined;

// Before the manager is closed, which waits for pools.
afterEach(async () => {
  release();
  await Promise.all(pools.splice(0).map((pool) => pool.forceStop()));
});
const scene = sceneOfEachTest();

async function start(
  options: WorkerOptions = {},
  parts: { instance?: string; workerId?: string } = {},
): Promise<WorkerPool> {
  ran = [];
  const held = new Promise<void>((resolve) => (release = resolve));
  const tasks: PlainTasks<string> = {
    holds: () => held,
    charge: () => void ran.push('charge'),
    mail: () => void ran.push('mail'),
  };
  const pool = createWorkerPool({
    jobs: scene.jobs,
    tasks,
    events: scene.events,
    options: { ...RARELY, ...options },
    ...parts,
  });
  pools.push(pool);
  return pool.start();
}

const add = (...tasks: string[]) => scene.jobs.addJobs(tasks.map((task) => ({ task, payload: 1 })));
const statesOf = async (task: string): Promise<unknown[]> =>
  (await scene.jobs.listJobs({ task })).items.map(({ status, attempts }) => [status, attempts]);

describe('a job that is claimed and has not started', () => {
  it.each([
    ['of a paused task goes back uncounted, others start', { task: 'charge' }, ['mail']],
    ['goes back uncounted when everything is paused', { all: true as const }, []],
    ['goes back uncounted when the instance is paused', { instance: 'default' }, []],
    ['goes back uncounted when the worker is paused', { worker: 'worker-that-is-paused' }, []],
  ])('%s, and the one that runs goes on', async (_, target, others) => {
    await add('holds', 'charge', 'charge', 'mail');
    const pool = await start({}, { workerId: 'worker-that-is-paused' });
    await eventually(() => pool.activeWorkers === 1 && pool.queue.depth === 3);
    await scene.jobs.pause(target, WHY);
    await eventually(() => pool.queue.depth === others.length);
    await eventually(async () => (await statesOf('charge')).every((state) => String(state) === 'available,0'));
    release();
    await eventually(() => ran.length === others.length && pool.stats().completed === 1 + others.length);
    expect(ran).toEqual(others);
    await scene.jobs.resume(target);
    await eventually(() => ran.length === 3);
  });

  it('goes back with the next beat where the pool does not listen', async () => {
    await add('holds', 'charge');
    const pool = await start({ listen: false, keepaliveMs: 100 });
    await eventually(() => pool.queue.depth === 1);
    await scene.jobs.pause({ task: 'charge' }, WHY);
    await eventually(() => pool.queue.depth === 0);
    expect(ran).toEqual([]);
  });
});

describe('a job of a queue that gathers for a batch', () => {
  const MAIL = { queue: 'mail' };
  const ACME = { partition: { queue: 'mail', partition: 'acme' } };
  const gathered = { size: 100, waitMs: 600_000 };

  async function gather(options: WorkerOptions = {}): Promise<WorkerPool> {
    await scene.jobs.addJobs([
      { task: 'index', payload: 1, queue: 'mail', partition: 'acme' },
      { task: 'index', payload: 2, queue: 'mail', partition: 'acme' },
      { task: 'index', payload: 3, queue: 'mail', partition: 'beta' },
      { task: 'index', payload: 4, queue: 'news', partition: 'acme' },
      { task: 'index', payload: 5 },
    ]);
    const tasks = { index: { batch: gathered, handler: () => undefined } };
    const pool = createWorkerPool({
      jobs: scene.jobs,
      tasks,
      events: scene.events,
      options: { ...RARELY, ...options },
    });
    pools.push(await pool.start());
    await eventually(() => pool.queue.depth === 5);
    return pool;
  }

  const waiting = async (): Promise<string[]> =>
    (await scene.jobs.listJobs({ task: 'index', status: 'available' })).items
      .map(({ payload, attempts }) => `${payload as number}: ${attempts}`)
      .toSorted();

  it.each([
    ['queue is paused', MAIL, [1, 2, 3], {}],
    ['partition is paused', ACME, [1, 2], {}],
    [
      'queue is paused, with the next beat where the pool does not listen',
      MAIL,
      [1, 2, 3],
      { listen: false, keepaliveMs: 100, pollIntervalMs: 100 },
    ],
  ])('goes back uncounted when its %s, and others stay', async (_, target, payloads, options) => {
    const pool = await gather(options);
    await scene.jobs.pause(target, WHY);
    await eventually(() => pool.queue.depth === 5 - payloads.length);
    await eventually(async () => (await waiting()).length === payloads.length);
    expect(await waiting()).toEqual(payloads.map((payload) => `${payload}: 0`));
    await scene.jobs.resume(target);
    await eventually(() => pool.queue.depth === 5);
  });

  it('goes back where its claim began before the pause and is answered after it was told', async () => {
    const [job] = await scene.jobs.addJobs([{ task: 'index', payload: 1, queue: 'mail', partition: 'acme' }]);
    const [claimed] = await scene.jobs.getJobs('worker-by-hand');
    await scene.jobs.pause(ACME, WHY);
    const held: ClaimedJob[] = [];
    const errors: unknown[] = [];
    let asked = 0;
    let paused = 0;
    const { pauses } = scene.jobs.engine;
    const watch = new PauseWatch({
      pauses: {
        find: (...args: Parameters<typeof pauses.find>) => pauses.find(...args).finally(() => asked++),
      } as never,
      incarnation: () => 'none',
      held: () => held,
      onPaused: () => void paused++,
      onResumed: () => undefined,
      onError: (error) => void errors.push(error),
    });
    watch.ask();
    await eventually(() => asked === 1);
    watch.noteClaimed(claimed!.lockedAt!.getTime());
    held.push(claimed!);
    await eventually(() => paused === 1);
    expect([claimed!.id, watch.holdsBack(claimed!, claimed!.lockedAt!.getTime()), asked]).toEqual([job!.id, true, 2]);
    watch.noteClaimed(Date.now() + 60_000);
    await watch.stop();
    expect([asked, errors]).toEqual([2, []]);
  });
});

describe('an idle pool that polls rarely', () => {
  it.each([
    ['a task', { task: 'charge' }, undefined],
    ['a queue', { queue: 'money' }, 'money'],
    ['everything', { all: true as const }, undefined],
    ['its instance', { instance: 'reports' }, undefined],
  ])('takes what waits when the pause of %s ends by itself', async (_, target, queue) => {
    await scene.jobs.pause(target, { ...WHY, until: new Date(Date.now() + 1_500) });
    await scene.jobs.addJob('charge', 1, queue === undefined ? {} : { queue });
    await start({ keepaliveMs: 100 }, { instance: 'reports' });
    await eventually(() => ran.length === 1);
    const [job] = (await scene.jobs.listJobs({ task: 'charge' })).items;
    expect(job).toMatchObject({ task: 'charge' });
    expect(await scene.jobs.listPauses()).toEqual([]);
  });

  it('takes what waits when it is resumed', async () => {
    await start();
    for (const target of [{ task: 'charge' }, { queue: 'money' }, { all: true as const }]) {
      await scene.jobs.pause(target, WHY);
      await scene.jobs.addJob('charge', 1, { queue: 'money' });
      await scene.jobs.addJob('mail', 1, { priority: 5, queue: 'x' });
      expect(await scene.jobs.explain((await scene.jobs.listJobs({ task: 'charge' })).items[0]!.id)).toMatchObject({
        reason: expect.stringMatching(/_paused$/),
      });
      const before = ran.length;
      await scene.jobs.resume(target);
      await eventually(() => ran.filter((task) => task === 'charge').length > before / 2 - 1);
      await eventually(async () => (await scene.jobs.counts()).byStatus.available === 0);
    }
  });

  it('of another instance goes on', async () => {
    await start({}, { instance: 'reports' });
    await scene.jobs.pause({ instance: 'default' }, WHY);
    await add('mail');
    await eventually(() => ran.length === 1);
    expect(ran).toEqual(['mail']);
  });

  it('finds a new job behind 30,000 of a paused task at once', async () => {
    await scene.jobs.addJobs(Array.from({ length: 30_000 }, () => ({ task: 'charge', payload: 1 })));
    await scene.jobs.pause({ task: 'charge' }, WHY);
    const pool = await start();
    for (let n = 1; n <= 3; n++) {
      await add('mail');
      await eventually(() => ran.length === n);
    }
    expect(ran).toEqual(['mail', 'mail', 'mail']);
    await pool.stop();
    expect((await scene.jobs.counts()).byTask).toEqual({ charge: 30_000 });
  }, 60_000);
});
