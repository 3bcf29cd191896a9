// Where transactional tasks get their transactions: from the application's DataSource, or from one of our own beside the
// library's pool. Slots cannot starve claims and settles of connections: so many stay free of job transactions.
import pg from 'pg';
import type { DataSource } from '../interfaces/typeorm.interface.js';
import { DatabaseUnavailableError, InvalidOptionsError, MissingPackageError } from '../jobs.errors.js';
import { answeredWithin, settledWithin } from '../timing.js';
import { endWithin, watchConnections } from './connection.settings.js';
import type { Database } from './database.js';
import { JobSession } from './job.session.js';
import { Probing } from './probing.js';

/** Claims, settles and whatever else the application asks its own pool for. */
const RESERVED = 2;
/** What a slot waits for a transaction that cannot begin, before it lets others run. */
const PATIENCE_MS = 10_000;
/** Of which the last try has so much at least. */
const LEAST_PATIENCE_MS = 1_000;
/** What TypeORM asks when it opens a DataSource has no limit of its own. */
const OPEN_MS = 60_000;
/** What a DataSource that is being opened gets before `close` cuts it off. */
const CLOSE_MS = 2_000;

export class TransactionSource {
  private source: Promise<DataSource> | null = null;
  /** Gives up what is being opened. */
  private giveUp: AbortController | null = null;
  private places = 0;
  private free = 0;
  private readonly waiting: (() => void)[] = [];
  private readonly probing = new Probing();

  constructor(
    private readonly database: Database,
    /** For specs. */
    private readonly openMs = OPEN_MS,
  ) {}

  /**
   * Makes room for `slots` transactions at once. On a shared DataSource they are as many as its pool can spare; further
   * slots wait their turn.
   * @throws InvalidOptionsError where the pool is too small, MissingPackageError where TypeORM is not installed
   */
  async prepare(slots: number): Promise<void> {
    const { dataSource } = this.database;
    if (!dataSource) return this.prepareOwn(slots);
    if (this.source) return;
    const max = this.database.pool.options.max ?? 10;
    if (max <= RESERVED) throw tooSmall(max);
    this.source = Promise.resolve(dataSource);
    this.free = max - RESERVED;
  }

  /**
   * Waits for a place, and for a database that can be reached: `onFailure` is told of each failed try. One slot at a time
   * tries again, after longer and longer pauses.
   * @throws the signal's reason, DatabaseUnavailableError after 10 s, and what keeps a transaction from beginning
   */
  async begin(signal: AbortSignal, onFailure: (error: unknown) => void): Promise<JobSession> {
    await this.takePlace(signal);
    try {
      return await this.open(signal, onFailure);
    } catch (error) {
      this.givePlace();
      throw error;
    }
  }

  async close(): Promise<void> {
    if (this.database.dataSource || !this.source) return void (this.source = null);
    const opened = this.source.catch(() => null);
    this.source = null;
    if (!(await settledWithin(CLOSE_MS, opened))) this.giveUp?.abort();
    const own = await opened;
    if (own) await endWithin(poolOf(own), () => own.destroy());
  }

  private async prepareOwn(slots: number): Promise<void> {
    this.giveUp ??= new AbortController();
    const source = (this.source ??= openOwn(this.database.connectionConfig(), this.openMs, this.giveUp.signal));
    try {
      const pool = poolOf(await source);
      this.addPlaces(slots);
      pool.options.max = this.places;
    } catch (error) {
      // The next start, or the next workOnce, tries again.
      if (this.source === source) this.source = null;
      this.giveUp = null;
      throw this.database.explain(error);
    }
  }

  private async open(signal: AbortSignal, onFailure: (error: unknown) => void): Promise<JobSession> {
    const giveUpAt = performance.now() + PATIENCE_MS;
    for (;;) {
      const round = await this.probing.turn(signal);
      try {
        const patienceMs = Math.max(LEAST_PATIENCE_MS, giveUpAt - performance.now());
        const session = await JobSession.begin(await this.source!, patienceMs, signal, () => this.givePlace());
        this.probing.succeeded();
        return session;
      } catch (error) {
        signal.throwIfAborted();
        const reason = this.database.explain(error);
        this.probing.failed(round);
        if (!(reason instanceof DatabaseUnavailableError)) throw reason;
        onFailure(reason);
        if (performance.now() > giveUpAt) throw reason;
      }
    }
  }

  private addPlaces(count: number): void {
    this.places += count;
    for (let place = 0; place < count; place++) this.givePlace();
  }

  private async takePlace(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (this.free > 0) return void this.free--;
    await new Promise<void>((resolve, reject) => {
      const onAbort = (): void => {
        this.waiting.splice(this.waiting.indexOf(take), 1);
        reject(signal.reason as Error);
      };
      const take = (): void => {
        signal.removeEventListener('abort', onAbort);
        resolve();
      };
      signal.addEventListener('abort', onAbort, { once: true });
      this.waiting.push(take);
    });
  }

  private givePlace(): void {
    const next = this.waiting.shift();
    if (next) next();
    else this.free++;
  }
}

/** @throws DatabaseUnavailableError where the database does not answer within so many ms, or it is given up */
async function openOwn(config: pg.ClientConfig, openMs: number, givenUp: AbortSignal): Promise<DataSource> {
  const typeorm = await import('typeorm').catch((cause: unknown) => {
    throw new MissingPackageError(['typeorm'], 'A transactional task', { cause });
  });
  const extra = { ...config, pipeline: undefined };
  const dataSource = new typeorm.DataSource({ type: 'postgres', extra });
  const opening = dataSource.initialize();
  const cut = new Promise<never>((_, reject) => {
    givenUp.addEventListener('abort', () => reject(silent()), { once: true });
  });
  try {
    await answeredWithin(openMs, Promise.race([opening, cut]), silent);
  } catch (error) {
    hangUp(dataSource, opening);
    throw error;
  }
  watchConnections(poolOf(dataSource));
  return dataSource;
}

const silent = (): DatabaseUnavailableError => new DatabaseUnavailableError('The database does not answer.');

/** Nothing of it may stay open, however far it has got. */
function hangUp(dataSource: DataSource, opening: Promise<unknown>): void {
  const pool = poolOf(dataSource) as pg.Pool | undefined;
  if (pool) void endWithin(pool, () => pool.end()).catch(() => undefined);
  void opening.then(() => dataSource.destroy()).catch(() => undefined);
}

const poolOf = (dataSource: DataSource): pg.Pool => (dataSource.driver as unknown as { master: pg.Pool }).master;

const tooSmall = (max: number): InvalidOptionsError =>
  new InvalidOptionsError([
    `Expected the DataSource's pool (poolSize) to have at least ${RESERVED + 1} connections for transactional tasks ` +
      `(one for each job that runs, ${RESERVED} for claims and settles), got ${max}.`,
  ]);
