// What a failure of the database means: the only place that knows SQLSTATEs and a driver's error codes.
import type { QueryExecutor } from '../interfaces/job.interface.js';
import {
  DatabaseUnavailableError,
  JobsError,
  MissingPrivilegesError,
  SchemaOutdatedError,
  TransactionOverError,
} from '../jobs.errors.js';

const UNAVAILABLE = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'ENOTFOUND',
  'EAI_AGAIN',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'EPIPE',
  'ENOENT',
  '57P01', // admin_shutdown
  '57P02', // crash_shutdown
  '57P03', // cannot_connect_now
  '53300', // too_many_connections
  '08000',
  '08001',
  '08003',
  '08004',
  '08006',
]);
const REFUSED = new Set(['28000', '28P01', '3D000']); // no such role, wrong password, no such database
const MISSING_SCHEMA = new Set(['42P01', '3F000', '42703', '42704']); // table, schema, column, type
const BROKEN =
  /Connection terminated|timeout exceeded when trying to connect|Client has encountered a connection error/;

/** Transient failures of a statement that did nothing and can be repeated as it is. */
const REPEATABLE = new Set(['40001', '40P01', '55P03', '57014']); // serialization, deadlock, lock, statement timeout

/** Out of range, no date, no time, no interval, and (since PostgreSQL 17) infinite where a number is wanted. */
const MALFORMED = new Set(['22003', '22007', '22008', '22015', '0A000']);

const codeOf = (error: unknown): string | undefined => {
  const code = (error as { code?: unknown } | null)?.code;
  // Node tries several addresses of a host and wraps their failures.
  const inner = (error as { errors?: { code?: string }[] } | null)?.errors?.[0]?.code;
  return typeof code === 'string' ? code : inner;
};

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Whether the same call may succeed later without anybody changing anything. */
export function isTransient(error: unknown): boolean {
  if (error instanceof DatabaseUnavailableError) return true;
  const code = codeOf(error) ?? codeOf((error as { cause?: unknown } | null)?.cause);
  return code !== undefined && REPEATABLE.has(code);
}

/** Whether a statement gave up waiting for somebody else's lock. */
export const isLockTimeout = (error: unknown): boolean => codeOf(error) === '55P03';

/** Whether somebody else's locks were in the way: given up waiting, or chosen to end a deadlock. */
export const isContention = (error: unknown): boolean => ['55P03', '40P01', '40001'].includes(codeOf(error) ?? '');

/** Whether an outcome's values are at fault, so that repeating the call would not help. */
export const isDataFault = (error: unknown): boolean => /^(22|23|54)/.test(codeOf(error) ?? '');

/** Whether a commit that failed has rolled back: the server said so. Where the connection broke, nobody knows. */
export const isCertainlyRolledBack = (error: unknown): boolean => /^(40|23|25|P0|22)/.test(codeOf(error) ?? '');

const SERIALIZATION: Record<string, string> = { '40001': 'serialization failure', '40P01': 'deadlock' };

/** Says in words why PostgreSQL gave up a transaction that may well succeed when it is repeated. */
export function withReason(error: unknown): unknown {
  const reason = SERIALIZATION[codeOf(error) ?? ''];
  return reason ? new Error(`${reason}, rolled back: ${messageOf(error)}`, { cause: error }) : error;
}

/** Whether an error is the violation of the named constraint. */
export const violates = (error: unknown, constraint: string): boolean =>
  (error as { constraint?: string } | null)?.constraint === constraint ||
  (error as { driverError?: { constraint?: string } } | null)?.driverError?.constraint === constraint;

/** Whether a row of that key is there already. */
export const isUniqueViolation = (error: unknown): boolean => codeOf(error) === '23505';

/** Whether PostgreSQL could not read a value's text (invalid, overflowing or endless date, time or interval). */
export const isMalformed = (error: unknown): boolean => MALFORMED.has(codeOf(error) ?? '');

/** Puts a typed error in place of the driver's where the cause is known; keeps the original as `cause`. */
export function translateError(error: unknown, schema: string): unknown {
  if (error instanceof JobsError) return error;
  const code = codeOf(error);
  const message = messageOf(error);
  const cause = { cause: error };
  if (code === '25P02') {
    return new TransactionOverError(
      'Expected a healthy transaction, got one that an earlier error has aborted: PostgreSQL refuses everything in ' +
        'it until it is rolled back. Roll it back and start again.',
      cause,
    );
  }
  if (code === '42501') {
    return new MissingPrivilegesError(
      `The database's role may not do what millrace needs in schema "${schema}": ${message}. Have the ` +
        'owner of its tables run `npx millrace grant <enqueue|worker|admin> <role>`; migrations need the owner himself.',
      cause,
    );
  }
  if (code !== undefined && MISSING_SCHEMA.has(code)) {
    return new SchemaOutdatedError(
      `Expected the tables of millrace in schema "${schema}", but: ${message}. Run the migrations (migrate: true, or ` +
        'JobsMigrator.migrate()), or correct the option "schema".',
      cause,
    );
  }
  if (code !== undefined && REFUSED.has(code)) {
    return new DatabaseUnavailableError(`The database refused the connection: ${message}. Check "connection".`, cause);
  }
  if ((code !== undefined && UNAVAILABLE.has(code)) || BROKEN.test(message)) {
    return new DatabaseUnavailableError(
      `The database cannot be reached: ${message || code}. Check that it runs and that "connection" names it.`,
      cause,
    );
  }
  return error;
}

interface Runner {
  isReleased?: boolean;
  isTransactionActive?: boolean;
}

/** @throws TransactionOverError where the executor's transaction is known to have ended. */
export function refuseIfOver(executor: QueryExecutor): void {
  const { queryRunner } = executor as { queryRunner?: Runner };
  const runner = queryRunner ?? (executor as Runner);
  if (typeof runner.isReleased === 'boolean' && (runner.isReleased || !runner.isTransactionActive)) {
    throw over('a TypeORM runner whose transaction has ended (a missing await, perhaps)');
  }
  const { _ending, _ended } = executor as { _ending?: boolean; _ended?: boolean };
  if (_ending || _ended) throw over('a pg client that was closed');
}

const over = (got: string): TransactionOverError =>
  new TransactionOverError(
    `Expected \`manager\` to be in a transaction that is still open, got ${got}. Nothing was inserted. Call and ` +
      'await addJob inside the transaction.',
  );
