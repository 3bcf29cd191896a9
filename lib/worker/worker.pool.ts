// N slots that take jobs from the local buffer, run them, and hand their outcomes to the batcher; and how they start and stop.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { AlreadyRunningError, type SchemaTooNewError, ShutdownError, StoppedError } from '../jobs.errors.js';
import { settledWithin } from '../timing.js';
import type { JobQueue } from './job.queue.js';
import { PoolEngine, type WorkerPoolParts } from './pool.engine.js';
import { PoolStart } from './pool.start.js';
import { checkWait } from './queue.options.js';
import type { CircuitState } from './circuit.breaker.js';

export type WorkerPoolState = 'new' | 'running' | 'terminated';

export interface WorkerPoolStats {
  active: number;
  completed: number;
  failed: number;
  errors: number;
  /** Outcomes of attempts that have ended and are not written yet. */
  unwritten: number;
}

/** Handlers that were aborted get so long to notice before the pool leaves them to their lease. */
const ABORT_GRACE_MS = 1_000;
/** What a database that answers, but slowly, gets beyond the grace period for the last outcomes. */
const FLUSH_MS = 3_000;
/** What a claim that is under way, and giving the buffer back, may take of it. */
const MAX_JOIN_MS = 5_000;
const MIN_JOIN_MS = 2_000;
/** What the rest of the end may take: a network that swallows everything must not hold up the process. */
const LAST_STEPS_MS = 2_000;

/**
 * new ──start──▶ running ──stop, forceStop, interrupt──▶ (draining) ──▶ terminated
 *
 * `running` lasts until the last outcome is settled; a terminated pool never starts again.
 */
export class WorkerPool {
  /** The label that people know this pool by. */
  readonly workerId: string;
  readonly queue: JobQueue;
  private readonly engine: PoolEngine;
  private readonly starting: PoolStart;
  private readonly ended: Promise<void>;
  private markEnded!: () => void;
  private current: WorkerPoolState = 'new';
  private stopping: Promise<void> | null = null;
  private forced = false;
  /** The connection pool was closed under this one. */
  private abandoned = false;
  private unwatch: (() => void) | null = null;
  private leaveManager: (() => void) | null = null;
  private slots: Promise<void>[] = [];

  constructor(private readonly parts: WorkerPoolParts) {
    this.engine = new PoolEngine(parts, {
      retire: (reason) => this.retire(reason),
      abandon: (error, context) => this.abandon(error, context),
    });
    this.workerId = this.engine.workerId;
    this.queue = this.engine.queue;
    const { workerId, heartbeat, notifier } = this.engine;
    this.starting = new PoolStart({ workerId, heartbeat, notifier, scheduler: parts.scheduler });
    this.ended = new Promise((resolve) => (this.markEnded = resolve));
  }

  get state(): WorkerPoolState {
    return this.current;
  }

  get running(): boolean {
    return this.current === 'running';
  }

  /**
   * `closed` while outcomes can be written and transactions begin. `open`: they cannot, so the pool claims and starts nothing;
   * it goes on by itself with the first that goes through (`half-open`: a settle is being tried).
   */
  get circuit(): CircuitState {
    return this.engine.circuit;
  }

  /** Jobs that run now. */
  get activeWorkers(): number {
    return this.engine.admission.size;
  }

  stats(): WorkerPoolStats {
    return { active: this.engine.admission.size, unwritten: this.engine.batcher.pending, ...this.engine.counters };
  }

  /**
   * Resolves to the pool. Where it fails, or the pool is stopped meanwhile, nothing of it goes on.
   * @throws AlreadyRunningError, StoppedError once terminated or stopped, DatabaseUnavailableError
   */
  async start(): Promise<this> {
    if (this.current === 'running')
      throw new AlreadyRunningError('Expected a pool that does not run, got one that does.');
    if (this.current === 'terminated') throw new StoppedError('A terminated pool cannot start again; make a new one.');
    this.current = 'running';
    this.leaveManager = this.parts.jobs.engine.watchOver(() => this.stop());
    this.unwatch = this.engine.watchDatabase();
    this.engine.notifier?.subscribe((news) => this.engine.onNews(news));
    try {
      await this.starting.begin(
        () => this.prepareTransactions(),
        () => this.stopping !== null,
      );
    } catch (error) {
      // A stop under way ends all of it.
      if (!this.stopping) await settledWithin(LAST_STEPS_MS, this.starting.undo());
      await this.stopping;
      this.terminate();
      throw error;
    }
    this.queue.start();
    this.engine.bulk.start();
    this.slots = Array.from({ length: this.parts.options.concurrency }, () => this.slot());
    this.parts.events.emit('pool.start', this.workerId, { concurrency: this.parts.options.concurrency });
    return this;
  }

  /**
   * Claims no more, gives the buffer back, waits for running jobs at most `timeoutMs`, then aborts their signals.
   * Handlers that reject because of that are given back without counting the attempt; those that do not stop are left
   * to their lease. Resolves to the pool when every outcome is settled.
   */
  async stop(timeoutMs = this.parts.options.gracefulShutdownTimeoutMs): Promise<this> {
    checkWait(timeoutMs);
    await this.shutDown(timeoutMs, false);
    return this;
  }

  /** As `stop`, but aborts at once. */
  async forceStop(): Promise<this> {
    await this.shutDown(0, true);
    return this;
  }

  /** Takes no more jobs and lets the running ones finish, however long they take; see `join`. Returns the pool. */
  interrupt(): this {
    void this.shutDown(Infinity, false);
    return this;
  }

  /** Resolves to the pool when it has stopped. */
  async join(): Promise<this> {
    await this.ended;
    return this;
  }

  /** Tasks were found after the start: writes down what they declare. */
  async declareTasks(): Promise<void> {
    await this.parts.scheduler?.declare();
    if (this.current === 'running' && !this.stopping) await this.engine.heartbeat.describe();
  }

  private async prepareTransactions(): Promise<void> {
    const { jobs, tasks, options } = this.parts;
    const transactional = tasks.names().some((task) => tasks.get(task)?.options.transactional);
    if (transactional) await jobs.engine.transactions.prepare(options.concurrency);
  }

  private async shutDown(timeoutMs: number, forced: boolean): Promise<void> {
    if (this.current === 'new') return this.terminate();
    if (this.current === 'terminated') return;
    const first = this.stopping === null;
    this.forced ||= forced;
    this.stopping ??= this.drain(timeoutMs);
    // A second, more urgent call while the first still waits: abort now.
    if (!first && Number.isFinite(timeoutMs)) void this.abortAfter(timeoutMs);
    await this.stopping;
  }

  private async drain(timeoutMs: number): Promise<void> {
    const deadline = performance.now() + timeoutMs + ABORT_GRACE_MS;
    void this.engine.heartbeat.leave();
    const scheduled = Promise.all([this.parts.scheduler?.stop(), this.engine.bulk.stop()]);
    const emptied = this.queue.stop(Math.min(MAX_JOIN_MS, Math.max(MIN_JOIN_MS, timeoutMs)));
    void this.abortAfter(timeoutMs);
    await emptied;
    const idle = await settledWithin(Math.max(0, deadline - performance.now()), Promise.all(this.slots));
    if (!idle) for (const attempt of this.engine.runner.takeDecided()) this.engine.batcher.add(attempt);
    const written = await this.flush(deadline);
    const lastSteps = async (): Promise<void> => {
      await scheduled;
      await this.engine.pauses.stop();
      await this.starting.ended();
      await this.engine.heartbeat.stop(idle && written && !this.queue.inDoubt);
      await this.engine.notifier?.stop();
    };
    await settledWithin(LAST_STEPS_MS, lastSteps());
    await this.engine.runner.stop();
    this.terminate();
    this.parts.events.emit('pool.stop', this.workerId, { forced: this.forced });
  }

  /** Waits for the last outcomes to be written, and says which could not be. Where settles fail, until the deadline. */
  private async flush(deadline: number): Promise<boolean> {
    const flushed = this.engine.batcher.flush();
    if (await settledWithin(Math.max(0, deadline - performance.now()), flushed)) return true;
    if (this.circuit === 'closed' && (await settledWithin(FLUSH_MS, flushed))) return true;
    const left = this.engine.batcher.giveUp();
    if (left.length) this.engine.reportUnwritten(left, null);
    return left.length === 0;
  }

  /** What runs may still settle; the rest is for processes that know the schema. */
  private retire(reason: SchemaTooNewError): void {
    if (this.stopping) return;
    this.engine.report(reason, 'checking the schema; the pool stops');
    this.interrupt();
  }

  private async abortAfter(timeoutMs: number): Promise<void> {
    const finished = await settledWithin(timeoutMs, Promise.all(this.slots));
    if (!finished) this.engine.runner.abortAll(() => new ShutdownError('The worker pool is stopping.'));
  }

  private terminate(): void {
    this.current = 'terminated';
    void this.engine.pauses.stop();
    this.engine.batcher.giveUp();
    this.unwatch?.();
    this.leaveManager?.();
    this.markEnded();
  }

  /** One slot: takes and runs jobs until the queue stops. */
  private async slot(): Promise<void> {
    for (;;) {
      const job = this.queue.tryTakeJob() ?? (await this.queue.takeJob(Infinity));
      if (!job) return;
      const batch = this.queue.batchFor(job);
      if (batch) {
        await this.runBatch(batch);
        continue;
      }
      this.parts.events.emit('job.started', this.workerId, { job });
      const attempt = await this.engine.runner.run(job);
      this.engine.leave(job);
      if (attempt.settled) this.engine.batcher.announce([attempt], [attempt.settled]);
      else this.engine.batcher.add(attempt);
      if (this.engine.batcher.isFull) await this.engine.batcher.flush();
    }
  }

  private async runBatch(jobs: ClaimedJob[]): Promise<void> {
    const { engine } = this;
    for (const job of jobs) this.parts.events.emit('job.started', this.workerId, { job });
    const attempts = await engine.runner.runBatch(jobs);
    engine.leaveBatch(jobs);
    for (const attempt of attempts) {
      if (attempt.settled) engine.batcher.announce([attempt], [attempt.settled]);
      else engine.batcher.add(attempt);
    }
    if (engine.batcher.isFull) await engine.batcher.flush();
  }

  /** Neither a claim nor an outcome can go through any more: said once, and the pool ends. */
  private abandon(error: StoppedError, context: string): void {
    if (this.abandoned || this.current === 'terminated') return;
    this.abandoned = true;
    this.parts.events.emit('worker.error', this.workerId, { error, context: `${context}; the pool stops` });
    void this.shutDown(0, true);
  }
}
