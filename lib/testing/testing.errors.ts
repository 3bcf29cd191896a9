// What goes wrong in specs only.
import { JobsError } from '../jobs.errors.js';

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
  ) {
    super(message);
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
