// A worker process for specs that kill it: tasks that write effects, block the loop, or take the process down.
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { createJobManager, createWorkerPool, PermanentFailure } from '../../dist/index.js';

const jobs = await createJobManager({ connection: process.env.DATABASE_URL, retry: { baseDelayMs: 1, jitter: 0 } });

const database = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 2 });

/** What a job of a batch asks its handler for, once all jobs of the call have left their effects. */
const ASKS = {
  fail: (ctx, job) => ctx.fail(job, new PermanentFailure('it asked for that')),
  snooze: (ctx, job) => ctx.snooze(job, 3_600_000),
  crash: () => process.kill(process.pid, 'SIGKILL'),
  hang: () => new Promise(() => undefined),
  /** Stops with the pool. */
  stop: ({ signal }) =>
    new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason), { once: true })),
  /** Ends by itself once its pool is being stopped. */
  end: async ({ workerId }) => {
    const isLeaving = 'select from jobs.workers where label = $1 and left_at is not null';
    while (!(await database.query(isLeaving, [workerId])).rowCount) await sleep(20);
  },
};

async function runBatch(jobs, ctx) {
  const crashes = jobs.map((job) => job.crashes);
  const begin = `insert into calls (worker, jobs, crashes) values ($1, $2, $3) returning id`;
  const { rows } = await database.query(begin, [ctx.workerId, jobs.map(({ id }) => id), crashes]);
  // Beside others that run, so that a crash meets them.
  await sleep(50);
  for (const job of jobs) await ASKS[job.payload]?.(ctx, job);
  await database.query('update calls set ended_at = clock_timestamp() where id = $1', [rows[0].id]);
}

const tasks = {
  batch: { batch: { size: 10, waitMs: 300 }, handler: runBatch },
  /** Writes the effects of all jobs in the transaction that completes them. */
  'batch of effects': {
    batch: { size: 5, waitMs: 20 },
    transactional: true,
    handler: async (jobs, ctx) => {
      for (const { payload } of jobs) {
        await ctx.manager.query('insert into effects (n, worker) values ($1, $2)', [payload, ctx.workerId]);
        await ctx.manager.query('select pg_sleep($1)', [Math.random() / 100]);
      }
    },
  },
  /** Writes its effect in the transaction that completes it, with a moment in between in which the test can kill. */
  effect: {
    transactional: true,
    handler: async (n, ctx) => {
      await ctx.manager.query('insert into effects (n, worker) values ($1, $2)', [n, ctx.workerId]);
      await ctx.manager.query('select pg_sleep($1)', [Math.random() / 50]);
    },
  },
  /** Never ends by itself. */
  hang: () => new Promise(() => undefined),
  poison: () => process.kill(process.pid, 'SIGKILL'),
  /** Takes its time, so that it is beside the poison when that strikes. */
  neighbour: () => new Promise((resolve) => setTimeout(resolve, 100)),
  exit: () => process.exit(7),
};

const options = JSON.parse(process.env.WORKER_OPTIONS ?? '{}');
const pool = createWorkerPool({ jobs, tasks, options });
await pool.start();
const stop = async () => {
  await pool.stop(options.gracefulShutdownTimeoutMs ?? 5_000);
  await jobs.close();
  await database.end();
};
process.on('SIGTERM', () => void stop());
process.send?.('ready');
