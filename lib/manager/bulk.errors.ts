// What goes wrong with bulk actions only.
import { JobsError } from '../jobs.errors.js';

/** No bulk action has the id; it may have been forgotten, as history is. */
export class BulkActionNotFoundError extends JobsError {
  readonly code = 'ERR_JOBS_BULK_ACTION_NOT_FOUND';

  constructor(readonly actionId: string) {
    super(
      `No bulk action has the id ${actionId}; it may have been forgotten, or its transaction may not have committed.`,
    );
  }
}
