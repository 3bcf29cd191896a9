// How connections are opened: what pg is told beside what the application says.
import pg from 'pg';
import { InvalidOptionsError } from '../jobs.errors.js';

/** A peer that vanished silently is noticed within 20 s instead of two hours, as long as nothing is under way. */
const KEEP_ALIVE = { keepAlive: true, keepAliveInitialDelayMillis: 10_000 };
/** pg's pool takes it for the wait for a free connection, too. */
const POOL_CONNECT_MS = 30_000;
const CONNECT_MS = 10_000;
const GOODBYE_MS = 2_000;
const DEFAULT_POOL: pg.PoolConfig = {
  max: 10,
  application_name: 'millrace',
  connectionTimeoutMillis: POOL_CONNECT_MS,
  ...KEEP_ALIVE,
};
const CONNECTION_SETTINGS = [
  'connectionString',
  'host',
  'port',
  'user',
  'password',
  'database',
  'ssl',
  'stream',
  'options',
  'application_name',
  'connectionTimeoutMillis',
  'keepAlive',
  'keepAliveInitialDelayMillis',
] as const satisfies (keyof pg.ClientConfig)[];

/** For a pool. @throws InvalidOptionsError */
export function poolConfig(config: pg.PoolConfig): pg.PoolConfig {
  refuseUnreadable(config);
  return { ...DEFAULT_POOL, ...config, ...secretsOf(config) };
}

/** For one connection outside the pool, which must not wait for long: its caller tries again. */
export function singleConnection(config: pg.ClientConfig): pg.ClientConfig {
  const connectionTimeoutMillis = Math.min(config.connectionTimeoutMillis || CONNECT_MS, CONNECT_MS);
  return { ...config, ...secretsOf(config), ...KEEP_ALIVE, connectionTimeoutMillis };
}

/** For another thread; null where settings hold what cannot be handed over (functions, streams). */
export function portable(config: pg.ClientConfig): pg.ClientConfig | null {
  try {
    return structuredClone(Object.fromEntries(CONNECTION_SETTINGS.map((key) => [key, config[key]])));
  } catch {
    return null;
  }
}

/**
 * A URL that is none (a port in letters, a certificate that is not there) is found by pg only when it makes a client.
 * @throws InvalidOptionsError without the URL, and without a cause that could hold it
 */
function refuseUnreadable(config: pg.PoolConfig): void {
  try {
    new pg.Client(config);
  } catch (error) {
    throw new InvalidOptionsError([
      `Expected connection to be a PostgreSQL URL or a pg pool configuration, got one that pg cannot use: ` +
        `${(error as Error).message}.`,
    ]);
  }
}

/** pg keeps passwords and keys out of spreads by making them non-enumerable. */
const secretsOf = (config: pg.PoolConfig): pg.PoolConfig => ({
  ...(config.password !== undefined && { password: config.password }),
  ...(config.ssl !== undefined && { ssl: config.ssl }),
});

/** The connections that each pool has open, also those that it has dropped and that have yet to close. */
const opened = new WeakMap<pg.Pool, Set<pg.ClientBase>>();

/**
 * Keeps account of a pool's connections, and hears their errors. A connection that dies in the very message that opens it (the
 * server was told to terminate it) says so before its caller can listen, and an error without a listener ends the process.
 * Returns how to stop.
 */
export function watchConnections(pool: pg.Pool): () => void {
  const connections = opened.get(pool) ?? new Set();
  opened.set(pool, connections);
  const onConnect = (client: pg.PoolClient): void => {
    connections.add(client);
    client.on('error', noop);
    client.once('end', () => connections.delete(client));
  };
  pool.on('connect', onConnect);
  return () => void pool.off('connect', onConnect);
}

const noop = (): void => undefined;

/**
 * Ends a pool and waits until its connections have closed. Those whose peer does not answer, which would keep the process for
 * minutes, are cut: pg's pool asks the server to end them and forgets them.
 */
export async function endWithin(pool: pg.Pool, end: () => Promise<void>): Promise<void> {
  const { _clients: clients } = pool as unknown as { _clients?: pg.ClientBase[] };
  const connections = new Set([...(clients ?? []), ...(opened.get(pool) ?? [])]);
  const timer = setTimeout(() => connections.forEach(destroySocket), GOODBYE_MS);
  try {
    await end();
    await Promise.all([...connections].map((client) => closed(client)));
  } finally {
    clearTimeout(timer);
  }
}

interface Stream {
  closed: boolean;
  destroy(): void;
  once(event: 'close', listener: () => void): void;
}

const streamOf = (client: pg.ClientBase): Stream | undefined =>
  (client as unknown as { connection?: { stream?: Stream } }).connection?.stream;

async function closed(client: pg.ClientBase): Promise<void> {
  const stream = streamOf(client);
  if (stream && !stream.closed) await new Promise<void>((resolve) => stream.once('close', resolve));
}

/** Hangs up. */
export function destroySocket(client: pg.ClientBase): void {
  streamOf(client)?.destroy();
}
