// When a queue looks again although it was told of nothing: at its poll interval, longer with each poll that found nothing.
import type { JobQueueOptions } from './queue.options.js';

export class PollTimer {
  private idlePolls = 0;
  private wakeUp: (() => void) | null = null;

  constructor(
    private readonly options: Pick<JobQueueOptions, 'pollIntervalMs' | 'maxPollIntervalMs' | 'refetchDelayMs'>,
  ) {}

  get shortestMs(): number {
    return this.options.pollIntervalMs ?? 2_000;
  }

  get ms(): number {
    const { maxPollIntervalMs = this.shortestMs } = this.options;
    const ceiling = Math.min(maxPollIntervalMs, this.shortestMs * 2 ** Math.min(this.idlePolls, 20));
    return ceiling > this.shortestMs ? ceiling * (0.75 + Math.random() * 0.25) : this.shortestMs;
  }

  /** Until the next poll, after one that found so many jobs. */
  after(found: number): number {
    if (found > 0) return Math.min(this.ms, this.options.refetchDelayMs ?? 1_000);
    this.idlePolls++;
    return this.ms;
  }

  /** Jobs keep coming. */
  reset(): void {
    this.idlePolls = 0;
  }

  /** Whether it slept as long as it should. */
  sleep(ms: number): Promise<boolean> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(true), ms);
      this.wakeUp = () => {
        clearTimeout(timer);
        this.wakeUp = null;
        resolve(false);
      };
    });
  }

  wake(): void {
    this.wakeUp?.();
  }
}
