// The transaction of one transactional attempt: what its handler writes, the jobs it adds and the settling of the job
// itself are committed together.
import type { SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { EntityManager } from '../interfaces/job.interface.js';
import type { JobSession } from '../storage/job.session.js';
import type { JobClaims } from './job.claims.js';
import type { JobManager } from './job.manager.js';

export class JobTransaction {
  private letIn: (() => Promise<void>) | null = null;

  constructor(
    private readonly session: JobSession,
    /** Bound to the transaction: what it adds is committed with it. */
    readonly jobs: JobManager,
    private readonly claims: JobClaims,
  ) {}

  get manager(): EntityManager {
    return this.session.manager;
  }

  /**
   * Settles the attempt inside the transaction; nobody sees it before `commit`.
   * @throws TransactionOverError unless the transaction is the one that was begun, and healthy
   */
  async settle(workerId: string, request: SettleRequest): Promise<SettleResult> {
    const { session, claims } = this;
    const settle = () => claims.settleWithin(session.manager, workerId, request);
    const { result, letIn } = await session.undisturbed(settle);
    this.letIn = letIn;
    return result;
  }

  async commit(): Promise<void> {
    await this.session.commit();
    // Committed is committed: what is not let in now is found by a sweep.
    await this.letIn?.().catch(() => undefined);
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
