// Millrace with default options: full history, LISTEN, leases, fences.
import { createJobManager, createWorkerPool } from '../../dist/index.js';
import { watchWith } from './watch.mjs';

const open = (url, settings) => createJobManager({ connection: url, ...settings });

export async function install(url, settings) {
  const jobs = await open(url, settings);
  await jobs.close();
}

export async function produce(url, settings) {
  const jobs = await open(url, settings);
  return {
    add: (payload) => jobs.addJob('noop', payload),
    addMany: (payloads, { runAt, queueOf, limitOf } = {}) =>
      jobs.addJobs(
        payloads.map((payload) => ({
          task: 'noop',
          payload,
          runAt,
          queue: queueOf?.(payload),
          rateLimitKey: limitOf?.(payload),
        })),
      ),
    close: () => jobs.close(),
  };
}

export async function work(url, settings, concurrency, handler) {
  const jobs = await open(url, settings);
  const pool = createWorkerPool({ jobs, tasks: { noop: handler }, options: { concurrency } });
  await pool.start();
  const stop = async () => {
    await pool.stop();
    await jobs.close();
  };
  return { stop };
}

/** Jobs of named queues and rate limits are left out: a measure that uses them holds those. */
export const watch = (url) =>
  watchWith(
    url,
    'from jobs.jobs where parked is null and queue is null and rate_limit_key is null and run_at <= now()',
  );

/** One job in four hours for each key. */
export async function registerLimits(url, count) {
  const jobs = await open(url, {});
  for (let n = 0; n < count; n++) await jobs.registerRateLimit(`limit-${n}`, 1, '4 hours');
  await jobs.close();
}

/** Claims what queues and limits let through by hand, for four hours; the others line up behind it. */
export async function holdHeads(url) {
  const jobs = await open(url, {});
  let held = 0;
  for (let claimed = -1; claimed !== 0; held += claimed) {
    claimed = (await jobs.getJobs('bench-holder', { batchSize: 5_000 })).length;
  }
  await jobs.close();
  return held;
}
