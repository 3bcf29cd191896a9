// Millrace with default options: full history, LISTEN, leases, fences.
import pg from 'pg';
import { createJobManager, createWorkerPool, JobEvents } from '../../dist/index.js';

const [url, count] = process.argv.slice(2);
const total = Number(count);
const admin = new pg.Client(url);
await admin.connect();
await admin.query('drop schema if exists jobs cascade');
const jobs = await createJobManager({ connection: url });
const text = 'x'.repeat(180);
for (let loaded = 0; loaded < total; loaded += 1_000) {
  const specs = Array.from({ length: 1_000 }, (_, n) => ({ task: 'noop', payload: { n: loaded + n, text } }));
  await jobs.addJobs(specs);
}
await admin.query('analyze');

const events = new JobEvents();
let settled = 0;
let finish;
const done = new Promise((resolve) => (finish = resolve));
events.on('job.settled', () => ++settled === total && finish());
const pool = createWorkerPool({ jobs, events, tasks: { noop: async () => undefined }, options: { concurrency: 10 } });

const startedAt = performance.now();
await pool.start();
await done;
const seconds = (performance.now() - startedAt) / 1_000;
await pool.stop();
const { rows } = await admin.query(`select count(*)::int as records from jobs.job_history where status = 'completed'`);
if (rows[0].records !== total) throw new Error(`Expected ${total} history records, got ${rows[0].records}.`);
await jobs.close();
await admin.end();
console.log(JSON.stringify({ seconds }));
