// Where the database comes from: the options, or the application's own TypeORM DataSource.
import { Inject, type Type } from '@nestjs/common';
import { ModuleRef, type ModulesContainer } from '@nestjs/core';
import type { DataSource } from './interfaces/typeorm.interface.js';
import { NoConnectionError } from './jobs.errors.js';
import type { ConnectionSettings } from './jobs.options.js';
import { JobEngine, type EngineParts } from './manager/job.engine.js';
import { JobManager } from './manager/job.manager.js';
import { Database } from './storage/database.js';
import { JobsMigrator } from './storage/jobs.migrator.js';
import { assertPackageFiles } from './storage/migration.files.js';

/**
 * Connects and brings the schema up to date (or checks that it is), or closes again what it has opened.
 *
 * @throws NoConnectionError, DatabaseUnavailableError, MissingPrivilegesError, SchemaOutdatedError, SchemaTooNewError,
 *   PackageFilesMissingError
 */
export async function openDatabase(settings: ConnectionSettings, schema: string): Promise<Database> {
  const { connection, dataSource, preparedStatements, migrate, waitForDatabaseMs } = settings;
  const options = { schema, preparedStatements: preparedStatements ?? true };
  assertPackageFiles();
  if (!dataSource && connection === undefined) throw new NoConnectionError(CHOICES);
  const database = dataSource
    ? Database.fromDataSource(dataSource, options)
    : Database.fromConnection(connection!, options);
  try {
    const migrator = new JobsMigrator(database);
    await database.whenReachable(waitForDatabaseMs, async () => {
      if (preparedStatements === null) database.named = !(await database.isPooled());
      await (migrate ? migrator.migrate() : migrator.assertCurrent());
    });
    return database;
  } catch (error) {
    await database.close();
    throw error;
  }
}

const opened = new WeakSet<object>();

/** A manager whose queues are declared; its database is closed again if that fails. */
export async function openManager(parts: EngineParts): Promise<JobManager> {
  const jobs = new JobManager(new JobEngine(parts));
  try {
    await jobs.engine.declarations.declareQueues();
  } catch (error) {
    await jobs.close();
    throw error;
  }
  opened.add(jobs);
  return jobs;
}

/** Whether it is a manager at all, and no stub that a spec has put in its place (`overrideProvider(JobManager)`). */
export const isOpenManager = (jobs: unknown): jobs is JobManager => opened.has(jobs as object);

/**
 * The settings with the application's default DataSource where they name no database.
 *
 * @throws NoConnectionError if that is of no use here
 */
export async function withApplicationDataSource(
  settings: ConnectionSettings,
  modules: ModulesContainer,
): Promise<ConnectionSettings> {
  if (settings.connection !== undefined || settings.dataSource) return settings;
  const dataSource = await findDataSource(modules);
  if (dataSource && dataSource.options.type !== 'postgres') {
    throw new NoConnectionError(`${CHOICES} The default DataSource found is of type "${dataSource.options.type}".`);
  }
  return { ...settings, dataSource };
}

/**
 * The default DataSource is the provider whose token is TypeORM's class, in whatever module it is. Found by the class's
 * name, since TypeORM is optional and there may be several copies of it.
 */
async function findDataSource(modules: ModulesContainer): Promise<DataSource | undefined> {
  for (const { providers } of modules.values()) {
    const token = [...providers.keys()].find(isDataSourceClass);
    if (token) return make(providers.get(ModuleRef)!.instance as ModuleRef, token);
  }
  return undefined;
}

const isDataSourceClass = (token: unknown): token is Type<DataSource> =>
  typeof token === 'function' && token.name === 'DataSource' && 'createQueryRunner' in (token.prototype as object);

/** Nest may not have made the DataSource yet: it does, and waits for it, when something is created that needs it. */
async function make(moduleRef: ModuleRef, token: Type<DataSource>): Promise<DataSource> {
  class Holder {
    constructor(readonly dataSource: DataSource) {}
  }
  Inject(token)(Holder, undefined, 0);
  return (await moduleRef.create(Holder)).dataSource;
}

const CHOICES =
  'Expected a database, got none. Give JobsModule.forRoot (or createJobManager) either `connection`, a PostgreSQL URL ' +
  'or pg pool configuration (is the environment variable set?), or `dataSource`, an initialised TypeORM DataSource; ' +
  'or, in Nest, import TypeOrmModule.forRoot({ type: "postgres" }), whose default DataSource is then shared.';
