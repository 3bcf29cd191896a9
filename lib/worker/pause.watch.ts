// What is paused, as far as a pool must know: what it has claimed and not started of it goes back. Claims read pauses by
// themselves; this is asked when a notification or a heartbeat tells of pauses, and when one ends by itself.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { JobPauses, KnownPauses } from '../manager/job.pauses.js';

export interface PauseWatchParts {
  pauses: JobPauses;
  incarnation: () => string;
  /** Something was paused: what is held and not started may be of it. */
  onPaused: () => void;
  /** Something is not paused any more. */
  onResumed: () => void;
  onError: (error: unknown, context: string) => void;
}

/** Timers and the database's clock need not agree to the millisecond. */
const LATE_MS = 5;
const MAX_TIMER_MS = 2 ** 31 - 1;
const RETRY_MS = 1_000;

export class PauseWatch {
  private known: KnownPauses = { readAt: -Infinity, pauses: [] };
  private knownEndsAt = Infinity;
  private asking: Promise<void> | null = null;
  private askAgain = false;
  private timer: NodeJS.Timeout | null = null;
  /** When the first pause ends that a claim has met, and that may be over before it is asked for; by performance.now(). */
  private metEndsAt = Infinity;
  private stopped = false;

  constructor(private readonly parts: PauseWatchParts) {}

  /** A heartbeat tells whether there are pauses. */
  onBeat(hasPauses: boolean): void {
    if (hasPauses || this.known.pauses.length) this.ask();
  }

  /** Something was paused or resumed. */
  ask(): void {
    if (this.stopped) return;
    if (this.asking) this.askAgain = true;
    else this.asking = this.run().finally(() => (this.asking = null));
  }

  /**
   * Whether a claim that has brought the job did so without knowing of its pause. `claimedAt`: the database's time when the claim
   * began, in ms: one that began after the pauses were read knows better.
   */
  holdsBack(job: ClaimedJob, claimedAt = -Infinity): boolean {
    const { readAt, pauses } = this.known;
    return claimedAt <= readAt && pauses.some(({ kind, name }) => kind !== 'task' || name === job.task);
  }

  /** A claim, of this time, has met pauses of which the first ends at `until`: both by the database's clock, in ms. */
  noteEnd(until: number | null, claimedAt: number | null): void {
    if (until === null || claimedAt === null) return;
    const endsAt = performance.now() + until - claimedAt + LATE_MS;
    if (endsAt >= this.metEndsAt) return;
    this.metEndsAt = endsAt;
    this.wakeIn(this.knownEndInMs);
  }

  async stop(): Promise<void> {
    this.stopped = true;
    if (this.timer) clearTimeout(this.timer);
    await this.asking;
  }

  /** When the next pause ends by itself, as far as is known. */
  private get knownEndInMs(): number {
    return Math.min(this.knownEndsAt, this.metEndsAt) - performance.now();
  }

  private async run(): Promise<void> {
    do {
      this.askAgain = false;
      await this.learn().catch((error: unknown) => {
        if (this.stopped) return;
        this.parts.onError(error, 'asking what is paused');
        this.wakeIn(RETRY_MS);
      });
    } while (this.askAgain && !this.stopped);
  }

  private async learn(): Promise<void> {
    const before = new Set(this.known.pauses.map(nameOf));
    const known = await this.parts.pauses.find(this.parts.incarnation());
    if (this.stopped) return;
    this.known = known;
    const { readAt, pauses } = known;
    const until = Math.min(Infinity, ...pauses.map((one) => one.until ?? Infinity));
    this.knownEndsAt = performance.now() + until - readAt + LATE_MS;
    const hasMetEnd = performance.now() >= this.metEndsAt;
    if (hasMetEnd) this.metEndsAt = Infinity;
    this.wakeIn(this.knownEndInMs);
    const now = new Set(pauses.map(nameOf));
    if ([...now].some((name) => !before.has(name))) this.parts.onPaused();
    if (hasMetEnd || [...before].some((name) => !now.has(name))) this.parts.onResumed();
  }

  private wakeIn(ms: number): void {
    if (this.timer) clearTimeout(this.timer);
    this.timer =
      ms === Infinity || this.stopped ? null : setTimeout(() => this.ask(), Math.min(MAX_TIMER_MS, Math.max(0, ms)));
  }
}

const nameOf = ({ kind, name }: { kind: string; name: string }): string => JSON.stringify([kind, name]);
