// A process with a small heap that adds, runs and settles jobs of a mebibyte each: payloads, results and progress. It says
// how many ran. Run with --max-old-space-size.
import process from 'node:process';
import { createJobManager, createWorkerPool, JobEvents } from '../../dist/index.js';

const COUNT = 120;
const BATCH = 12;
const text = (n) => String(n).padEnd(1_000_000, '0123456789');

const jobs = await createJobManager({ connection: process.env.DATABASE_URL, retry: { baseDelayMs: 1, jitter: 0 } });
const events = new JobEvents();
let ran = 0;

/** Each handler gives back, reports and leaves behind as much as it was given. */
const tasks = {
  large: async (payload, ctx) => {
    void ctx.progress({ seen: payload });
    ran++;
    return payload;
  },
  failing: async (payload, ctx) => {
    if (ctx.attempt === 1) throw Object.assign(new Error('fails at first'), { payload });
    ran++;
  },
};

for (let n = 0; n < COUNT; n += BATCH) {
  await jobs.addJobs(
    Array.from({ length: BATCH }, (_, i) => ({ task: i % 4 ? 'large' : 'failing', payload: text(n + i) })),
  );
}
// Callers that do not wait for each other: adds are gathered.
await Promise.all(Array.from({ length: BATCH }, (_, n) => jobs.addJob('large', text(COUNT + n))));

const pool = createWorkerPool({ jobs, tasks, events, options: { concurrency: 10 } });
await pool.start();
const ended = async () => {
  const { completed, exhausted } = (await jobs.counts()).byStatus;
  return completed + exhausted === COUNT + BATCH;
};
while (!(await ended())) await new Promise((resolve) => setTimeout(resolve, 100));
await pool.stop();
await jobs.close();
process.stdout.write(JSON.stringify({ ran }));
