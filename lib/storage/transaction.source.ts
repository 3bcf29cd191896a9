// Where transactional tasks get their transactions: from the application's DataSource, or from one of our own beside the
// library's pool. Slots cannot starve claims and settles of connections: so many stay free of job transactions.
import pg from 'pg';
import type { DataSource } from 'typeorm';
import type { EntityManager } from '../interfaces/job.interface.js';
import { DatabaseUnavailableError, InvalidOptionsError, MissingPackageError } from '../jobs.errors.js';
import { cut, endOrCut, hearErrors } from './connection.settings.js';
import type { Database } from './database.js';

/** One transaction on a connection of its own. */
export interface OpenTransaction {
  readonly manager: EntityManager;
  /** Whether nobody has ended it behind our back. */
  isOpen(): boolean;
  commit(): Promise<void>;
  rollback(): Promise<void>;
  /** Cuts the connection, whatever it is doing; PostgreSQL rolls back. */
  destroy(): Promise<void>;
}

/** Claims, settles and whatever else the application asks its own pool for. */
const RESERVED = 2;
const ANSWER_MS = 60_000;
const HANG_UP_MS = 1_000;

export class TransactionSource {
  private source: Promise<DataSource> | null = null;
  private places = 0;
  private free = 0;
  private readonly waiting: (() => void)[] = [];

  constructor(private readonly database: Database) {}

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

  async begin(): Promise<OpenTransaction> {
    await this.takePlace();
    try {
      return await this.open();
    } catch (error) {
      this.givePlace();
      throw error;
    }
  }

  async close(): Promise<void> {
    const own = this.database.dataSource ? null : await this.source?.catch(() => null);
    this.source = null;
    if (own) await endOrCut(poolOf(own), () => own.destroy());
  }

  private async prepareOwn(slots: number): Promise<void> {
    this.source ??= openOwn(this.database.connectionConfig());
    const pool = poolOf(await this.source);
    this.free += slots;
    pool.options.max = this.places += slots;
  }

  private async open(): Promise<OpenTransaction> {
    const runner = (await this.source!).createQueryRunner();
    const client = (await runner.connect()) as pg.PoolClient;
    let hasPlace = true;
    const release = async (): Promise<void> => {
      if (!runner.isReleased) await runner.release();
      if (hasPlace) this.givePlace();
      hasPlace = false;
    };
    const destroy = async (): Promise<void> => {
      if (!runner.isReleased) await hangUp(client);
      await release();
    };
    const end = async (work: () => Promise<void>): Promise<void> => {
      try {
        await work();
      } catch (error) {
        await destroy();
        throw error;
      }
      await release();
    };
    try {
      await answered(runner.startTransaction());
    } catch (error) {
      await hangUp(client);
      if (!runner.isReleased) await runner.release();
      throw error;
    }
    return {
      manager: runner.manager,
      isOpen: () => runner.isTransactionActive && !runner.isReleased,
      commit: () => end(() => answered(runner.commitTransaction())),
      rollback: () => end(() => answered(runner.rollbackTransaction())).catch(() => undefined),
      destroy,
    };
  }

  private async takePlace(): Promise<void> {
    if (this.free > 0) this.free--;
    else await new Promise<void>((resolve) => this.waiting.push(resolve));
  }

  private givePlace(): void {
    const next = this.waiting.shift();
    if (next) next();
    else this.free++;
  }
}

/** No word for a minute: the connection is dead, and what became of the statement is to be found out on another. */
async function answered(work: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const silence = new Promise<never>((_, reject) => {
    const error = new DatabaseUnavailableError('The database does not answer.');
    error.inDoubt = true;
    timer = setTimeout(() => reject(error), ANSWER_MS);
  });
  await Promise.race([work, silence]).finally(() => clearTimeout(timer));
}

/** Cuts the connection and waits until its pool knows: it must not be handed to anybody else. */
async function hangUp(client: pg.PoolClient): Promise<void> {
  const ended = new Promise((resolve) => client.once('end', resolve));
  cut(client);
  let timer: NodeJS.Timeout | undefined;
  await Promise.race([ended, new Promise((resolve) => (timer = setTimeout(resolve, HANG_UP_MS)))]);
  clearTimeout(timer);
}

async function openOwn(config: pg.ClientConfig): Promise<DataSource> {
  const typeorm = await import('typeorm').catch((cause: unknown) => {
    throw new MissingPackageError(['typeorm'], 'A transactional task', { cause });
  });
  const extra = { ...config, pipeline: undefined };
  const dataSource = await new typeorm.DataSource({ type: 'postgres', extra }).initialize();
  hearErrors(poolOf(dataSource));
  return dataSource;
}

const poolOf = (dataSource: DataSource): pg.Pool => (dataSource.driver as unknown as { master: pg.Pool }).master;

const tooSmall = (max: number): InvalidOptionsError =>
  new InvalidOptionsError([
    `Expected the DataSource's pool (poolSize) to have at least ${RESERVED + 1} connections for transactional tasks ` +
      `(one for each job that runs, ${RESERVED} for claims and settles), got ${max}.`,
  ]);
