// The library without Nest: a manager, and pools from plain maps of handlers.
import type { JobManagerOptions, WorkerOptions } from './interfaces/jobs-options.interface.js';
import type { PayloadSchema, TaskOptions } from './interfaces/task.interface.js';
import { NoConnectionError } from './jobs.errors.js';
import {
  resolveManagerOptions,
  resolveWorkerOptions,
  checkTaskOptions,
  type ConnectionSettings,
} from './jobs.options.js';
import { JobManager } from './manager/job.manager.js';
import { PayloadValidator } from './manager/payload.validator.js';
import { TaskRegistry, type TaskHandler } from './manager/task.registry.js';
import { JobEvents } from './monitoring/job.events.js';
import { Database } from './storage/database.js';
import { JobsMigrator } from './storage/jobs.migrator.js';
import { WorkerPool } from './worker/worker.pool.js';

/**
 * A `JobManager` outside Nest. Migrates the schema unless `migrate` is false; `close()` it when you are done.
 *
 * @throws InvalidOptionsError, NoConnectionError, DatabaseUnavailableError, SchemaOutdatedError, SchemaTooNewError
 * @example
 * const jobs = await createJobManager({ connection: process.env.DATABASE_URL });
 */
export async function createJobManager(options: JobManagerOptions): Promise<JobManager> {
  const { manager: settings, ...connection } = resolveManagerOptions(options);
  const database = await openDatabase(connection, settings.schema);
  try {
    const jobs = new JobManager({
      database,
      settings,
      tasks: new TaskRegistry(),
      validator: new PayloadValidator(),
      listenConnection: connection.listenConnection,
    });
    await jobs.declareQueues();
    return jobs;
  } catch (error) {
    await database.close();
    throw error;
  }
}

/** Connects and brings the schema up to date, or closes again what it has opened. */
export async function openDatabase(settings: ConnectionSettings, schema: string): Promise<Database> {
  const { connection, dataSource, preparedStatements, migrate, waitForDatabaseMs } = settings;
  const database = dataSource
    ? Database.fromDataSource(dataSource, { schema, preparedStatements })
    : Database.fromConnection(connection ?? noConnection(), { schema, preparedStatements });
  try {
    await database.waitUntilReachable(waitForDatabaseMs);
    const migrator = new JobsMigrator(database);
    await (migrate ? migrator.migrate() : migrator.assertCurrent());
    return database;
  } catch (error) {
    await database.close();
    throw error;
  }
}

function noConnection(): never {
  throw new NoConnectionError(
    'Expected a database, got none. Give JobsModule.forRoot (or createJobManager) `connection`: a PostgreSQL URL or a ' +
      'pg pool configuration; or `dataSource`: an initialised TypeORM DataSource; or, in Nest, import ' +
      'TypeOrmModule.forRoot, whose default DataSource is then shared.',
  );
}

/** A handler alone, or with the options of its task. */
export type PlainTask =
  TaskHandler | ({ handler: TaskHandler; payload?: PayloadSchema } & Omit<TaskOptions, 'instance'>);

export interface WorkerPoolOptions {
  jobs: JobManager;
  /** Handlers by task name. */
  tasks: Record<string, PlainTask>;
  /** Default: events of its own. */
  events?: JobEvents;
  options?: WorkerOptions;
  /** At least 10 characters. Default: made from host, process and chance. */
  workerId?: string;
}

/**
 * A worker pool outside Nest. It does not start by itself.
 *
 * @throws InvalidOptionsError
 * @example
 * const pool = createWorkerPool({ jobs, tasks: { 'send-email': async (mail, ctx) => send(mail, ctx.signal) } });
 * await pool.start();
 */
export function createWorkerPool({
  jobs,
  tasks,
  events = new JobEvents(),
  options = {},
  workerId,
}: WorkerPoolOptions): WorkerPool {
  const registry = new TaskRegistry();
  for (const [task, plain] of Object.entries(tasks)) addPlainTask(registry, task, plain);
  return new WorkerPool({
    jobs,
    tasks: registry,
    events,
    validator: new PayloadValidator(),
    options: resolveWorkerOptions(options),
    ...(workerId !== undefined && { workerId }),
  });
}

function addPlainTask(registry: TaskRegistry, task: string, plain: PlainTask): void {
  const { handler, ...options } = typeof plain === 'function' ? { handler: plain } : plain;
  checkTaskOptions(task, options);
  registry.add({ task, options, schema: options.payload ?? null, handler, source: `tasks["${task}"]` });
}
