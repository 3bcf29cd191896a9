// The transaction of one transactional attempt: what its handler writes, the jobs it adds and the settling of the job
// itself are committed together.
import type { SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { EntityManager } from '../interfaces/job.interface.js';
import type { OpenTransaction } from '../storage/transaction.source.js';
import type { JobClaims } from './job.claims.js';
import type { JobManager } from './job.manager.js';

export class JobTransaction {
  private letIn: (() => Promise<void>) | null = null;

  constructor(
    private readonly open: OpenTransaction,
    /** Bound to the transaction: what it adds is committed with it. */
    readonly jobs: JobManager,
    private readonly claims: JobClaims,
  ) {}

  get manager(): EntityManager {
    return this.open.manager;
  }

  isOpen(): boolean {
    return this.open.isOpen();
  }

  /** Settles the attempt inside the transaction; nobody sees it before `commit`. */
  async settle(workerId: string, request: SettleRequest): Promise<SettleResult> {
    const { result, letIn } = await this.claims.settleWithin(this.open.manager, workerId, request);
    this.letIn = letIn;
    return result;
  }

  async commit(): Promise<void> {
    await this.open.commit();
    // Committed is committed: whoever is not let in now is found by a sweep.
    await this.letIn?.().catch(() => undefined);
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
