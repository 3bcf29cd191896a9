// How soon all lanes may be looked at again: a look at everything costs the database the more, the more lanes there are.

/** One that took 1 ms may be repeated after so many, and is after 5 s: half a per cent of the time. */
const PERIOD_PER_COST = 200;
const MAX_PERIOD_MS = 5_000;
/** Where that would be more than five per cent of the time, it is repeated later, and in any case after so long. */
const LEAST_PERIOD_PER_COST = 20;
const MAX_DEAR_PERIOD_MS = 30_000;
/** Among tens of thousands of lanes even that is too much for a pool that hears the news: one per cent of the time is enough. */
const VERY_DEAR_MS = 1_000;
const PERIOD_PER_VERY_DEAR_COST = 100;
const MAX_VERY_DEAR_PERIOD_MS = 600_000;
/** The cheapest of so many counts: one that had to wait, or was the first, tells nothing of the next. */
const COSTS = 3;

export class SweepCosts {
  private last: number[] = Array.from({ length: COSTS }, () => 0);
  /** What the present one has cost so far; null: none is under way. */
  private presentMs: number | null = 0;
  /** The last look has seen so many lanes that it could not get through all of them. */
  private walking = false;

  constructor(
    private readonly shortestMs: number,
    /** Whether the pool is told of what begins to be claimable. */
    private readonly hearsNews: boolean,
  ) {}

  /** From one look at everything to the next, in ms. */
  get periodMs(): number {
    // One that is under way, and is not through all lanes, costs at least what it has cost so far: begun again, it would
    // never come to its end.
    const costMs = Math.max(Math.min(...this.last), this.walking ? (this.presentMs ?? 0) : 0);
    const isVeryDear = this.hearsNews && costMs > VERY_DEAR_MS;
    return Math.max(
      this.shortestMs,
      Math.min(MAX_PERIOD_MS, costMs * PERIOD_PER_COST),
      Math.min(MAX_DEAR_PERIOD_MS, costMs * LEAST_PERIOD_PER_COST),
      isVeryDear ? Math.min(MAX_VERY_DEAR_PERIOD_MS, costMs * PERIOD_PER_VERY_DEAR_COST) : 0,
    );
  }

  begin(): void {
    this.presentMs = 0;
  }

  /** `more`: the look at everything goes on with the next claim; `walking`: not all lanes that were to be looked at were. */
  count(costMs: number, more: boolean, walking: boolean): void {
    this.walking = walking;
    if (this.presentMs === null) return;
    this.presentMs += costMs;
    if (more) return;
    this.last = [...this.last.slice(1), this.presentMs];
    this.presentMs = null;
  }
}
