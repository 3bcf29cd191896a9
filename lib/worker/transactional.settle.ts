// The end of a transactional attempt whose handler has answered: settle, then commit, in one transaction. Whatever goes
// wrong rolls both back, and the attempt is recorded by a second, fenced statement.
import type { Claimer, Outcome, SettleResult } from '../interfaces/claim.interface.js';
import { LeaseLostError, TransactionOverError } from '../jobs.errors.js';
import type { JobTransaction } from '../manager/job.transaction.js';
import { isCertainlyRolledBack, withReason } from '../storage/database.errors.js';
import type { Attempt } from './job.runner.js';
import { readThrown, type DelayOf } from './outcome.js';

export async function settleInside(
  transaction: JobTransaction,
  claimer: Claimer,
  attempt: Attempt,
  delayOf: DelayOf,
): Promise<Attempt> {
  const failed = (error: unknown): Attempt => ({ ...attempt, outcome: readThrown(withReason(error), delayOf) });
  let result: SettleResult;
  try {
    if (!transaction.isOpen()) throw endedByHandler();
    result = await transaction.settle(claimer, attempt);
  } catch (error) {
    await transaction.rollback();
    return failed(error);
  }
  if (result.status === 'lost') {
    // Lost, or ended by the handler itself through ctx.jobs, which the rollback takes back: a fenced failure finds out.
    await transaction.rollback();
    return failed(new LeaseLostError(attempt.job.id));
  }
  // Somebody asked to cancel the job while it ran: what it has written must not stay.
  if (result.status === 'cancelled') {
    await transaction.rollback();
    return { ...attempt, outcome: CANCELLED };
  }
  try {
    await transaction.commit();
    return { ...attempt, settled: result };
  } catch (error) {
    await transaction.destroy();
    return isCertainlyRolledBack(error) ? failed(error) : { ...failed(error), inDoubt: true };
  }
}

const CANCELLED: Outcome = { kind: 'cancelled', reason: null };

const endedByHandler = (): TransactionOverError =>
  new TransactionOverError(
    'Expected the transaction of a transactional task to be open when its handler returns, but the handler has ended ' +
      'it. Leave commit and rollback to the library: return to commit, throw to roll back.',
  );
