// A worker process for specs that kill it: tasks that write effects, block the loop, or take the process down.
import process from 'node:process';
import { createJobManager, createWorkerPool } from '../../dist/index.js';

const jobs = await createJobManager({ connection: process.env.DATABASE_URL, retry: { baseDelayMs: 1, jitter: 0 } });

const tasks = {
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

const pool = createWorkerPool({ jobs, tasks, options: JSON.parse(process.env.WORKER_OPTIONS ?? '{}') });
await pool.start();
const stop = async () => {
  await pool.stop(5_000);
  await jobs.close();
};
process.on('SIGTERM', () => void stop());
process.send?.('ready');
