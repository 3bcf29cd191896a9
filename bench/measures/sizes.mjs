// What the measures agree on: which contestants are too slow for the full size, and the columns that rates come with.
import { contestants, entryOf } from '../contestants/index.mjs';

/** Contestants whose settings let them through a full-sized load within seconds. */
export const fast = (names) => names.filter((name) => contestants[name].most === undefined);

export const sized = (name, jobs) => Math.min(jobs, entryOf(name).most ?? jobs);

/** Without those that differ from another only in how their workers take or settle jobs. */
export const adders = (names) =>
  names.filter((name) => !['millrace, no history', 'graphile-worker tuned'].includes(name));

/** Keys of the figures, their headings, and the step they are rounded to. */
export const rateColumns = [
  ['rate', 'jobs/s', 100],
  ['dbCpu', 'CPU µs/job, database', 0.1],
  ['workerCpu', 'CPU µs/job, worker', 0.1],
  ['wal', 'WAL B/job', 1],
  ['rss', 'worker peak MB', 1],
  ['jobs', 'jobs', 1],
];
