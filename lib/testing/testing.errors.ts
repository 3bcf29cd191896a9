// What goes wrong in specs only.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { JobsError } from '../jobs.errors.js';
import { describePaused, type PausedJobs } from './drained.jobs.js';

/**
 * Jobs were still due, or one still ran, when `drain` had reached its limit: mostly a task that adds itself again, or a
 * handler that waits for something which never comes.
 */
export class EndlessDrainError extends JobsError {
  readonly code = 'ERR_JOBS_ENDLESS_DRAIN';

  constructor(
    message: string,
    /** The tasks that ran, and the one that was left, most frequent first. */
    readonly tasks: string[],
    /** Pauses that kept due jobs from running: a handler that waits for one of these jobs never ends. */
    readonly paused: PausedJobs[] = [],
  ) {
    super(message + describePaused(paused));
  }
}

/** The application's worker pool runs: it and the spec would take jobs from each other. */
export class PoolRunningError extends JobsError {
  readonly code = 'ERR_JOBS_TESTING_POOL_RUNNING';

  constructor() {
    super(
      "Expected the application's worker pool not to run in this spec, got one that does. Give JobsModule " +
        'worker: { autoStart: false }, or stop the pool.',
    );
  }
}

/** Says what ran, the most frequent first: in a chain without end, that is the culprit. */
export function endlessDrain(
  limit: string,
  ran: { job: ClaimedJob }[],
  left: string,
  leftTask: string,
  paused: PausedJobs[],
): EndlessDrainError {
  const times = new Map<string, number>();
  for (const { task } of ran.map((one) => one.job)) times.set(task, (times.get(task) ?? 0) + 1);
  const tasks = [...times].toSorted(([, a], [, b]) => b - a);
  const list = tasks.map(([task, count]) => `${task} (${count} ${count === 1 ? 'job' : 'jobs'})`).join(', ');
  return new EndlessDrainError(
    `Expected no job to be due any more ${limit}, but ${left}. Ran: ${list || 'nothing'}. ` +
      'Does a task add itself again, or does a handler never end? If not, raise maxJobs or timeoutMs.',
    [...new Set([...tasks.map(([task]) => task), leftTask])],
    paused,
  );
}
