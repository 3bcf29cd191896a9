// A set of jobs that a pool claims for itself: of one queue or of all, of one task with a limit of its own or of all others.
// Each has a cursor of its own and remembers its own lanes.
import type { LaneClaimResult } from '../interfaces/claim.interface.js';
import { LaneMemory } from '../manager/lane.memory.js';
import { ClaimScan } from './claim.scan.js';

/** A task that runs no more than so many jobs at once here, and how many more it may begin. */
export interface TaskRoom {
  task: string;
  free: number;
  /** Of a task that takes many jobs at once: how many, and how many wait for it here. */
  batch?: { size: number; waiting: number } | undefined;
}

/** Where nothing is told of lanes, one look at them in so long is enough. */
const LOOK_MS = 100;

export class ClaimGroup {
  readonly scan = new ClaimScan();
  readonly lanes: LaneMemory;
  private lookedAt = -Infinity;
  private busy = true;
  private told = true;
  private notBefore = -Infinity;
  private before = { lookedAt: -Infinity, told: true };

  constructor(
    readonly queue: string | null,
    /** Null: all tasks without a limit of their own. */
    readonly task: string | null,
    pollIntervalMs: number,
    hearsNews: boolean,
  ) {
    this.lanes = new LaneMemory(pollIntervalMs, undefined, hearsNews);
  }

  /** Whether something was told since the last look: what it concerns may go before all others. */
  get hasNews(): boolean {
    return this.told;
  }

  /** When lanes should be looked at, before a slot takes a job from the buffer; by performance.now(). */
  get lookAt(): number {
    if (performance.now() < this.notBefore) return this.notBefore;
    if (this.told) return -Infinity;
    return Math.min(this.lookedAt + LOOK_MS, performance.now() + this.lanes.nextInMs);
  }

  /** In how many ms a look may find more than the last one did. */
  get nextLookInMs(): number {
    const now = performance.now();
    return this.busy ? this.lookAt - now : this.lanes.nextInMs;
  }

  /** A look is on its way. */
  looks(): void {
    this.before = { lookedAt: this.lookedAt, told: this.told };
    this.lookedAt = performance.now();
    this.told = false;
  }

  /** It was none: jobs were taken from one lane alone. */
  tookNext({ taken }: LaneClaimResult): void {
    this.lookedAt = this.before.lookedAt;
    this.told ||= this.before.told;
    this.lanes.tookNext(taken);
  }

  /** It has failed, and comes again soon: what was told before it is not forgotten. */
  couldNotLook(): void {
    this.told ||= this.before.told;
    this.lanes.couldNotLook();
    this.notBefore = performance.now() + this.lanes.nextInMs;
  }

  looked({ jobs, more }: LaneClaimResult): void {
    this.busy = jobs.length > 0;
    // It has not got through all lanes, or has taken all that it could.
    if (more || this.lanes.hasUnseen) this.told = true;
  }

  /** Something in lanes that begin like these may run; null: in any. */
  noteRunnable(lanes: string[] | null): void {
    this.lanes.noteRunnable(lanes);
    this.told = true;
  }
}
