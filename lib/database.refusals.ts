// Errors of databases and poolers that are there, but cannot do what they are asked for.
import { DatabaseUnavailableError, JobsError } from './jobs.errors.js';

/**
 * The pooler gives each statement a connection of its own (PgBouncer with `pool_mode = statement`) and refuses transactions,
 * which the library cannot do without.
 */
export class PoolerModeError extends JobsError {
  readonly code = 'ERR_JOBS_POOLER_MODE';

  constructor(options: ErrorOptions) {
    super(
      'Expected a pooler that keeps a connection for the length of a transaction, got one that pools by statement. Set ' +
        'pool_mode = transaction (or session) for this database in PgBouncer, or let "connection" lead past the pooler.',
      options,
    );
  }
}

/** What a database has run out of. */
export type DatabaseResource = 'disk' | 'temporary files' | 'memory' | 'connections';

const RESOURCES = {
  '53100': {
    resource: 'disk',
    reason: 'The disk of the database is full',
    advice: 'Free some space, or enlarge the disk; look for replication slots and archiving that keep WAL.',
  },
  '53400': {
    resource: 'temporary files',
    reason: 'The statement has reached a limit of the server',
    advice: 'Ask for less (a narrower filter, a smaller page), or raise the limit (temp_file_limit) of the role.',
  },
  '53200': {
    resource: 'memory',
    reason: 'The database is out of memory',
    advice:
      'Lower work_mem or max_connections, raise max_locks_per_transaction if it names it, or give it more memory.',
  },
  '53300': {
    resource: 'connections',
    reason: 'The database takes no more connections',
    advice: 'Close some, raise max_connections or the limit of the role, use smaller pools, or put PgBouncer in front.',
  },
} as const satisfies Record<string, { resource: DatabaseResource; reason: string; advice: string }>;

/** The SQLSTATEs of a DatabaseExhaustedError. */
export type ExhaustedState = keyof typeof RESOURCES;

export const isExhaustedState = (code: string | undefined): code is ExhaustedState =>
  code !== undefined && Object.hasOwn(RESOURCES, code);

/**
 * The database has run out of something: disk space (`sqlState` 53100), temporary files (53400), memory (53200) or connections
 * (53300). PostgreSQL has undone the statement. Workers keep their outcomes, and go on when there is enough again.
 */
export class DatabaseExhaustedError extends DatabaseUnavailableError {
  override readonly code = 'ERR_JOBS_DATABASE_EXHAUSTED';
  readonly resource: DatabaseResource;
  /** Whether the same call may succeed later, once there is more. A statement that reaches a limit reaches it each time. */
  readonly retriable: boolean;

  constructor(
    readonly sqlState: ExhaustedState,
    detail: string,
    options: ErrorOptions,
  ) {
    const { resource, reason, advice } = RESOURCES[sqlState];
    super(`${reason} (${sqlState}: ${detail}). Nothing was changed. ${advice}`, options);
    this.resource = resource;
    this.retriable = sqlState !== '53400';
  }
}
