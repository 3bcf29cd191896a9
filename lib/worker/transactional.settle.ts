// The end of a transactional attempt whose handler has answered: settle, then commit, in one transaction. Whatever goes
// wrong rolls both back, and the attempt is recorded by a second, fenced statement. Where others' locks were in the way, the
// attempt does not count.
import type { Claimer, Outcome, SettleResult } from '../interfaces/claim.interface.js';
import { InvalidStatusError, JobHeldError, TransactionOverError } from '../jobs.errors.js';
import type { JobTransaction } from '../manager/job.transaction.js';
import {
  isCertainlyRolledBack,
  isDeadlock,
  isLockTimeout,
  isStatementTimeout,
  withReason,
} from '../storage/database.errors.js';
import { readThrown, type Attempt, type DelayOf } from './outcome.js';

/** Until a job comes back whose transaction could not begin, or was rolled back because of others' locks. */
const PUT_OFF_MS = 10_000;

export const putOff = (error: unknown): Outcome => ({
  kind: 'snoozed',
  delayMs: PUT_OFF_MS * (0.5 + Math.random()),
  error,
});

/** `onPutOff` hears why an attempt that has ended does not count. */
export async function settleInside(
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
