// What each technique buys: Millrace beside itself without it.
import { cases as adds } from './adds.mjs';
import { cases as drains } from './drain.mjs';
import { cases as statistics } from './statistics.mjs';
import { cases as snapshots } from './snapshot.mjs';
import { rateColumns } from './sizes.mjs';
import { variants } from '../contestants/index.mjs';

export const title = 'Techniques';
export const columns = [...rateColumns.slice(0, 3), ['callerCpu', 'CPU µs/job, caller', 0.1], ...rateColumns.slice(3)];

const named = (cases, name) => cases.find((one) => one.name === name);

const shownBy = {
  'batched claims': named(drains, '1 process'),
  'gathered settles': named(drains, '1 process'),
  'prepared statements': named(drains, '1 process'),
  'pinned plans': named(statistics, 'worker started on empty, analysed tables'),
  'the claim cursor': named(snapshots, 'an old snapshot is open'),
  'gathered adds': named(adds, '50 in parallel'),
  'NOTIFY after commits': named(adds, '50 in parallel'),
  'inserts of alike jobs': named(adds, '1,000 per call'),
};

export const cases = Object.entries(shownBy).map(([technique, { name, run }]) => ({
  name: `${technique}, shown by: ${name}`,
  contestants: (names) =>
    names.includes('millrace')
      ? ['millrace', ...Object.keys(variants).filter((variant) => variants[variant].settings.without === technique)]
      : [],
  run: (arena, options) => run(arena, { ...options, jobs: Math.min(options.jobs, SLOW[technique] ?? Infinity) }),
}));

/** Without these a run of the full size takes minutes. */
const SLOW = {
  'batched claims': 10_000,
  'gathered settles': 20_000,
  'pinned plans': 30_000,
  'the claim cursor': 30_000,
};
