import { AsyncLocalStorage } from 'node:async_hooks';
import { beforeEach, describe, expect, it } from '@jest/globals';
import { createWorkerPool, type JobContext, type PlainTask, type WorkerPool } from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { sceneOfEachTest } from '../support/pools.js';

interface User {
  name: string;
}

const users = new AsyncLocalStorage<User>();
const scene = sceneOfEachTest();
let { test, jobs, events } = scene;
beforeEach(() => void ({ test, jobs, events } = scene));

function make(tasks: Record<string, PlainTask>, concurrency = 1): WorkerPool {
  scene.pool = createWorkerPool({ jobs, tasks, events, options: { concurrency, pollIntervalMs: 50 } });
  return scene.pool;
}

const settled = (count: number) => eventually(() => events.ofType('job.settled').length === count);
const names = ['ada', 'bob', 'cleo', 'dan'];
const addAll = () => jobs.addJobs(names.map((name) => ({ task: 't', payload: name, maxAttempts: 1 })));

describe('an async context that a handler enters', () => {
  const enter = (name: string): void => users.enterWith({ name });
  const handlers: [string, (name: string) => unknown][] = [
    ['at once', enter],
    ['in an async handler', async (name) => enter(name)],
    ['after waiting', async (name) => (await test.sql('select 1'), enter(name))],
    ['before throwing', (name) => (enter(name), Promise.reject(new Error('no')))],
  ];
  for (const [when, enterIn] of handlers) {
    it(`${when} is not seen by the next job, by its policy, or by listeners`, async () => {
      const seen: unknown[] = [];
      const look = (): unknown => seen.push(users.getStore());
      const handler = (name: string): unknown => (look(), enterIn(name));
      events.on('job.started', look);
      events.on('job.settled', look);
      await addAll();
      await make({ t: handler }).start();
      await settled(4);
      expect(seen).toHaveLength(12);
      expect(seen.filter((store) => store !== undefined)).toEqual([]);
    });
  }

  it('is what its own policy and steps see', async () => {
    const seen: unknown[] = [];
    const retry = (): false => (seen.push(users.getStore()?.name), false);
    const handler = async (name: string, ctx: JobContext): Promise<void> => {
      enter(name);
      await ctx.step('look', () => void seen.push(users.getStore()?.name));
      throw new Error('no');
    };
    await jobs.addJob('t', 'ada');
    await make({ t: { handler, retry } }).start();
    await settled(1);
    expect(seen).toEqual(['ada', 'ada']);
  });

  it('of a job that runs out of time is not what the retry policy of another sees', async () => {
    const seen: (string | undefined)[] = [];
    const handler = async (name: string): Promise<never> => (enter(name), new Promise<never>(() => undefined));
    const retry = (): false => (seen.push(users.getStore()?.name), false);
    await jobs.addJobs(names.map((name) => ({ task: 't', payload: name, timeoutMs: 30 })));
    await make({ t: { handler, retry } }, 4).start();
    await settled(4);
    expect(new Set(seen)).toEqual(new Set(names));
  });

  it('of a transactional task stays its own', async () => {
    const seen: unknown[] = [];
    const handler = async (name: string, ctx: JobContext): Promise<void> => {
      seen.push(users.getStore());
      enter(name);
      await ctx.manager.query('select 1');
    };
    await addAll();
    await make({ t: { handler, transactional: true } }).start();
    await settled(4);
    expect(seen).toEqual(names.map(() => undefined));
  });
});

describe('what surrounds', () => {
  it('pool.start() is not what handlers and listeners see', async () => {
    const seen: unknown[] = [];
    events.on('all', () => seen.push(users.getStore()));
    await users.run({ name: 'starter' }, () => make({ t: () => seen.push(users.getStore()) }).start());
    await addAll();
    await settled(4);
    expect(seen.filter((store) => store !== undefined)).toEqual([]);
  });

  it('addJob and workOnce is not what handlers see', async () => {
    let seen: unknown = 'nothing';
    make({ t: () => (seen = users.getStore()) });
    await users.run({ name: 'caller' }, async () => {
      await jobs.addJob('t', 'x');
      await jobs.workOnce();
    });
    expect(seen).toBeUndefined();
  });
});

it('a context that a listener enters is not seen by other listeners, or by handlers', async () => {
  const seen: unknown[] = [];
  events.on('job.started', ({ job }) => users.enterWith({ name: job.task }));
  events.on('job.started', () => seen.push(users.getStore()));
  await addAll();
  await make({ t: () => seen.push(users.getStore()) }).start();
  await settled(4);
  expect(seen).toHaveLength(8);
  expect(seen.filter((store) => store !== undefined)).toEqual([]);
});

describe('the job that a handler or a listener gets', () => {
  const stranger = '0198f000-0000-7000-8000-000000000000';
  const changes: [string, object][] = [
    ['an id that is none', { id: 42 }],
    ['the id of another job', { id: stranger }],
    ['no fence', { fence: undefined }],
    ['another task and queue, and no attempts', { task: 'nope', queue: 'zzz', attempts: 99, maxAttempts: -1 }],
  ];
  for (const [what, change] of changes) {
    it(`can be changed (${what}) without changing what is settled`, async () => {
      for (const type of ['job.started', 'job.completed'] as const) {
        events.on(type, ({ job }) => Object.assign(job, change));
      }
      const handler = async (_: unknown, ctx: JobContext): Promise<string> => {
        Object.assign(ctx.job, change);
        await ctx.step('a', () => 1);
        await ctx.progress(1);
        return 'done';
      };
      const added = await addAll();
      await make({ t: { handler, concurrency: 1 } }).start();
      await settled(4);
      const found = await Promise.all(added.map(({ id }) => jobs.findJob(id)));
      expect(found.map((job) => [job?.status, job?.progress])).toEqual(names.map(() => ['completed', 1]));
      expect(scene.pool!.stats()).toMatchObject({ completed: 4, errors: 0, unwritten: 0 });
      expect(events.ofType('job.settled').map(({ job }) => job.id)).toEqual(added.map(({ id }) => id));
    });
  }
});
