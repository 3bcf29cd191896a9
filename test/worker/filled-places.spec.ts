// Places that settles free and fill by the same commit: what comes next in the queue, and what else waits.
import { afterEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createJobManager,
  createWorkerPool,
  type JobManager,
  type WorkerOptions,
  type WorkerPool,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { sceneOfEachTest } from '../support/pools.js';

const scene = sceneOfEachTest();
const QUEUE = 'lines';
const begun: string[] = [];
const gates = new Map<string, () => void>();
const others: { jobs: JobManager; pool: WorkerPool }[] = [];

afterEach(async () => {
  for (const open of gates.values()) open();
  gates.clear();
  begun.length = 0;
  for (const { pool, jobs } of others.splice(0)) {
    await pool.forceStop();
    await jobs.close();
  }
});

/** Runs until its gate is opened. */
const handler = (name: string): Promise<void> => {
  begun.push(name);
  return new Promise((resolve) => gates.set(name, resolve));
};
const open = (...names: string[]): void => names.forEach((name) => gates.get(name)!());
/** Long before the next poll, or heartbeat, makes a pool look at everything. */
const begins = (...names: string[]) =>
  eventually(() => names.every((name) => begun.includes(name)), { timeoutMs: 5_000 });
const isIdle = (pool: WorkerPool | null) => eventually(() => !pool!.queue.inDoubt);
const add = (names: string[], options: object = { queue: QUEUE }) =>
  scene.jobs.addJobs(names.map((payload) => ({ task: 'x', payload, ...options })));

async function start(jobs: JobManager, tasks: string[], options: WorkerOptions = {}): Promise<WorkerPool> {
  const handlers = Object.fromEntries(tasks.map((task) => [task, handler]));
  return createWorkerPool({
    jobs,
    tasks: handlers,
    options: { concurrency: 8, pollIntervalMs: 60_000, ...options },
  }).start();
}

/** A pool that knows by a first job that the queue is limited. */
async function startAt(concurrency: number, options: WorkerOptions = {}): Promise<void> {
  await scene.jobs.configureQueue(QUEUE, { concurrency });
  await add(['first']);
  scene.pool = await start(scene.jobs, ['x'], options);
  await begins('first');
  open('first');
  await eventually(() => scene.pool!.stats().completed === 1);
}

/** Resolves when a look at lanes that begins from now on has ended. */
function nextLook({ engine: { claims } }: JobManager): () => Promise<unknown> {
  const real = claims.claimLanes.bind(claims);
  let looks = 0;
  claims.claimLanes = (request) => real(request).finally(() => looks++);
  return () => eventually(() => looks > 0);
}

/** They end while the settle of a plain job is under way: the next one settles them all. */
async function endTogether(plain: string, ...names: string[]): Promise<void> {
  const { settlement } = scene.jobs.engine;
  const real = settlement.settle.bind(settlement);
  let goOn!: () => void;
  const ended = new Promise<void>((resolve) => (goOn = resolve));
  let settles = 0;
  settlement.settle = async (...args) => {
    const answer = await real(...args);
    settles++;
    await ended;
    return answer;
  };
  open(plain);
  await eventually(() => settles === 1);
  open(...names);
  await eventually(() => scene.pool!.stats().unwritten === names.length + 1);
  goOn();
}

describe('a place that a settle frees', () => {
  it('goes to a job that was passed while others held it, before all behind it', async () => {
    const stranger = new pg.Client(scene.test.url);
    await stranger.connect();
    try {
      const [, , held] = await add(['0', '1', '2', '3', '4', '5']);
      scene.pool = await start(scene.jobs, ['x']);
      await begins('0');
      open('0');
      await begins('1');
      await stranger.query('begin');
      await stranger.query('select from jobs.jobs where id = $1 for update', [held!.id]);
      await isIdle(scene.pool);
      open('1');
      await begins('3');
      await stranger.query('rollback');
      await isIdle(scene.pool);
      open('3');
      await eventually(() => begun.length === 4);
      expect(begun).toEqual(['0', '1', '3', '2']);
    } finally {
      await stranger.end();
    }
  });

  it('is filled from a worse priority where one settle frees more places than a better one can fill', async () => {
    await startAt(2);
    await add(['a', 'b']);
    await add(['plain'], {});
    await begins('a', 'b', 'plain');
    const look = nextLook(scene.jobs);
    await scene.jobs.addJobs([
      { task: 'x', payload: 'better', queue: QUEUE },
      { task: 'x', payload: 'worse', queue: QUEUE, priority: 5 },
    ]);
    await look();
    await isIdle(scene.pool);
    await endTogether('plain', 'a', 'b');
    expect(await begins('better', 'worse')).toBe(true);
  });

  it('is told to other pools where this one fills but some of those that it frees', async () => {
    await startAt(2);
    const jobs = await createJobManager({ connection: scene.test.url });
    others.push({ jobs, pool: await start(jobs, ['y']) });
    await add(['a', 'b']);
    await add(['plain'], {});
    await begins('a', 'b', 'plain');
    await scene.jobs.addJobs([
      { task: 'x', payload: 'mine', queue: QUEUE },
      { task: 'y', payload: 'theirs', queue: QUEUE },
    ]);
    // What was told before has been looked at.
    await scene.jobs.addJob('y', 'later', { queue: 'other' });
    await begins('later');
    await endTogether('plain', 'a', 'b');
    expect(await begins('mine', 'theirs')).toBe(true);
  });

  it('takes no more slots than it frees: what is more urgent gets the others', async () => {
    await startAt(20, { pollIntervalMs: 300, listen: false });
    await scene.jobs.configureQueue('other', { concurrency: 1 });
    await add(['a']);
    await begins('a');
    await scene.jobs.addJobs([
      ...Array.from({ length: 20 }, (_, n) => ({ task: 'x', payload: `many ${n}`, queue: QUEUE })),
      { task: 'x', payload: 'urgent', queue: 'other', priority: -5 },
    ]);
    open('a');
    expect(await begins('urgent')).toBe(true);
  });
});
