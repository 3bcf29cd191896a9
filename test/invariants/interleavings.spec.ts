// Each pair of calls on two connections, statement by statement in every order: what is left is what one of the two
// orders of the whole calls would have left, and no invariant is broken.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { JobsError, RowsHeldError, type JobManager, type PauseTarget } from '../../lib/index.js';
import { createTestManager, WORKER, type TestManager, managerWithin } from '../support/manager.js';
import { asPool, claimAsPool, registerPool } from '../support/pool.claims.js';
import * as actions from './actions.js';
import type { HeldClaim } from './actions.js';
import type pg from 'pg';
import { Actor, interleave, Interleavings } from './interleaver.js';
import { expectInvariants } from './invariants.js';
import { emptyTables, letPoolsDie, readJobs, stateOf, watchLimits } from './tables.js';
import type { Outcome } from './transitions.js';

/** MILLRACE_RUNS=1 or more: every order there is. Else those in which the turn passes once before its time. */
const ALL = Boolean(process.env.MILLRACE_RUNS);
const SWITCHES = ALL ? Infinity : 1;
const TIMEOUT = ALL ? 300_000 : 30_000;

let test: TestManager;
let actors: Actor[];
beforeAll(async () => {
  test = await createTestManager({ retry: { baseDelayMs: actions.HOUR } });
  await watchLimits(test.sql);
  actors = [await Actor.create('A', test.url), await Actor.create('B', test.url)];
});
afterAll(async () => {
  for (const { jobs } of actors) await jobs.close();
  await test.close();
});

const POOL = 'pool-that-is-silent';

/** The job that the two are about, and those whose fate hangs on it. */
interface Scene {
  id: string;
  names: Map<string, string>;
  held: HeldClaim;
}

type Standing = 'running' | 'waiting' | 'exhausted' | 'cancelled';

/** One job in a serial queue, with a key and a child; behind it in the queue, another one. */
async function setScene(standing: Standing): Promise<Scene> {
  const { jobs, sql } = test;
  await emptyTables(sql);
  await registerPool(jobs, POOL, actions.HOUR);
  const job = await jobs.addJob('x', {}, { queue: 'q', jobKey: 'k', maxAttempts: 2 });
  const next = await jobs.addJob('x', {}, { queue: 'q' });
  const child = await jobs.addJob('x', {}, { dependsOn: [job.id] });
  const names = new Map([
    [job.id, 'job'],
    [next.id, 'next'],
    [child.id, 'child'],
  ]);
  const [claimed] = await claimAsPool(jobs, POOL, { limit: 1 });
  const held = { worker: POOL, job: claimed! };
  if (standing === 'exhausted') await actions.settle(jobs, [held], 'permanent');
  if (standing === 'cancelled') await actions.settle(jobs, [held], 'cancelled');
  if (standing === 'waiting') await actions.settle(jobs, [held], 'released');
  if (standing === 'running') await letPoolsDie(sql, [POOL]);
  return { id: job.id, names, held };
}

/** `client`: in a transaction of the caller on it. Returns what is to be done after the commit, if anything. */
type Call = (jobs: JobManager, scene: Scene, client?: pg.Client) => Promise<unknown>;

const settle =
  (outcome: Outcome): Call =>
  async (jobs, { held }, client) => {
    if (!client) return actions.settle(jobs, [held], outcome);
    const request = { job: held.job, outcome: actions.outcomeOf(outcome), executionTimeMs: 1 };
    return (await jobs.engine.settlement.settleWithin(client, asPool(POOL), request)).promote;
  };

const CALLS: Record<string, Call> = {
  claim: (jobs) => jobs.getJobs(WORKER, { batchSize: 5 }),
  complete: settle('completed'),
  'complete and claim': (jobs, { held }) =>
    actions.completeAndClaim(jobs, [held], { batch: 2, filter: 0, share: 2, alone: true }),
  fail: settle('failed'),
  snooze: settle('snoozed'),
  release: settle('released'),
  rescue: (jobs) => jobs.engine.registry.rescue(),
  cancel: (jobs, { id }) => jobs.cancelJobs([id]),
  retry: (jobs, { id }) => jobs.retryJobs([id]),
  'fail for good': (jobs, { id }) => jobs.permanentlyFailJobs([id]),
  unlock: (jobs) => jobs.forceUnlockJobs(),
  revoke: async (jobs, { id }) => jobs.revokeLease(id, (await readJobs(test.sql, [id])).get(id)!.revision),
  sweep: (jobs) => jobs.engine.promoter.sweepNow(),
  heartbeat: (jobs) => jobs.engine.registry.heartbeat(POOL),
  'add its key': (jobs) => jobs.addJob('x', {}, { jobKey: 'k' }),
  'add a child': (jobs, { id }) => jobs.addJob('x', {}, { dependsOn: [id] }),
  'widen the queue': (jobs) => jobs.configureQueue('q', { concurrency: 2 }),
};

/** Where things stand, with the names of the scene for ids; new jobs are told apart by their order. */
async function look({ names }: Scene): Promise<string> {
  const stored = [...(await readJobs(test.sql)).values()].toSorted((a, b) => (a.id < b.id ? -1 : 1));
  const known = new Map(names);
  for (const { id } of stored) if (!known.has(id)) known.set(id, `new ${known.size}`);
  const lines = stored.map((job) => {
    const waits = job.parked === 'parents' || job.parked === 'key' ? job.parked : null;
    return JSON.stringify([known.get(job.id), stateOf(job), waits, job.unmet, job.jobKey]);
  });
  const gone = [...names].filter(([id]) => !stored.some((job) => job.id === id)).map(([, name]) => `${name} is gone`);
  return [...lines, ...gone].join('\n');
}

/** How each of a pair ends; `own`: every statement, or transaction of the library, commits by itself. */
type End = 'own' | 'commit' | 'rollback';

const worked = (call: Call, scene: Scene, end: End) => ({
  every: end === 'own',
  run: async ({ jobs, client }: Actor): Promise<void> => {
    if (end === 'own') return void (await call(jobs, scene));
    await client.query('begin');
    let afterwards: unknown;
    try {
      afterwards = await call(managerWithin(jobs, client), scene, client);
    } catch (error) {
      await client.query('rollback');
      throw error;
    }
    await client.query(end);
    if (end === 'commit' && typeof afterwards === 'function') await (afterwards as () => Promise<void>)();
  },
});

/** What the calls leave behind, one after the other. */
async function inTurn(standing: Standing, calls: { call: Call; end: End }[]): Promise<string> {
  const scene = await setScene(standing);
  for (const { call, end } of calls) if (end !== 'rollback') await call(test.jobs, scene).catch(() => undefined);
  return look(scene);
}

const without = (standing: Standing, calls: { call: Call; end: End }[], refused: boolean[]): Promise<string> =>
  inTurn(
    standing,
    calls.filter((_, index) => !refused[index]),
  );

/** Of these pairs only the job itself is compared. */
const LOOSE: Record<string, string> = {
  claim: 'what waits beside the job may be claimed before or after it is let in',
  'complete and claim': 'so may what it claims',
  'add its key + add a child':
    'their ids are drawn before the first statement, so the new jobs may come in either order',
  'fail for good + retry': 'a child that has not been told of the failure yet is spared by the retry',
};

/** Returns how many orders there were. */
async function expectLawful(standing: Standing, names: [string, string], ends: [End, End]): Promise<number> {
  const calls = names.map((name, index) => ({ call: CALLS[name]!, end: ends[index]! }));
  const loose = [...names, names.join(' + ')].some((name) => name in LOOSE);
  const compared = (state: string): string =>
    loose ? state.split('\n').filter((line) => /"job"|^job/.test(line))[0]! : state;
  const allowed = new Set([await inTurn(standing, calls), await inTurn(standing, calls.toReversed())].map(compared));
  // A claim passes over what is locked.
  for (const [index, name] of names.entries())
    if (name === 'claim') allowed.add(compared(await inTurn(standing, calls.toSpliced(index, 1))));
  const order = new Interleavings(SWITCHES);
  let orders = 0;
  while (order.next()) {
    orders++;
    const scene = await setScene(standing);
    const works = calls.map(({ call, end }) => worked(call, scene, end));
    const log = await interleave(order, test.sql, actors, works);
    const told = `${names.join(' + ')} (${ends.join(', ')}), ${standing}, ${order.taken}\n${log.join('\n')}`;
    const failures = actors.flatMap(({ name, failure }) =>
      failure && !(failure instanceof JobsError) ? [`${name}: ${(failure as Error).message}`] : [],
    );
    expect([told, failures]).toEqual([told, []]);
    const check = async (atRest: boolean): Promise<void> =>
      expectInvariants(test.sql, { atRest }).catch((error: Error) => {
        throw new Error(`${told}\n${error.message}`);
      });
    await check(ends.every((end) => end === 'own'));
    const found = compared(await look(scene));
    await test.jobs.resetLockedJobs();
    await check(true);
    // A call that was told that others hold what it needs has done nothing.
    const refused = actors.map(({ failure }) => failure instanceof RowsHeldError);
    if (!allowed.has(found) && refused.includes(true) && found === compared(await without(standing, calls, refused)))
      continue;
    // What was locked, the next sweep finds.
    if (!allowed.has(found) && !allowed.has(compared(await look(scene))))
      throw new Error(`${told}\nleft\n${found}\nbut in turn they leave\n${[...allowed].join('\nor\n')}`);
  }
  return orders;
}

const pairsOf = (names: string[]): [string, string][] =>
  names.flatMap((one, index) => names.slice(index).map((other): [string, string] => [one, other]));

const CORE = ['claim', 'complete', 'fail', 'snooze', 'rescue', 'cancel', 'retry'];
const MORE = [
  'release',
  'fail for good',
  'unlock',
  'revoke',
  'sweep',
  'heartbeat',
  'add its key',
  'add a child',
  'widen the queue',
];
const withMore = MORE.flatMap((name) =>
  (ALL ? CORE : ['claim', 'complete', 'rescue', 'retry']).map((core): [string, string] => [name, core]),
);

/** Calls that do something to a job that stands so. */
const scenes: [Standing, [string, string][]][] = [
  ['running', [...pairsOf(CORE), ...withMore]],
  [
    'waiting',
    [
      ['claim', 'claim'],
      ['claim', 'cancel'],
      ['claim', 'add its key'],
      ['claim', 'fail for good'],
      ['cancel', 'add its key'],
      ['cancel', 'add a child'],
      ['add its key', 'add a child'],
      ['add its key', 'add its key'],
    ],
  ],
  [
    'exhausted',
    [
      ['retry', 'retry'],
      ['retry', 'cancel'],
      ['retry', 'add its key'],
      ['retry', 'claim'],
      ['retry', 'add a child'],
    ],
  ],
  [
    'cancelled',
    [
      ['retry', 'retry'],
      ['retry', 'add its key'],
      ['retry', 'claim'],
      ['retry', 'add a child'],
    ],
  ],
];

describe('two calls that commit by themselves', () => {
  for (const [standing, pairs] of scenes)
    it.each(pairs)(
      `%s and %s of a job that is ${standing}`,
      async (...pair) => {
        expect(await expectLawful(standing, pair, ['own', 'own'])).toBeGreaterThan(1);
      },
      TIMEOUT,
    );
});

describe('a settle that claims', () => {
  it.each(['complete and claim', ...CORE, 'add its key', 'widen the queue'])(
    'and %s of the same job',
    async (other) => {
      expect(await expectLawful('running', ['complete and claim', other], ['own', 'own'])).toBeGreaterThan(1);
    },
    TIMEOUT,
  );
});

describe('a pool that signs off', () => {
  const LOOKS: Record<string, Call> = {
    'claims a job': (jobs) => claimAsPool(jobs, POOL, { limit: 1 }),
    'completes its job and claims the next': CALLS['complete and claim']!,
    'gives its job back': CALLS.release!,
  };

  it.each([
    ['claims a job', 'waiting', 'own'],
    ['claims a job', 'waiting', 'commit'],
    ['claims a job', 'running', 'commit'],
    ['completes its job and claims the next', 'running', 'own'],
    ['gives its job back', 'running', 'own'],
  ] as [string, Standing, End][])(
    'while it %s (of a job that is %s, %s) leaves no claim behind',
    async (what, standing, end) => {
      const order = new Interleavings(SWITCHES);
      while (order.next()) {
        const scene = await setScene(standing);
        const signOff: Call = (jobs) => jobs.engine.registry.unregister(POOL);
        const works = [worked(LOOKS[what]!, scene, end), worked(signOff, scene, 'own')];
        const log = await interleave(order, test.sql, actors, works);
        const left = await test.sql(`
        select j.id from jobs.jobs j join jobs.workers w on w.id = j.locked_by where w.stopped_at is not null`);
        expect([left, log]).toEqual([[], log]);
      }
    },
  );
});

describe('a pause', () => {
  const PAUSED: Record<string, PauseTarget> = {
    task: { task: 'x' },
    queue: { queue: 'q' },
    partition: { partition: { queue: 'q', partition: 'p' } },
    everything: { all: true },
  };
  const CLAIMS: Record<string, (jobs: JobManager) => Promise<unknown>> = {
    'claim by hand': (jobs) => jobs.getJobs(WORKER),
    'claim of a pool': (jobs) => claimAsPool(jobs, POOL, { limit: 1 }),
  };
  const pairs = Object.keys(PAUSED).flatMap((what) =>
    Object.keys(CLAIMS).map((claim): [string, string] => [what, claim]),
  );

  it.each(pairs)(
    'of %s and a %s: what begins after the pause takes nothing, and when the pause has resolved no claim is under way',
    async (what, claim) => {
      const { jobs, sql } = test;
      const order = new Interleavings(SWITCHES);
      let [late, early] = [0, 0];
      while (order.next()) {
        await emptyTables(sql);
        await registerPool(jobs, POOL, actions.HOUR);
        await jobs.addJob('x', {}, { queue: 'q', partition: 'p' });
        // It is known: else the first claim registers the queue.
        await jobs.configureQueue('q', { concurrency: 2, partitions: { concurrency: 1 } });
        const running = (): Promise<{ id: string }[]> => sql('select id from jobs.jobs where locked_by is not null');
        let whenResolved: { id: string }[] = [];
        const pause = async (actor: Actor): Promise<void> => {
          await actor.jobs.pause(PAUSED[what]!, { reason: 'why', by: 'who' });
          whenResolved = await running();
        };
        const works = [
          { every: true, run: (actor: Actor) => CLAIMS[claim]!(actor.jobs) },
          { every: true, run: pause },
        ];
        const log = await interleave(order, sql, actors, works);
        expect([log, actors.map(({ failure }) => failure)]).toEqual([log, [null, null]]);
        const isLate =
          log.findIndex((line) => /^B: .*as kind/.test(line)) < log.findIndex((line) => line.startsWith('A'));
        if (isLate) late++;
        else early++;
        expect([log, isLate && (await running())]).toEqual([log, isLate && []]);
        // What ran then, and nothing else, runs at the end.
        expect([log, await running()]).toEqual([log, whenResolved]);
        await expectInvariants(sql);
      }
      expect([late > 0, early > 0]).toEqual([true, true]);
    },
    TIMEOUT,
  );
});

describe('two calls in transactions of their callers', () => {
  const ENDS: [End, End][] = [
    ['commit', 'commit'],
    ['commit', 'rollback'],
    ['rollback', 'commit'],
  ];
  for (const [standing, pairs] of scenes)
    it.each(ALL ? pairs : pairs.filter(([one]) => CORE.includes(one)))(
      `%s and %s of a job that is ${standing}`,
      async (...pair) => {
        for (const ends of ENDS) expect(await expectLawful(standing, pair, ends)).toBeGreaterThan(1);
      },
      TIMEOUT,
    );
});
