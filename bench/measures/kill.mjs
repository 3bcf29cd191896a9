// kill -9 of a worker with 100 running jobs: how long until another one runs them again, and whether any ran twice there.
import { reached } from './drain.mjs';

export const title = 'kill -9 of a worker with 100 running jobs';
export const columns = [
  ['seconds', 's until all run again', 0.1],
  ['twice', 'ran twice after that', 1],
];

const JOBS = 100;
const PATIENCE_MS = 90_000;

export const cases = [
  {
    name: 'defaults, one idle worker left',
    contestants: (names, { killPeers }) =>
      names.filter((name) => (killPeers ? !['ceiling', 'millrace, no history'].includes(name) : name === 'millrace')),
    run,
  },
];

async function run(arena) {
  const victim = await arena.addAgent();
  await victim.call('work', { concurrency: JOBS, hangs: true });
  await arena.producer.call('load', { count: JOBS });
  await reached([victim], JOBS);
  const heir = await arena.addAgent();
  await heir.call('work', { concurrency: JOBS, notes: true });
  await new Promise((resolve) => void setTimeout(resolve, 1_000));
  victim.kill();
  const killedAt = performance.now();
  await reached([heir], JOBS, PATIENCE_MS);
  const seconds = (performance.now() - killedAt) / 1_000;
  await new Promise((resolve) => void setTimeout(resolve, 5_000)); // time for a second run to show
  const { starts } = await heir.call('usage');
  return { seconds, twice: starts.length - new Set(starts).size };
}
