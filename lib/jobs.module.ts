// JobsModule: a list of providers. The core (manager, events, registry) is global and goes last; the pool is not.
import { createRequire } from 'node:module';
import {
  Logger,
  Module,
  type DynamicModule,
  type FactoryProvider,
  type InjectionToken,
  type ModuleMetadata,
  type OptionalFactoryDependency,
  type Provider,
  type Type,
} from '@nestjs/common';
import { DiscoveryModule, ModulesContainer } from '@nestjs/core';
import type { DataSource } from 'typeorm';
import type { JobsModuleOptions } from './interfaces/jobs-options.interface.js';
import { DEFAULT_INSTANCE, getJobsToken, getOptionsToken } from './jobs.constants.js';
import { EXPLORER_TARGET, JobsExplorer, type ExplorerTarget } from './jobs.explorer.js';
import { openDatabase } from './jobs.factory.js';
import { resolveOptions, type ResolvedOptions } from './jobs.options.js';
import { ManagerOrchestrator, PoolOrchestrator } from './jobs.orchestrator.js';
import { JobsMaintenance } from './maintenance/maintenance.cron.js';
import { JobManager } from './manager/job.manager.js';
import { PayloadValidator } from './manager/payload.validator.js';
import { TaskRegistry } from './manager/task.registry.js';
import { JobEvents } from './monitoring/job.events.js';
import { logJobEvents } from './monitoring/job.logger.js';
import { JobQueue } from './worker/job.queue.js';
import { WorkerPool } from './worker/worker.pool.js';

/** For `useClass` and `useExisting` of `forRootAsync`. */
export interface JobsOptionsFactory {
  createJobsOptions(): JobsModuleOptions | Promise<JobsModuleOptions>;
}

export interface JobsModuleAsyncOptions extends Pick<ModuleMetadata, 'imports'> {
  /** Names the instance where an application has several. Known before the options are, so it stands here. */
  name?: string;
  /** Whether `JobManager` can be injected everywhere. Default true. */
  isGlobal?: boolean;
  useFactory?: (...args: any[]) => JobsModuleOptions | Promise<JobsModuleOptions>;
  inject?: (InjectionToken | OptionalFactoryDependency)[];
  useClass?: Type<JobsOptionsFactory>;
  useExisting?: Type<JobsOptionsFactory>;
}

@Module({})
class JobsCoreModule {}

/**
 * The job queue of an application.
 *
 * @example
 * @Module({ imports: [TypeOrmModule.forRoot(…), JobsModule.forRoot()], providers: [MailTasks] })
 * export class AppModule {}
 */
@Module({})
export class JobsModule {
  /** Wrong options, all of them, are one InvalidOptionsError when the application starts. */
  static forRoot(options: JobsModuleOptions = {}): DynamicModule {
    const { name = DEFAULT_INSTANCE, isGlobal = true } = options;
    return instance(name, isGlobal, { useFactory: () => options });
  }

  static forRootAsync(options: JobsModuleAsyncOptions): DynamicModule {
    const { name = DEFAULT_INSTANCE, isGlobal = true } = options;
    return instance(name, isGlobal, options);
  }
}

/** The settings a provider needs, under its instance's token. */
type Parts = { options: ResolvedOptions; jobs: JobManager; events: JobEvents; tasks: TaskRegistry };

function instance(name: string, global: boolean, source: JobsModuleAsyncOptions): DynamicModule {
  const core: DynamicModule = {
    module: JobsCoreModule,
    global,
    imports: [DiscoveryModule, ...(source.imports ?? [])],
    providers: [...optionsProviders(name, source), ...coreProviders(name)],
    exports: [
      getOptionsToken(name),
      ...[JobManager, JobEvents, TaskRegistry].map((part) => getJobsToken<unknown>(part, name)),
    ],
  };
  return {
    module: JobsModule,
    imports: [core],
    providers: poolProviders(name),
    exports: [core, getJobsToken(WorkerPool, name), getJobsToken(JobQueue, name)],
  };
}

function optionsProviders(name: string, source: JobsModuleAsyncOptions): Provider[] {
  const provide = getOptionsToken(name);
  const resolve = (options: JobsModuleOptions): ResolvedOptions =>
    resolveOptions({ ...options, name: options.name ?? name });
  const { useFactory, useClass, useExisting, inject = [] } = source;
  if (useFactory)
    return [{ provide, inject, useFactory: async (...args: unknown[]) => resolve(await useFactory(...args)) }];
  const factory = useExisting ?? useClass;
  if (!factory) throw new TypeError('Expected forRootAsync to get useFactory, useClass or useExisting, got none.');
  const options: FactoryProvider = {
    provide,
    inject: [factory],
    useFactory: async (maker: JobsOptionsFactory) => resolve(await maker.createJobsOptions()),
  };
  return useClass ? [useClass, options] : [options];
}

const coreProviders = (name: string): Provider[] => [
  { provide: getJobsToken(TaskRegistry, name), useValue: new TaskRegistry() },
  {
    provide: getJobsToken(JobEvents, name),
    useFactory: () => {
      const events = new JobEvents();
      logJobEvents(events, new Logger('Jobs'));
      return events;
    },
  },
  {
    provide: getJobsToken(JobManager, name),
    inject: [getOptionsToken(name), getJobsToken(TaskRegistry, name), ...applicationDataSource()],
    useFactory: createManager,
  },
  {
    provide: EXPLORER_TARGET,
    inject: [getOptionsToken(name), getJobsToken(TaskRegistry, name), getJobsToken(JobEvents, name)],
    useFactory: (options: ResolvedOptions, tasks: TaskRegistry, events: JobEvents): ExplorerTarget => ({
      instance: name,
      tasks,
      events,
      globalEnhancers: options.globalEnhancers,
    }),
  },
  JobsExplorer,
  {
    provide: ManagerOrchestrator,
    inject: [getJobsToken(JobManager, name)],
    useFactory: (jobs: JobManager) => new ManagerOrchestrator(jobs),
  },
];

const poolProviders = (name: string): Provider[] => [
  {
    provide: getJobsToken(WorkerPool, name),
    inject: partsOf(name),
    useFactory: (...[options, jobs, events, tasks]: Injected): WorkerPool | null =>
      options.worker &&
      new WorkerPool({ jobs, tasks, events, validator: new PayloadValidator(), options: options.worker }),
  },
  {
    provide: getJobsToken(JobQueue, name),
    inject: [getJobsToken(WorkerPool, name)],
    useFactory: (pool: WorkerPool | null): JobQueue | null => pool && pool.queue,
  },
  {
    provide: PoolOrchestrator,
    inject: [getJobsToken(WorkerPool, name), getOptionsToken(name)],
    useFactory: (pool: WorkerPool | null, { worker }: ResolvedOptions) =>
      new PoolOrchestrator(pool, worker?.autoStart ?? false),
  },
  {
    provide: JobsMaintenance,
    inject: [...partsOf(name).slice(0, 3), ModulesContainer],
    useFactory: (options: ResolvedOptions, jobs: JobManager, events: JobEvents, modules: ModulesContainer) =>
      new JobsMaintenance(options.worker ? jobs : null, events, options.maintenance, modules, name),
  },
];

type Injected = [Parts['options'], Parts['jobs'], Parts['events'], Parts['tasks']];

const partsOf = (name: string): InjectionToken[] => [
  getOptionsToken(name),
  getJobsToken<unknown>(JobManager, name),
  getJobsToken<unknown>(JobEvents, name),
  getJobsToken<unknown>(TaskRegistry, name),
];

/** The schema is ready before anybody can inject the manager, so `addJob` works in every lifecycle hook. */
async function createManager(options: ResolvedOptions, tasks: TaskRegistry, found?: DataSource): Promise<JobManager> {
  const { connection, dataSource, manager: settings, listenConnection } = options;
  const database = await openDatabase(
    { ...options, dataSource: dataSource ?? (connection === undefined ? found : undefined) },
    settings.schema,
  );
  const jobs = new JobManager({ database, settings, tasks, validator: new PayloadValidator(), listenConnection });
  try {
    await jobs.declareQueues();
    return jobs;
  } catch (error) {
    await jobs.close();
    throw error;
  }
}

/** The application's default TypeORM DataSource, if TypeORM is installed and it has one. */
function applicationDataSource(): OptionalFactoryDependency[] {
  try {
    const { DataSource: token } = createRequire(import.meta.url)('typeorm') as { DataSource: Type<DataSource> };
    return [{ token, optional: true }];
  } catch {
    return [];
  }
}
