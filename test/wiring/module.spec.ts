import { Global, Inject, Injectable, Module, type ModuleMetadata, type Type } from '@nestjs/common';
import { TypeOrmModule } from '@nestjs/typeorm';
import { afterAll, afterEach, beforeAll, describe, expect, it, jest } from '@jest/globals';
import { DataSource } from 'typeorm';
import {
  DatabaseUnavailableError,
  getJobsToken,
  InjectJobManager,
  InvalidOptionsError,
  JobEvents,
  JobManager,
  JobQueue,
  JobsModule,
  type JobsModuleAsyncOptions,
  type JobsModuleOptions,
  type JobsOptionsFactory,
  NoConnectionError,
  SchemaOutdatedError,
  Task,
  WorkerPool,
} from '../../lib/index.js';
import { applicationsOnOneDatabase, attempt, type Applications } from '../support/app.js';
import { eventually } from '../support/database.js';

@Injectable()
class EchoTasks {
  @Task('echo')
  echo(payload: string): string {
    return payload;
  }
}

describe('JobsModule', () => {
  it('refuses to be imported without a call of forRoot, and says so', async () => {
    const failure = await apps.startFailure({ imports: [JobsModule] });
    expect(failure).toBeInstanceOf(InvalidOptionsError);
    expect(failure.message).toMatch(/Expected imports: \[JobsModule\.forRoot\(\)\], .* got JobsModule without a call/);
  });

  it('may be imported without a call beside one', async () => {
    @Module({ imports: [JobsModule] })
    class FeatureModule {}
    expect(await echoOf('x', [forRoot(), FeatureModule])).toBe('x');
  });

  it('makes its managers itself', () => {
    for (const parts of [undefined, { connection: url }])
      expect(() => new JobManager(parts as never)).toThrow(/injected, or made by createJobManager/);
  });

  let apps: Applications;
  let url: string;
  const forRoot = (options: JobsModuleOptions = {}) => JobsModule.forRoot({ connection: url, ...options });

  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
    url = apps.database.url;
  });
  afterEach(async () => {
    await apps.close();
    await eventually(async () => (await connections()).length === 0);
  });
  afterAll(() => apps.drop());

  /** What the application's connections did last. */
  const connections = async (): Promise<string[]> => {
    const { rows } = await apps.database.pool.query<{ query: string }>(
      `select query from pg_stat_activity
       where datname = current_database() and pid <> pg_backend_pid()
         and backend_type = 'client backend' and query not like '%pg_stat_activity%'`,
    );
    return rows.map(({ query }) => query);
  };
  const listening = async (): Promise<number> =>
    (await connections()).filter((query) => query.startsWith('listen ')).length;
  /** What a job's handler returned in such an application. */
  const echoOf = async (payload: string, imports: ModuleMetadata['imports']): Promise<unknown> => {
    const app = await apps.start({ imports: imports ?? [], providers: [EchoTasks] });
    return (await attempt(app, 'echo', payload)).result;
  };

  it('injects the manager, the pool, its queue and the events by class, everywhere', async () => {
    @Injectable()
    class Service {
      constructor(
        readonly jobs: JobManager,
        readonly pool: WorkerPool,
        readonly queue: JobQueue,
        readonly events: JobEvents,
        @InjectJobManager() readonly same: JobManager,
      ) {}
    }
    @Module({ providers: [Service] })
    class FeatureModule {}

    const app = await apps.start({ imports: [forRoot(), FeatureModule] });
    const { jobs, pool, queue, events, same } = app.get(Service, { strict: false });
    expect(jobs).toBeInstanceOf(JobManager);
    expect(pool.running).toBe(true);
    expect(queue).toBe(pool.queue);
    expect(events).toBeInstanceOf(JobEvents);
    expect(same).toBe(jobs);
  });

  it('with isGlobal: false is injected only where it is imported', async () => {
    @Injectable()
    class Service {
      constructor(readonly jobs: JobManager) {}
    }
    // Nest calls no hook when a start has failed, so the pool of the first try ends by its idle timeout.
    const connection = { connectionString: url, idleTimeoutMillis: 50 };
    const jobsModule = forRoot({ connection, isGlobal: false, worker: false });
    @Module({ providers: [Service] })
    class Without {}
    @Module({ imports: [jobsModule], providers: [Service] })
    class With {}

    expect((await apps.startFailure({ imports: [jobsModule, Without] })).message).toMatch(
      /can't resolve dependencies/i,
    );
    await apps.start({ imports: [jobsModule, With] });
  });

  describe('forRootAsync', () => {
    @Injectable()
    class Config implements JobsOptionsFactory {
      get url(): string {
        return url;
      }

      async createJobsOptions() {
        return { connection: this.url };
      }
    }
    @Module({ providers: [Config], exports: [Config] })
    class ConfigModule {}

    it.each<[string, JobsModuleAsyncOptions]>([
      [
        'useFactory',
        {
          imports: [ConfigModule],
          inject: [Config],
          useFactory: async (config: Config) => config.createJobsOptions(),
        },
      ],
      ['useClass', { useClass: Config }],
      ['useExisting', { imports: [ConfigModule], useExisting: Config }],
    ])('takes its options from %s', async (_kind, options) => {
      expect(await echoOf('x', [JobsModule.forRootAsync(options)])).toBe('x');
    });

    it('refuses to be called with none of them', () => {
      expect(() => JobsModule.forRootAsync({})).toThrow(
        /Expected forRootAsync to get useFactory, useClass or useExisting/,
      );
    });

    it.each([[undefined], [null], ['postgres://x']])('refuses %j for its options', (options) => {
      expect(() => JobsModule.forRootAsync(options as never)).toThrow(
        /Expected the options of forRootAsync to be an object, got (undefined|null|"postgres:\/\/x")/,
      );
    });

    it('refuses late what must be known early', async () => {
      const useFactory = () => ({ connection: url, name: 'late', isGlobal: false });
      const failure = (await apps.startFailure({
        imports: [JobsModule.forRootAsync({ useFactory })],
      })) as InvalidOptionsError;
      expect(failure.problems).toEqual([
        'Expected name beside useFactory in forRootAsync, got it among the options.',
        'Expected isGlobal beside useFactory in forRootAsync, got it among the options.',
      ]);
    });

    it('refuses a factory that forgot to return something', async () => {
      const useFactory = () => undefined as never;
      const failure = await apps.startFailure({ imports: [JobsModule.forRootAsync({ useFactory })] });
      expect(failure.message).toMatch(/Expected the options of JobsModule to be an object, got undefined/);
    });

    it('refuses wrong options in one error, before it connects', async () => {
      const useFactory = () => ({ connection: 'postgres://127.0.0.1:1/none', schema: '', worker: { leaseMs: 1 } });
      const failure = await apps.startFailure({ imports: [JobsModule.forRootAsync({ useFactory })] });
      expect(failure).toBeInstanceOf(InvalidOptionsError);
      expect((failure as InvalidOptionsError).problems).toHaveLength(2);
    });
  });

  describe('a database', () => {
    const typeorm = () => TypeOrmModule.forRoot({ type: 'postgres', url, retryAttempts: 0 });

    it('may be a pg pool configuration', async () => {
      const { hostname: host, port, username: user, pathname } = new URL(url);
      const connection = { host, port: Number(port), user, database: pathname.slice(1), max: 3 };
      expect(await echoOf('x', [JobsModule.forRoot({ connection })])).toBe('x');
    });

    it('may be a TypeORM DataSource, whose pool is shared', async () => {
      const dataSource = await new DataSource({ type: 'postgres', url, poolSize: 2 }).initialize();
      expect(await echoOf('x', [JobsModule.forRoot({ dataSource, worker: { listen: false } })])).toBe('x');
      expect((await connections()).length).toBeLessThanOrEqual(2);
      await apps.close();
      expect(dataSource.isInitialized).toBe(true);
      await dataSource.destroy();
    });

    it.each<[string, () => ModuleMetadata['imports']]>([
      ['before it', () => [typeorm(), JobsModule.forRoot()]],
      ['after it', () => [JobsModule.forRoot(), typeorm()]],
    ])('is the application’s default DataSource where none is named, imported %s', async (_where, imports) => {
      expect(await echoOf('x', imports())).toBe('x');
    });

    it('is found in a module that is not global, and waited for', async () => {
      const provider = {
        provide: DataSource,
        useFactory: async () => {
          await apps.database.pool.query('select pg_sleep(0.2)');
          return new DataSource({ type: 'postgres', url }).initialize();
        },
      };
      @Module({ providers: [provider] })
      class DatabaseModule {
        constructor(private readonly dataSource: DataSource) {}

        async onApplicationShutdown(): Promise<void> {
          await this.dataSource.destroy();
        }
      }
      expect(await echoOf('x', [JobsModule.forRoot(), DatabaseModule])).toBe('x');
    });

    it('that is missing fails at start with the choices', async () => {
      const failure = await apps.startFailure({ imports: [JobsModule.forRoot({ connection: undefined as never })] });
      expect(failure).toBeInstanceOf(NoConnectionError);
      expect(failure.message).toMatch(/`connection`.*`dataSource`.*TypeOrmModule/);
    });

    it('of another make is not taken for ours', async () => {
      const provider = { provide: DataSource, useValue: { options: { type: 'mysql' }, driver: {} } };
      const failure = await apps.startFailure({ imports: [JobsModule.forRoot()], providers: [provider] });
      expect(failure).toBeInstanceOf(NoConnectionError);
      expect(failure.message).toMatch(/default DataSource found is of type "mysql"/);
    });

    it('that does not answer fails at start, without showing the password', async () => {
      const connection = 'postgres://ada:hunter2@127.0.0.1:1/none';
      const failure = await apps.startFailure({ imports: [JobsModule.forRoot({ connection })] });
      expect(failure).toBeInstanceOf(DatabaseUnavailableError);
      expect(JSON.stringify([failure.message, apps.logger.lines])).not.toContain('hunter2');
    });
  });

  describe('named instances', () => {
    const ran: string[] = [];

    @Injectable()
    class BothTasks {
      @Task('main')
      main(payload: string): void {
        ran.push(`main ${payload}`);
      }

      @Task('report', { instance: 'reports' })
      report(payload: string): void {
        ran.push(`report ${payload}`);
      }
    }

    it('share nothing but the application', async () => {
      @Injectable()
      class Service {
        constructor(
          readonly jobs: JobManager,
          @InjectJobManager('reports') readonly reports: JobManager,
          @Inject(getJobsToken(WorkerPool, 'reports')) readonly reportsPool: WorkerPool,
          @Inject(getJobsToken(JobEvents, 'reports')) readonly reportsEvents: JobEvents,
        ) {}
      }
      const app = await apps.start({
        imports: [forRoot(), forRoot({ name: 'reports', schema: 'report_jobs' })],
        providers: [BothTasks, Service],
      });
      const { jobs, reports, reportsPool, reportsEvents } = app.get(Service);
      await reports.addJob('report', 'r');
      await reports.addJob('main', 'nobody here runs it');
      await jobs.addJob('main', 'm');
      await eventually(() => ran.length === 2);
      expect(ran.toSorted()).toEqual(['main m', 'report r']);
      // The handler has run before its outcome is written.
      await eventually(async () => !(await reports.counts()).byTask['report']);
      expect((await reports.counts()).byTask).toEqual({ main: 1 });
      expect(reportsPool).not.toBe(app.get(WorkerPool));
      expect(reportsEvents.events().some(({ type }) => type === 'job.completed')).toBe(true);
      expect(await listening()).toBe(2);
    });

    it('cannot have the same name', async () => {
      const failure = await apps.startFailure({ imports: [forRoot(), forRoot({ schema: 'other' })] });
      expect(failure).toBeInstanceOf(InvalidOptionsError);
      expect(failure.message).toMatch(/once for each name, got it more often for "default"/);
    });

    it('may come from forRootAsync', async () => {
      const useFactory = () => ({ connection: url, schema: 'late_jobs', worker: false as const });
      const app = await apps.start({ imports: [JobsModule.forRootAsync({ name: 'late', useFactory })] });
      expect(app.get(getJobsToken(JobManager, 'late'))).toBeInstanceOf(JobManager);
    });
  });

  it('with worker: false only enqueues: no pool, no LISTEN, no cron', async () => {
    const app = await apps.start({ imports: [forRoot({ worker: false })], providers: [EchoTasks] });
    await app.get(JobManager).addJob('echo', 'x', { queue: 'nobody' });
    expect(app.get(WorkerPool)).toBeNull();
    expect(app.get(JobQueue)).toBeNull();
    expect(await listening()).toBe(0);
    expect(await app.get(JobManager).workers()).toEqual([]);
  });

  it('uses one pool and one LISTEN connection, however often it is injected', async () => {
    const feature = (): Type => {
      @Injectable()
      class Service {
        constructor(readonly jobs: JobManager) {}
      }
      @Module({ providers: [Service] })
      class FeatureModule {}
      return FeatureModule;
    };
    await apps.start({ imports: [forRoot({ connection: { connectionString: url, max: 4 } }), feature(), feature()] });
    expect(await listening()).toBe(1);
    expect((await connections()).length).toBeLessThanOrEqual(5);
  });

  it('with autoStart: false leaves the start of the pool to the application', async () => {
    const app = await apps.start({ imports: [forRoot({ worker: { autoStart: false } })], providers: [EchoTasks] });
    expect(app.get(WorkerPool).state).toBe('new');
    await app.get(WorkerPool).start();
    expect((await attempt(app, 'echo', 'x')).result).toBe('x');
  });

  it('with migrate: false fails where the schema is missing, and closes what it opened', async () => {
    const failure = await apps.startFailure({ imports: [forRoot({ schema: 'never_migrated', migrate: false })] });
    expect(failure).toBeInstanceOf(SchemaOutdatedError);
    await eventually(async () => (await connections()).length === 0);
  });

  it('closes what it opened where the pool does not start', async () => {
    jest.spyOn(WorkerPool.prototype, 'start').mockRejectedValue(new Error('no luck'));
    expect((await apps.startFailure({ imports: [forRoot()] })).message).toBe('no luck');
    await eventually(async () => (await connections()).length === 0);
  });

  it('closes what it opened where a task that a factory made is a duplicate', async () => {
    const providers = [EchoTasks, { provide: 'SECOND', useFactory: () => new EchoTasks() }];
    expect((await apps.startFailure({ imports: [forRoot()], providers })).message).toMatch(
      /one handler for task "echo"/,
    );
    await eventually(async () => (await connections()).length === 0);
  });

  it('takes its options from a global module', async () => {
    @Global()
    @Module({ providers: [{ provide: 'DATABASE_URL', useValue: url }], exports: ['DATABASE_URL'] })
    class GlobalConfig {}
    const jobs = JobsModule.forRootAsync({
      inject: ['DATABASE_URL'],
      useFactory: (connection: string) => ({ connection }),
    });
    expect(await echoOf('x', [jobs, GlobalConfig])).toBe('x');
  });
});
