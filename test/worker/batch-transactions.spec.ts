import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { type BatchContext, type ClaimedJob, createWorkerPool, type WorkerPool } from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let pool: WorkerPool;

beforeEach(async () => {
  test = await createTestManager({ retry: { baseDelayMs: 60_000 } });
  await test.sql('create table effects (n int not null)');
});
afterEach(async () => {
  await pool.forceStop();
  await test.close();
});

type Handler = (jobs: ClaimedJob<number>[], ctx: BatchContext<number>) => unknown;

/** Adds three jobs, runs them in one transactional batch, and says what became of them. */
async function run(handler: Handler, midway?: (ids: string[]) => Promise<unknown>): Promise<string[]> {
  const specs = [1, 2, 3].map((payload) => ({ task: 'index', payload }));
  const ids = (await test.jobs.addJobs(specs)).map(({ id }) => id);
  let calls = 0;
  const index = {
    transactional: true,
    batch: { size: 3, waitMs: 60_000 },
    handler: async (jobs: ClaimedJob<number>[], ctx: BatchContext<number>) => {
      if (calls++ > 0) return new Promise((resolve) => ctx.signal.addEventListener('abort', resolve));
      for (const { payload } of jobs) await ctx.manager.query('insert into effects values ($1)', [payload]);
      await midway?.(ids);
      return handler(jobs, ctx);
    },
  };
  pool = createWorkerPool({
    jobs: test.jobs,
    tasks: { index, follow: () => undefined },
    options: { pollIntervalMs: 50 },
  });
  await pool.start();
  const statuses = async () => Promise.all(ids.map(async (id) => (await test.jobs.findJob(id))!.status));
  await eventually(
    async () => calls > 0 && (await statuses()).some((status) => !['running', 'available'].includes(status)),
  );
  return statuses();
}

const effects = async (): Promise<number> => (await test.sql('select n from effects')).length;

describe('a transactional batch', () => {
  it('commits what the handler writes, the jobs it adds and the end of all its jobs together', async () => {
    const statuses = await run(async (jobs, ctx) => {
      await ctx.jobs.addJob('follow', jobs.length);
      ctx.complete(jobs[0]!, { first: true });
    });
    expect(statuses).toEqual(['completed', 'completed', 'completed']);
    expect(await effects()).toBe(3);
    await eventually(async () => (await test.jobs.counts()).byStatus.completed === 4);
  });

  it('rolls everything back where the handler throws', async () => {
    const statuses = await run(() => {
      throw new Error('no');
    });
    expect(statuses).toEqual(['scheduled', 'scheduled', 'scheduled']);
    expect(await effects()).toBe(0);
  });

  it('refuses to fail one job alone: all of them fail', async () => {
    const statuses = await run((jobs, ctx) => ctx.fail(jobs[1]!, new Error('one')));
    expect(statuses).toEqual(['scheduled', 'scheduled', 'scheduled']);
    expect(await effects()).toBe(0);
  });

  it('is rolled back where one of its jobs is cancelled meanwhile, and the others are given back', async () => {
    const statuses = await run(
      () => undefined,
      (ids) => test.jobs.cancelJobs([ids[1]!]),
    );
    expect(statuses[1]).toBe('cancelled');
    expect(statuses.filter((status) => ['available', 'running'].includes(status))).toHaveLength(2);
    expect(await effects()).toBe(0);
  });
});
