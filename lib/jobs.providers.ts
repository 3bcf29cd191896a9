// How the parts of an instance are made, and from which others.
import { Logger, type FactoryProvider, type InjectionToken, type Provider } from '@nestjs/common';
import { DiscoveryService, ExternalContextCreator, LazyModuleLoader, ModulesContainer } from '@nestjs/core';
import type { JobsModuleOptions } from './interfaces/jobs-options.interface.js';
import { ambientTransactionOf } from './jobs.ambient.js';
import { isOpenManager, openDatabase, openManager, withApplicationDataSource } from './jobs.connection.js';
import { DEFAULT_INSTANCE, getJobsToken, getOptionsToken } from './jobs.constants.js';
import { HandlerContexts } from './jobs.contexts.js';
import { JobsExplorer } from './jobs.explorer.js';
import { HandlerBinder } from './jobs.handlers.js';
import { LazyTasks } from './jobs.lazy.js';
import { resolveOptions, resolveWorkerOptions, type ResolvedOptions } from './jobs.options.js';
import { ManagerOrchestrator } from './jobs.orchestrator.js';
import { CronScheduler } from './worker/cron.scheduler.js';
import { Maintenance } from './worker/maintenance.js';
import { InvalidOptionsError } from './jobs.errors.js';
import { throwIfAny, show } from './validation.js';
import { JobManager } from './manager/job.manager.js';
import { PayloadValidator } from './manager/payload.validator.js';
import { TaskRegistry } from './manager/task.registry.js';
import { createNoopEvents, JobEvents } from './monitoring/job.events.js';
import { JobMask } from './monitoring/job.mask.js';
import { JobLogger } from './monitoring/job.logger.js';
import { JobQueue } from './worker/job.queue.js';
import { SingleRun } from './worker/single.run.js';
import { WorkerPool } from './worker/worker.pool.js';

/** The tokens of an instance's parts. */
export const tokensOf = (name: string) => ({
  options: getOptionsToken(name),
  validator: getJobsToken(PayloadValidator, name),
  events: getJobsToken(JobEvents, name),
  explorer: getJobsToken(JobsExplorer, name),
  tasks: getJobsToken(TaskRegistry, name),
  jobs: getJobsToken(JobManager, name),
  pool: getJobsToken(WorkerPool, name),
  queue: getJobsToken(JobQueue, name),
  duties: getJobsToken(Maintenance, name),
  schedule: `millrace:${name}:schedule`,
  orchestrator: getJobsToken(ManagerOrchestrator, name),
});

/** In the order in which they are needed: nothing is connected before options and tasks are known to be right. */
export function coreProviders(name: string): Provider[] {
  const { options, validator, events, explorer, tasks, jobs, pool, queue, duties, schedule, orchestrator } =
    tokensOf(name);
  return [
    provider(validator, () => new PayloadValidator()),
    provider(events, makeEvents, options),
    provider(
      explorer,
      makeExplorer,
      options,
      validator,
      events,
      DiscoveryService,
      ModulesContainer,
      ExternalContextCreator,
    ),
    provider(tasks, (found: JobsExplorer) => found.explore(), explorer),
    provider(jobs, makeManager, options, tasks, validator, ModulesContainer),
    provider(pool, makePool, options, jobs, tasks, validator, events),
    provider(queue, (started: WorkerPool | null) => ownPool(started)?.queue ?? null, pool),
    provider(duties, makeDuties, options, jobs, events),
    provider(schedule, ({ maintenance }: ResolvedOptions) => maintenance, options),
    provider(
      orchestrator,
      makeOrchestrator,
      options,
      explorer,
      jobs,
      pool,
      tasks,
      validator,
      events,
      duties,
      LazyModuleLoader,
    ),
  ];
}

const provider = (provide: InjectionToken, useFactory: FactoryProvider['useFactory'], ...inject: InjectionToken[]) => ({
  provide,
  useFactory,
  inject,
});

/** Options that a factory returns after the module has been laid out cannot change its layout any more. */
export function readOptions(options: JobsModuleOptions, name: string, isGlobal: boolean): ResolvedOptions {
  const layout = { name, isGlobal };
  if (typeof options !== 'object' || options === null) {
    throw new InvalidOptionsError([`Expected the options of JobsModule to be an object, got ${show(options)}.`]);
  }
  const late = (['name', 'isGlobal'] as const).filter(
    (key) => options[key] !== undefined && options[key] !== layout[key],
  );
  throwIfAny(late.map((key) => `Expected ${key} beside useFactory in forRootAsync, got it among the options.`));
  return resolveOptions(Array.isArray(options) ? options : { ...options, name });
}

function makeEvents({ name }: ResolvedOptions): JobEvents {
  const events = new JobEvents();
  new JobLogger(new Logger(name === DEFAULT_INSTANCE ? 'JobsModule' : `JobsModule ${name}`)).subscribe(events);
  return events;
}

async function makeExplorer(
  { name, globalEnhancers }: ResolvedOptions,
  validator: PayloadValidator,
  events: JobEvents,
  discovery: DiscoveryService,
  modules: ModulesContainer,
  creator: ExternalContextCreator,
): Promise<JobsExplorer> {
  const binder = new HandlerBinder(new HandlerContexts(creator, globalEnhancers));
  await validator.load();
  return new JobsExplorer({
    instance: name,
    discovery,
    modules,
    binder,
    tasks: new TaskRegistry((message) => new Logger('JobsModule').warn(message)),
    events: ownEvents(events),
    validator,
    warn: (message) => new Logger('JobsModule').warn(message),
  });
}

/** The schema exists before the manager can be injected, so `addJob` works in every lifecycle hook. */
async function makeManager(
  options: ResolvedOptions,
  tasks: TaskRegistry,
  validator: PayloadValidator,
  modules: ModulesContainer,
): Promise<JobManager> {
  const { manager: settings, listenConnection } = options;
  const connection = await withApplicationDataSource(options, modules);
  const database = await openDatabase(connection, settings.schema);
  const ambient = ambientTransactionOf(connection.dataSource, modules);
  const debug = (message: string): void => new Logger('JobsModule').debug(message);
  return openManager({ database, settings, tasks, validator, listenConnection, ambient, debug });
}

// Specs put stubs in the place of the manager, the pool and the events. What is not the library's own is never called
// from here, so that a stub needs only the methods that the application uses.

const makePool = (
  { worker, name }: ResolvedOptions,
  jobs: JobManager,
  tasks: TaskRegistry,
  validator: PayloadValidator,
  given: JobEvents,
): WorkerPool | null => {
  if (!worker || !isOpenManager(jobs)) return null;
  const events = ownEvents(given);
  const scheduler = new CronScheduler({ engine: jobs.engine, tasks, events });
  return new WorkerPool({ jobs, tasks, validator, events, options: worker, instance: name, scheduler });
};

const makeOrchestrator = (
  { worker, mask }: ResolvedOptions,
  explorer: JobsExplorer,
  jobs: JobManager,
  pool: WorkerPool | null,
  tasks: TaskRegistry,
  validator: PayloadValidator,
  given: JobEvents,
  duties: Maintenance | null,
  loader: LazyModuleLoader,
): ManagerOrchestrator => {
  if (!isOpenManager(jobs)) return new ManagerOrchestrator({ explorer, jobs: null, duties: null, lazy: null });
  const events = ownEvents(given);
  const options = worker ?? resolveWorkerOptions();
  events.hide(new JobMask(mask, (task) => tasks.get(task)?.options.mask));
  jobs.engine.runWith(new SingleRun({ jobs, tasks, validator, events, options }));
  const { concurrency } = options;
  const lazy = new LazyTasks({ loader, explorer, tasks, jobs, pool: ownPool(pool), concurrency });
  return new ManagerOrchestrator({ explorer, jobs, duties, lazy });
};

const makeDuties = ({ worker }: ResolvedOptions, jobs: JobManager, events: JobEvents): Maintenance | null =>
  worker && isOpenManager(jobs) ? new Maintenance(jobs, ownEvents(events)) : null;

const ownEvents = (events: JobEvents): JobEvents => (events instanceof JobEvents ? events : createNoopEvents());

/** The pool to start and stop. */
export const ownPool = (pool: WorkerPool | null): WorkerPool | null => (pool instanceof WorkerPool ? pool : null);
