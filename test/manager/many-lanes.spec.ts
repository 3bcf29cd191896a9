// More lanes than one look comes to: none of them hides the others.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import pg from 'pg';
import type { JobManager } from '../../lib/index.js';
import { LaneMemory } from '../../lib/manager/lane.memory.js';
import { comparePlaces, placeInWalk } from '../../lib/manager/lane.names.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';
import { asPool, lookAsPool, registerPool } from '../support/pool.claims.js';

const POOL = 'pool-of-many-lanes';
/** A look comes to 200. */
const MANY = 250;

let test: TestManager;
let jobs: JobManager;
let memory: LaneMemory;

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  memory = new LaneMemory(Infinity);
  await registerPool(jobs, POOL, 1e9);
});
afterEach(() => test.close());

const named = (nth: number): string => `lane${String(nth).padStart(4, '0')}`;

/** The payloads that a pool gets by so many looks. */
async function takenBy(looks: number, limit: number): Promise<unknown[]> {
  const payloads: unknown[] = [];
  for (let nth = 0; nth < looks; nth++) {
    const found = await lookAsPool(jobs, POOL, limit, memory);
    payloads.push(...found.jobs.map(({ payload }) => payload));
    const requests = found.jobs.map((job) => ({
      job,
      outcome: { kind: 'completed' as const, result: null },
      executionTimeMs: 1,
    }));
    if (requests.length) await jobs.engine.settlement.settle(asPool(POOL), requests);
    for (const job of found.jobs) memory.noteFreed(job.queue!, job.partition);
  }
  return payloads;
}

describe('more lanes than a look comes to', () => {
  it.each([
    ['queues', (nth: number) => ({ queue: named(nth) }), 'jobs'],
    ['partitions', (nth: number) => ({ queue: 'shared', partition: named(nth) }), 'jobs'],
    [
      'partitions of a queue whose row is held',
      (nth: number) => ({ queue: 'shared', partition: named(nth) }),
      'job_queues',
    ],
  ])('do not hide what lies behind them while an open transaction holds them: %s', async (_, laneOf, rows) => {
    await jobs.configureQueue('shared', { concurrency: 1_000, partitions: {} });
    await jobs.addJobs(Array.from({ length: MANY }, (__, nth) => ({ task: 't', payload: nth, ...laneOf(nth) })));
    // Makes the queues known.
    await takenBy(3, 1);
    const stranger = new pg.Client(test.url);
    await stranger.connect();
    await stranger.query('begin');
    await stranger.query(`select from jobs.${rows} for update`);
    await jobs.addJobs([
      { task: 't', payload: 'free', queue: 'zoo' },
      { task: 't', payload: 'worse', queue: 'zoo', priority: 5 },
    ]);
    memory.noteRunnable(['zoo\x1f']);
    expect(await takenBy(5, 10)).toEqual(['free', 'worse']);
    await jobs.addJob('t', 'by hand', { queue: 'zoo' });
    expect((await jobs.getJobs(WORKER, { batchSize: 10 })).map(({ payload }) => payload)).toEqual(['by hand']);
    await stranger.query('rollback');
    await stranger.end();
  });

  it('are all come to by looks one after the other, whatever is told of those that have no tokens', async () => {
    await jobs.registerRateLimit('used-up', { algorithm: 'fixed', capacity: 1, interval: '1 hour' });
    const spent = Array.from({ length: 300 }, (_, nth) => named(nth));
    for (const by of spent) await jobs.takeTokens('used-up', { by });
    await jobs.addJobs(spent.map((by) => ({ task: 't', payload: by, rateLimit: { key: 'used-up', by } })));
    const free = [
      { task: 't', payload: 'in a queue', queue: 'zoo' },
      { task: 't', payload: 'of another limit', rateLimitKey: 'zoo' },
      { task: 't', payload: 'worse', queue: 'zebra', priority: 5 },
    ];
    await jobs.registerRateLimit('zoo', { algorithm: 'fixed', capacity: 10, interval: '1 hour' });
    await jobs.addJobs(free);
    const taken: unknown[] = [];
    for (let nth = 0; nth < 6; nth++) {
      // Begins like each of them.
      memory.noteRunnable(['\x1f\x1f']);
      taken.push(...(await takenBy(1, 10)));
    }
    expect(taken).toHaveLength(free.length);
    expect(new Set(taken)).toEqual(new Set(free.map(({ payload }) => payload)));
  });

  it('are all come to in many priorities, where many queues are full', async () => {
    const queues = Array.from({ length: 450 }, (_, nth) => named(nth));
    await jobs.addJobs(
      queues.flatMap((queue, nth) => [0, 1].map(() => ({ task: 't', payload: nth, queue, priority: nth % 50 }))),
    );
    const claimed = new Set<unknown>();
    for (let nth = 0; nth < 70 && claimed.size < queues.length; nth++) {
      const found = await lookAsPool(jobs, POOL, 10, memory);
      for (const { payload } of found.jobs) claimed.add(payload);
    }
    expect(claimed.size).toBe(queues.length);
  });

  it('are walked from the turn of the next priority, where a look has ended with one', async () => {
    for (const queue of ['a', 'm', 'z']) await jobs.configureQueue(queue, { concurrency: 5 });
    await jobs.addJobs(['a', 'm', 'z'].map((queue) => ({ task: 't', payload: queue, queue, priority: 5 })));
    const claim = {
      ...asPool(POOL),
      taskIdentifiers: null,
      otherTasks: null,
      forbiddenFlags: null,
      worstPriority: null,
    };
    const turns = [{ place: placeInWalk(5, 'm\x1f\x1f'), left: 0, share: 10, nextShare: 10 }];
    const state = { ...memory.next(10), turns, resumes: [placeInWalk(5, ''), null] as [string, null] };
    const found = await jobs.engine.claims.claimLanes({
      ...claim,
      limit: 10,
      maxCrashes: null,
      queue: null,
      memory: state,
    });
    expect(found.jobs).toHaveLength(3);
  });

  it('all give their last partitions their turns, in more full queues than a claim is told of', async () => {
    const partitions = ['a', 'a', 'a', 'a', 'a', 'b', 'c'];
    const queues = Array.from({ length: 130 }, (_, nth) => named(nth));
    for (const queue of queues) await jobs.configureQueue(queue, { concurrency: 1, partitions: {} });
    await jobs.addJobs(
      queues.flatMap((queue) => partitions.map((partition) => ({ task: 't', payload: partition, queue, partition }))),
    );
    const taken = await takenBy(95, 10);
    // Three of each queue bring all of them; where each is entered with its first partition, six do.
    expect(taken.lastIndexOf('c')).toBeLessThan(queues.length * 4);
    expect(taken).toHaveLength(queues.length * partitions.length);
  });
});

it('places are compared as PostgreSQL does it, by code points', () => {
  const units = fc.constantFrom('a', '\ud7ff', '\ue000', '\uffff', '\u{10000}', '\u{10ffff}');
  const texts = fc.string({ unit: units, maxLength: 4 });
  fc.assert(
    fc.property(texts, texts, (one, other) => {
      expect(Math.sign(comparePlaces(one, other))).toBe(Buffer.compare(Buffer.from(one), Buffer.from(other)));
    }),
  );
});
