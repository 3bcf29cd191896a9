// Builds the parts of one instance and owns them. JobManager is its face for users; pools, handlers, maintenance and
// millrace/testing work with the parts themselves.
import type pg from 'pg';
import type { JobsOnce } from '../interfaces/claim.interface.js';
import type { QueryExecutor } from '../interfaces/job.interface.js';
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import type { Database } from '../storage/database.js';
import { JobNotifier } from '../storage/job.notifier.js';
import { TransactionSource } from '../storage/transaction.source.js';
import { settledWithin } from '../timing.js';
import { AttemptStore } from './attempt.store.js';
import { BulkPages } from './bulk.pages.js';
import { ClaimEnds } from './claim.ends.js';
import { Crontabs } from './crontabs.js';
import { Declarations } from './declarations.js';
import { ExactClaims } from './exact.claims.js';
import { JobAdder } from './job.adder.js';
import { JobCipher } from './job.cipher.js';
import { JobClaims } from './job.claims.js';
import { JobPauses } from './job.pauses.js';
import { JobInspector } from './job.inspector.js';
import { JobPreparer } from './job.preparer.js';
import { JobPromoter, newsOf } from './job.promoter.js';
import { JobRetention } from './job.retention.js';
import { JobRevival } from './job.revival.js';
import { JobSettlement } from './job.settlement.js';
import { JobWaiter } from './job.waiter.js';
import { lanesOfQueue } from './lane.names.js';
import { NewsPublisher } from './news.publisher.js';
import { QueueBounds } from './queue.bounds.js';
import type { PayloadValidator } from './payload.validator.js';
import { RateLimiter } from './rate.limiter.js';
import { SchemaCheck } from './schema.check.js';
import type { TaskRegistry } from './task.registry.js';
import { WorkerRegistry } from './worker.registry.js';

export interface EngineParts {
  database: Database;
  settings: ManagerSettings;
  tasks: TaskRegistry;
  validator: PayloadValidator;
  /** Where to LISTEN, if not where the statements go. */
  listenConnection?: string | pg.ClientConfig | undefined;
  /** The transaction that `addJob` joins where it is given none. */
  ambient?: () => QueryExecutor | undefined;
  /** Of the engine that this one is within. */
  bounds?: QueueBounds;
  /** Receives what is no fault but worth knowing. */
  debug?: (message: string) => void;
}

const noop = (): undefined => undefined;
const MAX_CLOSE_MS = 5_000;

export class JobEngine {
  readonly database: Database;
  readonly settings: ManagerSettings;
  readonly cipher: JobCipher | undefined;
  readonly waiter: JobWaiter;
  /** What other processes should know. */
  readonly publisher: NewsPublisher;
  /** What ends leave to others. */
  readonly promoter: JobPromoter;
  /** What holders say of their attempts. */
  readonly settlement: JobSettlement;
  /** What others do to claims. */
  readonly ends: ClaimEnds;
  readonly claims: JobClaims;
  /** Claims by hand. */
  readonly exactClaims: ExactClaims;
  /** Incarnations and their heartbeats. */
  readonly registry: WorkerRegistry;
  readonly revival: JobRevival;
  /** What pools do of bulk actions. */
  readonly bulk: BulkPages;
  readonly pauses: JobPauses;
  readonly inspector: JobInspector;
  /** What a running attempt writes before it ends. */
  readonly attempts: AttemptStore;
  readonly adder: JobAdder;
  /** How many jobs may wait. */
  readonly bounds: QueueBounds;
  /** Tokens outside of claims. */
  readonly limiter: RateLimiter;
  readonly retention: JobRetention;
  readonly crontabs: Crontabs;
  /** What tasks and options declare. */
  readonly declarations: Declarations;
  /** Connections for transactional tasks. */
  readonly transactions: TransactionSource;
  private readonly singleRuns: JobsOnce[] = [];
  private readonly pools = new Set<() => Promise<unknown>>();

  constructor(private readonly parts: EngineParts) {
    const { database, settings, tasks, validator, ambient = noop, debug = noop } = parts;
    this.database = database;
    this.settings = settings;
    const cipher = settings.encryption ? new JobCipher(settings.encryption) : undefined;
    this.cipher = cipher;
    this.waiter = new JobWaiter(database, cipher);
    const schemaCheck = new SchemaCheck(database.schema);
    this.publisher = new NewsPublisher(database);
    this.promoter = new JobPromoter(database, settings, this.publisher, (id, path) => this.failCircle(id, path));
    const notice = (ids: Set<string>): void => this.waiter.notice(ids);
    this.settlement = new JobSettlement(database, settings, tasks, cipher, this.promoter, this.publisher, notice);
    this.ends = new ClaimEnds(database, settings.history, this.promoter, this.publisher);
    this.claims = new JobClaims(database, this.settlement, cipher, schemaCheck);
    this.exactClaims = new ExactClaims(database, this.claims);
    this.registry = new WorkerRegistry(database, settings, this.ends, this.promoter, schemaCheck);
    this.revival = new JobRevival(database, this.promoter, this.publisher);
    const { promoter, publisher, revival } = this;
    const { retentionMs } = settings.history;
    this.bulk = new BulkPages({ database, promoter, publisher, revival, retentionMs }, cipher);
    this.pauses = new JobPauses(database, this.publisher, (type, fields) => this.singleRun?.emit(type, fields));
    this.inspector = new JobInspector(database, cipher);
    this.attempts = new AttemptStore(database, cipher);
    this.transactions = new TransactionSource(database);
    const preparer = new JobPreparer(settings, tasks, validator, cipher);
    this.bounds = parts.bounds ?? new QueueBounds();
    const { bounds } = this;
    this.adder = new JobAdder({ database, preparer, promoter, publisher, bounds, ambient, cipher });
    this.limiter = new RateLimiter(database, publisher, ambient);
    this.retention = new JobRetention(database, settings.history, debug);
    this.crontabs = new Crontabs(database, this.adder, preparer, cipher);
    const tell = (names: string[]): Promise<void> => this.publisher.publish(...newsOf(names.map(lanesOfQueue)));
    this.declarations = new Declarations({ database, crontabs: this.crontabs, queues: settings.queues, publish: tell });
  }

  /** The engine inside a transaction: all it does is part of it. */
  within(executor: QueryExecutor): JobEngine {
    const { bounds } = this;
    return new JobEngine({ ...this.parts, bounds, database: this.database.on(executor), ambient: () => executor });
  }

  /** A LISTEN connection of its own, not started yet. */
  createNotifier(onError: (error: unknown) => void): JobNotifier {
    const direct = this.parts.listenConnection;
    const config =
      typeof direct === 'string' ? { connectionString: direct } : (direct ?? this.database.connectionConfig());
    return new JobNotifier(config, this.database.channel, (error) => onError(this.database.explain(error)));
  }

  /** The newest of those that run the jobs of `workOnce`. */
  get singleRun(): JobsOnce | undefined {
    return this.singleRuns.at(-1);
  }

  /** Names what runs the jobs of `workOnce` from now on. */
  runWith(singleRun: JobsOnce): void {
    this.singleRuns.push(singleRun);
  }

  /** Stops a pool when the manager is closed. Returns how to forget it. */
  watchOver(stopPool: () => Promise<unknown>): () => void {
    this.pools.add(stopPool);
    return () => this.pools.delete(stopPool);
  }

  /** See JobManager.close. */
  async close(): Promise<void> {
    this.waiter.close();
    await Promise.all([...this.pools].map((stop) => stop()));
    await Promise.all(this.singleRuns.map((singleRun) => singleRun.close()));
    await this.idle(MAX_CLOSE_MS);
    this.adder.close();
    await this.transactions.close();
    await this.database.close();
  }

  /** Resolves when nothing is on its way to the database, or after so long. */
  private async idle(ms: number): Promise<void> {
    const ended = async (): Promise<void> => {
      await this.adder.idle();
      await this.publisher.idle();
      await this.attempts.idle();
    };
    await settledWithin(ms, ended());
  }

  private async failCircle(id: string, path: string[]): Promise<void> {
    const reason = `it waits for itself: ${path.join(' → ')}`;
    await this.ends.end([{ id, fence: null }], 'doomed', reason, { patient: false });
  }
}
