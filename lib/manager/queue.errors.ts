// How queues refuse jobs.
import { JobsError } from '../jobs.errors.js';

/** As many jobs wait in the queue as its `maxWaiting` allows; nothing was inserted of the whole call. */
export class QueueFullError extends JobsError {
  readonly code = 'ERR_JOBS_QUEUE_FULL';

  constructor(
    readonly queue: string,
    /** Its `maxWaiting`. */
    readonly limit: number,
    /** Jobs that wait in it, as far as this process knows: counted a second ago at most, up to the limit. */
    readonly found: number,
  ) {
    super(
      `Expected room in queue "${queue}", got ${found} waiting jobs where its maxWaiting is ${limit}. Add later, or raise it ` +
        '(configureQueue).',
    );
  }
}
