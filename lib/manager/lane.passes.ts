// Up to where lanes hold nothing that a pool may take: other tasks, flags it must not have. A look passes at most 500 such
// jobs of a lane, so a lane is walked by several looks, one right after the other. A walk that is under way goes on through
// full looks: begun again with each of them, it would never come to its end.
import type { LaneReport } from '../interfaces/claim.interface.js';
import { beginsLike } from './lane.names.js';

export interface Position {
  runAt: string;
  id: string;
}

const MAX_PASSES = 1_000;
/** A walk that took 1 ms may be repeated after 20, and is after so long. */
const PERIOD_PER_COST = 20;
const MAX_PERIOD_MS = 30_000;

export class LanePasses {
  private readonly passes = new Map<string, Position>();
  /** Places whose walk has not come to the end of the lane. */
  private open = new Set<string>();
  private costMs = 0;
  /** Jobs that came back before a position without a notification are found after this, by performance.now(). */
  private keptUntil = -Infinity;

  positions(): Iterable<[string, Position]> {
    return this.passes;
  }

  isOpen(place: string): boolean {
    return this.open.has(place);
  }

  /** How far a look has come. One that did not get through all lanes leaves the others as they are. */
  learn(passed: LaneReport['passed'], { more, ms }: Pick<LaneReport, 'more' | 'ms'>): void {
    const wasOpen = this.open.size > 0;
    if (!more) this.open = new Set();
    for (const [place, runAt, id] of passed) {
      this.passes.delete(place);
      this.passes.set(place, { runAt, id });
      this.open.add(place);
    }
    if (this.passes.size > MAX_PASSES) this.drop(this.passes.keys().next().value!);
    if (wasOpen || passed.length) this.costMs += ms;
    if (!wasOpen || this.open.size) return;
    this.keptUntil = performance.now() + Math.min(MAX_PERIOD_MS, this.costMs * PERIOD_PER_COST);
    this.costMs = 0;
  }

  /** Something in lanes that begin like these may run. */
  noteRunnable(lanes: Set<string>): void {
    for (const place of this.passes.keys()) if (beginsLike(place, lanes)) this.drop(place);
  }

  /** Walks that have come to their end begin again, as far as that is affordable. */
  startOver(): void {
    if (performance.now() < this.keptUntil) return;
    for (const place of this.passes.keys()) if (!this.open.has(place)) this.drop(place);
  }

  clear(): void {
    this.passes.clear();
    this.open.clear();
  }

  private drop(place: string): void {
    this.passes.delete(place);
    this.open.delete(place);
  }
}
