// What a start says of a database that cannot be reached.
import { DatabaseUnavailableError } from '../jobs.errors.js';
import { isOfConnection, isRefused } from './database.errors.js';

export function atStart(error: DatabaseUnavailableError, waitedMs: number): DatabaseUnavailableError {
  if (!isOfConnection(error)) return error;
  const { message, cause } = error;
  const waited = `The start waited for ${waitedMs} ms (waitForDatabaseMs).`;
  const hint = isRefused(cause) ? '' : 'To wait for it at start instead of failing at once, set waitForDatabaseMs.';
  return new DatabaseUnavailableError(`${message} ${waitedMs ? waited : hint}`.trimEnd(), { cause });
}
