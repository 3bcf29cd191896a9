// Where the next claim of plain jobs begins to read. Behind what it has seen, mostly; from the start now and then, to find what
// came late, and soon when a claim came back short. Where tasks are paused, a claim passes so many of their jobs at most: then a
// walk from the start takes several claims, in turns with claims behind all that was seen.
import type { CursorPosition, PlainClaimResult, QuietStretch } from '../interfaces/claim.interface.js';

const MIN_PERIOD_MS = 2_000;
const MAX_PERIOD_MS = 30_000;
/** A sweep that took 1 ms may be repeated after 20: at most five per cent of the time goes into sweeping. */
const PERIOD_PER_COST = 20;
/** Reading from the start what was told of, or, while claims come back full, everything: about one per cent of the time each. */
const RARE_PERIOD_PER_COST = 100;
const MAX_POSITIONS = 100;
/** What is remembered of priorities without anything due is looked at again. */
const QUIET_MS = 20_000;

export class ClaimScan {
  private positions: CursorPosition[] = [];
  private quiet: QuietStretch | null = null;
  private quietSince = -Infinity;
  /** A claim behind the positions, from the start, or one that goes on where the walk from the start was cut. */
  private kind: 'scan' | 'sweep' | 'walk' = 'sweep';
  private walk: CursorPosition[] | null = null;
  private from: CursorPosition[] = [];
  /** Priorities in which jobs were passed: their positions are not given up for what is told of, which would be behind them. */
  private readonly passed = new Set<number>();
  private sweptAt = -Infinity;
  private sweepCostMs = 0;
  private short = false;
  /** When a sweep has found that nothing is due. */
  private emptyAt = -Infinity;
  private toldInFlight = false;
  /** Priorities in which something may lie before the position, because it was committed late. */
  private readonly told = new Set<number>();
  private toldOfAny = false;
  /** Positions that the claim under way was not given; empty: it goes on from all. */
  private dropped: CursorPosition[] = [];
  private toldAt = -Infinity;
  private toldCostMs = 0;
  /** How far the database's clock is ahead of performance.now(). */
  private clockLead = Date.now() - performance.now();

  /** Where the next claim begins. No positions: a sweep from the start. */
  next(): { cursor: CursorPosition[]; quiet: QuietStretch | null } {
    const now = performance.now();
    this.toldInFlight = false;
    // Once claims come back short every one of them is a sweep, as far as sweeps are affordable: an idle pool asks once.
    const isAffordable = now - this.sweptAt >= this.sweepCostMs * PERIOD_PER_COST;
    this.dropped = [];
    this.kind = this.kindNow(now - this.sweptAt, isAffordable);
    if (this.kind === 'sweep') this.untell();
    const isQuiet = this.quiet && now - this.quietSince < QUIET_MS && this.quiet.until > now + this.clockLead;
    this.from = this.cursorNow(now);
    return { cursor: this.from, quiet: isQuiet ? this.quiet : null };
  }

  learn(result: PlainClaimResult, costMs: number, limit: number): void {
    const { cursor, more, jobs, quiet, claimedAt } = result;
    if (claimedAt !== null) this.clockLead = claimedAt - performance.now();
    // A scan that began where the walk is goes on with it.
    if (this.kind !== 'scan' || (this.walk && isSame(this.walk, this.from))) this.noteSweep(result, costMs);
    const isEmpty =
      this.kind !== 'scan' && !more && !jobs.length && !this.toldInFlight && !this.told.size && !this.toldOfAny;
    this.emptyAt = isEmpty ? performance.now() : -Infinity;
    if (this.dropped.length) {
      this.toldAt = performance.now();
      this.toldCostMs = costMs;
    }
    const isWhole = this.kind === 'scan' || (this.kind === 'sweep' && !result.isCut);
    const positions = isWhole ? this.withDropped(cursor) : furthest(this.positions, cursor);
    this.positions = positions.length > MAX_POSITIONS ? [] : positions;
    for (const priority of result.passed) this.passed.add(priority);
    this.short = !more && jobs.length < limit;
    if (quiet && quiet !== this.quiet) this.quietSince = performance.now();
    this.quiet = quiet;
  }

  /** What was passed may be claimed now. */
  forget(): void {
    this.positions = [];
    this.walk = null;
    this.passed.clear();
    this.quiet = null;
    this.sweptAt = -Infinity;
    this.toldInFlight = true;
    this.expire();
  }

  /** Something of these priorities may be due where nothing was; null: of any. */
  noteDue(priorities: number[] | null): void {
    this.expire();
    this.toldInFlight = true;
    if (!priorities) this.quiet = null;
    for (const priority of priorities ?? []) this.cut(priority);
    // A claim under way may not have seen it, and bring a position behind it.
    if (!priorities) this.toldOfAny = true;
    for (const priority of priorities ?? []) this.told.add(priority);
    if (this.told.size > MAX_POSITIONS) this.toldOfAny = true;
    if (this.toldOfAny) this.told.clear();
  }

  /** Whether the last look, less than so many ms ago, has found that nothing is due, and nothing was told since. */
  isEmpty(periodMs: number): boolean {
    return performance.now() - this.emptyAt < periodMs;
  }

  /** The next claim looks, whatever the last one found. */
  expire(): void {
    this.emptyAt = -Infinity;
  }

  private kindNow(sinceSweepMs: number, isAffordable: boolean): 'scan' | 'sweep' | 'walk' {
    if (this.walk) return this.kind === 'scan' ? 'walk' : 'scan';
    return (this.short && isAffordable) || sinceSweepMs > this.periodMs ? 'sweep' : 'scan';
  }

  private cursorNow(now: number): CursorPosition[] {
    if (this.kind === 'sweep') return [];
    return this.kind === 'walk' ? this.walk! : this.positionsNow(now);
  }

  /** All claims of a walk together are one sweep. */
  private noteSweep({ cursor, isCut }: PlainClaimResult, costMs: number): void {
    if (this.kind === 'sweep') this.passed.clear();
    this.dropped = [];
    this.sweptAt = performance.now();
    this.sweepCostMs = costMs + (this.kind === 'sweep' ? 0 : this.sweepCostMs);
    this.walk = isCut ? cursor : null;
  }

  /** Without those of priorities that were told of, as soon as that is affordable. */
  private positionsNow(now: number): CursorPosition[] {
    this.dropped = [];
    if (now - this.toldAt < this.toldCostMs * RARE_PERIOD_PER_COST) return this.positions;
    this.dropped = this.positions.filter(
      ({ priority }) => (this.toldOfAny || this.told.has(priority)) && !this.passed.has(priority),
    );
    this.untell();
    return this.positions.filter((position) => !this.dropped.includes(position));
  }

  /** Full claims pass what was released behind their position. */
  private get periodMs(): number {
    return Math.min(MAX_PERIOD_MS, Math.max(MIN_PERIOD_MS, this.sweepCostMs * RARE_PERIOD_PER_COST));
  }

  private untell(): void {
    this.told.clear();
    this.toldOfAny = false;
  }

  /** A claim that found nothing before a position has not lost it. */
  private withDropped(cursor: CursorPosition[]): CursorPosition[] {
    const known = new Set(cursor.map(({ priority }) => priority));
    const kept = this.dropped.filter(({ priority }) => !known.has(priority));
    this.dropped = [];
    return kept.length ? [...cursor, ...kept].sort((a, b) => a.priority - b.priority) : cursor;
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
    if (this.walk) return 0;
    if (!this.short || this.kind !== 'scan') return Infinity;
    return this.sweptAt + this.sweepCostMs * PERIOD_PER_COST - performance.now();
  }
}

/** For each priority the position that is further on. */
function furthest(positions: CursorPosition[], others: CursorPosition[]): CursorPosition[] {
  const best = new Map(positions.map((position) => [position.priority, position]));
  for (const other of others) {
    const known = best.get(other.priority);
    if (!known || isBefore(known, other)) best.set(other.priority, other);
  }
  return [...best.values()].sort((a, b) => a.priority - b.priority);
}

const isSame = (a: CursorPosition[], b: CursorPosition[]): boolean =>
  a.length === b.length && a.every(({ priority, id }, index) => priority === b[index]!.priority && id === b[index]!.id);

/** Times of one form, with as many digits, are in order as texts. */
const isBefore = (a: CursorPosition, b: CursorPosition): boolean =>
  a.runAt < b.runAt || (a.runAt === b.runAt && a.id < b.id);
