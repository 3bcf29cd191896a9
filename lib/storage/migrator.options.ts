// What a migrator is given, and the database that it opens for it.
import type { DataSource } from '../interfaces/typeorm.interface.js';
import type { PgPoolOptions } from '../interfaces/connection.interface.js';
import { InvalidOptionsError } from '../jobs.errors.js';
import { option, throwIfAny, section } from '../validation.js';
import { rules } from '../validation.rules.js';
import { Database } from './database.js';

export interface JobsMigratorOptions {
  /** A PostgreSQL URL or a `pg` pool configuration. */
  connection?: string | PgPoolOptions | undefined;
  /** An initialised TypeORM DataSource. */
  dataSource?: DataSource | undefined;
  /** Default 'jobs'. */
  schema?: string | undefined;
  /** Keep trying for so long while the database cannot be reached. Default 0: fail at once. */
  waitForDatabaseMs?: number | undefined;
}

const migratorOptions = section({
  connection: option(rules.anything, undefined),
  dataSource: option(rules.dataSource, undefined),
  schema: option(rules.schema, 'jobs'),
  waitForDatabaseMs: option(rules.timer(), 0),
});

export function openDatabase(asked: JobsMigratorOptions): Database {
  throwIfAny(migratorOptions.check(asked, ''));
  const { connection, dataSource, schema = 'jobs' } = asked;
  const options = { schema, preparedStatements: false };
  if (connection && !dataSource) return Database.fromConnection(connection, options);
  if (dataSource && !connection) return Database.fromDataSource(dataSource, options);
  throw new InvalidOptionsError([
    `Expected JobsMigrator to get either connection or dataSource, got ${connection ? 'both' : 'neither'}.`,
  ]);
}
