// What is paused, as far as a pool must know: what it has claimed and not started of it goes back. Claims read pauses by
// themselves; this is asked when a notification or a heartbeat tells of pauses, and when one ends by itself.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { Branch, JobPauses, KnownPause, KnownPauses } from '../manager/job.pauses.js';
import { lanesOfBranch } from '../manager/lane.names.js';

export interface PauseWatchParts {
  pauses: JobPauses;
  incarnation: () => string;
  /** Jobs that have not started. Pauses of queues and partitions may be many: those of these are asked for. */
  held: () => ClaimedJob[];
  /** Something is paused: what is held and not started may be of it. */
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
  /** Something was told since it was asked last, */
  private isTold = false;
  /** and when what is known of that was read, by the database's time in ms: claims from before may not know of it. */
  private toldAt = -Infinity;
  /** Of which queues and partitions it is known. */
  private asked = new Set<string>();
  private timer: NodeJS.Timeout | null = null;
  /** When the first pause ends that a claim has met, and that may be over before it is asked for; by performance.now(). */
  private metEndsAt = Infinity;
  private stopped = false;

  constructor(private readonly parts: PauseWatchParts) {}

  /** A heartbeat tells whether there are pauses. */
  onBeat(hasPauses: boolean): void {
    if (hasPauses || this.known.pauses.length || branchesOf(this.parts.held()).size) this.ask();
  }

  /** Something was paused or resumed. */
  ask(): void {
    this.isTold = true;
    this.start();
  }

  /** A claim of this time, by the database's clock in ms, brings jobs that are held from now on. */
  noteClaimed(claimedAt: number): void {
    if (claimedAt <= this.toldAt) this.start();
  }

  /**
   * Whether a claim that has brought the job did so without knowing of its pause. `claimedAt`: the database's time when the claim
   * began, in ms: one that began after the pauses were read knows better.
   */
  holdsBack(job: ClaimedJob, claimedAt = -Infinity): boolean {
    const { readAt, pauses } = this.known;
    return claimedAt <= readAt && pauses.some((pause) => concerns(pause, job));
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

  private start(): void {
    if (this.stopped) return;
    if (this.asking) this.askAgain = true;
    else this.asking = this.run().finally(() => (this.asking = null));
  }

  private async run(): Promise<void> {
    // What a claim brings is held after this turn.
    await Promise.resolve();
    do {
      this.askAgain = false;
      if (!this.isTold && !this.isUnsure) return;
      try {
        await this.learn();
      } catch (error) {
        if (this.stopped) return;
        this.parts.onError(error, 'asking what is paused');
        return this.wakeIn(RETRY_MS);
      }
    } while ((this.askAgain || this.isUnsure) && !this.stopped);
  }

  /** Whether jobs are held whose claims may not have known of a pause, and whose queues were not asked for. */
  private get isUnsure(): boolean {
    const isOld = ({ lockedAt }: ClaimedJob): boolean => (lockedAt?.getTime() ?? -Infinity) <= this.toldAt;
    const branches = branchesOf(this.parts.held().filter(isOld)).keys();
    return [...branches].some((branch) => !this.asked.has(branch));
  }

  private async learn(): Promise<void> {
    const before = endsOf(this.known);
    const branches = branchesOf(this.parts.held());
    const { isTold } = this;
    this.isTold = false;
    const known = await this.parts.pauses.find(this.parts.incarnation(), [...branches.values()]);
    if (this.stopped) return;
    this.known = known;
    this.asked = new Set(branches.keys());
    const { readAt, pauses } = known;
    if (isTold) this.toldAt = readAt;
    const until = Math.min(Infinity, ...pauses.map((one) => one.until ?? Infinity));
    this.knownEndsAt = performance.now() + until - readAt + LATE_MS;
    const hasMetEnd = performance.now() >= this.metEndsAt;
    if (hasMetEnd) this.metEndsAt = Infinity;
    this.wakeIn(this.knownEndInMs);
    if (pauses.length) this.parts.onPaused();
    const now = endsOf(known);
    if (hasMetEnd || [...before].some((name) => !now.has(name))) this.parts.onResumed();
  }

  private wakeIn(ms: number): void {
    if (this.timer) clearTimeout(this.timer);
    this.timer =
      ms === Infinity || this.stopped ? null : setTimeout(() => this.ask(), Math.min(MAX_TIMER_MS, Math.max(0, ms)));
  }
}

/** Those whose end concerns all claims. What is held no more of a queue is not asked for, and its lanes are told with its end. */
const endsOf = ({ pauses }: KnownPauses): Set<string> =>
  new Set(pauses.filter((pause) => !isOfLanes(pause)).map(({ kind, name }) => JSON.stringify([kind, name])));

const isOfLanes = ({ kind }: KnownPause): boolean => kind === 'queue' || kind === 'partition';

function concerns({ kind, name, partition }: KnownPause, job: ClaimedJob): boolean {
  if (kind === 'task') return name === job.task;
  if (kind === 'queue') return name === job.queue;
  return kind !== 'partition' || (name === job.queue && partition === job.partition);
}

/** The queues and partitions of jobs, by what their lanes begin with. */
function branchesOf(jobs: ClaimedJob[]): Map<string, Branch> {
  const branches = new Map<string, Branch>();
  for (const { queue, partition } of jobs)
    if (queue !== null) branches.set(lanesOfBranch(queue, partition), [queue, partition]);
  return branches;
}
