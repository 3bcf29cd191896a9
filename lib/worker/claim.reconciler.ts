// Claims whose answer was lost, and jobs that could not be given back: the database thinks that this pool holds them, and
// its heartbeat would keep them from everybody for ever. Found by comparing what is locked with what is held.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { backoffMs, pause, settledWithin } from '../timing.js';
import type { JobQueueOptions } from './queue.options.js';

/** A statement that lost its connection may still be at work: one look is not enough. */
const LOOKS_MS = [0, 10_000, 60_000];
const LOOK_AGAIN_MS = 50;

export class ClaimReconciler {
  private looks: number[] = [];
  private failures = 0;
  private isToCompare = false;

  constructor(
    private readonly options: Pick<JobQueueOptions, 'jobs' | 'onError'>,
    private readonly incarnation: () => string,
    /** All that the pool knows it holds; null where nothing can tell: nothing is suspected then. */
    private readonly held: (() => ClaimedJob[]) | null,
  ) {}

  /** Whether the database may count more jobs as this pool's than the pool knows of. */
  get suspected(): boolean {
    return this.looks.length > 0;
  }

  private get isDue(): boolean {
    return this.looks.length > 0 && this.looks[0]! <= performance.now();
  }

  suspect(): void {
    if (!this.held) return;
    const now = performance.now();
    this.looks = LOOKS_MS.map((ms) => now + ms);
  }

  /** The next call of `reconcile` compares what a heartbeat can compare cheaply. */
  compareSoon(): void {
    this.isToCompare = true;
  }

  /** Looks where that is due. Never beside a claim of the same pool. Never rejects. */
  async reconcile(): Promise<void> {
    if (!this.isDue && !this.isToCompare) return;
    try {
      await (this.isDue ? this.poll() : this.compare());
    } catch (error) {
      this.options.onError?.(error, 'looking for lost claims');
    }
  }

  /** Looks until one look has gone through since the last suspicion, or it is `deadline` by performance.now(). */
  async settle(deadline: number): Promise<void> {
    while ((this.isDue || this.failures > 0) && performance.now() < deadline) {
      await settledWithin(deadline - performance.now(), this.isDue ? this.reconcile() : pause(LOOK_AGAIN_MS));
    }
  }

  /** Limited queues, and claims that the audit asked about. */
  private async compare(): Promise<void> {
    this.isToCompare = false;
    if (this.held) await this.options.jobs.engine.registry.releaseUnknown(this.incarnation(), this.held(), false);
  }

  /** Gives back what nothing here knows of */
  private async poll(): Promise<void> {
    const lookedAt = performance.now();
    try {
      await this.options.jobs.engine.registry.releaseUnknown(this.incarnation(), this.held?.() ?? [], true);
      this.failures = 0;
      this.looks = this.looks.filter((due) => due > lookedAt);
    } catch (error) {
      this.looks = [lookedAt + backoffMs(this.failures++), ...this.looks.slice(1)];
      throw error;
    }
  }
}
