// What goes wrong with retention only.
import { JobsError } from '../jobs.errors.js';

/**
 * Transactions have held locks on partitions at every try to drop or make some, for hours. Expired rows are deleted one by
 * one meanwhile, and the next try comes by itself.
 */
export class PartitionsHeldError extends JobsError {
  readonly code = 'ERR_JOBS_PARTITIONS_HELD';

  constructor(
    /** What could not be dropped, or of which table none could be made. */
    readonly partitions: string[],
    /** The sessions that hold locks on them now. */
    readonly holders: string[],
    heldMs: number,
  ) {
    super(
      `Partitions could be neither dropped nor made for ${Math.round(heldMs / 60_000)} minutes (${partitions.join(', ')}), ` +
        `because open transactions hold locks on them: ${holders.join('; ') || 'none at this moment'}. Expired rows are ` +
        'deleted one by one, which leaves work for vacuum. End these transactions, or move dumps away from the gc duty.',
    );
  }
}
