// Where the next claim begins to read. Behind what it has seen, mostly; from the start now and then, to find what came
// late, and at once when a claim came back short.
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
  private slotLaneSweptAt = -Infinity;
  private short = false;

  /** The cursor of the next claim; empty for a sweep from the start. */
  cursor(): ClaimCursor {
    const now = performance.now();
    this.sweeping = this.sweepIsDue() || now - this.sweptAt > LONGEST_PERIOD_MS;
    if (this.sweeping) return [];
    if (now - this.slotLaneSweptAt > SLOT_LANE_PERIOD_MS) {
      this.slotLaneSweptAt = now;
      this.positions = this.positions.filter(({ slotOnly }) => !slotOnly);
    }
    return this.positions;
  }

  learn({ cursor, more, jobs }: ClaimResult, costMs: number, limit: number): void {
    if (this.sweeping) {
      this.sweptAt = performance.now();
      this.slotLaneSweptAt = this.sweptAt;
      this.sweepCostMs = costMs;
    }
    this.positions = cursor.length > MOST_POSITIONS ? [] : cursor;
    this.short = !more && jobs.length < limit;
  }

  /** A claim from the middle came back short: what is missing may lie before it. */
  sweepIsDue(): boolean {
    if (!this.short) return false;
    return !this.sweeping && performance.now() - this.sweptAt >= this.sweepCostMs * PERIOD_PER_COST;
  }

  restart(): void {
    this.positions = [];
  }
}
