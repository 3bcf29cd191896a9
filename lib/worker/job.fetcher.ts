// The claims of a queue: looks at lanes for its free slots, batches of plain jobs for its buffer. One of each at a time.
import type {
  Claimer,
  ClaimResult,
  LaneClaim,
  LaneClaimResult,
  NextInLane,
  PlainClaimResult,
  SettleRequest,
} from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { SettleAnswer } from '../manager/job.settlement.js';
import { laneOf } from '../manager/lane.names.js';
import { byHand } from '../manager/worker.registry.js';
import { isLockTimeout } from '../storage/sql.states.js';
import type { ClaimGroup } from './claim.group.js';
import type { ClaimPlan, PlannedClaim } from './claim.plan.js';
import type { JobBuffer } from './job.buffer.js';
import type { JobQueueOptions } from './queue.options.js';

/** So many jobs of a task with a limit of its own wait in the buffer at most. */
const LIMITED_AHEAD = 10;
/** Most KiB of payloads that one claim reads, except the first. */
const MAX_CLAIM_KIB = 4 * 1024;
/** Most jobs of one claim for batches. */
const MAX_GATHERED = 1_000;

export interface Claimed extends ClaimResult {
  /** Of a task with a limit of its own. */
  ahead: boolean;
  /** The database's time of the claim, in ms; `null`: the holder may not claim. */
  claimedAt: number | null;
  /** Of lanes: what the look has told. */
  look?: LaneClaimResult;
}

/** What a round of claims may ask for. */
export interface Room {
  /** Free slots. */
  slots: () => number;
  /** Whether the buffer should be filled. */
  wantsMore: () => boolean;
  /** After so many failures in a row, claims are smaller: the last one may have been too much for a statement_timeout. */
  failures: () => number;
  pollMs: number;
}

export class JobFetcher {
  /** A look at lanes is under way: what is remembered of them is for one at a time. */
  private look: Promise<void> | null = null;
  /** How often the pool was taken for dead: what was claimed before belongs to others. */
  private era = 0;

  constructor(
    private readonly options: JobQueueOptions,
    private readonly plan: ClaimPlan,
    private readonly buffer: JobBuffer,
    private readonly room: Room,
  ) {}

  get looking(): boolean {
    return this.look !== null;
  }

  /** Resolves when no look is under way. */
  async lookEnds(): Promise<void> {
    await this.look;
  }

  /** Returns what ends it. */
  beginLook(): () => void {
    let resolve!: () => void;
    this.look = new Promise((settle) => (resolve = settle));
    return () => {
      this.look = null;
      resolve();
    };
  }

  get claimer(): Claimer {
    const { claimer, jobs, workerId, leaseMs } = this.options;
    return claimer?.() ?? byHand(workerId, leaseMs ?? jobs.engine.registry.lockTimeoutMs);
  }

  wantsLanes({ group }: PlannedClaim): boolean {
    return this.room.slots() > 0 && group.lookAt <= performance.now();
  }

  /** Tasks with a limit of their own do not wait until the buffer, which others fill, has room. */
  wantsPlain(planned: PlannedClaim): boolean {
    const { group, limit } = planned;
    if (group.queue !== null || this.options.mayClaim?.() === false) return false;
    if (planned.batch && this.plainRoom(planned) < 1) return false;
    return (limit !== null || this.room.wantsMore()) && !group.scan.isEmpty(this.room.pollMs);
  }

  /** Slots that become free meanwhile wait for the next round: queues are claimed from in their order. */
  async claimLanes(plan: PlannedClaim[]): Promise<Claimed[]> {
    const found: Claimed[] = [];
    const slots = this.room.slots();
    let given = 0;
    for (const planned of plan) {
      const look = await this.lookAt(planned, Math.min(this.room.slots(), slots - given));
      given += Math.ceil((look?.jobs.length ?? 0) / (planned.batch?.size ?? 1));
      if (look) found.push({ ...look, look, ahead: false });
    }
    return found;
  }

  async claimPlain(plan: PlannedClaim[]): Promise<Claimed[]> {
    const found: Claimed[] = [];
    for (const planned of plan) {
      const result = await this.fill(planned);
      if (result) found.push({ ...result, ahead: planned.limit !== null });
    }
    return found;
  }

  /** Settles completions, and looks at lanes in the same transaction. The caller has seen to it that no other look is under way. */
  async settleAndLook(
    group: ClaimGroup,
    requests: SettleRequest[],
  ): Promise<{ answer: SettleAnswer; look: LaneClaimResult }> {
    const { claims, settlement } = this.options.jobs.engine;
    const { era } = this;
    const next = this.nextLane(group, requests);
    const claim = this.laneClaim(group, this.room.slots());
    const values = claims.valuesAfterSettle(claim, next);
    try {
      const { claimed, ...answer } = await settlement.completeAndClaim(this.claimer, requests, values);
      const look = await claims.readLanes(claim, claimed);
      if (next && look.taken.length && !look.report) group.tookNext(look);
      else this.learn(group, look);
      return { answer, look: this.ofEra(era, look) };
    } catch (error) {
      group.couldNotLook();
      throw error;
    }
  }

  /** The pool was taken for dead: answers that are under way bring nothing, because others have these jobs. */
  forget(): void {
    this.era++;
  }

  /** Jobs of lanes, for the slots that are free; null where there are none, or nothing new. */
  private async lookAt({ group, limit, batch }: PlannedClaim, slots: number): Promise<LaneClaimResult | null> {
    const room = batch ? Math.min(MAX_GATHERED, slots * batch.size - batch.waiting) : slots;
    const wanted = Math.min(room, limit ?? Infinity) >> Math.min(this.room.failures(), 10);
    if (wanted < 1 || this.looking || group.lookAt > performance.now()) return null;
    const { era } = this;
    const end = this.beginLook();
    try {
      const look = await this.options.jobs.engine.claims.claimLanes(this.laneClaim(group, wanted));
      this.learn(group, look);
      return this.ofEra(era, look);
    } catch (error) {
      group.couldNotLook();
      // A table of lanes is locked as a whole: plain jobs need not wait for it.
      if (isLockTimeout(error)) return null;
      throw error;
    } finally {
      end();
    }
  }

  /**
   * The lane that completions free places in, where the next job may be taken from it without a look at others: they have
   * free slots of their own, and nothing was told of them.
   */
  private nextLane(group: ClaimGroup, requests: SettleRequest[]): NextInLane | null {
    if (group.hasNews) return null;
    const [{ job }] = requests as [SettleRequest];
    if ((this.buffer.headPriority ?? Infinity) < job.priority) return null;
    if (this.room.slots() <= requests.length || !requests.every((request) => isOfLane(request.job, job))) return null;
    return group.lanes.nextAfter(job);
  }

  private laneClaim(group: ClaimGroup, wanted: number): LaneClaim {
    const memory = group.lanes.next(wanted);
    group.looks();
    return {
      ...this.claimer,
      ...this.plan.filterOf(group),
      worstPriority: this.buffer.headPriority,
      maxCrashes: this.options.quarantine?.claimableCrashes ?? null,
      queue: group.queue,
      limit: wanted,
      memory,
    };
  }

  private learn(group: ClaimGroup, look: LaneClaimResult): void {
    group.lanes.learn(look);
    group.looked(look);
  }

  /** A batch of plain jobs, for the buffer; null where it needs none. */
  private async fill(planned: PlannedClaim): Promise<PlainClaimResult | null> {
    if (!this.wantsPlain(planned)) return null;
    const { group } = planned;
    const wanted = Math.max(1, this.plainRoom(planned) >> Math.min(this.room.failures(), 10));
    const startedAt = performance.now();
    const { era } = this;
    const result = await this.options.jobs.engine.claims.claimPlain({
      ...this.claimer,
      ...this.plan.filterOf(group),
      limit: wanted,
      maxKib: Math.min(MAX_CLAIM_KIB, this.buffer.roomKib),
      ...group.scan.next(),
    });
    group.scan.learn(result, performance.now() - startedAt, wanted);
    return this.ofEra(era, result);
  }

  /** For batches: what the free slots can run, and one batch ahead of them; more where few jobs share a batch. */
  private plainRoom({ limit, batch }: PlannedClaim): number {
    if (limit === null) return this.buffer.room + this.room.slots();
    if (!batch) return Math.min(limit, LIMITED_AHEAD);
    const room = Math.max((this.room.slots() + 1) * batch.size, this.buffer.size) - batch.waiting;
    return Math.min(limit, room, MAX_GATHERED);
  }

  private ofEra<Result extends ClaimResult>(era: number, result: Result): Result {
    return era === this.era ? result : { ...result, jobs: [] };
  }
}

const isOfLane = (a: ClaimedJob, b: ClaimedJob): boolean => a.priority === b.priority && laneOf(a) === laneOf(b);
