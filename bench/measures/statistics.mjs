// Draining while the planner is wrong: no ANALYZE since the load; or statements planned while the table was empty.
import { analyze, drain, timed } from './drain.mjs';
import { fast, rateColumns } from './sizes.mjs';

export const title = 'Draining with outdated statistics';
export const columns = rateColumns;

export const cases = [
  {
    name: 'no ANALYZE after the load',
    contestants: fast,
    async run(arena, { jobs }) {
      await arena.producer.call('load', { count: jobs });
      return drain(arena, { jobs });
    },
  },
  { name: 'worker started on empty, analysed tables', contestants: fast, run: drainAfterIdling },
];

/** The idle worker is frozen during the load, so that it meets all of it at once, with the plans it made before. */
async function drainAfterIdling(arena, { jobs }) {
  await analyze(arena);
  const worker = await arena.addAgent();
  await worker.call('work', { concurrency: 10 });
  await new Promise((resolve) => void setTimeout(resolve, 3_000));
  worker.freeze();
  try {
    await arena.producer.call('load', { count: jobs });
  } finally {
    worker.thaw();
  }
  return timed(arena, { workers: [worker], jobs }, () => undefined);
}
