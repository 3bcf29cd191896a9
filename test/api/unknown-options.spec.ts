// A misspelt option must never be ignored: it may be the one that keeps a call from doing too much.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { Module, Injectable } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { startEmbeddedPostgres } from '../../lib/embedded.js';
import {
  createJobManager,
  createWorkerPool,
  JobQueue,
  JobsMigrator,
  JobsModule,
  OnJobEvent,
  partialSuccess,
  Task,
  type ClaimedJob,
} from '../../lib/index.js';
import { createJobsTesting, type JobsTesting } from '../../lib/testing.js';
import { createTestManager, type TestManager, WORKER } from '../support/manager.js';
import { optionsPlaces, type OptionsPlace } from './reflection.js';

const ID = '01890000-0000-7000-8000-000000000000';
const HOUR_MS = 3_600_000;

let manager: TestManager;
let testing: JobsTesting;
let claimed: ClaimedJob;

/** A decoration is refused when its application starts. */
async function startWith(decorate: (type: new () => object) => void): Promise<void> {
  class Handlers {
    run(): void {}
  }
  decorate(Handlers);
  Injectable()(Handlers);
  class App {}
  const imports = [JobsModule.forRoot({ connection: manager.url, worker: false })];
  Module({ imports, providers: [Handlers] })(App);
  await (await NestFactory.createApplicationContext(App, { logger: false, abortOnError: false })).close();
}

async function startModule(imports: object[]): Promise<void> {
  class App {}
  Module({ imports: imports as never })(App);
  await (await NestFactory.createApplicationContext(App, { logger: false, abortOnError: false })).close();
}

const run = (type: { prototype: object }) =>
  [type.prototype, 'run', Object.getOwnPropertyDescriptor(type.prototype, 'run')!] as const;

/** Every call of the API that takes options, with nothing wrong but what the spec puts in. */
const CALLS: Record<string, (wrong: any) => unknown> = {
  'JobsModule.forRoot(options)': (wrong) => startModule([JobsModule.forRoot({ connection: manager.url, ...wrong })]),
  'JobsModule.forRootAsync(options)': (wrong) => JobsModule.forRootAsync({ useFactory: () => ({}), ...wrong }),
  'Task(options)': (wrong) => startWith((type) => Task('run', withSchedule(wrong) as object)(...run(type))),
  'OnJobEvent(options)': (wrong) => startWith((type) => OnJobEvent('job.started', wrong as object)(...run(type))),
  'partialSuccess(results)': (wrong) => partialSuccess(wrong),
  'JobManager.addJob(options)': (wrong) => manager.jobs.addJob('x', 1, wrong),
  'JobManager.addJobs(specs)': ([wrong]) => manager.jobs.addJobs([{ task: 'x', payload: 1, ...wrong }]),
  'JobManager.addJobs(options)': (wrong) => manager.jobs.addJobs([{ task: 'x', payload: 1 }], wrong),
  'JobManager.getJobs(options)': (wrong) => manager.jobs.getJobs(WORKER, wrong),
  'JobManager.workOnce(options)': (wrong) => manager.jobs.workOnce(wrong),
  'JobManager.completeJobs(options)': (wrong) => manager.jobs.completeJobs(WORKER, [claimed], 1, wrong),
  'JobManager.failJobs(failures)': ([wrong]) =>
    manager.jobs.failJobs(WORKER, [{ job: claimed, error: new Error('x'), ...wrong }], 1),
  'JobManager.reportPartialSuccess(partialResults)': (wrong) =>
    manager.jobs.reportPartialSuccess(WORKER, claimed, wrong, 1),
  'JobManager.rescheduleJobs(changes)': (wrong) => manager.jobs.rescheduleJobs([ID], wrong),
  'JobManager.rescheduleJobsByKey(changes)': (wrong) => manager.jobs.rescheduleJobsByKey(['key'], wrong),
  'JobManager.replayFailedJobs(window)': (wrong) => manager.jobs.replayFailedJobs(wrong),
  'JobManager.resetLockedJobs(options)': (wrong) => manager.jobs.resetLockedJobs(wrong),
  'JobManager.purgeJobs(options)': (wrong) =>
    manager.jobs.purgeJobs({ status: 'completed', olderThanMs: HOUR_MS, ...wrong }),
  'JobManager.configurePartition(options)': (wrong) => manager.jobs.configurePartition('q', 'p', wrong),
  'JobManager.listPartitions(page)': (wrong) => manager.jobs.listPartitions('q', wrong),
  'JobManager.registerRateLimit(options)': (wrong) =>
    manager.jobs.registerRateLimit('l', { capacity: 1, interval: 1_000, ...wrong }),
  'JobManager.takeTokens(options)': (wrong) => manager.jobs.takeTokens('l', wrong),
  'JobManager.listRateLimits(page)': (wrong) => manager.jobs.listRateLimits(wrong),
  'JobManager.listRateLimitValues(page)': (wrong) => manager.jobs.listRateLimitValues('l', wrong),
  'JobManager.pause(target)': (wrong) => manager.jobs.pause({ task: 'x', ...wrong }, { reason: 'why', by: 'who' }),
  'JobManager.pause(options)': (wrong) => manager.jobs.pause({ task: 'x' }, { reason: 'why', by: 'who', ...wrong }),
  'JobManager.resume(target)': (wrong) => manager.jobs.resume({ task: 'x', ...wrong }),
  'JobManager.resume(options)': (wrong) => manager.jobs.resume({ task: 'x' }, { by: 'who', ...wrong }),
  'JobManager.resumeQueue(options)': (wrong) => manager.jobs.resumeQueue('q', wrong),
  'JobManager.pauseQueue(options)': (wrong) => manager.jobs.pauseQueue('q', wrong),
  'JobManager.configureQueue(options)': (wrong) => manager.jobs.configureQueue('q', { concurrency: 2, ...wrong }),
  'JobManager.scheduleCron(cron)': (wrong) =>
    manager.jobs.scheduleCron({ id: 'c', task: 'x', schedule: '0 0 * * *', ...wrong }),
  'JobManager.gcTaskIdentifiers(options)': (wrong) => manager.jobs.gcTaskIdentifiers(wrong),
  'JobManager.reencryptJobs(options)': (wrong) => manager.jobs.reencryptJobs(wrong),
  'JobManager.listJobs(filter)': (wrong) => manager.jobs.listJobs(wrong),
  'JobManager.listJobs(page)': (wrong) => manager.jobs.listJobs({}, wrong),
  'JobManager.jobLogs(page)': (wrong) => manager.jobs.jobLogs(ID, wrong),
  'JobManager.listHistory(filter)': (wrong) => manager.jobs.listHistory(wrong),
  'JobManager.listHistory(page)': (wrong) => manager.jobs.listHistory({}, wrong),
  'JobManager.waitForJob(options)': (wrong) => manager.jobs.waitForJob(claimed.id, wrong),
  'BulkActions.cancel(filter)': (wrong) => manager.jobs.bulk.cancel(wrong, { by: 'x' }),
  'BulkActions.cancel(options)': (wrong) => manager.jobs.bulk.cancel({ all: true }, { by: 'x', ...wrong }),
  'BulkActions.retry(filter)': (wrong) => manager.jobs.bulk.retry(wrong, { by: 'x' }),
  'BulkActions.retry(options)': (wrong) => manager.jobs.bulk.retry({ all: true }, { by: 'x', ...wrong }),
  'BulkActions.reschedule(filter)': (wrong) => manager.jobs.bulk.reschedule(wrong, { by: 'x', priority: 1 }),
  'BulkActions.reschedule(options)': (wrong) => manager.jobs.bulk.reschedule({ all: true }, { by: 'x', ...wrong }),
  'BulkActions.purge(filter)': (wrong) => manager.jobs.bulk.purge(wrong, { by: 'x' }),
  'BulkActions.purge(options)': (wrong) => manager.jobs.bulk.purge({ all: true }, { by: 'x', ...wrong }),
  'BulkActions.move(filter)': (wrong) => manager.jobs.bulk.move(wrong, { by: 'x', queue: 'q' }),
  'BulkActions.move(options)': (wrong) => manager.jobs.bulk.move({ all: true }, { by: 'x', queue: 'q', ...wrong }),
  'BulkActions.list(page)': (wrong) => manager.jobs.bulk.list(wrong),
  'BulkActions.wait(options)': (wrong) => manager.jobs.bulk.wait(ID, wrong),
  'createJobManager(options)': (wrong) => createJobManager({ connection: manager.url, ...wrong }),
  'createWorkerPool(parts)': (wrong) => createWorkerPool({ jobs: manager.jobs, tasks: {}, ...wrong }),
  'new JobQueue(options)': (wrong) => new JobQueue({ jobs: manager.jobs, workerId: WORKER, ...wrong }),
  'new JobsMigrator(options)': (wrong) => new JobsMigrator({ connection: manager.url, ...wrong }),
  'createJobsTesting(options)': (wrong) => createJobsTesting({ get: () => undefined }, wrong),
  'createJobsTesting(parts)': (wrong) => createJobsTesting({ jobs: manager.jobs, ...wrong }),
  'JobsTesting.inline(options)': (wrong) => testing.inline(wrong),
  'JobsTesting.drain(options)': (wrong) => testing.drain(wrong),
  'JobsTesting.enqueued(filter)': (wrong) => testing.enqueued(wrong),
  'JobsTesting.enqueued(options)': (wrong) => testing.enqueued({}, wrong),
  'JobsTesting.expectEnqueued(filter)': (wrong) => testing.expectEnqueued(wrong),
  'JobsTesting.expectEnqueued(options)': (wrong) => testing.expectEnqueued({}, wrong),
  'JobsTesting.expectNotEnqueued(filter)': (wrong) => testing.expectNotEnqueued(wrong),
  'JobsTesting.expectNotEnqueued(options)': (wrong) => testing.expectNotEnqueued({}, wrong),
  'JobsTesting.clear(options)': (wrong) => testing.clear(wrong),
  'startEmbeddedPostgres(options)': (wrong) => startEmbeddedPostgres(wrong),
};

const withSchedule = (wrong: { cron?: object }): object =>
  wrong.cron ? { cron: { schedule: '0 0 * * *', ...wrong.cron } } : wrong;

/** A name that is one letter short of an option's. */
function misspelt({ path, names }: OptionsPlace): { name: string; meant: string; wrong: unknown } {
  const meant = names.toSorted((a, b) => b.length - a.length)[0]!;
  const name = meant.slice(0, -1);
  let wrong: unknown = { [name]: 1 };
  for (const step of path.toReversed()) wrong = step === '[]' ? [wrong] : { [step === '*' ? 'any' : step]: wrong };
  return { name, meant, wrong };
}

const places = optionsPlaces();

describe('an unknown option', () => {
  beforeAll(async () => {
    manager = await createTestManager();
    testing = createJobsTesting({ jobs: manager.jobs });
    await manager.jobs.addJob('x', 1);
    [claimed] = (await manager.jobs.getJobs(WORKER)) as [ClaimedJob];
  });
  afterAll(async () => {
    await testing.close();
    await manager.close();
  });

  it('is tried in every call that takes an object', () => {
    expect([...new Set(places.map(({ call }) => call))].toSorted()).toEqual(Object.keys(CALLS).toSorted());
  });

  it.each(places.map((place) => [`${place.call} ${place.path.join('.')}`.trim(), place] as const))(
    'is refused by %s, with what was probably meant',
    async (_title, place) => {
      const { name, meant, wrong } = misspelt(place);
      const failure = await Promise.resolve()
        .then(() => CALLS[place.call]!(wrong))
        .then(
          () => 'no error',
          (error: unknown) => error,
        );
      expect(failure).toMatchObject({ code: expect.stringMatching(/^ERR_JOBS_INVALID_(ARGUMENT|OPTIONS)$/) });
      const { problems } = failure as { problems: string[] };
      expect(problems.join('\n')).toMatch(new RegExp(`Unknown option [^ ]*${name}; did you mean ${meant}\\?`));
    },
  );

  it('has no counterpart that may be left out but not be undefined (exactOptionalPropertyTypes)', () => {
    const strict = places.flatMap(({ call, path, neverUndefined }) =>
      neverUndefined.map((name) => [call, ...path, name]),
    );
    expect(strict).toEqual([]);
  });

  it('changes nothing', async () => {
    expect((await manager.jobs.listJobs()).items.map(({ id, status }) => [id, status])).toEqual([
      [claimed.id, 'running'],
    ]);
    expect(await manager.jobs.listCrons()).toEqual([]);
    expect(await manager.jobs.listQueues()).toEqual([]);
  });

  it.each([null, 7, 'x', [], () => 1])('is no less refused where the options are %p', async (options) => {
    const isObject = /the options to be an object|to be an object/;
    await expect(manager.jobs.purgeJobs(options as never)).rejects.toThrow(isObject);
    await expect(manager.jobs.addJob('x', 1, options as never)).rejects.toThrow(isObject);
    await expect(manager.jobs.addJobs([], options as never)).rejects.toThrow(isObject);
    await expect(manager.jobs.listJobs({}, options as never)).rejects.toThrow(isObject);
  });

  it('is refused where it belongs to the call and not to one of its jobs', async () => {
    const spec = { task: 'x', payload: 1, manager: { query: async () => [] } };
    await expect(manager.jobs.addJobs([spec] as never)).rejects.toThrow(/Unknown option specs\[0\]\.manager/);
  });
});
