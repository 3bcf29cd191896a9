import { Inject, Injectable, Module, type OnModuleInit } from '@nestjs/common';
import { Test } from '@nestjs/testing';
import { TypeOrmModule } from '@nestjs/typeorm';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { DataSource } from 'typeorm';
import {
  getJobsToken,
  InjectJobManager,
  InvalidOptionsError,
  JobEvents,
  JobManager,
  JobQueue,
  JobsModule,
  type JobsModuleOptions,
  type JobsOptionsFactory,
  NoConnectionError,
  SchemaOutdatedError,
  Task,
  WorkerPool,
} from '../../lib/index.js';
import { applicationsOnOneDatabase, type Applications } from '../support/app.js';
import { eventually } from '../support/database.js';

const ran: string[] = [];

@Injectable()
class Tasks {
  @Task('main')
  main(payload: string): void {
    ran.push(`main ${payload}`);
  }

  @Task('report')
  report(payload: string): void {
    ran.push(`report ${payload}`);
  }
}

describe('JobsModule', () => {
  let apps: Applications;
  let url: string;
  const options = (more: JobsModuleOptions = {}): JobsModuleOptions => ({ connection: url, ...more });

  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
    url = apps.database.url;
  });
  afterEach(async () => {
    await apps.close();
    ran.length = 0;
  });
  afterAll(() => apps.drop());

  const connections = async (): Promise<number> => {
    const { rows } = await apps.database.pool.query(
      `select count(*)::int as n from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`,
    );
    return rows[0].n as number;
  };

  it('injects the manager, the pool, its queue and the events by class, everywhere', async () => {
    @Injectable()
    class Service {
      constructor(
        readonly jobs: JobManager,
        readonly pool: WorkerPool,
        readonly queue: JobQueue,
        readonly events: JobEvents,
      ) {}
    }
    @Module({ providers: [Service] })
    class FeatureModule {}

    const app = await apps.start({ imports: [JobsModule.forRoot(options()), FeatureModule] });
    const { jobs, pool, queue, events } = app.get(Service, { strict: false });
    expect(jobs).toBeInstanceOf(JobManager);
    expect(pool.running).toBe(true);
    expect(queue).toBe(pool.queue);
    expect(events).toBeInstanceOf(JobEvents);
  });

  it('with isGlobal: false is injected only where it is imported', async () => {
    @Injectable()
    class Service {
      constructor(readonly jobs: JobManager) {}
    }
    const jobsModule = JobsModule.forRoot(options({ isGlobal: false, worker: false }));
    @Module({ providers: [Service] })
    class Without {}
    @Module({ imports: [jobsModule], providers: [Service] })
    class With {}

    expect((await apps.startFailure({ imports: [jobsModule, Without] })).message).toMatch(/resolve dependencies/);
    await apps.start({ imports: [jobsModule, With] });
  });

  it('takes a pg pool configuration', async () => {
    const { hostname, port, username, pathname } = new URL(url);
    const connection: pg.PoolConfig = {
      host: hostname,
      port: Number(port),
      user: username,
      password: 'unused',
      database: pathname.slice(1),
    };
    const app = await apps.start({ imports: [JobsModule.forRoot({ connection })], providers: [Tasks] });
    await app.get(JobManager).addJob('main', 'x');
    await eventually(() => ran.includes('main x'));
  });
});
