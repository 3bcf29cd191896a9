// Slots, and others, that wait for a job, first come, first served.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { after } from '../timing.js';

interface Taker {
  resolve: (job: ClaimedJob | null) => void;
  endTimer: (() => void) | null;
}

export class Takers {
  private readonly waiting: Taker[] = [];

  get length(): number {
    return this.waiting.length;
  }

  /** The next job, or null after `timeoutMs` (Infinity: when all are sent away). */
  wait(timeoutMs: number): Promise<ClaimedJob | null> {
    return new Promise((resolve) => {
      const taker: Taker = { resolve, endTimer: null };
      taker.endTimer = after(timeoutMs, () => this.giveUp(taker));
      this.waiting.push(taker);
    });
  }

  give(job: ClaimedJob): void {
    this.answer(this.waiting.shift()!, job);
  }

  sendAway(): void {
    for (const taker of this.waiting.splice(0)) this.answer(taker, null);
  }

  private giveUp(taker: Taker): void {
    const index = this.waiting.indexOf(taker);
    if (index >= 0) this.waiting.splice(index, 1);
    this.answer(taker, null);
  }

  private answer(taker: Taker, job: ClaimedJob | null): void {
    taker.endTimer?.();
    taker.resolve(job);
  }
}
