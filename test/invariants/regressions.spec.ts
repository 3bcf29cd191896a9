// What the other specs of this folder have found, each as the shortest story that shows it.
import { beforeAll, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { createJobManager, type ClaimedJob } from '../../lib/index.js';
import { byHand } from '../../lib/manager/worker.registry.js';
import { OTHER, WORKER, managerWithin } from '../support/manager.js';
import { expectInvariants } from './invariants.js';
import { tellStories } from './stories.js';
import { claimAsPool, registerPool } from '../support/pool.claims.js';
import { outcomeOf } from './actions.js';
import { letPoolsDie, letTimeCome, readJobs } from './tables.js';
import type { Outcome } from './transitions.js';

const { scene, add, claim, claimOne, statusOf } = tellStories();
let { test, jobs } = scene;
beforeAll(() => void ({ test, jobs } = scene));

describe('jobs that wait for parents', () => {
  it('an exhausted child that is retried does not wait for a parent that has failed meanwhile', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent.id] });
    await jobs.permanentlyFailJobs([child.id]);
    await jobs.permanentlyFailJobs([parent.id]);
    await expectInvariants(test.sql);
    await jobs.retryJobs([child.id]);
    expect(await statusOf(child)).toBe('available');
  });

  it('a cancelled child that is retried waits for its parents as before', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent.id] });
    await jobs.cancelJobs([child.id]);
    await jobs.retryJobs([child.id]);
    expect(await statusOf(child)).toBe('blocked');
    await expectInvariants(test.sql);

    await jobs.completeJobs(WORKER, [await claimOne()], 1);
    expect(await statusOf(child)).toBe('available');
    await expectInvariants(test.sql);
  });

  it('a cancelled child that is retried after its parent has completed is ready', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent.id] });
    await jobs.cancelJobs([child.id]);
    await jobs.completeJobs(WORKER, [await claimOne()], 1);
    await jobs.retryJobs([child.id]);
    expect(await statusOf(child)).toBe('available');
    await expectInvariants(test.sql);
  });
});

it('a job that is asked to stop, then failed for good, then retried, can be completed', async () => {
  const job = await add();
  await claim();
  await jobs.cancelJobs([job.id]);
  await jobs.permanentlyFailJobs([job.id]);
  await jobs.retryJobs([job.id]);
  await jobs.completeJobs(WORKER, [await claimOne()], 1);
  expect(await statusOf(job)).toBe('completed');
});

it('a parent that is exhausted by a lower maximum of attempts tells its children', async () => {
  const parent = await add({ maxAttempts: 5 });
  const child = await add({ dependsOn: [parent.id] });
  await jobs.failJobs(WORKER, [{ job: await claimOne(), error: 'x' }], 1);
  await jobs.rescheduleJobs([parent.id], { maxAttempts: 1 });
  expect(await statusOf(child)).toBe('cancelled');
  await expectInvariants(test.sql);
});

/** In a transaction of a stranger, open until the end. */
async function beside(text: string, values: unknown[], work: (client: pg.Client) => Promise<void>): Promise<void> {
  const client = new pg.Client(test.url);
  await client.connect();
  try {
    await client.query('begin');
    await client.query(text, values);
    await work(client);
    await client.query('commit');
  } finally {
    await client.end();
  }
}

it('a claim takes the next in line while an open transaction holds the first, and nothing while it holds the queue', async () => {
  const first = await add({ queue: 'q' });
  const second = await add({ queue: 'q' });
  await jobs.pauseQueue('q');
  await jobs.resumeQueue('q');
  await beside('select from jobs.job_queues where name = $1 for update', ['q'], async () => {
    expect(await claim()).toEqual([]);
  });
  await beside('select from jobs.jobs where id = $1 for update', [first.id], async () => {
    const claimed = await claim();
    expect(claimed.map(({ id }) => id)).toEqual([second.id]);
    await jobs.completeJobs(WORKER, claimed, 1);
  });
  expect((await claim()).map(({ id }) => id)).toEqual([first.id]);
  await expectInvariants(test.sql);
});

it('an open transaction that adds a child keeps nothing from its parent, and the child is told when it is there', async () => {
  const parent = await add({ queue: 'q' });
  const client = new pg.Client(test.url);
  await client.connect();
  try {
    await client.query('begin');
    const child = await jobs.addJob('x', 1, { dependsOn: [parent.id], manager: client });
    expect((await jobs.completeJobs(WORKER, await claim(), 1)).settled).toHaveLength(1);
    await client.query('commit');
    await jobs.engine.promoter.sweepNow();
    expect(await statusOf(child)).toBe('available');
  } finally {
    await client.end();
  }
  await expectInvariants(test.sql);
});

it('a cancelled job that is retried while others purge is not purged', async () => {
  const job = await add();
  await jobs.cancelJobs([job.id]);
  const client = new pg.Client(test.url);
  await client.connect();
  try {
    await client.query('begin');
    await managerWithin(jobs, client).retryJobs([job.id]);
    expect(await jobs.purgeJobs({ status: 'cancelled', olderThanMs: 0 })).toBe(0);
    await client.query('commit');
  } finally {
    await client.end();
  }
  expect(await statusOf(job)).toBe('available');
  await expectInvariants(test.sql);
});

it('partial results that hold NUL as an escape do not keep a claim from its jobs', async () => {
  const other = await add();
  for (const options of [{}, { queue: 'q' }]) {
    const poisoned = await add({ ...options, priority: -1 });
    const [job] = await jobs.getJobs(WORKER);
    expect(job!.id).toBe(poisoned.id);
    const previous = { completedSteps: ['a\0b'], results: { 'a\0b': '\0' } };
    await jobs.reportPartialSuccess(WORKER, job!, previous, 1);
    await letTimeCome(test.sql);
    const claimed = await jobs.getJobs(WORKER, { batchSize: 2 });
    expect(claimed.map(({ id }) => id).toSorted()).toEqual([other.id, poisoned.id].toSorted());
    expect(claimed.find(({ id }) => id === poisoned.id)!.previous).toEqual(previous);
    await jobs.engine.settlement.release(byHand(WORKER, 60_000), claimed);
    await jobs.cancelJobs([poisoned.id]);
  }
});

describe('a batch of settles that names a job more than once', () => {
  const settleAs = async (claims: ClaimedJob[], kinds: Outcome[]): Promise<string[]> => {
    const requests = claims.map((job, n) => ({ job, outcome: outcomeOf(kinds[n]!), executionTimeMs: 1 }));
    const { results, late } = await jobs.engine.settlement.settle(byHand(WORKER, 60_000), requests);
    const all = [...results, ...((await late) ?? [])];
    expect(all).toHaveLength(claims.length);
    return claims.map((job) => all.find((result) => result.job === job)!.status);
  };

  it.each<Outcome>(['completed', 'failed', 'snoozed', 'released'])(
    'tells each claim of it apart: an older one is lost, the present one is %s',
    async (outcome) => {
      await add({ queue: 'q' });
      const old = await claimOne();
      await jobs.forceUnlockJobs();
      const present = await claimOne();
      const [first, second] = await settleAs([old, present], [outcome, outcome]);
      expect(first).toBe('lost');
      expect(second).not.toBe('lost');
      await expectInvariants(test.sql);
    },
  );

  it.each<Outcome>(['completed', 'failed', 'snoozed', 'cancelled'])(
    'records the same claim once, twice told to be %s: the other one comes too late',
    async (outcome) => {
      const { id } = await add({ queue: 'q' });
      const claimed = await claimOne();
      const told = await settleAs([claimed, { ...claimed }], [outcome, outcome]);
      expect(told.filter((status) => status !== 'lost')).toHaveLength(1);
      expect(await jobs.jobHistory(id)).toHaveLength(1);
      await expectInvariants(test.sql);
    },
  );

  it('records the same claim once, told to be completed and to have failed', async () => {
    const { id } = await add();
    const claimed = await claimOne();
    const told = await settleAs([claimed, { ...claimed }], ['completed', 'failed']);
    expect(told.filter((status) => status !== 'lost')).toHaveLength(1);
    const status = await statusOf({ id });
    expect(status).toBe(told[0] === 'completed' ? 'completed' : 'scheduled');
    expect(await jobs.jobHistory(id)).toHaveLength(1);
  });
});

describe('jobs whose pool died beside a suspect', () => {
  const makeSuspect = async (id: string): Promise<void> =>
    void (await test.sql(
      `update jobs.jobs set crashes = 2, slot_only = true, lane = jobs.lane_of(queue, partition, limits, true) where id = $1`,
      [id],
    ));

  it('are spared, also those that an open transaction holds at first', async () => {
    await registerPool(jobs, OTHER);
    const suspect = await add({ maxAttempts: 5 });
    const [one, two] = [await add({ maxAttempts: 5 }), await add({ maxAttempts: 5 })];
    await makeSuspect(suspect.id);
    expect(await claimAsPool(jobs, OTHER)).toHaveLength(3);
    await letPoolsDie(test.sql, [OTHER]);
    await beside('select from jobs.jobs where id = $1 for update', [two.id], async () => {
      await jobs.engine.registry.rescue();
    });
    await jobs.engine.registry.rescue();
    const found = await readJobs(test.sql, [suspect.id, one.id, two.id]);
    const seen = [suspect, one, two].map(({ id }) => [
      found.get(id)!.standing,
      found.get(id)!.crashes,
      found.get(id)!.attempts,
    ]);
    expect(seen).toEqual([
      ['exhausted', 3, 1],
      ['waiting', 0, 0],
      ['waiting', 0, 0],
    ]);
  });
});

// Known: a queue's job without a limit key still goes first.
it.each([1, 2, 10])(
  'a serial queue takes its jobs in order, with and without a rate limit, past those whose limit has no tokens (batch: %i)',
  async (batch) => {
    await jobs.registerRateLimit('full', 5, 60_000);
    await jobs.registerRateLimit('empty', 1, 60_000);
    await add({ rateLimitKey: 'empty' });
    await jobs.completeJobs(WORKER, await claim(), 1);
    const limited = await add({ queue: 'q', rateLimitKey: 'full' });
    await add({ queue: 'q', rateLimitKey: 'empty' });
    const free = await add({ queue: 'q' });
    const last = await add({ queue: 'q', rateLimitKey: 'full' });
    const other = await add({ queue: 'q a' });
    const taken: string[] = [];
    for (let turn = 0; turn < 4; turn++) {
      const claimed = await jobs.getJobs(WORKER, { batchSize: batch });
      taken.push(...claimed.map(({ id }) => id));
      await jobs.completeJobs(WORKER, claimed, 1);
    }
    expect(taken.filter((id) => id !== other.id)).toEqual([limited.id, free.id, last.id]);
    expect(taken).toContain(other.id);
  },
);

it('what the audit asks one pool is left for it by the others', async () => {
  for (const id of ['pool-that-asks', OTHER]) await registerPool(jobs, id);
  const { id } = await add();
  const [claim] = await claimAsPool(jobs, OTHER);
  await test.sql('insert into jobs.claims_in_question values ($1, $2, $3)', [OTHER, id, claim!.fence]);
  expect(await jobs.engine.registry.releaseUnknown('pool-that-asks', [], false)).toBe(0);
  expect(await jobs.engine.registry.releaseUnknown(OTHER, [], false)).toBe(1);
  expect(await jobs.findJob(id)).toMatchObject({ status: 'available', attempts: 0 });
});

it('a pool that lives claims while the end of those that died is under way', async () => {
  for (const id of ['pool-that-lives', OTHER]) await registerPool(jobs, id);
  await letPoolsDie(test.sql, [OTHER]);
  await add();
  await beside('select * from jobs.end_incarnations(null)', [], async () => {
    expect(await claimAsPool(jobs, 'pool-that-lives')).toHaveLength(1);
    expect(await claimAsPool(jobs, OTHER)).toEqual([]);
  });
});

it.each(['none', 'failures', 'all'] as const)(
  'a job that was cancelled and retried counts as completed once it is, with history.keep %s',
  async (keep) => {
    const keeper = await createJobManager({ connection: test.url, history: { keep } });
    const parent = await add({ delayMs: 60_000 });
    await keeper.cancelJobs([parent.id]);
    await keeper.retryJobs([parent.id]);
    const child = await add({ dependsOn: [parent.id] });
    const claimed = await keeper.getJobs(WORKER, { batchSize: 10 });
    expect(claimed.map(({ id }) => id)).toEqual([parent.id]);
    await keeper.completeJobs(WORKER, claimed, 1);
    expect(await statusOf(parent)).toBe('completed');
    expect(await statusOf(child)).toBe('available');
    expect(await keeper.retryJobs([parent.id])).toEqual([]);
    await keeper.close();
  },
);

describe('a job that cannot be handed out', () => {
  it('because its body is gone fails by itself, and its neighbours are claimed', async () => {
    const [broken, ...others] = [await add(), await add(), await add({ queue: 'q' })];
    await test.sql('delete from jobs.job_bodies where id = $1', [broken!.id]);
    expect((await claim()).map(({ id }) => id).toSorted()).toEqual(others.map(({ id }) => id).toSorted());
    const [left] = await test.sql('select parked, last_error from jobs.jobs where id = $1', [broken!.id]);
    expect(left).toEqual({ parked: 'exhausted', last_error: expect.stringContaining('its payload is gone') });
  });

  it('is none because SQL has nested its payload 5,000 deep', async () => {
    const nested = '['.repeat(5_000) + ']'.repeat(5_000);
    const [deep] = await test.sql<{ id: string }>(`select jobs.add_job('x', $1::json) as id`, [nested]);
    const other = await add();
    expect((await claim()).map(({ id }) => id)).toEqual([deep!.id, other.id]);
  });
});

describe('a key that occurs twice in one call', () => {
  const MODES = ['replace', 'preserve_run_at', 'unsafe_dedupe'] as const;
  const twice = async (parents: string[][], jobKeyMode: (typeof MODES)[number]) => {
    const common = { task: 'child', payload: null, jobKey: 'twice' };
    return (
      await jobs.addJobs([
        { ...common, dependsOn: parents[0] },
        { task: 'beside', payload: null, dependsOn: parents[0] },
        { ...common, jobKeyMode, dependsOn: parents[1] },
      ])
    )[2]!;
  };

  it.each(MODES)('has a job that waits for the parents that it says (%s)', async (mode) => {
    const [first, second] = [await add(), await add()];
    const child = await twice([[first.id], [second.id]], mode);
    const kept = mode === 'unsafe_dedupe' ? first : second;
    const other = kept === first ? second : first;
    expect(child.dependsOn).toEqual([kept.id]);
    await expectInvariants(test.sql);

    await jobs.cancelJobs([other.id]);
    expect(await statusOf(child)).toBe('blocked');
    await jobs.completeJobs(WORKER, [await claimOne()], 1);
    expect(await statusOf(child)).toBe('available');
    await expectInvariants(test.sql);
  });

  it.each(MODES)('has a job that waits for none where the last one says none (%s)', async (mode) => {
    const parent = await add();
    const child = await twice([[parent.id], []], mode);
    await expectInvariants(test.sql);

    await jobs.cancelJobs([parent.id]);
    expect(await statusOf(child)).toBe(mode === 'unsafe_dedupe' ? 'cancelled' : 'available');
    // The sweep frees the key of a job that was cancelled for its parent.
    await jobs.resetLockedJobs();
    await expectInvariants(test.sql);
  });

  it.each(MODES)('has a job that waits where only the last one says so (%s)', async (mode) => {
    const parent = await add();
    const child = await twice([[], [parent.id]], mode);
    expect(await statusOf(child)).toBe(mode === 'unsafe_dedupe' ? 'available' : 'blocked');
    await expectInvariants(test.sql);
  });
});
