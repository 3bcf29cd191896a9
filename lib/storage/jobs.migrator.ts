// Brings the library's schema up to date, or takes it down again: plain SQL files, each in one transaction under one
// advisory lock, so that any number of processes may start at once.
import { readFileSync } from 'node:fs';
import type pg from 'pg';
import type { DataSource } from 'typeorm';
import { InvalidOptionsError, SchemaOutdatedError, SchemaTooNewError } from '../jobs.errors.js';
import { translateError } from './database.errors.js';
import { Database } from './database.js';
import { grantRights, revokeRights, type RoleKind } from './role.rights.js';

interface Migration {
  version: number;
  name: string;
}

/** In order; a released file is never edited. */
const MIGRATIONS: Migration[] = [
  { version: 1, name: '0001_initial' },
  { version: 2, name: '0002_dependencies_steps_crontabs' },
  { version: 3, name: '0003_pinned_plans' },
  { version: 4, name: '0004_plain_claims' },
  { version: 5, name: '0005_job_keys_for_enqueuers' },
];

/** The version of the schema that this version of the library works with. */
export const SCHEMA_VERSION = MIGRATIONS.at(-1)!.version;

export interface JobsMigratorOptions {
  /** A PostgreSQL URL or a `pg` pool configuration. */
  connection?: string | pg.PoolConfig;
  /** An initialised TypeORM DataSource. */
  dataSource?: DataSource;
  /** Default 'jobs'. */
  schema?: string;
  /** Keep trying for so long while the database cannot be reached. Default 0: fail at once. */
  waitForDatabaseMs?: number;
}

/**
 * Installs, updates and removes the library's tables, in a schema of their own.
 *
 * @example
 * const migrator = new JobsMigrator({ connection: process.env.DATABASE_URL });
 * await migrator.migrate();
 * await migrator.close();
 */
export class JobsMigrator {
  private readonly database: Database;
  private readonly waitForDatabaseMs: number;

  /**
   * @throws InvalidOptionsError unless exactly one of `connection` and `dataSource` is given, where `schema` is no name, or
   *   `waitForDatabaseMs` no time
   */
  constructor(options: JobsMigratorOptions | Database) {
    const given = options instanceof Database;
    this.database = given ? options : openDatabase(options);
    this.waitForDatabaseMs = given ? 0 : (options.waitForDatabaseMs ?? 0);
  }

  /**
   * Applies what is missing; does nothing where nothing is. Any number of processes may call it at once.
   * @throws SchemaTooNewError, MissingPrivilegesError, DatabaseUnavailableError
   */
  async migrate(): Promise<void> {
    if (this.waitForDatabaseMs) return this.database.whenReachable(this.waitForDatabaseMs, () => this.migrateNow());
    return this.migrateNow();
  }

  private async migrateNow(): Promise<void> {
    // The common start: nothing to do, no lock, no right to create anything needed.
    if ((await this.version()) === SCHEMA_VERSION) return;
    await this.underLock((client) => this.prepare(client));
    for (const migration of MIGRATIONS) await this.underLock((client) => this.apply(client, migration));
    await this.refuseNewer();
  }

  /** Removes everything the library has created, its version table included; the schema too if nothing else is in it. */
  async rollback(): Promise<void> {
    await this.refuseNewer();
    await this.underLock(async (client) => {
      const applied = await this.versionOn(client);
      for (const { version, name } of MIGRATIONS.toReversed()) {
        if (version <= applied) await client.query(read(`${name}.down.sql`));
      }
      await client.query(`drop table if exists ${this.database.quotedSchema}.migrations`);
      if (await this.isEmpty(client)) await client.query(`drop schema if exists ${this.database.quotedSchema}`);
    });
  }

  /**
   * Gives an existing role exactly the rights that one kind of process needs, whatever it had in this schema before.
   * Call it as the tables' owner, and again after each migration: it may be repeated at any time.
   * @throws InvalidArgumentError for a role that does not exist or owns the tables, SchemaOutdatedError,
   *   MissingPrivilegesError
   * @example
   * await migrator.grant('enqueue', 'web');
   */
  async grant(kind: RoleKind, role: string): Promise<void> {
    await this.assertCurrent();
    await this.underLock((client) => grantRights(client, this.database.schema, kind, role));
  }

  /** Takes a role's rights in this schema away. @throws as `grant` */
  async revoke(role: string): Promise<void> {
    await this.assertCurrent();
    await this.underLock((client) => revokeRights(client, this.database.schema, role));
  }

  /** The version of the installed schema; 0 where there is none. */
  async version(): Promise<number> {
    return this.translated(() => this.versionOn(this.database.pool));
  }

  /**
   * Checks without changing anything.
   * @throws SchemaOutdatedError where migrations are missing, SchemaTooNewError where a newer version was here
   */
  async assertCurrent(): Promise<void> {
    const version = await this.refuseNewer();
    if (version === SCHEMA_VERSION) return;
    throw new SchemaOutdatedError(
      `Expected schema "${this.database.schema}" at version ${SCHEMA_VERSION}, got ${version || 'no tables at all'}. ` +
        'Run the migrations first: `await new JobsMigrator({ connection, schema }).migrate()`, or set migrate: true.',
    );
  }

  /** Ends the pool that the migrator opened; a DataSource's is left alone. */
  close(): Promise<void> {
    return this.database.close();
  }

  private async refuseNewer(): Promise<number> {
    const version = await this.version();
    if (version <= SCHEMA_VERSION) return version;
    throw new SchemaTooNewError(
      `Expected schema "${this.database.schema}" at version ${SCHEMA_VERSION} or lower, got ${version}: a newer ` +
        'millrace has migrated it. Update this process to that version, or give it a schema of its own.',
    );
  }

  private async prepare(client: pg.ClientBase): Promise<void> {
    const { schema, quotedSchema } = this.database;
    const { rowCount } = await client.query('select from pg_namespace where nspname = $1', [schema]);
    if (!rowCount) await client.query(`create schema ${quotedSchema}`);
    await client.query(`create table if not exists ${quotedSchema}.migrations (
      version integer primary key, name text not null, applied_at timestamptz not null default now())`);
  }

  private async apply(client: pg.ClientBase, { version, name }: Migration): Promise<void> {
    if ((await this.versionOn(client)) >= version) return;
    await client.query(read(`${name}.up.sql`));
    await client.query(`insert into ${this.database.quotedSchema}.migrations (version, name) values ($1, $2)`, [
      version,
      name,
    ]);
  }

  private async versionOn(client: pg.Pool | pg.ClientBase): Promise<number> {
    const table = `${this.database.quotedSchema}.migrations`;
    const { rows } = await client.query<{ exists: boolean }>('select to_regclass($1) is not null as exists', [table]);
    if (!rows[0]?.exists) return 0;
    const found = await client.query<{ version: number }>(`select coalesce(max(version), 0) as version from ${table}`);
    return found.rows[0]?.version ?? 0;
  }

  private async isEmpty(client: pg.ClientBase): Promise<boolean> {
    const { rowCount } = await client.query(
      `select from pg_namespace n where nspname = $1 and not exists (
         select from pg_class where relnamespace = n.oid
         union all select from pg_proc where pronamespace = n.oid
         union all select from pg_type where typnamespace = n.oid
       )`,
      [this.database.schema],
    );
    return rowCount === 1;
  }

  /** One transaction, alone among all migrators of this schema, with the schema as its search path. */
  private async underLock(work: (client: pg.ClientBase) => Promise<void>): Promise<void> {
    const { schema, quotedSchema } = this.database;
    await this.database.transaction(async (executor) => {
      const client = executor as pg.PoolClient;
      await client.query('select pg_advisory_xact_lock(hashtextextended($1, 0))', [`millrace:migrate:${schema}`]);
      await client.query(`select set_config('search_path', $1, true)`, [quotedSchema]);
      await work(client);
    });
  }

  private async translated<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw translateError(error, this.database.schema);
    }
  }
}

const read = (file: string): string => readFileSync(new URL(`./migrations/${file}`, import.meta.url), 'utf8');

function openDatabase(asked: JobsMigratorOptions): Database {
  const { connection, dataSource, schema = 'jobs', waitForDatabaseMs = 0 } = asked;
  const options = { schema, preparedStatements: false };
  if (!Number.isSafeInteger(waitForDatabaseMs) || waitForDatabaseMs < 0 || waitForDatabaseMs >= 2 ** 31) {
    throw new InvalidOptionsError([`Expected waitForDatabaseMs to be milliseconds, got ${String(waitForDatabaseMs)}.`]);
  }
  // PostgreSQL cuts longer names, silently.
  if (!schema || Buffer.byteLength(schema) > 63 || schema.includes('\0') || /\p{Surrogate}/u.test(schema)) {
    throw new InvalidOptionsError([`Expected schema to be a string of 1 to 63 bytes, got "${schema.slice(0, 80)}".`]);
  }
  if (connection && !dataSource) return Database.fromConnection(connection, options);
  if (dataSource && !connection) return Database.fromDataSource(dataSource, options);
  throw new InvalidOptionsError([
    `Expected JobsMigrator to get either connection or dataSource, got ${connection ? 'both' : 'neither'}.`,
  ]);
}
