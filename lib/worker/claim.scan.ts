// Where the next claim begins to read. Behind what it has seen, mostly; from the start now and then, to find what came
// late, and soon when a claim came back short.
import type { ClaimCursor, ClaimResult } from '../interfaces/claim.interface.js';

const LONGEST_PERIOD_MS = 30_000;
/** Jobs for free slots come back to places already read whenever a queue moves on: look from the start more often. */
const SLOT_LANE_PERIOD_MS = 1_000;
/** A sweep that took 1 ms may be repeated after 20: at most five per cent of the time goes into sweeping. */
const PERIOD_PER_COST = 20;
/** While plain jobs keep coming, and no slot job has been seen, one look in so long is enough. */
const SLOT_LOOK_MS = 100;
const MOST_POSITIONS = 100;

export class ClaimScan {
  private positions: ClaimCursor = [];
  private sweeping = true;
  private sweptAt = -Infinity;
  private sweepCostMs = 0;
  private slotLaneReadAt = -Infinity;
  /** Something came back to the lane of slot jobs since the claim under way was sent. */
  private slotLaneMoved = false;
  private short = false;
  private lookedAt = -Infinity;
  /** Whether the last look found something in the lane of slot jobs, or there is time to look. */
  private slotLaneIsBusy = true;

  /** Where the next claim begins, and whether it looks at the lane of slot jobs. No positions: a sweep from the start. */
  next(): { cursor: ClaimCursor; lookForSlots: boolean } {
    const now = performance.now();
    const fromStart = now - this.slotLaneReadAt > SLOT_LANE_PERIOD_MS || this.slotLaneMoved;
    this.slotLaneMoved = false;
    // Once claims come back short every one of them is a sweep, as far as sweeps are affordable: an idle pool asks once.
    const isAffordable = now - this.sweptAt >= this.sweepCostMs * PERIOD_PER_COST;
    this.sweeping = (this.short && isAffordable) || now - this.sweptAt > LONGEST_PERIOD_MS;
    const lookForSlots = this.sweeping || fromStart || this.slotLaneIsBusy || now - this.lookedAt > SLOT_LOOK_MS;
    if (lookForSlots) this.lookedAt = now;
    if (this.sweeping) return { cursor: [], lookForSlots };
    if (fromStart) this.slotLaneReadAt = now;
    const cursor = fromStart ? this.positions.filter(({ slotOnly }) => !slotOnly) : this.positions;
    return { cursor, lookForSlots };
  }

  learn({ cursor, more, jobs }: ClaimResult, costMs: number, limit: number): void {
    if (this.sweeping) {
      this.sweptAt = performance.now();
      this.slotLaneReadAt = this.sweptAt;
      this.sweepCostMs = costMs;
    }
    this.positions = cursor.length > MOST_POSITIONS ? [] : cursor;
    this.short = !more && jobs.length < limit;
    this.slotLaneIsBusy = !more || cursor.some(({ slotOnly }) => slotOnly);
  }

  /** A claim from the middle came back short: what is missing may lie before it. Infinity: nothing is missing. */
  sweepIsDueInMs(): number {
    if (!this.short || this.sweeping) return Infinity;
    return this.sweptAt + this.sweepCostMs * PERIOD_PER_COST - performance.now();
  }

  /** A place in a limited queue became free, or a window began: who waited stands before what claims have read. */
  restartSlotLane(): void {
    this.slotLaneMoved = true;
  }
}
