// What can be done to a queue of jobs, as plain data; and how the library is asked to do it.
import type { ClaimedJob, JobManager, JobSpec } from '../../lib/index.js';
import type { Claimer, LaneClaim, SettleRequest, SettleResult } from '../../lib/interfaces/claim.interface.js';
import { LaneMemory } from '../../lib/manager/lane.memory.js';
import { byHand } from '../../lib/manager/worker.registry.js';
import { isLockTimeout } from '../../lib/storage/sql.states.js';
import { FreedPlaces } from '../../lib/worker/freed.places.js';
import { asPool } from '../support/pool.claims.js';
import { letClockJump } from './clocks.js';
import type { Sql } from './invariants.js';
import type { Memories } from './memories.js';
import { letDutiesCome, letLeasesEnd, letPoolsDie, letTimeCome, letWindowPass } from './tables.js';
import type { Outcome } from './transitions.js';

export const TASKS = ['a', 'b'];
export const QUEUES = ['q1', 'q2'];
export const LIMITS = ['l1', 'l2'];
export const HANDS = ['by-hand-1-of-2', 'by-hand-2-of-2'];
/** Labels of pools, and what each kind of pool takes. */
export const POOLS = ['pool-of-one', 'pool-of-two'];
export const FLAG = 'heavy';
export const FILTERS: PoolFilter[] = [
  { taskIdentifiers: null, otherTasks: null, forbiddenFlags: null },
  { taskIdentifiers: null, otherTasks: ['a'], forbiddenFlags: [FLAG] },
  { taskIdentifiers: ['a'], otherTasks: null, forbiddenFlags: null },
];
export const HOUR = 3_600_000;
export const WINDOW = 1_000 * HOUR;
/** How far clocks jump, in hours: within every time-out, and beyond all of them. */
export const JUMPS = [-1_500, -0.02, 0.02, 1_500];
/** A queue without a limit. */
export const NO_LIMIT = 4;

export interface PoolFilter {
  taskIdentifiers: string[] | null;
  otherTasks: string[] | null;
  forbiddenFlags: string[] | null;
}

export type Policy = 'cancel' | 'run' | 'wait';
export type KeyMode = 'replace' | 'preserve_run_at' | 'unsafe_dedupe';

/** What is asked for when a job is added. */
export interface JobAsked {
  task: string;
  priority: number;
  due: boolean;
  flagged: boolean;
  maxAttempts: number;
  queue: string | null;
  limit: string | null;
  key: string | null;
  mode: KeyMode;
  parents: string[];
  policy: Policy;
}

/** Parents by their numbers. */
export type NewJob = Omit<JobAsked, 'parents'> & { parents: number[] };

/** How a pool looks at lanes. */
export interface Look {
  batch: number;
  filter: number;
  share: number;
}

/** Numbers stand for jobs, and for claims that some worker has ever made: the n-th, counted around. */
export type Action =
  | { do: 'add'; jobs: NewJob[] }
  | { do: 'claim'; worker: number; batch: number; task: string | null; queues: string[] | null }
  | (Look & { do: 'claim for a pool'; worker: number; plain: boolean; remembers: boolean })
  | (Look & { do: 'complete and claim'; claim: number; count: number; alone: boolean; remembers: boolean })
  | { do: 'settle'; claim: number; count: number; outcome: Outcome }
  | { do: 'extend' | 'revoke' | 'cancel' | 'fail for good' | 'retry'; job: number }
  | { do: 'reschedule'; job: number; due: boolean | null; maxAttempts: number | null; priority: number | null }
  | { do: 'unlock' | 'let leases end' | 'let a pool die' | 'beat' | 'restart' | 'sign off'; worker: number }
  | { do: 'pause' | 'resume'; queue: string }
  | { do: 'pause a task' | 'resume a task'; task: string }
  | { do: 'configure'; queue: string; concurrency: number }
  | { do: 'limit'; limit: string; capacity: number }
  | { do: 'let a window pass'; limit: string }
  | { do: 'purge'; status: 'exhausted' | 'completed' | 'cancelled' }
  | { do: 'the clock jumps'; hours: number }
  | { do: 'reset' | 'rescue' | 'audit' | 'refill' | 'recount' | 'replay' | 'collect garbage' | 'let time come' };

/** `worker`: the name of a claim by hand, or the incarnation of a pool. */
export interface HeldClaim {
  worker: string;
  job: ClaimedJob;
}

/** The library, what was added to it, and what workers believe to hold. */
export interface Real {
  jobs: JobManager;
  sql: Sql;
  ids: string[];
  claims: HeldClaim[];
  /** The present incarnation of each pool. */
  incarnations: Map<string, string>;
  /** Whether the database's clock was ahead: what was written before the jump back seems to be younger than it is. */
  clockWentBack: boolean;
  /** Whether more time has passed than some things are remembered for. */
  clockWentOn: boolean;
  /** What pools remember of lanes, for each way in which they claim. */
  memories: Memories;
}

export const incarnationOf = ({ incarnations }: Real, worker: number): string => incarnations.get(POOLS[worker]!)!;

export const isOfPool = ({ worker }: HeldClaim): boolean => !HANDS.includes(worker);

export const concurrencyOf = (asked: number): number => (asked === NO_LIMIT ? Infinity : asked);

export const nth = <T>(list: T[], index: number): T | undefined => list[index % (list.length || 1)];

/**
 * The claim, and others of the same worker that are settled with it, some perhaps older claims of the same job; they are
 * forgotten, whatever becomes of them. `among`: the claims that the number counts.
 */
export function takeClaims(real: Real, index: number, count: number, among = real.claims): HeldClaim[] {
  const first = nth(among, index);
  if (!first) return [];
  const others = real.claims.filter((held) => held.worker === first.worker && held !== first);
  const taken = [first, ...others.slice(0, count - 1)];
  real.claims = real.claims.filter((held) => !taken.includes(held));
  return taken;
}

export const toSpec = (job: JobAsked): JobSpec => ({
  task: job.task,
  payload: {},
  priority: job.priority,
  maxAttempts: job.maxAttempts,
  delayMs: job.due ? 0 : HOUR,
  ...(job.queue !== null && { queue: job.queue }),
  ...(job.flagged && { flags: [FLAG] }),
  ...(job.limit !== null && { rateLimitKey: job.limit }),
  ...(job.key !== null && { jobKey: job.key, jobKeyMode: job.mode }),
  ...(job.parents.length > 0 && { dependsOn: job.parents, onParentFailure: job.policy }),
});

/** Plain jobs alone, or jobs of lanes alone: as a pool asks for them, with what it remembers of lanes, until there are no more. */
export async function claimForPool(
  jobs: JobManager,
  incarnation: string,
  asked: Look & { plain: boolean },
  memory = new LaneMemory(Infinity),
): Promise<ClaimedJob[]> {
  const { batch, plain, share } = asked;
  const request = { ...claimerOf(incarnation), ...filterOf(asked.filter), worstPriority: null, limit: batch };
  if (plain) return (await jobs.engine.claims.claimPlain({ ...request, maxKib: 1_000, cursor: [], quiet: null })).jobs;
  const claimed: ClaimedJob[] = [];
  for (;;) {
    const found = await jobs.engine.claims.claimLanes(lookAt(incarnation, asked, memory, batch - claimed.length));
    memory.learn(found);
    claimed.push(...found.jobs);
    const isLast = claimed.length === batch || !found.more;
    if (isLast || share < batch) return claimed;
  }
}

function lookAt(incarnation: string, { batch, filter, share }: Look, memory: LaneMemory, limit = batch): LaneClaim {
  const { turns, ...state } = memory.next(limit);
  const request = { ...claimerOf(incarnation), ...filterOf(filter), worstPriority: null };
  const circles = turns.map((turn) => ({ ...turn, nextShare: share }));
  return { ...request, limit, maxCrashes: null, queue: null, memory: { ...state, turns: circles } };
}

/** `found`: null where the claims were settled apart; `alone`: the jobs come from the lane alone that was tried first. */
interface CompletedAndClaimed {
  statuses: string[];
  found: { jobs: ClaimedJob[]; alone: boolean; unknown: string[] } | null;
}

/** Completions of one pool and a claim by the same call, as a pool makes it. `alone`: first of the lane of the first job. */
export async function completeAndClaim(
  jobs: JobManager,
  claims: HeldClaim[],
  asked: Look & { alone: boolean },
  memory = new LaneMemory(Infinity),
): Promise<CompletedAndClaimed> {
  const [{ worker, job }] = claims as [HeldClaim];
  for (const { job: ended } of claims) if (ended.queue !== null) memory.noteFreed(ended.queue, ended.partition);
  const next = asked.alone ? memory.nextAfter(job) : null;
  const look = lookAt(worker, asked, memory);
  const values = jobs.engine.claims.valuesAfterSettle(look, next);
  let answer;
  try {
    answer = await jobs.engine.settlement.completeAndClaim(claimerOf(worker), requestsOf(claims, 'completed'), values);
  } catch (error) {
    // A fence is stale, or a job is held.
    if (!isLockTimeout(error)) throw error;
    return { statuses: await settle(jobs, claims, 'completed'), found: null };
  }
  const found = await jobs.engine.claims.readLanes(look, answer.claimed);
  const alone = found.report === null && found.taken.length > 0;
  if (alone) memory.tookNext(found.taken);
  else memory.learn(found);
  const results = [...answer.results, ...((await answer.late) ?? [])];
  await tellFreed(jobs, results, found.jobs);
  return {
    statuses: statusesOf(claims, results),
    found: { jobs: found.jobs, alone, unknown: found.report?.unknown ?? [] },
  };
}

export const filterOf = (filter: number): PoolFilter => nth(FILTERS, filter)!;

export function outcomeOf(kind: Outcome): SettleRequest['outcome'] {
  switch (kind) {
    case 'completed':
      return { kind, result: null };
    case 'failed':
      return { kind, error: 'x', delayMs: HOUR };
    case 'permanent':
      return { kind, error: 'x' };
    case 'partial':
      return { kind, partialResults: {}, delayMs: HOUR };
    case 'snoozed':
      return { kind, delayMs: HOUR };
    case 'cancelled':
      return { kind, reason: null };
    case 'released':
      return { kind };
  }
}

export const claimerOf = (worker: string): Claimer =>
  HANDS.includes(worker) ? byHand(worker, HOUR) : { ...asPool(worker), label: worker.split(' #')[0]! };

const requestsOf = (claims: HeldClaim[], kind: Outcome): SettleRequest[] =>
  claims.map(({ job }) => ({ job, outcome: outcomeOf(kind), executionTimeMs: 1 }));

const statusesOf = (claims: HeldClaim[], results: SettleResult[]): string[] =>
  claims.map(({ job }) => results.find((result) => result.job === job)!.status);

/** Settles claims and says what became of each. */
export async function settle(jobs: JobManager, claims: HeldClaim[], kind: Outcome): Promise<string[]> {
  const { results, late } = await jobs.engine.settlement.settle(claimerOf(claims[0]!.worker), requestsOf(claims, kind));
  const all = [...results, ...((await late) ?? [])];
  await tellFreed(jobs, all);
  return statusesOf(claims, all);
}

/** A pool that does not fill a place that it has freed says so. */
async function tellFreed(jobs: JobManager, results: SettleResult[], claimed: ClaimedJob[] = []): Promise<void> {
  const freed = new FreedPlaces();
  for (const { job, hasFreedPlace } of results) if (hasFreedPlace) freed.add(job);
  freed.fill(claimed);
  const lanes = freed.take();
  if (lanes.length) await jobs.engine.publisher.publish({ kind: 'lanes', lanes });
}

/** Everything whose outcome needs no look; the rest is done by those who look. */
export async function operate(real: Real, action: Action, id: string | undefined): Promise<void> {
  const { jobs, sql } = real;
  const ids = id === undefined ? [] : [id];
  switch (action.do) {
    case 'cancel':
      return void (await jobs.cancelJobs(ids));
    case 'fail for good':
      return void (await jobs.permanentlyFailJobs(ids));
    case 'retry':
      return void (await jobs.retryJobs(ids));
    case 'reschedule': {
      const runAt = action.due === null ? {} : { runAt: new Date(Date.now() + (action.due ? -HOUR : HOUR)) };
      const maxAttempts = action.maxAttempts === null ? {} : { maxAttempts: action.maxAttempts };
      const priority = action.priority === null ? {} : { priority: action.priority };
      return void (await jobs.rescheduleJobs(ids, { ...runAt, ...maxAttempts, ...priority }));
    }
    case 'unlock':
      return void (await jobs.forceUnlockJobs([HANDS[action.worker]!, POOLS[action.worker]!]));
    case 'let leases end':
      return void (await letLeasesEnd(sql, [HANDS[action.worker]!]));
    case 'let a pool die':
      return void (await letPoolsDie(sql, [incarnationOf(real, action.worker)]));
    case 'restart':
      return restart(real, POOLS[action.worker]!);
    case 'pause':
      return jobs.pauseQueue(action.queue);
    case 'resume':
      return jobs.resumeQueue(action.queue);
    case 'pause a task':
      return jobs.pause({ task: action.task }, { reason: 'why', by: 'who' });
    case 'resume a task':
      return void (await jobs.resume({ task: action.task }));
    case 'configure':
      return jobs.configureQueue(action.queue, { concurrency: concurrencyOf(action.concurrency) });
    case 'limit':
      return void (await jobs.registerRateLimit(action.limit, action.capacity, WINDOW));
    case 'let a window pass':
      await letWindowPass(sql, action.limit);
      return real.memories.forget();
    case 'purge':
      return void (await jobs.purgeJobs({ status: action.status, olderThanMs: 0 }));
    case 'reset':
      return void (await jobs.resetLockedJobs());
    case 'rescue':
      return void (await jobs.engine.registry.rescue());
    case 'audit':
      await letDutiesCome(sql);
      return jobs.engine.registry.audit();
    case 'refill':
      return void (await jobs.refillRateLimits());
    case 'recount':
      return void (await jobs.forceUnlockQueues());
    case 'collect garbage':
      await jobs.gcJobHistory();
      await jobs.gcTaskIdentifiers({ keepSinceMs: 0 });
      return void (await jobs.gcJobQueues());
    case 'the clock jumps':
      await letClockJump(sql, action.hours * HOUR);
      real.clockWentBack ||= action.hours < 0;
      real.clockWentOn ||= action.hours > 0;
      return real.memories.forget();
    case 'let time come':
      await letTimeCome(sql);
      return real.memories.forget();
    default:
      throw new Error(`Expected "${action.do}" to be handled.`);
  }
}

let starts = 0;

/** A pool starts again under its label; what died before is another incarnation. */
export async function restart({ jobs, incarnations }: Real, label: string): Promise<void> {
  const id = `${label} #${++starts}`;
  await jobs.engine.registry.register({ id, label, host: 'here', pid: 1, concurrency: 4, tasks: [], leaseMs: HOUR });
  incarnations.set(label, id);
}
