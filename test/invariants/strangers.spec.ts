// Open transactions of strangers hold any row of the schema: everything that is about other jobs goes on, no statement of the
// library waits for them, and what is about the held row is done once they have let go.
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import type { AddedJob, AddJobOptions, ClaimedJob, JobManager } from '../../lib/index.js';
import { createTestManager, type TestManager, WORKER } from '../support/manager.js';
import { eventually } from '../support/database.js';
import { asPool, claimAsPool, registerPool } from '../support/pool.claims.js';
import { HOUR } from './actions.js';
import { expectInvariants } from './invariants.js';
import { emptyTables, letPoolsDie } from './tables.js';

/** A statement that waits so long for a stranger waits too long; the rule says 100 ms. */
const TOO_LONG = '1 s';
/** An operator's call for what is held tries for 10 s. */
const TIMEOUT_MS = 15_000;

let test: TestManager;
let jobs: JobManager;
let stranger: pg.Client;

beforeAll(async () => {
  test = await createTestManager({ retry: { baseDelayMs: HOUR } });
  jobs = test.jobs;
});
afterAll(() => test.close());
beforeEach(async () => {
  await emptyTables(test.sql);
  stranger = new pg.Client(test.url);
  await stranger.connect();
});
afterEach(() => stranger.end());

const LIVING = 'pool-that-lives';
const DEAD = 'pool-that-died';

interface Scene {
  /** What the stranger's rows are about. */
  held: Record<
    'running' | 'waiting' | 'exhausted' | 'cancelled' | 'parent' | 'child' | 'keyed' | 'follower' | 'plain',
    AddedJob
  >;
  /** What everybody else is about. */
  other: Record<'waiting' | 'exhausted' | 'cancelled' | 'parent', AddedJob>;
  heldClaim: ClaimedJob;
  otherClaims: ClaimedJob[];
}

/** Two of everything: one for the stranger, one for the others. */
async function setScene(): Promise<Scene> {
  const add = (options: AddJobOptions = {}, task = 'x') => jobs.addJob(task, {}, options);
  for (const key of ['l', 'other-l']) await jobs.registerRateLimit(key, 100, HOUR);
  for (const queue of ['q', 'other-q']) await jobs.configureQueue(queue, { concurrency: 5 });
  await test.sql(
    `insert into jobs.job_windows values ('throttle:t', now() - interval '2 h', now() - interval '1 h', now(), gen_random_uuid())
     on conflict do nothing`,
  );
  for (const pool of [LIVING, DEAD]) await registerPool(jobs, pool, HOUR);
  const running = await add({ queue: 'q', rateLimitKey: 'l', priority: -2 });
  const follower = await add({ jobKey: 'k', priority: -2 });
  const [heldClaim, keyedClaim] = await claimAsPool(jobs, LIVING, { limit: 2 });
  const others = [
    await add({ queue: 'other-q', priority: -2 }),
    await add({ priority: -2 }),
    await add({ priority: -2 }),
  ];
  const otherClaims = await claimAsPool(jobs, LIVING, { limit: 3 });
  expect(otherClaims.map(({ id }) => id).toSorted()).toEqual(others.map(({ id }) => id).toSorted());
  expect([heldClaim!.id, keyedClaim!.id]).toEqual([running.id, follower.id]);
  await add({ priority: -2 });
  expect(await claimAsPool(jobs, DEAD, { limit: 1 })).toHaveLength(1);
  await letPoolsDie(test.sql, [DEAD]);
  const parent = await add({ delayMs: HOUR });
  const otherParent = await add({ delayMs: HOUR });
  const held = {
    running,
    follower,
    parent,
    waiting: await add({ queue: 'q', rateLimitKey: 'l' }),
    exhausted: await add(),
    cancelled: await add(),
    child: await add({ dependsOn: [parent.id] }),
    keyed: await add({ jobKey: 'k' }),
    plain: await add({ priority: -1 }, 'plain'),
  };
  const other = { parent: otherParent, waiting: await add(), exhausted: await add(), cancelled: await add() };
  await jobs.permanentlyFailJobs([held.exhausted.id, other.exhausted.id]);
  await jobs.cancelJobs([held.cancelled.id, other.cancelled.id]);
  await jobs.scheduleCron({ id: 'c', task: 'x', schedule: '0 0 1 1 *', payload: {} });
  await test.sql(`insert into jobs.claims_in_question values ($1, $2, 1)`, [LIVING, running.id]);
  return { held, other, heldClaim: heldClaim!, otherClaims };
}

/** Rows to hold: a table, and which of its rows. */
const ROWS: Record<string, (scene: Scene) => [text: string, values?: unknown[]]> = {
  'a running job': ({ held }) => ['jobs where id = $1', [held.running.id]],
  'a waiting job': ({ held }) => ['jobs where id = $1', [held.waiting.id]],
  'a waiting job without a queue': ({ held }) => ['jobs where id = $1', [held.plain.id]],
  'an exhausted job': ({ held }) => ['jobs where id = $1', [held.exhausted.id]],
  'a parent': ({ held }) => ['jobs where id = $1', [held.parent.id]],
  'a child': ({ held }) => ['jobs where id = $1', [held.child.id]],
  'a job behind a key': ({ held }) => ['jobs where id = $1', [held.keyed.id]],
  'the job that holds a key': ({ held }) => ['jobs where id = $1', [held.follower.id]],
  'the job of a dead pool': () => ['jobs where locked_by = $1', [DEAD]],
  'the body of a waiting job': ({ held }) => ['job_bodies where id = $1', [held.waiting.id]],
  'the body of a cancelled job': ({ held }) => ['job_bodies where id = $1', [held.cancelled.id]],
  'a key': () => [`job_keys where key = 'k'`],
  'a pair': ({ held }) => ['job_dependencies where child_id = $1', [held.child.id]],
  'a queue': () => [`job_queues where name = 'q'`],
  'a place': () => [`job_places where queue = 'q'`],
  'a rate limit': () => [`rate_limits where key = 'l'`],
  'a window': () => [`rate_limit_states where key = 'l'`],
  'a window of a throttle': () => [`job_windows where key = 'throttle:t'`],
  'a replacement': () => ['job_replacements'],
  'a record': ({ held }) => ['job_history where job_id = $1', [held.cancelled.id]],
  'a dead pool': () => ['workers where id = $1', [DEAD]],
  'the duties': () => ['duties'],
  'the name of a task': () => ['job_tasks'],
  'a crontab': () => [`crontabs where id = 'c'`],
  'a question': () => ['claims_in_question'],
  'a receipt': () => ['settle_receipts'],
};

/** What strangers have written, and not committed. */
const WRITTEN: Record<string, string> = {
  'the registration of a queue': `insert into jobs.job_queues (name) values ('fresh')`,
  'the name of a new task': `insert into jobs.job_tasks (task) values ('new')`,
  'a key of theirs': `insert into jobs.job_keys values ('theirs', gen_random_uuid())`,
};

/** What is about other rows. Each must end while the stranger's transaction is open. */
const CALLS: Record<string, (scene: Scene) => Promise<unknown>> = {
  'a settle of others': async ({ otherClaims }) => {
    const requests = otherClaims.slice(0, 2).map((job, n) => ({
      job,
      outcome: n
        ? ({ kind: 'failed', error: 'x', delayMs: HOUR } as const)
        : ({ kind: 'completed', result: null } as const),
      executionTimeMs: 1,
    }));
    const { results, late } = await jobs.engine.settlement.settle(asPool(LIVING), requests);
    expect([results.length, late]).toEqual([2, null]);
  },
  'a settle of others beside the held job': async ({ heldClaim, otherClaims }) => {
    const outcome = { kind: 'completed', result: null } as const;
    const requests = [heldClaim, otherClaims[2]!].map((job) => ({ job, outcome, executionTimeMs: 1 }));
    const { results, late } = await jobs.engine.settlement.settle(asPool(LIVING), requests);
    expect(results.map(({ job }) => job)).toContain(otherClaims[2]);
    void late?.catch(() => undefined);
  },
  heartbeat: async () => expect((await jobs.engine.registry.heartbeat(LIVING)).expired).toBe(false),
  check: ({ otherClaims }) => jobs.engine.registry.check(otherClaims),
  'look for unknown claims': ({ otherClaims, heldClaim }) =>
    jobs.engine.registry.releaseUnknown(LIVING, [...otherClaims, heldClaim], false),
  'add a job': () => jobs.addJob('x', {}),
  'add a job of another task': async () => {
    await jobs.addJob('new', {}, { priority: -1 });
    expect(await jobs.getJobs(WORKER, { taskIdentifiers: ['new'] })).toHaveLength(1);
  },
  'add a job to the queue': () => jobs.addJob('x', {}, { queue: 'q', rateLimitKey: 'l' }),
  'add a child': ({ other }) => jobs.addJob('x', {}, { dependsOn: [other.parent.id] }),
  'add a job with a key': () => jobs.addJob('x', {}, { jobKey: 'other-k' }),
  'claim other jobs': async ({ other }) => {
    await jobs.addJobs([
      { task: 'claimed', payload: 1, queue: 'other-q' },
      { task: 'claimed', payload: 1, rateLimitKey: 'other-l' },
      { task: 'claimed', payload: 1 },
    ]);
    expect(other).toBeDefined();
    expect(await claimAsPool(jobs, LIVING, { limit: 10, taskIdentifiers: ['claimed'] })).toHaveLength(3);
  },
  'claim beside a job of a queue that is new': async () => {
    await jobs.addJob('beside', 1, { queue: 'fresh', priority: -1 });
    await jobs.addJob('beside', 1);
    const claimed = await claimAsPool(jobs, LIVING, { limit: 2, taskIdentifiers: ['beside'] });
    expect(claimed.map(({ queue }) => queue)).toContain(null);
  },
  'claim a job of the same task': async () => {
    jobs.engine.claims.clearRememberedTasks();
    await jobs.addJob('x', 1, { queue: 'other-q', priority: -5 });
    expect(await claimAsPool(jobs, LIVING, { limit: 1, taskIdentifiers: ['x'] })).toHaveLength(1);
  },
  'claim plain jobs behind the held one': async () => {
    await jobs.addJob('plain', 1);
    expect(await claimAsPool(jobs, LIVING, { limit: 1, taskIdentifiers: ['plain'] })).toHaveLength(1);
  },
  'add with a throttle': () => jobs.addJob('throttled', 1, { throttle: { key: 'other-t', ms: 1 }, delayMs: HOUR }),
  'claim by hand': async () => {
    await jobs.addJob('by-hand', 1, { queue: 'other-q' });
    expect(await jobs.getJobs(WORKER, { taskIdentifiers: ['by-hand'] })).toHaveLength(1);
  },
  rescue: () => jobs.engine.registry.rescue(),
  reset: () => jobs.resetLockedJobs(),
  sweep: () => jobs.engine.promoter.sweepNow(),
  'shared duties': async () => {
    await jobs.engine.registry.sweep();
    await jobs.engine.registry.audit();
  },
  cancel: ({ other }) => jobs.cancelJobs([other.parent.id]),
  retry: ({ other }) => jobs.retryJobs([other.exhausted.id, other.cancelled.id]),
  reschedule: ({ other }) => jobs.rescheduleJobs([other.waiting.id], { priority: 3 }),
  'fail for good': ({ other }) => jobs.permanentlyFailJobs([other.waiting.id]),
  'configure a queue': () => jobs.configureQueue('other-q', { concurrency: 9 }),
  'register a rate limit': () => jobs.registerRateLimit('other-l', 200, HOUR),
  refill: () => jobs.refillRateLimits(),
  'schedule a crontab': () => jobs.scheduleCron({ id: 'd', task: 'x', schedule: '0 0 1 1 *', payload: {} }),
  'collect garbage': async () => {
    await jobs.gcJobQueues();
    await jobs.gcTaskIdentifiers({ keepSinceMs: 0 });
  },
  purge: () => jobs.purgeJobs({ status: 'completed', olderThanMs: 0 }),
  'start a pool': () => registerPool(jobs, 'pool-that-starts', HOUR),
};

/** Statements that wait too long for the stranger, other than those that were `known` to. */
async function waiting(stranger: number, known: Set<number>): Promise<string[]> {
  const all = await test.sql<{ pid: number; query: string }>(
    `select pid, query from pg_stat_activity
     where $1 = any(pg_blocking_pids(pid)) and query_start < clock_timestamp() - $2::interval`,
    [stranger, TOO_LONG],
  );
  const rows = all.filter(({ pid }) => !known.has(pid));
  for (const { pid } of rows) known.add(pid);
  return rows.map(({ query }) => query.replaceAll(/\s+/g, ' ').slice(0, 200));
}

describe('an open transaction of a stranger that holds', () => {
  it.each([...Object.keys(ROWS), ...Object.keys(WRITTEN)])(
    '%s keeps nothing from what is about others, and loses nothing',
    async (name) => {
      const scene = await setScene();
      await stranger.query('begin');
      const [row, values] = ROWS[name]?.(scene) ?? [];
      const { rowCount } = await stranger.query(WRITTEN[name] ?? `select * from jobs.${row} for update`, values);
      expect(rowCount! > 0 || name === 'a receipt').toBe(true);
      const { rows } = await stranger.query<{ pid: number }>('select pg_backend_pid() as pid');
      const faults: string[] = [];
      const known = new Set<number>();
      for (const [call, work] of Object.entries(CALLS)) {
        let state: 'under way' | 'done' | Error = 'under way';
        void work(scene).then(
          () => (state = 'done'),
          (error: Error) => (state = error),
        );
        const started = performance.now();
        await eventually(
          async () => {
            if (state !== 'under way') return true;
            const found = await waiting(rows[0]!.pid, known);
            if (found.length) faults.push(`${call} waits: ${found.join()}`);
            if (!found.length && performance.now() - started > TIMEOUT_MS - 1_000) faults.push(`${call} does not end`);
            return found.length > 0 || performance.now() - started > TIMEOUT_MS - 1_000;
          },
          { timeoutMs: TIMEOUT_MS },
        );
        if ((state as unknown) instanceof Error) faults.push(`${call}: ${(state as unknown as Error).message}`);
      }
      expect(faults).toEqual([]);
      await stranger.query('rollback');
      await eventually(async () => (await jobs.findJob(scene.held.running.id))?.status !== 'running');
      await jobs.resetLockedJobs();
      await expectInvariants(test.sql);
    },
    120_000,
  );
});
