// millrace/testing outside Nest: order, chains and their end, time, and a clean start for the next spec.
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { createCollectingEvents, InvalidArgumentError, JobTimeoutError, snooze } from '../../lib/index.js';
import { STORED_TIMES, TABLES_OF_JOBS } from '../../lib/storage/statements/testing.js';
import { createJobsTesting, EndlessDrainError, type JobsTesting, type PlainParts } from '../../lib/testing.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';
import { claimAsPool, registerPool } from '../support/pool.claims.js';

const HOUR = 3_600_000;

let manager: TestManager;
let testing: JobsTesting;
let open: JobsTesting[];

const test = (tasks: PlainParts['tasks'] = {}): JobsTesting => {
  const made = createJobsTesting({ jobs: manager.jobs, tasks });
  open.push(made);
  return made;
};
const payloads = (ran: Awaited<ReturnType<JobsTesting['drain']>>): unknown[] => ran.map(({ job }) => job.payload);

beforeAll(async () => {
  manager = await createTestManager({ retry: { baseDelayMs: HOUR, jitter: 0 }, queues: { wide: { concurrency: 2 } } });
});
beforeEach(() => {
  open = [];
  testing = test({ note: () => undefined });
});
afterEach(async () => {
  await testing.clear({ configuration: true });
  for (const one of open) await one.close();
});
afterAll(() => manager.close());

describe('a drain', () => {
  it('fires recurring jobs whose time has come, once', async () => {
    const nightly = test({
      report: { handler: () => 'done', cron: { schedule: '0 * * * *', payload: { kind: 'hourly' }, backfillMs: HOUR } },
    });
    expect(await nightly.drain()).toEqual([]);
    await nightly.travel(HOUR);
    expect(payloads(await nightly.drain())).toEqual([{ kind: 'hourly' }]);
    expect(await nightly.drain()).toEqual([]);
  });

  it('says so (cron.fired), and reports a crontab that cannot be fired without leaving the rest undone', async () => {
    const events = createCollectingEvents();
    const made = createJobsTesting({ jobs: manager.jobs, tasks: { note: () => undefined }, events });
    open.push(made);
    const schedule = '* * * * *';
    await manager.jobs.scheduleCron({ id: 'bad', task: 'note', schedule, options: { rateLimitKey: 'nowhere' } });
    await manager.jobs.scheduleCron({ id: 'good', task: 'note', schedule, payload: 'by the clock' });
    await manager.jobs.addJob('note', 'by hand');
    await made.travel(120_000);
    expect(new Set(payloads(await made.drain()))).toEqual(new Set(['by hand', 'by the clock']));
    expect(events.ofType('cron.fired')).toMatchObject([{ cronId: 'good', job: { payload: 'by the clock' } }]);
    expect(events.ofType('worker.error').map(({ context }) => context)).toEqual(['firing the crontab "bad"']);
    await manager.jobs.registerRateLimit('nowhere', 5, 60_000);
    await made.travel(60_000);
    await made.drain();
    expect(events.ofType('cron.fired').map(({ cronId }) => cronId)).toContain('bad');
  });

  it('runs by priority, then run-at, then id', async () => {
    const { jobs } = manager;
    const at = (ms: number): Date => new Date(Date.now() - ms);
    await jobs.addJob('note', 'second', { runAt: at(HOUR) });
    await jobs.addJob('note', 'third');
    await jobs.addJob('note', 'fourth');
    await jobs.addJob('note', 'last', { priority: 1, runAt: at(9 * HOUR) });
    await jobs.addJob('note', 'first', { priority: -1, queue: 'serial' });
    expect(payloads(await testing.drain())).toEqual(['first', 'second', 'third', 'fourth', 'last']);
  });

  it('runs chains, serial queues included, until nothing is due', async () => {
    const { jobs } = manager;
    const chain = test({
      count: async (left: number) => left > 0 && jobs.addJob('count', left - 1, { queue: 'serial' }),
    });
    await jobs.addJob('count', 3, { queue: 'serial' });
    expect(payloads(await chain.drain())).toEqual([3, 2, 1, 0]);
    expect(await chain.drain()).toEqual([]);
  });

  it('runs a child after its parent, before jobs that were added after it, and none whose parent failed', async () => {
    const family = test({
      work: {
        maxAttempts: 1,
        handler: (name: string) => {
          if (name === 'failing') throw new Error('failing');
        },
      },
    });
    const { jobs } = manager;
    const parent = await jobs.addJob('work', 'parent');
    await jobs.addJob('work', 'child', { dependsOn: [parent.id] });
    const failing = await jobs.addJob('work', 'failing');
    const orphan = await jobs.addJob('work', 'orphan', { dependsOn: [failing.id] });
    const ran = await family.drain();
    expect(ran.map(({ job, status }) => [job.payload, status])).toEqual([
      ['parent', 'completed'],
      ['child', 'completed'],
      ['failing', 'exhausted'],
    ]);
    expect(await jobs.findJob(orphan.id)).toMatchObject({ status: 'cancelled' });
  });

  it('ends a chain without end with an error that names its tasks, and leaves the next job as it was', async () => {
    const { jobs } = manager;
    const endless = test({
      loop: () => jobs.addJob('loop', null),
      start: () => jobs.addJob('loop', null),
    });
    await jobs.addJob('start', null);
    const failure = (await endless.drain({ maxJobs: 10 }).catch((error: unknown) => error)) as EndlessDrainError;
    expect(failure).toBeInstanceOf(EndlessDrainError);
    expect(failure.tasks).toEqual(['loop', 'start']);
    expect(failure.message).toMatch(
      /within 10 jobs, but "loop" \(job .+\) is due. Ran: loop \(9 jobs\), start \(1 job\)/,
    );
    expect(await endless.enqueued()).toMatchObject([{ task: 'loop', status: 'available', attempts: 0 }]);
  });

  it('is content when the last of as many jobs as it may run was the last one', async () => {
    await manager.jobs.addJobs(['a', 'b'].map((payload) => ({ task: 'note', payload })));
    expect(await testing.drain({ maxJobs: 2 })).toHaveLength(2);
  });

  it('ends with an error that names the handler when one never ends, and aborts its signal', async () => {
    let aborted: unknown;
    const hanging = test({
      hang: (_payload, { signal }) =>
        new Promise(() => signal.addEventListener('abort', () => (aborted = signal.reason))),
    });
    await manager.jobs.addJob('hang', null);
    await expect(hanging.drain({ timeoutMs: 50 })).rejects.toThrow(/within 50 ms, but "hang" \(job .+\) still runs/);
    expect(aborted).toBeInstanceOf(Error);
    expect(await hanging.enqueued()).toMatchObject([{ task: 'hang', status: 'available', attempts: 0 }]);
  });

  it('keeps to timeouts of tasks', async () => {
    const slow = test({ slow: { handler: () => new Promise(() => undefined), timeoutMs: 20 } });
    await manager.jobs.addJob('slow', null);
    const [ran] = await slow.drain();
    expect(ran).toMatchObject({ status: 'retrying', error: expect.any(JobTimeoutError) });
  });

  it('runs only the tasks and queues that it is given', async () => {
    const { jobs } = manager;
    const two = test({ a: () => 'a', b: () => 'b' });
    await jobs.addJobs(['a', 'b'].map((task) => ({ task, payload: null })));
    await jobs.addJob('a', null, { queue: 'serial' });
    expect((await two.drain({ queues: ['serial'] })).map(({ job }) => job.queue)).toEqual(['serial']);
    expect((await two.drain({ tasks: ['b'] })).map(({ result }) => result)).toEqual(['b']);
    expect((await two.enqueued()).map(({ task }) => task)).toEqual(['a']);
    await expect(two.drain({ tasks: ['c'] })).rejects.toThrow(InvalidArgumentError);
  });

  it('says which pauses keep due jobs from running, by which name, why and until when', async () => {
    const { jobs } = manager;
    await testing.clear({ configuration: true });
    const until = new Date(Date.now() + HOUR);
    const pause = { reason: 'why', by: 'ada' };
    const inPartition = { queue: 'wide', partition: 'acme' };
    const added = await jobs.addJobs([
      { task: 'note', payload: 'plain' },
      { task: 'note', payload: 'of a queue', queue: 'serial' },
      { task: 'note', payload: 'of a partition', ...inPartition },
    ]);
    const [plain, ofQueue, ofPartition] = added.map(({ id, task }) => ({ id, task }));
    await jobs.addJob('note', 'for later', { queue: 'serial', delayMs: HOUR });
    const both = test({ note: () => undefined, other: () => undefined });
    await jobs.pause({ queue: 'serial' }, { ...pause, until });
    await jobs.pause({ partition: inPartition }, pause);
    const ran = await both.drain();
    expect(payloads(ran)).toEqual(['plain']);
    const details = { ...pause, until: null, since: expect.any(Date) };
    expect(ran.paused).toEqual([
      { pause: { ...details, target: { queue: 'serial' }, until }, jobs: [ofQueue] },
      { pause: { ...details, target: { partition: inPartition } }, jobs: [ofPartition] },
    ]);
    // Of those that this drain would have run.
    expect((await both.drain({ tasks: ['other'] })).paused).toEqual([]);
    expect((await both.drain({ queues: ['wide'] })).paused).toHaveLength(1);
    await jobs.resume({ partition: inPartition });
    await jobs.pause({ task: 'note' }, pause);
    await jobs.pause({ all: true }, pause);
    const none = await both.drain();
    // It is compared and printed as what has run.
    expect(none).toEqual([]);
    expect(none.paused.map(({ pause: { target }, jobs: left }) => [target, left])).toEqual([
      [{ queue: 'serial' }, [ofQueue]],
      [{ task: 'note' }, [ofQueue, ofPartition]],
      [{ all: true }, [ofQueue, ofPartition]],
    ]);
    expect(plain).toBeDefined();
    for (const { target } of await jobs.listPauses()) await jobs.resume(target);
    expect((await both.drain()).paused).toEqual([]);
  });

  it('whose handler waits for a paused job names the pause in its error', async () => {
    const { jobs } = manager;
    const waits = test({ note: () => undefined, ask: (id: string) => jobs.waitForJob(id) });
    await jobs.pause({ task: 'note' }, { reason: 'the bank is down', by: 'ada' });
    const { id } = await jobs.addJob('note', null);
    await jobs.addJob('ask', id);
    const failure = (await waits.drain({ timeoutMs: 50 }).catch((error: unknown) => error)) as EndlessDrainError;
    expect(failure).toBeInstanceOf(EndlessDrainError);
    expect(failure.message).toMatch(/"ask" \(job .+\) still runs/);
    expect(failure.message).toContain('Paused: task "note" by ada: the bank is down (keeps 1 job from running: note).');
    expect(failure.paused).toMatchObject([{ pause: { target: { task: 'note' }, by: 'ada' }, jobs: [{ id }] }]);
    await jobs.resume({ task: 'note' });
    await waits.drain();
  });

  it('leaves tasks alone that have no handler here', async () => {
    await manager.jobs.addJob('elsewhere', null);
    expect(await testing.drain()).toEqual([]);
    await testing.expectEnqueued({ task: 'elsewhere', status: 'available' });
  });

  it('is refused inside a handler, where it would wait for itself', async () => {
    const nested: JobsTesting = test({ nested: () => nested.drain() });
    await manager.jobs.addJob('nested', null);
    expect(await nested.drain()).toMatchObject([{ error: expect.any(InvalidArgumentError) }]);
  });
});

describe('time that passes', () => {
  it('makes delayed jobs due', async () => {
    await manager.jobs.addJob('note', 'later', { delayMs: HOUR });
    expect(await testing.drain()).toEqual([]);
    await testing.travel(HOUR - 60_000);
    expect(await testing.drain()).toEqual([]);
    await testing.travel(60_000);
    expect(payloads(await testing.drain())).toEqual(['later']);
  });

  it('lets a declared crontab fire that was not known yet, however long ago its time was', async () => {
    const made = test({ report: { handler: () => 1, cron: '0 8 * * *' } });
    await made.travel(24 * HOUR);
    expect((await made.drain()).map(({ job }) => job.tags)).toEqual([['cron:report']]);
    await made.travel(24 * HOUR);
    await made.travel(24 * HOUR);
    expect(await made.drain()).toHaveLength(1);
  });

  it('gives a crontab whose jobs queue up a job for each time', async () => {
    const made = test({ report: { handler: () => 1, cron: { schedule: '0 * * * *', overlap: 'queue' } } });
    await made.travel(10 * HOUR);
    // One more where the hour ends meanwhile.
    expect([10, 11]).toContain((await made.drain()).length);
  });

  it('is the time that a spec lets pass: what passed while no spec ran is missed, as without a pool', async () => {
    const hour = (new Date().getUTCHours() + 12) % 24;
    const made = test({ report: { handler: () => 1, cron: `0 ${hour} * * *` } });
    await made.drain();
    await manager.sql(`update jobs.crontabs set known_since = known_since - interval '2 days'`);
    expect(await made.drain()).toEqual([]);
  });

  it('goes through the backoff of a job up to its last attempt', async () => {
    const failing = test({
      fail: () => {
        throw new Error('no');
      },
    });
    const { id } = await manager.jobs.addJob('fail', null, { maxAttempts: 3 });
    const attempts: unknown[] = [];
    for (const ms of [0, HOUR, 2 * HOUR, 4 * HOUR]) {
      await failing.travel(ms);
      attempts.push(...(await failing.drain()).map(({ job, status }) => [job.attempts, status]));
    }
    expect(attempts).toEqual([
      [1, 'retrying'],
      [2, 'retrying'],
      [3, 'exhausted'],
    ]);
    expect(await manager.jobs.findJob(id)).toMatchObject({ status: 'exhausted', lastError: 'no' });
  });

  it('ends a snooze', async () => {
    let calls = 0;
    const sleepy = test({ sleepy: () => (calls++ === 0 ? snooze(HOUR) : 'awake') });
    await manager.jobs.addJob('sleepy', null);
    expect(await sleepy.drain()).toMatchObject([{ status: 'snoozed' }]);
    await sleepy.travel(HOUR);
    expect(await sleepy.drain()).toMatchObject([{ status: 'completed', result: 'awake' }]);
  });

  it('begins the next window of a rate limit', async () => {
    const { jobs } = manager;
    await jobs.registerRateLimit('api', 2, HOUR);
    await jobs.addJobs([1, 2, 3, 4, 5].map((payload) => ({ task: 'note', payload, rateLimitKey: 'api' })));
    const rounds: unknown[] = [];
    for (const ms of [0, HOUR, HOUR]) {
      await testing.travel(ms);
      rounds.push(payloads(await testing.drain()));
    }
    expect(rounds).toEqual([[1, 2], [3, 4], [5]]);
  });

  it('ends the lease of a claim that was not renewed, so that the job runs again', async () => {
    await manager.jobs.addJob('note', 'claimed');
    await manager.jobs.getJobs(WORKER, { leaseMs: HOUR });
    expect(await testing.drain()).toEqual([]);
    await testing.travel(HOUR);
    expect(await testing.drain()).toMatchObject([{ job: { payload: 'claimed', attempts: 2 }, status: 'completed' }]);
  });

  it('lets a worker die that has gone silent, so that its job runs again', async () => {
    const { jobs } = manager;
    await registerPool(jobs, WORKER, HOUR);
    await jobs.addJob('note', 'orphan');
    expect(await claimAsPool(jobs, WORKER)).toHaveLength(1);
    expect(await testing.drain()).toEqual([]);
    await testing.travel(2 * HOUR);
    expect(payloads(await testing.drain())).toEqual(['orphan']);
  });

  it('makes history expire', async () => {
    await manager.jobs.addJob('note', 'old');
    await testing.drain();
    await testing.travel(31 * 24 * HOUR);
    expect(await manager.jobs.gcJobHistory()).toBe(1);
    expect(await testing.enqueued({ status: 'completed' })).toEqual([]);
  });

  it('goes only forward, in whole milliseconds', async () => {
    await expect(testing.travel(-1)).rejects.toThrow(InvalidArgumentError);
    await expect(testing.travel(0.5)).rejects.toThrow(InvalidArgumentError);
  });

  it('moves every time that the schema stores', async () => {
    const columns = await manager.sql<{ table_name: string; column_name: string }>(
      `select table_name, column_name from information_schema.columns
       where table_schema = 'jobs' and data_type like 'timestamp%' and table_name not like '%migration%'
         and table_name not in (select inhrelid::regclass::text from pg_inherits)
         and table_name not in (select relname from pg_inherits join pg_class on oid = inhrelid)`,
    );
    const stored = columns.map((column) => `${column.table_name}.${column.column_name}`).toSorted();
    const moved = Object.entries(STORED_TIMES).flatMap(([table, names]) => names.map((name) => `${table}.${name}`));
    expect(stored).toEqual(moved.toSorted());
  });
});

describe('clear', () => {
  it('leaves no trace of jobs, in the database or in the lists', async () => {
    const { jobs } = manager;
    await jobs.addJobs([1, 2].map((payload) => ({ task: 'note', payload, queue: 'serial' })));
    await jobs.addJob('note', 'later', { delayMs: HOUR });
    await testing.drain({ maxJobs: 2 });
    await jobs.addJob('note', 'claimed', { queue: 'serial' });
    await jobs.getJobs(WORKER);
    await testing.clear();
    const counts = TABLES_OF_JOBS.map((table) => `(select count(*) from jobs.${table})`);
    const [row] = await manager.sql(`select (${counts.join(' + ')})::integer as left`);
    expect(row).toEqual({ left: 0 });
    expect([testing.added, testing.ran]).toEqual([[], []]);
  });

  it('empties every table that jobs fill', async () => {
    const tables = await manager.sql<{ table_name: string }>(
      `select table_name from information_schema.tables
       where table_schema = 'jobs' and table_name not in (select relname from pg_inherits join pg_class on oid = inhrelid)`,
    );
    const configured = [
      'job_queues',
      'job_partitions',
      'job_pauses',
      'job_tasks',
      'rate_limits',
      'workers',
      'crontabs',
      'releases',
      'duties',
    ];
    const others = tables.map(({ table_name }) => table_name).filter((name) => !name.includes('migration'));
    expect(others.toSorted()).toEqual([...TABLES_OF_JOBS, ...configured].toSorted());
  });

  it('frees queues and refills rate limits, but keeps what was configured', async () => {
    const { jobs } = manager;
    await jobs.configureQueue('narrow', { concurrency: 1 });
    await jobs.registerRateLimit('api', 1, HOUR);
    await jobs.addJob('note', 'a', { queue: 'narrow', rateLimitKey: 'api' });
    await jobs.getJobs(WORKER);
    await testing.clear();
    await jobs.addJob('note', 'b', { queue: 'narrow', rateLimitKey: 'api' });
    expect(payloads(await testing.drain())).toEqual(['b']);
  });

  it('forgets what calls configured, if it is told to, and declares the queues of the options again', async () => {
    const { jobs } = manager;
    await jobs.configureQueue('narrow', { concurrency: 1 });
    await jobs.registerRateLimit('api', 1, HOUR);
    await testing.clear({ configuration: true });
    expect((await jobs.listQueues()).map(({ name, concurrency }) => [name, concurrency])).toEqual([['wide', 2]]);
    await expect(jobs.addJob('note', 'a', { rateLimitKey: 'api' })).rejects.toThrow('api');
  });
});
