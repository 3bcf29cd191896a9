// How fast callers add jobs while no worker runs.
import { adders } from './sizes.mjs';

export const title = 'Adding jobs';
export const columns = [
  ['rate', 'adds/s', 100],
  ['dbCpu', 'CPU µs/job, database', 0.1],
  ['callerCpu', 'CPU µs/job, caller', 0.1],
  ['wal', 'WAL B/job', 1],
];

const addCase = (name, clients, perCall) => ({
  name,
  contestants: adders,
  async run(arena, { seconds }) {
    await arena.producer.call('addFor', { seconds: 0.3, clients, perCall }); // connections, caches, prepared statements
    const before = await arena.producer.call('count');
    await arena.meter.start();
    const { added, seconds: took, cpu } = await arena.producer.call('addFor', { seconds, clients, perCall });
    const server = await arena.meter.read();
    const found = (await arena.producer.call('count')) - before;
    if (found !== added) throw new Error(`Expected ${added} added jobs in the table, got ${found}.`);
    return { rate: added / took, dbCpu: server.cpu / added, callerCpu: cpu / added, wal: walOf(server, added) };
  },
});

const walOf = (server, jobs) => (server.wal === null ? null : server.wal / jobs);

export const cases = [
  addCase('one at a time', 1, 1),
  addCase('10 in parallel', 10, 1),
  addCase('50 in parallel', 50, 1),
  addCase('1,000 per call', 1, 1_000),
];
