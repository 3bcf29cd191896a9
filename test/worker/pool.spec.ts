import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import {
  AlreadyRunningError,
  CancelJob,
  createCollectingEvents,
  createWorkerPool,
  isPartialSuccess,
  JobTimeoutError,
  partialSuccess,
  PermanentFailure,
  ShutdownError,
  snooze,
  StoppedError,
  type CollectingJobEvents,
  type JobContext,
  type JobManager,
  type PlainTask,
  type WorkerOptions,
  type WorkerPool,
} from '../../lib/index.js';
import pg from 'pg';
import { eventually } from '../support/database.js';
import { byHand } from '../../lib/manager/worker.registry.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
let events: CollectingJobEvents;
const pools: WorkerPool[] = [];

beforeEach(async () => {
  test = await createTestManager({ retry: { baseDelayMs: 1, jitter: 0 } });
  jobs = test.jobs;
  events = createCollectingEvents();
});
afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.forceStop()));
  const left = await test.sql('select id from jobs.jobs where locked_by is not null');
  await test.close();
  if (left.length) throw new Error(`Expected no claimed job after the test, got ${left.length}.`);
});

async function start(tasks: Record<string, PlainTask>, options: WorkerOptions = {}): Promise<WorkerPool> {
  const pool = createWorkerPool({ jobs, tasks, events, options });
  pools.push(pool);
  await pool.start();
  return pool;
}

const settled = (count: number) => eventually(() => events.ofType('job.settled').length >= count);

/** A promise to be resolved by hand. */
function gate(): { opened: Promise<void>; open: () => void } {
  let open!: () => void;
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { opened, open };
}

describe('createWorkerPool (create-pool)', () => {
  it('runs every job once, on several workers', async () => {
    const ran: number[] = [];
    await start({ count: (n: number) => void ran.push(n) }, { concurrency: 4 });
    await start({ count: (n: number) => void ran.push(n) }, { concurrency: 4 });
    await jobs.addJobs(Array.from({ length: 500 }, (_, n) => ({ task: 'count', payload: n })));
    await settled(500);
    expect(ran.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 500 }, (_, n) => n));
  });

  it('runs no more jobs at once than its concurrency', async () => {
    let running = 0;
    let most = 0;
    const pool = await start(
      {
        slow: async () => {
          most = Math.max(most, ++running);
          await test.sql('select pg_sleep(0.01)');
          running--;
        },
      },
      { concurrency: 3 },
    );
    await jobs.addJobs(Array.from({ length: 20 }, () => ({ task: 'slow', payload: null })));
    await settled(20);
    expect(most).toBe(3);
    expect(pool.stats()).toEqual({ active: 0, completed: 20, failed: 0, errors: 0, unwritten: 0 });
  });

  it('keeps a task within its own concurrency without holding up others', async () => {
    const blocked = gate();
    let running = 0;
    let most = 0;
    const narrow = async (): Promise<void> => {
      most = Math.max(most, ++running);
      await blocked.opened;
      running--;
    };
    await start({ narrow: { handler: narrow, concurrency: 1 }, other: () => undefined }, { concurrency: 5 });
    await jobs.addJobs(['narrow', 'narrow', 'narrow', 'other', 'other'].map((task) => ({ task, payload: null })));
    await settled(2);
    blocked.open();
    await settled(5);
    expect(most).toBe(1);
  });

  it('leaves jobs of tasks without a handler here to other processes', async () => {
    const { id } = await jobs.addJob('elsewhere', 1);
    await start({ here: () => undefined });
    await jobs.addJob('here', 1);
    await settled(1);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'available', attempts: 0 });
    expect(await jobs.explain(id)).toMatchObject({ reason: 'no_handler' });
  });

  it('takes only its tasks, also where others that it has a handler for are limited or have batches', async () => {
    const elsewhere = ['plain', 'limited', 'batch'];
    const handler = (): void => undefined;
    const tasks = {
      mine: handler,
      plain: handler,
      limited: { concurrency: 1, handler },
      batch: { batch: { size: 2 }, handler },
    };
    await start(tasks, { taskIdentifiers: ['mine'] });
    await jobs.addJobs([...elsewhere, 'mine'].map((task) => ({ task, payload: 1, priority: task === 'mine' ? 1 : 0 })));
    await settled(1);
    expect(events.ofType('job.settled').map(({ job }) => job.task)).toEqual(['mine']);
    // Nothing is on its way: what a pool has claimed goes back when it stops, and its fence tells.
    await pools.splice(0)[0]!.stop();
    expect(await test.sql('select task, fence from jobs.jobs order by id')).toEqual(
      elsewhere.map((task) => ({ task, fence: '0' })),
    );
  });

  it('takes only from its queues, and leaves forbidden flags alone', async () => {
    await jobs.addJobs([
      { task: 't', payload: 'none' },
      { task: 't', payload: 'b', queue: 'b' },
      { task: 't', payload: 'a', queue: 'a' },
      { task: 't', payload: 'flagged', queue: 'a', flags: ['gpu'] },
    ]);
    const ran: string[] = [];
    await start(
      { t: (name: string) => void ran.push(name) },
      { queues: ['a', 'b'], forbiddenFlags: ['gpu'], concurrency: 1 },
    );
    await settled(2);
    expect(ran).toEqual(['a', 'b']);
  });
});

describe('start and stop (start!, stop!, force-stop!, running?, active-workers, worker-id)', () => {
  it('start, stop, forceStop, interrupt and join give the pool back', async () => {
    const pools = [1, 2, 3].map(() => createWorkerPool({ jobs, tasks: { t: () => 1 }, events, options: {} }));
    for (const pool of pools) expect(await pool.start()).toBe(pool);
    const [first, second, third] = pools as [WorkerPool, WorkerPool, WorkerPool];
    expect(await first.stop()).toBe(first);
    expect(await second.forceStop()).toBe(second);
    expect(await third.interrupt().join()).toBe(third);
  });

  it('has a state that goes new, running, terminated and never back', async () => {
    const pool = createWorkerPool({ jobs, tasks: {}, events });
    pools.push(pool);
    expect([pool.state, pool.running]).toEqual(['new', false]);
    await pool.start();
    expect([pool.state, pool.running]).toEqual(['running', true]);
    await expect(pool.start()).rejects.toThrow(AlreadyRunningError);
    await pool.stop();
    expect([pool.state, pool.running]).toEqual(['terminated', false]);
    await expect(pool.start()).rejects.toThrow(StoppedError);
    expect(events.ofType('pool.start')).toMatchObject([{ concurrency: 10, workerId: pool.workerId }]);
    expect(events.ofType('pool.stop')).toMatchObject([{ forced: false }]);
  });

  it('stop waits for running jobs and gives the buffer back without counting an attempt', async () => {
    const busy = gate();
    const pool = await start({ t: () => busy.opened }, { concurrency: 1 });
    const added = await jobs.addJobs([1, 2, 3].map((payload) => ({ task: 't', payload })));
    await eventually(() => pool.activeWorkers === 1 && pool.queue.depth === 2);
    const stopping = pool.stop();
    await eventually(async () => (await jobs.findJob(added[2]!.id))?.lockedBy === null);
    expect(await jobs.findJob(added[1]!.id)).toMatchObject({ status: 'available', attempts: 0 });
    expect(pool.state).toBe('running');
    busy.open();
    await stopping;
    expect(await jobs.findJob(added[0]!.id)).toMatchObject({ status: 'completed' });
    expect(await jobs.workers()).toEqual([]);
  });

  it('stop aborts what does not end in time; a handler that reacts to it loses no attempt', async () => {
    let reason: unknown;
    const heeding = (_: unknown, ctx: JobContext): Promise<never> =>
      new Promise((_resolve, reject) => {
        ctx.signal.addEventListener('abort', () => {
          reason = ctx.signal.reason;
          reject(reason as Error);
        });
      });
    const pool = await start({ heeding });
    const { id } = await jobs.addJob('heeding', 1);
    await eventually(() => pool.activeWorkers === 1);
    await pool.stop(20);
    expect(reason).toBeInstanceOf(ShutdownError);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'available', attempts: 0, lastError: null });
    expect(await jobs.jobHistory(id)).toEqual([]);
  });

  it('forceStop aborts at once', async () => {
    const pool = await start({
      t: (_: unknown, ctx: JobContext) =>
        new Promise((_resolve, reject) => ctx.signal.addEventListener('abort', () => reject(new Error('aborted')))),
    });
    const { id } = await jobs.addJob('t', 1);
    await eventually(() => pool.activeWorkers === 1);
    await pool.forceStop();
    expect(events.ofType('pool.stop')).toMatchObject([{ forced: true }]);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'available', attempts: 0 });
  });

  it('interrupt finishes running jobs, takes no more, and join resolves when stopped', async () => {
    const busy = gate();
    const pool = await start({ t: () => busy.opened }, { concurrency: 1 });
    const [first, second] = await jobs.addJobs([1, 2].map((payload) => ({ task: 't', payload })));
    await eventually(() => pool.activeWorkers === 1);
    pool.interrupt();
    busy.open();
    await pool.join();
    expect(pool.state).toBe('terminated');
    expect(await jobs.findJob(first!.id)).toMatchObject({ status: 'completed' });
    expect(await jobs.findJob(second!.id)).toMatchObject({ status: 'available', attempts: 0 });
  });
});

describe('outcomes', () => {
  it('keeps the result', async () => {
    await start({ t: () => ({ pages: 7 }) });
    const { id } = await jobs.addJob('t', 1);
    await settled(1);
    expect((await jobs.jobHistory(id))[0]).toMatchObject({ status: 'completed', result: { pages: 7 } });
    expect(events.ofType('job.completed')[0]).toMatchObject({ job: { id } });
  });

  it.each([
    ['BigInt', 1n],
    [
      'a cycle',
      (() => {
        const a: Record<string, unknown> = {};
        a.a = a;
        return a;
      })(),
    ],
    ['more than a megabyte', 'x'.repeat(1_100_000)],
  ])('a result that cannot be kept (%s) does not undo the work', async (_name, result) => {
    const pool = await start({ t: () => result });
    const { id } = await jobs.addJob('t', 1);
    await settled(1);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'completed' });
    expect(events.ofType('worker.error')).toHaveLength(1);
    expect(pool.stats()).toMatchObject({ completed: 1, errors: 1 });
  });

  it('retries what throws, then exhausts it, and says so in order', async () => {
    let attempts = 0;
    await start({
      t: () => {
        throw new Error(`attempt ${++attempts}`);
      },
    });
    const { id } = await jobs.addJob('t', 1, { maxAttempts: 2 });
    await eventually(() => events.ofType('job.exhausted').length === 1 && events.ofType('job.settled').length === 2);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'exhausted', attempts: 2, lastError: 'attempt 2' });
    const types = events.collected.map(({ type }) => type).filter((type) => type.startsWith('job.'));
    expect(types).toEqual([
      'job.started',
      'job.failed',
      'job.settled',
      'job.started',
      'job.failed',
      'job.exhausted',
      'job.settled',
    ]);
    expect(events.ofType('job.failed').map(({ retryAt }) => retryAt !== null)).toEqual([true, false]);
  });

  const hostile = new Proxy(
    {},
    {
      get: () => {
        throw new Error('trap');
      },
      getPrototypeOf: () => {
        throw new Error('trap');
      },
    },
  );
  it.each([
    ['undefined', undefined],
    ['null', null],
    ['a string', 'x'],
    ['a hostile object', hostile],
    ['a rejected promise of nothing', undefined],
  ])('whatever is thrown (%s), the worker goes on', async (_name, thrown) => {
    await start({ bad: () => Promise.reject(thrown as Error), good: () => undefined }, { concurrency: 1 });
    const { id } = await jobs.addJob('bad', 1, { maxAttempts: 1 });
    await eventually(async () => (await jobs.findJob(id))?.status === 'exhausted');
    const good = await jobs.addJob('good', 1);
    await settled(2);
    expect(await jobs.findJob(good.id)).toMatchObject({ status: 'completed' });
  });

  it.each([
    ['a hostile object', hostile, 'exhausted'],
    ['an object of nothing', Object.create(Object.create(null)), 'completed'],
  ])('whatever is returned (%s), the worker goes on', async (_name, returned, status) => {
    await start({ odd: () => returned as unknown }, { concurrency: 1 });
    const { id } = await jobs.addJob('odd', 1, { maxAttempts: 1 });
    expect(await eventually(async () => (await jobs.findJob(id))?.status === status)).toBe(true);
  });

  it('PermanentFailure exhausts at once, also one of another copy of the package', async () => {
    const foreign = Object.assign(new Error('from afar'), { code: 'ERR_JOBS_PERMANENT_FAILURE' });
    await start({
      own: () => {
        throw new PermanentFailure('no such customer');
      },
      foreign: () => {
        throw foreign;
      },
    });
    const added = await jobs.addJobs([
      { task: 'own', payload: 1 },
      { task: 'foreign', payload: 1 },
    ]);
    await settled(2);
    const found = await Promise.all(added.map(({ id }) => jobs.findJob(id)));
    expect(found).toMatchObject([
      { status: 'exhausted', attempts: 1, lastError: 'no such customer' },
      { status: 'exhausted', attempts: 1, lastError: 'from afar' },
    ]);
  });

  it('CancelJob cancels without a failure', async () => {
    await start({
      t: () => {
        throw new CancelJob('withdrawn');
      },
    });
    const { id } = await jobs.addJob('t', 1);
    await settled(1);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'cancelled' });
    expect(events.ofType('job.cancelled')).toMatchObject([{ reason: 'withdrawn' }]);
    expect(events.ofType('job.failed')).toEqual([]);
  });

  it('snooze puts off without using an attempt', async () => {
    let calls = 0;
    await start({ t: () => (++calls === 1 ? snooze(1) : undefined) }, { pollIntervalMs: 20 });
    const { id } = await jobs.addJob('t', 1, { maxAttempts: 1 });
    await eventually(async () => (await jobs.findJob(id))?.status === 'completed');
    expect((await jobs.jobHistory(id)).map(({ status, attempt }) => [status, attempt])).toEqual([
      ['snoozed', 1],
      ['completed', 1],
    ]);
    expect(() => snooze(-1)).toThrow('snooze');
  });

  it('partialSuccess is seen by the next attempt, also past one that failed (partial-success, partial-success?)', async () => {
    expect([isPartialSuccess(partialSuccess({})), isPartialSuccess({ results: {} })]).toEqual([true, false]);
    const partial = {
      completedSteps: ['reserve'],
      failedSteps: ['charge'],
      retryFromStep: 'charge',
      results: { hold: 1 },
    };
    const seen: unknown[] = [];
    await start(
      {
        t: (_: unknown, ctx: JobContext) => {
          seen.push(ctx.previous);
          if (ctx.attempt === 1) return partialSuccess(partial);
          if (ctx.attempt === 2) throw new Error('net');
          return 'done';
        },
      },
      { pollIntervalMs: 20 },
    );
    const { id } = await jobs.addJob('t', 1);
    await eventually(async () => (await jobs.findJob(id))?.status === 'completed');
    expect(seen).toEqual([null, partial, partial]);
    expect(events.ofType('job.partial-success')).toMatchObject([{ job: { id }, partialResults: partial }]);
  });

  it('a task’s own retry policy decides', async () => {
    const told: unknown[] = [];
    const retry = (attempt: number, error: unknown): number | false => {
      told.push([attempt, (error as Error).message]);
      return attempt < 2 ? 1 : false;
    };
    await start(
      {
        t: {
          handler: () => {
            throw new Error('x');
          },
          retry,
        },
      },
      { pollIntervalMs: 20 },
    );
    const { id } = await jobs.addJob('t', 1);
    await eventually(async () => (await jobs.findJob(id))?.status === 'exhausted');
    expect(told).toEqual([
      [1, 'x'],
      [2, 'x'],
    ]);
  });

  it('a payload that no longer satisfies the schema exhausts the job: a retry would fail the same way', async () => {
    let release = 1;
    const payload = {
      '~standard': {
        version: 1,
        vendor: 'test',
        validate: (value: unknown) => (release === 1 ? { value } : { issues: [{ message: 'too old' }] }),
      },
    } as const;
    const { id } = await jobs.addJob({ task: 't', payload }, 1);
    release = 2;
    await start({ t: { handler: () => undefined, payload } });
    await settled(1);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'exhausted', attempts: 1 });
    expect((await jobs.findJob(id))?.lastError).toContain('too old');
  });
});

describe('timeouts', () => {
  it('abort the signal and fail the attempt, even of a handler that never returns', async () => {
    const reasons: unknown[] = [];
    await start(
      {
        deaf: () => new Promise(() => undefined),
        heeding: (_: unknown, ctx: JobContext) =>
          new Promise((resolve) =>
            ctx.signal.addEventListener('abort', () => {
              reasons.push(ctx.signal.reason);
              resolve('late');
            }),
          ),
      },
      { timeoutMs: 30 },
    );
    const added = await jobs.addJobs(['deaf', 'heeding'].map((task) => ({ task, payload: 1, maxAttempts: 1 })));
    await settled(2);
    for (const { id } of added) {
      expect(await jobs.findJob(id)).toMatchObject({
        status: 'exhausted',
        lastError: expect.stringContaining('30 ms'),
      });
    }
    expect(reasons[0]).toBeInstanceOf(JobTimeoutError);
    expect(events.ofType('job.timeout')).toHaveLength(2);
  });

  it('of the job win over the task’s, the task’s over the worker’s', async () => {
    await start({ t: { handler: () => new Promise(() => undefined), timeoutMs: 40 } }, { timeoutMs: 60_000 });
    const [own, tasks] = await jobs.addJobs([
      { task: 't', payload: 1, timeoutMs: 20, maxAttempts: 1 },
      { task: 't', payload: 1, maxAttempts: 1 },
    ]);
    await settled(2);
    expect((await jobs.findJob(own!.id))?.lastError).toContain('20 ms');
    expect((await jobs.findJob(tasks!.id))?.lastError).toContain('40 ms');
  });

  it('a handler that rejects after its timeout does no harm', async () => {
    const late = gate();
    await start({ t: () => late.opened.then(() => Promise.reject(new Error('late'))) }, { timeoutMs: 20 });
    const { id } = await jobs.addJob('t', 1, { maxAttempts: 1 });
    await settled(1);
    late.open();
    await test.sql('select 1');
    expect((await jobs.findJob(id))?.lastError).toContain('20 ms');
  });
});

describe('cancellation and lost claims', () => {
  it('cancelJobs aborts a running job’s signal, and it becomes cancelled however it ends', async () => {
    let reason: unknown;
    const pool = await start(
      {
        t: (_: unknown, ctx: JobContext) =>
          new Promise((resolve) =>
            ctx.signal.addEventListener('abort', () => {
              reason = ctx.signal.reason;
              resolve('done');
            }),
          ),
      },
      { keepaliveMs: 100 },
    );
    const { id } = await jobs.addJob('t', 1);
    await eventually(() => pool.activeWorkers === 1);
    expect(await jobs.cancelJobs([id])).toMatchObject([{ status: 'running' }]);
    await settled(1);
    expect(reason).toBeInstanceOf(CancelJob);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'cancelled' });
  });

  it('an outcome of a claim that was taken away is reported as lost, never applied', async () => {
    const busy = gate();
    const pool = await start({ t: () => busy.opened });
    const { id } = await jobs.addJob('t', 1);
    await eventually(() => pool.activeWorkers === 1);
    await jobs.permanentlyFailJobs([id], 'operator');
    busy.open();
    await eventually(() => events.ofType('job.lost').length === 1);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'exhausted', lastError: 'operator' });
  });

  it('a pool that was taken for dead aborts its jobs, registers again and goes on', async () => {
    const reasons: unknown[] = [];
    const pool = await start(
      {
        t: (_: unknown, ctx: JobContext) =>
          ctx.attempt > 1
            ? 'second'
            : new Promise((resolve) =>
                ctx.signal.addEventListener('abort', () => resolve(reasons.push(ctx.signal.reason))),
              ),
      },
      { keepaliveMs: 100 },
    );
    const { id } = await jobs.addJob('t', 1);
    await eventually(() => pool.activeWorkers === 1);
    // A heartbeat may come in between.
    await eventually(async () => {
      await test.sql(`update jobs.workers set heartbeat_at = now() - interval '1 h'`);
      return (await jobs.engine.registry.rescue()) > 0;
    });
    await eventually(async () => (await jobs.findJob(id))?.status === 'completed');
    expect(reasons).toMatchObject([{ code: 'ERR_JOBS_LEASE_LOST' }]);
    expect((await jobs.jobHistory(id)).map(({ status, errorMessage }) => [status, errorMessage])).toEqual([
      ['failed', 'worker died'],
      ['completed', null],
    ]);
  });
});

describe('the database goes away', () => {
  it('a pool whose connections are all cut goes on by itself, and settles what it had', async () => {
    const busy = gate();
    const pool = await start({ held: () => busy.opened, other: () => undefined }, { pollIntervalMs: 50 });
    const { id } = await jobs.addJob('held', 1);
    await eventually(() => pool.activeWorkers === 1);
    await cutConnections();
    busy.open();
    await eventually(async () => (await jobs.findJob(id).catch(() => null))?.status === 'completed');
    await cutConnections();
    const added = await jobs.addJobs(Array.from({ length: 20 }, (_, n) => ({ task: 'other', payload: n })));
    await settled(21);
    for (const job of added) expect(await jobs.findJob(job.id)).toMatchObject({ status: 'completed' });
  });
});

/** Ends every connection of the library to this database, and waits until its pool has noticed. */
async function cutConnections(): Promise<void> {
  await test.sql(
    `select pg_terminate_backend(pid, 10000) from pg_stat_activity
     where datname = current_database() and application_name = 'millrace'`,
  );
  await eventually(() =>
    jobs.counts().then(
      () => true,
      () => false,
    ),
  );
}

describe('settling', () => {
  it('a job that a foreign open transaction holds keeps no other job waiting', async () => {
    await start({ t: () => undefined }, { concurrency: 2 });
    const busy = gate();
    await start({ held: () => busy.opened }, { concurrency: 1 });
    const held = await jobs.addJob('held', 1, { jobKey: 'k' });
    await eventually(async () => (await jobs.findJob(held.id))?.status === 'running');
    const client = new pg.Client(test.url);
    await client.connect();
    await client.query('begin');
    await client.query('select from jobs.jobs where id = $1 for update', [held.id]);
    busy.open();
    const others = await jobs.addJobs(Array.from({ length: 5 }, (_, n) => ({ task: 't', payload: n })));
    await settled(5);
    expect(await jobs.findJob(held.id)).toMatchObject({ status: 'running' });
    for (const { id } of others) expect(await jobs.findJob(id)).toMatchObject({ status: 'completed' });
    await client.query('commit');
    await client.end();
    await settled(6);
    expect(await jobs.findJob(held.id)).toMatchObject({ status: 'completed' });
  });

  it('an outcome that the database cannot store gives way to its reason, and its neighbours are settled', async () => {
    await test.sql(
      `do $$ begin execute format('alter database %I set max_stack_depth = ''100kB''', current_database()); end $$`,
    );
    await cutConnections();
    let deep: unknown = 1;
    for (let depth = 0; depth < 4_000; depth++) deep = [deep];
    await start({ deep: () => partialSuccess({ results: deep }), fine: () => 'fine' });
    const added = await jobs.addJobs(['fine', 'deep', 'fine'].map((task) => ({ task, payload: 1 })));
    await settled(3);
    const found = await Promise.all(added.map(({ id }) => jobs.findJob(id)));
    expect(found.map((job) => job?.status)).toEqual(['completed', 'exhausted', 'completed']);
    expect(found[1]?.lastError).toMatch(/stack depth/);
  });

  it('a settle whose answer was lost is not repeated as lost', async () => {
    const { id } = await jobs.addJob('t', 1);
    const claimed = await jobs.getJobs('worker-by-hand');
    const requests = claimed.map(
      (job) => ({ job, outcome: { kind: 'completed', result: '7' }, executionTimeMs: 3 }) as const,
    );
    const worker = byHand('worker-by-hand', 60_000);
    await jobs.engine.settlement.settle(worker, [...requests]);
    const { results } = await jobs.engine.settlement.settle(worker, [...requests], { repeated: true });
    expect(results).toMatchObject([{ job: { id }, status: 'completed' }]);
    const another = byHand('worker-by-another', 60_000);
    const byAnother = await jobs.engine.settlement.settle(another, [...requests], { repeated: true });
    expect(byAnother.results).toMatchObject([{ status: 'lost' }]);
  });
});
