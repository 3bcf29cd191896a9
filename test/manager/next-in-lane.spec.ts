// The settle of a queue's job takes the next one of its lane without a look at others, as long as nothing else could come
// before it.
import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import type { ClaimedJob, JobManager } from '../../lib/index.js';
import type { NextInLane } from '../../lib/interfaces/claim.interface.js';
import { LaneMemory } from '../../lib/manager/lane.memory.js';
import { laneOf, placeInWalk } from '../../lib/manager/lane.names.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';
import { asPool, claimAsPool, registerPool } from '../support/pool.claims.js';

const POOL = 'pool-that-goes-on';
const HOUR = 3_600_000;

let test: TestManager;
let jobs: JobManager;

beforeAll(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  await registerPool(jobs, POOL, HOUR);
});
afterAll(() => test.close());
beforeEach(() =>
  test.sql(`truncate jobs.jobs, jobs.job_bodies, jobs.job_history, jobs.job_queues, jobs.job_places,
    jobs.rate_limits, jobs.rate_limit_states`),
);

const add = (payload: string, options: object = {}, task = 'x') =>
  jobs.addJob(task, payload, { queue: 'q', ...options });

/** Settles the job, and says what came next, and whether a look at all lanes brought it. */
async function settle(job: ClaimedJob, position: Partial<NextInLane> = {}, taskIdentifiers: string[] | null = null) {
  const request = {
    ...asPool(POOL),
    taskIdentifiers,
    otherTasks: null,
    forbiddenFlags: null,
    worstPriority: null,
    maxCrashes: null,
    queue: null,
    limit: 10,
    memory: new LaneMemory(HOUR).next(10),
  };
  const next = { priority: job.priority, lane: laneOf(job), runAt: null, id: null, ...position };
  const values = [...jobs.engine.claims.laneValues(request), next.priority, next.lane, next.runAt, next.id];
  const settling = { job, outcome: { kind: 'completed', result: null } as const, executionTimeMs: 1 };
  const { results, claimed } = await jobs.engine.settlement.completeAndClaim(asPool(POOL), [settling], values);
  expect(results.map(({ status }) => status)).toEqual(['completed']);
  const found = await jobs.engine.claims.readLanes(request, claimed);
  return { found, took: found.jobs.map(({ payload }) => payload), looked: found.report !== null };
}

const first = async (options: object = {}): Promise<ClaimedJob> => {
  const [job] = await claimAsPool(jobs, POOL, { limit: 1, ...options });
  return job!;
};

describe('the next job of a lane', () => {
  it('is the earliest due one, and has the place that the settled one gave back', async () => {
    await add('first');
    await add('second');
    await add('third');
    const { found, took, looked } = await settle(await first());
    expect({ took, looked }).toEqual({ took: ['second'], looked: false });
    expect(found.taken).toEqual([
      { place: placeInWalk(0, laneOf(found.jobs[0]!)), runAt: expect.any(String), id: found.jobs[0]!.id },
    ]);
    const places = await test.sql('select job_id, fence from jobs.job_places');
    expect(places).toEqual([{ job_id: found.jobs[0]!.id, fence: found.jobs[0]!.fence }]);
    const third = await settle(found.jobs[0]!, found.taken[0]);
    expect({ ...third, found: null }).toEqual({ found: null, took: ['third'], looked: false });
  });

  it('is told as a look at lanes tells it', async () => {
    const options = { tags: ['a'], flags: ['f'], jobKey: 'k', groupId: 'g', timeoutMs: 5_000, maxAttempts: 7 };
    await add('looked at', { ...options, jobKey: 'other' });
    const looked = await first();
    await add('next', options);
    const { found } = await settle(looked);
    const [{ id, payload, runAt, createdAt, fence, lockedAt, jobKey, correlationId, updatedAt, ...alike }] =
      found.jobs as [ClaimedJob];
    expect(looked).toMatchObject(alike);
    expect([payload, jobKey, fence]).toEqual(['next', 'k', '1']);
    expect(correlationId).not.toBe(looked.correlationId);
    const row = (await jobs.findJob(id))!;
    expect(row).toMatchObject({ runAt, createdAt, lockedAt, updatedAt });
  });

  it('fills the place that was given back, and leaves other free ones to looks', async () => {
    await jobs.configureQueue('q', { concurrency: 3 });
    for (let n = 0; n < 6; n++) await add(`job ${n}`);
    const { took, looked } = await settle(await first());
    expect({ took, looked }).toEqual({ took: ['job 1'], looked: false });
  });

  it('comes after those of a better priority in its queue', async () => {
    await add('running');
    const running = await first();
    await add('later');
    await add('better', { priority: -5 });
    const { took, looked } = await settle(running);
    expect({ took, looked }).toEqual({ took: ['better'], looked: true });
  });

  it('comes after earlier ones of its queue that have a rate limit', async () => {
    await jobs.registerRateLimit('limit', 10, HOUR);
    await add('running');
    const running = await first();
    await add('earlier', { rateLimitKey: 'limit' });
    await add('later');
    const { took, looked } = await settle(running);
    expect({ took, looked }).toEqual({ took: ['earlier'], looked: true });
  });

  it('comes whatever lies in other queues of a better priority', async () => {
    await add('running');
    const running = await first();
    await add('next');
    for (let n = 0; n < 10; n++) await add('elsewhere', { priority: n - 20, queue: `other-${n}`, delayMs: HOUR });
    const { took, looked } = await settle(running);
    expect({ took, looked }).toEqual({ took: ['next'], looked: false });
  });

  it.each([
    ['the queue is paused', () => jobs.pauseQueue('q'), []],
    ['the queue has no limit any more', () => jobs.configureQueue('q', { concurrency: Infinity }), ['next', 'another']],
    [
      'others have taken the place',
      () =>
        test.sql(`insert into jobs.job_places select 'q', 9e9, id, fence from jobs.jobs where locked_by is not null`),
      [],
    ],
  ])('is left to a look where %s', async (_why, change, expected) => {
    await add('running');
    const running = await first();
    await add('next');
    await add('another');
    await change();
    const { took, looked } = await settle(running);
    expect({ took, looked }).toEqual({ took: expected, looked: true });
  });

  it('is only one that the pool takes', async () => {
    await add('running');
    const running = await first();
    await add('for others', {}, 'other');
    await add('next');
    const { took, looked } = await settle(running, {}, ['x']);
    expect({ took, looked }).toEqual({ took: ['next'], looked: false });
  });

  it('is left alone while an open transaction holds the queue', async () => {
    await add('running');
    const running = await first();
    await add('next');
    const stranger = new pg.Client(test.url);
    await stranger.connect();
    try {
      await stranger.query('begin');
      await stranger.query(`select from jobs.job_queues where name = 'q' for update`);
      const { found, looked } = await settle(running);
      expect([found.jobs, found.report?.held, looked]).toEqual([[], [laneOf(running)], true]);
    } finally {
      await stranger.end();
    }
  });

  it('is not taken by a pool that has ended', async () => {
    await add('running');
    const running = await first();
    await add('next');
    await test.sql(`update jobs.workers set stopped_at = clock_timestamp() where id = '${POOL}'`);
    try {
      const { took } = await settle(running);
      expect(took).toEqual([]);
    } finally {
      await test.sql(`update jobs.workers set stopped_at = null where id = '${POOL}'`);
    }
    expect((await jobs.getJobs(WORKER)).map(({ payload }) => payload)).toEqual(['next']);
  });
});
