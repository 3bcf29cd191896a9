// The transaction of one transactional attempt: what its handler writes, the jobs it adds and the settling of the job
// itself are committed together.
import type { Claimer, SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { EntityManager } from '../interfaces/job.interface.js';
import type { OpenTransaction } from '../storage/transaction.source.js';
import type { JobSettlement } from './job.settlement.js';
import type { JobManager } from './job.manager.js';

export class JobTransaction {
  private promote: (() => Promise<void>) | null = null;

  constructor(
    private readonly open: OpenTransaction,
    /** Bound to the transaction: what it adds is committed with it. */
    readonly jobs: JobManager,
    private readonly settlement: JobSettlement,
  ) {}

  get manager(): EntityManager {
    return this.open.manager;
  }

  isOpen(): boolean {
    return this.open.isOpen();
  }

  /** Settles the attempt inside the transaction; nobody sees it before `commit`. */
  async settle(claimer: Claimer, request: SettleRequest): Promise<SettleResult> {
    const { result, promote } = await this.settlement.settleWithin(this.open.manager, claimer, request);
    this.promote = promote;
    return result;
  }

  async commit(): Promise<void> {
    await this.open.commit();
    // Committed is committed: what does not go on now is found by a sweep.
    await this.promote?.().catch(() => undefined);
  }

  /** Never rejects. */
  async rollback(): Promise<void> {
    await this.open.rollback();
  }

  /** Ends it whatever the handler still does on it. Never rejects. */
  async destroy(): Promise<void> {
    await this.open.destroy().catch(() => undefined);
  }
}
