// Each action as a command of fast-check: done to the model and to the library, whose answers and tables must agree.
import { expect } from '@jest/globals';
import type { AsyncCommand } from 'fast-check';
import { JobKeyConflictError } from '../../lib/index.js';
import * as actions from './actions.js';
import { HANDS, nth, POOLS, takeClaims, type Action, type JobAsked, type NewJob, type Real } from './actions.js';
import { claimByHand, claimForPool, completeAndClaim } from './claims.js';
import { expectInvariants } from './invariants.js';
import { LEASE_HOURS, type Model, type ModelJob } from './model.js';
import { readJobs, readReplaced, seeAfterJump, stateOf, type StoredJob } from './tables.js';

export class ActionCommand implements AsyncCommand<Model, Real> {
  constructor(private readonly action: Action) {}

  check = (): boolean => true;

  async run(model: Model, real: Real): Promise<void> {
    await perform(model, real, this.action);
    await compare(model, real);
    await expectInvariants(real.sql, real);
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
    case 'complete and claim':
      return completeAndClaim(model, real, action);
    case 'settle':
      return settle(model, real, action);
    case 'extend':
      return job && extend(real, job);
    case 'revoke':
      return job && revoke(model, real, job);
    case 'retry':
      return job && retry(model, real, action, job);
    case 'reschedule':
      return job && reschedule(model, real, action, job);
    case 'replay':
      return replay(model, real);
    case 'purge':
      expect(await real.jobs.purgeJobs({ status: action.status, olderThanMs: 0 })).toBe(model.purge(action.status));
      return;
    case 'beat': {
      const incarnation = actions.incarnationOf(real, action.worker);
      const pool = model.pools.get(incarnation)!;
      const { expired, needsRescue } = await real.jobs.engine.registry.heartbeat(incarnation);
      expect(expired).toBe(!pool.alive);
      // It has renewed its own lease before it looks at others.
      if (pool.alive) pool.silentHours = 0;
      if (pool.alive) expect(needsRescue).toBe(model.needsRescue);
      return;
    }
    case 'sign off': {
      const incarnation = actions.incarnationOf(real, action.worker);
      expect(await real.jobs.engine.registry.unregister(incarnation)).toBe(model.signOff(incarnation));
      return;
    }
    case 'restart': {
      await actions.operate(real, action, undefined);
      const label = POOLS[action.worker]!;
      model.pools.set(actions.incarnationOf(real, action.worker), { label, silentHours: 0, alive: true });
      return;
    }
    case 'let a pool die':
      model.pools.get(actions.incarnationOf(real, action.worker))!.silentHours = 2 * LEASE_HOURS;
      return actions.operate(real, action, undefined);
    case 'collect garbage':
      await actions.operate(real, action, undefined);
      if (!real.clockWentOn) return;
      return model.keepHeirs(await readReplaced(real.sql));
    case 'the clock jumps':
      await actions.operate(real, action, undefined);
      return model.clockJumps(action.hours, await seeAfterJump(real.sql));
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
    case 'unlock':
      return model.takeAway(
        [HANDS[action.worker]!, ...model.incarnationsOf(POOLS[action.worker]!)].flatMap((name) => model.held(name)),
        'unlock',
      );
    case 'let leases end':
      for (const held of model.held(HANDS[action.worker]!)) held.expired = true;
      return;
    case 'pause':
    case 'resume':
      model.queue(action.queue).paused = action.do === 'pause';
      return;
    case 'pause a task':
      return void model.pausedTasks.add(action.task);
    case 'resume a task':
      return void model.pausedTasks.delete(action.task);
    case 'configure':
      model.queue(action.queue).concurrency = actions.concurrencyOf(action.concurrency);
      return;
    case 'limit':
      model.limits.get(action.limit)!.capacity = action.capacity;
      return;
    case 'let a window pass':
      model.limits.get(action.limit)!.taken = 0;
      return;
    case 'reset':
      return model.rescue({ byHand: true });
    case 'rescue':
      return model.rescue({ byHand: false });
    case 'audit':
      return model.rescue({ byHand: false });
    case 'let time come':
      return model.timeComes();
    default:
  }
}

/** Known jobs, but none that would wait for this one in turn: by its key it takes the place of another. */
function parentsOf(model: Model, real: Real, { parents, key, mode }: NewJob): string[] {
  const holder = key === null ? undefined : model.keyHolder(key);
  if (holder && mode === 'unsafe_dedupe') return [];
  const known = parents.flatMap((parent) => model.jobs.get(nth(real.ids, parent) ?? '') ?? []);
  return [...new Set(known.filter((job) => !holder || !model.reaches(job, holder)).map(({ id }) => id))];
}

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

async function settle(model: Model, real: Real, action: Action & { do: 'settle' }): Promise<void> {
  const claims = takeClaims(real, action.claim, action.count);
  if (!claims.length) return;
  const valid = model.standing(claims);
  const statuses = await actions.settle(real.jobs, claims, action.outcome);
  expect(claims.filter((_, index) => statuses[index] !== 'lost')).toEqual(valid);
  model.settle(
    valid.map(({ job }) => job.id),
    action.outcome,
  );
}

async function extend({ jobs, sql }: Real, job: ModelJob): Promise<void> {
  const { holder, byHand, cancelRequested } = job.state;
  const before = (await readJobs(sql, [job.id])).get(job.id)!.revision;
  const extended = await jobs.extendLease(holder ?? HANDS[0]!, job.id).then(
    () => true,
    () => false,
  );
  expect(extended).toBe(holder !== null && byHand && !job.expired && !cancelRequested);
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

/** Whether no other job had its key. */
const hasItsKey = (work: Promise<unknown>): Promise<boolean> =>
  work.then(
    () => true,
    (error: unknown) => {
      expect(error).toBeInstanceOf(JobKeyConflictError);
      return false;
    },
  );

async function retry(model: Model, real: Real, action: Action, job: ModelJob): Promise<void> {
  const retried = await hasItsKey(actions.operate(real, action, job.id));
  expect(retried).toBe(model.retry(job.id));
}

async function reschedule(
  model: Model,
  real: Real,
  action: Action & { do: 'reschedule' },
  job: ModelJob,
): Promise<void> {
  const rescheduled = await hasItsKey(actions.operate(real, action, job.id));
  expect(rescheduled).toBe(model.reschedule(job.id, action.due, action.maxAttempts));
}

async function replay(model: Model, real: Real): Promise<void> {
  const failed = model.all().filter((job) => job.state.standing === 'exhausted' && !job.replayed);
  const holders = failed.flatMap(({ id }) => model.keyHolder(id) ?? []);
  if (holders.some((holder) => model.isBehindKey(holder))) return;
  const added = await real.jobs.replayFailedJobs();
  expect(new Set(added.map(({ jobKey }) => jobKey))).toEqual(new Set(failed.map(({ id }) => id)));
  for (const job of failed) job.replayed = true;
  for (const job of added) {
    const { task, priority, maxAttempts, queue, rateLimitKey: limit, jobKey: key, flags } = job;
    const flagged = flags.includes(actions.FLAG);
    const rest = { due: true, mode: 'replace', parents: [], policy: 'cancel', flagged } as const;
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
    ...stateOf({ ...job.state, superseded: model.isSuperseded(job) }),
    waitsFor: standing === 'waiting' ? waits : null,
    ...(['waiting', 'running', 'exhausted'].includes(standing) && {
      unmet: job.parents.size,
      jobKey: job.holdsKey ? job.key : null,
    }),
  };
}
