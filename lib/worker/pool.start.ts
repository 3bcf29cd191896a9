// How a pool starts: step by step, each of which may take long. A start that fails, or that a stop interrupts, leaves nothing
// behind.
import { StoppedError } from '../jobs.errors.js';
import type { JobNotifier } from '../storage/job.notifier.js';
import type { CronScheduler } from './cron.scheduler.js';
import type { Heartbeat } from './heartbeat.js';

export interface PoolStartParts {
  workerId: string;
  heartbeat: Heartbeat;
  notifier: JobNotifier | null;
  scheduler: CronScheduler | undefined;
}

export class PoolStart {
  private underWay: Promise<void> | null = null;

  constructor(private readonly parts: PoolStartParts) {}

  /** @throws StoppedError where a stop interrupts it, and what a step throws */
  begin(prepare: () => Promise<void>, isStopping: () => boolean): Promise<void> {
    return (this.underWay = this.run(prepare, isStopping));
  }

  /** Ends what a start that has failed has begun. Never rejects. */
  async undo(): Promise<void> {
    const { heartbeat, notifier, scheduler } = this.parts;
    await Promise.all([scheduler?.stop(), heartbeat.stop(true), notifier?.stop()] as Promise<void>[]);
  }

  /** Waits for a start under way: the scheduler, which was stopped already, may have begun since. Never rejects. */
  async ended(): Promise<void> {
    const hasFailed = await this.underWay?.then(
      () => false,
      () => true,
    );
    if (hasFailed) await this.parts.scheduler?.stop();
  }

  private async run(prepare: () => Promise<void>, isStopping: () => boolean): Promise<void> {
    const { workerId, heartbeat, notifier, scheduler } = this.parts;
    const steps = [prepare, () => scheduler?.start(workerId), () => heartbeat.start(), () => notifier?.start()];
    for (const step of steps) {
      await step();
      if (isStopping()) throw new StoppedError('The pool was stopped while it started.');
    }
  }
}
