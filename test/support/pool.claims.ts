// Claims as a pool makes them, without a pool: for specs of what happens to claims.
import type { JobManager, ClaimedJob } from '../../lib/index.js';
import type { LaneClaimResult } from '../../lib/interfaces/claim.interface.js';
import { LaneMemory } from '../../lib/manager/lane.memory.js';

export interface PoolClaim {
  limit?: number;
  taskIdentifiers?: string[] | null;
  forbiddenFlags?: string[] | null;
  memory?: LaneMemory;
}

/** Makes an incarnation known. Its label is its id. */
export async function registerPool(jobs: JobManager, id: string, leaseMs = 30_000): Promise<void> {
  await jobs.engine.registry.register({ id, label: id, host: 'h', pid: 1, concurrency: 1, tasks: ['t'], leaseMs });
}

/** Claims as the incarnation `id`: jobs of lanes first, then plain ones. */
export async function claimAsPool(jobs: JobManager, id: string, claim: PoolClaim = {}): Promise<ClaimedJob[]> {
  const { limit = 10, taskIdentifiers = null, forbiddenFlags = null, memory = new LaneMemory(Infinity) } = claim;
  const base = { holder: id, label: id, leaseMs: null, taskIdentifiers, forbiddenFlags };
  const filter = { ...base, otherTasks: null, worstPriority: null };
  const lanes = await jobs.engine.claims.claimLanes({
    ...filter,
    limit,
    maxCrashes: null,
    queue: null,
    memory: memory.next(limit),
  });
  memory.learn(lanes);
  const left = limit - lanes.jobs.length;
  if (!left) return lanes.jobs;
  const plain = await jobs.engine.claims.claimPlain({
    ...filter,
    limit: left,
    maxKib: 65_536,
    cursor: [],
    quiet: null,
  });
  return [...lanes.jobs, ...plain.jobs];
}

export interface PoolLook {
  taskIdentifiers?: string[];
  /** How long it took, as the pool is told. */
  ms?: number;
}

/** One look at lanes, with what the pool remembers, as the incarnation `id` makes it. */
export async function lookAsPool(
  jobs: JobManager,
  id: string,
  limit: number,
  memory: LaneMemory,
  { taskIdentifiers, ms }: PoolLook = {},
): Promise<LaneClaimResult> {
  const found = await jobs.engine.claims.claimLanes({
    ...asPool(id),
    taskIdentifiers: taskIdentifiers ?? null,
    otherTasks: null,
    forbiddenFlags: null,
    worstPriority: null,
    maxCrashes: null,
    queue: null,
    limit,
    memory: memory.next(limit),
  });
  memory.learn(ms === undefined ? found : { ...found, report: { ...found.report!, ms } });
  return found;
}

/** The claimer that settles what `claimAsPool` has claimed. */
export const asPool = (id: string) => ({ holder: id, label: id, leaseMs: null });
