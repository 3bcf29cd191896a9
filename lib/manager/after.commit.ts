// What fails after a commit does not make it undone: the caller must not take it for a refusal.
import { DatabaseUnavailableError, StoppedError } from '../jobs.errors.js';

/** For what the sweep finds where it cannot be done now: the database is away, or the manager was closed. */
export async function unlessAway(work: Promise<void>): Promise<void> {
  await work.catch((error: unknown) => {
    if (!(error instanceof DatabaseUnavailableError || error instanceof StoppedError)) throw error;
  });
}

/** The failure of a look at what was stored: where there is no database to tell, the call is in doubt. */
export function inDoubt(failure: unknown): unknown {
  const error =
    failure instanceof StoppedError ? new DatabaseUnavailableError(failure.message, { cause: failure }) : failure;
  if (error instanceof DatabaseUnavailableError) error.inDoubt = true;
  return error;
}
