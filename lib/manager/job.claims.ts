// Claiming for a pool: plain jobs in batches, and jobs of lanes for its free slots. Claims by hand are made of the same.
import type {
  Claimer,
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
import { nullIfLocked } from '../storage/retry.js';
import { claimLaneJobs, claimPlainJobs, type ClaimedText } from '../storage/statements/claim-jobs.js';
import { rememberTasks } from '../storage/statements/prune-jobs.js';
import { registerQueues } from '../storage/statements/queues.js';
import { advance, inTurn, joinLooks, microseconds, type JobPosition } from './claim.cursor.js';
import { isSealed, openValue, openPayload, type JobCipher } from './job.cipher.js';
import { readableStart, toClaimedJob } from './job.mapper.js';
import type { JobSettlement } from './job.settlement.js';
import { weigh } from './job.weight.js';
import { hasAdvanced } from './lane.memory.js';
import { laneOf, placeInWalk } from './lane.names.js';
import { turnsAfter } from './lane.turns.js';
import type { SchemaCheck } from './schema.check.js';

/** How long a job waits that this process cannot decrypt, for one that can. */
const UNREADABLE_MS = 60_000;
/** Lanes that one claim looks at: a look of 1 to 2 ms. */
const MAX_HOPS = 200;
/** What may come last of a claim of plain jobs. */
interface PlainReport {
  quiet?: [after: number, upto: number, until: number] | null;
  passed?: [priority: number, runAt: number, id: string][];
  cut?: boolean;
  pausedUntil?: number | null;
}

interface Read extends ClaimResult {
  positions: (JobPosition & { lane: string })[];
  claimedAt: number | null;
  /** The object that comes last, if there is one. */
  last: PlainReport | LaneReport | null;
}

export class JobClaims {
  private readonly seenTasks = new Set<string>();

  constructor(
    private readonly database: Database,
    private readonly settlement: JobSettlement,
    private readonly cipher: JobCipher | undefined,
    private readonly schemaCheck: SchemaCheck,
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
    const { quiet, passed = [], cut: isCut = false } = (last as PlainReport | null) ?? {};
    const passes = passed.map(([priority, runAt, id]) => ({ priority, runAt, id }));
    return {
      ...result,
      cursor: advance(request.cursor, [...positions, ...passes]),
      quiet: quiet ? { after: quiet[0], upto: quiet[1], until: quiet[2] } : request.quiet,
      more: isCut || positions.length >= request.limit,
      passed: passes.map(({ priority }) => priority),
      isCut,
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
      const { resumes } = found.report;
      const memory = { ...request.memory, ...turnsAfter(request.memory, found.report), resumes };
      const more = this.claimLanesOnce({ ...request, limit, memory }, [...tried]);
      const next = await more.catch(nullIfLocked(() => found.taken.length > 0 && !this.database.isBound));
      if (!next?.report) return found;
      found = joinLooks(found, next);
    }
  }

  /** Names of tasks are noted again when they are met again. */
  clearRememberedTasks(): void {
    this.seenTasks.clear();
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
      request.taskIdentifiers,
      request.otherTasks,
      request.forbiddenFlags,
      request.maxCrashes,
      request.leaseMs,
      request.worstPriority,
      request.queue,
      memory.turns.map(({ place }) => place),
      memory.turns.map(({ left }) => left),
      memory.turns.map(({ share }) => share),
      memory.turns.map(({ nextShare }) => nextShare),
      memory.queueTurns.map(({ place }) => place),
      memory.queueTurns.map(({ left }) => left),
      memory.blocked.map(({ after }) => after),
      memory.blocked.map(({ upto }) => upto),
      memory.told,
      memory.dueSince === null ? null : microseconds(memory.dueSince),
      memory.positions.map(({ place }) => place),
      memory.positions.map(({ runAt }) => runAt),
      memory.positions.map(({ id }) => id),
      memory.spares.map(({ lane }) => lane),
      memory.spares.map(({ jobs }) => jobs),
      memory.resumes?.[0] ?? null,
      memory.resumes?.[1] ?? null,
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
    const report = last && 'turns' in last ? (last as LaneReport) : null;
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
    const read: Read = { jobs: [], positions: [], claimedAt, last: null, more: false, pausedUntil: null };
    const refused: SettleRequest[] = [];
    for (let index = 1; index < rows.length; index++) {
      const text = rows[index]!.job;
      if (text.startsWith('{')) {
        read.last = JSON.parse(text) as PlainReport;
        read.pausedUntil = read.last.pausedUntil ?? null;
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
