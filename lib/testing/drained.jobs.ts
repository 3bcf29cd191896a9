// What a drain answers: the attempts that ran, and the jobs that it leaves because they are paused.
import type { SettledStatus } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { Pause } from '../interfaces/report.interface.js';
import { describePause, nameTarget } from '../monitoring/pause.text.js';

/** One attempt that ran in a spec. */
export interface RanJob {
  /** The job as it was claimed for this attempt. */
  job: ClaimedJob;
  /** What became of it; `retrying`: it runs again after its backoff. */
  status: SettledStatus;
  /** What the handler threw. */
  error?: unknown;
  /** What the handler returned, as the history keeps it. */
  result?: unknown;
}

/** Due jobs that a pause keeps from running: what is paused, since and until when, by which name and why. */
export interface PausedJobs {
  pause: Pause;
  jobs: { id: string; task: string }[];
}

/** The attempts that ran, in order. */
export interface DrainedJobs extends Array<RanJob> {
  /** The pauses that keep due jobs from running; one job may wait for several. Not among what is compared or printed. */
  readonly paused: PausedJobs[];
}

export const withPaused = (ran: RanJob[], paused: PausedJobs[]): DrainedJobs =>
  Object.defineProperty(ran, 'paused', { value: paused }) as DrainedJobs;

/** For people; empty where nothing is paused. */
export const describePaused = (paused: PausedJobs[]): string => paused.map((one) => ` ${describe(one)}.`).join('');

function describe({ pause, jobs }: PausedJobs): string {
  const tasks = [...new Set(jobs.map(({ task }) => task))].join(', ');
  const count = jobs.length === 1 ? '1 job' : `${jobs.length} jobs`;
  return `Paused: ${nameTarget(pause.target)}${describePause(pause)} (keeps ${count} from running: ${tasks})`;
}
