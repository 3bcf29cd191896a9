// A pool that is stopped while it starts, or whose start fails, leaves nothing behind.
import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import {
  createCollectingEvents,
  createWorkerPool,
  StoppedError,
  type CollectingJobEvents,
  type JobManager,
  type WorkerPool,
} from '../../lib/index.js';
import { JobNotifier } from '../../lib/storage/job.notifier.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
let events: CollectingJobEvents;

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  events = createCollectingEvents();
});
afterEach(async () => {
  jest.restoreAllMocks();
  await test.close();
});

function make(): WorkerPool {
  const tasks = { t: { handler: () => undefined, transactional: true } };
  return createWorkerPool({ jobs, tasks, events, options: { pollIntervalMs: 50, leaseMs: 4_000, keepaliveMs: 250 } });
}

/** Threads of this process, by what they talk through. */
const threads = (): number => process.getActiveResourcesInfo().filter((name) => name === 'MessagePort').length;

/** The next call of a method waits; returns how to let it go on, and what resolves when it waits. */
function hold<T extends object>(target: T, method: keyof T & string): { waits: Promise<void>; letGo: () => void } {
  let letGo!: () => void;
  let reach!: () => void;
  const gate = new Promise<void>((resolve) => (letGo = resolve));
  const waits = new Promise<void>((resolve) => (reach = resolve));
  const original = (target[method] as (...args: unknown[]) => unknown).bind(target);
  jest.spyOn(target as any, method as never).mockImplementationOnce((async (...args: unknown[]) => {
    reach();
    await gate;
    return original(...args);
  }) as never);
  return { waits, letGo };
}

describe('a pool that is stopped while it starts', () => {
  it.each<[string, () => { waits: Promise<void>; letGo: () => void }]>([
    ['prepares transactions', () => hold(jobs.engine.transactions, 'prepare')],
    ['declares crontabs', () => hold(jobs.engine.declarations, 'ofTasks')],
    ['registers', () => hold(jobs.engine.registry, 'register')],
    ['listens', () => hold(JobNotifier.prototype as any, 'start')],
  ])('as it %s leaves no worker and no thread', async (_what, begin) => {
    const before = threads();
    const held = begin();
    const pool = make();
    const start = pool.start().catch((error: unknown) => error);
    await held.waits;
    const stop = pool.stop(0);
    held.letGo();
    expect(await start).toBeInstanceOf(StoppedError);
    await stop;
    expect(pool.state).toBe('terminated');
    expect(await jobs.workers()).toEqual([]);
    expect(events.ofType('worker.error')).toEqual([]);
    await eventually(() => threads() === before);
  });

  it('ends no later because its start does not', async () => {
    const held = hold(jobs.engine.registry, 'register');
    const pool = make();
    const start = pool.start().catch((error: unknown) => error);
    await held.waits;
    await pool.stop(0);
    expect(pool.state).toBe('terminated');
    held.letGo();
    expect(await start).toBeInstanceOf(StoppedError);
    await eventually(async () => (await jobs.workers()).length === 0);
  });
});

it('a start that fails after the pool was registered leaves no worker behind', async () => {
  const { registry } = jobs.engine;
  const register = registry.register.bind(registry);
  jest.spyOn(registry, 'register').mockImplementationOnce(async (worker) => {
    await register(worker);
    throw new Error('no');
  });
  await expect(make().start()).rejects.toThrow('no');
  expect(await jobs.workers()).toEqual([]);
});

it('a pool that is stopped while it registers again leaves no thread', async () => {
  const before = threads();
  const pool = make();
  await pool.start();
  const held = hold(jobs.engine.registry, 'register');
  await test.sql('delete from jobs.workers');
  await held.waits;
  await pool.stop(0);
  held.letGo();
  await eventually(async () => (await jobs.workers()).length === 0);
  await eventually(() => threads() === before);
  expect(pool.state).toBe('terminated');
});

it('a pool whose heartbeat gets no thread starts, beats on the main loop, and tries again', async () => {
  const { registry } = jobs.engine;
  const plan = registry.planHeartbeat.bind(registry);
  jest.spyOn(registry, 'planHeartbeat').mockImplementationOnce((incarnation) => ({
    ...plan(incarnation)!,
    // What cannot be cloned.
    config: { stream: (() => undefined) as never },
  }));
  const before = threads();
  const pool = make();
  await pool.start();
  expect(events.ofType('worker.error')).toMatchObject([{ context: 'starting the heartbeat' }]);
  const { id } = await jobs.addJob('t', 1);
  expect((await jobs.waitForJob(id)).status).toBe('completed');
  await eventually(() => threads() > before);
  await pool.stop();
});
