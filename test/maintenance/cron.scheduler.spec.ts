import { Injectable } from '@nestjs/common';
import pg from 'pg';
import { afterAll, afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  type CollectingJobEvents,
  CrontabLockedError,
  type CronSpec,
  InvalidArgumentError,
  InvalidOptionsError,
  type JobContext,
  JobManager,
  JobsModule,
  type PlainTask,
  PayloadValidationError,
  Task,
  type WorkerPool,
} from '../../lib/index.js';
import { CronScheduler } from '../../lib/worker/cron.scheduler.js';
import type { Crontabs } from '../../lib/manager/crontabs.js';
import { poolPartsOf } from '../../lib/jobs.factory.js';
import type { TaskDeclarations } from '../../lib/manager/declarations.js';
import { TaskRegistry } from '../../lib/manager/task.registry.js';
import { applicationsOnOneDatabase } from '../support/app.js';
import { eventually } from '../support/database.js';
import { createTestManager, OTHER, type TestManager, WORKER } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
let events: CollectingJobEvents;
const managers: JobManager[] = [];
const pools: WorkerPool[] = [];

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  events = createCollectingEvents();
});
afterEach(async () => {
  jest.useRealTimers();
  await Promise.all(pools.splice(0).map((pool) => pool.forceStop()));
  await Promise.all(managers.splice(0).map((manager) => manager.close()));
  await test.close();
});

const MINUTE = 60_000;
const schedulerOf = (manager: JobManager): CronScheduler =>
  new CronScheduler({ engine: manager.engine, tasks: new TaskRegistry(), events });
/** As if by a process that has just started. */
const tick = (): Promise<number> => schedulerOf(jobs).tick();
const added = async (): Promise<string[]> => (await jobs.listJobs()).items.map(({ id }) => id);

const databaseNow = async (): Promise<number> =>
  Number((await test.sql('select floor(extract(epoch from clock_timestamp())) * 1000 as now'))[0]!['now']);

/** A schedule with one slot a day, so long ago by the database's clock. */
async function daily(agoMs: number): Promise<{ schedule: string; slot: Date }> {
  const slot = new Date((await databaseNow()) - agoMs);
  return { schedule: `${slot.getUTCSeconds()} ${slot.getUTCMinutes()} ${slot.getUTCHours()} * * *`, slot };
}

/** As if the crontab had been there for so long, and nothing had been fired yet. */
const knownFor = (ms: number): Promise<unknown> =>
  test.sql(
    `update jobs.crontabs set last_slot_at = null, known_since = clock_timestamp() - $1::float8 * interval '1 ms'`,
    [ms],
  );

/** A crontab with a slot that was due so long ago and has not been fired. */
async function due(agoMs = 10_000, spec: Partial<CronSpec> = {}): Promise<Date> {
  const { schedule, slot } = await daily(agoMs);
  await jobs.scheduleCron({ id: 'report', task: 'report', schedule, ...spec });
  await knownFor(agoMs + 5_000);
  return slot;
}

function pool(tasks: Record<string, PlainTask>, manager = jobs): WorkerPool {
  const made = createWorkerPool({ jobs: manager, events, tasks });
  pools.push(made);
  return made;
}

describe('a recurring job', () => {
  it('fires first at the first slot after it became known', async () => {
    const { schedule, slot } = await daily(10_000);
    await jobs.scheduleCron({ id: 'report', task: 'report', schedule });
    await tick();
    expect(await added()).toEqual([]);
    await knownFor(15_000);
    await tick();
    expect(await added()).toHaveLength(1);
    expect((await jobs.listCrons())[0]!.lastSlotAt).toEqual(slot);
  });

  it('adds a plain job that knows its crontab, and says so (cron.fired)', async () => {
    const slot = await due(10_000, {
      payload: { year: 2026 },
      options: { queue: 'reports', priority: 3, maxAttempts: 2, tags: ['mine'], flags: ['night'], groupId: 'g' },
    });
    await tick();
    const [job] = (await jobs.listJobs()).items;
    expect(job).toMatchObject({ task: 'report', payload: { year: 2026 }, queue: 'reports', priority: 3, groupId: 'g' });
    expect(job).toMatchObject({ maxAttempts: 2, flags: ['night'], tags: ['mine', 'cron:report'], status: 'available' });
    expect(events.ofType('cron.fired')).toMatchObject([{ cronId: 'report', slot, job: { id: job!.id } }]);
    expect(await jobs.listCrons()).toMatchObject([{ lastSlotAt: slot, lastJobId: job!.id }]);
  });

  it('gets null as its payload and the defaults of its task', async () => {
    pool({ report: { handler: () => undefined, queue: 'lane', maxAttempts: 7 } });
    await due();
    await tick();
    expect((await jobs.listJobs()).items).toMatchObject([{ payload: null, queue: 'lane', maxAttempts: 7 }]);
  });

  it('is not fired twice by a restart', async () => {
    await due();
    await tick();
    await tick();
    expect(await added()).toHaveLength(1);
  });

  it('is not forgotten by a restart: a slot that came in between is fired after it', async () => {
    const slot = await due();
    await test.sql(
      `update jobs.crontabs set known_since = $1::timestamptz - interval '40 days',
      last_slot_at = $1::timestamptz - interval '1 day'`,
      [slot],
    );
    await tick();
    expect(await added()).toHaveLength(1);
    expect((await jobs.listCrons())[0]!.lastSlotAt).toEqual(slot);
  });

  it('fires once, however many schedulers find the same slot at once', async () => {
    for (let n = 0; n < 5; n++) managers.push(await createJobManager({ connection: test.url }));
    for (let round = 1; round <= 5; round++) {
      await due(10_000, { overlap: 'queue' });
      await Promise.all(managers.map((manager) => schedulerOf(manager).tick()));
      expect([round, (await added()).length]).toEqual([round, round]);
    }
    expect(events.ofType('cron.fired')).toHaveLength(5);
    expect(events.ofType('worker.error')).toEqual([]);
  });

  it('is left to the transaction that holds it, which keeps no other crontab from firing', async () => {
    await due(10_000, { overlap: 'queue' });
    const { schedule } = await daily(10_000);
    await jobs.scheduleCron({ id: 'other', task: 'other', schedule });
    await knownFor(15_000);
    const holder = new pg.Client(test.url);
    await holder.connect();
    await holder.query(`begin; select from jobs.crontabs where id = 'report' for update`);
    const scheduler = schedulerOf(jobs);
    expect(await scheduler.tick()).toBeLessThanOrEqual(1_000);
    expect((await jobs.listJobs()).items.map(({ task }) => task)).toEqual(['other']);
    expect(events.ofType('worker.error')).toEqual([]);
    await holder.query(`update jobs.crontabs set last_slot_at = clock_timestamp() where id = 'report'; commit`);
    await holder.end();
    await tick();
    expect(await added()).toHaveLength(1);
  });

  it('that stays held by a transaction is reported', async () => {
    await due();
    const holder = new pg.Client(test.url);
    await holder.connect();
    await holder.query(`begin; select from jobs.crontabs where id = 'report' for update`);
    const scheduler = schedulerOf(jobs);
    jest.spyOn(performance, 'now').mockImplementation(
      (
        (past) => () =>
          (past += 60_000)
      )(0),
    );
    for (let n = 0; n < 8; n++) await scheduler.tick();
    jest.restoreAllMocks();
    expect(events.ofType('worker.error').map(({ error }) => error)).toEqual([expect.any(CrontabLockedError)]);
    await holder.end();
  });

  it('goes by the database’s clock: a process whose clock is an hour ahead or behind fires the same', async () => {
    const skew = (ms: number): void =>
      void jest.useFakeTimers({
        now: Date.now() + ms,
        doNotFake: ['nextTick', 'setImmediate', 'queueMicrotask', 'setTimeout', 'clearTimeout', 'performance'],
      });
    await due(-30 * MINUTE);
    skew(60 * MINUTE);
    await tick();
    expect(await added()).toEqual([]);
    jest.useRealTimers();
    await due();
    skew(-60 * MINUTE);
    await tick();
    expect(await added()).toHaveLength(1);
  });
});

describe('a slot that was missed', () => {
  it('is fired within the grace of a minute, and not later', async () => {
    await due(50_000);
    await tick();
    expect(await added()).toHaveLength(1);
    await due(5 * MINUTE);
    await tick();
    expect(await added()).toHaveLength(1);
  });

  it('is made up for within backfillMs', async () => {
    await due(5 * MINUTE, { backfillMs: 4 * MINUTE });
    await tick();
    expect(await added()).toHaveLength(0);
    await due(5 * MINUTE, { backfillMs: 6 * MINUTE });
    await tick();
    expect(await added()).toHaveLength(1);
  });

  it('is made up for one by one where jobs queue up', async () => {
    const { slot } = await daily(30_000);
    const schedule = `${slot.getUTCSeconds()} * * * * *`;
    await jobs.scheduleCron({ id: 'report', task: 'report', schedule, overlap: 'queue', backfillMs: 10 * MINUTE });
    await knownFor(4.8 * MINUTE);
    await tick();
    const slots = [4, 3, 2, 1, 0].map((minutes) => new Date(slot.getTime() - minutes * MINUTE));
    expect(events.ofType('cron.fired').map((event) => event.slot)).toEqual(slots);
    await tick();
    expect(await added()).toHaveLength(5);
  });

  it('is made up for by one job for the last of them where jobs must not overlap', async () => {
    const { slot } = await daily(30_000);
    const schedule = `${slot.getUTCSeconds()} * * * * *`;
    await jobs.scheduleCron({ id: 'report', task: 'report', schedule, backfillMs: 10 * MINUTE });
    await knownFor(4.8 * MINUTE);
    await tick();
    expect(events.ofType('cron.fired').map((event) => event.slot)).toEqual([slot]);
  });

  it('is made up for in portions, where there are very many', async () => {
    await jobs.scheduleCron({ id: 'r', task: 'report', schedule: '0 * * * * *', overlap: 'queue', backfillMs: 1e9 });
    await knownFor(150 * MINUTE);
    expect(await tick()).toBe(0);
    expect(events.ofType('cron.fired')).toHaveLength(100);
    await tick();
    expect(events.ofType('cron.fired').length).toBeGreaterThanOrEqual(150);
  });
});

describe('while the last job of a crontab is not finished', () => {
  /** Another slot of the same crontab is due. */
  const again = (): Promise<unknown> => knownFor(15_000);

  it('no other is added: it waits', async () => {
    await due();
    await tick();
    await again();
    await tick();
    expect(await added()).toHaveLength(1);
  });

  it('no other is added: it runs', async () => {
    await due();
    await tick();
    const [job] = await jobs.getJobs(WORKER);
    await again();
    await tick();
    expect(await added()).toEqual([job!.id]);
    await jobs.completeJobs(WORKER, [job!], 1);
    await again();
    await tick();
    expect(await added()).toHaveLength(2);
  });

  it('its slots are passed over, and not made up for', async () => {
    const slot = await due();
    await tick();
    await again();
    await tick();
    const [job] = await jobs.getJobs(WORKER);
    await jobs.completeJobs(WORKER, [job!], 1);
    await tick();
    expect(await added()).toHaveLength(1);
    expect(await jobs.listCrons()).toMatchObject([{ lastSlotAt: slot, lastJobId: job!.id }]);
    expect(events.ofType('cron.fired')).toHaveLength(1);
  });

  it('which it is once it is exhausted or cancelled', async () => {
    await due();
    await tick();
    await jobs.permanentlyFailJobs(await added(), 'broken');
    await again();
    await tick();
    expect(await added()).toHaveLength(2);
    await jobs.cancelJobs([(await jobs.listCrons())[0]!.lastJobId!]);
    await again();
    await tick();
    expect(await added()).toHaveLength(3);
  });

  it('no other is added by a process that looks for a due slot while the job is being added', async () => {
    await jobs.scheduleCron({ id: 'beat', task: 'beat', schedule: '* * * * * *' });
    await knownFor(3_000);
    const first = new pg.Client(test.url);
    await first.connect();
    await first.query('begin');
    await first.query(`select from jobs.crontabs for update`);
    const { id } = await jobs.addJob('beat', null, { manager: first });
    // A slot was fired, and another is due already.
    await first.query(`update jobs.crontabs set last_job_id = $1, last_slot_at = clock_timestamp() - interval '2 s'`, [
      id,
    ]);
    let over = false;
    const second = tick().then(() => (over = true));
    await eventually(
      async () =>
        over ||
        (await test.sql(`select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`))
          .length > 0,
    );
    await first.query('commit');
    await first.end();
    await second;
    await tick();
    expect(await added()).toEqual([id]);
  });

  it('another is added all the same where the crontab says queue', async () => {
    await due(10_000, { overlap: 'queue' });
    await tick();
    await again();
    await tick();
    expect(await added()).toHaveLength(2);
  });
});

describe('scheduleCron', () => {
  it('shows what was scheduled, and listCrons shows it as well', async () => {
    const { schedule, slot } = await daily(-MINUTE);
    const cron = await jobs.scheduleCron({
      id: 'report',
      task: 'report',
      schedule,
      payload: { all: true },
      options: { queue: 'reports' },
    });
    expect(cron).toEqual({
      id: 'report',
      task: 'report',
      schedule,
      timeZone: 'UTC',
      payload: { all: true },
      options: { queue: 'reports' },
      backfillMs: 0,
      overlap: 'skip',
      declared: false,
      knownSince: expect.any(Date),
      nextSlotAt: slot,
      lastSlotAt: null,
      lastJobId: null,
    });
    expect(await jobs.listCrons()).toEqual([cron]);
  });

  it('with another schedule takes effect from now on', async () => {
    await due(-MINUTE);
    await knownFor(60 * MINUTE);
    const { schedule } = await daily(10_000);
    await jobs.scheduleCron({ id: 'report', task: 'report', schedule });
    await tick();
    expect(await added()).toEqual([]);
  });

  it('with another payload or other options keeps the slots as they are', async () => {
    const slot = await due();
    const { schedule } = (await jobs.listCrons())[0]!;
    await jobs.scheduleCron({ id: 'report', task: 'report', schedule, payload: 'new', options: { priority: 9 } });
    await tick();
    expect((await jobs.listJobs()).items).toMatchObject([{ payload: 'new', priority: 9 }]);
    await jobs.scheduleCron({ id: 'report', task: 'report', schedule, payload: 'newer', overlap: 'queue' });
    await tick();
    expect(await added()).toHaveLength(1);
    expect(await jobs.listCrons()).toMatchObject([{ lastSlotAt: slot, payload: 'newer' }]);
  });

  it('lets a crontab fire again that a clock which was ahead once has kept silent', async () => {
    const { schedule, slot } = await daily(-20_000);
    await jobs.scheduleCron({ id: 'report', task: 'report', schedule });
    await test.sql(
      `update jobs.crontabs set last_slot_at = now() + interval '1 year', known_since = now() + interval '1 year'`,
    );
    expect((await jobs.listCrons())[0]!.nextSlotAt!.getTime()).toBeGreaterThan(slot.getTime() + 300 * 86_400_000);
    const cured = await jobs.scheduleCron({ id: 'report', task: 'report', schedule });
    expect(cured).toMatchObject({ nextSlotAt: slot, lastSlotAt: null });
  });

  it('names every fault in one error, and stores nothing', async () => {
    const wrong = {
      id: '',
      task: '',
      schedule: '0 0 30 2 *',
      timeZone: 'Mars/Olympus',
      backfillMs: -1,
      overlap: 'often',
      option: {},
      options: { runAt: new Date(), priority: 0.5 },
    } as unknown as CronSpec & { task: string };
    const error: unknown = await jobs.scheduleCron(wrong).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(InvalidArgumentError);
    for (const part of [
      'id',
      'task',
      'schedule',
      'timeZone',
      'backfillMs',
      'overlap',
      'option option',
      'runAt',
      'priority',
    ])
      expect((error as Error).message).toContain(part);
    await expect(jobs.scheduleCron(undefined as never)).rejects.toThrow(InvalidArgumentError);
    expect(await jobs.listCrons()).toEqual([]);
  });

  it('refuses a payload that the task refuses', async () => {
    const payload = {
      '~standard': { version: 1 as const, vendor: 'test', validate: () => ({ issues: [{ message: 'no' }] }) },
    };
    pool({ report: { handler: () => undefined, payload } });
    await expect(jobs.scheduleCron({ id: 'r', task: 'report', schedule: '* * * * *' })).rejects.toThrow(
      PayloadValidationError,
    );
  });

  it('is undone by unscheduleCron, which says whether there was one', async () => {
    await due();
    expect(await jobs.unscheduleCron('report')).toBe(true);
    expect(await jobs.unscheduleCron('report')).toBe(false);
    await expect(jobs.unscheduleCron('')).rejects.toThrow(InvalidArgumentError);
    await tick();
    expect(await added()).toEqual([]);
  });
});

describe('the scheduler', () => {
  it('looks once in 30 s while there is no crontab', async () => {
    expect(await tick()).toBe(30_000);
  });

  it('sleeps until the next slot', async () => {
    await due(-20_000);
    const ms = await tick();
    expect(ms).toBeGreaterThan(15_000);
    expect(ms).toBeLessThanOrEqual(20_001);
  });

  it('fires the others when one cannot be fired, tells why, and tries again later', async () => {
    await due(10_000, { options: { rateLimitKey: 'later' } });
    const { schedule } = await daily(10_000);
    await jobs.scheduleCron({ id: 'other', task: 'other', schedule });
    await knownFor(15_000);
    const scheduler = schedulerOf(jobs);
    expect(await scheduler.tick()).toBeLessThanOrEqual(1_000);
    expect((await jobs.listJobs()).items).toMatchObject([{ task: 'other' }]);
    await scheduler.tick();
    expect(events.ofType('worker.error').map(({ context }) => context)).toEqual(['firing the crontab "report"']);
    await jobs.registerRateLimit('later', 1, 1_000);
    await tick();
    expect(events.ofType('cron.fired').map(({ cronId }) => cronId)).toEqual(['other', 'report']);
  });

  it('reports a database that does not answer and asks it ever less often', async () => {
    const crontabs = { look: () => Promise.reject(new Error('away')) } as unknown as Crontabs;
    const scheduler = new CronScheduler({
      engine: { declarations: jobs.engine.declarations, crontabs },
      tasks: new TaskRegistry(),
      events,
    });
    const waits: number[] = [];
    for (let n = 0; n < 7; n++) waits.push(await scheduler.tick());
    const ceilings = [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000];
    // Up to a quarter less, by chance: many processes must not come back as one.
    expect(waits.filter((ms, n) => ms > ceilings[n]! || ms < ceilings[n]! * 0.75)).toEqual([]);
    expect(new Set(waits).size).toBe(7);
    expect(events.ofType('worker.error')).toHaveLength(7);
  });

  it('is cut short in its sleep by stop, and looks no more', async () => {
    const look = jest.spyOn(jobs.engine.crontabs, 'poll');
    const scheduler = schedulerOf(jobs);
    await scheduler.start(WORKER);
    await eventually(() => look.mock.results.length === 1);
    await scheduler.stop();
    await jobs.scheduleCron({ id: 'report', task: 'report', schedule: '* * * * * *' });
    expect(look).toHaveBeenCalledTimes(1);
  });

  it('runs with the pool, end to end: a job each second, each slot once', async () => {
    const tags: string[][] = [];
    const handler = (_payload: unknown, ctx: JobContext): void => void tags.push(ctx.job.tags);
    const tasks = { beat: { handler, cron: { schedule: '* * * * * *', overlap: 'queue' as const } } };
    managers.push(await createJobManager({ connection: test.url }));
    await Promise.all([pool(tasks).start(), pool(tasks, managers[0]).start()]);
    await eventually(() => tags.length >= 3);
    const slots = events.ofType('cron.fired').map(({ slot }) => slot.getTime());
    expect(new Set(slots).size).toBe(slots.length);
    const first = Math.min(...slots);
    expect(slots.toSorted((a, b) => a - b)).toEqual(slots.map((_, index) => first + index * 1_000));
    expect(tags[0]).toEqual(['cron:beat']);
    expect(events.ofType('worker.error')).toEqual([]);
  });

  it('hears of crontabs that are scheduled on its manager while it sleeps', async () => {
    let runs = 0;
    await pool({ beat: () => void runs++ }).start();
    await jobs.scheduleCron({ id: 'beat', task: 'beat', schedule: '* * * * * *' });
    await eventually(() => runs > 0);
    expect(await jobs.unscheduleCron('beat')).toBe(true);
  });
});

describe('a crontab that a task declares', () => {
  const NEVER = '0 0 1 1 *';
  const start = async (tasks: Record<string, PlainTask>): Promise<void> => {
    const made = pool(tasks);
    await made.start();
    await made.stop();
  };
  const handler = (): void => undefined;
  const ids = async (): Promise<string[]> => (await jobs.listCrons()).map(({ id }) => id);
  /** As a pool of this worker would write them. */
  const declarationsOf = (tasks: Record<string, PlainTask>, workerId: string): Promise<TaskDeclarations> => {
    const { tasks: registry } = poolPartsOf({ jobs, tasks });
    return jobs.engine.declarations.ofTasks(
      registry.names().map((name) => registry.get(name)!),
      workerId,
    );
  };

  it('is written down when a pool starts, under the task’s name or its key', async () => {
    const night = { schedule: '0 3 * * *', timeZone: 'Europe/Berlin', payload: { all: true }, key: 'night' };
    await start({
      clean: { handler, cron: NEVER },
      report: { handler, cron: { ...night, backfillMs: 5, overlap: 'queue' } },
    });
    expect(await jobs.listCrons()).toMatchObject([
      { id: 'clean', task: 'clean', schedule: NEVER, timeZone: 'UTC', payload: null, declared: true, overlap: 'skip' },
      {
        id: 'night',
        task: 'report',
        timeZone: 'Europe/Berlin',
        payload: { all: true },
        backfillMs: 5,
        overlap: 'queue',
      },
    ]);
  });

  it('stays known since it was first written, unless its schedule changes', async () => {
    await start({ clean: { handler, cron: NEVER } });
    const [before] = await jobs.listCrons();
    await start({ clean: { handler, cron: { schedule: NEVER, payload: 1 } } });
    const [same] = await jobs.listCrons();
    expect(same!.knownSince).toEqual(before!.knownSince);
    await start({ clean: { handler, cron: '0 0 2 1 *' } });
    const [changed] = await jobs.listCrons();
    expect(changed!.knownSince.getTime()).toBeGreaterThan(before!.knownSince.getTime());
  });

  it('goes when a process that handles the task does not declare it any more', async () => {
    await start({ clean: { handler, cron: NEVER }, report: { handler, cron: NEVER } });
    await start({ clean: handler, report: { handler, cron: { schedule: NEVER, key: 'weekly' } } });
    expect(await ids()).toEqual(['weekly']);
  });

  it('stays while some pool handles its task, whatever else newer processes handle', async () => {
    const kind = pool({ clean: { handler, cron: NEVER } });
    await kind.start();
    await start({ other: handler });
    expect(await ids()).toEqual(['clean']);
  });

  it('goes with the release that declared it, when a newer one without the task runs', async () => {
    const old = pool({ 'old-name': { handler, cron: NEVER } });
    await old.start();
    const renamed = await declarationsOf({ 'new-name': { handler, cron: NEVER } }, WORKER);
    await renamed.declare();
    expect(await ids()).toEqual(['new-name', 'old-name']);
    await old.stop();
    await renamed.repeat();
    expect(await ids()).toEqual(['new-name']);
  });

  it('is not removed by an older release, while its own has no process for a moment', async () => {
    const [older, newer] = [{ other: handler }, { clean: { handler, cron: NEVER } }];
    await start(older);
    await start(newer);
    await start(older);
    expect(await ids()).toEqual(['clean']);
  });

  it('comes back as it was when its task comes back within a day, with the slots that are due', async () => {
    const slot = await due();
    const { schedule } = (await jobs.listCrons())[0]!;
    await jobs.unscheduleCron('report');
    const tasks = { report: { handler, cron: { schedule, backfillMs: MINUTE } } };
    await start(tasks);
    await knownFor(15_000);
    await start({ another: handler });
    expect(await ids()).toEqual([]);
    await tick();
    expect(await added()).toEqual([]);
    await start(tasks);
    await tick();
    expect(await added()).toHaveLength(1);
    expect((await jobs.listCrons())[0]!.lastSlotAt).toEqual(slot);
  });

  it('comes back as a new one after that', async () => {
    const { schedule } = await daily(10_000);
    const tasks = { report: { handler, cron: { schedule, backfillMs: MINUTE } } };
    await start(tasks);
    await start({ another: handler });
    await knownFor(15_000);
    await test.sql(`update jobs.crontabs set retired_at = retired_at - interval '2 days'`);
    await start(tasks);
    await tick();
    expect(await added()).toEqual([]);
  });

  describe('during a rolling deploy', () => {
    const [MAY, JUNE] = ['0 0 1 5 *', '0 0 1 6 *'];
    const schedules = async (): Promise<string[][]> =>
      (await jobs.listCrons()).map(({ id, schedule }) => [id, schedule]);

    it.each<[string, Record<string, PlainTask>, Record<string, PlainTask>, string[][]]>([
      ['another schedule', { t: { handler, cron: MAY } }, { t: { handler, cron: JUNE } }, [['t', JUNE]]],
      [
        'another key',
        { t: { handler, cron: MAY } },
        { t: { handler, cron: { schedule: MAY, key: 'k' } } },
        [['k', MAY]],
      ],
      ['the first crontab', { t: handler }, { t: { handler, cron: JUNE } }, [['t', JUNE]]],
      ['no crontab', { t: { handler, cron: MAY } }, { t: handler }, []],
    ])('an old process that starts again changes nothing of the new release: %s', async (_what, old, now, expected) => {
      await start(old);
      const newer = pool(now);
      await newer.start();
      expect(await schedules()).toEqual(expected);
      const restarted = await declarationsOf(old, OTHER);
      await restarted.declare();
      await restarted.repeat();
      expect(await schedules()).toEqual(expected);
    });

    it('the older release has the say again once the newer one is gone: a rollback', async () => {
      await start({ t: { handler, cron: MAY } });
      const newer = pool({ t: { handler, cron: JUNE } });
      await newer.start();
      const rolledBack = await declarationsOf({ t: { handler, cron: MAY } }, OTHER);
      await rolledBack.declare();
      expect(await schedules()).toEqual([['t', JUNE]]);
      await newer.stop();
      await rolledBack.repeat();
      expect(await schedules()).toEqual([['t', MAY]]);
    });

    it('a newer release whose processes were killed has the say until their heartbeats are overdue', async () => {
      await (await declarationsOf({ t: { handler, cron: MAY } }, OTHER)).declare();
      const newer = pool({ t: { handler, cron: JUNE } });
      await newer.start();
      const older = await declarationsOf({ t: { handler, cron: MAY } }, OTHER);
      await older.repeat();
      expect(await schedules()).toEqual([['t', JUNE]]);
      await newer.forceStop();
      await test.sql(`update jobs.releases set worker_ids = array[$1]`, [newer.workerId]);
      await test.sql(`update jobs.workers set stopped_at = null, heartbeat_at = now() - interval '1 day'`);
      await older.repeat();
      expect(await schedules()).toEqual([['t', MAY]]);
    });

    it('what an operator has removed does not come back before a pool starts', async () => {
      const running = await declarationsOf({ t: { handler, cron: MAY } }, OTHER);
      await running.declare();
      await jobs.unscheduleCron('t');
      await running.repeat();
      expect(await schedules()).toEqual([]);
      await running.declare();
      expect(await schedules()).toEqual([['t', MAY]]);
    });
  });

  it('whose row some transaction holds keeps no pool from starting, and is written later', async () => {
    await start({ clean: { handler, cron: '0 0 1 5 *' } });
    const holder = new pg.Client(test.url);
    await holder.connect();
    await holder.query(`begin; select from jobs.crontabs for update`);
    const tasks = { clean: { handler, cron: '0 0 1 6 *' } };
    await pool(tasks).start();
    expect(await jobs.listCrons()).toMatchObject([{ schedule: '0 0 1 5 *' }]);
    await expect(jobs.scheduleCron({ id: 'clean', task: 'clean', schedule: NEVER })).rejects.toThrow(
      CrontabLockedError,
    );
    await expect(jobs.unscheduleCron('clean')).rejects.toThrow(CrontabLockedError);
    await holder.query('commit');
    await holder.end();
    await (await declarationsOf(tasks, OTHER)).repeat();
    expect(await jobs.listCrons()).toMatchObject([{ schedule: '0 0 1 6 *' }]);
  });

  it('leaves alone what was scheduled by hand under the same id, and for the same task', async () => {
    await jobs.scheduleCron({ id: 'clean', task: 'clean', schedule: '0 1 * * *' });
    await jobs.scheduleCron({ id: 'tenant-7', task: 'clean', schedule: '0 2 * * *' });
    await start({ clean: { handler, cron: NEVER } });
    await start({ clean: handler });
    expect((await jobs.listCrons()).map(({ schedule, declared }) => [schedule, declared])).toEqual([
      ['0 1 * * *', false],
      ['0 2 * * *', false],
    ]);
  });

  it('is refused at start if it is wrong: every fault at once', async () => {
    const cron = { timeZone: 'Nowhere', backfillMs: -1, overlap: 'x', key: '', often: true } as never;
    const make = (): unknown => createWorkerPool({ jobs, tasks: { a: { handler, cron }, b: { handler, cron: 'x' } } });
    expect(make).toThrow(InvalidOptionsError);
    for (const part of [
      'cron.schedule',
      'cron.timeZone',
      'cron.backfillMs',
      'cron.overlap',
      'cron.key',
      'cron.often',
      '"x"',
    ])
      expect(make).toThrow(part);
  });

  it('is refused at start if another task has its id, or its payload is wrong; the pool is over then', async () => {
    const cron = { schedule: NEVER, key: 'same' };
    const twice = pool({ a: { handler, cron }, b: { handler, cron } });
    await expect(twice.start()).rejects.toThrow(InvalidOptionsError);
    expect(twice.state).toBe('terminated');
    const payload = {
      '~standard': { version: 1 as const, vendor: 'test', validate: () => ({ issues: [{ message: 'no' }] }) },
    };
    await expect(pool({ a: { handler, payload, cron: NEVER } }).start()).rejects.toThrow(PayloadValidationError);
    expect(await jobs.listCrons()).toEqual([]);
  });
});

describe('in a Nest application', () => {
  const runs: string[][] = [];

  @Injectable()
  class Beats {
    @Task('nest-beat', { cron: '* * * * * *' })
    beat(_payload: unknown, ctx: JobContext): void {
      runs.push(ctx.job.tags);
    }
  }

  let apps: Awaited<ReturnType<typeof applicationsOnOneDatabase>> | null = null;
  afterAll(async () => {
    await apps?.close();
    await apps?.drop();
  });

  it('the cron of @Task runs the method, but not where the process only enqueues', async () => {
    apps = await applicationsOnOneDatabase();
    const app = (worker: false | undefined) => ({
      imports: [JobsModule.forRoot({ connection: apps!.database.url, ...(worker === false && { worker }) })],
      providers: [Beats],
    });
    const enqueuer = await apps.start(app(false));
    expect(await enqueuer.get(JobManager).listCrons()).toEqual([]);
    const worker = await apps.start(app(undefined));
    await eventually(() => runs.length > 0);
    expect(runs[0]).toEqual(['cron:nest-beat']);
    expect(await worker.get(JobManager).listCrons()).toMatchObject([{ id: 'nest-beat', declared: true }]);
  });
});
