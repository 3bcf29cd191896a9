// When an idle pool looks for jobs that nobody announces: at its poll interval, later with each look that found nothing
// if it may back off, and sooner where a rate limit's next window is about to begin.

export interface PollPaceOptions {
  pollIntervalMs?: number;
  maxPollIntervalMs?: number;
  refetchDelayMs?: number;
}

export class PollPace {
  private idlePolls = 0;
  private windowAt = Infinity;

  constructor(private readonly options: PollPaceOptions) {}

  /** The next window, for which jobs wait, begins in so many ms; null: none does. */
  windowIn(ms: number | null): void {
    if (ms !== null) this.windowAt = Math.min(this.windowAt, performance.now() + Math.max(1, ms));
  }

  get windowHasBegun(): boolean {
    return this.windowAt <= performance.now();
  }

  forgetWindow(): void {
    this.windowAt = Infinity;
  }

  foundJobs(): void {
    this.idlePolls = 0;
  }

  /** How long to wait after a look that found so many jobs. */
  afterLook(found: number): number {
    if (found > 0) return Math.min(this.waitMs(), this.options.refetchDelayMs ?? 1_000);
    this.idlePolls++;
    return this.waitMs();
  }

  waitMs(): number {
    const { pollIntervalMs = 2_000, maxPollIntervalMs = pollIntervalMs } = this.options;
    const ceiling = Math.min(maxPollIntervalMs, pollIntervalMs * 2 ** Math.min(this.idlePolls, 20));
    const backedOff = ceiling > pollIntervalMs ? ceiling * (0.75 + Math.random() * 0.25) : pollIntervalMs;
    return Math.max(1, Math.min(backedOff, this.windowAt - performance.now()));
  }
}
