// The transaction of one transactional attempt: what its handler writes, the jobs it adds and the settling of the job
// itself are committed together.
import type { Claimer, SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { EntityManager } from '../interfaces/typeorm.interface.js';
import type { JobSession } from '../storage/job.session.js';
import type { JobSettlement } from './job.settlement.js';
import type { JobEngine } from './job.engine.js';

export class JobTransaction {
  private readonly promotions: (() => Promise<void>)[] = [];

  /** For one attempt of a transactional task. Waits for a free connection; see TransactionSource. */
  static async begin(
    engine: JobEngine,
    signal: AbortSignal,
    onFailure: (error: unknown) => void,
  ): Promise<JobTransaction> {
    const session = await engine.transactions.begin(signal, onFailure);
    return new JobTransaction(session, engine.within(session.manager), engine.settlement);
  }

  private constructor(
    private readonly session: JobSession,
    /** Bound to the transaction: what it adds is committed with it. */
    readonly engine: JobEngine,
    private readonly settlement: JobSettlement,
  ) {}

  get manager(): EntityManager {
    return this.session.manager;
  }

  /**
   * Settles an attempt inside the transaction; others see it after `commit`.
   * @throws TransactionOverError unless the transaction is the one that was begun, and healthy
   */
  async settle(claimer: Claimer, request: SettleRequest): Promise<SettleResult> {
    const { session, settlement } = this;
    const settle = () => settlement.settleWithin(session.manager, claimer, request);
    const { result, promote } = await session.undisturbed(settle);
    this.promotions.push(promote);
    return result;
  }

  async commit(): Promise<void> {
    await this.session.commit();
    // Committed is committed: what does not go on now is found by a sweep.
    for (const promote of this.promotions) await promote().catch(() => undefined);
  }

  /** Never rejects. */
  async rollback(): Promise<void> {
    await this.session.rollback();
  }

  /** Ends it whatever the handler still does on it. Never rejects. */
  async destroy(): Promise<void> {
    await this.session.destroy().catch(() => undefined);
  }
}
