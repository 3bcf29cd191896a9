// Claiming: for a pool, plain jobs in batches and jobs of lanes for its free slots; by hand, the best jobs there are.
import type {
  Claimer,
  ClaimFilter,
  ClaimResult,
  LaneClaim,
  LaneClaimResult,
  NextInLane,
  Outcome,
  PlainClaim,
  PlainClaimResult,
  SettleRequest,
  LaneReport,
} from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { UnreadableJobError } from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import { nullIfLocked, once, retryOnContention } from '../storage/retry.js';
import {
  claimLaneJobs,
  claimPlainJobs,
  nextPlainPriority,
  type ClaimedText,
} from '../storage/statements/claim-jobs.js';
import { rememberTasks } from '../storage/statements/prune-jobs.js';
import { registerQueues } from '../storage/statements/queues.js';
import { claimsOfTheDead, endIncarnations } from '../storage/statements/workers.js';
import { advance, inTurn, joinLooks, microseconds, type JobPosition } from './claim.cursor.js';
import { isSealed, openValue, openPayload, type JobCipher } from './job.cipher.js';
import { readableStart, toClaimedJob } from './job.mapper.js';
import type { JobSettlement } from './job.settlement.js';
import { weigh } from './job.weight.js';
import { hasAdvanced, LaneMemory, type Turns } from './lane.memory.js';
import { laneOf, placeInWalk } from './lane.names.js';
import type { SchemaCheck } from './schema.check.js';

/** How long a job waits that this process cannot decrypt, for one that can. */
const UNREADABLE_MS = 60_000;
/** Lanes that one claim looks at: a look of 1 to 2 ms. */
const MAX_HOPS = 200;
/** So often do claims by hand try what others hold, with twice as many jobs to spare each time. */
const TRIES = 7;
const BEST_PRIORITY = -2_147_483_648;
const BEFORE_ANY_PRIORITY = BEST_PRIORITY - 1;
/** Most KiB that one claim by hand reads, except the first payload. */
const MAX_KIB = 64 * 1024;

/** A claim by hand. */
export type HandClaim = Claimer & Omit<ClaimFilter, 'worstPriority' | 'otherTasks'>;

interface Read extends ClaimResult {
  positions: (JobPosition & { lane: string })[];
  claimedAt: number | null;
  /** The object that comes last, if there is one. */
  last: unknown;
}

export class JobClaims {
  private readonly seenTasks = new Set<string>();
  /** Claims by hand take turns between plain jobs and lanes. */
  private lanesFirst = false;
  /** Where turns go on over the lanes, from one claim by hand to the next. */
  private readonly turns: Turns = new Map();

  constructor(
    private readonly database: Database,
    private readonly settlement: JobSettlement,
    private readonly cipher: JobCipher | undefined,
    private readonly schemaCheck: SchemaCheck,
    /** After so many crashes in a row a job is exhausted. */
    private readonly maxCrashes: number,
  ) {}

  /** A batch of jobs without limits. */
  async claimPlain(request: PlainClaim): Promise<PlainClaimResult> {
    this.schemaCheck.assertKnown();
    const rows = await this.database.run(claimPlainJobs, [
      request.holder,
      request.limit,
      request.maxKib,
      request.taskIdentifiers,
      request.otherTasks,
      request.forbiddenFlags,
      request.leaseMs,
      request.worstPriority,
      request.cursor.map(({ priority }) => priority),
      request.cursor.map(({ runAt }) => runAt),
      request.cursor.map(({ id }) => id),
      request.quiet?.after ?? null,
      request.quiet?.upto ?? null,
    ]);
    const { positions, last, ...result } = await this.read(request, rows);
    const quiet = (last as { quiet?: [number, number, number] } | null)?.quiet;
    return {
      ...result,
      cursor: advance(request.cursor, positions),
      quiet: quiet ? { after: quiet[0], upto: quiet[1], until: quiet[2] } : request.quiet,
      more: positions.length >= request.limit,
    };
  }

  /** Jobs of lanes, for free slots. Nothing is taken before what lies in queues that no claim has met: these are registered first. */
  async claimLanes(request: LaneClaim): Promise<LaneClaimResult> {
    let found = await this.claimLanesOnce(request);
    for (const tried = new Set<string>(); ;) {
      const unknown = found.report?.unknown.filter((queue) => !tried.has(queue));
      if (!found.report || !unknown?.length) return found;
      await this.database.run(registerQueues, [unknown]);
      for (const queue of unknown) tried.add(queue);
      const limit = request.limit - found.taken.length;
      if (limit <= 0) return found;
      // The last turn of each priority counts.
      const turns = [...found.report.turns.toReversed(), ...request.memory.turns];
      const memory = { ...request.memory, turns };
      const more = this.claimLanesOnce({ ...request, limit, memory }, [...tried]);
      const next = await more.catch(nullIfLocked(() => found.taken.length > 0 && !this.database.isBound));
      if (!next?.report) return found;
      found = joinLooks(found, next);
    }
  }

  /**
   * Claims by hand, without a cursor: best priority first; plain jobs and lanes of one priority share, and take turns at
   * being first. With `queues`: in their order.
   * @throws RowsHeldError where another session has locked a table as a whole for 10 s, and nothing was claimed before
   */
  async claimExactly(request: HandClaim, queues: string[] | null, batchSize: number): Promise<ClaimedJob[]> {
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

  /** Ends the claims of incarnations that have not been heard of for their lease. Returns how many. */
  async rescue(maxCrashes = this.maxCrashes, doing = once): Promise<number> {
    await doing(() => this.database.run(endIncarnations, [null]));
    let rescued = 0;
    for (;;) {
      const claims = await doing(() => this.database.run(claimsOfTheDead, [maxCrashes]));
      const left = claims.filter(({ has_left }) => has_left);
      const lost = claims.filter(({ has_left }) => !has_left);
      const spared = new Set(lost.filter(({ is_spared }) => is_spared).map(({ id }) => id));
      const kindOf = ({ id }: { id: string }) => (spared.has(id) ? ('spared' as const) : ('crashed' as const));
      const ended = [
        ...(await doing(() => this.settlement.end(left, 'released', null, { patient: false }))),
        ...(await doing(() => this.settlement.end(lost, kindOf, 'worker died', { maxCrashes, patient: false }))),
      ];
      rescued += ended.length;
      // What open transactions of frozen processes hold comes later.
      if (ended.length < 1_000) return rescued;
    }
  }

  /** Names of tasks are noted again when they are met again. */
  clearRememberedTasks(): void {
    this.seenTasks.clear();
  }

  /** Repeats claims until there are so many, or they bring nothing more: what one look passes costs a further one. */
  private async claimAllLanes(
    request: HandClaim & { worstPriority: number | null },
    queue: string | null,
    upto: number,
    jobs: ClaimedJob[],
  ): Promise<void> {
    const memory = new LaneMemory(Infinity, queue === null ? this.turns : undefined);
    let tries = 0;
    while (jobs.length < upto) {
      const wanted = upto - jobs.length;
      const base = { ...request, otherTasks: null, maxCrashes: null, queue, limit: wanted };
      const { share: _share, ...state } = memory.next(wanted);
      const found = await this.claimLanes({ ...base, memory: state, share: wanted });
      memory.learn(found);
      jobs.push(...found.jobs);
      // What others hold is tried once more, with some to spare; where they hold all of those, with ever more.
      tries++;
      const { held = [], crowded = [] } = found.report ?? {};
      const isHeld = (held.length > 0 && tries === 1) || (crowded.length > 0 && tries <= TRIES);
      if (!found.jobs.length && !found.more && !isHeld) break;
    }
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
      const found = await this.claimPlain(base);
      jobs.push(...found.jobs);
      cursor = found.cursor;
      if (!found.jobs.length) break;
    }
  }

  private async nextPlainPriority(after: number): Promise<number | null> {
    return (await this.database.run(nextPlainPriority, [after]))[0]?.priority ?? null;
  }

  /** `unregistered`: queues whose names others hold, so that nothing waits for them. */
  private async claimLanesOnce(request: LaneClaim, unregistered: string[] = []): Promise<LaneClaimResult> {
    const rows = await this.database.run(claimLaneJobs, [...this.laneValues(request), unregistered]);
    return this.readLanes(request, rows);
  }

  /** A claim of lanes as its statement takes it. */
  laneValues(request: LaneClaim): unknown[] {
    this.schemaCheck.assertKnown();
    const { memory } = request;
    return [
      request.holder,
      request.limit,
      request.share,
      request.taskIdentifiers,
      request.otherTasks,
      request.forbiddenFlags,
      request.maxCrashes,
      request.leaseMs,
      request.worstPriority,
      request.queue,
      memory.turns,
      memory.blocked.map(({ after }) => after),
      memory.blocked.map(({ upto }) => upto),
      memory.told,
      memory.dueSince === null ? null : microseconds(memory.dueSince),
      memory.positions.map(({ place }) => place),
      memory.positions.map(({ runAt }) => runAt),
      memory.positions.map(({ id }) => id),
      memory.spares.map(({ lane }) => lane),
      memory.spares.map(({ jobs }) => jobs),
      MAX_HOPS,
    ];
  }

  /** The same as a settle takes it that claims: `next` is tried alone before it. */
  valuesAfterSettle(request: LaneClaim, next: NextInLane | null): unknown[] {
    const { priority = null, lane = null, runAt = null, id = null } = next ?? {};
    return [...this.laneValues(request), priority, lane, runAt, id];
  }

  /** What a claim of lanes has brought. */
  async readLanes(request: LaneClaim, rows: { job: string }[]): Promise<LaneClaimResult> {
    const { positions, last, claimedAt, ...result } = await this.read(request, rows);
    const report = last as LaneReport | null;
    const taken = positions.map(({ priority, lane, runAt, id }) => ({
      place: placeInWalk(priority, lane),
      runAt: microseconds(runAt),
      id,
    }));
    return {
      ...result,
      taken,
      claimedAt,
      report,
      more: report !== null && (report.more || hasAdvanced(request, report)),
    };
  }

  /** Texts become jobs. What cannot be read is failed, what cannot be decrypted is put off: neither stops the rest. */
  private async read(claimer: Claimer, rows: { job: string }[]): Promise<Read> {
    const claimedAt = rows.length ? Number(rows[0]!.job) : null;
    const read: Read = { jobs: [], positions: [], claimedAt, last: null, more: false };
    const refused: SettleRequest[] = [];
    for (let index = 1; index < rows.length; index++) {
      const text = rows[index]!.job;
      if (text.startsWith('{')) {
        read.last = JSON.parse(text);
        continue;
      }
      const { job, runAt, error } = this.readOne(text, claimer.label, claimedAt!);
      read.positions.push({ priority: job.priority, lane: laneOf(job), runAt, id: job.id });
      if (!error) read.jobs.push(job);
      else {
        read.unreadable ??= error;
        const outcome: Outcome =
          error instanceof UnreadableJobError
            ? { kind: 'permanent', error }
            : { kind: 'snoozed', delayMs: UNREADABLE_MS, error };
        refused.push({ job, outcome, executionTimeMs: 0 });
      }
    }
    if (refused.length) await this.settlement.settleAtLast(claimer, refused);
    inTurn(read.jobs);
    await this.rememberTasks(read.jobs);
    return read;
  }

  private readOne(text: string, label: string, claimedAt: number): { job: ClaimedJob; runAt: number; error?: unknown } {
    let told: ClaimedText;
    try {
      told = JSON.parse(text) as ClaimedText;
    } catch (error) {
      told = readableStart(text);
      return { job: toClaimedJob(told, label, claimedAt), runAt: told[3], error: unreadable(error) };
    }
    const job = toClaimedJob(told, label, claimedAt);
    weigh(job, text.length);
    if (told.length < 11) return { job, runAt: told[3], error: unreadable(new Error('its payload is gone')) };
    try {
      if (isSealed(job.payload)) job.payload = openPayload(this.cipher, job.payload, job.id, job.task);
      if (isSealed(job.previous)) job.previous = openValue(this.cipher, job.previous, 'partial', job.id);
      return { job, runAt: told[3] };
    } catch (error) {
      return { job, runAt: told[3], error };
    }
  }

  private async rememberTasks(jobs: ClaimedJob[]): Promise<void> {
    let fresh: Set<string> | null = null;
    for (const { task } of jobs) if (!this.seenTasks.has(task)) (fresh ??= new Set()).add(task);
    if (!fresh) return;
    await this.database.run(rememberTasks, [[...fresh]]);
    for (const task of fresh) this.seenTasks.add(task);
  }
}

const unreadable = (cause: unknown): UnreadableJobError => new UnreadableJobError(cause);
