// Keeps a pool's claims alive: one heartbeat for all its jobs. It also brings news (jobs to cancel, a lease that was
// taken away) and frees the jobs of workers that went silent.
import { hostname } from 'node:os';
import type { WorkerSettings } from '../interfaces/jobs-options.interface.js';
import { CancelJob, LeaseLostError } from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import type { JobRunner } from './job.runner.js';

export interface LeaseKeeperParts {
  jobs: JobManager;
  runner: JobRunner;
  workerId: string;
  options: WorkerSettings;
  tasks: () => string[];
  onError: (error: unknown, context: string) => void;
}

export class LeaseKeeper {
  private timer: NodeJS.Timeout | null = null;
  private beating: Promise<void> | null = null;
  private renewedAt = 0;

  constructor(private readonly parts: LeaseKeeperParts) {}

  async start(): Promise<void> {
    await this.register();
    this.timer = setInterval(() => void this.beat(), this.parts.options.keepaliveMs);
  }

  /** One heartbeat, unless one is under way. Never rejects. */
  beat(): Promise<void> {
    this.beating ??= this.renew().finally(() => (this.beating = null));
    return this.beating;
  }

  /** Ends the lease at once if nothing is held any more; what is held goes by the lease's end. */
  async stop(holdsNothing: boolean): Promise<void> {
    if (this.timer) clearInterval(this.timer);
    this.timer = null;
    await this.beating;
    if (!holdsNothing) return;
    await this.parts.jobs.claims.unregisterWorker(this.parts.workerId).catch((error: unknown) => this.report(error));
  }

  private async register(): Promise<void> {
    const { jobs, workerId, options, tasks } = this.parts;
    const { concurrency, leaseMs } = options;
    const sentAt = performance.now();
    const host = hostname();
    await jobs.claims.registerWorker({ id: workerId, host, pid: process.pid, concurrency, tasks: tasks(), leaseMs });
    this.renewedAt = sentAt;
  }

  private async renew(): Promise<void> {
    const { jobs, workerId, runner } = this.parts;
    const sentAt = performance.now();
    try {
      const { expired, cancelRequested } = await jobs.claims.heartbeat(workerId, runner.runningIds());
      for (const id of cancelRequested) runner.abort(id, new CancelJob('the job was cancelled'));
      if (expired) await this.begin();
      this.renewedAt = sentAt;
      await jobs.claims.rescue();
    } catch (error) {
      this.report(error);
      this.abortIfTooLate();
    }
  }

  /** Taken for dead: what runs here has been, or will be, given to others. Start over with a lease of our own. */
  private async begin(): Promise<void> {
    this.abortAll();
    await this.register();
  }

  /** Nobody may run a job beyond its lease: abort while it still holds rather than find out afterwards. */
  private abortIfTooLate(): void {
    const { keepaliveMs, leaseMs } = this.parts.options;
    if (performance.now() - this.renewedAt > leaseMs - keepaliveMs / 2) this.abortAll();
  }

  private abortAll(): void {
    for (const id of this.parts.runner.runningIds()) this.parts.runner.abort(id, new LeaseLostError(id));
  }

  private report(error: unknown): void {
    this.parts.onError(error, 'renewing the lease');
  }
}
