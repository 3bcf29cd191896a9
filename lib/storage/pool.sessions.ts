// Statements and transactions on connections of a pool. Each statement of the library decides on a snapshot of its own,
// waits for locks for 100 ms at most, and reads and writes its values in one way, whatever the database, the role or the
// session has by default. Every message has a limit to how long its answer may take: a peer that keeps the connection and says
// nothing is told by nothing else. A broken connection, or a silent one, does not go back.
import type pg from 'pg';
import type { QueryExecutor } from '../interfaces/job.interface.js';
import { DatabaseUnavailableError } from '../jobs.errors.js';
import { isOfConnection } from './database.errors.js';
import { isStatementTimeout } from './sql.states.js';
import { PoolQueue } from './pool.queue.js';
import { MAX_LOCK_WAIT, type StatementTraits } from './statement.js';

/** How values become text and text values, and what an error does to a session. */
const NEEDED: Record<string, string> = {
  array_nulls: 'on',
  datestyle: 'ISO',
  exit_on_error: 'off',
  extra_float_digits: '1',
  intervalstyle: 'postgres',
  standard_conforming_strings: 'on',
  transform_null_equals: 'off',
};

const ANSWER_MS = 60_000;
const SLOW_ANSWER_MS = 3_600_000;

const BEGIN = 'begin isolation level read committed';
const LIMIT = `; set local lock_timeout = '${MAX_LOCK_WAIT}'`;

const setting = (name: string): string => `pg_catalog.current_setting('${name}')`;

/** PostgreSQL's read uncommitted is its read committed. */
const FITNESS = [
  `${setting('default_transaction_isolation')} in ('read committed', 'read uncommitted')`,
  ...Object.entries(NEEDED).map(([name, value]) => {
    if (name === 'extra_float_digits') return `${setting(name)}::integer >= ${value}`;
    return name === 'datestyle' ? `${setting(name)} like '${value}%'` : `${setting(name)} = '${value}'`;
  }),
];

/**
 * How to find out whether a session can do as it is, and what surrounds each statement where it cannot. Locks come first,
 * and the next statement decides on a younger snapshot: the levels above read committed have only one. Settings of the
 * session's own would be lost behind a pooler, so they are the transaction's.
 */
export const SURROUNDINGS = {
  ask: `select case when ${FITNESS.join(' and ')} then 'fit' else 'unfit' end as state`,
  begin: [BEGIN].concat(Object.entries(NEEDED).map(([name, value]) => `set local ${name} = '${value}'`)).join('; '),
  commit: 'commit',
};

/** What a session can do as it is: it keeps the defaults it began with. */
interface Session {
  isFit: boolean;
  /** It limits how long its statements wait for locks. */
  isLimited: boolean;
}

export class PoolSessions {
  private readonly known = new WeakMap<pg.ClientBase, Session>();
  private readonly inTransaction = new WeakSet<pg.ClientBase>();
  /** What transactions with limits run on. */
  private readonly limited = new WeakSet<QueryExecutor>();
  private readonly queue: PoolQueue;
  /** The application's own limit comes first. */
  private readonly hasOwnLimit: boolean;

  constructor(
    pool: pg.Pool,
    /** The library's word for a failure. */
    private readonly explain: (error: unknown) => unknown,
    /** Hears of each. */
    private readonly onFailure: (reason: unknown) => void,
    /** Whether sessions are the library's alone, which may set them up. */
    private readonly isOwn: boolean,
  ) {
    this.queue = new PoolQueue(pool);
    this.hasOwnLimit = Boolean((pool.options as pg.ClientConfig).query_timeout);
  }

  /** For how long a statement may be without an answer, in ms; undefined: the application has said it. */
  patienceWith({ slow }: StatementTraits): number | undefined {
    if (this.hasOwnLimit) return undefined;
    return slow ? SLOW_ANSWER_MS : ANSWER_MS;
  }

  /** The same in a transaction; undefined: it is a caller's, or one that waits for as long as it takes. */
  patienceOn(executor: QueryExecutor, traits: StatementTraits): number | undefined {
    return this.limited.has(executor) ? this.patienceWith(traits) : undefined;
  }

  /**
   * One statement: by itself, or in a transaction of its own where the session needs other settings. `limited`: the query as
   * one that limits by itself how long it waits for locks; null: there is none.
   */
  query(query: pg.QueryConfig, limited: pg.QueryConfig | null): Promise<pg.QueryResult> {
    return this.lend(async (client) => {
      const { isFit, isLimited } = this.known.get(client) ?? (await this.inspect(client));
      if (isFit && (isLimited || limited)) return client.query(isLimited ? query : limited!);
      return this.within(client, LIMIT, () => client.query(query));
    });
  }

  /**
   * `isLimited`: whether its statements wait for locks, and for answers, no longer than others do. Otherwise its beginning and
   * its end alone do.
   */
  transact<T>(work: (executor: QueryExecutor) => Promise<T>, isLimited: boolean): Promise<T> {
    return this.lend((client) =>
      isLimited
        ? this.within(client, LIMIT, () => work(this.withLimit(client)))
        : this.within(client, '', () => work(client)),
    );
  }

  /** The same connection, on which every message has the limit that says no other. */
  private withLimit(client: pg.PoolClient): pg.PoolClient {
    const query_timeout = this.patienceWith({});
    const view = Object.create(client) as pg.PoolClient;
    const query = (asked: string | pg.QueryConfig, values?: unknown[]): Promise<pg.QueryResult> => {
      const config = typeof asked === 'string' ? { text: asked } : asked;
      return client.query({ query_timeout, ...config, ...(values && { values }) } as pg.QueryConfig);
    };
    this.limited.add(view);
    return Object.assign(view, { query });
  }

  /**
   * Whether a pooler (PgBouncer and its like) is between this process and PostgreSQL. One that hands each transaction another
   * connection may run a statement where it was never prepared. Such a pooler is recognised at once: it tells the client another
   * process than the one that answers.
   */
  isPooled(): Promise<boolean> {
    return this.lend(async (client) => {
      const { rows } = await this.prelude<{ pid: number }>(client, 'select pg_catalog.pg_backend_pid() as pid');
      const { processID } = client as { processID?: number | null };
      return Boolean(processID) && processID !== rows[0]?.pid;
    });
  }

  /**
   * Sets up a session of the library's own, in the same round trip. One behind a pooler is not: what is set there holds for
   * others.
   */
  private async inspect(client: pg.PoolClient): Promise<Session> {
    const { processID } = client as { processID?: number | null };
    const isDirect = this.isOwn && processID ? `pg_catalog.pg_backend_pid() = ${processID}` : 'false';
    const limit = `case when ${isDirect} then pg_catalog.set_config('lock_timeout', '${MAX_LOCK_WAIT}', false) end`;
    const answer = await this.prelude<{ state: string; limit: string | null }>(
      client,
      `${SURROUNDINGS.ask}, ${limit} as limit`,
    );
    const [row] = answer.rows;
    const session = { isFit: row?.state === 'fit', isLimited: row?.limit != null };
    this.known.set(client, session);
    return session;
  }

  private async within<T>(client: pg.PoolClient, settings: string, work: () => Promise<T>): Promise<T> {
    await this.prelude(client, (this.known.get(client)?.isFit ? BEGIN : SURROUNDINGS.begin) + settings);
    this.inTransaction.add(client);
    const result = await work();
    await this.send(client, SURROUNDINGS.commit);
    this.inTransaction.delete(client);
    return result;
  }

  /** Where it fails, what was asked for has not been sent. */
  private async prelude<Row extends pg.QueryResultRow>(client: pg.PoolClient, text: string) {
    try {
      return await this.send<Row>(client, text);
    } catch (error) {
      throw this.unsent(error);
    }
  }

  private send<Row extends pg.QueryResultRow>(client: pg.PoolClient, text: string): Promise<pg.QueryResult<Row>> {
    return client.query<Row>({ text, query_timeout: this.patienceWith({}) } as pg.QueryConfig);
  }

  /**
   * Lends a connection, which goes back unless it is broken. A session keeps the timeout that it began with, so one whose
   * statement was cut is ended: the next session has what the role or the database says now.
   */
  private async lend<T>(work: (client: pg.PoolClient) => Promise<T>): Promise<T> {
    const client = await this.connect();
    let broken: Error | undefined;
    // Between two statements nothing else listens for a connection that breaks; unhandled, it would end the process.
    const spoil = (error: Error): void => void (broken ??= error);
    client.on('error', spoil);
    try {
      return await work(client);
    } catch (error) {
      const reason = this.explain(error);
      this.onFailure(reason);
      if (isOfConnection(reason) || isStatementTimeout(error)) spoil(error as Error);
      const isOpen = this.inTransaction.delete(client);
      // On a connection that is broken, or that does not answer, a rollback would wait for ever.
      if (isOpen && !broken) await this.send(client, 'rollback').catch(spoil);
      throw reason;
    } finally {
      client.off('error', spoil);
      client.release(broken);
    }
  }

  private async connect(): Promise<pg.PoolClient> {
    try {
      return await this.queue.connect();
    } catch (error) {
      const reason = this.unsent(error);
      this.onFailure(reason);
      throw reason;
    }
  }

  /** Nothing can have happened, so nothing is in doubt. */
  private unsent(error: unknown): unknown {
    const reason = this.explain(error);
    if (!(reason instanceof DatabaseUnavailableError) || !reason.inDoubt) return reason;
    return new DatabaseUnavailableError(reason.message, { cause: reason.cause });
  }
}
