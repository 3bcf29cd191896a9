// Claims by hand, one at a time: the best jobs there are, without what a pool remembers from one claim to the next.
import type { Claimer, ClaimFilter, PlainClaim } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { Database } from '../storage/database.js';
import { nullIfLocked, retryOnContention } from '../storage/retry.js';
import { nextPlainPriority } from '../storage/statements/claim-jobs.js';
import { inTurn } from './claim.cursor.js';
import type { JobClaims } from './job.claims.js';
import { LaneMemory } from './lane.memory.js';
import { Turns } from './lane.turns.js';

/** So often is tried what others hold, with twice as many jobs to spare each time. */
const TRIES = 7;
const BEST_PRIORITY = -2_147_483_648;
const BEFORE_ANY_PRIORITY = BEST_PRIORITY - 1;
/** Most KiB that one claim reads, except the first payload. */
const MAX_KIB = 64 * 1024;

/** Queues whose turns are remembered. */
const MAX_TURNS = 100;

/** A claim by hand. */
export type HandClaim = Claimer & Omit<ClaimFilter, 'worstPriority' | 'otherTasks'>;

export class ExactClaims {
  /** Claims take turns between plain jobs and lanes. */
  private lanesFirst = false;
  /** Where turns go on over the lanes, from one claim to the next: of one queue, or of all. */
  private readonly turns = new Map<string | null, Turns>();

  constructor(
    private readonly database: Database,
    private readonly claims: JobClaims,
  ) {}

  /**
   * Claims by hand, without a cursor: best priority first; plain jobs and lanes of one priority share, and take turns at
   * being first. With `queues`: in their order.
   * @throws RowsHeldError where another session has locked a table as a whole for 10 s, and nothing was claimed before
   */
  async claim(request: HandClaim, queues: string[] | null, batchSize: number): Promise<ClaimedJob[]> {
    const jobs: ClaimedJob[] = [];
    const claim = async (): Promise<void> => {
      for (const queue of queues ?? [])
        await this.claimAllLanes({ ...request, worstPriority: null }, queue, batchSize, jobs);
      if (!queues) await this.claimBest(request, batchSize, jobs);
    };
    const { isBound } = this.database;
    await retryOnContention(() => claim().catch(nullIfLocked(() => jobs.length > 0 && !isBound)), isBound);
    return queues ? jobs : inTurn(jobs);
  }

  private async claimBest(request: HandClaim, batchSize: number, jobs: ClaimedJob[]): Promise<void> {
    const left = (): number => batchSize - jobs.length;
    const fromLanes = (limit: number, worstPriority: number | null): Promise<void> =>
      this.claimAllLanes({ ...request, worstPriority }, null, jobs.length + limit, jobs);
    const fromPlain = (limit: number, worstPriority: number): Promise<void> =>
      this.claimAllPlain({ ...request, worstPriority }, jobs.length + limit, jobs);
    this.lanesFirst = !this.lanesFirst;
    for (let best = await this.nextPlainPriority(BEFORE_ANY_PRIORITY); best !== null && left() > 0;) {
      if (best > BEST_PRIORITY) await fromLanes(left(), best - 1);
      await fromPlain(this.lanesFirst ? Math.floor(left() / 2) : Math.ceil(left() / 2), best);
      await fromLanes(left(), best);
      await fromPlain(left(), best);
      best = await this.nextPlainPriority(best);
    }
    await fromLanes(left(), null);
  }

  /** Repeats claims until there are so many, or they bring nothing more: what one look passes costs a further one. */
  private async claimAllLanes(
    request: HandClaim & { worstPriority: number | null },
    queue: string | null,
    upto: number,
    jobs: ClaimedJob[],
  ): Promise<void> {
    const memory = new LaneMemory(Infinity, this.turnsOf(queue));
    let tries = 0;
    while (jobs.length < upto) {
      const wanted = upto - jobs.length;
      const base = { ...request, otherTasks: null, maxCrashes: null, queue, limit: wanted };
      const found = await this.claims.claimLanes({ ...base, memory: memory.next(wanted) });
      memory.learn(found);
      jobs.push(...found.jobs);
      // What others hold is tried once more, with some to spare; where they hold all of those, with ever more.
      tries++;
      const { held = [], crowded = [] } = found.report ?? {};
      const isHeld = (held.length > 0 && tries === 1) || (crowded.length > 0 && tries <= TRIES);
      if (!found.jobs.length && !found.more && !isHeld) break;
    }
  }

  private turnsOf(queue: string | null): Turns {
    const turns = this.turns.get(queue) ?? new Turns();
    this.turns.delete(queue);
    this.turns.set(queue, turns);
    if (this.turns.size > MAX_TURNS) this.turns.delete(this.turns.keys().next().value!);
    return turns;
  }

  private async claimAllPlain(
    request: HandClaim & { worstPriority: number | null },
    upto: number,
    jobs: ClaimedJob[],
  ): Promise<void> {
    let cursor: PlainClaim['cursor'] = [];
    while (jobs.length < upto) {
      const wanted = upto - jobs.length;
      const base = { ...request, otherTasks: null, limit: wanted, maxKib: MAX_KIB, cursor, quiet: null };
      const found = await this.claims.claimPlain(base);
      jobs.push(...found.jobs);
      cursor = found.cursor;
      if (!found.jobs.length && !found.isCut) break;
    }
  }

  private async nextPlainPriority(after: number): Promise<number | null> {
    return (await this.database.run(nextPlainPriority, [after]))[0]?.priority ?? null;
  }
}
