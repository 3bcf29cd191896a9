// Brings the library's schema up to date, or takes it down again: plain SQL files, each in one transaction under one
// advisory lock, so that any number of processes may start at once.
import type pg from 'pg';
import { MissingPrivilegesError, SchemaOutdatedError, SchemaTooNewError } from '../jobs.errors.js';
import { pause } from '../timing.js';
import { retryOnContention } from './retry.js';
import { isContention, isDuplicateObject } from './sql.states.js';
import { Database } from './database.js';
import { MIGRATIONS, readSql, type Migration } from './migration.files.js';
import { grantRights, revokeRights, type RoleKind } from './role.rights.js';
import { newerSchema, renamed, SCHEMA_VERSION, takenBefore, tooNew, unrecorded } from './schema.version.js';
import { type JobsMigratorOptions, openDatabase } from './migrator.options.js';

/**
 * How long a migration waits for a table that others use. Statements that queue behind it wait as long as it does, so
 * it gives up soon, lets them pass and tries again.
 */
const LOCK_TIMEOUT_MS = 2_000;
const LOCK_TRIES = 60;
const LOCK_PAUSE_MS = 1_000;

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
   * Applies what is missing; does nothing where nothing is. Any number of processes may call it at once, while others
   * enqueue and work. What was interrupted leaves nothing half-done and is repeated by the next call.
   * @throws SchemaTooNewError, MissingPrivilegesError, DatabaseUnavailableError, SchemaOutdatedError where a migration
   *   cannot lock its tables for minutes, because transactions that use them stay open
   */
  async migrate(): Promise<void> {
    if (this.waitForDatabaseMs) return this.database.whenReachable(this.waitForDatabaseMs, () => this.migrateNow());
    return this.migrateNow();
  }

  private async migrateNow(): Promise<void> {
    // The common start: nothing to do, no lock, no right to create anything needed.
    if ((await this.version()) >= SCHEMA_VERSION) {
      if (await this.isRenamed()) await this.asOwner(() => this.underLock((client) => this.followRename(client)));
      return void (await this.refuseNewer());
    }
    await this.asOwner(async () => {
      await this.underLock((client) => this.prepare(client));
      for (const migration of MIGRATIONS) await this.applyPatiently(migration);
    });
    await this.refuseNewer();
  }

  private async asOwner(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      throw error instanceof MissingPrivilegesError ? this.mayNotMigrate(error) : error;
    }
  }

  /** The rights that `grant` gives are for processes that use the tables; none of them may create or alter them. */
  private mayNotMigrate({ cause }: MissingPrivilegesError): MissingPrivilegesError {
    const { schema } = this.database;
    const reason = cause instanceof Error ? cause.message : String(cause);
    return new MissingPrivilegesError(
      `The database's role may not migrate schema "${schema}": ${reason}. Run \`npx millrace migrate\` as a role that may ` +
        'create schemas (grant create on database … to …), or as the owner of the tables where there are some already; ' +
        'then start this process with migrate: false, and give its role its rights by `npx millrace grant`.',
      { cause },
    );
  }

  /** Removes everything the library has created, its version table included; the schema too if nothing else is in it. */
  async rollback(): Promise<void> {
    await this.underLock(async (client) => {
      const applied = await this.versionOn(client);
      // How to undo a newer one, only its release knows.
      if (applied > SCHEMA_VERSION) throw new SchemaTooNewError(this.tooNew(applied));
      for (const { version, down } of MIGRATIONS.toReversed()) {
        if (version <= applied) await client.query(readSql(down));
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
    return this.looking((client) => this.versionOn(client));
  }

  /**
   * Checks without changing anything.
   * @throws SchemaOutdatedError where migrations are missing, SchemaTooNewError where a newer version was here that has
   *   changed what this one needs
   */
  async assertCurrent(): Promise<void> {
    const version = await this.refuseNewer();
    if (version >= SCHEMA_VERSION && (await this.isRenamed()))
      throw new SchemaOutdatedError(renamed(this.database.schema));
    if (version >= SCHEMA_VERSION) return;
    throw new SchemaOutdatedError(
      `Expected schema "${this.database.schema}" at version ${SCHEMA_VERSION}, got ${version || 'no tables at all'}. ` +
        'Run the migrations first: `await new JobsMigrator({ connection, schema }).migrate()`, or set migrate: true.',
    );
  }

  /** Ends the pool that the migrator opened; a DataSource's is left alone. */
  close(): Promise<void> {
    return this.database.close();
  }

  /** Functions look for tables in the schema that they were made in: after a rename, that is another one or none. */
  private async isRenamed(): Promise<boolean> {
    const { rowCount } = await this.looking((client) =>
      client.query(
        `select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
         where n.nspname = $1 and p.proname = 'claim_plain_jobs'
           and not exists (
             select from unnest(p.proconfig) as setting
             where setting in ($2, 'search_path=' || quote_ident($1) || ', pg_temp')
           )`,
        [this.database.schema, `search_path=${this.searchPath}`],
      ),
    );
    return rowCount !== 0;
  }

  private async followRename(client: pg.ClientBase): Promise<void> {
    const { rows } = await client.query<{ name: string }>(
      `select p.oid::regprocedure::text as name from pg_proc p join pg_namespace n on n.oid = p.pronamespace
       where n.nspname = $1 and exists (select from unnest(p.proconfig) as setting where setting like 'search_path=%')`,
      [this.database.schema],
    );
    for (const { name } of rows) await client.query(`alter function ${name} set search_path = ${this.searchPath}`);
  }

  private get searchPath(): string {
    return `${this.database.quotedSchema}, pg_temp`;
  }

  private async refuseNewer(): Promise<number> {
    const version = await this.version();
    if (version <= SCHEMA_VERSION) return version;
    const { rows } = await this.looking((client) =>
      client.query<{ newer: number | null }>(`select (${newerSchema(this.database.quotedSchema)}) as newer`),
    );
    const newer = rows[0]?.newer;
    if (newer) throw new SchemaTooNewError(this.tooNew(newer));
    return version;
  }

  private tooNew(version: number): string {
    return tooNew(this.database.schema, version);
  }

  private async prepare(client: pg.ClientBase): Promise<void> {
    const { schema, quotedSchema } = this.database;
    const { rowCount } = await client.query('select from pg_namespace where nspname = $1', [schema]);
    if (!rowCount) await client.query(`create schema ${quotedSchema}`);
    await client.query(`create table if not exists ${quotedSchema}.migrations (
      version integer primary key, name text not null, applied_at timestamptz not null default now())`);
    // Null: no older version.
    await client.query(`alter table ${quotedSchema}.migrations add column if not exists compatible_from integer`);
  }

  /** Repeated where it met transactions that were in its way: it is one transaction itself, so nothing is half-done. */
  private async applyPatiently(migration: Migration): Promise<void> {
    for (let tries = 1; ; tries++) {
      try {
        return await this.underLock((client) => this.apply(client, migration));
      } catch (error) {
        if (isDuplicateObject(error)) throw await this.occupied(migration, error);
        if (!isContention(error)) throw error;
        if (tries === LOCK_TRIES) throw this.blocked(migration, error);
        await pause(LOCK_PAUSE_MS * Math.random());
      }
    }
  }

  private async apply(client: pg.ClientBase, { version, name, compatibleFrom, up }: Migration): Promise<void> {
    if ((await this.versionOn(client)) >= version) return;
    await client.query(`select set_config('lock_timeout', $1, true)`, [`${LOCK_TIMEOUT_MS}ms`]);
    await client.query(readSql(up));
    await client.query(
      `insert into ${this.database.quotedSchema}.migrations (version, name, compatible_from) values ($1, $2, $3)`,
      [version, name, compatibleFrom],
    );
  }

  private blocked({ name }: Migration, cause: unknown): SchemaOutdatedError {
    return new SchemaOutdatedError(
      `Migration ${name} of schema "${this.database.schema}" got no lock on its tables in ${LOCK_TRIES} tries, because ` +
        'transactions that use them stay open. Find them in pg_stat_activity (xact_start), end them, and start again.',
      { cause },
    );
  }

  private async occupied({ name }: Migration, cause: unknown): Promise<SchemaOutdatedError> {
    const { schema } = this.database;
    const { rowCount } = await this.looking((client) =>
      client.query(
        `select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
         where n.nspname = $1 and p.proname = 'claim_plain_jobs'`,
        [schema],
      ),
    );
    return new SchemaOutdatedError(rowCount ? unrecorded(schema) : takenBefore(schema, name, cause), { cause });
  }

  private async versionOn(client: pg.ClientBase): Promise<number> {
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
    const { schema } = this.database;
    await this.database.patientTransaction(async (executor) => {
      const client = executor as pg.PoolClient;
      // Others may migrate for longer than statements, or transactions that wait, may take here.
      await client.query(`select set_config(name, '0', true) from pg_settings where name = any($1)`, [TIMEOUTS]);
      await client.query('select pg_advisory_xact_lock(hashtextextended($1, 0))', [`millrace:migrate:${schema}`]);
      // Partitioned tables refuse a default tablespace that is the database's own.
      await client.query(
        `select set_config('search_path', $1, true), set_config('standard_conforming_strings', 'on', true),
           set_config('default_tablespace', coalesce(nullif(current_setting('default_tablespace'), t.spcname::text), ''), true)
         from pg_database d join pg_tablespace t on t.oid = d.dattablespace
         where d.datname = current_database()`,
        [this.searchPath],
      );
      await work(client);
    });
  }

  /** @throws RowsHeldError where another session has locked the table of versions for 10 s */
  private async looking<T>(work: (client: pg.PoolClient) => Promise<T>): Promise<T> {
    return retryOnContention(() => this.database.transaction((executor) => work(executor as pg.PoolClient)));
  }
}

const TIMEOUTS = ['statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout'];
