import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  InvalidOptionsError,
  partialSuccess,
  PermanentFailure,
  snooze,
  type CollectingJobEvents,
  type JobContext,
  type JobManager,
  type PlainTask,
  type WorkerOptions,
  type WorkerPool,
} from '../../lib/index.js';
import { DataSource } from 'typeorm';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
let events: CollectingJobEvents;
let pools: WorkerPool[] = [];
let closing: (() => Promise<unknown>)[] = [];

beforeEach(async () => {
  test = await createTestManager({ retry: { baseDelayMs: 1, jitter: 0 } });
  jobs = test.jobs;
  events = createCollectingEvents();
  await test.sql('create table effects (id serial primary key, job uuid not null, what text)');
});
afterEach(async () => {
  for (const pool of pools) await pool.forceStop();
  for (const close of closing) await close();
  pools = [];
  closing = [];
  await test.close();
});

type Handler = (payload: any, ctx: JobContext) => unknown;

async function start(handler: Handler, options: WorkerOptions = {}, manager = jobs): Promise<WorkerPool> {
  const tasks: Record<string, PlainTask> = {
    t: { handler, transactional: true },
    follow: () => undefined,
  };
  const pool = createWorkerPool({ jobs: manager, tasks, events, options: { pollIntervalMs: 50, ...options } });
  pools.push(pool);
  await pool.start();
  return pool;
}

const write = (ctx: JobContext, what = 'x') =>
  ctx.manager.query('insert into effects (job, what) values ($1, $2)', [ctx.job.id, what]);
const effects = async (): Promise<string[]> =>
  (await test.sql('select what from effects order by id')).map(({ what }) => what as string);
const history = async (id: string) =>
  (await jobs.jobHistory(id)).map(({ status, errorMessage }) => [status, errorMessage]);

async function run(maxAttempts = 1): Promise<string> {
  const { id } = await jobs.addJob('t', 1, { maxAttempts });
  await jobs.waitForJob(id, { timeoutMs: 15_000 });
  return id;
}

describe('a transactional task (job transaction)', () => {
  it('commits what its handler writes together with the job’s completion', async () => {
    const seen: unknown[] = [];
    await start(async (_payload, ctx) => {
      await write(ctx);
      seen.push(await effects(), (await jobs.findJob(ctx.job.id))?.status);
      return 'done';
    });
    const id = await run();
    expect(seen).toEqual([[], 'running']);
    expect(await effects()).toEqual(['x']);
    expect(await jobs.jobHistory(id)).toMatchObject([{ status: 'completed', result: 'done' }]);
    await eventually(() => events.ofType('job.completed').length === 1);
  });

  it('rolls everything back when the handler throws, records the attempt, and tries again', async () => {
    await start(async (_payload, ctx) => {
      await write(ctx, `attempt ${ctx.attempt}`);
      await ctx.jobs.addJob('follow', ctx.attempt);
      if (ctx.attempt === 1) throw new Error('boom');
    });
    const id = await run(2);
    expect(await effects()).toEqual(['attempt 2']);
    expect(await history(id)).toEqual([
      ['failed', 'boom'],
      ['completed', null],
    ]);
    expect((await jobs.listJobs({ task: 'follow' })).items.map(({ payload }) => payload)).toEqual([2]);
  });

  it('settles whatever tables its handler makes for itself', async () => {
    await start(async (_payload, ctx) => {
      for (const table of [
        'jobs',
        'job_bodies',
        'job_history',
        'job_keys',
        'job_dependencies',
        'job_places',
        'workers',
      ]) {
        await ctx.manager.query(`create temporary table ${table} (id uuid, unrelated text)`);
      }
      await write(ctx);
      await ctx.jobs.addJob('follow', 1, { jobKey: 'k' });
    });
    const id = await run();
    expect(await history(id)).toEqual([['completed', null]]);
    expect(await effects()).toEqual(['x']);
    await eventually(async () => (await jobs.listJobs({ task: 'follow', status: 'completed' })).items.length === 1);
  });

  it('adds jobs through ctx.jobs that are invisible before the commit', async () => {
    let seen: unknown;
    await start(async (_payload, ctx) => {
      const added = await ctx.jobs.addJob('follow', 1);
      seen = [await jobs.findJob(added.id), (await ctx.jobs.findJob(added.id))?.status];
    });
    await run();
    expect(seen).toEqual([null, 'available']);
    await eventually(async () => (await jobs.counts()).byStatus.completed === 2);
  });

  it('ends for good on PermanentFailure, and writes nothing', async () => {
    await start(async (_payload, ctx) => {
      await write(ctx);
      throw new PermanentFailure('never');
    });
    const id = await run(5);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'exhausted', lastError: 'never' });
    expect(await effects()).toEqual([]);
  });

  it('keeps what was written by an attempt that snoozes or succeeds in part', async () => {
    const answers = [snooze(1), partialSuccess({ completedSteps: ['a'] }), undefined];
    await start(async (_payload, ctx) => {
      await write(ctx, ctx.fence);
      return answers[Number(ctx.fence) - 1];
    });
    await run(3);
    expect(await effects()).toEqual(['1', '2', '3']);
  });

  it('keeps steps with the transaction: a rollback forgets them', async () => {
    const ran: string[] = [];
    await start(async (_payload, ctx) => {
      await ctx.step('a', () => ran.push(`a${ctx.attempt}`));
      if (ctx.attempt === 1) throw new Error('roll back');
      if (ctx.attempt === 2) return partialSuccess({});
      return undefined;
    });
    await run(3);
    expect(ran).toEqual(['a1', 'a2']);
  });

  it('lets its handler make sure that it still owns the job', async () => {
    await start(async (_payload, ctx) => {
      await ctx.assertOwned();
      await write(ctx);
    });
    await run();
    expect(await effects()).toEqual(['x']);
  });
});

describe('a transactional attempt that does not go well', () => {
  it('that was taken away meanwhile writes nothing and is reported as lost', async () => {
    await start(async (_payload, ctx) => {
      await write(ctx);
      await jobs.permanentlyFailJobs([ctx.job.id], 'operator');
    });
    const id = await run();
    await eventually(() => events.ofType('job.lost').length === 1);
    expect(await effects()).toEqual([]);
    expect(await history(id)).toEqual([['failed', 'operator']]);
  });

  for (const [how, end] of [
    ['permanentlyFailJobs', (ctx: JobContext) => ctx.jobs.permanentlyFailJobs([ctx.job.id])],
    ['forceUnlockJobs', (ctx: JobContext) => ctx.jobs.forceUnlockJobs([ctx.workerId])],
    ['completeJobs', (ctx: JobContext) => ctx.jobs.completeJobs(ctx.workerId, [ctx.job], 1)],
  ] as const) {
    it(`that ends its own claim (${how}) fails, and the job goes on`, async () => {
      await start(async (_payload, ctx) => {
        await write(ctx, `attempt ${ctx.attempt}`);
        if (ctx.attempt === 1) await end(ctx);
      });
      const id = await run(2);
      expect(await effects()).toEqual(['attempt 2']);
      expect(await history(id)).toEqual([
        ['failed', expect.stringContaining('ended by its handler')],
        ['completed', null],
      ]);
    });
  }

  it('that was cancelled while it ran writes nothing', async () => {
    await start(async (_payload, ctx) => {
      await write(ctx);
      await jobs.cancelJobs([ctx.job.id], 'not wanted');
    });
    const id = await run();
    expect(await effects()).toEqual([]);
    expect(await history(id)).toEqual([['cancelled', 'not wanted']]);
  });

  it('that runs out of time loses its connection, and what it writes late goes nowhere', async () => {
    let late: Promise<unknown> | undefined;
    await start(
      (_payload, ctx) => {
        if (ctx.attempt > 1) return write(ctx, 'second');
        late = new Promise((resolve) =>
          ctx.signal.addEventListener('abort', () =>
            setTimeout(() => resolve(write(ctx, 'late').catch((error: unknown) => error)), 20),
          ),
        );
        return late;
      },
      { timeoutMs: 50 },
    );
    const id = await run(2);
    expect(await late).toBeInstanceOf(Error);
    expect(await effects()).toEqual(['second']);
    expect((await history(id)).map(([status]) => status)).toEqual(['failed', 'completed']);
  });

  it('that PostgreSQL refuses at commit fails with the reason', async () => {
    await test.sql('alter table effects add constraint once unique (what) deferrable initially deferred');
    await start(async (_payload, ctx) => {
      await write(ctx, 'same');
      if (ctx.attempt === 1) await write(ctx, 'same');
    });
    const id = await run(2);
    expect(await history(id)).toEqual([
      ['failed', expect.stringContaining('duplicate key value')],
      ['completed', null],
    ]);
  });

  it('that cannot be serialised is tried again, and says so', async () => {
    await test.sql(`insert into effects (job, what) values (gen_random_uuid(), '0')`);
    await start(async (_payload, ctx) => {
      await ctx.manager.query('set transaction isolation level serializable');
      await ctx.manager.query('select what from effects');
      if (ctx.attempt === 1) await test.sql(`update effects set what = 'theirs'`);
      await ctx.manager.query(`update effects set what = 'ours'`);
    });
    const id = await run(2);
    expect(await history(id)).toEqual([
      ['failed', expect.stringMatching(/^serialization failure, rolled back: could not serialize/)],
      ['completed', null],
    ]);
  });

  it('that ran into a deadlock is tried again, and says so', async () => {
    await test.sql(`insert into effects (job, what) values (gen_random_uuid(), 'a'), (gen_random_uuid(), 'b')`);
    const arrived = { count: 0 };
    await start(async (order: string[], ctx) => {
      await ctx.manager.query('update effects set what = what where what = $1', [order[0]]);
      arrived.count++;
      if (ctx.attempt === 1) await eventually(() => arrived.count >= 2);
      await ctx.manager.query('update effects set what = what where what = $1', [order[1]]);
    });
    const added = await jobs.addJobs([
      { task: 't', payload: ['a', 'b'], maxAttempts: 3 },
      { task: 't', payload: ['b', 'a'], maxAttempts: 3 },
    ]);
    await Promise.all(added.map(({ id }) => jobs.waitForJob(id)));
    const attempts = (await Promise.all(added.map(({ id }) => history(id)))).flat();
    expect(attempts.filter(([, message]) => message?.startsWith('deadlock, rolled back'))).toHaveLength(1);
    expect(attempts.filter(([status]) => status === 'completed')).toHaveLength(2);
  });

  it('whose connection breaks at commit, before it was done, is tried again', async () => {
    await test.sql(`create function cut() returns trigger language plpgsql as
      $$ begin perform pg_terminate_backend(pg_backend_pid()); return null; end $$`);
    await test.sql(`create constraint trigger cut after insert on effects deferrable initially deferred
      for each row when (new.what = 'cut') execute function cut()`);
    await start((_payload, ctx) => write(ctx, ctx.attempt === 1 ? 'cut' : 'fine'));
    const id = await run(2);
    expect(await effects()).toEqual(['fine']);
    expect((await history(id)).map(([status]) => status)).toEqual(['failed', 'completed']);
  });

  it('whose commit went through although its answer was lost is not run again', async () => {
    await start(async (_payload, ctx) => {
      await write(ctx);
      const runner = ctx.manager.queryRunner!;
      const commit = runner.commitTransaction.bind(runner);
      runner.commitTransaction = async () => {
        await commit();
        throw Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' });
      };
    });
    const id = await run(3);
    await eventually(() => events.ofType('job.settled').length === 1);
    expect(await effects()).toEqual(['x']);
    expect(await history(id)).toEqual([['completed', null]]);
    expect(events.ofType('job.failed')).toEqual([]);
  });

  it('in which a statement failed cannot be committed', async () => {
    await start(async (_payload, ctx) => {
      await write(ctx);
      await ctx.manager.query('select 1 / 0').catch(() => undefined);
    });
    const id = await run();
    expect(await history(id)).toEqual([['failed', expect.stringContaining('an earlier error has aborted')]]);
    expect(await effects()).toEqual([]);
  });

  it('whose handler ends the transaction itself fails, and says why', async () => {
    await start((_payload, ctx) => ctx.manager.queryRunner!.rollbackTransaction());
    const id = await run();
    expect(await history(id)).toEqual([['failed', expect.stringContaining('the handler has ended it')]]);
  });
});

describe('connections of transactional tasks', () => {
  async function share(poolSize: number): Promise<JobManager> {
    const dataSource = await new DataSource({ type: 'postgres', url: test.url, poolSize }).initialize();
    const manager = await createJobManager({ dataSource });
    closing.push(
      () => manager.close(),
      () => dataSource.destroy(),
    );
    return manager;
  }

  it('are those of the application’s DataSource, and leave some for claims and settles', async () => {
    const manager = await share(4);
    let running = 0;
    let most = 0;
    await start(
      async (_payload, ctx) => {
        most = Math.max(most, ++running);
        // A handler that asks the pool for one more connection must get it.
        await manager.findJob(ctx.job.id);
        await write(ctx);
        running--;
      },
      { concurrency: 8 },
      manager,
    );
    const added = await jobs.addJobs(Array.from({ length: 30 }, (_, n) => ({ task: 't', payload: n })));
    await Promise.all(added.map(({ id }) => jobs.waitForJob(id)));
    expect(most).toBe(2);
    expect(await effects()).toHaveLength(30);
  });

  it('that a pool cannot spare are refused at start, with the sum it needs', async () => {
    const manager = await share(2);
    const failure = await start(() => undefined, {}, manager).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(InvalidOptionsError);
    expect((failure as Error).message).toContain('at least 3 connections');
    pools = [];
  });

  it('are given back: many more jobs than connections run, whatever becomes of them', async () => {
    await start(
      async (n: number, ctx) => {
        await write(ctx);
        if (n % 3 === 0) throw new PermanentFailure('third');
        if (n % 7 === 0) await jobs.cancelJobs([ctx.job.id]);
      },
      { concurrency: 3 },
    );
    const added = await jobs.addJobs(Array.from({ length: 60 }, (_, n) => ({ task: 't', payload: n })));
    const results = await Promise.all(added.map(({ id }) => jobs.waitForJob(id)));
    const completed = results.filter(({ status }) => status === 'completed').length;
    expect(await effects()).toHaveLength(completed);
    expect(completed).toBe(Array.from({ length: 60 }, (_, n) => n).filter((n) => n % 3 && n % 7).length);
  });

  it.each(['the manager’s own', 'the application’s'])(
    'are cut where a pool that stops leaves a handler behind, so that their source can end (%s)',
    async (whose) => {
      const dataSource = await new DataSource({ type: 'postgres', url: test.url }).initialize();
      const manager = await createJobManager(whose === 'the application’s' ? { dataSource } : { connection: test.url });
      let end!: () => void;
      const ended = new Promise<void>((resolve) => (end = resolve));
      const began: unknown[] = [];
      const pool = await start(
        async (_payload, ctx) => {
          await write(ctx);
          began.push(ctx.job.id);
          await ended;
        },
        {},
        manager,
      );
      await jobs.addJob('t', 1);
      await eventually(() => began.length === 1);
      await pool.stop(0);
      await manager.close();
      await dataSource.destroy();
      end();
      expect(await effects()).toEqual([]);
    },
  );

  it('work for workOnce, too', async () => {
    createWorkerPool({ jobs, tasks: { t: { handler: (_, ctx: JobContext) => write(ctx), transactional: true } } });
    await jobs.addJob('t', 1);
    expect(await jobs.workOnce()).toMatchObject({ job: { status: 'completed' } });
    expect(await effects()).toEqual(['x']);
  });
});
