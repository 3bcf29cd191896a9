// What a pool remembers of lanes, so that it need not look at each of them again: stretches of the walk in which nothing can
// be claimed now, positions in lanes that it takes from, and whose turn is next. All of it may be wrong or forgotten at any
// time: it is dropped as a whole now and then, and everything is looked at again.
import type {
  LaneClaim,
  LaneClaimResult,
  LaneMemoryState,
  LaneReport,
  NextInLane,
} from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { LanePasses, type Position } from './lane.passes.js';
import { byAfter, joined, type Stretch } from './lane.stretches.js';
import { Turns } from './lane.turns.js';
import { SweepCosts } from './sweep.costs.js';
import {
  beginsLike,
  comparePlaces,
  laneAtPlace,
  laneOf,
  lanesOfBranch,
  lanesOfQueue,
  placeInWalk,
  queueOfLane,
} from './lane.names.js';

/** How many jobs of a lane are tried beyond what is wanted, where others hold some; twice as many each time they hold all. */
const SPARE = 20;
const MAX_SPARE = 480;
const MAX_SPARES = 100;
const MAX_STRETCHES = 100;
const MAX_TOLD = 100;
/** Passing more costs more than it saves. */
export const MAX_POSITIONS = 100;
const FIRST_HELD_MS = 5;
const MAX_HELD_MS = 1_000;
/** What became due shortly before a look may have been committed after it. */
const COMMIT_MS = 100;

export class LaneMemory {
  private stretches: Stretch[] = [];
  /** What others held, where there was too much of it for one look: passed for a while. */
  private heldStretches: Stretch[] = [];
  private told = new Set<string>();
  private toldInFlight: Set<string> | null = null;
  private positions = new Map<string, Position>();
  private readonly passes = new LanePasses();
  private lookedAt: number | null = null;
  /** How far the database's clock is ahead of performance.now(). */
  private clockLead = 0;
  private forgottenAt = -Infinity;
  private readonly costs: SweepCosts;
  private spares: LaneMemoryState['spares'] = [];
  private wanted = 0;
  private heldMs = 0;
  private heldUntil = Infinity;
  private tokensAt = Infinity;
  /** Queues that were full or paused themselves: a place that one of their partitions frees is for all of them. */
  private fullQueues = new Set<string>();

  /** When held lanes were to be looked at again, before the look under way. */
  private heldUntilBefore = Infinity;
  /** A look that has come to as many lanes as it may is gone on with, or it would never come to those behind them. */
  private resumes: LaneMemoryState['resumes'] = null;
  /** What was told since such a walk began: looks that go on with it may have passed it. */
  private toldInWalk = new Set<string>();
  /** Whether the last look has ended a walk of several, and something was told meanwhile. */
  hasUnseen = false;
  /** Whether everything was forgotten while a look is under way. */
  private forgotInFlight = false;

  constructor(
    /** Everything is looked at again after so long, at the earliest. */
    periodMs: number,
    private readonly turns: Turns = new Turns(),
    /** Whether it is told of what begins to be claimable. */
    hearsNews = false,
  ) {
    this.costs = new SweepCosts(periodMs, hearsNews);
  }

  /** When a look may find more than the last one did: a window begins, or what others held may be free. ms from now. */
  get nextInMs(): number {
    const window = Math.min(this.tokensAt, ...this.blocked.map(({ until }) => until)) - this.clockLead;
    return Math.min(window, this.heldUntil) - performance.now();
  }

  /** For the next claim of so many jobs. */
  next(wanted: number): LaneMemoryState {
    const now = performance.now();
    this.wanted = wanted;
    if (now - this.forgottenAt > this.costs.periodMs) this.startOver();
    const lasts = ({ until }: Stretch): boolean => until - this.clockLead > now;
    this.stretches = this.stretches.filter(lasts);
    this.heldStretches = this.heldStretches.filter(lasts);
    this.heldUntilBefore = this.heldUntil;
    this.heldUntil = Infinity;
    this.toldInFlight = new Set();
    if (!this.resumes) this.toldInWalk = new Set();
    this.forgotInFlight = false;
    return {
      turns: this.turns.ofLanes(wanted),
      queueTurns: this.turns.ofQueues(wanted),
      blocked: this.blocked,
      told: [...this.told].sort(comparePlaces),
      dueSince: this.blocked.length && this.lookedAt !== null ? this.lookedAt - COMMIT_MS : null,
      positions: this.positionsAhead(),
      resumes: this.resumes,
      spares: this.spares,
    };
  }

  learn({ report, taken, claimedAt, more }: LaneClaimResult): void {
    const inFlight = this.toldInFlight ?? new Set<string>();
    this.toldInFlight = null;
    if (!report || claimedAt === null) return;
    this.clockLead = claimedAt - performance.now();
    this.lookedAt = claimedAt;
    this.costs.count(report.ms, more, report.more && taken.length < this.wanted);
    this.noteOpen(report, taken, inFlight);
    for (const [after, upto, until] of report.blocked)
      this.stretches = joined(this.stretches, { after, upto, until: until ?? Infinity });
    for (const [after, upto] of report.heldStretches ?? [])
      this.heldStretches = joined(this.heldStretches, { after, upto, until: claimedAt + MAX_HELD_MS });
    // What was told during the look may lie before what it has read.
    const isTold = (place: string): boolean => beginsLike(place, inFlight);
    const passed = report.passed.filter(([place]) => !isTold(place));
    this.passes.learn(passed, report);
    for (const [place] of passed) {
      this.positions.delete(place);
      this.told.add(laneAtPlace(place));
    }
    const untold = taken.filter(({ place }) => !isTold(place));
    this.follow(untold, new Set(report.held));
    this.spares = this.sparesAfter(report);
    if (report.held.length) this.hold();
    else this.heldMs = 0;
    this.turns.learn(report);
    this.tokensAt = report.tokensAt ?? Infinity;
    this.hasUnseen = this.resumes !== null && !report.more && this.told.size > 0;
    this.resumes = report.resumes;
    if (!this.blocked.length) this.told.clear();
    if (this.blocked.length > MAX_STRETCHES || this.told.size > MAX_TOLD) this.startOver();
    // What was told during the look may concern all that it has passed.
    if (this.forgotInFlight) this.forget();
  }

  /** Lanes that the next look comes to, whatever stretch they lie in. */
  private noteOpen(report: LaneReport, taken: LaneClaimResult['taken'], inFlight: Set<string>): void {
    // A look that went through everything has looked at what was told before it.
    if (!report.more) this.told = this.resumes ? this.toldInWalk : inFlight;
    const due = report.more || this.resumes ? (report.due ?? []) : [];
    if (this.resumes) for (const lane of due) this.toldInWalk.add(lane);
    const unknown = report.unknown.map((queue) => (queue.includes('\x1f') ? queue : lanesOfQueue(queue)));
    for (const queue of report.full) this.fullQueues.add(queue);
    const held = report.heldStretches ? [] : report.held;
    for (const lane of [...taken.map(({ place }) => laneAtPlace(place)), ...held, ...due, ...unknown])
      this.told.add(lane);
  }

  /** The look has learnt nothing. */
  couldNotLook(): void {
    this.toldInFlight = null;
    this.hold();
    if (this.forgotInFlight) this.forget();
  }

  /** Jobs were taken from a lane without a look at any other. */
  tookNext(taken: LaneClaimResult['taken']): void {
    const inFlight = this.toldInFlight ?? new Set<string>();
    this.toldInFlight = null;
    this.heldUntil = this.heldUntilBefore;
    if (this.forgotInFlight) return;
    const untold = taken.filter(({ place }) => !beginsLike(place, inFlight));
    this.follow(untold, new Set());
  }

  /**
   * Where to go on behind a job, in the lane of its queue, without a look at others; null: everything is to be looked at
   * again, or more than the queue limits the lane.
   */
  nextAfter(job: ClaimedJob): NextInLane | null {
    if (job.queue === null || job.partition !== null || job.rateLimitKey !== null) return null;
    if (performance.now() - this.forgottenAt > this.costs.periodMs) return null;
    const { priority } = job;
    const lane = laneOf(job);
    return { priority, lane, ...this.positions.get(placeInWalk(priority, lane)) };
  }

  /** Something in lanes that begin like these may run; null: in any. */
  noteRunnable(lanes: string[] | null): void {
    if (!lanes) {
      this.forgotInFlight = true;
      return this.forget();
    }
    lanes = lanes.map((lane) => this.widened(lane));
    for (const lane of lanes) {
      // Where no stretch is remembered, every lane is looked at.
      if (this.blocked.length) this.told.add(lane);
      this.toldInFlight?.add(lane);
      this.toldInWalk.add(lane);
    }
    const told = new Set(lanes);
    for (const place of this.positions.keys()) if (beginsLike(place, told)) this.positions.delete(place);
    this.passes.noteRunnable(told);
    // Too much is told to be listed.
    if (this.told.size > MAX_TOLD) this.startOver();
  }

  /** A place became free: its lanes are looked at, but nothing has come to stand before their positions. */
  noteFreed(queue: string, partition: string | null): void {
    const lanes = this.widened(lanesOfBranch(queue, partition));
    if (this.blocked.length) this.told.add(lanes);
    this.toldInFlight?.add(lanes);
    this.toldInWalk.add(lanes);
    if (this.told.size > MAX_TOLD) this.startOver();
  }

  /** A place in the job's queue became free, or the job comes back. */
  noteReturned(job: ClaimedJob): void {
    this.noteRunnable([job.queue === null ? laneOf(job) : lanesOfBranch(job.queue, job.partition)]);
  }

  forget(): void {
    this.startOver();
    this.passes.clear();
  }

  /** What may run in one partition of a full queue may, for the queue's sake, run in any. */
  private widened(lane: string): string {
    const queue = queueOfLane(lane);
    return this.fullQueues.has(queue) ? lanesOfQueue(queue) : lane;
  }

  /** The next look comes after a pause that grows. */
  private hold(): void {
    this.heldMs = Math.min(MAX_HELD_MS, Math.max(FIRST_HELD_MS, this.heldMs * 2));
    this.heldUntil = performance.now() + this.heldMs;
  }

  /** The next look goes through everything; what it may not take it passes as before, as long as that is affordable. */
  private startOver(): void {
    this.stretches = [];
    this.heldStretches = [];
    this.told.clear();
    this.fullQueues.clear();
    this.positions.clear();
    this.passes.startOver();
    this.forgottenAt = performance.now();
    this.costs.begin();
  }

  /** In order of the walk. */
  private get blocked(): Stretch[] {
    if (!this.heldStretches.length) return this.stretches;
    return [...this.stretches, ...this.heldStretches].sort(byAfter);
  }

  /** Behind the last job taken of each lane, unless something before it was left to others. */
  private follow(taken: LaneClaimResult['taken'], held: Set<string>): void {
    for (const { place, runAt, id } of taken) {
      if (held.has(laneAtPlace(place))) this.positions.delete(place);
      else this.remember(place, { runAt, id });
    }
  }

  private sparesAfter({ held, crowded }: LaneReport): LaneMemoryState['spares'] {
    const before = new Map(this.spares.map(({ lane, jobs }) => [lane, jobs]));
    const full = new Set(crowded);
    const lanes = [...new Set(held)].sort(comparePlaces).slice(0, MAX_SPARES);
    return lanes.map((lane) => {
      const known = full.has(lane) ? (before.get(lane) ?? 0) * 2 : 0;
      return { lane, jobs: Math.min(MAX_SPARE, Math.max(SPARE, known)) };
    });
  }

  private remember(place: string, position: { runAt: string; id: string }): void {
    this.positions.delete(place);
    this.positions.set(place, position);
    if (this.positions.size <= MAX_POSITIONS * 10) return;
    this.positions.delete(this.positions.keys().next().value!);
  }

  /** At most so many. Those that are not at the end of their lane come first, then those behind the turn. */
  private positionsAhead(): LaneMemoryState['positions'] {
    const all = [...new Map([...this.passes.positions(), ...this.positions])].map(([place, at]) => ({ place, ...at }));
    all.sort((a, b) => comparePlaces(a.place, b.place));
    if (all.length <= MAX_POSITIONS) return all;
    const rank = ({ place }: { place: string }): number =>
      this.passes.isOpen(place) ? 0 : comparePlaces(place, this.turns.last) > 0 ? 1 : 2;
    const chosen = all.sort((a, b) => rank(a) - rank(b)).slice(0, MAX_POSITIONS);
    return chosen.sort((a, b) => comparePlaces(a.place, b.place));
  }
}

/** Whether a lane was passed further than before, and not to its end. Not all positions are told to a claim. */
export function hasAdvanced({ memory: { positions } }: LaneClaim, { passed }: LaneReport): boolean {
  const known = new Set(positions.map(({ place }) => place));
  return passed.some(([place]) => known.has(place) || positions.length < MAX_POSITIONS);
}
