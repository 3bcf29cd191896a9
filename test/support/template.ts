// One database of the run with the library's tables in it: a copy takes a fifth of the time of the migration.
import { randomBytes } from 'node:crypto';
import { JobsMigrator } from '../../lib/index.js';
import type pg from 'pg';
import { connectToServer, urlOf } from './database.js';

/** The template's name, once this file has seen it. */
let known: Promise<string> | undefined;

/** Its name; null through a pooler, which keeps connections to databases that nothing may be connected to. */
export async function migratedTemplate(): Promise<string | null> {
  if (process.env.MILLRACE_TEST_DIRECT_URL) return null;
  return (known ??= findOrMake(process.env.MILLRACE_TEST_TEMPLATE!));
}

async function findOrMake(name: string): Promise<string> {
  const server = await connectToServer();
  try {
    const { rowCount } = await server.query('select from pg_database where datname = $1', [name]);
    if (!rowCount) await make(name, server);
  } finally {
    await server.end();
  }
  return name;
}

/** Under another name until it is complete: where several files make it at once, the first one's is the run's. */
async function make(name: string, server: pg.Client): Promise<void> {
  const draft = `draft_${randomBytes(6).toString('hex')}`;
  await server.query(`create database ${draft}`);
  const migrator = new JobsMigrator({ connection: urlOf(draft) });
  await migrator.migrate();
  await migrator.close();
  try {
    await server.query(`alter database ${draft} rename to ${name}`);
  } catch (error) {
    await server.query(`drop database ${draft} with (force)`);
    if ((error as { code?: string }).code !== DUPLICATE_DATABASE) throw error;
  }
}

const DUPLICATE_DATABASE = '42P04';
