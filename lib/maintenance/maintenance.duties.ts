// What has to be done now and then, whoever does it: every process may do it, at any time, and nothing depends on its
// being on time.
import type { JobManager } from '../manager/job.manager.js';
import type { JobEvents } from '../monitoring/job.events.js';

export class MaintenanceDuties {
  private readonly underWay = new Set<Promise<void>>();
  private stopped = false;

  constructor(
    private readonly jobs: JobManager,
    private readonly events: JobEvents,
  ) {}

  /** Starts the next window of rate limits whose window has passed. Never rejects, like all duties. */
  refillRateLimits(): Promise<void> {
    // Each second in each process: where there are no limits, not even a look.
    if (!this.jobs.claims.mayHaveRateLimits) return Promise.resolve();
    return this.perform('refilling rate limits', [() => this.jobs.refillRateLimits()]);
  }

  /** Takes away overdue claims, and those of workers that died. */
  resetLockedJobs(): Promise<void> {
    return this.perform('resetting locked jobs', [() => this.jobs.resetLockedJobs()]);
  }

  /** Removes expired history, and queues and task names that nobody uses. */
  collectGarbage(): Promise<void> {
    return this.perform('collecting garbage', [
      () => this.jobs.gcJobHistory(),
      () => this.jobs.gcJobQueues(),
      () => this.jobs.gcTaskIdentifiers(),
    ]);
  }

  /** Begins nothing more, and waits for what is under way. */
  async stop(): Promise<void> {
    this.stopped = true;
    await Promise.all(this.underWay);
  }

  private perform(context: string, steps: (() => Promise<unknown>)[]): Promise<void> {
    const work = this.run(context, steps).finally(() => this.underWay.delete(work));
    this.underWay.add(work);
    return work;
  }

  /** The database may be away: the next time will do. */
  private async run(context: string, steps: (() => Promise<unknown>)[]): Promise<void> {
    try {
      for (const step of steps) if (!this.stopped && !this.jobs.claims.schemaGuard.refusal) await step();
    } catch (error) {
      this.events.emit('worker.error', null, { error, context });
    }
  }
}
