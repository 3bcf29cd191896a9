// What can be done to a queue of jobs, as plain data; and how the library is asked to do it.
import type { ClaimedJob, JobManager, JobSpec } from '../../lib/index.js';
import type { Claimer, SettleRequest } from '../../lib/interfaces/claim.interface.js';
import { LaneMemory } from '../../lib/manager/lane.memory.js';
import { lanesOfQueue } from '../../lib/manager/lane.names.js';
import { byHand } from '../../lib/manager/worker.registry.js';
import { asPool } from '../support/pool.claims.js';
import type { Sql } from './invariants.js';
import type { Memories } from './memories.js';
import { letLeasesEnd, letPoolsDie, letTimeCome, letWindowPass } from './tables.js';
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

/** Numbers stand for jobs, and for claims that some worker has ever made: the n-th, counted around. */
export type Action =
  | { do: 'add'; jobs: NewJob[] }
  | { do: 'claim'; worker: number; batch: number; task: string | null; queues: string[] | null }
  | {
      do: 'claim for a pool';
      worker: number;
      batch: number;
      plain: boolean;
      filter: number;
      share: number;
      remembers: boolean;
    }
  | { do: 'settle'; claim: number; count: number; outcome: Outcome }
  | { do: 'extend' | 'revoke' | 'cancel' | 'fail for good' | 'retry'; job: number }
  | { do: 'reschedule'; job: number; due: boolean | null; maxAttempts: number | null; priority: number | null }
  | { do: 'unlock' | 'let leases end' | 'let a pool die' | 'beat' | 'restart' | 'sign off'; worker: number }
  | { do: 'pause' | 'resume'; queue: string }
  | { do: 'configure'; queue: string; concurrency: number }
  | { do: 'limit'; limit: string; capacity: number }
  | { do: 'let a window pass'; limit: string }
  | { do: 'purge'; status: 'exhausted' | 'completed' | 'cancelled' }
  | { do: 'reset' | 'rescue' | 'refill' | 'recount' | 'replay' | 'collect garbage' | 'let time come' };

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
  /** What pools remember of lanes, for each way in which they claim. */
  memories: Memories;
}

export const incarnationOf = ({ incarnations }: Real, worker: number): string => incarnations.get(POOLS[worker]!)!;

export const concurrencyOf = (asked: number): number => (asked === NO_LIMIT ? Infinity : asked);

export const nth = <T>(list: T[], index: number): T | undefined => list[index % (list.length || 1)];

/**
 * The claim, and others of the same worker that are settled with it, some perhaps older claims of the same job; they are
 * forgotten, whatever becomes of them.
 */
export function takeClaims(real: Real, index: number, count: number): HeldClaim[] {
  const first = nth(real.claims, index);
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
  { batch, plain, filter, share }: { batch: number; plain: boolean; filter: number; share: number },
  memory = new LaneMemory(Infinity),
): Promise<ClaimedJob[]> {
  const request = { ...claimerOf(incarnation), ...filterOf(filter), worstPriority: null, limit: batch };
  if (plain) return (await jobs.claims.claimPlain({ ...request, maxKib: 1_000, cursor: [], quiet: null })).jobs;
  const claimed: ClaimedJob[] = [];
  for (;;) {
    const limit = batch - claimed.length;
    const { share: _share, ...state } = memory.next(limit);
    const look = { ...request, limit, share, maxCrashes: null, queue: null, memory: state };
    const found = await jobs.claims.claimLanes(look);
    memory.learn(found);
    claimed.push(...found.jobs);
    const isLast = claimed.length === batch || !found.more;
    if (isLast || share < batch) return claimed;
  }
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

/** Settles claims and says what became of each. */
export async function settle(jobs: JobManager, claims: HeldClaim[], kind: Outcome): Promise<string[]> {
  const requests = claims.map(({ job }) => ({ job, outcome: outcomeOf(kind), executionTimeMs: 1 }));
  const { results, late } = await jobs.settlement.settle(claimerOf(claims[0]!.worker), requests);
  const all = [...results, ...((await late) ?? [])];
  // A pool that does not fill a place that it has freed says so.
  const queues = all.flatMap(({ job, hasFreedPlace }) => (hasFreedPlace && job.queue !== null ? [job.queue] : []));
  if (queues.length) await jobs.publisher.publish({ kind: 'lanes', lanes: queues.map(lanesOfQueue) });
  return claims.map(({ job }) => all.find((result) => result.job === job)!.status);
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
      return void (await jobs.registry.rescue());
    case 'refill':
      return void (await jobs.refillRateLimits());
    case 'recount':
      return void (await jobs.forceUnlockQueues());
    case 'collect garbage':
      await jobs.gcJobHistory();
      await jobs.gcTaskIdentifiers({ keepSinceMs: 0 });
      return void (await jobs.gcJobQueues());
    case 'let time come':
      await letTimeCome(sql);
      return real.memories.forget();
    default:
      throw new Error(`Expected somebody to look at "${action.do}".`);
  }
}

let starts = 0;

/** A pool starts again under its label; what died before is another incarnation. */
export async function restart({ jobs, incarnations }: Real, label: string): Promise<void> {
  const id = `${label} #${++starts}`;
  await jobs.registry.register({ id, label, host: 'here', pid: 1, concurrency: 4, tasks: [], leaseMs: HOUR });
  incarnations.set(label, id);
}
