// The one gate to PostgreSQL: runs statements on the library's pool, on an application's DataSource, or on whatever
// connection the caller hands in.
import { createHash } from 'node:crypto';
import { inspect } from 'node:util';
import pg from 'pg';
import type { DataSource } from '../interfaces/typeorm.interface.js';
import type { QueryExecutor } from '../interfaces/job.interface.js';
import { DatabaseUnavailableError, InvalidOptionsError } from '../jobs.errors.js';
import { answeredWithin, pause } from '../timing.js';
import { mayAnswerSoon, refuseEnded, assertOpen, translateError } from './database.errors.js';
import { isConflict } from './sql.states.js';
import { awaitedTables, holdTables } from './awaited.tables.js';
import { endWithin, poolConfig, portable, singleConnection, watchConnections } from './connection.settings.js';
import { CallerTransaction } from './caller.transaction.js';
import { PoolSessions } from './pool.sessions.js';
import { Reachability } from './reachability.js';
import { rowsOf, runOn } from './executors.js';
import { rowTypes } from './row.types.js';
import { retryOnContention } from './retry.js';
import { failTransaction, markAndDrop, markTransaction, type Statement } from './statement.js';
import { atStart } from './at.start.js';

export { statement, type Statement, type StatementTraits } from './statement.js';

/** Quotes an SQL identifier, whatever it contains. */
export const quoteIdentifier = (name: string): string => `"${name.replaceAll('"', '""')}"`;

export interface DatabaseOptions {
  schema: string;
  preparedStatements: boolean;
}

interface Text {
  name: string | undefined;
  text: string;
}

interface Compiled {
  plain: Text;
  /** One that limits by itself how long it waits for locks; null: there is none. */
  limited: Text | null;
  /** One that does nothing outside of the call's transaction; null: it only reads, or does no harm. */
  within: Text | null;
}

const RETRY_CONNECT_MS = 250;
const MAX_RETRY_CONNECT_MS = 2_000;
const REPEATS = 3;
/** What the last of the tries at start gets for an answer. */
const LAST_TRY_MS = 250;

export class Database {
  readonly schema: string;
  /** The schema's name, quoted for SQL. */
  readonly quotedSchema: string;
  /** Where NOTIFY and LISTEN meet; a hash, because a channel's name is at most 63 bytes long. */
  readonly channel: string;
  private readonly compiled = new Map<Statement<unknown>, Compiled>();
  /** Where statements run that name no executor; none: on the pool. */
  private bound: QueryExecutor | undefined;
  /** Whether the database answers. */
  readonly reachability = new Reachability();
  private closing: Promise<void> | undefined;
  private readonly stopHearing: () => void;
  private readonly sessions: PoolSessions;
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
    this.channel = `millrace_${createHash('md5').update(options.schema).digest('hex')}`;
    this.stopHearing = watchConnections(pool);
    const onFailure = (reason: unknown): void => this.reachability.failed(reason);
    this.sessions = new PoolSessions(pool, (error) => this.explain(error), onFailure, ownsPool);
  }

  /** A database with a pool of its own, which `close()` ends. @throws InvalidOptionsError */
  static fromConnection(connection: string | pg.PoolConfig, options: DatabaseOptions): Database {
    const config = typeof connection === 'string' ? { connectionString: connection } : connection;
    const pool = new pg.Pool(poolConfig(config));
    // An idle connection that breaks must not end the process; the next query gets a new one.
    pool.on('error', () => undefined);
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

  /** Whether everything runs in a transaction that belongs to a caller. */
  get isBound(): boolean {
    return this.bound !== undefined;
  }

  /**
   * Runs a statement, on `executor` if one is given (in its transaction, which waits for as long as its lock_timeout says),
   * else on the pool, where it waits for each lock for 100 ms at most.
   * @throws RowsHeldError, TransactionOverError, MissingPrivilegesError, DatabaseUnavailableError, SchemaOutdatedError
   */
  async run<Row>(statement: Statement<Row>, values: unknown[], executor = this.bound): Promise<Row[]> {
    if (executor) return this.runOn(executor, statement, values);
    const onPool = (): Promise<Row[]> => this.runOnPool(statement, values);
    return statement.patient ? retryOnContention(onPool) : onPool();
  }

  private async runOn<Row>(executor: QueryExecutor, statement: Statement<Row>, values: unknown[]): Promise<Row[]> {
    const { plain, within } = this.compile(statement);
    const call = executor instanceof CallerTransaction ? executor : null;
    const target = call?.executor ?? executor;
    const query_timeout = this.sessions.patienceOn(target, statement);
    try {
      assertOpen(target);
      const tables = awaitedTables(statement);
      if (tables) await runOn(target, { ...this.compile(holdTables).plain, values: tables, query_timeout });
      if (!call || !within) return await runOn<Row>(target, { ...plain, values, query_timeout });
      return refuseEnded(await runOn<Row>(target, { ...within, values: [...values, call.mark], query_timeout }));
    } catch (error) {
      throw translateError(error, this.schema);
    }
  }

  /**
   * Runs `work` in a transaction of its own, which waits for each lock for 100 ms at most, or in `executor`'s if one is given,
   * which waits for as long as its lock_timeout says. One of its own is repeated where PostgreSQL has undone it because of a
   * conflict, so `work` must do nothing but run statements.
   */
  async transaction<T>(work: (executor: QueryExecutor) => Promise<T>, executor = this.bound): Promise<T> {
    return executor ? work(executor) : this.transact(work, true);
  }

  /** One that waits for as long as `work` says. */
  patientTransaction<T>(work: (executor: QueryExecutor) => Promise<T>): Promise<T> {
    return this.transact(work, false);
  }

  private async transact<T>(work: (executor: QueryExecutor) => Promise<T>, isLimited: boolean): Promise<T> {
    for (let failures = 0; ; failures++) {
      try {
        return await this.sessions.transact(work, isLimited);
      } catch (error) {
        if (failures === REPEATS || !isConflict(error)) throw error;
        await pauseBefore(failures);
      }
    }
  }

  /** The transaction that `executor` is in now: to run the statements of one call in. None for what is no executor. */
  join(executor: QueryExecutor | undefined): CallerTransaction | undefined {
    if (Object(executor) !== executor || !executor) return undefined;
    return new CallerTransaction(executor, (mark, kept) =>
      kept === null ? this.runOn(executor, markTransaction, [mark]) : this.runOn(executor, markAndDrop, [mark, kept]),
    );
  }

  /** Makes a caller's transaction fail: nothing of it can be committed. */
  async failTransaction(executor: QueryExecutor): Promise<void> {
    await this.runOn(executor, failTransaction, []).catch(() => undefined);
  }

  /**
   * Does what is to be done at start, and again for so long as the database cannot be reached.
   * @throws DatabaseUnavailableError with the last failure as its cause, and what `work` throws
   */
  async whenReachable<T>(timeoutMs: number, work: () => Promise<T>): Promise<T> {
    const deadline = performance.now() + timeoutMs;
    let last: DatabaseUnavailableError | undefined;
    for (let failures = 0; ; failures++) {
      const retryMs = Math.min(MAX_RETRY_CONNECT_MS, RETRY_CONNECT_MS * 2 ** failures) * (0.75 + Math.random() / 4);
      try {
        return await within(timeoutMs && Math.max(LAST_TRY_MS, deadline - performance.now()), work());
      } catch (error) {
        const failure = translateError(error, this.schema);
        if (!(failure instanceof DatabaseUnavailableError)) throw failure;
        // Silence at the end says less than the reason before it.
        last = failure.cause === undefined ? (last ?? failure) : failure;
      }
      const leftMs = deadline - performance.now();
      if (leftMs <= 0) throw atStart(last, timeoutMs);
      // The last try is made when the time is up, not before.
      await pause(Math.min(retryMs, leftMs));
    }
  }

  /** Whether a pooler stands between. @throws DatabaseUnavailableError */
  isPooled(): Promise<boolean> {
    return this.sessions.isPooled();
  }

  /** Settings for a connection outside the pool. */
  connectionConfig(): pg.ClientConfig {
    return singleConnection(this.pool.options);
  }

  /** The same for another thread; null where settings hold what cannot be handed over (functions, streams). */
  portableConfig(): pg.ClientConfig | null {
    return portable(this.connectionConfig());
  }

  /** A statement as pg takes it, for a connection that is not ours to query. */
  describe(statement: Statement<unknown>, values: unknown[]): { text: string; values: unknown[] } {
    return { text: this.compile(statement).plain.text, values };
  }

  /** Ends the pool if it is the library's own. What is still under way fails. */
  async close(): Promise<void> {
    if (this.bound) return;
    if (!this.ownsPool) return this.stopHearing();
    await (this.closing ??= endWithin(this.pool, () => this.pool.end()));
  }

  /** Logged by mistake, it shows no connection string. */
  toJSON(): object {
    return { schema: this.schema };
  }

  [inspect.custom](): string {
    return `Database ${inspect(this.toJSON())}`;
  }

  private async runOnPool<Row>(statement: Statement<Row>, values: unknown[]): Promise<Row[]> {
    const { plain, limited } = this.compile(statement);
    const rest = { values, types: rowTypes, query_timeout: this.sessions.patienceWith(statement) };
    const query = { ...plain, ...rest } as pg.QueryConfig;
    const limitedQuery = limited === plain ? query : limited && ({ ...limited, ...rest } as pg.QueryConfig);
    for (let failures = 0; ; failures++) {
      try {
        const result = await this.sessions.query(query, limitedQuery);
        if (this.reachability.troubled) this.reachability.answered();
        return rowsOf(result);
      } catch (error) {
        const mayRepeat = isConflict(error) || (statement.repeatable && mayAnswerSoon(error));
        if (failures === REPEATS || !mayRepeat) throw error;
        await pauseBefore(failures);
      }
    }
  }

  /** The library's word for a failure on a connection beside the pool. */
  explain(error: unknown): unknown {
    return translateError(error, this.schema);
  }

  private compile(statement: Statement<unknown>): Compiled {
    let compiled = this.compiled.get(statement);
    if (!compiled) {
      const { limited, limitedText, withinText } = statement;
      const plain = this.name(statement.name, statement.text(this.quotedSchema));
      const other = limitedText ? this.name(statement.name, limitedText(this.quotedSchema)) : null;
      const within = withinText ? this.name(statement.name, withinText(this.quotedSchema)) : null;
      compiled = { plain, limited: limited ? plain : other, within };
      this.compiled.set(statement, compiled);
    }
    return compiled;
  }

  /** The text's hash keeps two schemas, or two versions of the library, apart on a shared connection. */
  private name(statement: string, text: string): Text {
    const hash = createHash('md5').update(text).digest('hex').slice(0, 12);
    return { name: this.named ? `millrace_${statement}_${hash}` : undefined, text };
  }
}

/** 25, 100, 400 ms, with jitter. */
const pauseBefore = (failures: number): Promise<void> => pause(25 * 4 ** failures * (0.5 + Math.random()));

/** A network that swallows everything must not make a start wait for longer than it was told to. 0: for ever. */
async function within<T>(ms: number, work: Promise<T>): Promise<T> {
  if (!ms) return work;
  return answeredWithin(ms, work, () => new DatabaseUnavailableError('The database does not answer.'));
}
