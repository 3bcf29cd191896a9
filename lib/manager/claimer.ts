// Claiming from the manager's side: runs the claim statement with a cursor, registers queues it did not know, and
// works out where the next claim starts.
import type { ClaimCursor, ClaimRequest, ClaimResult, CursorPosition } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { Database } from '../storage/database.js';
import { claimJobs, claimPlainJobs, type CandidateRow, type PlainJob } from '../storage/statements/claim-jobs.js';
import { registerQueues } from '../storage/statements/queues.js';
import { toClaimedJob, toPlainClaim } from './job.mapper.js';

const BEFORE_ANY_PRIORITY = -2_147_483_649;
const AFTER_ANY_PRIORITY = 2_147_483_648;
const START = { runAt: '-infinity', id: '00000000-0000-0000-0000-000000000000' };

export interface ClaimOutcome extends ClaimResult {
  /** Queues whose free places the claim could not use: a waiting job should get them. */
  promote: string[];
}

/** Claims by the request; in the given order if it names queues. */
export async function claim(database: Database, request: ClaimRequest): Promise<ClaimOutcome> {
  if (!request.queues) {
    const plain = !request.lookForSlots && request.leaseMs === null;
    return plain ? claimPlain(database, request) : claimFrom(database, request, null);
  }
  const found: ClaimOutcome = { jobs: [], cursor: [], more: false, retryInMs: null, promote: [] };
  for (const queue of request.queues) {
    const limit = request.limit - found.jobs.length;
    if (limit <= 0) return { ...found, more: true };
    const slots = Math.min(limit, request.slots - found.jobs.length);
    const next = await claimFrom(database, { ...request, limit, slots, cursor: [] }, queue);
    found.jobs.push(...next.jobs);
    found.more ||= next.more;
    found.retryInMs = earlier(found.retryInMs, next.retryInMs);
    found.promote.push(...next.promote);
  }
  return found;
}

/** A pool's next batch of jobs without limits: the claim that most are. */
async function claimPlain(database: Database, request: ClaimRequest): Promise<ClaimOutcome> {
  const known = request.cursor.filter(({ slotOnly }) => !slotOnly).sort((a, b) => a.priority - b.priority);
  const [claimedAt, ...rows] = await database.run(claimPlainJobs, [
    request.workerId,
    request.limit,
    request.taskIdentifiers,
    request.forbiddenFlags,
    known.map(({ priority }) => priority),
    known.map(({ runAt }) => runAt),
    known.map(({ id }) => id),
  ]);
  const lockedAt = Number(claimedAt?.job);
  const jobs: ClaimedJob[] = [];
  const last = new Map<number, PlainJob>();
  for (const { job } of rows) {
    const plain = JSON.parse(job) as PlainJob;
    const furthest = last.get(plain[1]);
    // They come in the order in which they are stored, which is their turn only mostly.
    if (!furthest || plain[2] > furthest[2] || (plain[2] === furthest[2] && plain[0] > furthest[0])) {
      last.set(plain[1], plain);
    }
    jobs.push(toPlainClaim(plain, request.workerId, lockedAt));
  }
  return {
    jobs: inTurn(jobs),
    cursor: advance(request.cursor, [...last.values()].map(placeOf)),
    more: jobs.length >= request.limit,
    retryInMs: null,
    promote: [],
  };
}

async function claimFrom(database: Database, request: ClaimRequest, queue: string | null): Promise<ClaimOutcome> {
  const rows = await run(database, request, queue);
  const unknown = rows.filter(({ verdict }) => verdict === 'unknown_queue');
  const found = toOutcome(request, rows);
  if (!unknown.length) return found;
  // The first job of a queue anybody claims: register the queue, then claim once more for what is left to claim.
  await database.run(registerQueues, [unknown.map((row) => row.queue)]);
  const rest = {
    ...request,
    limit: request.limit - found.jobs.length,
    slots: request.slots - found.jobs.filter(needsSlot).length,
    cursor: found.cursor,
  };
  const next = await claimFrom(database, rest, queue);
  return {
    jobs: [...found.jobs, ...next.jobs].sort(byTurn),
    cursor: next.cursor,
    more: next.more,
    retryInMs: earlier(found.retryInMs, next.retryInMs),
    promote: [...found.promote, ...next.promote],
  };
}

function run(database: Database, request: ClaimRequest, queue: string | null): Promise<CandidateRow[]> {
  const { cursor } = request;
  const gaps = [...gapsOf(cursor, false), ...gapsOf(cursor, true)];
  return database.run(claimJobs, [
    request.workerId,
    request.limit,
    request.slots,
    request.taskIdentifiers,
    request.forbiddenFlags,
    queue,
    request.leaseMs,
    cursor.map(({ slotOnly }) => slotOnly),
    cursor.map(({ priority }) => priority),
    cursor.map(({ runAt }) => runAt),
    cursor.map(({ id }) => id),
    gaps.map(({ slotOnly }) => slotOnly),
    gaps.map(({ lower }) => lower),
    gaps.map(({ upper }) => upper),
    request.slotPriorityLimit,
    request.lookForSlots,
  ]);
}

/** The ranges between the priorities that the cursor knows of: a job of a new priority must not wait for a sweep. */
function gapsOf(cursor: ClaimCursor, slotOnly: boolean): { slotOnly: boolean; lower: number; upper: number }[] {
  const known = cursor.filter((position) => position.slotOnly === slotOnly).map(({ priority }) => priority);
  const bounds = [BEFORE_ANY_PRIORITY, ...known.sort((a, b) => a - b), AFTER_ANY_PRIORITY];
  return bounds.slice(1).map((upper, index) => ({ slotOnly, lower: bounds[index] as number, upper }));
}

function toOutcome(request: ClaimRequest, rows: CandidateRow[]): ClaimOutcome {
  const refused = rows.filter(({ verdict }) => verdict === 'tokens');
  const inLane = (slotOnly: boolean): number => rows.filter((row) => row.slot_only === slotOnly).length;
  return {
    jobs: inTurn(rows.filter(({ verdict }) => verdict === 'claimed').map((row) => toClaimedJob(row, request.workerId))),
    cursor: advance(request.cursor, rows),
    more: inLane(false) >= request.limit || (request.slots > 0 && inLane(true) >= request.slots),
    retryInMs: refused.reduce<number | null>((soonest, row) => earlier(soonest, row.refill_in_ms), null),
    promote: [...new Set(rows.flatMap((row) => (row.promote ? (row.queue ?? []) : [])))],
  };
}

/** Where a job stands that a claim came across. */
type Place = Pick<CandidateRow, 'verdict' | 'slot_only' | 'priority' | 'run_at' | 'id'>;

const placeOf = ([id, priority, run_at]: PlainJob): Place => ({
  verdict: 'claimed',
  slot_only: false,
  priority,
  run_at,
  id,
});

/** Moves each position behind the last row that was dealt with; rows to come back to stop it. */
function advance(cursor: ClaimCursor, rows: Place[]): ClaimCursor {
  const positions = new Map<string, CursorPosition>(cursor.map((position) => [laneOf(position), position]));
  const stopped = new Set<string>();
  const last = new Map<string, Place>();
  for (const row of rows) {
    const lane = laneOf({ slotOnly: row.slot_only, priority: row.priority });
    if (row.verdict === 'later' || row.verdict === 'unknown_queue') {
      stopped.add(lane);
      if (!positions.has(lane)) positions.set(lane, { ...positionOf(row), ...START });
    } else if (!stopped.has(lane) && isBehind(row, last.get(lane))) last.set(lane, row);
  }
  for (const [lane, row] of last) positions.set(lane, positionOf(row));
  return [...positions.values()];
}

/** Plain claims come in the order in which they are stored, which is their turn only mostly. */
const isBehind = (row: Place, other: Place | undefined): boolean =>
  !other || row.run_at > other.run_at || (row.run_at === other.run_at && row.id > other.id);

const positionOf = ({ slot_only, priority, run_at, id }: Place): CursorPosition => ({
  slotOnly: slot_only,
  priority,
  runAt: microseconds(run_at),
  id,
});

/** As PostgreSQL reads it, to the microsecond; a Date would lose three digits. */
function microseconds(ms: number): string {
  const total = Math.round(ms * 1_000);
  const whole = new Date(Math.floor(total / 1_000)).toISOString().slice(0, -1);
  return `${whole}${String(total - Math.floor(total / 1_000) * 1_000).padStart(3, '0')}Z`;
}

const laneOf = ({ slotOnly, priority }: Pick<CursorPosition, 'slotOnly' | 'priority'>): string =>
  `${slotOnly}:${priority}`;

const needsSlot = ({ queue, rateLimitKey }: ClaimedJob): boolean => queue !== null || rateLimitKey !== null;

/** Priority, run-at, id: the order in which jobs are due. */
const byTurn = (a: ClaimedJob, b: ClaimedJob): number =>
  a.priority - b.priority || a.runAt.getTime() - b.runAt.getTime() || (a.id < b.id ? -1 : 1);

/** Sorts only where it must. */
function inTurn(jobs: ClaimedJob[]): ClaimedJob[] {
  const sorted = jobs.every((job, index) => index === 0 || byTurn(jobs[index - 1]!, job) <= 0);
  return sorted ? jobs : jobs.sort(byTurn);
}

const earlier = (a: number | null, b: number | null): number | null =>
  a === null ? b : b === null ? a : Math.min(a, b);
