// Attempts in a transaction of their own: what the handler writes through `ctx.manager` is committed together with the job's
// settling, or not at all.
import type { Claimer, Outcome, SettleResult } from '../interfaces/claim.interface.js';
import {
  DatabaseUnavailableError,
  InvalidStatusError,
  JobHeldError,
  JobTimeoutError,
  LeaseLostError,
  TransactionOverError,
} from '../jobs.errors.js';
import type { JobEngine } from '../manager/job.engine.js';
import { JobTransaction } from '../manager/job.transaction.js';
import { withReason } from '../storage/database.errors.js';
import { isCertainlyRolledBack, isDeadlock, isLockTimeout, isStatementTimeout } from '../storage/sql.states.js';
import { ended, readThrown, type Attempt, type DelayOf, type Ended } from './outcome.js';
import type { RunningAttempt } from './running.attempt.js';

/** Until a job comes back whose transaction could not begin, or was rolled back because of others' locks. */
const PUT_OFF_MS = 10_000;

interface TransactionalParts {
  jobs: { engine: JobEngine };
  claimer: () => Claimer;
  onError: (error: unknown, context: string) => void;
  onBegin?: (error: unknown) => void;
}

/** How one job is run, and what is made of its end. */
interface Run {
  attempt: () => Promise<Ended>;
  readFailure: (error: unknown) => Outcome;
  delayOf: DelayOf;
}

export class TransactionalRun {
  private readonly open = new Set<JobTransaction>();

  constructor(private readonly parts: TransactionalParts) {}

  async run(running: RunningAttempt, startedAt: number, run: Run): Promise<Attempt> {
    let transaction: JobTransaction;
    try {
      transaction = running.transaction = await this.begin(running);
    } catch (error) {
      return ended(running.job, this.readNotBegun(error, running, run), startedAt);
    }
    this.open.add(transaction);
    try {
      return await this.runWithin(transaction, running, run);
    } finally {
      this.open.delete(transaction);
    }
  }

  /** Cuts the transactions of attempts that were left behind. */
  async stop(): Promise<void> {
    await Promise.all([...this.open].map((transaction) => transaction.destroy()));
  }

  private async runWithin(transaction: JobTransaction, running: RunningAttempt, run: Run): Promise<Attempt> {
    const attempt = await run.attempt();
    if (!attempt.thrown && !running.leftBehind) {
      const context = `settling job ${running.job.id} in its transaction`;
      const onPutOff = (error: unknown): void => this.parts.onError(error, context);
      return settleInside(transaction, this.parts.claimer(), attempt, run.delayOf, onPutOff);
    }
    // A handler that was left behind must not go on writing in a transaction that ends without it.
    await (running.leftBehind || isLeftBehind(running) ? transaction.destroy() : transaction.rollback());
    return attempt;
  }

  private async begin(running: RunningAttempt): Promise<JobTransaction> {
    const onFailure = (error: unknown): void => this.report(error, running);
    const transaction = await JobTransaction.begin(this.parts.jobs.engine, running.signal, onFailure);
    this.parts.onBegin?.(null);
    return transaction;
  }

  private report(error: unknown, { job }: RunningAttempt): void {
    this.parts.onError(error, `beginning the transaction of job ${job.id}`);
    this.parts.onBegin?.(error);
  }

  /** Nothing has begun: the attempt does not count, and the job comes back after a while. */
  private readNotBegun(error: unknown, running: RunningAttempt, { readFailure }: Run): Outcome {
    if (running.isAborted) return readFailure(running.abortReason);
    // The database's absence has been told with each try.
    if (!(error instanceof DatabaseUnavailableError)) this.report(error, running);
    return putOff(error);
  }
}

const isLeftBehind = ({ abortReason }: RunningAttempt): boolean =>
  abortReason instanceof JobTimeoutError || abortReason instanceof LeaseLostError;

const putOff = (error: unknown): Outcome => ({
  kind: 'snoozed',
  delayMs: PUT_OFF_MS * (0.5 + Math.random()),
  error,
});

/**
 * The handler has answered: settle, then commit. Whatever goes wrong rolls both back, and the attempt is recorded by a second,
 * fenced statement. Where others' locks were in the way, the attempt does not count, and `onPutOff` hears why.
 */
async function settleInside(
  transaction: JobTransaction,
  claimer: Claimer,
  attempt: Attempt,
  delayOf: DelayOf,
  onPutOff: (error: unknown) => void,
): Promise<Attempt> {
  const failed = (error: unknown): Attempt => ({ ...attempt, outcome: readThrown(withReason(error), delayOf) });
  let result: SettleResult;
  try {
    result = await transaction.settle(claimer, attempt);
  } catch (error) {
    await transaction.rollback();
    if (!isInTheWay(error)) return failed(error);
    onPutOff(error);
    return { ...attempt, outcome: putOff(error) };
  }
  // Lost to another worker, or ended by the handler itself, through ctx.jobs: then the rollback brings the claim back, and
  // the attempt has to be settled. The second statement tells which.
  if (result.status === 'lost') {
    // Lost, or ended by the handler itself through ctx.jobs, which the rollback takes back: a fenced failure finds out.
    await transaction.rollback();
    return failed(endedItself(attempt.job.id));
  }
  // The job was to be cancelled while it ran: what it has written must not stay.
  if (result.status === 'cancelled') {
    await transaction.rollback();
    return { ...attempt, outcome: CANCELLED };
  }
  try {
    await transaction.commit();
    return { ...attempt, settled: result };
  } catch (error) {
    await transaction.destroy();
    const isRolledBack = error instanceof TransactionOverError || isCertainlyRolledBack(error);
    return isRolledBack ? failed(error) : { ...failed(error), inDoubt: true };
  }
}

/**
 * Others' locks, for as long as a settle waits, or the role's statement_timeout lets it. A settle waits for tables alone, so a
 * deadlock is one with a table's lock.
 */
const isInTheWay = (error: unknown): boolean =>
  error instanceof JobHeldError || isLockTimeout(error) || isDeadlock(error) || isStatementTimeout(error);

const CANCELLED: Outcome = { kind: 'cancelled', reason: null };

const endedItself = (jobId: string): InvalidStatusError =>
  new InvalidStatusError(jobId, 'ended by its handler, through ctx.jobs', 'running when its handler returns');
