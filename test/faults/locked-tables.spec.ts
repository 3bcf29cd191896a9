// Another session locks a table as a whole (LOCK TABLE, ALTER TABLE, VACUUM FULL, CLUSTER, REINDEX): no connection of the
// library waits for it but those of transactions that would end with an error. What was asked for is tried again, or is a
// typed error.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { DataSource } from 'typeorm';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  type JobContext,
  type JobManager,
  type PlainTask,
  RowsHeldError,
  type WorkerOptions,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager, WORKER } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
let stranger: pg.Client;
const closing: (() => Promise<unknown>)[] = [];

beforeEach(async () => {
  test = await createTestManager({ history: { keep: 'all' } });
  ({ jobs } = test);
  stranger = new pg.Client({ connectionString: test.url, application_name: 'stranger' });
  await stranger.connect();
});
afterEach(async () => {
  await stranger.end();
  for (const close of closing.splice(0).toReversed()) await close();
  await test.close();
});

async function lock(...tables: string[]): Promise<void> {
  await stranger.query('begin');
  for (const table of tables) await stranger.query(`lock table jobs.${table} in access exclusive mode`);
}

const letGo = (): Promise<unknown> => stranger.query('rollback');

async function start(tasks: Record<string, PlainTask>, options: WorkerOptions = {}) {
  const events = createCollectingEvents();
  const pool = createWorkerPool({ jobs, tasks, events, options: { pollIntervalMs: 50, ...options } });
  closing.push(() => pool.stop(0));
  await pool.start();
  return { pool, events };
}

/** How many connections of the library wait for a lock at this moment, and how many there are. */
async function connections(): Promise<{ waiting: number; all: number }> {
  const [row] = await test.sql<{ waiting: number; all: number }>(`
    select count(*) filter (where wait_event_type = 'Lock')::integer as waiting, count(*)::integer as all
    from pg_stat_activity where datname = current_database() and application_name <> 'stranger' and pid <> pg_backend_pid()`);
  return row!;
}

/** Statements in which several connections wait for a lock at this moment. */
const piledUp = (): Promise<unknown[]> =>
  test.sql(`
    select query, count(*) from pg_stat_activity
    where datname = current_database() and application_name <> 'stranger' and wait_event_type = 'Lock'
    group by query having count(*) > 1`);

const rejected = (calls: Promise<unknown>[]): Promise<string[]> =>
  Promise.all(
    calls.map((call) =>
      call.then(
        () => 'done',
        (error: Error) => error.name,
      ),
    ),
  );

describe('while a stranger locks a table', () => {
  it('reads, operators’ calls, claims, settles by hand and adds throw a RowsHeldError, and leave the connections alone', async () => {
    const { id } = await jobs.addJob('t', 1);
    const [claimed] = await jobs.getJobs(WORKER);
    const dataSource = await new DataSource({ type: 'postgres', url: test.url, poolSize: 4 }).initialize();
    closing.push(() => dataSource.destroy());
    const shared = await createJobManager({ dataSource });
    closing.push(() => shared.close());
    const calls = (manager: JobManager): Promise<unknown>[] => [
      manager.findJob(id),
      manager.listJobs(),
      manager.counts(),
      manager.explain(id),
      manager.jobHistory(id),
      manager.jobGraph(id),
      manager.listQueues(),
      manager.workers(),
      manager.cancelJobs([id]),
      manager.rescheduleJobs([id], { priority: 3 }),
      manager.retryJobs([id]),
      manager.forceUnlockJobs(),
      manager.getJobs(WORKER),
      manager.completeJobs(WORKER, [claimed!], 1),
      manager.addJobs([
        { task: 't', payload: 1 },
        { task: 't', payload: 1, tags: ['a'] },
      ]),
      manager.addJob('t', 1, { jobKey: 'k' }),
      ...Array.from({ length: 30 }, (_, n) => manager.addJob('t', n)),
    ];
    await lock('jobs');
    const answers = rejected([...calls(jobs), ...calls(shared)]);
    let worst = 0;
    let done = false;
    const watching = (async () => {
      while (!done) worst = Math.max(worst, (await connections()).waiting);
    })();
    // The application's connections are its own: they keep their settings, and are there for others.
    const rows = await dataSource.query(`select current_setting('lock_timeout') as limit from generate_series(1, 3)`);
    expect(rows[0].limit).toBe('0');
    expect(new Set(await answers)).toEqual(new Set(['RowsHeldError']));
    done = true;
    await watching;
    expect(worst).toBeLessThanOrEqual(14);
    await letGo();
    expect((await connections()).waiting).toBe(0);
    expect((await jobs.counts()).byStatus).toMatchObject({ running: 1, available: 0, completed: 0 });
  }, 60_000);

  it('adds go on as soon as it lets go', async () => {
    await lock('jobs', 'job_bodies');
    const added = Promise.all([jobs.addJob('t', 1), jobs.addJob('t', 2, { jobKey: 'k' }), jobs.addJob('t', 3)]);
    await eventually(async () => (await connections()).waiting > 0);
    await letGo();
    const ids = (await added).map(({ id }) => id);
    expect((await jobs.listJobs()).items.map((job) => job.id).toSorted()).toEqual(ids.toSorted());
  });

  it.each<[string, string, (manager: JobManager) => Promise<unknown>]>([
    ['resetLockedJobs', 'jobs', (manager) => manager.resetLockedJobs()],
    ['resetLockedJobs', 'job_keys', (manager) => manager.resetLockedJobs()],
    ['forceUnlockQueues', 'job_places', (manager) => manager.forceUnlockQueues()],
    ['refillRateLimits', 'rate_limit_states', (manager) => manager.refillRateLimits()],
  ])('%s is tried again until %s is free', async (_, table, call) => {
    await lock(table);
    let tries = 0;
    let isWaiting = false;
    const ended = call(jobs).then(
      () => 'done',
      (error: Error) => error.name,
    );
    // The second wait is of a second try: its call has not given up with the first.
    while (tries < 2) {
      const waits = (await connections()).waiting > 0;
      if (waits && !isWaiting) tries++;
      isWaiting = waits;
      if (tries < 2 && (await Promise.race([ended, Promise.resolve('under way')])) !== 'under way') break;
    }
    await letGo();
    expect(await ended).toBe('done');
  });

  it('outcomes are kept, and written as soon as it lets go', async () => {
    let end!: () => void;
    const held = new Promise<void>((resolve) => (end = resolve));
    let runs = 0;
    const { pool, events } = await start({
      t: async () => {
        runs++;
        await held;
      },
    });
    const added = await Promise.all([1, 2, 3].map((n) => jobs.addJob('t', n)));
    await eventually(() => runs === 3);
    await lock('jobs', 'job_history');
    end();
    await eventually(() => events.ofType('worker.error').some(({ error }) => error instanceof RowsHeldError));
    expect((await connections()).waiting).toBeLessThanOrEqual(3);
    await letGo();
    for (const { id } of added) expect((await jobs.waitForJob(id)).status).toBe('completed');
    expect(runs).toBe(3);
    await pool.stop();
    expect(events.ofType('job.lost')).toEqual([]);
  });

  it('its heartbeats neither wait for the tables that they do not need, nor pile up on the one that they do', async () => {
    const leaseMs = 2_000;
    let end!: () => void;
    const held = new Promise<void>((resolve) => (end = resolve));
    let aborted = false;
    const { events } = await start(
      {
        t: async (_, ctx) => {
          ctx.signal.addEventListener('abort', () => (aborted = true));
          await held;
        },
      },
      { leaseMs, keepaliveMs: 200 },
    );
    const { id } = await jobs.addJob('t', 1);
    await eventually(async () => (await jobs.findJob(id))?.status === 'running');
    const beatAt = async (): Promise<number> =>
      (
        await test.sql(
          `select extract(epoch from heartbeat_at) * 1000 as at from jobs.workers where stopped_at is null`,
        )
      )
        .map(({ at }) => Number(at))
        .at(0)!;
    // Versions: beats go on, for longer than the lease.
    await lock('migrations');
    const from = await beatAt();
    await eventually(async () => (await beatAt()) > from + 1.5 * leaseMs);
    await letGo();
    // Workers: nothing is renewed, one connection tries, and the lease that was granted last still counts.
    const { all } = await connections();
    await lock('workers');
    await eventually(async () => (await connections()).waiting > 0);
    for (let n = 0; n < 50; n++) expect(await piledUp()).toEqual([]);
    expect(aborted).toBe(false);
    await letGo();
    const then = await beatAt();
    await eventually(async () => (await beatAt()) > then + leaseMs);
    expect(aborted).toBe(false);
    expect((await connections()).all).toBeLessThanOrEqual(all + 1);
    end();
    expect((await jobs.waitForJob(id)).status).toBe('completed');
    expect(events.ofType('job.lost')).toEqual([]);
  });

  it.each(['duties', 'job_dependencies', 'job_steps', 'settle_receipts', 'releases', 'crontabs', 'job_tasks'])(
    'plain jobs run beside a lock on %s, and a pool starts and stops',
    async (table) => {
      let ran = 0;
      await lock(table);
      await start({ t: () => void ran++ });
      for (let n = 1; n <= 5; n++) {
        await jobs.addJob('t', n);
        await eventually(() => ran === n);
      }
      await letGo();
      expect(ran).toBe(5);
    },
  );

  it('a start waits for the table of versions, and throws a RowsHeldError after 10 s', async () => {
    await lock('migrations');
    await expect(createJobManager({ connection: test.url })).rejects.toThrow(RowsHeldError);
    const starting = createJobManager({ connection: test.url });
    await eventually(async () => (await connections()).waiting > 0);
    await letGo();
    await (await starting).close();
  });
});

/** Until a connection of the library has waited for longer than its statements wait elsewhere. */
const waitsOn = (text: string): Promise<unknown> =>
  eventually(
    async () =>
      (
        await test.sql(
          `select from pg_stat_activity where application_name <> 'stranger' and wait_event_type = 'Lock'
             and query ilike $1 and clock_timestamp() - query_start > interval '300 ms'`,
          [`%${text}%`],
        )
      ).length > 0,
  );

/** Until a session of the library's waits for a table, for longer than the 100 ms after which statements of a pool give up. */
const waitsFor = (table: string): Promise<unknown> =>
  eventually(
    async () =>
      (
        await test.sql(
          `select from pg_locks l join pg_stat_activity a using (pid)
           where not l.granted and l.relation = $1::regclass and a.application_name <> 'stranger'
             and clock_timestamp() - a.query_start > interval '300 ms'`,
          [`jobs.${table}`],
        )
      ).length > 0,
  );

describe('a transactional attempt', () => {
  let go!: () => void;
  let runs: number;

  /** A task whose first run waits to be told to go on. */
  async function startHeld(work: (ctx: JobContext) => unknown = () => undefined) {
    runs = 0;
    const told = new Promise<void>((resolve) => (go = resolve));
    const handler = async (_: unknown, ctx: JobContext): Promise<void> => {
      runs++;
      await told;
      await work(ctx);
    };
    const { events } = await start({ t: { handler, transactional: true } });
    const { id } = await jobs.addJob('t', 1, { maxAttempts: 1 });
    await eventually(() => runs === 1);
    return { id, events };
  }

  it.each([
    ['jobs', 'access exclusive'],
    ['jobs', 'share row exclusive'],
    ['job_history', 'share'],
    ['settle_receipts', 'access exclusive'],
    ['job_dependencies', 'access exclusive'],
    ['workers', 'access exclusive'],
  ])('waits with its settle for a stranger that has locked %s (%s)', async (table, mode) => {
    const { id } = await startHeld();
    await stranger.query(`begin; lock table jobs.${table} in ${mode} mode`);
    go();
    await waitsOn('hold_settle_tables');
    await letGo();
    expect(await jobs.waitForJob(id)).toMatchObject({ status: 'completed' });
    expect(runs).toBe(1);
  });

  it('waits likewise with a settle that is no completion', async () => {
    const { id } = await startHeld(() => Promise.resolve());
    await jobs.cancelJobs([id]);
    await lock('jobs');
    go();
    await waitsOn('hold_settle_tables');
    await letGo();
    expect(await jobs.waitForJob(id)).toMatchObject({ status: 'cancelled' });
  });

  it('is put off and not counted where the lock outlasts its patience', async () => {
    const { id, events } = await startHeld((ctx) => ctx.manager.query('create table written ()'));
    await lock('job_history');
    go();
    const refusal = () => events.ofType('worker.error').find(({ context }) => context.startsWith('settling job'));
    await eventually(() => refusal(), { timeoutMs: 20_000 });
    expect(refusal()?.error).toBeInstanceOf(RowsHeldError);
    await letGo();
    await eventually(async () => (await jobs.findJob(id))?.status === 'snoozed');
    expect(await jobs.findJob(id)).toMatchObject({ attempts: 0, maxAttempts: 1 });
    expect(await test.sql(`select from pg_class where relname = 'written'`)).toEqual([]);
  }, 40_000);

  it.each<[string, string, (ctx: JobContext, id: string) => Promise<unknown>]>([
    ['cancelJobs', 'job_history', (ctx, id) => ctx.jobs.cancelJobs([id])],
    ['retryJobs', 'jobs', (ctx, id) => ctx.jobs.retryJobs([id])],
    ['permanentlyFailJobs', 'settle_receipts', (ctx, id) => ctx.jobs.permanentlyFailJobs([id])],
    ['pauseQueue', 'job_queues', (ctx) => ctx.jobs.pauseQueue('q')],
    ['registerRateLimit', 'rate_limits', (ctx) => ctx.jobs.registerRateLimit('l', 1, 1_000)],
    ['scheduleCron', 'crontabs', (ctx) => ctx.jobs.scheduleCron({ id: 'c', task: 't', schedule: '0 0 1 1 *' })],
    ['getJobs', 'job_bodies', (ctx) => ctx.jobs.getJobs('worker-by-hand')],
    ['step', 'job_steps', (ctx) => ctx.step('s', () => 1)],
  ])('waits with %s for a stranger that has locked %s', async (_, table, call) => {
    const other = await jobs.addJob('other', 1, { delayMs: 3_600_000 });
    const { id } = await startHeld((ctx) => call(ctx, other.id));
    await lock(table);
    go();
    await waitsFor(table);
    await letGo();
    expect(await jobs.waitForJob(id)).toMatchObject({ status: 'completed' });
    expect(runs).toBe(1);
  });
});
