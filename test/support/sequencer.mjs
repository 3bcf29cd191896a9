// The longest specs first, so that none of them is alone at the end of a run: jest knows how long they take only where
// they have run before.
import Sequencer from '@jest/test-sequencer';

const LONGEST = [
  'invariants/interleavings',
  'faults/database-trouble',
  'invariants/commands',
  'faults/killed-workers',
  'maintenance/partitions',
  'invariants/deaths',
  'maintenance/cron.scheduler',
  'storage/isolation-levels',
  'embedded/ending',
  'storage/session-settings',
  'docs',
  'faults/lock-audit',
  'sample/samples',
  'worker/job-sessions',
  'worker/transactional',
  'sample/newsletter',
  'types/compiler',
  'manager/strangers-in-the-way',
  'maintenance/held-partitions',
  'faults/locked-tables',
  'worker/pool',
  'worker/attempt-ends',
  'worker/transactions-that-do-not-begin',
].map((name) => `/test/${name}.spec.ts`);

export default class LongestFirst extends Sequencer {
  sort(tests) {
    const rank = ({ path }) => LONGEST.findIndex((name) => path.endsWith(name)) + 1 || LONGEST.length + 1;
    return super.sort(tests).toSorted((one, other) => rank(one) - rank(other));
  }
}
