// From the call that adds a job to the start of its handler: on an idle system, and under a steady load of single adds.
import { reached } from './drain.mjs';
import { sized } from './sizes.mjs';

export const title = 'Latency, add to handler start';
export const columns = [
  ['p50', 'p50 ms', 0.1],
  ['p99', 'p99 ms', 0.1],
  ['rate', 'jobs/s', 10],
  ['behindMs', 'ms behind at the end', 1],
  ['dbCpu', 'CPU µs/job, database', 1],
];

const RATE = 3_000;
const WARM_UP = 30;
const concurrency = 10;
const withoutHistory = 'millrace, no history';

export const cases = [
  {
    name: 'idle system',
    contestants: (names) => names.filter((name) => name !== withoutHistory),
    run: idle,
  },
  {
    name: `${RATE.toLocaleString('en')} single adds a second, one worker`,
    contestants: (names) => names.filter((name) => name !== withoutHistory && name !== 'pg-boss'), // five a second by its polls
    run: loaded,
  },
];

async function idle(arena, { samples }) {
  const count = sized(arena.name, samples);
  const worker = await warmWorker(arena);
  await arena.producer.call('addSingly', { count, from: WARM_UP, pauseMs: 20 });
  await reached([worker], WARM_UP + count);
  return percentiles(await worker.call('usage'));
}

async function loaded(arena, { seconds }) {
  const worker = await warmWorker(arena);
  await arena.meter.start();
  const startedAt = performance.now();
  const { added } = await arena.producer.call('addAtRate', { rate: RATE, seconds, from: WARM_UP });
  await reached([worker], WARM_UP + added);
  const tookMs = performance.now() - startedAt;
  const server = await arena.meter.read();
  const behindMs = Math.max(0, tookMs - seconds * 1_000);
  const figures = percentiles(await worker.call('usage'));
  return { ...figures, rate: (added / tookMs) * 1_000, behindMs, dbCpu: server.cpu / added };
}

async function warmWorker(arena) {
  const worker = await arena.addAgent();
  await worker.call('work', { concurrency });
  await arena.producer.call('addSingly', { count: WARM_UP, from: 0, pauseMs: 10 });
  await reached([worker], WARM_UP);
  return worker;
}

/** Every job is in once: `reached` counted the calls, and a job that ran twice would make one too many. */
function percentiles({ latencies, calls, sum }) {
  if (sum !== (calls * (calls - 1)) / 2) throw new Error('A job ran twice, or not at all.');
  const sorted = latencies.slice(WARM_UP).toSorted((a, b) => a - b);
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] / 1_000;
  return { p50: at(0.5), p99: at(0.99) };
}
