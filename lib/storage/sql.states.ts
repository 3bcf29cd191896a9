// What PostgreSQL's error codes mean for a call: whether it may be repeated, and what has become of it.
import { DatabaseExhaustedError } from '../database.refusals.js';
import { RowsHeldError, TransactionConflictError } from '../jobs.errors.js';

export const LOCK_TIMEOUT = '55P03';

/** PostgreSQL undid the statement, or the whole transaction, because of what others did meanwhile. */
const CONFLICT = new Set(['40001', '40P01']);

export const codeOf = (error: unknown): string | undefined => {
  if (error instanceof TransactionConflictError || error instanceof DatabaseExhaustedError) return error.sqlState;
  if (error instanceof RowsHeldError) return LOCK_TIMEOUT;
  const code = (error as { code?: unknown } | null)?.code;
  // Node tries several addresses of a host and wraps their failures.
  const inner = (error as { errors?: { code?: string }[] } | null)?.errors?.[0]?.code;
  return typeof code === 'string' ? code : inner;
};

/** Whether nothing has happened and the same statement (or transaction) may well succeed at once: a conflict, a deadlock. */
export const isConflict = (error: unknown): boolean => CONFLICT.has(codeOf(error) ?? '');

/** Whether a statement took longer than the server's `statement_timeout` allows. */
export const isStatementTimeout = (error: unknown): boolean => codeOf(error) === '57014';

/** Whether a statement gave up waiting for another transaction's lock. */
export const isLockTimeout = (error: unknown): boolean => codeOf(error) === LOCK_TIMEOUT;

/** The longest pause before what failed with it is tried again: a lock costs the database nothing, and is gone from one moment to the next. */
export const maxPauseMs = (error: unknown): number | undefined => (isLockTimeout(error) ? 1_000 : undefined);

/** Whether something of that name is there already: a table, a function, a type or another object. */
export const isDuplicateObject = (error: unknown): boolean => ['42P07', '42723', '42710'].includes(codeOf(error) ?? '');

export const isDeadlock = (error: unknown): boolean => codeOf(error) === '40P01';

/** Whether another transaction's locks were in the way: the statement gave up, or was chosen to end a deadlock. */
export const isContention = (error: unknown): boolean => [LOCK_TIMEOUT, '40P01', '40001'].includes(codeOf(error) ?? '');

/** Whether an outcome's values are at fault, so that repeating the call would not help. */
export const isDataFault = (error: unknown): boolean => /^(22|23|54)/.test(codeOf(error) ?? '');

/** Whether a commit that failed has rolled back, as the server said. If the connection broke, that is unknown. */
export const isCertainlyRolledBack = (error: unknown): boolean =>
  /^(40|23|25|P0|22)/.test(codeOf(error) ?? '') && !isPanic(error);

/** The server goes down, and what it was about to commit may come back with it. pg tells the word in the server's language. */
export const isPanic = (error: unknown): boolean =>
  /^(p[aâ]ni|паник)/i.test(String((error as { severity?: unknown } | null)?.severity));
