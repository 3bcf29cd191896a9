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
import type { ClaimedJob } from '../interfaces/job.interface.js';
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

/** How the jobs of a batch are run, and what is made of their ends. */
interface BatchedRun {
  attempt: () => Promise<Ended[]>;
  /** The same end for each. */
  endAll: (outcome: (readFailure: (error: unknown) => Outcome) => Outcome) => Attempt[];
  delayOf: (job: ClaimedJob) => DelayOf;
}

export class TransactionalRun {
  private readonly open = new Set<JobTransaction>();

  constructor(private readonly parts: TransactionalParts) {}

  async run(running: RunningAttempt, startedAt: number, run: Run): Promise<Attempt> {
    const [attempt] = await this.runAll(running, {
      attempt: async () => [await run.attempt()],
      endAll: (outcomeBy) => [ended(running.job, outcomeBy(run.readFailure), startedAt)],
      delayOf: () => run.delayOf,
    });
    return attempt!;
  }

  /** Runs jobs in one transaction, which settles all of them, or is rolled back. `running` stands for all. */
  async runAll(running: RunningAttempt, run: BatchedRun): Promise<Attempt[]> {
    let transaction: JobTransaction;
    try {
      transaction = running.transaction = await this.begin(running);
    } catch (error) {
      return run.endAll((readFailure) => this.readNotBegun(error, running, readFailure));
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

  private async runWithin(transaction: JobTransaction, running: RunningAttempt, run: BatchedRun): Promise<Attempt[]> {
    const attempts = await run.attempt();
    if (attempts.every(({ thrown }) => !thrown) && !running.leftBehind) {
      const context = `settling job ${running.job.id} in its transaction`;
      const onPutOff = (error: unknown): void => this.parts.onError(error, context);
      return settleInside(transaction, this.parts.claimer(), attempts, run.delayOf, onPutOff);
    }
    // A handler that was left behind must not go on writing in a transaction that ends without it.
    await (running.leftBehind || isLeftBehind(running) ? transaction.destroy() : transaction.rollback());
    return attempts;
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
  private readNotBegun(error: unknown, running: RunningAttempt, readFailure: Run['readFailure']): Outcome {
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
 * The handler has answered: settle, then commit. Whatever goes wrong rolls both back, and the attempts are recorded by a second,
 * fenced statement. Where others' locks were in the way, the attempts do not count, and `onPutOff` hears why.
 */
async function settleInside(
  transaction: JobTransaction,
  claimer: Claimer,
  attempts: Attempt[],
  delayOf: (job: ClaimedJob) => DelayOf,
  onPutOff: (error: unknown) => void,
): Promise<Attempt[]> {
  const failed = (error: unknown, one: Attempt): Attempt => ({
    ...one,
    outcome: readThrown(withReason(error), delayOf(one.job)),
  });
  const settled: Attempt[] = [];
  for (const attempt of attempts) {
    const result = await transaction.settle(claimer, attempt).catch((error: unknown) => ({ error }));
    if ('error' in result) {
      await transaction.rollback();
      if (!isInTheWay(result.error)) return attempts.map((one) => failed(result.error, one));
      onPutOff(result.error);
      return attempts.map((one) => ({ ...one, outcome: putOff(result.error) }));
    }
    const own = refusedEnd(attempt, result, (error) => failed(error, attempt));
    if (own) {
      await transaction.rollback();
      // The others had no part in it: they are given back, and run again without it.
      return attempts.map((one) => (one === attempt ? own : { ...one, outcome: RELEASED }));
    }
    settled.push({ ...attempt, settled: result });
  }
  try {
    await transaction.commit();
    return settled;
  } catch (error) {
    await transaction.destroy();
    const isRolledBack = error instanceof TransactionOverError || isCertainlyRolledBack(error);
    return attempts.map((one) => (isRolledBack ? failed(error, one) : { ...failed(error, one), inDoubt: true }));
  }
}

/** What becomes of an attempt that cannot be committed; null: it can. */
function refusedEnd(attempt: Attempt, { status }: SettleResult, failed: (error: unknown) => Attempt): Attempt | null {
  // Lost, or ended by the handler itself through ctx.jobs, which the rollback takes back: a fenced failure finds out.
  if (status === 'lost') return failed(endedItself(attempt.job.id));
  // The job was to be cancelled while it ran: what it has written must not stay.
  return status === 'cancelled' ? { ...attempt, outcome: CANCELLED } : null;
}

/**
 * Others' locks, for as long as a settle waits, or the role's statement_timeout lets it. A settle waits for tables alone, so a
 * deadlock is one with a table's lock.
 */
const isInTheWay = (error: unknown): boolean =>
  error instanceof JobHeldError || isLockTimeout(error) || isDeadlock(error) || isStatementTimeout(error);

const RELEASED: Outcome = { kind: 'released' };

const CANCELLED: Outcome = { kind: 'cancelled', reason: null };

const endedItself = (jobId: string): InvalidStatusError =>
  new InvalidStatusError(jobId, 'ended by its handler, through ctx.jobs', 'running when its handler returns');
