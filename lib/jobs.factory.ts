// The library without Nest: a manager, and pools from plain maps of handlers.
import type { JobManagerOptions, WorkerOptions } from './interfaces/jobs-options.interface.js';
import type { BatchTaskOptions, Mask, TaskOptions, TaskPayloads } from './interfaces/task.interface.js';
import { ambientTransactionOf } from './jobs.ambient.js';
import { openDatabase, openManager } from './jobs.connection.js';
import { checkPoolParts, resolveManagerOptions, resolveWorkerOptions, taskFaults } from './jobs.options.js';
import { CronScheduler } from './worker/cron.scheduler.js';
import type { JobManager } from './manager/job.manager.js';
import { PayloadValidator } from './manager/payload.validator.js';
import { TaskRegistry, type TaskDefinition } from './manager/task.registry.js';
import { JobEvents } from './monitoring/job.events.js';
import { JobMask } from './monitoring/job.mask.js';
import { faultOf, isRecord, throwIfAny } from './validation.js';
import { rules } from './validation.rules.js';
import type { ClaimedJob } from './interfaces/job.interface.js';
import type { BatchContext } from './worker/batch.context.js';
import type { JobContext } from './worker/job.context.js';
import { SingleRun } from './worker/single.run.js';
import type { WorkerPoolParts } from './worker/pool.engine.js';
import { WorkerPool } from './worker/worker.pool.js';

/** What managers made here know of tasks, so that pools made later can tell them. */
const tasksOf = new WeakMap<JobManager, TaskRegistry>();

/**
 * A `JobManager` outside Nest. Migrates the schema unless `migrate` is false; `close()` it when you are done.
 *
 * @throws InvalidOptionsError, NoConnectionError, DatabaseUnavailableError, MissingPrivilegesError,
 *   SchemaOutdatedError, SchemaTooNewError
 * @example
 * const jobs = await createJobManager({ connection: process.env.DATABASE_URL });
 */
export async function createJobManager(options: JobManagerOptions): Promise<JobManager> {
  const { manager: settings, listenConnection, ...connection } = resolveManagerOptions(options);
  const database = await openDatabase({ ...connection, listenConnection }, settings.schema);
  const tasks = new TaskRegistry();
  const ambient = ambientTransactionOf(connection.dataSource);
  const validator = new PayloadValidator();
  const jobs = await openManager({ database, settings, tasks, validator, listenConnection, ambient });
  tasksOf.set(jobs, tasks);
  return jobs;
}

/** The handler of a task with a payload of type `P`. */
export type PlainHandler<P = any> = (payload: P, context: JobContext<P>) => unknown;

/** The handler of a task with `batch`: gets many jobs in one call. */
export type PlainBatchHandler<P = any> = (jobs: ClaimedJob<P>[], context: BatchContext<P>) => unknown;

/** A handler alone, or with the options of its task. */
export type PlainTask<P = any> =
  | (PlainHandler<P> & { batch?: undefined })
  | ({ handler: PlainHandler<P>; batch?: undefined } & Omit<TaskOptions, 'instance'>)
  | ({ handler: PlainBatchHandler<P> } & Omit<BatchTaskOptions<P>, 'instance'>);

/** Handlers by task name, each with the payload that `TaskPayloads` declares for its task. */
export type PlainTasks<T extends string = string> = {
  [K in T]: PlainTask<K extends keyof TaskPayloads ? TaskPayloads[K] : any>;
};

export interface WorkerPoolOptions<T extends string = string> {
  jobs: JobManager;
  /** Handlers by task name. */
  tasks: PlainTasks<T>;
  /** Default: events of its own. */
  events?: JobEvents | undefined;
  options?: WorkerOptions | undefined;
  /** Jobs of tasks that are not in `tasks`: leave them to others, or fail them for good. Default 'leave'. */
  unknownTasks?: 'leave' | 'exhaust' | undefined;
  /** At least 10 characters. Default: made from host, process and chance. */
  workerId?: string | undefined;
  /** A name to pause it by, together with all pools of that name: `jobs.pause({ instance })`. Default 'default'. */
  instance?: string | undefined;
  /** What events do not show of payloads and results. Handlers get everything. See docs/security.md. */
  mask?: Mask | undefined;
}

/**
 * A worker pool outside Nest. It does not start by itself. Its manager, if `createJobManager` made it, takes the tasks'
 * defaults and payload schemas for `addJob` from now on.
 *
 * @throws InvalidOptionsError
 * @example
 * const pool = createWorkerPool({ jobs, tasks: { 'send-email': async (mail, ctx) => send(mail, ctx.signal) } });
 * await pool.start();
 */
export function createWorkerPool<T extends string>(parts: WorkerPoolOptions<T>): WorkerPool {
  return new WorkerPool(poolPartsOf(parts as WorkerPoolOptions));
}

/** What a pool is made of, from plain tasks. @throws InvalidOptionsError */
export function poolPartsOf(parts: WorkerPoolOptions): WorkerPoolParts {
  checkPoolParts(parts);
  const { jobs, tasks, events = new JobEvents(), options, unknownTasks, workerId, instance, mask } = parts;
  const settings = resolveWorkerOptions(options, unknownTasks);
  const definitions = Object.entries(tasks).map(([task, plain]) => definitionOf(task, plain));
  throwIfAny(definitions.flatMap(faultsOf));
  const registry = new TaskRegistry();
  for (const definition of definitions) {
    registry.add(definition);
    tasksOf.get(jobs)?.replace(definition);
  }
  events.hide(new JobMask(mask, (task) => registry.get(task)?.options.mask));
  const validator = new PayloadValidator();
  // workOnce runs the tasks of all pools of its manager.
  const known = tasksOf.get(jobs) ?? registry;
  jobs.engine.runWith(new SingleRun({ jobs, tasks: known, events, validator, options: settings }));
  const scheduler = new CronScheduler({ engine: jobs.engine, tasks: registry, events });
  const pool = { jobs, tasks: registry, events, validator, options: settings, scheduler, instance };
  return { ...pool, ...(workerId && { workerId }) };
}

const faultsOf = ({ task, source, options, handler }: TaskDefinition): string[] => [
  ...faultOf('handler', handler, rules.callable).map((fault) => `${source}: ${fault}`),
  ...taskFaults(task, options, source),
];

function definitionOf(task: string, plain: PlainTask): TaskDefinition {
  const { handler, ...options } = isRecord(plain) ? plain : { handler: plain };
  const { payload } = options as TaskOptions;
  return { task, options, schema: payload || null, handler, source: `tasks["${task}"]` };
}
