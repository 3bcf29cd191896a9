import { beforeEach, describe, expect, it } from '@jest/globals';
import {
  AttemptOverError,
  createWorkerPool,
  InvalidArgumentError,
  InvalidStatusError,
  LeaseLostError,
  partialSuccess,
  snooze,
  StepResultError,
  type JobContext,
  type PlainTask,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { WORKER } from '../support/manager.js';
import { sceneOfEachTest } from '../support/pools.js';

const scene = sceneOfEachTest();
let { test, jobs, events } = scene;
beforeEach(() => void ({ test, jobs, events } = scene));

async function start(tasks: Record<string, PlainTask>): Promise<void> {
  scene.pool = createWorkerPool({ jobs, tasks, events, options: { concurrency: 3 } });
  await scene.pool.start();
}

const ended = (id: string) =>
  eventually(async () => {
    const job = await jobs.findJob(id);
    return job && ['completed', 'exhausted', 'cancelled'].includes(job.status) ? job : null;
  });

/** Runs a job to its end; `attempts` are called one after the other. */
async function runThrough(...attempts: ((ctx: JobContext) => unknown)[]) {
  let attempt = 0;
  await start({ t: (_payload, ctx: JobContext) => attempts[attempt++]!(ctx) });
  const { id } = await jobs.addJob('t', null, { maxAttempts: attempts.length });
  return ended(id);
}

describe('ctx.step', () => {
  it('runs once in the life of a job: a retry gets its result and does the rest', async () => {
    const log: string[] = [];
    const steps = (fail: boolean) => async (ctx: JobContext) => {
      const charge = await ctx.step('charge', () => (log.push('charge'), { id: 'ch-1', at: new Date(0) }));
      log.push(JSON.stringify(charge));
      await ctx.step('ship', () => {
        log.push('ship');
        if (fail) throw new Error('no courier');
      });
      return 'done';
    };
    const job = await runThrough(steps(true), steps(false));
    const charge = '{"id":"ch-1","at":"1970-01-01T00:00:00.000Z"}';
    expect(log).toEqual(['charge', charge, 'ship', charge, 'ship']);
    expect(job).toMatchObject({ status: 'completed', attempts: 2 });
  });

  it('gives undefined for a step that returned nothing, and does not run it again', async () => {
    const seen: unknown[] = [];
    await runThrough(
      async (ctx) => {
        seen.push(await ctx.step('a', () => seen.push('ran') && undefined));
        throw new Error('later');
      },
      async (ctx) => seen.push(await ctx.step('a', () => 'again')),
    );
    expect(seen).toEqual(['ran', undefined, undefined]);
  });

  it('shares one run between calls that come while it is under way', async () => {
    let runs = 0;
    const results: unknown[] = [];
    await runThrough(async (ctx) => {
      const once = () => ctx.step('a', async () => (await test.sql('select 1'), ++runs));
      results.push(...(await Promise.all([once(), once(), ctx.step('b', () => 'b')])));
    });
    expect(results).toEqual([1, 1, 'b']);
  });

  it('outlives a snooze, which gives the attempt back', async () => {
    let runs = 0;
    const once = (ctx: JobContext) => ctx.step('a', () => ++runs);
    await runThrough(
      async (ctx) => (await once(ctx), snooze(1)),
      async (ctx) => expect(await once(ctx)).toBe(1),
    );
    expect(runs).toBe(1);
  });

  it('is refused after the job was given to another worker', async () => {
    const errors: unknown[] = [];
    await start({
      t: async (_payload, ctx: JobContext) => {
        await jobs.forceUnlockJobs([ctx.workerId]);
        await ctx.step('late', () => 1).catch((error: unknown) => errors.push(error));
      },
    });
    const { id } = await jobs.addJob('t', null, { maxAttempts: 1 });
    await eventually(() => events.ofType('job.lost').length === 1);
    expect(errors).toEqual([expect.any(LeaseLostError)]);
    expect(await test.sql('select name from jobs.job_steps')).toEqual([]);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'exhausted', lastError: 'force-unlocked' });
  });

  it('needs a name, and a result that JSON can express', async () => {
    const problems: unknown[] = [];
    await runThrough(async (ctx) => {
      for (const attempt of [ctx.step('', () => 1), ctx.step('big', () => 1n)]) {
        await attempt.catch((error: unknown) => problems.push(error));
      }
    });
    expect(problems).toEqual([expect.any(InvalidArgumentError), expect.any(StepResultError)]);
  });

  const unkept: [string, unknown, string][] = [
    ['a bigint', { id: 1n }, 'a bigint at id'],
    ['a Map', new Map([[1, 2]]), 'a Map'],
    ['a Set', { deep: [new Set([1])] }, 'a Set at deep.0'],
    ['an Error', new Error('x'), 'a value of class Error'],
    ['a regular expression', { ok: 1, pattern: /x/ }, 'RegExp at pattern'],
    ['a promise', { later: Promise.resolve(1) }, 'a missing await, perhaps'],
    ['bytes', new Uint8Array(2), 'a Uint8Array'],
    ['an invalid date', { at: new Date(NaN) }, 'an invalid Date at at'],
    ['no number', { a: { b: NaN } }, 'NaN at a.b'],
    ['a hole', [1, undefined], 'undefined in an array at 1'],
    ['a function', () => 1, 'a function'],
    ['more than 1 MiB', 'x'.repeat(1_048_576), 'at most 1048576 bytes'],
  ];
  for (const [what, value, told] of unkept) {
    it(`whose result JSON cannot keep (${what}) fails the job for good: a retry would do its work again`, async () => {
      let runs = 0;
      await start({ t: (_payload, ctx: JobContext) => ctx.step('charge', () => (runs++, value)) });
      const { id } = await jobs.addJob('t', null, { maxAttempts: 3 });
      expect(await ended(id)).toMatchObject({ status: 'exhausted', lastError: expect.stringContaining(told) });
      expect(runs).toBe(1);
    });
  }

  it('keeps what only looks special: dates, buffers, shared and empty parts, values with a toJSON', async () => {
    const part = { a: 1 };
    const value = {
      at: new Date(0),
      bytes: Buffer.from('a'),
      one: part,
      two: part,
      none: undefined,
      all: [[], {}, part],
    };
    const fancy = Object.assign(new Map([[1, 2]]), { toJSON: () => 'a map' });
    const results: unknown[] = [];
    await runThrough(async (ctx) => results.push(await ctx.step('a', () => value), await ctx.step('b', () => fancy)));
    expect(results).toEqual([JSON.parse(JSON.stringify(value)), 'a map']);
  });

  it('that would wait for itself is refused', async () => {
    const told: string[] = [];
    const tell = (error: Error): void => void told.push(`${error.name}: ${error.message}`);
    await runThrough(async (ctx) => {
      await ctx.step('a', () => ctx.step('a', () => 1)).catch(tell);
      await ctx.step('b', () => ctx.step('c', () => ctx.step('b', () => 1))).catch(tell);
      let inD!: () => void;
      const started = new Promise<void>((resolve) => (inD = resolve));
      const d = ctx.step('d', async () => (inD(), await ctx.step('e', () => ctx.step('d', () => 1))));
      await started;
      await d.catch(tell);
    });
    expect(told).toHaveLength(3);
    for (const text of told) expect(text).toMatch(/^InvalidArgumentError: .*it would wait for itself/);
  });

  it('within another is kept by itself', async () => {
    const ran: string[] = [];
    const nested = (ctx: JobContext, fail: boolean) =>
      ctx.step('outer', async () => {
        ran.push('outer');
        const inner = await ctx.step('inner', () => ran.push('inner'));
        if (fail) throw new Error('outer failed');
        return inner;
      });
    await runThrough(
      (ctx) => nested(ctx, true),
      (ctx) => nested(ctx, false),
    );
    expect(ran).toEqual(['outer', 'inner', 'outer']);
  });

  it('is noted again, not done again, while its note meets a connection that breaks', async () => {
    let runs = 0;
    const blocker = await pgClient();
    const job = runThrough(async (ctx) => {
      await ctx.step('charge', async () => {
        await blocker.query('begin; lock table jobs.job_steps in exclusive mode');
        return ++runs;
      });
    });
    const cutOff = `select pg_terminate_backend(pid) from pg_stat_activity
      where wait_event_type = 'Lock' and datname = current_database() and query like '%save_step%'`;
    await eventually(async () => (await test.sql(cutOff)).length === 1);
    await blocker.query('commit');
    await blocker.end();
    expect(await job).toMatchObject({ status: 'completed', attempts: 1 });
    expect(runs).toBe(1);
    expect(await test.sql('select name, result from jobs.job_steps')).toEqual([{ name: 'charge', result: 1 }]);
  });

  it('of a keyed job whose payload is replaced is done for the new payload', async () => {
    const charged: unknown[] = [];
    const policy = { retry: () => 60_000 };
    const handler = async (amount: number, ctx: JobContext): Promise<unknown> => {
      await ctx.progress({ amount });
      const paid = await ctx.step('charge', () => (charged.push(amount), amount));
      if (amount === 10) throw new Error('ship failed');
      return paid;
    };
    await start({ pay: { handler, ...policy } });
    const first = await jobs.addJob('pay', 10, { jobKey: 'order' });
    await eventually(() => events.ofType('job.failed').length === 1);
    const second = await jobs.addJob('pay', 99, { jobKey: 'order', jobKeyMode: 'preserve_run_at' });
    expect(await jobs.findJob(first.id)).toMatchObject({ progress: null });
    await jobs.rescheduleJobs([second.id], { runAt: new Date(0) });
    await ended(second.id);
    expect([first.id === second.id, charged]).toEqual([true, [10, 99]]);
  });
});

describe('steps side by side', () => {
  const turns = (names: string[], ctx: JobContext, ran: string[]) =>
    Promise.all(names.map((name) => ctx.step(name, async () => (await test.sql('select 1'), ran.push(name)))));

  it('have an order of their own, in which retryFromStep forgets them', async () => {
    const ran: string[] = [];
    let rows: Record<string, unknown>[] = [];
    await runThrough(
      async (ctx) => {
        await turns(['a', 'b', 'c'], ctx, ran);
        await ctx.step('d', () => ran.push('d'));
        rows = await test.sql('select name, position from jobs.job_steps order by position');
        return partialSuccess({ retryFromStep: rows[1]!.name as string });
      },
      async (ctx) => {
        await turns(['a', 'b', 'c'], ctx, ran);
        await ctx.step('d', () => ran.push('d'));
      },
    );
    expect(rows.map(({ position }) => position)).toEqual([0, 1, 2, 3]);
    const [first, ...others] = rows.map(({ name }) => name as string);
    expect(ran.slice(4).toSorted()).toEqual(others.toSorted());
    expect(ran.slice(4)).not.toContain(first);
  });

  it('of which one throws all end with their attempt, and what was done is not done again', async () => {
    const ran: string[] = [];
    const both = async (ctx: JobContext): Promise<void> => {
      const slow = ctx.step('slow', async () => {
        await new Promise((resolve) => ctx.signal.addEventListener('abort', resolve));
        expect(ctx.signal.reason).toBeInstanceOf(AttemptOverError);
        ran.push(`slow ${ctx.attempt}`);
      });
      const fast = ctx.step('fast', () => {
        ran.push(`fast ${ctx.attempt}`);
        if (ctx.attempt === 1) throw new Error('fast failed');
      });
      await Promise.all([slow, fast]);
    };
    const job = await runThrough(both, both);
    expect(job).toMatchObject({ status: 'completed', attempts: 2 });
    expect(ran).toEqual(['fast 1', 'slow 1', 'fast 2']);
  });
});

describe('steps and partial success', () => {
  it('a partial success tells which steps are done, with their results', async () => {
    let previous: unknown;
    await runThrough(
      async (ctx) => {
        await ctx.step('reserve', () => 7);
        return partialSuccess({ failedSteps: ['charge'] });
      },
      (ctx) => void (previous = ctx.previous),
    );
    expect(previous).toEqual({ completedSteps: ['reserve'], failedSteps: ['charge'], results: { reserve: 7 } });
  });

  it('retryFromStep does that step and those after it again', async () => {
    const ran: string[] = [];
    const all = async (ctx: JobContext) => {
      for (const name of ['a', 'b', 'c']) await ctx.step(name, () => ran.push(name));
    };
    await runThrough(
      async (ctx) => (await all(ctx), partialSuccess({ retryFromStep: 'b' })),
      async (ctx) => {
        await all(ctx);
        throw new Error('once more');
      },
      (ctx) => all(ctx),
    );
    expect(ran).toEqual(['a', 'b', 'c', 'b', 'c']);
  });

  it('a step that an earlier attempt reported as completed is not run', async () => {
    const ran: string[] = [];
    let result: unknown;
    await runThrough(
      () => partialSuccess({ completedSteps: ['reserve'], results: { reserve: { hold: 'h-1' } } }),
      async (ctx) => (result = await ctx.step('reserve', () => ran.push('reserve'))),
    );
    expect([ran, result]).toEqual([[], { hold: 'h-1' }]);
  });
});

describe('ctx.progress and ctx.log', () => {
  it('are seen by others while the job runs, and kept after it', async () => {
    let finish!: () => void;
    const finished = new Promise<void>((resolve) => (finish = resolve));
    await start({
      t: async (_payload, ctx: JobContext) => {
        void ctx.progress({ percent: 10 });
        await ctx.progress({ percent: 50 });
        await ctx.log('half-way');
        await finished;
        void ctx.log('done\0');
      },
    });
    const { id } = await jobs.addJob('t', null);
    await eventually(async () => (await jobs.jobLogs(id)).items.length === 1);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'running', progress: { percent: 50 } });
    finish();
    expect(await ended(id)).toMatchObject({ status: 'completed', progress: { percent: 50 } });
    const [attempt] = await jobs.jobHistory(id);
    expect((await jobs.jobLogs(id)).items).toEqual([
      { at: expect.any(Date), message: 'half-way', correlationId: attempt!.correlationId },
      { at: expect.any(Date), message: 'done\uFFFD', correlationId: attempt!.correlationId },
    ]);
  });

  it('logs come in pages, oldest first', async () => {
    let id = '';
    await runThrough(async (ctx) => {
      id = ctx.job.id;
      await Promise.all([1, 2, 3].map((n) => ctx.log(`line ${n}`)));
    });
    const first = await jobs.jobLogs(id, { limit: 2 });
    const second = await jobs.jobLogs(id, { limit: 2, cursor: first.cursor });
    expect([...first.items, ...second.items].map(({ message }) => message)).toEqual(['line 1', 'line 2', 'line 3']);
    expect(second.cursor).toBeNull();
  });

  it('of a worker that lost the job change nothing', async () => {
    const { id } = await jobs.addJob('t', null);
    const [claimed] = await jobs.getJobs(WORKER);
    await jobs.forceUnlockJobs();
    await jobs.engine.attempts.setProgress({ job: claimed!, workerId: WORKER }, 99);
    expect(await jobs.findJob(id)).toMatchObject({ progress: null });
  });

  it('refuse what cannot be stored, without ending the process', async () => {
    let problem: unknown;
    const job = await runThrough(async (ctx) => {
      void ctx.progress(1n);
      await ctx.progress(1n).catch((error: unknown) => (problem = error));
    });
    expect(problem).toBeInstanceOf(InvalidArgumentError);
    expect(job.status).toBe('completed');
  });

  it('leave with the job when it is purged', async () => {
    const job = await runThrough(async (ctx) => {
      await ctx.step('a', () => 1);
      await ctx.progress(1);
      await ctx.log('x');
    });
    expect(await jobs.purgeJobs({ status: 'completed', olderThanMs: 0 })).toBe(1);
    expect(await jobs.findJob(job.id)).toBeNull();
    for (const table of ['job_steps', 'job_progress', 'job_logs'])
      expect(await test.sql(`select from jobs.${table}`)).toEqual([]);
  });
});

describe('ctx.assertOwned', () => {
  it('holds the job until the transaction ends', async () => {
    const order: string[] = [];
    await start({
      t: async (_payload, ctx: JobContext) => {
        const client = await pgClient();
        await client.query('begin');
        await ctx.assertOwned(client);
        const unlocked = jobs.forceUnlockJobs().then(() => order.push('unlocked'));
        await eventually(async () => (await test.sql(tried)).length > 0);
        expect(order).toEqual([]);
        order.push('commit');
        await client.query('commit');
        await client.end();
        // A handler that returned at once would complete the job before the unlock is tried again.
        await unlocked;
      },
    });
    await jobs.addJob('t', null, { maxAttempts: 1 });
    await eventually(() => events.ofType('job.lost').length === 1);
    expect(order).toEqual(['commit', 'unlocked']);
  });

  it('throws LeaseLostError once the claim was taken away', async () => {
    let error: unknown;
    await start({
      t: async (_payload, ctx: JobContext) => {
        await jobs.forceUnlockJobs();
        const client = await pgClient();
        error = await ctx.assertOwned(client).catch((reason: unknown) => reason);
        await client.end();
      },
    });
    await jobs.addJob('t', null, { maxAttempts: 1 });
    await eventually(() => events.ofType('job.lost').length === 1);
    expect(error).toBeInstanceOf(LeaseLostError);
  });

  it('without a transaction needs a transactional task', async () => {
    let error: unknown;
    await runThrough(async (ctx) => (error = await ctx.assertOwned().catch((reason: unknown) => reason)));
    expect(error).toBeInstanceOf(InvalidStatusError);
  });
});

/** An end of the claim has met the lock, and gone away again. */
const tried = `select from pg_stat_activity where datname = current_database() and query like '%end_attempts%' and state = 'idle'
  and pid <> pg_backend_pid()`;

async function pgClient() {
  const { default: pg } = await import('pg');
  const client = new pg.Client(test.url);
  await client.connect();
  return client;
}
