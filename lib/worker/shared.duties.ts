// What pools do for each other: they give back the claims of dead workers, let jobs go on that nothing else has, and look for
// what must not be. Each pool performs them; the database tells which of them are due.
import type { WorkerRegistry } from '../manager/worker.registry.js';
import { isLockTimeout } from '../storage/sql.states.js';

/** How often they are looked at; a sweep is due every 4 s, an audit every minute. */
export const DUTY_MS = 4_000;
/** In this order: the claims of dead workers come first. */
const DUTIES = ['rescue', 'sweep', 'audit'] as const;
type Duty = (typeof DUTIES)[number];

export class SharedDuties {
  private readonly underWay = new Map<Duty, Promise<void>>();
  /** Duties that locks of others were in the way of, the last time. */
  private readonly heldUp = new Set<Duty>();
  private rescueIsDue = false;
  private stopped = false;

  constructor(
    private readonly registry: WorkerRegistry,
    private readonly maxCrashes: number,
    private readonly onError: (error: unknown, context: string) => void,
  ) {}

  /** Each goes on by itself: none waits for another that is slow, or fails with it. */
  perform(): void {
    if (this.stopped || this.registry.schemaCheck.refusal) return;
    for (const duty of DUTIES) {
      if (this.underWay.has(duty)) continue;
      const done = this.performOne(duty)
        .then(() => void this.heldUp.delete(duty))
        .catch((error: unknown) => this.report(duty, error))
        .finally(() => this.underWay.delete(duty));
      this.underWay.set(duty, done);
    }
  }

  /** A worker has gone silent. */
  rescueSoon(): void {
    this.rescueIsDue = true;
    this.perform();
  }

  /** Begins nothing more, and waits for what is under way. */
  async stop(): Promise<void> {
    this.stopped = true;
    await Promise.all(this.underWay.values());
  }

  private async performOne(duty: Duty): Promise<void> {
    if (duty !== 'rescue') return this.registry[duty](this.maxCrashes);
    if (!this.rescueIsDue) return;
    this.rescueIsDue = false;
    try {
      await this.registry.rescue(this.maxCrashes);
    } catch (error) {
      this.rescueIsDue = true;
      throw error;
    }
  }

  /** What a lock is in the way of comes again in some seconds, and is told of once. */
  private report(duty: Duty, error: unknown): void {
    const isHeld = isLockTimeout(error);
    if (!isHeld || !this.heldUp.has(duty)) this.onError(error, 'sweeping');
    if (isHeld) this.heldUp.add(duty);
    else this.heldUp.delete(duty);
  }
}
