// Every error the library throws: one class per cause, each with a stable `code`.

/** Base class of all errors of this library. */
export abstract class JobsError extends Error {
  /** Stable, for programs: `ERR_JOBS_…`. */
  abstract readonly code: string;

  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** Options given to the module, a decorator or a constructor are wrong; `problems` lists every one of them. */
export class InvalidOptionsError extends JobsError {
  readonly code = 'ERR_JOBS_INVALID_OPTIONS';

  constructor(readonly problems: string[]) {
    super(`Invalid options for millrace:\n${problems.map((problem) => `  - ${problem}`).join('\n')}`);
  }
}

/** Options given to a call (`addJob`, `getJobs`, …) are wrong; nothing was changed. */
export class InvalidArgumentError extends JobsError {
  readonly code: 'ERR_JOBS_INVALID_ARGUMENT' | 'ERR_JOBS_STEP_RESULT' | 'ERR_JOBS_RATE_LIMIT_WEIGHT' =
    'ERR_JOBS_INVALID_ARGUMENT';

  constructor(
    readonly problems: string[],
    options?: ErrorOptions,
  ) {
    super(problems.join(' '), options);
  }
}

/** Neither `connection` nor `dataSource` was given, and the application has no default TypeORM DataSource. */
export class NoConnectionError extends JobsError {
  readonly code = 'ERR_JOBS_NO_CONNECTION';
}

/** The database cannot be reached, or takes no writes; the same call may succeed later. */
export class DatabaseUnavailableError extends JobsError {
  readonly code: 'ERR_JOBS_DATABASE_UNAVAILABLE' | 'ERR_JOBS_DATABASE_EXHAUSTED' = 'ERR_JOBS_DATABASE_UNAVAILABLE';
  /** Whether what was asked for may have been done: the connection broke, or was silent, after it had been sent. */
  inDoubt = false;
}

/** A pool stopped while the database was away: these jobs run again, although their handlers have ended. */
export class OutcomesUnwrittenError extends JobsError {
  readonly code = 'ERR_JOBS_OUTCOMES_UNWRITTEN';

  constructor(readonly jobIds: string[]) {
    const some = jobIds.slice(0, 10).join(', ');
    super(`Stopped before the database took the outcomes of ${jobIds.length} jobs, which run again soon: ${some}.`);
  }
}

/** The database's role may not do what the library needs. */
export class MissingPrivilegesError extends JobsError {
  readonly code = 'ERR_JOBS_MISSING_PRIVILEGES';
}

/** The schema does not exist or is behind, and `migrate` is off. */
export class SchemaOutdatedError extends JobsError {
  readonly code = 'ERR_JOBS_SCHEMA_OUTDATED';
}

/** The schema was migrated by a newer version of the library. */
export class SchemaTooNewError extends JobsError {
  readonly code = 'ERR_JOBS_SCHEMA_TOO_NEW';
}

/** Two handlers claim one task name. */
export class DuplicateTaskError extends JobsError {
  readonly code = 'ERR_JOBS_DUPLICATE_TASK';

  constructor(
    readonly task: string,
    readonly handlers: [string, string],
  ) {
    super(`Expected one handler for task "${task}", got ${handlers[0]} and ${handlers[1]}. ${adviceFor(handlers)}`);
  }
}

/** The very same method twice is one provider in two modules; its source ends with ` in <module>`. */
function adviceFor([one, other]: [string, string]): string {
  const methodOf = (source: string): string => source.split(' in ')[0]!;
  return methodOf(one) === methodOf(other)
    ? 'The provider stands in the providers of both modules: provide it in one, export it there, and import that ' +
        'module in the other.'
    : 'Rename one of them, or give them different instances by @Task(name, { instance }).';
}

/** One thing that is wrong with a payload. */
export interface PayloadIssue {
  /** Dotted path of the property; empty for the payload itself. */
  path: string;
  message: string;
}

/** The payload does not satisfy the task's schema; nothing was inserted. */
export class PayloadValidationError extends JobsError {
  readonly code = 'ERR_JOBS_PAYLOAD_INVALID';

  constructor(
    readonly task: string,
    readonly issues: PayloadIssue[],
  ) {
    super(
      `The payload of task "${task}" is not valid: ` +
        issues.map(({ path, message }) => (path ? `${path}: ${message}` : message)).join('; '),
    );
  }
}

/** The payload cannot be written as JSON; nothing was inserted. */
export class PayloadNotSerializableError extends JobsError {
  readonly code = 'ERR_JOBS_PAYLOAD_NOT_SERIALIZABLE';

  constructor(
    readonly task: string,
    reason: string,
    options?: ErrorOptions,
  ) {
    super(`The payload of task "${task}" cannot be stored as JSON: ${reason}`, options);
  }
}

/** The payload is larger than `maxPayloadBytes`; nothing was inserted. */
export class PayloadTooLargeError extends JobsError {
  readonly code = 'ERR_JOBS_PAYLOAD_TOO_LARGE';

  constructor(
    readonly task: string,
    readonly bytes: number,
    readonly maxBytes: number,
  ) {
    super(
      `The payload of task "${task}" has ${bytes} bytes of JSON, expected at most ${maxBytes}. Store large data ` +
        'elsewhere and enqueue a reference to it, or raise maxPayloadBytes.',
    );
  }
}

/** Something needs an optional package that is not installed. */
export class MissingPackageError extends JobsError {
  readonly code = 'ERR_JOBS_MISSING_PACKAGE';

  constructor(
    readonly packages: string[],
    needed: string,
    options?: ErrorOptions,
  ) {
    super(
      `${needed} needs ${packages.join(' and ')}, which cannot be loaded. Run: npm install ${packages.join(' ')}`,
      options,
    );
  }
}

/** A job names a rate limit that was never registered; nothing was inserted. */
export class UnknownRateLimitError extends JobsError {
  readonly code = 'ERR_JOBS_UNKNOWN_RATE_LIMIT';

  constructor(readonly keys: string[]) {
    super(
      `Expected registered rate limits, got ${keys.map((key) => `"${key}"`).join(', ')}. Call ` +
        'registerRateLimit(key, capacity, interval) before adding jobs that name it.',
    );
  }
}

/** `dependsOn` names unknown jobs; nothing was inserted. */
export class UnknownParentError extends JobsError {
  readonly code = 'ERR_JOBS_UNKNOWN_PARENT';

  constructor(readonly jobIds: string[]) {
    super(
      `Expected dependsOn to name jobs that exist, got ${jobIds.join(', ')}. Add parents first, in the same ` +
        'transaction or in one that was committed.',
    );
  }
}

/**
 * The transaction handed to `addJob` is already committed, rolled back or aborted, or ended while the call was under way: from
 * then on nothing was inserted.
 */
export class TransactionOverError extends JobsError {
  readonly code = 'ERR_JOBS_TRANSACTION_OVER';
}

/**
 * PostgreSQL has undone the transaction because of what others did at the same time: a serialization failure (`sqlState`
 * 40001) or a deadlock (40P01). Nothing of it remains. Roll back, and repeat the whole transaction.
 */
export class TransactionConflictError extends JobsError {
  readonly code = 'ERR_JOBS_TRANSACTION_CONFLICT';

  constructor(
    readonly sqlState: '40001' | '40P01',
    options: { cause: unknown },
  ) {
    const { cause } = options;
    const reason = cause instanceof Error ? cause.message : String(cause);
    super(
      `The transaction was undone because of others at the same time (${sqlState}: ${reason}). Roll it back, and ` +
        'repeat all of it.',
      options,
    );
  }
}

/** Bringing the jobs back would give a job key to two live jobs; none was changed. */
export class JobKeyConflictError extends JobsError {
  readonly code = 'ERR_JOBS_JOB_KEY_CONFLICT';

  constructor(readonly jobKeys: string[]) {
    super(
      `Expected job keys that no other live job holds, got ${jobKeys.map((key) => `"${key}"`).join(', ')}. Cancel ` +
        'or wait for the jobs that hold them.',
    );
  }
}

/** A worker's id is too short to be unique. */
export class InvalidWorkerIdError extends JobsError {
  readonly code = 'ERR_JOBS_INVALID_WORKER_ID';
}

/** No job has the id. */
export class JobNotFoundError extends JobsError {
  readonly code = 'ERR_JOBS_JOB_NOT_FOUND';

  constructor(readonly jobId: string) {
    super(`No job has the id ${jobId}; it may have been purged or its transaction may not have committed.`);
  }
}

/** The job is in a status in which the call makes no sense. */
export class InvalidStatusError extends JobsError {
  readonly code = 'ERR_JOBS_INVALID_STATUS';

  constructor(
    readonly jobId: string,
    readonly status: string,
    expected: string,
  ) {
    super(`Expected job ${jobId} to be ${expected}, but it is ${status}.`);
  }
}

/** The job is claimed by another worker. */
export class WrongOwnerError extends JobsError {
  readonly code = 'ERR_JOBS_WRONG_OWNER';

  constructor(
    readonly jobId: string,
    readonly owner: string | null,
    workerId: string,
  ) {
    super(`Expected job ${jobId} to be claimed by ${workerId}, but it is claimed by ${owner ?? 'no worker'}.`);
  }
}

/** The claim's lease ran out before it was extended. */
export class LeaseExpiredError extends JobsError {
  readonly code = 'ERR_JOBS_LEASE_EXPIRED';

  constructor(readonly jobId: string) {
    super(
      `The lease on job ${jobId} has expired; others may claim it. Extend earlier, or claim with a longer leaseMs.`,
    );
  }
}

/** The job's payload is not there, or JavaScript cannot read it: SQL may have stored it. The job is failed for good. */
export class UnreadableJobError extends JobsError {
  readonly code = 'ERR_JOBS_UNREADABLE';

  constructor(cause: unknown) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    super(`The job cannot be read: ${reason}. Its row was not written by this library, or was changed by hand.`, {
      cause,
    });
  }
}

/** The claim was taken away; its former holder must stop. */
export class LeaseLostError extends JobsError {
  readonly code = 'ERR_JOBS_LEASE_LOST';

  constructor(readonly jobId: string) {
    super(`The claim on job ${jobId} was taken away; it is or will be run by another worker.`);
  }
}

/** Open transactions hold these jobs, so the call could not change them in time. What it could change, it has changed. */
export class JobHeldError extends JobsError {
  readonly code = 'ERR_JOBS_HELD';

  constructor(readonly jobIds: string[]) {
    super(
      `Open transactions hold ${jobIds.length === 1 ? 'job' : 'jobs'} ${jobIds.join(', ')}: perhaps a handler that called ` +
        'ctx.assertOwned. End them (pg_stat_activity, xact_start), or call again when they have ended.',
    );
  }
}

/**
 * Another session holds what the call needs, and did not let go of it in time: rows, or a table as a whole (LOCK TABLE,
 * ALTER TABLE, VACUUM FULL, CLUSTER, REINDEX). The call has changed nothing. The same call may succeed later.
 */
export class RowsHeldError extends JobsError {
  readonly code = 'ERR_JOBS_ROWS_HELD';

  constructor(options: ErrorOptions) {
    super(
      'Another session holds rows that this call needs (a queue, a rate limit, a job key, a job), or has locked their ' +
        'table. End its transaction (pg_stat_activity, xact_start), or call again when it has ended.',
      options,
    );
  }
}

/** The job would wait for itself, through other jobs: none of them could ever run. Nothing was inserted. */
export class DependencyCircleError extends JobsError {
  readonly code = 'ERR_JOBS_DEPENDENCY_CIRCLE';

  constructor(
    /** Ids, from the job through what it waits for back to itself. */
    readonly path: string[],
  ) {
    super(`Expected dependsOn to lead to no circle, got ${path.join(' → ')}. Leave one of these out.`);
  }
}

/** The record has changed since the given revision. */
export class RevisionConflictError extends JobsError {
  readonly code = 'ERR_JOBS_REVISION_CONFLICT';

  constructor(
    readonly jobId: string,
    readonly expected: number,
    readonly actual: number,
  ) {
    super(`Expected revision ${expected} of job ${jobId}, but it is at ${actual}. Read it and decide again.`);
  }
}

/** `workOnce` was called where no handlers are known. */
export class NoHandlersError extends JobsError {
  readonly code = 'ERR_JOBS_NO_HANDLERS';

  constructor() {
    super(
      'Expected handlers for workOnce, got none: this JobManager knows no tasks. Inject the manager of JobsModule, or ' +
        'make a pool with createWorkerPool({ jobs, tasks }) first; it need not be started.',
    );
  }
}

/** `waitForJob` ran out of time. */
export class WaitTimeoutError extends JobsError {
  readonly code = 'ERR_JOBS_WAIT_TIMEOUT';
}

/** `start()` was called on something that runs already. */
export class AlreadyRunningError extends JobsError {
  readonly code = 'ERR_JOBS_ALREADY_RUNNING';
}

/** Something that was stopped for good is used again. */
export class StoppedError extends JobsError {
  readonly code = 'ERR_JOBS_STOPPED';
}

/**
 * A handler used its context after its attempt had ended: after it had returned or thrown, or after its time was over.
 * What it asked for was not done. `cause`: why the attempt was aborted, if it was.
 */
export class AttemptOverError extends JobsError {
  readonly code = 'ERR_JOBS_ATTEMPT_OVER';

  constructor(
    readonly jobId: string,
    options?: ErrorOptions,
  ) {
    super(
      `This attempt of job ${jobId} has ended (a missing await, or a handler that goes on after its time).`,
      options,
    );
  }
}

/** What a step returned cannot be kept. Its work is done, and a retry would do it again: the job fails for good. */
export class StepResultError extends InvalidArgumentError {
  override readonly code = 'ERR_JOBS_STEP_RESULT';

  constructor(
    readonly step: string,
    reason: InvalidArgumentError,
  ) {
    super(reason.problems, { cause: reason.cause ?? reason });
  }
}

/** An attempt ran longer than its `timeoutMs`. */
export class JobTimeoutError extends JobsError {
  readonly code = 'ERR_JOBS_TIMEOUT';

  constructor(readonly timeoutMs: number) {
    super(`The attempt ran longer than ${timeoutMs} ms.`);
  }
}

/** Why `ctx.signal` aborts while the pool stops. */
export class ShutdownError extends JobsError {
  readonly code = 'ERR_JOBS_SHUTDOWN';
}

/** No handler is registered for the task, and `unknownTasks` is 'exhaust'. */
export class UnknownTaskError extends JobsError {
  readonly code = 'ERR_JOBS_UNKNOWN_TASK';
}

/**
 * Throw it in a handler to exhaust the job at once, whatever attempts are left.
 *
 * @example
 * throw new PermanentFailure('the customer no longer exists');
 */
export class PermanentFailure extends JobsError {
  readonly code = 'ERR_JOBS_PERMANENT_FAILURE';
}

/**
 * Throw it in a handler to cancel the job: no retry, and no failure either.
 *
 * @example
 * throw new CancelJob('the order was withdrawn');
 */
export class CancelJob extends JobsError {
  readonly code = 'ERR_JOBS_CANCELLED';
}

/** Something that is encrypted cannot be decrypted here: this process lacks the key, or has another one by that id. */
export class DecryptionError extends JobsError {
  readonly code = 'ERR_JOBS_DECRYPTION';

  constructor(
    /** The id of the key that it was encrypted with. */
    readonly keyId: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}
