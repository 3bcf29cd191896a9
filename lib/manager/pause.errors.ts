// What a pause cannot do.
import { JobsError } from '../jobs.errors.js';

/**
 * The pause holds: no claim that began after it ignores it. But transactions that claimed jobs before it are still open after some
 * seconds (`getJobs` in a transaction of the caller's, mostly), and may commit. The same call waits for them again.
 */
export class ClaimsUnderWayError extends JobsError {
  readonly code = 'ERR_JOBS_CLAIMS_UNDER_WAY';

  constructor(
    /** How many of them there are. */
    readonly transactions: number,
  ) {
    super(
      `The pause holds, but ${transactions} ${transactions === 1 ? 'transaction that has' : 'transactions that have'} claimed ` +
        'jobs before it did not end in time. End them (pg_stat_activity, xact_start), or call again when they have ended.',
    );
  }
}
