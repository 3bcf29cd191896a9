// What a failure of the database means: the only place that knows SQLSTATEs and a driver's error codes.
import { DatabaseExhaustedError, isExhaustedState, PoolerModeError } from '../database.refusals.js';
import type { QueryExecutor } from '../interfaces/job.interface.js';
import {
  DatabaseUnavailableError,
  InvalidArgumentError,
  JobsError,
  MissingPrivilegesError,
  RowsHeldError,
  SchemaOutdatedError,
  StoppedError,
  TransactionConflictError,
  TransactionOverError,
} from '../jobs.errors.js';
import { LOCK_TIMEOUT, codeOf, isPanic } from './sql.states.js';

/** The statement was never sent, or the server refused to begin: nothing can have happened. */
const NOT_BEGUN = new Set([
  'ECONNREFUSED',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EAI_FAIL',
  'EAI_NODATA',
  'EHOSTUNREACH',
  'EHOSTDOWN',
  'ENETUNREACH',
  'ENETDOWN',
  'EADDRNOTAVAIL',
  'EMFILE',
  'ENFILE',
  'ENOENT', // no such socket
  '57P03', // cannot_connect_now: it starts, stops or recovers
  '08001',
  '08004',
]);
/** The connection broke: it is unknown whether a statement under way was committed. */
const CUT = new Set([
  'ECONNRESET',
  'ECONNABORTED',
  'ETIMEDOUT',
  'EPIPE',
  'ENOTCONN',
  'ERR_STREAM_DESTROYED',
  'ERR_STREAM_WRITE_AFTER_END',
  '57P01', // admin_shutdown
  '57P02', // crash_shutdown
  '57P04', // database_dropped
  '57P05', // idle_session_timeout
  '25P03', // idle_in_transaction_session_timeout
  '25P04', // transaction_timeout
  '08000',
  '08003',
  '08006',
  '08007',
  '08P01', // what PgBouncer says of its own troubles
]);
const REFUSED = new Set(['28000', '28P01', '3D000']); // no such role, wrong password, no such database
const READ_ONLY = '25006';
/** Raised by claims, and by take_tokens. */
const UNFIT_LEVEL = '25004';
const MISSING_SCHEMA = new Set(['42P01', '3F000', '42703', '42704']); // table, schema, column, type
/** What pg says without a code. */
const NOT_BEGUN_MESSAGE =
  /timeout exceeded when trying to connect|timeout expired|due to connection timeout|Client (has encountered a connection error|was closed) and is not queryable/;
const CLOSED_MESSAGE = /Cannot use a pool after calling end on the pool/;
/** PgBouncer, to a BEGIN in statement mode, before it closes the connection. */
const STATEMENT_POOLING_MESSAGE = /transaction blocks not allowed in statement pooling mode/;
const CUT_MESSAGE = /Connection terminated|Query read timeout/;

/** Out of range, no date, no time, no interval, and (since PostgreSQL 17) infinite where a number is wanted. */
const MALFORMED = new Set(['22003', '22007', '22008', '22015', '0A000']);

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Handlers throw what they like, objects with hostile getters included. */
function codeOfAnything(error: unknown): string | undefined {
  try {
    return codeOf(error);
  } catch {
    return undefined;
  }
}

const SERIALIZATION: Record<string, string> = { '40001': 'serialization failure', '40P01': 'deadlock' };

/** Says in words why PostgreSQL gave up a transaction that may well succeed when it is repeated. */
export function withReason(error: unknown): unknown {
  const reason = SERIALIZATION[codeOfAnything(error) ?? ''];
  const cause = error instanceof TransactionConflictError ? error.cause : error;
  return reason ? new Error(`${reason}, rolled back: ${messageOf(cause)}`, { cause }) : error;
}

/** Whether an error is the violation of the named constraint. */
export const violates = (error: unknown, constraint: string): boolean =>
  (error as { constraint?: string } | null)?.constraint === constraint ||
  (error as { driverError?: { constraint?: string } } | null)?.driverError?.constraint === constraint;

/** Whether a row of that key is there already. */
export const isUniqueViolation = (error: unknown): boolean => codeOf(error) === '23505';

/** Whether PostgreSQL could not read a value's text (invalid, overflowing or endless date, time or interval). */
export const isMalformed = (error: unknown): boolean => MALFORMED.has(codeOf(error) ?? '');

/** Whether the server does not know the role, the password or the database: waiting for it does not help. */
export const isRefused = (error: unknown): boolean => REFUSED.has(codeOf(error) ?? '');

const UNFIT_LEVEL_TEXT =
  'Expected a transaction at read committed to claim jobs, to take tokens or to register a rate limit in, got one that keeps its first ' +
  'snapshot and knows neither what others have taken since nor what was paused since. Do it outside of the transaction.';

/** Whether the database can be read and not be written. */
export const isReadOnly = (error: unknown): boolean =>
  codeOf(error instanceof DatabaseUnavailableError ? error.cause : error) === READ_ONLY;

/** Whether a database that is away, or at its limits, may answer the same statement soon. */
export const mayAnswerSoon = (error: unknown): boolean =>
  error instanceof DatabaseUnavailableError && !(error instanceof DatabaseExhaustedError && !error.retriable);

/** Whether the connection is of no use any more, as far as an error tells. */
export const isOfConnection = (error: unknown): boolean =>
  error instanceof DatabaseUnavailableError && !(error instanceof DatabaseExhaustedError);

/** Puts a typed error in place of the driver's where the cause is known; keeps the original as `cause`. */
export function translateError(error: unknown, schema: string): unknown {
  if (error instanceof JobsError) return error;
  const failure = { error, code: codeOf(error) ?? '', message: messageOf(error), cause: { cause: error } };
  return ofTransaction(failure) ?? ofSetUp(failure, schema) ?? ofServer(failure) ?? ofConnection(failure) ?? error;
}

interface Failure {
  error: unknown;
  /** '' where there is none. */
  code: string;
  message: string;
  cause: { cause: unknown };
}

function ofTransaction({ code, cause }: Failure): JobsError | null {
  if (code === '25P02') {
    return new TransactionOverError(
      'Expected a healthy transaction, got one that an earlier error has aborted: PostgreSQL refuses everything in ' +
        'it until it is rolled back. Roll it back and start again.',
      cause,
    );
  }
  if (code === UNFIT_LEVEL) return new InvalidArgumentError([UNFIT_LEVEL_TEXT], cause);
  if (code === '40001' || code === '40P01') return new TransactionConflictError(code, cause);
  return code === LOCK_TIMEOUT ? new RowsHeldError(cause) : null;
}

function ofSetUp({ code, message, cause }: Failure, schema: string): JobsError | null {
  if (code === '42501') {
    return new MissingPrivilegesError(
      `The database's role may not do what millrace needs in schema "${schema}": ${message}. Have the ` +
        'owner of its tables run `npx millrace grant <enqueue|worker|admin> <role>`; only the owner can migrate.',
      cause,
    );
  }
  if (!MISSING_SCHEMA.has(code)) return null;
  return new SchemaOutdatedError(
    `Expected the tables of millrace in schema "${schema}", but: ${message}. Run the migrations (migrate: true, or ` +
      'JobsMigrator.migrate()), or correct the option "schema".',
    cause,
  );
}

/** It answers, but does not do what was asked. */
function ofServer({ error, code, message, cause }: Failure): JobsError | null {
  if (REFUSED.has(code)) {
    return new DatabaseUnavailableError(`The database refused the connection: ${message}. Check "connection".`, cause);
  }
  if (code === READ_ONLY) {
    return new DatabaseUnavailableError(
      `The database takes no writes: ${message}. It is a standby, a primary that was demoted, the role has ` +
        'default_transaction_read_only, or a transaction of yours was begun as read only; "connection" must lead to the ' +
        'primary.',
      cause,
    );
  }
  if (isExhaustedState(code) && !isPanic(error)) return new DatabaseExhaustedError(code, message, cause);
  return STATEMENT_POOLING_MESSAGE.test(message) ? new PoolerModeError(cause) : null;
}

function ofConnection({ error, code, message, cause }: Failure): JobsError | null {
  if (CLOSED_MESSAGE.test(message)) {
    return new StoppedError(
      'The connection pool was closed: the JobManager, or its DataSource, is not in use any more.',
      cause,
    );
  }
  const notBegun = NOT_BEGUN.has(code) || NOT_BEGUN_MESSAGE.test(message);
  if (!notBegun && !CUT.has(code) && !isPanic(error) && !CUT_MESSAGE.test(message)) return null;
  const told = `The database cannot be reached: ${message || code}. Check that it runs and that "connection" names it.`;
  const failure = new DatabaseUnavailableError(told, cause);
  failure.inDoubt = !notBegun;
  return failure;
}

interface Runner {
  isReleased?: boolean;
  isTransactionActive?: boolean;
}

interface Manager {
  queryRunner?: Runner;
  createQueryRunner?: unknown;
  connection?: { createQueryRunner?: unknown };
  dataSource?: { createQueryRunner?: unknown };
}

interface PgClient {
  totalCount?: unknown;
  connect?: unknown;
  _ending?: boolean;
  _ended?: boolean;
}

/**
 * @throws TransactionOverError where the executor's transaction is known to have ended, InvalidArgumentError where it is
 *   known to be none: each statement would commit by itself, some of them on connections of their own
 */
export function assertOpen(executor: QueryExecutor): void {
  const runner = (executor as Manager).queryRunner ?? (executor as Runner);
  if (typeof runner.isReleased === 'boolean' && (runner.isReleased || !runner.isTransactionActive)) {
    throw over('a TypeORM runner whose transaction has ended (a missing await, perhaps)');
  }
  const { _ending, _ended } = executor as PgClient;
  if (_ending || _ended) throw over('a pg client that was closed');
  const got = noTransaction(executor);
  if (got) throw new InvalidArgumentError([`Expected \`manager\` to be in a transaction, got ${got}. ${LEAVE_OUT}`]);
}

function noTransaction(executor: QueryExecutor): string | null {
  const manager = executor as Manager;
  if (manager.queryRunner || typeof (executor as Runner).isReleased === 'boolean') return null;
  if (typeof manager.createQueryRunner === 'function') return "TypeORM's DataSource";
  // TypeORM 0.3 says `connection`.
  if (typeof (manager.dataSource ?? manager.connection)?.createQueryRunner === 'function') {
    return "TypeORM's EntityManager outside of any transaction";
  }
  const client = executor as PgClient;
  return typeof client.connect === 'function' && typeof client.totalCount === 'number' ? 'a pg Pool' : null;
}

const LEAVE_OUT = 'Nothing was changed. To add jobs in a commit of their own, leave `manager` out.';

const over = (got: string): TransactionOverError =>
  new TransactionOverError(
    `Expected \`manager\` to be in a transaction that is still open, got ${got}. Nothing was inserted. Call and ` +
      'await addJob inside the transaction.',
  );

/** @throws TransactionOverError where a statement of a call found itself in another transaction than the call, and did nothing */
export function refuseEnded<Row>(rows: Row[]): Row[] {
  if (rows.length) return rows;
  throw new TransactionOverError(
    'Expected `manager` to be in a transaction, and that to be open until the call has ended, got a connection that is in ' +
      'none, or whose transaction has ended meanwhile (a missing await, or a rollback after another call had failed). The ' +
      'call has written nothing after the end. Begin a transaction, and await all calls before it ends.',
  );
}
