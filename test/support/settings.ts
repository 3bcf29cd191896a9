// A database whose sessions begin with settings that are not PostgreSQL's own: those of the database, of the role that
// connects, or of the connection itself.
import { createTestDatabase, type TestDatabase } from './database.js';

export const LEVELS = ['database', 'role', 'session'] as const;
export type Level = (typeof LEVELS)[number];
export type Settings = Record<string, string>;

export interface SetDatabase {
  /** Of a role that may create schemas and is no superuser. */
  url: string;
  /** Runs SQL as a superuser, on connections that began without the settings. */
  sql: <Row extends Record<string, any> = Record<string, any>>(text: string, values?: unknown[]) => Promise<Row[]>;
  drop(): Promise<void>;
}

export async function createSetDatabase(level: Level, settings: Settings): Promise<SetDatabase> {
  const database = await createTestDatabase();
  const name = new URL(database.url).pathname.slice(1);
  const role = `r_${name}`;
  const run = (text: string): Promise<unknown> => database.pool.query(text);
  await run(`create role ${role} login; grant create, temporary on database ${name} to ${role}`);
  const url = new URL(database.url);
  url.username = role;
  if (level === 'session') url.searchParams.set('options', optionsOf(settings));
  const target = level === 'database' ? `database ${name}` : `role ${role} in database ${name}`;
  for (const [setting, value] of level === 'session' ? [] : Object.entries(settings)) {
    await run(`alter ${target} set ${setting} = ${literal(value)}`);
  }
  return {
    url: url.href,
    sql: async (text, values) => (await database.pool.query(text, values)).rows,
    drop: () => drop(database, role),
  };
}

async function drop(database: TestDatabase, role: string): Promise<void> {
  await database.pool.query(`drop owned by ${role} cascade; drop role ${role}`);
  await database.drop();
}

/** Lists and names of schemas are more than one word. */
const literal = (value: string): string => (/^".*"$/.test(value) ? value : `'${value.replaceAll("'", "''")}'`);

const optionsOf = (settings: Settings): string =>
  Object.entries(settings)
    .map(([name, value]) => `-c ${name}=${value.replaceAll(/[\\ ]/g, String.raw`\$&`)}`)
    .join(' ');
