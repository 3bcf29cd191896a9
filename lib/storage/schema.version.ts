// Which version of the schema this release works with, and what a process says that meets another one.
import { MIGRATIONS } from './migration.files.js';

/** The version of the schema that this version of the library works with. */
export const SCHEMA_VERSION = MIGRATIONS.at(-1)!.version;

/** The highest version in the table of migrations that this version of the library cannot work with, or null. */
export const newerSchema = (quotedSchema: string): string => `
  select max(m.version) from ${quotedSchema}.migrations m
  where m.version > ${SCHEMA_VERSION}
    and coalesce((to_jsonb(m) ->> 'compatible_from')::integer, m.version) > ${SCHEMA_VERSION}`;

export const renamed = (schema: string): string =>
  `Expected schema "${schema}" to be the one that its functions were made in: it has been renamed. Run the migrations, which ` +
  'set it right: migrate: true, or JobsMigrator.migrate().';

/** What a process says that meets a schema which it does not know. */
export const tooNew = (schema: string, version: number): string =>
  `Expected schema "${schema}" at version ${SCHEMA_VERSION} or one that is compatible with it, got ${version}: a newer ` +
  'millrace has migrated it. Update this process to that release, or give it a schema of its own.';

/** What a migration says that finds the library's own objects, and no record of them. */
export const unrecorded = (schema: string): string =>
  `Expected schema "${schema}" to have a record of its migrations, got the library's tables without one, as a dump of the ` +
  `structure alone leaves them (pg_dump -s). Restore the rows of "${schema}".migrations as well, or drop the schema and run ` +
  'the migrations.';

/** What a migration says that finds objects of others. */
export const takenBefore = (schema: string, migration: string, cause: unknown): string =>
  `Expected the names that migration ${migration} uses to be free in schema "${schema}", got: ` +
  `${cause instanceof Error ? cause.message : String(cause)}. Give the library a schema of its own (option "schema").`;
