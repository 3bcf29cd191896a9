// Draining while another session holds an old snapshot open: a report, a backup, a forgotten transaction. No dead row
// can be removed meanwhile.
import { analyze, drain } from './drain.mjs';
import { fast, rateColumns } from './sizes.mjs';
import { storeOf } from '../contestants/index.mjs';

export const title = 'Draining under an old snapshot';
export const columns = rateColumns;

const onPostgres = (names) => fast(names).filter((name) => storeOf(name) === 'postgres');

export const cases = [
  { name: 'no old snapshot', contestants: onPostgres, run: drainAll },
  { name: 'an old snapshot is open', contestants: onPostgres, run: drainUnderSnapshot },
];

async function drainAll(arena, { jobs }) {
  await arena.producer.call('load', { count: 2 * jobs });
  await analyze(arena);
  return drain(arena, { jobs: 2 * jobs });
}

async function drainUnderSnapshot(arena, options) {
  const holder = await arena.openSession();
  try {
    await holder.query('begin isolation level repeatable read');
    await holder.query('select 1'); // the snapshot is taken by the first statement
    return await drainAll(arena, options);
  } finally {
    await holder.end();
  }
}
