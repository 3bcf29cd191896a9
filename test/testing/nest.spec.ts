// millrace/testing with a Nest application: the handlers, checks, events and instances are the application's own.
import { Inject, Injectable, Scope, UseInterceptors, type CallHandler, type NestInterceptor } from '@nestjs/common';
import { REQUEST } from '@nestjs/core';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { IsEmail } from 'class-validator';
import { map } from 'rxjs';
import { DataSource } from 'typeorm';
import {
  getJobsToken,
  InjectJobManager,
  type Job,
  type JobContext,
  JobEvents,
  JobManager,
  JobsModule,
  type JobEvent,
  type JobsModuleOptions,
  OnJobEvent,
  PermanentFailure,
  Task,
  WorkerPool,
} from '../../lib/index.js';
import { createJobsTesting, PoolRunningError, type JobsTesting } from '../../lib/testing.js';
import { applicationsOnOneDatabase, type Applications } from '../support/app.js';

class Mail {
  @IsEmail()
  to!: string;
}

class Shout implements NestInterceptor {
  intercept(_context: unknown, next: CallHandler) {
    return next.handle().pipe(map((text: string) => text.toUpperCase()));
  }
}

@Injectable({ scope: Scope.REQUEST })
class Tenant {
  constructor(@Inject(REQUEST) readonly job: Job<{ tenant: string }>) {}
}

@Injectable()
class Tasks {
  readonly order: string[] = [];
  readonly events: string[] = [];

  constructor(@InjectJobManager() private readonly jobs: JobManager) {}

  @Task('mail')
  @UseInterceptors(Shout)
  mail(mail: Mail): string {
    return `${mail.to} ${mail instanceof Mail}`;
  }

  @Task('note')
  note(name: string): void {
    this.order.push(name);
  }

  @Task('refuse')
  refuse(): never {
    throw new PermanentFailure('the address does not exist');
  }

  @Task('order')
  async takeOrder(next: string): Promise<void> {
    this.order.push('order');
    await this.jobs.addJob(next, 'child');
    this.order.push('ordered');
  }

  @Task('careless')
  careless(): void {
    void this.jobs.addJob('note', 'not waited for');
  }

  @OnJobEvent('all')
  heard(event: JobEvent): void {
    if ('job' in event) this.events.push(`${event.type} ${event.job.task}`);
  }
}

@Injectable()
class TenantTasks {
  constructor(private readonly tenant: Tenant) {}

  @Task('tenant')
  run(_payload: unknown, ctx: JobContext): string {
    return `${this.tenant.job.payload.tenant} ${this.tenant.job.id === ctx.job.id}`;
  }
}

let apps: Applications;
let testing: JobsTesting;

beforeAll(async () => {
  apps = await applicationsOnOneDatabase();
});
afterEach(async () => {
  await testing.clear();
  await testing.close();
  await apps.close();
});
afterAll(() => apps.drop());

async function start(options: JobsModuleOptions = {}) {
  const connection = apps.database.url;
  const app = await apps.start({
    imports: [JobsModule.forRoot({ connection, worker: { autoStart: false }, ...options })],
    providers: [Tasks, Tenant, TenantTasks],
  });
  testing = createJobsTesting(app);
  return { app, jobs: app.get(JobManager), tasks: app.get(Tasks) };
}

describe('a drain', () => {
  it('runs handlers with their interceptors, payload classes and request scope', async () => {
    const { jobs } = await start();
    await jobs.addJob('mail', { to: 'ada@example.org' });
    await jobs.addJob('tenant', { tenant: 'acme' });
    const ran = await testing.drain();
    expect(ran.map(({ job, status, result }) => [job.task, status, result])).toEqual([
      ['mail', 'completed', 'ADA@EXAMPLE.ORG TRUE'],
      ['tenant', 'completed', 'acme true'],
    ]);
  });

  it('emits the events of production', async () => {
    const { jobs, tasks } = await start();
    await jobs.addJob('note', 'a');
    await jobs.addJob('refuse', null);
    await testing.drain();
    expect(tasks.events).toEqual([
      'job.started note',
      'job.completed note',
      'job.settled note',
      'job.started refuse',
      'job.failed refuse',
      'job.exhausted refuse',
      'job.settled refuse',
    ]);
  });

  it('runs the tasks of an application that itself only enqueues', async () => {
    const { jobs, tasks } = await start({ worker: false });
    await jobs.addJob('note', 'here');
    expect(await testing.drain()).toMatchObject([{ status: 'completed' }]);
    expect(tasks.order).toEqual(['here']);
  });

  it('is refused while the pool of the application runs', async () => {
    const { app } = await start();
    await app.get(WorkerPool).start();
    await expect(testing.drain()).rejects.toThrow(PoolRunningError);
    expect(() => testing.inline()).toThrow('autoStart: false');
  });
});

describe('inline', () => {
  it('has run a job, and what the job added, when addJob resolves', async () => {
    const { jobs, tasks } = await start();
    testing.inline();
    const { id } = await jobs.addJob('order', 'note');
    expect(tasks.order).toEqual(['order', 'ordered', 'child']);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'completed' });
  });

  it('has run all of several jobs when addJobs resolves', async () => {
    const { jobs, tasks } = await start();
    testing.inline();
    await jobs.addJobs([
      { task: 'note', payload: 'last', priority: 1 },
      { task: 'note', payload: 'first' },
    ]);
    expect(tasks.order).toEqual(['first', 'last']);
  });

  it('throws to the caller what the handler threw', async () => {
    const { jobs } = await start();
    testing.inline();
    await expect(jobs.addJob('refuse', null)).rejects.toThrow(PermanentFailure);
    expect(testing.ran).toMatchObject([{ job: { task: 'refuse' }, status: 'exhausted' }]);
  });

  it('throws what a job threw that the job had added', async () => {
    const { jobs } = await start();
    testing.inline();
    await expect(jobs.addJob('order', 'refuse')).rejects.toThrow('the address does not exist');
    expect(testing.ran.map(({ status }) => status)).toEqual(['completed', 'exhausted']);
  });

  it('throws to each of several callers what their own jobs threw', async () => {
    const { jobs } = await start();
    testing.inline();
    const outcomes = await Promise.allSettled([
      jobs.addJob('refuse', null),
      jobs.addJob('note', 'a'),
      jobs.addJob('order', 'refuse'),
      jobs.addJob('note', 'b'),
    ]);
    expect(outcomes.map(({ status }) => status)).toEqual(['rejected', 'fulfilled', 'rejected', 'fulfilled']);
  });

  it('records failures instead, if it is told to', async () => {
    const { jobs } = await start();
    testing.inline({ onFailure: 'record' });
    await jobs.addJob('refuse', null);
    expect(testing.ran).toMatchObject([{ status: 'exhausted', error: { message: 'the address does not exist' } }]);
  });

  it('waits for a job that a handler adds without waiting for it', async () => {
    const { jobs, tasks } = await start();
    testing.inline();
    await jobs.addJob('careless', null);
    expect(tasks.order).toEqual(['not waited for']);
  });

  it('leaves jobs for later alone', async () => {
    const { jobs, tasks } = await start();
    testing.inline();
    await jobs.addJob('note', 'later', { delayMs: 60_000 });
    expect(tasks.order).toEqual([]);
    await testing.expectEnqueued({ task: 'note', status: 'scheduled' });
  });

  it('leaves jobs that are added in a transaction to the drain after its commit', async () => {
    const dataSource = await new DataSource({ type: 'postgres', url: apps.database.url }).initialize();
    try {
      const { jobs, tasks } = await start();
      testing.inline();
      await dataSource.transaction(async (manager) => {
        await jobs.addJob('note', 'committed', { manager });
        await testing.drain();
        expect(tasks.order).toEqual([]);
      });
      await testing.drain();
      expect(tasks.order).toEqual(['committed']);
    } finally {
      await dataSource.destroy();
    }
  });

  it('ends with manual()', async () => {
    const { jobs, tasks } = await start();
    testing.inline();
    testing.manual();
    await jobs.addJob('note', 'a');
    expect(tasks.order).toEqual([]);
  });
});

it('named instances are tested apart', async () => {
  @Injectable()
  class ReportTasks {
    @Task('report', { instance: 'reports' })
    report(): string {
      return 'written';
    }
  }
  const connection = apps.database.url;
  const worker = { autoStart: false };
  const app = await apps.start({
    imports: [
      JobsModule.forRoot({ connection, worker }),
      JobsModule.forRoot({ connection, worker, name: 'reports', schema: 'reports' }),
    ],
    providers: [Tasks, ReportTasks],
  });
  testing = createJobsTesting(app);
  const reports = createJobsTesting(app, { instance: 'reports' });
  await app.get(JobManager).addJob('note', 'a');
  await app.get<JobManager>(getJobsToken(JobManager, 'reports')).addJob('report', null);
  expect(await reports.drain()).toMatchObject([{ job: { task: 'report' }, status: 'completed', result: 'written' }]);
  expect(reports.added).toHaveLength(1);
  await testing.expectEnqueued({ task: 'note' }, { times: 1 });
  await reports.close();
});

it('an application that listens to events hears them from the drain on its JobEvents', async () => {
  const { app, jobs } = await start();
  const heard: string[] = [];
  app.get(JobEvents).on('job.completed', ({ job }) => heard.push(job.task));
  await jobs.addJob('note', 'a');
  await testing.drain();
  expect(heard).toEqual(['note']);
});
