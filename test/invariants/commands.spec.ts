// Random lives of a queue: one after another against a model, and side by side against the invariants.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import pg from 'pg';
import { JobKeyConflictError, JobsError, UnknownParentError } from '../../lib/index.js';
import { createTestManager, type TestManager } from '../support/manager.js';
import * as actions from './actions.js';
import { HANDS, POOLS, type Action, type Real } from './actions.js';
import { action as anyAction, laneAction, queueAction } from './arbitraries.js';
import { letClockJump, TIMES as STORED_TIMES, timesAhead, timesOfSchema } from './clocks.js';
import { ActionCommand } from './commands.js';
import { expectInvariants } from './invariants.js';
import { Memories } from './memories.js';
import { Model } from './model.js';
import { replayed } from './replayed.js';
import { emptyTables, letDutiesCome, letTimeCome, watchLimits } from './tables.js';

/** MILLRACE_RUNS: how many times as many runs as usual. */
const TIMES = Number(process.env.MILLRACE_RUNS ?? 1);
/** MILLRACE_SEED: instead of a random one. */
const SEED = Number(process.env.MILLRACE_SEED ?? Math.floor(Math.random() * 2 ** 31));
const FIXED_SEED = 20_250_101;
const TIMEOUT = 60_000 * Math.max(1, TIMES);

let test: TestManager;
let memories: Memories;
beforeAll(async () => {
  console.log(`MILLRACE_SEED=${SEED}`);
  // However far clocks jump, what has ended is remembered.
  const history = { retentionMs: 200_000 * actions.HOUR };
  test = await createTestManager({ retry: { baseDelayMs: actions.HOUR, maxDelayMs: 100 * actions.HOUR }, history });
  await watchLimits(test.sql);
  memories = await Memories.create(test.jobs);
});
afterAll(async () => {
  await memories.close();
  await test.close();
});

async function setUp(): Promise<{ model: Model; real: Real }> {
  const { jobs, sql } = test;
  await emptyTables(sql);
  const model = new Model();
  for (const limit of actions.LIMITS) {
    await jobs.registerRateLimit(limit, 2, actions.WINDOW);
    model.limits.set(limit, { capacity: 2, taken: 0 });
  }
  const real: Real = {
    jobs,
    sql,
    ids: [],
    claims: [],
    incarnations: new Map(),
    clockWentBack: false,
    clockWentOn: false,
    memories,
  };
  memories.clear();
  for (const label of POOLS) {
    await actions.restart(real, label);
    model.pools.set(real.incarnations.get(label)!, { label, silentHours: 0, alive: true });
  }
  return { model, real };
}

/** Gives everything its time, its tokens and a worker: nothing may be left but what waits for an operator. */
async function drain(real: Real): Promise<void> {
  const { jobs, sql } = real;
  await letDutiesCome(sql);
  await jobs.engine.registry.audit();
  await jobs.engine.registry.sweep();
  await jobs.resetLockedJobs();
  await jobs.gcJobHistory();
  // A limit is looked at where a claim wants its tokens.
  expect(await timesAhead(sql)).toEqual(await timesAhead(sql, ['rate_limit_states']));
  expect(await sql(`select name from jobs.duties where due_at > now() + interval '1 minute'`)).toEqual([]);
  for (const queue of actions.QUEUES) await jobs.resumeQueue(queue);
  for (const task of actions.TASKS) await jobs.resume({ task });
  await letClockJump(sql, 2 * actions.HOUR);
  await jobs.resetLockedJobs();
  expect(await sql('select id, locked_by from jobs.jobs where locked_by is not null')).toEqual([]);
  for (let idle = 0; idle < 2;) {
    await letTimeCome(sql);
    const claimed = await jobs.getJobs(HANDS[0]!, { batchSize: 50 });
    await jobs.completeJobs(HANDS[0]!, claimed, 1);
    idle = claimed.length ? 0 : idle + 1;
    // What was in the future has been seen: now every window ends.
    await letClockJump(sql, actions.WINDOW);
  }
  await expectInvariants(sql, real);
  // A job that waits for a failed parent by its own wish, or for one that waits so, waits on.
  const stuck = await sql(`
    with recursive patient as (
      select d.child_id as id from jobs.job_dependencies d left join jobs.jobs parent on parent.id = d.parent_id
      where parent.id is null or parent.parked = 'exhausted'
      union
      select d.child_id from jobs.job_dependencies d join patient on patient.id = d.parent_id
    )
    select id, parked, unmet, queue, limits from jobs.jobs
    where parked is distinct from 'exhausted' and id not in (select id from patient)`);
  expect(stuck).toEqual([]);
}

/** Returns how many actions were taken. */
async function live(list: Action[]): Promise<number> {
  const setup = await setUp();
  await fc.asyncModelRun(
    () => setup,
    list.map((action) => new ActionCommand(action)),
  );
  await drain(setup.real);
  return list.length;
}

it('a clock that jumps moves every time in the tables, and each is of a kind', async () => {
  const known = Object.entries(STORED_TIMES).flatMap(([table, columns]) =>
    Object.keys(columns).map((name) => `${table}.${name}`),
  );
  expect(await timesOfSchema(test.sql)).toEqual(known.toSorted());
});

describe('a queue that lives as the model says', () => {
  it.each(replayed.map((list, index) => ({ index, list })))(
    'as it did in life $index that went wrong once',
    async ({ list }) => {
      expect(await live(list)).toBe(list.length);
    },
  );

  it.each([
    { seed: FIXED_SEED, runs: 12 },
    { seed: SEED, runs: 12 },
  ])(
    'with seed $seed',
    async ({ seed, runs }) => {
      let lives = 0;
      const commands = fc.commands([anyAction.map((one) => new ActionCommand(one))], {
        maxCommands: 60,
        size: 'max',
      });
      await fc.assert(
        fc.asyncProperty(commands, async (list) => {
          const setup = await setUp();
          await fc.asyncModelRun(() => setup, list);
          await drain(setup.real);
          lives++;
        }),
        {
          seed,
          numRuns: runs * TIMES,

          interruptAfterTimeLimit: TIMEOUT - 10_000,
          markInterruptAsFailure: false,
        },
      );
      expect(lives).toBeGreaterThan(0);
    },
    TIMEOUT,
  );
});

describe.each([
  { name: 'a pool that remembers lanes, and hears what it is told of them,', actions: laneAction },
  {
    name: 'a pool that takes from the lane it frees a place in, behind what it remembers of it,',
    actions: queueAction,
  },
])('$name', ({ actions: oneAction }) => {
  it.each([
    { seed: FIXED_SEED, runs: 15 },
    { seed: SEED, runs: 15 },
  ])(
    'finds what a look at everything would find, with seed $seed',
    async ({ seed, runs }) => {
      const commands = fc.commands([oneAction.map((one) => new ActionCommand(one))], {
        maxCommands: 60,
        size: 'max',
      });
      const life = fc.asyncProperty(commands, async (list) => {
        const setup = await setUp();
        await fc.asyncModelRun(() => setup, list);
      });
      const limits = { interruptAfterTimeLimit: TIMEOUT - 10_000, markInterruptAsFailure: false };
      const { failed, counterexample, errorInstance } = await fc.check(life, {
        seed,
        numRuns: runs * TIMES,
        ...limits,
      });
      expect([failed && errorInstance, [...(counterexample?.[0] ?? [])].join()]).toEqual([false, '']);
    },
    TIMEOUT,
  );
});

describe('a queue that many use at once', () => {
  it.each([
    { seed: FIXED_SEED, runs: 10 },
    { seed: SEED, runs: 10 },
  ])(
    'keeps its invariants with seed $seed',
    async ({ seed, runs }) => {
      const side = fc.array(anyAction, { minLength: 8, maxLength: 30, size: 'max' });
      await fc.assert(
        fc.asyncProperty(fc.array(side, { minLength: 2, maxLength: 4 }), fc.array(hold), async (sides, holds) => {
          const { real } = await setUp();
          const settled: string[] = [];
          await Promise.all([
            ...sides.map((list, index) => liveBeside(real, list, index, settled)),
            holdRows(test.url, holds),
          ]);
          // No claim was reported as settled twice.
          expect(settled.toSorted()).toEqual([...new Set(settled)].toSorted());
          await real.jobs.engine.promoter.sweepNow();
          await real.jobs.engine.registry.rescue();
          await expectInvariants(real.sql, real);
          await drain(real);
        }),
        { seed, numRuns: runs * TIMES, interruptAfterTimeLimit: TIMEOUT - 10_000, markInterruptAsFailure: false },
      );
    },
    TIMEOUT,
  );
});

/** What a stranger's transaction holds, and for how long. */
interface Hold {
  table: string;
  row: number;
  ms: number;
}

const HELD_TABLES = [
  'jobs',
  'jobs',
  'job_bodies',
  'job_keys',
  'job_dependencies',
  'job_queues',
  'job_places',
  'rate_limits',
  'rate_limit_states',
  'job_replacements',
  'job_windows',
  'workers',
  'duties',
];

const hold: fc.Arbitrary<Hold> = fc.record({
  table: fc.constantFrom(...HELD_TABLES),
  row: fc.nat(20),
  ms: fc.integer({ min: 1, max: 200 }),
});

/** Holds one row after the other. */
async function holdRows(url: string, holds: Hold[]): Promise<void> {
  const client = new pg.Client(url);
  await client.connect();
  for (const { table, row, ms } of holds) {
    await client.query('begin');
    const { rows } = await client.query<{ rows: number }>(`select count(*)::integer as rows from jobs.${table}`);
    const text = `select * from jobs.${table} offset $1 limit 1 for update skip locked`;
    await client.query(text, [row % (rows[0]!.rows || 1)]);
    await new Promise((resolve) => setTimeout(resolve, ms));
    await client.query('rollback');
  }
  await client.end();
}

/** One of several that use a queue at the same time: its workers are its own, the jobs are everybody's. */
async function liveBeside(real: Real, list: Action[], index: number, settled: string[]): Promise<void> {
  const { jobs } = real;
  const noteSettled = (claims: actions.HeldClaim[], statuses: string[]): void => {
    for (const [at, { job }] of claims.entries()) if (statuses[at] !== 'lost') settled.push(`${job.id} ${job.fence}`);
  };
  for (const action of list) {
    const id = 'job' in action ? actions.nth(real.ids, action.job) : undefined;
    switch (action.do) {
      case 'add': {
        const parents = (job: actions.NewJob): string[] => [
          ...new Set(job.parents.flatMap((parent) => actions.nth(real.ids, parent) ?? [])),
        ];
        const specs = action.jobs.map((job) =>
          actions.toSpec({ ...job, parents: job.key === null ? parents(job) : [] }),
        );
        const added = await jobs.addJobs(specs).catch(refused(UnknownParentError));
        if (added) real.ids.push(...added.map((job) => job.id).filter((job) => !real.ids.includes(job)));
        break;
      }
      case 'claim': {
        const worker = HANDS[(action.worker + index) % HANDS.length]!;
        const { task, queues } = action;
        const only = { ...(task !== null && { taskIdentifiers: [task] }), ...(queues !== null && { queues }) };
        const claimed = await jobs.getJobs(worker, { batchSize: action.batch, leaseMs: actions.HOUR, ...only });
        real.claims.push(...claimed.map((job) => ({ worker, job })));
        break;
      }
      case 'claim for a pool': {
        const worker = actions.incarnationOf(real, (action.worker + index) % POOLS.length);
        const claimed = await actions.claimForPool(jobs, worker, action);
        real.claims.push(...claimed.map((job) => ({ worker, job })));
        break;
      }
      case 'settle': {
        const claims = actions.takeClaims(real, action.claim, action.count);
        if (!claims.length) break;
        noteSettled(claims, await actions.settle(jobs, claims, action.outcome));
        break;
      }
      case 'complete and claim': {
        const claims = actions.takeClaims(real, action.claim, action.count, real.claims.filter(actions.isOfPool));
        if (!claims.length) break;
        const { worker } = claims[0]!;
        const { statuses, found } = await actions.completeAndClaim(jobs, claims, action);
        noteSettled(claims, statuses);
        if (found) real.claims.push(...found.jobs.map((job) => ({ worker, job })));
        break;
      }
      case 'extend':
        if (id) await jobs.extendLease(HANDS[index % 2]!, id).catch(refused(JobsError));
        break;
      case 'revoke': {
        const job = id ? await jobs.findJob(id) : null;
        if (job) await jobs.revokeLease(job.id, job.revision).catch(refused(JobsError));
        break;
      }
      case 'replay':
        await jobs.replayFailedJobs();
        break;
      case 'beat':
        await jobs.engine.registry.heartbeat(actions.incarnationOf(real, action.worker));
        break;
      case 'sign off':
        await jobs.engine.registry.unregister(actions.incarnationOf(real, action.worker));
        break;
      default:
        await actions.operate(real, action, id).catch(refused(JobKeyConflictError));
    }
    await expectInvariants(real.sql, { ...real, atRest: false });
  }
}

const refused =
  (kind: abstract new (...args: any[]) => Error) =>
  (error: unknown): undefined => {
    if (!(error instanceof kind)) throw error;
  };
