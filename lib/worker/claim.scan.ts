// Where the next claim of plain jobs begins to read. Behind what it has seen, mostly; from the start now and then, to find what
// came late, and soon when a claim came back short.
import type { CursorPosition, PlainClaimResult, QuietStretch } from '../interfaces/claim.interface.js';

const LONGEST_PERIOD_MS = 30_000;
/** A sweep that took 1 ms may be repeated after 20: at most five per cent of the time goes into sweeping. */
const PERIOD_PER_COST = 20;
const MAX_POSITIONS = 100;
/** What is remembered of priorities without anything due is looked at again. */
const QUIET_MS = 20_000;

export class ClaimScan {
  private positions: CursorPosition[] = [];
  private quiet: QuietStretch | null = null;
  private quietSince = -Infinity;
  private sweeping = true;
  private sweptAt = -Infinity;
  private sweepCostMs = 0;
  private short = false;
  /** When a sweep has found that nothing is due. */
  private emptyAt = -Infinity;
  private toldInFlight = false;

  /** Where the next claim begins. No positions: a sweep from the start. */
  next(): { cursor: CursorPosition[]; quiet: QuietStretch | null } {
    const now = performance.now();
    this.toldInFlight = false;
    // Once claims come back short every one of them is a sweep, as far as sweeps are affordable: an idle pool asks once.
    const isAffordable = now - this.sweptAt >= this.sweepCostMs * PERIOD_PER_COST;
    this.sweeping = (this.short && isAffordable) || now - this.sweptAt > LONGEST_PERIOD_MS;
    const isQuiet = this.quiet && now - this.quietSince < QUIET_MS && this.quiet.until > Date.now();
    return { cursor: this.sweeping ? [] : this.positions, quiet: isQuiet ? this.quiet : null };
  }

  learn({ cursor, more, jobs, quiet }: PlainClaimResult, costMs: number, limit: number): void {
    if (this.sweeping) {
      this.sweptAt = performance.now();
      this.sweepCostMs = costMs;
    }
    const isEmpty = this.sweeping && !more && !jobs.length && !this.toldInFlight;
    this.emptyAt = isEmpty ? performance.now() : -Infinity;
    this.positions = cursor.length > MAX_POSITIONS ? [] : cursor;
    this.short = !more && jobs.length < limit;
    if (quiet && quiet !== this.quiet) this.quietSince = performance.now();
    this.quiet = quiet;
  }

  /** Something of these priorities may be due where nothing was; null: of any. */
  tell(priorities: number[] | null): void {
    this.expire();
    this.toldInFlight = true;
    if (!priorities) this.quiet = null;
    for (const priority of priorities ?? []) this.cut(priority);
  }

  /** Whether the last look, less than so many ms ago, has found that nothing is due, and nothing was told since. */
  isEmpty(periodMs: number): boolean {
    return performance.now() - this.emptyAt < periodMs;
  }

  /** The next claim looks, whatever the last one found. */
  expire(): void {
    this.emptyAt = -Infinity;
  }

  /** The larger part of the quiet stretch is still quiet. */
  private cut(priority: number): void {
    if (!this.quiet || priority <= this.quiet.after || priority > this.quiet.upto) return;
    const { after, upto } = this.quiet;
    this.quiet = {
      ...this.quiet,
      ...(priority - after > upto - priority ? { upto: priority - 1 } : { after: priority }),
    };
  }

  /** A claim from the middle came back short: what is missing may lie before it. Infinity: nothing is missing. */
  sweepIsDueInMs(): number {
    if (!this.short || this.sweeping) return Infinity;
    return this.sweptAt + this.sweepCostMs * PERIOD_PER_COST - performance.now();
  }
}
