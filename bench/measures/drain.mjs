// How fast workers empty a full queue of no-op jobs, and what a job takes of the database and of the worker.
import { fast, rateColumns, sized } from './sizes.mjs';

export const title = 'Draining a full queue';
export const columns = rateColumns;
const CONCURRENCY = 10;
const PATIENCE_MS = 240_000;

export const cases = [1, 2, 4].map((processes) => ({
  name: processes === 1 ? '1 process' : `${processes} processes`,
  contestants: (names) => (processes === 1 ? names : fast(names)),
  async run(arena, options) {
    const jobs = sized(arena.name, options.jobs);
    await arena.producer.call('load', { count: jobs });
    await analyze(arena);
    return drain(arena, { jobs, processes });
  },
}));

/** Fresh statistics, as autovacuum leaves them when it has had the time. */
export const analyze = (arena) => (arena.onRedis ? undefined : arena.client.query('analyze'));

/**
 * Starts workers on what is loaded and waits until `jobs` of them ran and, unless `complete` is false, none is left
 * unsettled: the clock stops when the database says so.
 */
export async function drain(arena, { jobs, processes = 1, complete = true }) {
  const workers = await Promise.all(Array.from({ length: processes }, arena.addAgent));
  return timed(arena, { workers, jobs, complete }, () =>
    Promise.all(workers.map((worker) => worker.call('work', { concurrency: CONCURRENCY }))),
  );
}

/** Clocks from `begin` on what `workers` do. */
export async function timed(arena, { workers, jobs, complete = true }, begin) {
  const before = await usageOf(workers);
  await arena.meter.start();
  const startedAt = performance.now();
  const begun = begin();
  await reached(workers, jobs);
  if (complete) await settled(arena);
  const seconds = (performance.now() - startedAt) / 1_000;
  const server = await arena.meter.read();
  const after = await usageOf(workers);
  await begun;
  verify({ jobs, complete, calls: after.calls, sum: after.sum });
  const done = complete ? jobs : after.calls;
  return {
    rate: done / seconds,
    dbCpu: server.cpu / done,
    workerCpu: (after.cpu - before.cpu) / done,
    wal: server.wal === null ? null : server.wal / done,
    rss: after.rss,
    jobs,
  };
}

async function usageOf(workers) {
  const all = await Promise.all(workers.map((worker) => worker.call('usage')));
  const sum = (key) => all.reduce((total, usage) => total + usage[key], 0);
  return { calls: sum('calls'), sum: sum('sum'), cpu: sum('cpu'), rss: Math.max(...all.map(({ rss }) => rss)) };
}

/** Resolves when the handlers of all workers together were called so often. */
export function reached(workers, calls, patienceMs = PATIENCE_MS) {
  const total = () => workers.reduce((sum, worker) => sum + worker.calls, 0);
  return new Promise((resolve, reject) => {
    const give = setTimeout(() => reject(new Error(`${total()} of ${calls} jobs in ${patienceMs} ms`)), patienceMs);
    const look = () => {
      if (total() < calls) return;
      clearTimeout(give);
      resolve();
    };
    for (const worker of workers) worker.onProgress = look;
    look();
  });
}

async function settled({ producer }) {
  const until = performance.now() + PATIENCE_MS;
  while (await producer.call('unfinished')) {
    if (performance.now() > until) throw new Error('All jobs ran, but some were never settled.');
    await new Promise((resolve) => void setTimeout(resolve, 5));
  }
}

/** Every job ran, and none twice: both the number of calls and the sum of the jobs' numbers must agree. */
function verify({ jobs, complete, calls, sum }) {
  const expected = (jobs * (jobs - 1)) / 2;
  if (complete ? calls === jobs && sum === expected : calls >= jobs) return;
  throw new Error(`Expected ${jobs} calls whose numbers add up to ${expected}, got ${calls} and ${sum}.`);
}
