// What goes wrong with recurring jobs only.
import { JobsError } from '../jobs.errors.js';

/** A transaction held the row of a crontab for so long that it could not be changed. Try again. */
export class CrontabLockedError extends JobsError {
  readonly code = 'ERR_JOBS_CRONTAB_LOCKED';

  constructor(readonly cronId: string) {
    super(
      `Expected to change the crontab "${cronId}", but another transaction holds its row. Try again when that ` +
        'transaction has ended; pg_stat_activity shows it (xact_start).',
    );
  }
}
