// A database of its own for each spec, and the one way in which specs wait.
import { randomBytes } from 'node:crypto';
import pg from 'pg';

export interface TestDatabase {
  url: string;
  pool: pg.Pool;
  drop(): Promise<void>;
}

/** Makes an empty database on the run's server. */
export async function createTestDatabase(): Promise<TestDatabase> {
  const server = process.env.MILLRACE_TEST_URL;
  if (!server) throw new Error('Expected MILLRACE_TEST_URL, got nothing. Run the specs through `npm test`.');
  const name = `test_${randomBytes(6).toString('hex')}`;
  await onServer(server, `create database ${name}`);
  const url = new URL(server);
  url.pathname = `/${name}`;
  const pool = new pg.Pool({ connectionString: url.href, max: 5 });
  // Specs cut connections on purpose.
  pool.on('error', () => undefined);
  const drop = async (): Promise<void> => {
    const kept = pool.totalCount - pool.idleCount;
    await onServer(server, `drop database ${name} with (force)`);
    if (kept > 0) throw new Error(`Expected the spec to release its clients, but ${kept} of its pool are checked out.`);
    await pool.end();
  };
  return { url: url.href, pool, drop };
}

async function onServer(url: string, sql: string): Promise<void> {
  const client = new pg.Client(url);
  await client.connect();
  try {
    await client.query(sql);
  } finally {
    await client.end();
  }
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
