import { readdirSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import {
  createJobManager,
  DatabaseUnavailableError,
  JobsMigrator,
  MissingPrivilegesError,
  SchemaOutdatedError,
  SchemaTooNewError,
} from '../../lib/index.js';
import { MIGRATIONS } from '../../lib/storage/migration.files.js';
import { createTestDatabase } from '../support/database.js';

type TestDatabase = Awaited<ReturnType<typeof createTestDatabase>>;
let database: TestDatabase;

beforeEach(async () => {
  database = await createTestDatabase();
});
afterEach(() => database.drop());

const schemas = async (): Promise<string[]> =>
  (
    await database.pool.query(`select nspname from pg_namespace where nspname !~ '^(pg_.*|information_schema|public)$'`)
  ).rows.map(({ nspname }) => nspname as string);

const migrating = async <T>(work: (migrator: JobsMigrator) => Promise<T>, schema?: string): Promise<T> => {
  const migrator = new JobsMigrator({ connection: database.url, ...(schema !== undefined && { schema }) });
  try {
    return await work(migrator);
  } finally {
    await migrator.close();
  }
};

describe('migrate (migrate)', () => {
  it('can be called any number of times', async () => {
    const versions = await migrating(async (migrator) => {
      const before = await migrator.version();
      await migrator.migrate();
      await migrator.migrate();
      return [before, await migrator.version()];
    });
    expect(versions).toEqual([0, expect.any(Number)]);
    expect(versions[1]).toBeGreaterThan(0);
  });

  it('is applied once when ten processes start at once', async () => {
    await Promise.all(Array.from({ length: 10 }, () => migrating((migrator) => migrator.migrate())));
    const folders = readdirSync(new URL('../../lib/storage/migrations', import.meta.url));
    const shipped = folders.filter((name) => /^\d{4}_\w+$/.test(name)).map((name) => Number(name.slice(0, 4)));
    expect(shipped.length).toBeGreaterThan(0);
    const applied = await database.pool.query('select version from jobs.migrations order by version');
    expect(applied.rows.map(({ version }) => version as number)).toEqual(shipped);
  });

  it('says what to do with the structure of its tables alone, as a dump without data leaves it', async () => {
    await migrating((migrator) => migrator.migrate());
    await database.pool.query('delete from jobs.migrations');
    const failure = await migrating((migrator) => migrator.migrate()).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(SchemaOutdatedError);
    expect((failure as Error).message).toMatch(/record of its migrations, .*pg_dump -s.*drop the schema/);
    expect((await database.pool.query('select from jobs.migrations')).rowCount).toBe(0);
  });

  it.each([
    ['a table', 'create table jobs.job_queues ()'],
    ['a function', 'create function jobs.storable(at timestamptz) returns int language sql as $$ select 1 $$'],
    ['a type', `create type jobs.job_outcome as enum ()`],
  ])('says that names of its own are taken by others (%s), and leaves nothing half-done', async (_what, ddl) => {
    await database.pool.query(`create schema jobs; ${ddl}`);
    const objects = `select count(*)::int from pg_class where relnamespace = 'jobs'::regnamespace and relname !~ '^migrations'`;
    const before = (await database.pool.query(objects)).rows;
    const failure = await migrating((migrator) => migrator.migrate()).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(SchemaOutdatedError);
    expect((failure as Error).message).toMatch(/to be free in schema "jobs", got: .*already exists.*schema of its own/);
    expect((await database.pool.query(objects)).rows).toEqual(before);
  });

  it('names each file of the folder once, in the order of the numbers', () => {
    const folder = new URL('../../lib/storage/migrations/', import.meta.url);
    const files = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.sql'));
    const named = MIGRATIONS.flatMap(({ up, down }) => [...up(), ...down()]).map(({ pathname }) =>
      pathname.split('/').slice(-2).join('/'),
    );
    expect(named).toEqual(files.map((file) => file.replaceAll('\\', '/')).sort());
  });

  it('quotes the schema’s name', async () => {
    const schema = `my "Jobs"; drop schema public --`;
    const jobs = await createJobManager({ connection: database.url, schema });
    await jobs.addJob('x', 1, { queue: 'q' });
    expect(await jobs.getJobs('worker-0001')).toHaveLength(1);
    await jobs.close();
    expect(await schemas()).toEqual([schema]);
  });

  it('keeps two schemas of one database apart', async () => {
    const [a, b] = await Promise.all(
      ['a', 'b'].map((schema) => createJobManager({ connection: database.url, schema })),
    );
    await a!.addJob('x', 'in a');
    expect(await b!.getJobs('worker-0001')).toEqual([]);
    expect(await a!.getJobs('worker-0001')).toHaveLength(1);
    await Promise.all([a!.close(), b!.close()]);
  });

  it('leaves nothing half-done when a migration fails midway', async () => {
    await database.pool.query('create schema jobs; create table jobs.workers (x int)');
    await expect(migrating((migrator) => migrator.migrate())).rejects.toThrow('workers');
    expect((await database.pool.query(`select from pg_class where relname = 'job_bodies'`)).rowCount).toBe(0);
  });
});

describe('rollback (rollback)', () => {
  it('removes everything, its own version table too, any number of times', async () => {
    await migrating(async (migrator) => {
      await migrator.migrate();
      await migrator.rollback();
      await migrator.rollback();
      expect(await migrator.version()).toBe(0);
    });
    expect(await schemas()).toEqual([]);
  });

  it('keeps a schema in which another owner has a table', async () => {
    await database.pool.query('create schema jobs; create table jobs.mine ()');
    await migrating(async (migrator) => {
      await migrator.migrate();
      await migrator.rollback();
    });
    expect(
      (await database.pool.query(`select relname from pg_class where relnamespace = 'jobs'::regnamespace`)).rows,
    ).toEqual([{ relname: 'mine' }]);
  });
});

describe('bad circumstances', () => {
  it('a schema that is behind is refused where migrate is off', async () => {
    await expect(createJobManager({ connection: database.url, migrate: false })).rejects.toThrow(SchemaOutdatedError);
  });

  it('a schema that is newer than the library is refused', async () => {
    await migrating((migrator) => migrator.migrate());
    await database.pool.query(`insert into jobs.migrations (version, name) values (9999, 'future')`);
    for (const migrate of [true, false]) {
      await expect(createJobManager({ connection: database.url, migrate })).rejects.toThrow(SchemaTooNewError);
    }
    await expect(migrating((migrator) => migrator.rollback())).rejects.toThrow(SchemaTooNewError);
  });

  it('a role without the right to create a schema is told so', async () => {
    const role = `weak_${Date.now()}`;
    await database.pool.query(`create role ${role} login`);
    const url = new URL(database.url);
    url.username = role;
    await expect(createJobManager({ connection: url.href })).rejects.toThrow(MissingPrivilegesError);
    await database.pool.query(`drop role ${role}`);
  });

  it('a wrong connection is told so, without its password', async () => {
    const url = new URL(database.url);
    url.port = '1';
    url.password = 'secret-password';
    const failure = await createJobManager({ connection: url.href }).catch((error: unknown) => error as Error);
    expect(failure).toBeInstanceOf(DatabaseUnavailableError);
    expect((failure as Error).message).not.toContain('secret-password');
    url.port = new URL(database.url).port;
    url.pathname = '/no_such_database';
    await expect(createJobManager({ connection: url.href })).rejects.toThrow(DatabaseUnavailableError);
  });
});
