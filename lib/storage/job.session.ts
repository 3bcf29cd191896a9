// The connection of one transactional attempt. Between begin and commit it belongs to the handler, which may do
// anything to it by SQL. So PostgreSQL is asked whether the transaction is still the one that was begun, and the
// connection goes back to its pool as it came, or not at all.
import pg from 'pg';
import type { DataSource, EntityManager } from '../interfaces/typeorm.interface.js';
import { DatabaseUnavailableError, TransactionOverError } from '../jobs.errors.js';
import { answeredWithin, settledWithin } from '../timing.js';
import { destroySocket } from './connection.settings.js';
import { SessionWatch } from './session.watch.js';
import { DISTURBING, type Settings, SETTINGS, type Origin, originOf } from './session.origin.js';

type QueryRunner = ReturnType<DataSource['createQueryRunner']>;

/** Ends with the transaction, whatever ends it; being no queries, they leave the isolation level to the handler. */
const MARK = `set local millrace.attempt = 'open'; show transaction_read_only`;
const READ_MARK = `select pg_catalog.current_setting('millrace.attempt', true) as attempt, ${SETTINGS}`;
/** All that outlives a transaction, except prepared statements, which the driver knows by name. */
const CLEAN =
  'select from pg_catalog.pg_prepared_statements where from_sql limit 1; close all; unlisten *; ' +
  'select pg_catalog.pg_advisory_unlock_all(); discard temp; ';
const SET_LOCAL = `select ${DISTURBING.map((name, index) => `pg_catalog.set_config('${name}', $${index + 1}, true)`).join(', ')}`;
const ANSWER_MS = 60_000;
const HANG_UP_MS = 1_000;

const origins = new WeakMap<pg.ClientBase, Origin>();

export class JobSession {
  private readonly watch: SessionWatch;
  private readonly releaseRunner: () => Promise<void>;
  private ending = false;
  private isForeign = false;
  private isShut = false;
  private isOut = false;
  private onReleased: () => void = () => undefined;

  private constructor(
    private readonly dataSource: DataSource,
    private readonly runner: QueryRunner,
    private readonly client: pg.PoolClient,
  ) {
    this.releaseRunner = runner.release.bind(runner);
    this.watch = new SessionWatch(client);
  }

  /**
   * Begins a transaction on a connection of its own, which a pool that the application uses up may not give in time.
   * @throws DatabaseUnavailableError after `patienceMs`, the signal's reason
   */
  static async begin(
    dataSource: DataSource,
    patienceMs: number,
    signal: AbortSignal,
    onReleased: () => void,
  ): Promise<JobSession> {
    const runner = dataSource.createQueryRunner();
    const client = await connected(runner, patienceMs, signal);
    const session = new JobSession(dataSource, runner, client);
    try {
      if (!origins.has(client)) origins.set(client, await withAnswerTimeout(originOf(client)));
      await withAnswerTimeout(runner.startTransaction());
      refuseReadOnly(await withAnswerTimeout(client.query(MARK)));
    } catch (error) {
      await session.destroyClient();
      throw error;
    }
    session.onReleased = onReleased;
    session.guard();
    return session;
  }

  get manager(): EntityManager {
    return this.runner.manager;
  }

  /**
   * Runs statements of the library's own after the handler has returned, whatever role and timeouts it has set.
   * @throws TransactionOverError unless the handler has left its transaction open, and in order
   */
  async undisturbed<T>(work: () => Promise<T>): Promise<T> {
    const now = await this.assertOpen();
    const { settings } = origins.get(this.client)!;
    if (DISTURBING.every((name) => now[name] === settings[name])) return work();
    await withAnswerTimeout(this.client.query(SET_LOCAL, valuesOf(settings)));
    const result = await work();
    await withAnswerTimeout(this.client.query(SET_LOCAL, valuesOf(now)));
    return result;
  }

  private async assertOpen(): Promise<Settings> {
    const { runner, watch } = this;
    this.shut();
    if (watch.lostTo) throw watch.lostTo;
    this.isForeign = true;
    if (runner.isReleased || !runner.isTransactionActive) throw endedByHandler();
    if (depthOf(runner) > 1) throw nestedOpen();
    const reading = this.client.query<Settings & { attempt: string | null }>(READ_MARK);
    const { rows } = await withAnswerTimeout(reading).catch((error: unknown) => {
      this.isForeign = false;
      throw watch.explain(error);
    });
    if (rows[0]?.attempt !== 'open') throw endedByHandler();
    this.isForeign = false;
    watch.forgetLostStatements();
    return rows[0];
  }

  /** @throws TransactionOverError where PostgreSQL has rolled back instead; `inDoubt` errors where that is not known */
  async commit(): Promise<void> {
    this.ending = true;
    try {
      await withAnswerTimeout(this.runner.commitTransaction());
      if (this.watch.lastEnd === 'ROLLBACK') throw this.watch.explain(new TransactionOverError(ROLLED_BACK));
    } catch (error) {
      await this.destroy();
      throw error;
    }
    await this.giveBack();
  }

  /** Never rejects. */
  async rollback(): Promise<void> {
    this.shut();
    this.ending = true;
    if (this.isForeign || depthOf(this.runner) > 1) return this.destroy();
    try {
      await withAnswerTimeout(this.runner.rollbackTransaction());
    } catch {
      return this.destroy();
    }
    await this.giveBack();
  }

  /** Cuts the connection, whatever it is doing; PostgreSQL rolls back. Never rejects. */
  async destroy(): Promise<void> {
    if (this.runner.isReleased) this.released();
    else await this.destroyClient();
  }

  /** Commit, rollback and release are the library's; savepoints are the handler's. */
  private guard(): void {
    const { runner, client } = this;
    const mayEnd = (): boolean => this.ending || depthOf(runner) > 1;
    const commit = runner.commitTransaction.bind(runner);
    const rollback = runner.rollbackTransaction.bind(runner);
    runner.commitTransaction = async () => (mayEnd() ? commit() : Promise.reject(endedByHandler()));
    runner.rollbackTransaction = async () => (mayEnd() ? rollback() : Promise.reject(endedByHandler()));
    runner.release = () => Promise.reject(releasedByHandler());
    client.release = () => {
      throw releasedByHandler();
    };
  }

  /** A handler that goes on after its end writes nothing, neither in the transaction nor after it. */
  private shut(): void {
    if (this.isShut) return;
    this.isShut = true;
    const { runner } = this;
    const query = runner.query.bind(runner) as (...args: unknown[]) => Promise<any>;
    // Subscribers of TypeORM may write while the transaction ends.
    const mayQuery = (text: unknown): boolean =>
      this.ending && (text === 'COMMIT' || text === 'ROLLBACK' || this.dataSource.subscribers.length > 0);
    runner.query = (...args: unknown[]) => (mayQuery(args[0]) ? query(...args) : Promise.reject(shutOut()));
  }

  /** As it came, or not at all. */
  private async giveBack(): Promise<void> {
    const { client, watch } = this;
    this.ending = false;
    const { restore } = origins.get(client)!;
    try {
      if (restore) {
        const [prepared] = (await withAnswerTimeout(client.query(CLEAN + restore))) as unknown as pg.QueryResult[];
        if (prepared!.rows.length || watch.hasLostStatements || watch.isBusy) return await this.destroy();
      }
      watch.end();
      await this.releaseRunner();
      this.released();
    } catch {
      await this.destroy();
    }
  }

  /** Cuts the connection and waits until its pool knows: it must not be handed out again. */
  private async destroyClient(): Promise<void> {
    const ended = new Promise((resolve) => this.client.once('end', resolve));
    destroySocket(this.client);
    await settledWithin(HANG_UP_MS, ended);
    this.watch.end();
    if (!this.runner.isReleased) await this.releaseRunner();
    this.released();
  }

  private released(): void {
    if (this.isOut) return;
    this.isOut = true;
    this.watch.end();
    this.onReleased();
  }
}

/** A connection that comes too late goes back at once. */
async function connected(runner: QueryRunner, patienceMs: number, signal: AbortSignal): Promise<pg.PoolClient> {
  const connecting = runner.connect() as Promise<pg.PoolClient>;
  let giveUp: () => void = () => undefined;
  let timer: NodeJS.Timeout | undefined;
  const tooLate = new Promise<never>((_, reject) => {
    giveUp = (): void => reject(signal.reason as Error);
    signal.addEventListener('abort', giveUp, { once: true });
    timer = setTimeout(() => reject(new DatabaseUnavailableError(usedUp(patienceMs))), patienceMs);
  });
  try {
    return await Promise.race([connecting, tooLate]);
  } catch (error) {
    void connecting.then(
      () => runner.release(),
      () => undefined,
    );
    throw error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', giveUp);
  }
}

const usedUp = (patienceMs: number): string =>
  `The pool of the DataSource gave no connection within ${Math.round(patienceMs)} ms: all of them are in use. Raise ` +
  'poolSize, or give them back sooner.';

/** A standby, or a default of the role: nothing that the handler writes could be committed, nor the job be settled. */
function refuseReadOnly(results: unknown): void {
  const shown = (results as pg.QueryResult<{ transaction_read_only: string }>[])[1];
  if (shown?.rows[0]?.transaction_read_only !== 'on') return;
  throw Object.assign(new Error('the transaction is read-only'), { code: '25006' });
}

const valuesOf = (settings: Settings): string[] => DISTURBING.map((name) => settings[name]);

/** No word for a minute: the connection is dead, and what became of the statement is to be found out on another. */
async function withAnswerTimeout<T>(work: Promise<T>): Promise<T> {
  return answeredWithin(ANSWER_MS, work, () =>
    Object.assign(new DatabaseUnavailableError('The database does not answer.'), { inDoubt: true }),
  );
}

/** 1 in a transaction, more in savepoints. */
const depthOf = (runner: QueryRunner): number =>
  (runner as unknown as { transactionDepth?: number }).transactionDepth ?? 1;

const shutOut = (): TransactionOverError =>
  new TransactionOverError('Expected a handler that runs, got one that has ended (a missing await, perhaps).');

const ROLLED_BACK = 'Expected PostgreSQL to commit, but it has rolled back.';

const endedByHandler = (): TransactionOverError =>
  new TransactionOverError(
    'Expected the transaction of a transactional task to be open when its handler returns, but the handler has ended ' +
      'it. Leave commit and rollback to the library: return to commit, throw to roll back.',
  );

const releasedByHandler = (): TransactionOverError =>
  new TransactionOverError(
    'Expected the connection of a transactional task to be left to the library, but the handler has released it. Take ' +
      'a query runner of your own for what you release.',
  );

const nestedOpen = (): TransactionOverError =>
  new TransactionOverError(
    'Expected every nested transaction to have ended when the handler returns, got one that is open (a missing await, ' +
      'perhaps).',
  );
