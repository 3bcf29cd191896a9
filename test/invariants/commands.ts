// Each action as a command of fast-check: done to the model and to the library, whose answers and tables must agree.
import { expect } from '@jest/globals';
import type { AsyncCommand } from 'fast-check';
import { JobKeyConflictError } from '../../lib/index.js';
import * as actions from './actions.js';
import { HANDS, nth, POOLS, takeClaims, type Action, type NewJob, type Real } from './actions.js';
import { expectInvariants } from './invariants.js';
import type { JobAsked, Model, ModelJob } from './model.js';
import { readJobs, stateOf, type StoredJob } from './tables.js';

export class ActionCommand implements AsyncCommand<Model, Real> {
  constructor(private readonly action: Action) {}

  check = (): boolean => true;

  async run(model: Model, real: Real): Promise<void> {
    await perform(model, real, this.action);
    await compare(model, real);
    await expectInvariants(real.sql);
  }

  /** Can be pasted into a list of replayed actions. */
  toString(): string {
    return JSON.stringify(this.action);
  }
}

async function perform(model: Model, real: Real, action: Action): Promise<void> {
  const job = 'job' in action ? model.jobs.get(nth(real.ids, action.job) ?? '') : undefined;
  switch (action.do) {
    case 'add':
      return add(model, real, action.jobs);
    case 'claim':
      return claimByHand(model, real, action);
    case 'claim for a pool':
      return claimForPool(model, real, action);
    case 'settle':
      return settle(model, real, action);
    case 'extend':
      return job && extend(real, job);
    case 'revoke':
      return job && revoke(model, real, job);
    case 'retry':
      return job && retry(model, real, action, job);
    case 'replay':
      return replay(model, real);
    case 'purge':
      expect(await real.jobs.purgeJobs({ status: action.status, olderThanMs: 0 })).toBe(model.purge(action.status));
      return;
    case 'beat': {
      const pool = model.pools.get(POOLS[action.worker]!)!;
      const { expired } = await real.jobs.claims.heartbeat(POOLS[action.worker]!);
      expect(expired).toBe(!pool.alive);
      if (pool.alive) pool.silent = false;
      return;
    }
    default:
      await actions.operate(real, action, job?.id);
      operated(model, action, job);
  }
}

/** What operators and time do to the model. */
function operated(model: Model, action: Action, job: ModelJob | undefined): void {
  if ('job' in action && !job) return;
  switch (action.do) {
    case 'cancel':
      return model.cancel(job!.id);
    case 'fail for good':
      return model.failForGood(job!.id);
    case 'reschedule':
      return model.reschedule(job!.id, action.due, action.maxAttempts);
    case 'unlock':
      return model.takeAway(
        [HANDS, POOLS].flatMap((names) => model.held(names[action.worker]!)),
        'unlock',
      );
    case 'let leases end':
      for (const held of model.held(HANDS[action.worker]!)) held.expired = true;
      return;
    case 'let a pool die':
      model.pools.get(POOLS[action.worker]!)!.silent = true;
      return;
    case 'register':
      model.pools.set(POOLS[action.worker]!, { silent: false, alive: true });
      return;
    case 'pause':
    case 'resume':
      model.queue(action.queue).paused = action.do === 'pause';
      return;
    case 'configure':
      model.queue(action.queue).concurrency = actions.concurrencyOf(action.concurrency);
      return;
    case 'limit': {
      const limit = model.limits.get(action.limit)!;
      const more = Math.max(0, action.capacity - limit.capacity);
      Object.assign(limit, { capacity: action.capacity, left: Math.min(action.capacity, limit.left + more) });
      return;
    }
    case 'let a window pass':
      model.limits.get(action.limit)!.windowOver = true;
      return;
    case 'reset':
      return model.rescue({ byHand: true });
    case 'rescue':
      return model.rescue({ byHand: false });
    case 'let time come':
      return model.timeComes();
    default:
  }
}

/** Parents: known ones without a key, so that no circle of waiting jobs comes about. */
const parentsOf = (model: Model, real: Real, { parents }: NewJob): string[] => [
  ...new Set(
    parents.flatMap((parent) => {
      const job = model.jobs.get(nth(real.ids, parent) ?? '');
      return job && job.key === null ? [job.id] : [];
    }),
  ),
];

async function add(model: Model, real: Real, asked: NewJob[]): Promise<void> {
  const wanted = asked.map((job): JobAsked => ({ ...job, parents: parentsOf(model, real, job) }));
  const added = await real.jobs.addJobs(wanted.map((job) => actions.toSpec(job)));
  for (const [index, job] of added.entries()) {
    const expected = model.add(wanted[index]!, job.id);
    expect(job.id).toBe(expected.id);
    expect(job.created).toBe(!real.ids.includes(job.id));
    if (job.created) real.ids.push(job.id);
  }
}

async function claimByHand(model: Model, real: Real, action: Action & { do: 'claim' }): Promise<void> {
  const worker = HANDS[action.worker]!;
  const { task, queues } = action;
  const mayTake = (job: ModelJob): boolean =>
    model.isClaimable(job) &&
    (task === null || job.task === task) &&
    (queues === null || (job.queue !== null && queues.includes(job.queue)));
  const before = await waitingInOrder(model, real);
  const jobs = await real.jobs.getJobs(worker, {
    batchSize: action.batch,
    leaseMs: actions.HOUR,
    ...(task !== null && { taskIdentifiers: [task] }),
    ...(queues !== null && { queues }),
  });
  const claimed = jobs.map(({ id }) => model.jobs.get(id)!);
  expectLawful(model, before, claimed, mayTake, true);
  if (jobs.length < action.batch && task === null && queues === null) expectNothingLeft(model, before, claimed);
  take(model, real, worker, jobs, true);
}

async function claimForPool(model: Model, real: Real, action: Action & { do: 'claim for a pool' }): Promise<void> {
  const worker = POOLS[action.worker]!;
  const before = await waitingInOrder(model, real);
  const jobs = await actions.claimForPool(real.jobs, worker, action);
  if (!model.pools.get(worker)!.alive) expect(jobs).toEqual([]);
  expect(jobs.length).toBeLessThanOrEqual(action.batch);
  const claimed = jobs.map(({ id }) => model.jobs.get(id)!);
  if (action.plain) expect(claimed.filter((job) => job.queue ?? job.limit)).toEqual([]);
  expectLawful(model, before, claimed, (job) => model.isClaimable(job), false);
  take(model, real, worker, jobs, false);
}

function take(model: Model, real: Real, worker: string, jobs: actions.HeldClaim['job'][], byHand: boolean): void {
  model.claim(
    jobs.map(({ id }) => id),
    worker,
    byHand,
  );
  for (const job of jobs) {
    const { attempts, fence } = model.jobs.get(job.id)!.state;
    expect([job.attempts, job.fence, job.lockedBy]).toEqual([attempts, String(fence), worker]);
    real.claims.push({ worker, job });
  }
}

interface Waiting {
  job: ModelJob;
  parked: string | null;
}

/** What waits, in the order in which it should be claimed. */
async function waitingInOrder(model: Model, real: Real): Promise<Waiting[]> {
  const rows = await real.sql<{ id: string; parked: string | null }>(
    'select id, parked from jobs.jobs where locked_by is null order by priority, run_at, id',
  );
  return rows.map(({ id, parked }) => ({ job: model.jobs.get(id)!, parked }));
}

/** Only what may be claimed was, within all limits, and in order where order is promised. */
function expectLawful(
  model: Model,
  before: Waiting[],
  claimed: ModelJob[],
  mayTake: (job: ModelJob) => boolean,
  byHand: boolean,
): void {
  const unlawful = claimed.filter((job) => !mayTake(job));
  expect(unlawful.map(({ id, state }) => ({ id, state }))).toEqual([]);
  expect(new Set(claimed).size).toBe(claimed.length);
  for (const queue of actions.QUEUES)
    expect(claimed.filter((job) => job.queue === queue).length).toBeLessThanOrEqual(model.free(queue));
  for (const limit of actions.LIMITS)
    expect(claimed.filter((job) => job.limit === limit).length).toBeLessThanOrEqual(model.tokens(limit));
  const passedOver = new Set<string | null>();
  for (const { job } of before) {
    if (job.limit !== null || !mayTake(job)) continue;
    if (!claimed.includes(job)) passedOver.add(job.queue);
    // Jobs for free slots have a lane of their own, of which a pool takes fewer.
    else if (job.queue !== null || byHand) expect([job.id, passedOver.has(job.queue)]).toEqual([job.id, false]);
  }
}

/** A claim that came back short has left nothing that it could have had. */
function expectNothingLeft(model: Model, before: Waiting[], claimed: ModelJob[]): void {
  const left = before.filter(({ job, parked }) => {
    if (!model.isClaimable(job) || claimed.includes(job)) return false;
    const places = job.queue === null ? 1 : model.free(job.queue) - claimed.filter((c) => c.queue === job.queue).length;
    const tokens =
      job.limit === null ? 1 : model.tokens(job.limit) - claimed.filter((c) => c.limit === job.limit).length;
    // Tokens that a larger capacity adds go to new jobs; who was made to wait before waits for the window.
    const waitsForWindow = parked === 'tokens' && !model.limits.get(job.limit!)!.windowOver;
    return places > 0 && tokens > 0 && !waitsForWindow;
  });
  expect(left.map(({ job: { id, queue, limit }, parked }) => ({ id, queue, limit, parked }))).toEqual([]);
}

async function settle(model: Model, real: Real, action: Action & { do: 'settle' }): Promise<void> {
  const claims = takeClaims(real, action.claim, action.count);
  if (!claims.length) return;
  const valid = claims.filter(({ worker, job }) => {
    const state = model.jobs.get(job.id)?.state;
    return state?.holder === worker && String(state.fence) === job.fence;
  });
  const statuses = await actions.settle(real.jobs, claims, action.outcome);
  expect(claims.filter((_, index) => statuses[index] !== 'lost')).toEqual(valid);
  model.settle(
    valid.map(({ job }) => job.id),
    action.outcome,
  );
}

async function extend({ jobs, sql }: Real, job: ModelJob): Promise<void> {
  const { holder, byHand } = job.state;
  const before = (await readJobs(sql, [job.id])).get(job.id)!.revision;
  const extended = await jobs.extendLease(holder ?? HANDS[0]!, job.id).then(
    () => true,
    () => false,
  );
  expect(extended).toBe(holder !== null && byHand && !job.expired);
  expect((await readJobs(sql, [job.id])).get(job.id)!.revision).toBe(before + (extended ? 1 : 0));
}

async function revoke(model: Model, { jobs, sql }: Real, job: ModelJob): Promise<void> {
  const { revision } = (await readJobs(sql, [job.id])).get(job.id)!;
  const revoked = await jobs.revokeLease(job.id, revision).then(
    () => true,
    () => false,
  );
  expect(revoked).toBe(job.state.standing === 'running');
  if (revoked) model.takeAway([job], 'revoke');
}

async function retry(model: Model, real: Real, action: Action, job: ModelJob): Promise<void> {
  const retried = await actions.operate(real, action, job.id).then(
    () => true,
    (error: unknown) => {
      expect(error).toBeInstanceOf(JobKeyConflictError);
      return false;
    },
  );
  expect(retried).toBe(model.retry(job.id));
}

async function replay(model: Model, real: Real): Promise<void> {
  const failed = model.all().filter((job) => job.state.standing === 'exhausted' && !job.replayed);
  const holders = failed.flatMap(({ id }) => model.keyHolder(id) ?? []);
  if (holders.some((holder) => model.isBehindKey(holder))) return;
  const added = await real.jobs.replayFailedJobs();
  expect(new Set(added.map(({ jobKey }) => jobKey))).toEqual(new Set(failed.map(({ id }) => id)));
  for (const job of failed) job.replayed = true;
  for (const job of added) {
    const { task, priority, maxAttempts, queue, rateLimitKey: limit, jobKey: key } = job;
    const rest = { due: true, mode: 'replace', parents: [], policy: 'cancel' } as const;
    model.add({ task, priority, maxAttempts, queue, limit, key, ...rest, parents: [] }, job.id);
    real.ids.push(job.id);
  }
}

/** The tables hold what the model says, and no job more. */
async function compare(model: Model, { sql }: Real): Promise<void> {
  const stored = await readJobs(sql);
  expect([...stored.keys()].toSorted()).toEqual([...model.jobs.keys()].toSorted());
  for (const job of model.all()) expect([job.id, seen(stored.get(job.id)!)]).toEqual([job.id, should(model, job)]);
}

const seen = (job: StoredJob): object => ({
  ...stateOf(job),
  waitsFor: job.standing === 'waiting' ? (['parents', 'key'].find((reason) => reason === job.parked) ?? null) : null,
  ...(['waiting', 'running', 'exhausted'].includes(job.standing) && { unmet: job.unmet, jobKey: job.jobKey }),
});

function should(model: Model, job: ModelJob): object {
  const { standing } = job.state;
  const waits = model.isBehindKey(job) ? 'key' : job.parents.size > 0 ? 'parents' : null;
  return {
    ...stateOf({ ...job.state }),
    waitsFor: standing === 'waiting' ? waits : null,
    ...(['waiting', 'running', 'exhausted'].includes(standing) && {
      unmet: job.parents.size,
      jobKey: job.holdsKey ? job.key : null,
    }),
  };
}
