// Stubs in the place of the library's providers, as specs of an application put them there.
import { Injectable, Module } from '@nestjs/common';
import { Test, type TestingModule } from '@nestjs/testing';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import {
  createJobManager,
  getJobsToken,
  JobEvents,
  JobManager,
  JobsModule,
  type JobsModuleOptions,
  OnJobEvent,
  Task,
  WorkerPool,
} from '../../lib/index.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';

const NO_DATABASE = 'postgres://postgres@127.0.0.1:1/none';

@Injectable()
class SignUp {
  constructor(private readonly jobs: JobManager) {}

  async register(email: string): Promise<void> {
    await this.jobs.addJob('welcome', { to: email });
  }

  @Task('welcome')
  welcome(): void {}

  @OnJobEvent('job.exhausted')
  alert(): void {}
}

describe('a spec of an application that replaces', () => {
  let database: TestDatabase;
  let app: TestingModule | null = null;

  beforeAll(async () => void (database = await createTestDatabase()));
  afterEach(async () => {
    await app?.close();
    app = null;
  });
  afterAll(() => database.drop());

  const builderWith = (options: JobsModuleOptions) => {
    @Module({ imports: [JobsModule.forRoot(options)], providers: [SignUp] })
    class AppModule {}
    return Test.createTestingModule({ imports: [AppModule] });
  };

  it.each<[string, JobsModuleOptions]>([
    ['a process with a worker', {}],
    ['one whose worker is started by hand', { worker: { autoStart: false } }],
    ['one that only enqueues', { worker: false }],
    ['one with maintenance in every second', { maintenance: { resetLockedJobs: '* * * * * *' } }],
  ])('JobManager by a stub with addJob alone needs no database: %s', async (_process, options) => {
    const added: unknown[][] = [];
    const stub = { addJob: async (...args: unknown[]) => void added.push(args) };
    app = await builderWith({ connection: NO_DATABASE, ...options })
      .overrideProvider(JobManager)
      .useValue(stub)
      .compile();
    await app.init();
    await app.get(SignUp).register('ada@example.org');
    expect(added).toEqual([['welcome', { to: 'ada@example.org' }]]);
    expect(app.get(WorkerPool)).toBeNull();
  });

  it('the JobManager of a named instance', async () => {
    const token = getJobsToken(JobManager, 'reports');
    @Module({ imports: [JobsModule.forRoot({ connection: NO_DATABASE, name: 'reports' })] })
    class ReportsModule {}
    app = await Test.createTestingModule({ imports: [ReportsModule] })
      .overrideProvider(token)
      .useFactory({ factory: () => Object.create(JobManager.prototype) as JobManager })
      .compile();
    await app.init();
    expect(app.get(token)).toBeInstanceOf(JobManager);
  });

  it('JobManager by another manager has its pool work for that one', async () => {
    const jobs = await createJobManager({ connection: database.url, schema: 'other' });
    app = await builderWith({ connection: NO_DATABASE }).overrideProvider(JobManager).useValue(jobs).compile();
    await app.init();
    const { id } = await jobs.addJob('welcome', {});
    expect(await jobs.waitForJob(id)).toMatchObject({ status: 'completed' });
  });

  it('WorkerPool by a stub has no pool started or stopped', async () => {
    app = await builderWith({ connection: database.url }).overrideProvider(WorkerPool).useValue({}).compile();
    await app.init();
    const jobs = app.get(JobManager);
    const { id } = await jobs.addJob('welcome', {});
    expect(await jobs.workers()).toEqual([]);
    expect((await jobs.workOnce())?.job.id).toBe(id);
  });

  it('JobEvents by a stub has its jobs run all the same', async () => {
    app = await builderWith({ connection: database.url }).overrideProvider(JobEvents).useValue({}).compile();
    await app.init();
    const jobs = app.get(JobManager);
    const { id } = await jobs.addJob('welcome', {});
    expect(await jobs.waitForJob(id)).toMatchObject({ status: 'completed' });
  });
});
