// How a database is reached, in types of the library's own: without @types/pg those of pg would be `any` to users.
import type { Duplex } from 'node:stream';
import type { ConnectionOptions } from 'node:tls';

/** What the `Client` of pg takes, and is handed on to it; see https://node-postgres.com/apis/client. */
export interface PgClientOptions {
  user?: string | undefined;
  database?: string | undefined;
  password?: string | (() => string | Promise<string>) | undefined;
  port?: number | undefined;
  host?: string | undefined;
  /** A PostgreSQL URL. */
  connectionString?: string | undefined;
  keepAlive?: boolean | undefined;
  keepAliveInitialDelayMillis?: number | undefined;
  stream?: (() => Duplex | undefined) | undefined;
  ssl?: boolean | ConnectionOptions | undefined;
  sslnegotiation?: 'postgres' | 'direct' | undefined;
  enableChannelBinding?: boolean | undefined;
  statement_timeout?: false | number | undefined;
  query_timeout?: number | undefined;
  lock_timeout?: number | undefined;
  idle_in_transaction_session_timeout?: number | undefined;
  application_name?: string | undefined;
  fallback_application_name?: string | undefined;
  connectionTimeoutMillis?: number | undefined;
  types?: { getTypeParser: (...args: any[]) => any } | undefined;
  options?: string | undefined;
  client_encoding?: string | undefined;
  pipeline?: boolean | undefined;
}

/** What the `Pool` of pg takes, and is handed on to it; see https://node-postgres.com/apis/pool. */
export interface PgPoolOptions extends PgClientOptions {
  max?: number | undefined;
  min?: number | undefined;
  idleTimeoutMillis?: number | null | undefined;
  log?: ((...messages: any[]) => void) | undefined;
  Promise?: PromiseConstructorLike | undefined;
  allowExitOnIdle?: boolean | undefined;
  maxUses?: number | undefined;
  maxLifetimeSeconds?: number | undefined;
  Client?: (new (...args: any[]) => any) | undefined;
  onConnect?: ((client: any) => void) | undefined;
  verify?: ((client: any, done: (error?: Error) => void) => void) | undefined;
}
