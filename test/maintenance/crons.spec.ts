import { Injectable, Module, type ModuleMetadata, type Type } from '@nestjs/common';
import { DiscoveryModule, DiscoveryService, ModuleRef } from '@nestjs/core';
import { Cron, CronExpression, ScheduleModule, SchedulerRegistry } from '@nestjs/schedule';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, jest } from '@jest/globals';
import { createNoopEvents, getJobsToken, JobManager, JobsModule, type JobsModuleOptions } from '../../lib/index.js';
import { Maintenance } from '../../lib/worker/maintenance.js';
import { applicationsOnOneDatabase, type Applications } from '../support/app.js';

/** A little after the second, so that starting takes no tick. */
const NOON = Date.UTC(2026, 0, 1, 12, 0, 0, 100);
const ticks: string[] = [];

@Injectable()
class OwnCrons {
  @Cron(CronExpression.EVERY_SECOND, { name: 'own' })
  tick(): void {
    ticks.push('own');
  }
}

describe('the maintenance crons', () => {
  let apps: Applications;
  const jobsModule = (options: JobsModuleOptions = {}) =>
    JobsModule.forRoot({ connection: apps.database.url, ...options });

  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
  });
  beforeEach(() => void jest.useFakeTimers({ now: NOON, doNotFake: ['nextTick', 'setImmediate', 'queueMicrotask'] }));
  afterEach(async () => {
    jest.useRealTimers();
    await apps.close();
    ticks.length = 0;
  });
  afterAll(() => apps.drop());

  /** Which duties are done, and which of the application's own crons tick, within so long. */
  const ticksWithin = async (ms: number, metadata: ModuleMetadata, from = NOON): Promise<string[]> => {
    for (const duty of [
      'refillRateLimits',
      'resetLockedJobs',
      'gcJobHistory',
      'gcJobQueues',
      'gcTaskIdentifiers',
    ] as const)
      jest.spyOn(JobManager.prototype, duty).mockImplementation(async () => ticks.push(duty));
    jest.setSystemTime(from);
    await apps.start(metadata);
    await jest.advanceTimersByTimeAsync(ms);
    return ticks;
  };

  const off = ScheduleModule.forRoot({ cronJobs: false });
  @Module({ imports: [ScheduleModule.forRoot()] })
  class SecondSchedule {}

  it.each<[string, () => ModuleMetadata['imports'], string[]]>([
    ['without ScheduleModule, where the application’s own stay off', () => [jobsModule()], []],
    ['with ScheduleModule before', () => [ScheduleModule.forRoot(), jobsModule()], ['own']],
    ['with ScheduleModule after', () => [jobsModule(), ScheduleModule.forRoot()], ['own']],
    [
      'with ScheduleModule from forRootAsync',
      () => [jobsModule(), ScheduleModule.forRootAsync({ useFactory: async () => ({ cronJobs: true }) })],
      ['own'],
    ],
    ['with ScheduleModule’s crons switched off', () => [off, jobsModule()], []],
    ['with two ScheduleModules', () => [ScheduleModule.forRoot(), SecondSchedule, jobsModule()], null as never],
  ])('tick once: %s', async (_how, imports, own) => {
    const seen = await ticksWithin(1_000, { imports: imports() ?? [], providers: own ? [OwnCrons] : [] });
    expect(seen.toSorted()).toEqual([...(own ?? []), 'refillRateLimits']);
  });

  it('tick once for each instance, which are independent', async () => {
    const imports = [jobsModule(), jobsModule({ name: 'second', schema: 'second' }), ScheduleModule.forRoot()];
    expect(await ticksWithin(1_000, { imports })).toEqual(['refillRateLimits', 'refillRateLimits']);
  });

  it.each([
    ['refill each second, reset each minute', NOON, { refillRateLimits: 60, resetLockedJobs: 1 }],
    [
      'collect garbage at three in the night',
      Date.UTC(2026, 0, 2, 2, 59, 0, 100),
      { gcJobHistory: 1, gcJobQueues: 1, gcTaskIdentifiers: 1, refillRateLimits: 60, resetLockedJobs: 1 },
    ],
  ])('%s', async (_what, from, expected) => {
    const seen = await ticksWithin(60_000, { imports: [jobsModule()] }, from);
    const count = (duty: string): number => seen.filter((tick) => tick === duty).length;
    expect(Object.fromEntries([...new Set(seen)].map((duty) => [duty, count(duty)]))).toEqual(expected);
  });

  it('follow the options, in their time zone, and can be switched off', async () => {
    const maintenance = {
      refillRateLimits: false as const,
      resetLockedJobs: '*/2 * * * * *',
      gc: '1 0 21 * * *',
      timeZone: 'Asia/Tokyo', // nine hours ahead: 12:00 UTC is 21:00
    };
    const seen = await ticksWithin(2_000, { imports: [jobsModule({ maintenance })] });
    expect(seen).toEqual(['gcJobHistory', 'gcJobQueues', 'gcTaskIdentifiers', 'resetLockedJobs']);
  });

  it('are none in a process that only enqueues', async () => {
    expect(await ticksWithin(60_000, { imports: [jobsModule({ worker: false }), ScheduleModule.forRoot()] })).toEqual(
      [],
    );
  });

  it('are not in the application’s SchedulerRegistry, and their ScheduleModule is not the application’s', async () => {
    const app = await apps.start({ imports: [jobsModule(), ScheduleModule.forRoot()], providers: [OwnCrons] });
    expect([...app.get(SchedulerRegistry).getCronJobs().keys()]).toEqual(['own']);
    await apps.close();
    @Injectable()
    class Needing {
      constructor(readonly registry: SchedulerRegistry) {}
    }
    const failure = await apps.startFailure({ imports: [jobsModule()], providers: [Needing as Type] });
    expect(failure.message).toMatch(/SchedulerRegistry/);
  });

  it.each([
    ['before', () => [jobsModule(), ScheduleModule.forRoot(), DiscoveryModule]],
    ['after', () => [ScheduleModule.forRoot(), DiscoveryModule, jobsModule()]],
  ])('hide nothing of Nest’s own, with JobsModule imported %s the others', async (_where, imports) => {
    const app = await apps.start({ imports: imports(), providers: [OwnCrons] });
    expect(app.get(SchedulerRegistry).getCronJob('own')).toBeDefined();
    expect([...app.get(ModuleRef).get(SchedulerRegistry, { strict: false }).getCronJobs().keys()]).toEqual(['own']);
    const names = app
      .get(DiscoveryService)
      .getProviders()
      .map((wrapper) => wrapper.name);
    expect(names).toContain('OwnCrons');
  });

  it('wait for their last run to end', async () => {
    let finish = (): void => undefined;
    const refill = jest
      .spyOn(JobManager.prototype, 'refillRateLimits')
      .mockImplementation(() => new Promise((resolve) => (finish = () => resolve(0))));
    await apps.start({ imports: [jobsModule()] });
    await jest.advanceTimersByTimeAsync(5_000);
    expect(refill).toHaveBeenCalledTimes(1);
    finish();
    await jest.advanceTimersByTimeAsync(2_000);
    expect(refill).toHaveBeenCalledTimes(2);
    finish();
  });

  it('go on after a failure, which is logged, ever less often and not each second', async () => {
    const refill = jest
      .spyOn(JobManager.prototype, 'refillRateLimits')
      .mockRejectedValue(new Error('cannot reach postgres://ada:hunter2@db/app'));
    await apps.start({ imports: [jobsModule()] });
    await jest.advanceTimersByTimeAsync(10_000);
    const { length } = refill.mock.calls;
    expect(length).toBeGreaterThan(2);
    expect(length).toBeLessThan(9);
    expect(apps.logger.of('error')).toEqual([
      'Worker error (refilling rate limits): cannot reach postgres://***@db/app',
    ]);
  });

  it('let a duty under way end before the database is closed, and begin no more', async () => {
    const log: string[] = [];
    let finish = (): void => undefined;
    const jobs = {
      gcJobHistory: () => new Promise<void>((resolve) => (finish = () => (log.push('history'), resolve()))),
      gcJobQueues: async () => void log.push('queues'),
      refillRateLimits: async () => void log.push('refill'),
      engine: { registry: { schemaCheck: { refusal: null } } },
    } as unknown as JobManager;
    const duties = new Maintenance(jobs, createNoopEvents());
    void duties.collectGarbage();
    const stopped = duties.stop().then(() => log.push('stopped'));
    finish();
    await stopped;
    await duties.refillRateLimits();
    expect(log).toEqual(['history', 'stopped']);
  });

  it('of a named instance do their duty on its manager', async () => {
    const app = await apps.start({ imports: [jobsModule({ name: 'named', schema: 'named' })] });
    const refill = jest.spyOn(app.get(getJobsToken(JobManager, 'named')), 'refillRateLimits');
    await jest.advanceTimersByTimeAsync(1_500);
    expect(refill).toHaveBeenCalled();
    expect(await refill.mock.results[0]!.value).toBe(0);
  });
});
