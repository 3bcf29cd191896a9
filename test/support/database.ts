// A database of its own for each spec, and the one way in which specs wait.
import { randomBytes } from 'node:crypto';
import pg from 'pg';

export interface TestDatabase {
  url: string;
  pool: pg.Pool;
  drop(): Promise<void>;
}

/** Makes a database on the run's server: an empty one, or a copy of another one. */
export async function createTestDatabase(template: string | null = null): Promise<TestDatabase> {
  const name = `test_${randomBytes(6).toString('hex')}`;
  const server = await connectToServer();
  await server.query(`create database ${name}${template ? ` template ${template}` : ''}`);
  const url = urlOf(name);
  const pool = new pg.Pool({ connectionString: url, max: 5 });
  // Specs cut connections on purpose.
  pool.on('error', () => undefined);
  const drop = async (): Promise<void> => {
    const kept = pool.totalCount - pool.idleCount;
    await dropDatabase(server, name);
    await server.end();
    if (kept > 0) throw new Error(`Expected the spec to release its clients, but ${kept} of its pool are checked out.`);
    await pool.end();
  };
  return { url, pool, drop };
}

const DROP_MS = 3_000;
const QUERY_CANCELED = '57014';

/**
 * A drop asks every process of the server to close its files, and waits until each has answered. Now and then one of PostgreSQL 18
 * sleeps through it, for up to a minute. A drop that begins again wakes it.
 */
async function dropDatabase(server: pg.Client, name: string): Promise<void> {
  await server.query(`set statement_timeout = ${DROP_MS}`);
  for (let tries = 0; ; tries++) {
    try {
      return void (await server.query(`drop database if exists ${name} with (force)`));
    } catch (error) {
      if ((error as { code?: string }).code !== QUERY_CANCELED || tries === 5) throw error;
      console.warn(`dropping ${name} took ${DROP_MS} ms: again`);
    }
  }
}

export function urlOf(database: string): string {
  const url = new URL(serverUrl());
  url.pathname = `/${database}`;
  return url.href;
}

/** A connection beside all databases of specs. */
export async function connectToServer(): Promise<pg.Client> {
  const client = new pg.Client(serverUrl());
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

function serverUrl(): string {
  const server = process.env.MILLRACE_TEST_URL;
  if (!server) throw new Error('Expected MILLRACE_TEST_URL, got nothing. Run the specs through `npm test`.');
  return server;
}

const RETRY_MS = 10;

/**
 * Repeats a check until it neither throws nor returns something falsy (a check made of `expect` ends with
 * `return true`), and returns what it returned; after `timeoutMs` it fails with the last reason.
 */
export async function eventually<T>(
  check: () => T | Promise<T>,
  { timeoutMs = 10_000 } = {},
): Promise<Exclude<T, false | null | undefined>> {
  const deadline = Date.now() + timeoutMs;
  let known: unknown;
  for (;;) {
    const { value, failure } = await attempt(check, deadline, known);
    if (value) return value as Exclude<T, false | null | undefined>;
    if (Date.now() >= deadline) {
      const reason = failure === undefined ? `it returned ${String(value)}` : reasonOf(failure);
      const message = `Expected this check to pass within ${timeoutMs} ms: ${reason}\n${check.toString()}`;
      throw new Error(message, failure === undefined ? {} : { cause: failure });
    }
    known = failure;
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

/** The deadline cut the last try off: an earlier reason says more. */
const SILENCE = new Error('it did not answer');

async function attempt<T>(
  check: () => T | Promise<T>,
  deadline: number,
  known: unknown,
): Promise<{ value?: T | null; failure?: unknown }> {
  let timer: NodeJS.Timeout | undefined;
  const silence = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(SILENCE), Math.max(deadline - Date.now(), RETRY_MS));
  });
  try {
    return { value: await Promise.race([check(), silence]) };
  } catch (failure) {
    return failure === SILENCE ? { failure: known ?? SILENCE } : { failure };
  } finally {
    clearTimeout(timer);
  }
}

const reasonOf = (failure: unknown): string => (failure instanceof Error ? failure.message : String(failure));
