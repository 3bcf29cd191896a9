// JobsModule: a list of providers. The core (manager, events, tasks, pool) is global unless told otherwise; what starts
// and drains the pool is in the module that the application imports.
import {
  Inject,
  Module,
  type DynamicModule,
  type InjectionToken,
  type ModuleMetadata,
  type OptionalFactoryDependency,
  type Provider,
  type Type,
} from '@nestjs/common';
import { DiscoveryModule, ModulesContainer } from '@nestjs/core';
import type { JobsModuleOptions } from './interfaces/jobs-options.interface.js';
import { DEFAULT_INSTANCE } from './jobs.constants.js';
import { InvalidOptionsError } from './jobs.errors.js';
import type { ResolvedOptions } from './jobs.options.js';
import { PoolOrchestrator, startLast, type ManagerOrchestrator } from './jobs.orchestrator.js';
import { coreProviders, ownPool, readOptions, tokensOf } from './jobs.providers.js';
import { faultOf, isRecord, option, throwIfAny, section } from './validation.js';
import { rules } from './validation.rules.js';
import { maintenanceSchedule } from './jobs.maintenance.js';
import type { WorkerPool } from './worker/worker.pool.js';

/** For `useClass` and `useExisting` of `forRootAsync`. */
export interface JobsOptionsFactory {
  createJobsOptions(): JobsModuleAsyncResult | Promise<JobsModuleAsyncResult>;
}

/** What factories return: all options but those that must be known before. */
export type JobsModuleAsyncResult = Omit<JobsModuleOptions, 'name' | 'isGlobal'>;

export interface JobsModuleAsyncOptions {
  /** Modules whose providers the factory needs. */
  imports?: ModuleMetadata['imports'] | undefined;
  /** Names the instance where an application has several. */
  name?: string | undefined;
  /** Whether `JobManager` can be injected everywhere. Default true. */
  isGlobal?: boolean | undefined;
  useFactory?: ((...args: any[]) => JobsModuleAsyncResult | Promise<JobsModuleAsyncResult>) | undefined;
  /** What `useFactory` gets. */
  inject?: (InjectionToken | OptionalFactoryDependency)[] | undefined;
  /** Made for this alone. */
  useClass?: Type<JobsOptionsFactory> | undefined;
  /** A provider of the imported modules, or a global one. */
  useExisting?: InjectionToken<JobsOptionsFactory> | undefined;
}

const anything = option(rules.anything, undefined);
const asyncOptions = section({
  name: option(rules.name, undefined),
  isGlobal: option(rules.flag, undefined),
  imports: anything,
  inject: anything,
  useFactory: option(rules.callable, undefined),
  useClass: option(rules.callable, undefined),
  useExisting: anything,
});

@Module({})
export class JobsCoreModule {}

/**
 * The job queue of an application. Import it once, in the root module.
 *
 * @example
 * @Module({ imports: [TypeOrmModule.forRoot(…), JobsModule.forRoot()], providers: [MailTasks] })
 * export class AppModule {}
 */
@Module({})
export class JobsModule {
  /** Nest's. @throws InvalidOptionsError where the class is imported and no module calls `forRoot` or `forRootAsync` */
  constructor(@Inject(ModulesContainer) modules: ModulesContainer) {
    if ([...modules.values()].some(({ metatype }) => metatype === JobsCoreModule)) return;
    throwIfAny(['Expected imports: [JobsModule.forRoot()], or forRootAsync(…), got JobsModule without a call.']);
  }

  /**
   * Wrong options are one InvalidOptionsError, which lists all of them, when the application starts; so are a missing
   * database (NoConnectionError), a schema that is behind while `migrate` is off, and two handlers for one task.
   */
  static forRoot(options: JobsModuleOptions = {}): DynamicModule {
    return defineModule({ name: options?.name, isGlobal: options?.isGlobal, useFactory: () => options });
  }

  /**
   * With options from a factory, a class or an existing provider; `name` and `isGlobal` stand beside it.
   *
   * @example
   * JobsModule.forRootAsync({
   *   inject: [ConfigService],
   *   useFactory: (config: ConfigService) => ({ connection: config.getOrThrow('DATABASE_URL') }),
   * })
   */
  static forRootAsync(options: JobsModuleAsyncOptions): DynamicModule {
    if (!isRecord(options)) throwIfAny(faultOf('the options of forRootAsync', options, () => 'an object'));
    throwIfAny(asyncOptions.check(options, ''));
    return defineModule(options);
  }
}

function defineModule(source: {
  [K in keyof JobsModuleAsyncOptions]: JobsModuleAsyncOptions[K] | undefined;
}): DynamicModule {
  const { name = DEFAULT_INSTANCE, isGlobal = true, imports = [] } = source;
  const tokens = tokensOf(name);
  const core: DynamicModule = {
    module: JobsCoreModule,
    global: isGlobal === true,
    imports: [DiscoveryModule, ...imports],
    providers: [...optionsProviders(source, name, isGlobal), ...coreProviders(name)],
    exports: Object.values(tokens),
  };
  return {
    module: JobsModule,
    imports: [core, maintenanceSchedule({ name, imports: [core], inject: [tokens.schedule, tokens.duties] })],
    providers: [
      {
        provide: PoolOrchestrator,
        inject: [tokens.orchestrator, tokens.pool, tokens.options, ModulesContainer],
        useFactory: makePoolOrchestrator,
      },
    ],
    exports: [core],
  };
}

function optionsProviders(source: JobsModuleAsyncOptions, name: string, isGlobal: boolean): Provider[] {
  const { useFactory, useClass, useExisting, inject = [] } = source;
  const provide = tokensOf(name).options;
  const read = (options: JobsModuleOptions): ResolvedOptions => readOptions(options, name, isGlobal);
  if (useFactory) return [{ provide, inject, useFactory: async (...args: any[]) => read(await useFactory(...args)) }];
  const factory = useExisting ?? useClass;
  if (!factory) throw new InvalidOptionsError(['Expected forRootAsync to get useFactory, useClass or useExisting.']);
  const useFactoryOf = async (maker: JobsOptionsFactory): Promise<ResolvedOptions> =>
    read(await maker.createJobsOptions());
  return [...(useExisting ? [] : [useClass!]), { provide, inject: [factory], useFactory: useFactoryOf }];
}

function makePoolOrchestrator(
  manager: ManagerOrchestrator,
  pool: WorkerPool | null,
  { worker, maintenance }: ResolvedOptions,
  modules: ModulesContainer,
): PoolOrchestrator {
  startLast(modules, JobsModule);
  const { autoStart = false, taskIdentifiers = null } = worker ?? {};
  return new PoolOrchestrator(manager, ownPool(pool), autoStart, maintenance.gc !== false, taskIdentifiers);
}
