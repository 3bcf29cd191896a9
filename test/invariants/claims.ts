// Claims of the random lives: only what may be claimed is, within all limits and in order, and nothing is left without a reason.
import { expect } from '@jest/globals';
import * as actions from './actions.js';
import { HANDS, POOLS, type Action, type Real } from './actions.js';
import type { Model, ModelJob } from './model.js';

export async function claimByHand(model: Model, real: Real, action: Action & { do: 'claim' }): Promise<void> {
  const worker = HANDS[action.worker]!;
  const { task, queues } = action;
  const mayTake = (job: ModelJob): boolean =>
    model.isClaimable(job) &&
    (task === null || job.task === task) &&
    (queues === null || (job.queue !== null && queues.includes(job.queue)));
  const before = await waitingInOrder(model, real);
  const free = freeBefore(model);
  const jobs = await real.jobs.getJobs(worker, {
    batchSize: action.batch,
    leaseMs: actions.HOUR,
    ...(task !== null && { taskIdentifiers: [task] }),
    ...(queues !== null && { queues }),
  });
  const claimed = jobs.map(({ id }) => model.jobs.get(id)!);
  expectLawful(before, claimed, mayTake, free);
  const isShort = jobs.length < action.batch;
  const worst = isShort ? Infinity : Math.max(...jobs.map(({ priority }) => priority)) - 1;
  if (isShort || queues === null) expectNothingLeft(before, claimed, mayTake, free, worst, queues === null);
  if (isShort && task === null && queues === null && model.all().every(({ state }) => state.standing !== 'running'))
    await expectReasons(model, real, claimed);
  take(model, real, worker, worker, jobs, true);
}

export async function claimForPool(
  model: Model,
  real: Real,
  action: Action & { do: 'claim for a pool' },
): Promise<void> {
  const incarnation = actions.incarnationOf(real, action.worker);
  const before = await waitingInOrder(model, real);
  const free = freeBefore(model);
  const memory = action.remembers ? await real.memories.of(incarnation, action.filter) : undefined;
  const jobs = await actions.claimForPool(real.jobs, incarnation, action, memory);
  const isAlive = model.pools.get(incarnation)!.alive;
  if (!isAlive) expect(jobs).toEqual([]);
  expect(jobs.length).toBeLessThanOrEqual(action.batch);
  const claimed = jobs.map(({ id }) => model.jobs.get(id)!);
  const mayTake = (job: ModelJob): boolean =>
    model.isClaimable(job) && action.plain === (laneOf(job) === 'plain') && isFor(action.filter, job);
  expectLawful(before, claimed, mayTake, free);
  // A share leaves the rest of a lane to the next turn.
  if (isAlive && (action.plain || action.share >= action.batch))
    expectNothingLeft(before, claimed, mayTake, free, jobs.length < action.batch ? Infinity : betterThan(jobs), true);
  take(model, real, incarnation, POOLS[action.worker]!, jobs, false);
}

/** Completions of a pool, and its claim by the same commit: with the places that they free, but without what waits for their jobs. */
export async function completeAndClaim(
  model: Model,
  real: Real,
  action: Action & { do: 'complete and claim' },
): Promise<void> {
  const claims = actions.takeClaims(real, action.claim, action.count, real.claims.filter(actions.isOfPool));
  if (!claims.length) return;
  const [{ worker, job: first }] = claims as [actions.HeldClaim];
  const before = await waitingInOrder(model, real);
  const ready = new Set(model.all().filter((job) => model.isClaimable(job)));
  const valid = model.standing(claims);
  const memory = action.remembers ? await real.memories.of(worker, action.filter) : undefined;
  const { statuses, found } = await actions.completeAndClaim(real.jobs, claims, action, memory);
  model.settle(
    valid.map(({ job }) => job.id),
    'completed',
  );
  const expected = claims.map((held) => (valid.includes(held) ? model.jobs.get(held.job.id)!.state.standing : 'lost'));
  expect(statuses).toEqual(expected);
  const { label, alive } = model.pools.get(worker)!;
  if (!found) return expect(statuses).toContain('lost');
  const { jobs, alone, unknown } = found;
  if (!alive) expect(jobs).toEqual([]);
  expect(jobs.length).toBeLessThanOrEqual(action.batch);
  const free = freeBefore(model);
  const claimed = jobs.map(({ id }) => model.jobs.get(id)!);
  const mayTake = (job: ModelJob): boolean => ready.has(job) && laneOf(job) !== 'plain' && isFor(action.filter, job);
  expectLawful(before, claimed, mayTake, free);
  if (alone)
    expectEarliestOfQueue(
      before,
      claimed,
      mayTake,
      first,
      // As many as are settled: other free slots are for what a look may find.
      Math.min(action.batch, claims.length, free.places.get(first.queue!)!),
    );
  else if (alive && action.share >= action.batch) {
    // It stops at a queue that no claim has met, and the next look goes on.
    const isWhole = jobs.length < action.batch && !unknown.length;
    expectNothingLeft(before, claimed, mayTake, free, isWhole ? Infinity : betterThan(jobs), true);
  }
  take(model, real, worker, label, jobs, false);
}

/** The priorities of which nothing may be left where a claim has taken these. */
const betterThan = (jobs: { priority: number }[]): number => Math.max(...jobs.map(({ priority }) => priority)) - 1;

/** Whether such a pool takes jobs like this one. */
function isFor(filter: number, job: ModelJob): boolean {
  const { taskIdentifiers, otherTasks, forbiddenFlags } = actions.filterOf(filter);
  if (taskIdentifiers && !taskIdentifiers.includes(job.task)) return false;
  return !otherTasks?.includes(job.task) && !(forbiddenFlags && job.flagged);
}

/** A job that may crash the pool, or that has one attempt left, waits for a free slot even where it has no limit. */
function laneOf({ queue, limit, state }: ModelJob): string {
  if (queue !== null || limit !== null) return `${queue} ${limit}`;
  return state.crashes > 0 || state.attempts >= state.maxAttempts - 1 ? 'for a slot' : 'plain';
}

function take(
  model: Model,
  real: Real,
  worker: string,
  label: string,
  jobs: actions.HeldClaim['job'][],
  byHand: boolean,
): void {
  model.claim(
    jobs.map(({ id }) => id),
    worker,
    byHand,
  );
  for (const job of jobs) {
    const { attempts, fence } = model.jobs.get(job.id)!.state;
    expect([job.attempts, job.fence, job.lockedBy]).toEqual([attempts, String(fence), label]);
    real.claims.push({ worker, job });
  }
}

interface Waiting {
  job: ModelJob;
  priority: number;
}

/** What waits, in the order in which it should be claimed. */
async function waitingInOrder(model: Model, real: Real): Promise<Waiting[]> {
  const rows = await real.sql<{ id: string; priority: number }>(
    'select id, priority from jobs.jobs where locked_by is null order by priority, run_at, id',
  );
  return rows.map(({ id, priority }) => ({ job: model.jobs.get(id)!, priority }));
}

/** Places and tokens, before a claim. */
interface Free {
  places: Map<string, number>;
  tokens: Map<string, number>;
}

const freeBefore = (model: Model): Free => ({
  places: new Map(actions.QUEUES.map((queue) => [queue, model.free(queue)])),
  tokens: new Map(actions.LIMITS.map((limit) => [limit, model.tokens(limit)])),
});

/** Only what may be claimed was, within all limits, and in order within each lane. */
function expectLawful(before: Waiting[], claimed: ModelJob[], mayTake: (job: ModelJob) => boolean, free: Free): void {
  const unlawful = claimed.filter((job) => !mayTake(job));
  expect(unlawful.map(({ id, state }) => ({ id, state }))).toEqual([]);
  expect(new Set(claimed).size).toBe(claimed.length);
  for (const queue of actions.QUEUES)
    expect(claimed.filter((job) => job.queue === queue).length).toBeLessThanOrEqual(free.places.get(queue)!);
  for (const limit of actions.LIMITS)
    expect(claimed.filter((job) => job.limit === limit).length).toBeLessThanOrEqual(free.tokens.get(limit)!);
  const passedOver = new Set<string>();
  for (const { job, priority } of before) {
    if (!mayTake(job)) continue;
    const lane = `${priority} ${laneOf(job)}`;
    if (!claimed.includes(job)) passedOver.add(lane);
    else expect([job.id, passedOver.has(lane)]).toEqual([job.id, false]);
  }
}

/** What was taken of a lane alone is the earliest of its queue, over all priorities and lanes, and as much as there was room for. */
function expectEarliestOfQueue(
  before: Waiting[],
  claimed: ModelJob[],
  mayTake: (job: ModelJob) => boolean,
  { queue, priority: own }: actions.HeldClaim['job'],
  room: number,
): void {
  const due = before.filter(({ job }) => job.queue === queue && mayTake(job));
  const ofLane = due.filter(({ job, priority }) => priority === own && job.limit === null);
  expect(claimed.map(({ id }) => id)).toEqual(ofLane.slice(0, room).map(({ job }) => job.id));
  expect(claimed.map(({ id }) => id)).toEqual(due.slice(0, claimed.length).map(({ job }) => job.id));
}

/**
 * Of these priorities, a claim has left nothing that it could have had. `bestFirst`: what it took of worse priorities was no
 * rival.
 */
function expectNothingLeft(
  before: Waiting[],
  claimed: ModelJob[],
  mayTake: (job: ModelJob) => boolean,
  free: Free,
  worstPriority: number,
  bestFirst: boolean,
): void {
  const priorities = new Map(before.map(({ job, priority }) => [job, priority]));
  const left = before.filter(({ job, priority }) => {
    if (priority > worstPriority || !mayTake(job) || claimed.includes(job)) return false;
    const rivals = claimed.filter((other) => !bestFirst || priorities.get(other)! <= priority);
    const places =
      (free.places.get(job.queue!) ?? 1) - rivals.filter(({ queue }) => queue === (job.queue ?? '')).length;
    const tokens =
      (free.tokens.get(job.limit!) ?? 1) - rivals.filter(({ limit }) => limit === (job.limit ?? '')).length;
    return places > 0 && tokens > 0;
  });
  expect(left.map(({ job: { id, queue, limit }, priority }) => ({ id, queue, limit, priority }))).toEqual([]);
}

/** Nothing ran, and nothing more can be claimed: the library knows why each job that is left waits. */
async function expectReasons(model: Model, real: Real, claimed: ModelJob[]): Promise<void> {
  const reasons = [
    'exhausted',
    'parents',
    'future',
    'snoozed',
    'queue_paused',
    'task_paused',
    'queue_busy',
    'no_tokens',
  ];
  for (const job of model.all()) {
    if (!['waiting', 'exhausted'].includes(job.state.standing) || claimed.includes(job)) continue;
    const { reason, blockedBy } = await real.jobs.explain(job.id);
    expect([job.id, reasons.includes(reason) ? null : reason]).toEqual([job.id, null]);
    // The job that blocks a busy queue was claimed just now.
    if (reason === 'queue_busy') expect(claimed.map(({ id }) => id)).toEqual(expect.arrayContaining(blockedBy));
  }
}
