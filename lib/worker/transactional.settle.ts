// The end of a transactional attempt whose handler has answered: settle, then commit, in one transaction. Whatever goes
// wrong rolls both back, and the attempt is recorded by a second, fenced statement.
import type { Claimer, Outcome, SettleResult } from '../interfaces/claim.interface.js';
import { InvalidStatusError, TransactionOverError } from '../jobs.errors.js';
import type { JobTransaction } from '../manager/job.transaction.js';
import { isCertainlyRolledBack, withReason } from '../storage/database.errors.js';
import { readThrown, type Attempt, type DelayOf } from './outcome.js';

export async function settleInside(
  transaction: JobTransaction,
  claimer: Claimer,
  attempt: Attempt,
  delayOf: DelayOf,
): Promise<Attempt> {
  const failed = (error: unknown): Attempt => ({ ...attempt, outcome: readThrown(withReason(error), delayOf) });
  let result: SettleResult;
  try {
    result = await transaction.settle(claimer, attempt);
  } catch (error) {
    await transaction.rollback();
    return failed(error);
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

const CANCELLED: Outcome = { kind: 'cancelled', reason: null };

const endedItself = (jobId: string): InvalidStatusError =>
  new InvalidStatusError(jobId, 'ended by its handler, through ctx.jobs', 'running when its handler returns');
