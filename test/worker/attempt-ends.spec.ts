import { beforeEach, describe, expect, it } from '@jest/globals';
import {
  AttemptOverError,
  CancelJob,
  createWorkerPool,
  JobTimeoutError,
  partialSuccess,
  type JobContext,
  type TaskOptions,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { sceneOfEachTest } from '../support/pools.js';

const scene = sceneOfEachTest();
let { test, jobs, events } = scene;
beforeEach(() => void ({ test, jobs, events } = scene));

type Handler = (payload: any, ctx: JobContext) => unknown;

/** Runs one job; resolves when it has ended. */
async function run(handler: Handler, options: TaskOptions = {}, maxAttempts = 1) {
  scene.pool = createWorkerPool({
    jobs,
    tasks: { t: { handler, ...options }, follow: () => undefined },
    events,
    options: { concurrency: 2, pollIntervalMs: 50 },
  });
  await scene.pool.start();
  const { id } = await jobs.addJob('t', 1, { maxAttempts });
  const { status, error } = await jobs.waitForJob(id, { timeoutMs: 15_000 });
  return { id, status, error };
}

const steps = async () => (await test.sql('select name from jobs.job_steps order by name')).map(({ name }) => name);

/** A promise to be settled by hand. */
function later<T = void>() {
  let resolve!: (value: T) => void;
  let reject!: (error: Error) => void;
  const promise = new Promise<T>((done, failed) => ([resolve, reject] = [done, failed]));
  return { promise, resolve, reject };
}

for (const transactional of [false, true]) {
  describe(`an attempt (transactional: ${transactional})`, () => {
    it('waits for steps that its handler does not await', async () => {
      const order: string[] = [];
      events.on('job.settled', () => order.push('settled'));
      const { id } = await run(
        (_, ctx) => {
          void ctx.step('a', async () => {
            await test.sql('select pg_sleep(0.05)');
            void ctx.step('b', async () => (await test.sql('select 1'), order.push('b')));
          });
        },
        { transactional },
      );
      await eventually(() => order.length === 2);
      expect(order).toEqual(['b', 'settled']);
      expect(await steps()).toEqual(['a', 'b']);
      expect(await jobs.jobHistory(id)).toMatchObject([{ status: 'completed' }]);
    });

    it('fails with the reason of a step that failed unseen', async () => {
      const failing = (_: unknown, ctx: JobContext): void => {
        void ctx.step('a', async () => {
          await test.sql('select 1');
          throw new Error('unseen');
        });
      };
      expect(await run(failing, { transactional })).toMatchObject({ status: 'exhausted', error: 'unseen' });
    });

    it('that reports partial success fails in the same way', async () => {
      const failing = (_: unknown, ctx: JobContext): unknown => {
        void ctx.step('a', () => Promise.reject(new Error('unseen')));
        return partialSuccess({});
      };
      expect(await run(failing, { transactional })).toMatchObject({ status: 'exhausted', error: 'unseen' });
    });

    it('goes by what its handler makes of a step that failed', async () => {
      const catching = async (_: unknown, ctx: JobContext): Promise<void> => {
        const failing = ctx.step('a', () => Promise.reject(new Error('seen')));
        await ctx.step('b', () => 1);
        await failing.catch(() => undefined);
        await Promise.race([ctx.step('c', () => Promise.reject(new Error('seen'))), Promise.resolve()]);
      };
      expect(await run(catching, { transactional })).toMatchObject({ status: 'completed' });
    });

    it('that failed tells its steps to stop, waits for them, and keeps its own reason', async () => {
      const reasons: unknown[] = [];
      const failing = async (_: unknown, ctx: JobContext): Promise<void> => {
        const both = ['a', 'b'].map((name) =>
          ctx.step(name, async () => {
            await new Promise((resolve) => ctx.signal.addEventListener('abort', resolve, { once: true }));
            await test.sql('select 1');
            reasons.push(ctx.signal.reason);
            throw new Error(`${name} stopped`);
          }),
        );
        await Promise.race([...both, test.sql('select 1')]);
        throw new Error('mine');
      };
      expect(await run(failing, { transactional })).toMatchObject({ status: 'exhausted', error: 'mine' });
      expect(reasons).toEqual([expect.any(AttemptOverError), expect.any(AttemptOverError)]);
    });

    it('that ran out of time gives steps under way a moment, begins none, and is followed by the next', async () => {
      const log: string[] = [];
      const handler = async (_: unknown, ctx: JobContext): Promise<void> => {
        const expired = new Promise((resolve) => ctx.signal.addEventListener('abort', resolve));
        if (ctx.attempt > 1) return void log.push('second attempt');
        void ctx.step('under way', async () => {
          await expired;
          await test.sql('select 1');
          log.push('worked');
        });
        await expired;
        const error = await ctx.step('late', () => log.push('late')).catch((reason: unknown) => reason);
        log.push((error as Error).name);
      };
      await run(handler, { transactional, timeoutMs: 100, retry: () => 0 }, 2);
      expect(log).toEqual([JobTimeoutError.name, 'worked', 'second attempt']);
      // A transaction that runs out of time forgets its steps.
      expect(await steps()).toEqual(transactional ? [] : ['under way']);
    });

    it('whose steps outlast its time fails, and they leave nothing behind', async () => {
      const deaf = later();
      const stepped = later<unknown>();
      const handler = (_: unknown, ctx: JobContext): void => {
        ctx.step('deaf', () => deaf.promise).catch(stepped.resolve);
      };
      const { status, error } = await run(handler, { transactional, timeoutMs: 50 });
      expect([status, error]).toEqual(['exhausted', 'The attempt ran longer than 50 ms.']);
      deaf.resolve();
      expect(await stepped.promise).toMatchObject({ name: 'AttemptOverError', cause: { name: 'JobTimeoutError' } });
      expect(await steps()).toEqual([]);
    });

    it('says of everything that comes after it that it is over', async () => {
      let context!: JobContext;
      await run((_, ctx) => void (context = ctx), { transactional });
      const ran: string[] = [];
      const afterwards = [
        context.step('late', () => ran.push('late')),
        context.progress(1),
        context.log('late'),
        context.assertOwned({ query: () => Promise.resolve([]) }),
        ...(transactional ? [context.jobs.addJob('follow', 1), context.jobs.counts()] : []),
      ];
      for (const promise of afterwards) await expect(promise).rejects.toBeInstanceOf(AttemptOverError);
      // Unheard, they end no process.
      for (const ask of [() => context.step('late', () => 1), () => context.progress(1), () => context.log('x')])
        void ask();
      expect(ran).toEqual([]);
      expect((await jobs.listJobs({ task: 'follow' })).items).toEqual([]);
    });
  });
}

describe('a transactional attempt', () => {
  it('waits for what its handler asks of ctx.jobs without awaiting it', async () => {
    const { status } = await run((_, ctx) => void ctx.jobs.addJob('follow', 1), { transactional: true });
    expect(status).toBe('completed');
    expect((await jobs.listJobs({ task: 'follow' })).items).toHaveLength(1);
  });

  it('fails where that fails unseen', async () => {
    const handler = (_: unknown, ctx: JobContext): void => void ctx.jobs.addJob('follow', 1, { priority: 0.5 });
    expect(await run(handler, { transactional: true })).toMatchObject({
      status: 'exhausted',
      error: expect.stringContaining('priority'),
    });
  });

  it('does again what it did in a savepoint that was rolled back', async () => {
    const ran: string[] = [];
    const charge = (ctx: JobContext) => ctx.step('charge', () => ran.push('charge'));
    let previous: unknown;
    await run(
      async (_, ctx) => {
        previous = ctx.previous;
        if (ctx.attempt > 1) return undefined;
        const inner = ctx.manager.transaction(async () => {
          await charge(ctx);
          throw new Error('undo');
        });
        await inner.catch(() => undefined);
        await charge(ctx);
        await ctx.step('kept', () => 7);
        return partialSuccess({});
      },
      { transactional: true },
      2,
    );
    expect(ran).toEqual(['charge', 'charge']);
    expect(previous).toEqual({ completedSteps: ['charge', 'kept'], results: { charge: 2, kept: 7 } });
  });
});

it('a step that would begin after a cancellation does not, and the job is cancelled', async () => {
  const ran: string[] = [];
  const { status } = await run(async (_, ctx) => {
    const aborted = new Promise((resolve) => ctx.signal.addEventListener('abort', resolve));
    await jobs.cancelJobs([ctx.job.id], 'not wanted');
    await aborted;
    expect(ctx.signal.reason).toBeInstanceOf(CancelJob);
    await ctx.step('late', () => ran.push('late'));
  });
  expect([status, ran]).toEqual(['cancelled', []]);
});

it('progress that is not awaited does not pile up: the last value takes the place of those that wait', async () => {
  const { id } = await run(async (_, ctx) => {
    for (let n = 1; n <= 300; n++) void ctx.progress({ n, ballast: 'x'.repeat(100_000) });
    const texts = (jobs.engine.attempts as unknown as { progress: { gathered: unknown[] } }).progress.gathered;
    expect(texts.length).toBeLessThan(3);
  });
  expect(await jobs.findJob(id)).toMatchObject({ progress: { n: 300 } });
});

it('step results that are larger together than partial results may be stay with the steps', async () => {
  const big = 'x'.repeat(600_000);
  let previous: unknown;
  const again: number[] = [];
  const handler = async (_: unknown, ctx: JobContext): Promise<unknown> => {
    previous = ctx.previous;
    for (const name of ['a', 'b']) again.push((await ctx.step(name, () => big)).length);
    return ctx.attempt === 1 ? partialSuccess({}) : undefined;
  };
  await run(handler, {}, 2);
  expect(previous).toEqual({ completedSteps: ['a', 'b'] });
  expect(again).toEqual([600_000, 600_000, 600_000, 600_000]);
  expect(events.ofType('worker.error').map(({ error }) => (error as Error).message)).toEqual([
    expect.stringContaining('The results of 2 steps have more than 1048576 bytes'),
  ]);
});
