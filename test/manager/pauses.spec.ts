// Pauses: what claims leave alone, from when on, until when, and what it costs them.
import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  ClaimsUnderWayError,
  createCollectingEvents,
  createWorkerPool,
  InvalidArgumentError,
  type ClaimedJob,
  type JobManager,
  type Pause,
  type PauseTarget,
} from '../../lib/index.js';
import { JobLogger } from '../../lib/monitoring/job.logger.js';
import { eventually } from '../support/database.js';
import { createTestManager, managerWithin, OTHER, WORKER, type TestManager } from '../support/manager.js';
import { claimAsPool, registerPool } from '../support/pool.claims.js';

const WHY = { reason: 'the bank is down', by: 'ada' };
const HOUR = 3_600_000;
const POOL = 'pool-of-pauses';

let test: TestManager;
let jobs: JobManager;
let stranger: pg.Client;

beforeAll(async () => {
  test = await createTestManager({ queues: { free: { concurrency: Infinity } } });
  jobs = test.jobs;
  stranger = new pg.Client(test.url);
  await stranger.connect();
});
afterAll(async () => {
  await stranger.end();
  await test.close();
});
beforeEach(async () => {
  await test.sql(
    `truncate jobs.jobs, jobs.job_bodies, jobs.job_queues, jobs.job_places, jobs.job_pauses, jobs.workers`,
  );
  await jobs.engine.declarations.declareQueues();
  await registerPool(jobs, POOL, HOUR);
});

const tasksOf = (claimed: ClaimedJob[]): string[] => claimed.map(({ task }) => task).toSorted();
const claim = (worker = WORKER): Promise<ClaimedJob[]> => jobs.getJobs(worker, { batchSize: 10 });

async function addOne(): Promise<void> {
  await jobs.addJobs([
    { task: 'charge', payload: 1 },
    { task: 'charge', payload: 1, queue: 'money' },
    { task: 'mail', payload: 1 },
    { task: 'mail', payload: 1, queue: 'post' },
    { task: 'mail', payload: 1, queue: 'free' },
  ]);
}

describe('a claim', () => {
  it.each<[PauseTarget, string[], string[]]>([
    [{ task: 'charge' }, ['mail', 'mail', 'mail'], ['mail', 'mail', 'mail']],
    [{ queue: 'post' }, ['charge', 'charge', 'mail', 'mail'], ['charge', 'charge', 'mail', 'mail']],
    [{ queue: 'free' }, ['charge', 'charge', 'mail', 'mail'], ['charge', 'charge', 'mail', 'mail']],
    [{ all: true }, [], []],
    [{ worker: WORKER }, [], ['charge', 'charge', 'mail', 'mail', 'mail']],
    [{ worker: POOL }, ['charge', 'charge', 'mail', 'mail', 'mail'], []],
    [{ instance: 'default' }, ['charge', 'charge', 'mail', 'mail', 'mail'], []],
    [
      { instance: 'reports' },
      ['charge', 'charge', 'mail', 'mail', 'mail'],
      ['charge', 'charge', 'mail', 'mail', 'mail'],
    ],
  ])('leaves %j alone, by hand and of a pool, until it is resumed', async (target, byHand, ofPool) => {
    for (const [take, expected] of [
      [() => claim(), byHand],
      [() => claimAsPool(jobs, POOL), ofPool],
    ] as const) {
      await test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_places');
      await addOne();
      await jobs.pause(target, WHY);
      const claimed = await take();
      expect(tasksOf(claimed)).toEqual(expected);
      expect(await jobs.resume(target)).toBe(true);
      expect(claimed.length + (await take()).length).toBe(5);
      expect(await jobs.resume(target)).toBe(false);
    }
  });

  it('takes what is not paused any more by the clock of the database, without a resume', async () => {
    await addOne();
    for (const target of [{ task: 'charge' }, { queue: 'post' }, { all: true } as const])
      await jobs.pause(target, { ...WHY, until: new Date(Date.now() + HOUR) });
    expect(await claim()).toEqual([]);
    await test.sql(`update jobs.job_pauses set until = clock_timestamp()`);
    await test.sql(`update jobs.job_queues set paused_until = clock_timestamp() where paused`);
    expect(await jobs.listPauses()).toEqual([]);
    expect((await jobs.listQueues()).map(({ paused }) => paused)).toEqual([false, false, false]);
    expect(await claim()).toHaveLength(5);
  });

  it('for tasks of which all are paused ends at once', async () => {
    await addOne();
    await jobs.pause({ task: 'charge' }, WHY);
    expect(await jobs.getJobs(WORKER, { taskIdentifiers: ['charge'] })).toEqual([]);
    expect(tasksOf(await jobs.getJobs(WORKER, { batchSize: 10, taskIdentifiers: ['charge', 'mail'] }))).toEqual([
      'mail',
      'mail',
      'mail',
    ]);
  });
});

describe('when pause has resolved', () => {
  it.each<[string, PauseTarget]>([
    ['a task', { task: 'charge' }],
    ['an instance', { instance: 'default' }],
    ['everything', { all: true }],
  ])('no claim that began before the pause of %s is under way any more', async (_, target) => {
    await addOne();
    const args = `null, null, null, null, null, '{}', '{}', '{}', null, null`;
    for (const by of [
      `'${POOL}', 1, 100, ${args}`,
      `'${OTHER}', 1, 100, null, null, null, 60000, null, '{}', '{}', '{}', null, null`,
    ]) {
      await stranger.query('begin');
      await stranger.query(`select jobs.claim_plain_jobs(${by})`);
      let resolved = false;
      const pausing = jobs.pause(target, WHY).then(() => (resolved = true));
      // The pause itself is committed: claims that begin now know it.
      await eventually(async () => (await jobs.listPauses()).length === 1);
      expect(tasksOf(await claimAsPool(jobs, POOL)).filter((task) => !('task' in target) || task === 'charge')).toEqual(
        [],
      );
      expect(resolved).toBe(false);
      await stranger.query('rollback');
      await pausing;
      await jobs.resume(target);
      await test.sql(`update jobs.jobs set locked_by = null, attempts = 0`);
      await test.sql('truncate jobs.job_places');
    }
  });

  it('no claim of several claimers takes what is paused', async () => {
    await jobs.engine.exactClaims.claim(
      { holder: WORKER, label: WORKER, leaseMs: HOUR, taskIdentifiers: [], forbiddenFlags: null },
      null,
      1,
    );
    await jobs.addJobs(Array.from({ length: 600 }, () => ({ task: 'charge', payload: 1 })));
    let goesOn = true;
    const claimers = [1, 2, 3].map(async (n) => {
      while (goesOn) {
        if (n === 1) await claimAsPool(jobs, POOL, { limit: 1 });
        else await jobs.getJobs(`${WORKER}-${n}`, { batchSize: 1 });
      }
    });
    const running = async (): Promise<number> => (await jobs.counts()).byStatus.running;
    for (let round = 0; round < 8; round++) {
      const before = await running();
      await eventually(async () => (await running()) > before);
      await jobs.pause({ task: 'charge' }, WHY);
      const [{ fences }] = (await test.sql(`select sum(fence)::integer as fences from jobs.jobs`)) as [
        { fences: number },
      ];
      await claimAsPool(jobs, POOL);
      await claim();
      expect(await test.sql(`select sum(fence)::integer as fences from jobs.jobs`)).toEqual([{ fences }]);
      await jobs.resume({ task: 'charge' });
    }
    goesOn = false;
    await Promise.all(claimers);
  }, 60_000);

  it('and open transactions have claimed before, it says that the pause holds', async () => {
    expect(new ClaimsUnderWayError(2)).toMatchObject({
      code: 'ERR_JOBS_CLAIMS_UNDER_WAY',
      message: expect.stringContaining('2 transactions that have claimed'),
    });
    await addOne();
    await stranger.query('begin');
    await managerWithin(jobs, stranger).getJobs(OTHER, { batchSize: 1 });
    await expect(jobs.pause({ task: 'mail' }, WHY)).rejects.toBeInstanceOf(ClaimsUnderWayError);
    expect(await jobs.listPauses()).toMatchObject([{ target: { task: 'mail' } }]);
    await stranger.query('rollback');
    expect(tasksOf(await claim())).toEqual(['charge', 'charge']);
  }, 30_000);
});

describe('a pause', () => {
  it('in a transaction takes effect with its commit, stops nothing before, and is gone with its rollback', async () => {
    await addOne();
    for (const end of ['rollback', 'commit']) {
      await stranger.query('begin');
      await managerWithin(jobs, stranger).pause({ task: 'charge' }, WHY);
      const [claimed, ...others] = await claimAsPool(jobs, POOL, { limit: 1, taskIdentifiers: ['charge'] });
      expect([claimed?.task, others]).toEqual(['charge', []]);
      await stranger.query(end);
    }
    expect(await claimAsPool(jobs, POOL, { taskIdentifiers: ['charge'] })).toEqual([]);
  });

  it('of a session that dies before its commit never was, and after it goes on', async () => {
    const values = `'task', 'charge', '', null, 'why', 'who'`;
    for (const left of [0, 1]) {
      const dying = new pg.Client(test.url);
      dying.on('error', () => undefined);
      await dying.connect();
      if (!left) await dying.query('begin');
      await dying.query(`select jobs.pause_target(${values})`);
      const [{ pid }] = (await dying.query('select pg_backend_pid() as pid')).rows as [{ pid: number }];
      await test.sql('select pg_terminate_backend($1)', [pid]);
      await eventually(async () => !(await test.sql('select from pg_stat_activity where pid = $1', [pid])).length);
      expect(await jobs.listPauses()).toHaveLength(left);
    }
  });

  it('that is told again keeps since when it holds, and gets the new time, reason and name', async () => {
    for (const target of [{ task: 'charge' }, { queue: 'money' }]) {
      await jobs.pause(target, WHY);
      const [{ since }] = (await jobs.listPauses()) as [Pause];
      const until = new Date(Date.now() + HOUR);
      await jobs.pause(target, { until, reason: 'another', by: 'bob' });
      expect(await jobs.listPauses()).toEqual([{ target, since, until, reason: 'another', by: 'bob' }]);
      await jobs.resume(target);
    }
  });

  it('is listed, and told of its queue', async () => {
    const partition = { queue: 'money', partition: 'acme' };
    const targets: PauseTarget[] = [{ task: 't' }, { instance: 'i' }, { worker: 'w' }, { all: true }, { partition }];
    for (const target of targets) await jobs.pause(target, WHY);
    await jobs.pauseQueue('money');
    const pauses = await jobs.listPauses();
    expect(pauses.map(({ target }) => target)).toEqual([...targets, { queue: 'money' }]);
    expect(pauses[0]).toMatchObject({ ...WHY, until: null, since: expect.any(Date) });
    const [queue] = (await jobs.listQueues()).filter(({ name }) => name === 'money');
    expect(queue).toMatchObject({
      paused: true,
      pause: { since: pauses[5]!.since, until: null, reason: null, by: null },
    });
    await jobs.pauseQueue('money', { ...WHY });
    expect((await jobs.listQueues()).find(({ name }) => name === 'money')).toMatchObject({ pause: WHY });
  });

  it('is told where its call was made, and so is its end: which name, why, until when', async () => {
    const events = createCollectingEvents();
    createWorkerPool({ jobs, tasks: {}, events });
    const lines: string[] = [];
    const note = (line: string): void => void lines.push(line);
    new JobLogger({ error: note, warn: note, log: note, debug: note }).subscribe(events);
    const until = new Date(Date.now() + HOUR);
    const partition = { queue: 'money', partition: 'acme' };
    await jobs.pause({ task: 'charge' }, { ...WHY, until });
    await jobs.pause({ partition }, WHY);
    await jobs.pauseQueue('post');
    const paused = await jobs.listPauses();
    expect(events.ofType('jobs.paused').map(({ pause }) => pause)).toEqual(paused);
    await jobs.resume({ task: 'charge' }, { by: 'grace' });
    await jobs.resume({ partition });
    await jobs.resumeQueue('post', { by: 'grace' });
    // There was none.
    await jobs.resume({ all: true }, { by: 'grace' });
    expect(events.ofType('jobs.resumed').map(({ pause, by }) => ({ pause, by }))).toEqual(
      paused.map((pause, index) => ({ pause, by: index === 1 ? null : 'grace' })),
    );
    const when = until.toISOString();
    expect(lines).toEqual([
      `Paused task "charge" until ${when} by ada: the bank is down`,
      'Paused partition "acme" of queue "money" by ada: the bank is down',
      'Paused queue "post"',
      `Resumed task "charge" by grace; it was paused until ${when} by ada: the bank is down`,
      'Resumed partition "acme" of queue "money"; it was paused by ada: the bank is down',
      'Resumed queue "post" by grace; it was paused',
    ]);
  });

  it('in a transaction is told by no event: the commit may not come', async () => {
    const events = createCollectingEvents();
    createWorkerPool({ jobs, tasks: {}, events });
    await stranger.query('begin');
    const within = managerWithin(jobs, stranger);
    await within.pause({ task: 'charge' }, WHY);
    await within.resume({ task: 'charge' });
    await stranger.query('rollback');
    expect(events.collected).toEqual([]);
  });

  it('is found by SQL as listPauses tells it, and only while it is in force', async () => {
    await jobs.pauseQueue('money', WHY);
    await jobs.pause({ task: 'charge' }, { ...WHY, until: new Date(Date.now() + HOUR) });
    await jobs.pause({ all: true }, { ...WHY, until: new Date(Date.now() + HOUR) });
    await test.sql(`update jobs.job_pauses set until = clock_timestamp() where kind = 'all'`);
    const found = await test.sql(
      'select kind, name, since, until, reason, paused_by as by from jobs.pauses_in_force()',
    );
    const listed = (await jobs.listPauses()).map(({ target, ...details }) => ({
      kind: Object.keys(target)[0],
      name: Object.values(target)[0] as string,
      ...details,
    }));
    expect(listed).toHaveLength(2);
    const toMs = (rows: any[]): object[] =>
      rows.map(({ since, until, ...rest }) => ({ ...rest, since: since?.getTime(), until: until?.getTime() }));
    expect(toMs(found)).toEqual(toMs(listed));
  });

  it('keeps its queue from being forgotten', async () => {
    await jobs.pauseQueue('empty', { until: new Date(Date.now() + HOUR) });
    expect(await jobs.gcJobQueues()).toBe(0);
    await test.sql(`update jobs.job_queues set paused_until = clock_timestamp() where paused`);
    expect(await jobs.gcJobQueues()).toBe(1);
  });

  it('is in explain, with its reason', async () => {
    const { id } = await jobs.addJob('t', 1, { queue: 'money' });
    const until = new Date(Date.now() + HOUR);
    const targets: [PauseTarget, string, RegExp][] = [
      [
        { instance: 'default' },
        'instance_paused',
        /^The instance "default", whose workers would take it, is paused until /,
      ],
      [{ worker: POOL }, 'instance_paused', /./],
      [{ queue: 'money' }, 'queue_paused', /^Its queue "money" is paused until .* by ada: the bank is down$/],
      [{ task: 't' }, 'task_paused', /^Its task "t" is paused/],
      [{ all: true }, 'all_paused', /^Everything is paused/],
    ];
    for (const [target, reason, message] of targets) {
      await jobs.pause(target, { ...WHY, until });
      const found = await jobs.explain(id);
      expect(found).toMatchObject({ reason, until, pause: { ...WHY, until }, message: expect.stringMatching(message) });
    }
    for (const [target] of targets) if (!('worker' in target)) await jobs.resume(target);
    expect(await jobs.explain(id)).toMatchObject({ reason: 'worker_paused' });
    await jobs.resume({ worker: POOL });
    expect(await jobs.explain(id)).toMatchObject({ reason: 'ready', pause: null });
  });

  it.each<[string, unknown, object]>([
    ['no target', {}, WHY],
    ['two targets', { task: 't', queue: 'q' }, WHY],
    ['a target that is none', null, WHY],
    ['all but not all', { all: false }, WHY],
    ['a partition without its queue', { partition: { partition: 'p' } }, WHY],
    ['an empty name', { task: '' }, WHY],
    ['no reason', { task: 't' }, { by: 'ada' }],
    ['an empty reason', { task: 't' }, { reason: '', by: 'ada' }],
    ['nobody', { task: 't' }, { reason: 'why' }],
    ['a time that has passed', { task: 't' }, { ...WHY, until: new Date(Date.now() - HOUR) }],
    ['a time that is none', { task: 't' }, { ...WHY, until: new Date(Number.NaN) }],
  ])('of %s is refused', async (_, target, options) => {
    await expect(jobs.pause(target as PauseTarget, options as never)).rejects.toBeInstanceOf(InvalidArgumentError);
    expect(await jobs.listPauses()).toEqual([]);
  });
});

describe('what it costs claims', () => {
  it('is one buffer where nothing is paused but 2,000 partitions and queues', async () => {
    await test.sql(`insert into jobs.job_pauses (kind, name, partition, reason, paused_by)
      select 'partition', 'q', 'p' || n, 'why', 'who' from generate_series(1, 2000) n`);
    await stranger.query('set enable_seqscan = off; set enable_bitmapscan = off');
    const { rows } = await stranger.query<{ 'QUERY PLAN': object[] }>(`explain (analyze, buffers, format json)
      select from jobs.job_pauses p where p.kind <> 'partition' and jobs.is_in_force(true, p.until, clock_timestamp())`);
    await stranger.query('reset all');
    const plan = (rows[0]!['QUERY PLAN'][0] as { Plan: Record<string, unknown> }).Plan;
    expect(plan).toMatchObject({
      'Index Name': 'job_pauses_of_claims',
      'Shared Hit Blocks': 1,
      'Shared Read Blocks': 0,
    });
  });

  it('is bounded beside 30,000 jobs of a paused task, and goes on behind them', async () => {
    await jobs.addJobs(Array.from({ length: 30_000 }, () => ({ task: 'charge', payload: 1 })));
    await jobs.addJob('mail', 1);
    await jobs.pause({ task: 'charge' }, WHY);
    const base = {
      holder: POOL,
      label: POOL,
      leaseMs: null,
      taskIdentifiers: null,
      otherTasks: null,
      forbiddenFlags: null,
    };
    const request = { ...base, worstPriority: null, limit: 5, maxKib: 100, quiet: null };
    let found = await jobs.engine.claims.claimPlain({ ...request, cursor: [] });
    let claims = 1;
    for (; found.isCut; claims++) {
      expect(found).toMatchObject({ jobs: [], more: true, passed: [0] });
      found = await jobs.engine.claims.claimPlain({ ...request, cursor: found.cursor });
    }
    expect([tasksOf(found.jobs), claims]).toEqual([['mail'], 4]);
    await jobs.addJob('mail', 2);
    const next = await jobs.engine.claims.claimPlain({ ...request, cursor: found.cursor });
    expect([tasksOf(next.jobs), next.isCut]).toEqual([['mail'], false]);
    expect(await jobs.getJobs(WORKER)).toEqual([]);
    await jobs.resume({ task: 'charge' });
    expect(await jobs.getJobs(WORKER)).toHaveLength(1);
  }, 60_000);
});
