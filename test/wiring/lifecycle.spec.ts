import {
  Global,
  Injectable,
  Module,
  type OnApplicationBootstrap,
  type OnApplicationShutdown,
  type OnModuleDestroy,
  type OnModuleInit,
} from '@nestjs/common';
import { TypeOrmModule } from '@nestjs/typeorm';
import { afterAll, afterEach, beforeAll, describe, expect, it, jest } from '@jest/globals';
import { DataSource } from 'typeorm';
import { JobManager, JobsModule, type JobsModuleOptions, Task, WorkerPool } from '../../lib/index.js';
import { PoolOrchestrator } from '../../lib/jobs.orchestrator.js';
import { applicationsOnOneDatabase, type Applications } from '../support/app.js';
import { eventually, type TestDatabase } from '../support/database.js';

const log: string[] = [];

/** What closes itself as soon as Nest destroys modules, like a Prisma client. */
@Injectable()
class Client implements OnModuleDestroy {
  private open = true;

  use(): void {
    if (!this.open) throw new Error('the client is closed');
  }

  async onModuleDestroy(): Promise<void> {
    this.open = false;
    log.push('client closed');
  }
}

let release: () => void = () => undefined;

@Injectable()
class SlowTasks {
  constructor(private readonly client: Client) {}

  @Task('slow')
  async slow(): Promise<void> {
    log.push('started');
    await new Promise<void>((resolve) => (release = resolve));
    this.client.use();
    log.push('finished with the client');
  }
}

@Module({ providers: [Client], exports: [Client] })
class ClientModule {}

@Global()
@Module({ providers: [Client], exports: [Client] })
class GlobalClientModule {}

@Module({ imports: [ClientModule], providers: [SlowTasks] })
class TasksModule {}

describe('the life of an application', () => {
  let apps: Applications;
  let database: TestDatabase;
  const jobsModule = (options: JobsModuleOptions = {}) => JobsModule.forRoot({ connection: database.url, ...options });

  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
    database = apps.database;
  });
  afterEach(async () => {
    release();
    await apps.close();
    log.length = 0;
  });
  afterAll(() => apps.drop());

  describe('while it starts', () => {
    @Injectable()
    class Adding implements OnModuleInit, OnApplicationBootstrap {
      constructor(private readonly jobs: JobManager) {}

      async onModuleInit(): Promise<void> {
        const { queue } = await this.jobs.addJob('logged', 'init');
        log.push(`added at init to ${queue}`);
      }

      async onApplicationBootstrap(): Promise<void> {
        await this.jobs.addJob('logged', 'bootstrap');
        log.push('bootstrapped');
      }
    }

    @Injectable()
    class LoggedTasks {
      @Task('logged', { queue: 'lane' })
      run(payload: string): void {
        log.push(`ran ${payload}`);
      }
    }

    @Global()
    @Module({ providers: [Adding], exports: [Adding] })
    class GlobalAdding {}
    @Module({ providers: [Adding] })
    class FeatureAdding {}

    it.each([
      ['the root', { providers: [Adding] }, []],
      ['a feature module', {}, [FeatureAdding]],
      ['a global module', {}, [GlobalAdding]],
    ])(
      'jobs can be added from the first hook on, with their task’s defaults, and run after the last: in %s',
      async (_where, { providers = [] }: { providers?: (typeof Adding)[] }, modules) => {
        await apps.start({ imports: [...modules, jobsModule()], providers: [LoggedTasks, ...providers] });
        await eventually(() => log.length === 4);
        expect(log).toEqual(['added at init to lane', 'bootstrapped', 'ran init', 'ran bootstrap']);
      },
    );
  });

  describe('while it ends', () => {
    it.each([
      ['the root module', { imports: [], providers: [Client, SlowTasks] }],
      ['the module that the tasks’ module imports', { imports: [TasksModule], providers: [] }],
      ['a global module', { imports: [GlobalClientModule], providers: [SlowTasks] }],
    ])(
      'running jobs finish before their provider’s dependencies close themselves: in %s',
      async (_where, { imports, providers }) => {
        const app = await apps.start({ imports: [...imports, jobsModule()], providers });
        await app.get(JobManager).addJob('slow', {});
        await eventually(() => log.includes('started'));
        const closed = app.close();
        await eventually(() => app.get(WorkerPool).queue.running === false);
        release();
        await closed;
        expect(log).toEqual(['started', 'finished with the client', 'client closed']);
      },
    );

    it('a handler can use the shared DataSource until it is done', async () => {
      @Injectable()
      class SqlTasks {
        constructor(private readonly dataSource: DataSource) {}

        @Task('sql')
        async run(): Promise<void> {
          log.push('started');
          await new Promise<void>((resolve) => (release = resolve));
          await this.dataSource.query('select 1');
          log.push('queried');
        }
      }
      const typeorm = TypeOrmModule.forRoot({ type: 'postgres', url: database.url, retryAttempts: 0 });
      const app = await apps.start({ imports: [typeorm, JobsModule.forRoot()], providers: [SqlTasks] });
      await app.get(JobManager).addJob('sql', {});
      await eventually(() => log.includes('started'));
      const closed = app.close();
      await eventually(() => app.get(WorkerPool).queue.running === false);
      release();
      await closed;
      expect(log).toEqual(['started', 'queried']);
    });

    it('jobs can be added up to the last hook', async () => {
      @Injectable()
      class LateAdding implements OnModuleDestroy, OnApplicationShutdown {
        constructor(private readonly jobs: JobManager) {}

        async onModuleDestroy(): Promise<void> {
          if (log.length > 2) return;
          log.push((await this.jobs.addJob('late', 1)).status);
        }

        async beforeApplicationShutdown(): Promise<void> {
          if (log.length > 2) return;
          log.push((await this.jobs.addJob('late', 2)).status);
        }

        async onApplicationShutdown(): Promise<void> {
          // Nest 11 calls the hooks again for each further close().
          if (log.length > 2) return;
          log.push((await this.jobs.addJob('late', 3)).status);
        }
      }
      const app = await apps.start({ imports: [jobsModule()], providers: [LateAdding] });
      const jobs = app.get(JobManager);
      await app.close();
      expect(log).toEqual(['available', 'available', 'available']);
      await expect(jobs.addJob('late', 4)).rejects.toBeInstanceOf(Error);
    });

    it('closing twice, or before the start was complete, does no harm', async () => {
      const app = await apps.start({ imports: [jobsModule()] });
      await Promise.all([app.close(), app.close()]);
      await expect(app.close()).resolves.toBeUndefined();
    });
  });

  describe('without shutdown hooks', () => {
    afterEach(() => void jest.useRealTimers());

    const warningsOf = async (listeners: number): Promise<string[]> => {
      jest.useFakeTimers();
      const listenerCount = jest.spyOn(process, 'listenerCount').mockReturnValue(listeners);
      const pool = { start: async () => undefined, stop: async () => undefined } as unknown as WorkerPool;
      const manager = { warnOfMissing: () => undefined } as never;
      const orchestrator = new PoolOrchestrator(manager, pool, true, false, null);
      const warn = jest.spyOn(orchestrator['logger'], 'warn').mockReturnValue(undefined);
      await orchestrator.onApplicationBootstrap();
      jest.advanceTimersByTime(60_000);
      await orchestrator.onModuleDestroy();
      listenerCount.mockRestore();
      return warn.mock.calls.map(([message]) => String(message));
    };

    it('a worker warns once, some time after its start', async () => {
      expect(await warningsOf(0)).toEqual([expect.stringContaining('app.enableShutdownHooks()')]);
    });

    it('a worker says nothing if the process listens for SIGTERM', async () => {
      expect(await warningsOf(1)).toEqual([]);
    });
  });
});
