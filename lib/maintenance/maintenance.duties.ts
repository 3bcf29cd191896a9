// What has to be done now and then, whoever does it: every process may do it, at any time, and nothing depends on its
// being on time.
import type { JobManager } from '../manager/job.manager.js';
import type { JobEvents } from '../monitoring/job.events.js';

/** One of them runs each second: a database in trouble is left alone for ever longer. */
const FIRST_REST_MS = 1_000;
const LONGEST_REST_MS = 30_000;
const LONGEST_STOP_MS = 5_000;

export class MaintenanceDuties {
  private readonly underWay = new Set<Promise<void>>();
  private stopped = false;
  private failures = 0;
  private restUntil = -Infinity;

  constructor(
    private readonly jobs: JobManager,
    private readonly events: JobEvents,
  ) {}

  /** Starts the next window of rate limits whose window has passed. Never rejects, like all duties. */
  refillRateLimits(): Promise<void> {
    return this.perform('refilling rate limits', [() => this.jobs.refillRateLimits()]);
  }

  /** Takes away overdue claims, and those of workers that died. */
  resetLockedJobs(): Promise<void> {
    return this.perform('resetting locked jobs', [() => this.jobs.resetLockedJobs()]);
  }

  /** Makes the next partitions now: until the garbage is collected for the first time, there are none. */
  makePartitions(): Promise<void> {
    return this.perform('making partitions', [() => this.jobs.retention.makePartitions()]);
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
    let timer: NodeJS.Timeout | undefined;
    await Promise.race([
      Promise.all(this.underWay),
      // Whatever it is, somebody else does it later.
      new Promise((resolve) => (timer = setTimeout(resolve, LONGEST_STOP_MS))),
    ]);
    clearTimeout(timer);
  }

  private perform(context: string, steps: (() => Promise<unknown>)[]): Promise<void> {
    const work = this.run(context, steps).finally(() => this.underWay.delete(work));
    this.underWay.add(work);
    return work;
  }

  /** The database may be away: the next time will do. */
  private async run(context: string, steps: (() => Promise<unknown>)[]): Promise<void> {
    if (performance.now() < this.restUntil) return;
    try {
      for (const step of steps) if (!this.stopped && !this.jobs.registry.schemaGuard.refusal) await step();
      this.failures = 0;
    } catch (error) {
      const ceiling = Math.min(LONGEST_REST_MS, FIRST_REST_MS * 2 ** this.failures++);
      this.restUntil = performance.now() + ceiling * (0.5 + Math.random() / 2);
      this.events.emit('worker.error', null, { error, context });
    }
  }
}
