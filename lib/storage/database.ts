// The one gate to PostgreSQL: runs statements on the library's pool, on an application's DataSource, or on whatever
// connection the caller hands in.
import { createHash } from 'node:crypto';
import { inspect } from 'node:util';
import pg from 'pg';
import type { DataSource } from 'typeorm';
import type { QueryExecutor } from '../interfaces/job.interface.js';
import { DatabaseUnavailableError, InvalidOptionsError } from '../jobs.errors.js';
import { refuseIfOver, translateError } from './database.errors.js';
import { rowTypes } from './row.types.js';

/** A statement of the library: its text depends on nothing but the (quoted) schema. */
export interface Statement<Row> {
  readonly name: string;
  readonly text: (schema: string) => string;
  /** Only carries the row's type. */
  readonly row?: Row;
}

/** Declares a statement; see storage/statements. */
export const statement = <Row>(name: string, text: (schema: string) => string): Statement<Row> => ({ name, text });

/** Quotes an SQL identifier, whatever it contains. */
export const quoteIdentifier = (name: string): string => `"${name.replaceAll('"', '""')}"`;

export interface DatabaseOptions {
  schema: string;
  preparedStatements: boolean;
}

interface Compiled {
  name: string | undefined;
  text: string;
}

const DEFAULT_POOL: pg.PoolConfig = { max: 10, application_name: 'millrace', keepAlive: true };
const RETRY_CONNECT_MS = 250;
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
] as const satisfies (keyof pg.ClientConfig)[];

export class Database {
  readonly schema: string;
  /** The schema's name, quoted for SQL. */
  readonly quotedSchema: string;
  /** Where NOTIFY and LISTEN meet; a hash, because a channel's name is at most 63 bytes long. */
  readonly channel: string;
  private readonly compiled = new Map<Statement<unknown>, Compiled>();
  /** Where statements run that name no executor; none: on the pool. */
  private bound: QueryExecutor | undefined;
  /** Whether statements are prepared under names. */
  named: boolean;

  private constructor(
    readonly pool: pg.Pool,
    private readonly ownsPool: boolean,
    options: DatabaseOptions,
    /** The application's, where the pool is. */
    readonly dataSource: DataSource | null,
  ) {
    this.schema = options.schema;
    this.named = options.preparedStatements;
    this.quotedSchema = quoteIdentifier(options.schema);
    // Between two users a connection has no listener of the pool's either: its end may come with its last answer.
    pool.on('connect', listen);
    this.channel = `millrace_${createHash('md5').update(options.schema).digest('hex')}`;
  }

  /** A database with a pool of its own, which `close()` ends. @throws InvalidOptionsError */
  static fromConnection(connection: string | pg.PoolConfig, options: DatabaseOptions): Database {
    const config = typeof connection === 'string' ? { connectionString: connection } : connection;
    refuseUnreadable(config);
    const pool = new pg.Pool({ ...DEFAULT_POOL, ...config, ...secretsOf(config) });
    // An idle connection that breaks must not end the process; the next query gets a new one.
    pool.on('error', unheard);
    return new Database(pool, true, options, null);
  }

  /** A database that shares the pool of an initialised TypeORM DataSource. */
  static fromDataSource(dataSource: DataSource, options: DatabaseOptions): Database {
    const pool = (dataSource.driver as { master?: pg.Pool }).master;
    if (dataSource.options.type !== 'postgres' || !pool) {
      throw new InvalidOptionsError([
        `Expected dataSource to be an initialised TypeORM DataSource of type "postgres", got type ` +
          `"${dataSource.options.type}"${pool ? '' : ' that is not initialised'}.`,
      ]);
    }
    return new Database(pool, false, options, dataSource);
  }

  /** The same database, seen from inside a transaction: everything runs on `executor`. */
  on(executor: QueryExecutor): Database {
    const view = Object.create(this) as Database;
    view.bound = executor;
    return view;
  }

  /**
   * Runs a statement, on `executor` if one is given (in its transaction), else on the pool.
   * @throws TransactionOverError, MissingPrivilegesError, DatabaseUnavailableError, SchemaOutdatedError
   */
  async run<Row>(statement: Statement<Row>, values: unknown[], executor = this.bound): Promise<Row[]> {
    const { name, text } = this.compile(statement);
    try {
      if (!executor) return rowsOf(await this.pool.query({ name, text, values, types: rowTypes }));
      refuseIfOver(executor);
      return await runOn<Row>(executor, { name, text, values });
    } catch (error) {
      throw translateError(error, this.schema);
    }
  }

  /** Runs `work` in a transaction of its own, or in `executor`'s if one is given. */
  async transaction<T>(work: (executor: QueryExecutor) => Promise<T>, executor = this.bound): Promise<T> {
    if (executor) return work(executor);
    const client = await this.connect();
    let broken: Error | undefined;
    // Between two statements a connection that breaks has nobody else to tell; unheard, it would end the process.
    const onError = (error: Error): void => void (broken = error);
    client.on('error', onError);
    try {
      await client.query('begin');
      const result = await work(client);
      await client.query('commit');
      return result;
    } catch (error) {
      await client.query('rollback').catch((failure: Error) => (broken = failure));
      throw translateError(error, this.schema);
    } finally {
      client.off('error', onError);
      client.release(broken);
    }
  }

  /**
   * Waits until the database answers, at most so long.
   * @throws DatabaseUnavailableError with the last failure as its cause
   */
  async waitUntilReachable(timeoutMs: number): Promise<void> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const failure = await this.pool.query('select 1').then(
        () => null,
        (error: unknown) => translateError(error, this.schema),
      );
      if (!failure) return;
      if (!(failure instanceof DatabaseUnavailableError) || Date.now() + RETRY_CONNECT_MS > deadline) throw failure;
      await new Promise((resolve) => setTimeout(resolve, RETRY_CONNECT_MS));
    }
  }

  /** Settings for a connection outside the pool. */
  connectionConfig(): pg.ClientConfig {
    const options = this.pool.options;
    return { ...options, ...secretsOf(options), keepAlive: true };
  }

  /** The same for another thread; null where settings hold what cannot be handed over (functions, streams). */
  portableConfig(): pg.ClientConfig | null {
    const config = this.connectionConfig();
    const portable = Object.fromEntries(CONNECTION_SETTINGS.map((key) => [key, config[key]]));
    try {
      return structuredClone({ ...portable, keepAlive: true });
    } catch {
      return null;
    }
  }

  /** A statement as pg takes it, for a connection that is not ours to query. */
  describe(statement: Statement<unknown>, values: unknown[]): { text: string; values: unknown[] } {
    return { text: this.compile(statement).text, values };
  }

  /** Ends the pool if it is the library's own. */
  async close(): Promise<void> {
    if (!this.bound) this.pool.off('connect', listen);
    if (this.ownsPool && !this.bound && !this.pool.ended) await this.pool.end();
  }

  /** Logged by mistake, it shows no connection string. */
  toJSON(): object {
    return { schema: this.schema };
  }

  [inspect.custom](): string {
    return `Database ${inspect(this.toJSON())}`;
  }

  private async connect(): Promise<pg.PoolClient> {
    try {
      return await this.pool.connect();
    } catch (error) {
      throw translateError(error, this.schema);
    }
  }

  private compile(statement: Statement<unknown>): Compiled {
    let compiled = this.compiled.get(statement);
    if (!compiled) {
      const text = statement.text(this.quotedSchema);
      // The text's hash keeps two schemas, or two versions of the library, apart on a shared connection.
      const hash = createHash('md5').update(text).digest('hex').slice(0, 12);
      compiled = { name: this.named ? `millrace_${statement.name}_${hash}` : undefined, text };
      this.compiled.set(statement, compiled);
    }
    return compiled;
  }
}

const unheard = (): void => undefined;
const listen = (client: pg.PoolClient): void => void client.on('error', unheard);

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

const rowsOf = <Row>(result: { rows: unknown[] }): Row[] => result.rows as Row[];

/** Named statements and our own type parsing where the connection is pg's; the plain call where it is not. */
async function runOn<Row>(executor: QueryExecutor, query: { name?: string; text: string; values: unknown[] }) {
  const client = await pgClientOf(executor);
  if (client) return rowsOf<Row>(await client.query({ ...query, types: rowTypes }));
  const answer: unknown = await executor.query(query.text, query.values);
  return (Array.isArray(answer) ? answer : ((answer as { rows?: unknown[] } | undefined)?.rows ?? [])) as Row[];
}

/** The pg client behind an executor: itself, or the one a TypeORM transaction runs on. */
async function pgClientOf(executor: QueryExecutor): Promise<pg.ClientBase | null> {
  const { queryRunner } = executor as { queryRunner?: { connect?: () => Promise<unknown> } };
  const runner = queryRunner ?? (executor as { connect?: () => Promise<unknown> });
  if (isPg(executor)) return executor as unknown as pg.ClientBase;
  if (typeof runner.connect !== 'function' || !('isTransactionActive' in runner)) return null;
  const client = await runner.connect();
  return isPg(client) ? (client as pg.ClientBase) : null;
}

const isPg = (candidate: unknown): boolean =>
  typeof candidate === 'object' &&
  candidate !== null &&
  ('connectionParameters' in candidate || ('totalCount' in candidate && 'idleCount' in candidate));
