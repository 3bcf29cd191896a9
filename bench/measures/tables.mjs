// Draining while the tables also hold a lot that does not run now.
import { contestants } from '../contestants/index.mjs';
import { analyze, drain } from './drain.mjs';
import { fast, rateColumns } from './sizes.mjs';

export const title = 'Draining beside other rows';
export const columns = rateColumns;

const LIMITS = 1_000;
const DAY_MS = 24 * 60 * 60 * 1_000;
const many = (count) => count.toLocaleString('en');

export const cases = [
  { name: () => 'nothing else', contestants: fast, run: (arena, { jobs }) => beside(arena, { jobs }) },
  { name: ({ rows }) => `${many(rows)} more waiting`, contestants: fast, run: besideWaiting },
  {
    name: ({ rows }) => `${many(rows)} jobs of tomorrow`,
    contestants: fast,
    run: (arena, { jobs, rows }) =>
      beside(arena, { jobs }, () => arena.producer.call('load', { count: rows, from: jobs, delayMs: DAY_MS })),
  },
  {
    name: ({ rows }) => `${many(rows)} finished jobs kept`,
    contestants: (names) => fast(names).filter((name) => contestants[name].kept !== 'nothing'),
    run: besideHistory,
  },
  {
    name: ({ rows }) => `${many(rows / 10)} jobs blocked in ${many(rows / 50)} serial queues`,
    contestants: (names) => names.filter((name) => ['millrace', 'graphile-worker tuned'].includes(name)),
    run: besideBlocked,
  },
  {
    name: ({ rows }) => `${many(rows / 10)} jobs waiting for ${many(LIMITS)} used-up rate limits`,
    contestants: (names) => names.filter((name) => name === 'millrace'),
    run: besideLimited,
  },
];

async function beside(arena, { jobs, complete }, prepare = async () => undefined) {
  await prepare();
  await arena.producer.call('load', { count: jobs });
  await analyze(arena);
  return drain(arena, { jobs, complete });
}

/** The clock stops when so many have run; the rest stays in the table. */
async function besideWaiting(arena, { jobs, rows }) {
  await arena.producer.call('load', { count: jobs + rows });
  await analyze(arena);
  return drain(arena, { jobs, complete: false });
}

/** The rows of finished jobs are made by running them. */
async function besideHistory(arena, { jobs, rows }) {
  return beside(arena, { jobs }, async () => {
    await arena.producer.call('load', { count: rows });
    const worker = await arena.addAgent();
    await worker.call('work', { concurrency: 10 });
    while (await arena.producer.call('unfinished')) await new Promise((resolve) => void setTimeout(resolve, 100));
    await worker.end();
  });
}

/** Another worker holds the head of every queue; nothing behind it may run. graphile-worker takes minutes for more. */
async function besideBlocked(arena, { jobs, rows }) {
  const size = arena.name === 'millrace' ? jobs : Math.min(jobs, 2_000);
  return beside(arena, { jobs: size }, async () => {
    await arena.producer.call('load', { count: rows / 10, from: jobs, queues: rows / 50 });
    const held = await arena.producer.call('holdQueues');
    if (held !== rows / 50) throw new Error(`Expected ${rows / 50} queues to be held, got ${held}.`);
  });
}

/** Every limit has let one job through; nothing else of its key may run for hours. */
async function besideLimited(arena, { jobs, rows }) {
  return beside(arena, { jobs }, async () => {
    await arena.producer.call('registerLimits', { count: LIMITS });
    await arena.producer.call('load', { count: rows / 10, from: jobs, limits: LIMITS });
    const held = await arena.producer.call('useUpLimits');
    if (held !== LIMITS) throw new Error(`Expected ${LIMITS} limits to be used up, got ${held}.`);
  });
}
