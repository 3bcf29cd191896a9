// Where the next claim begins to read. Behind what it has seen, mostly; from the start now and then, to find what came
// late, and soon when a claim came back short.
import type { ClaimCursor, ClaimResult } from '../interfaces/claim.interface.js';

const LONGEST_PERIOD_MS = 30_000;
/** Jobs for free slots come back to places already read whenever a queue moves on: look from the start more often. */
const SLOT_LANE_PERIOD_MS = 1_000;
/** A sweep that took 1 ms may be repeated after 20: at most five per cent of the time goes into sweeping. */
const PERIOD_PER_COST = 20;
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

  /** The cursor of the next claim; empty for a sweep from the start. */
  cursor(): ClaimCursor {
    const now = performance.now();
    const fromStart = now - this.slotLaneReadAt > SLOT_LANE_PERIOD_MS || this.slotLaneMoved;
    this.slotLaneMoved = false;
    this.sweeping = this.sweepIsDueInMs() <= 0 || now - this.sweptAt > LONGEST_PERIOD_MS;
    if (this.sweeping) return [];
    if (fromStart) this.slotLaneReadAt = now;
    return fromStart ? this.positions.filter(({ slotOnly }) => !slotOnly) : this.positions;
  }

  learn({ cursor, more, jobs }: ClaimResult, costMs: number, limit: number): void {
    if (this.sweeping) {
      this.sweptAt = performance.now();
      this.slotLaneReadAt = this.sweptAt;
      this.sweepCostMs = costMs;
    }
    this.positions = cursor.length > MOST_POSITIONS ? [] : cursor;
    this.short = !more && jobs.length < limit;
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
