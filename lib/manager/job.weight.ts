// How much claimed jobs weigh: buffers are bounded by bytes. Only what is heavy is noted, beside the job, so that most jobs cost
// nothing and none shows it.
import type { ClaimedJob } from '../interfaces/job.interface.js';

const heavy = new WeakMap<ClaimedJob, number>();

/** Notes a job that was read from a text of so many characters. */
export function weigh(job: ClaimedJob, characters: number): void {
  if (characters >= 2_048) heavy.set(job, characters >> 10);
}

/** In KiB, at least one. */
export const weightOf = (job: ClaimedJob): number => heavy.get(job) ?? 1;
