// N slots that take jobs from the local buffer, run them, and hand their outcomes to the batcher.
import { hostname } from 'node:os';
import type { SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { WorkerSettings } from '../interfaces/jobs-options.interface.js';
import {
  AlreadyRunningError,
  CancelJob,
  LeaseLostError,
  OutcomesUnwrittenError,
  type SchemaTooNewError,
  ShutdownError,
  StoppedError,
} from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import type { PayloadValidator } from '../manager/payload.validator.js';
import type { TaskRegistry } from '../manager/task.registry.js';
import type { JobEvents } from '../monitoring/job.events.js';
import type { CheckedClaim } from '../manager/worker.registry.js';
import type { News } from '../storage/job.news.js';
import type { JobNotifier } from '../storage/job.notifier.js';
import { Admission } from './admission.js';
import { settledWithin } from '../timing.js';
import { JobQueue } from './job.queue.js';
import { JobRunner } from './job.runner.js';
import { Heartbeat } from './heartbeat.js';
import { OutcomeBatcher } from './outcome.batcher.js';
import { PoolStart, type PoolScheduler } from './pool.start.js';
import { checkWait, queueSettingsOf } from './queue.options.js';
import type { CircuitState } from './circuit.breaker.js';
import { newWorkerId, WorkerIdentity } from './worker.identity.js';

export interface WorkerPoolParts {
  jobs: JobManager;
  tasks: TaskRegistry;
  validator: PayloadValidator;
  events: JobEvents;
  options: WorkerSettings;
  workerId?: string;
  scheduler?: PoolScheduler;
}

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
  private readonly identity: WorkerIdentity;
  private readonly runner: JobRunner;
  private readonly batcher: OutcomeBatcher;
  private readonly keeper: Heartbeat;
  private readonly notifier: JobNotifier | null;
  private readonly starting: PoolStart;
  private readonly admission: Admission;
  private readonly counters = { completed: 0, failed: 0, errors: 0 };
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
    const { tasks, events, options } = parts;
    const { engine } = parts.jobs;
    const workerId = (this.workerId = parts.workerId ?? newWorkerId(hostname()));
    const identity = (this.identity = new WorkerIdentity(workerId));
    const onError = (error: unknown, context: string): void => this.report(error, context);
    const onDeaf = (error: unknown): void => onError(error, 'listening for jobs');
    this.notifier = options.listen ? engine.createNotifier(onDeaf) : null;
    const mayStart = (): boolean => this.circuit === 'closed' && this.keeper.holds;
    this.admission = new Admission(tasks, options.maxCrashes, mayStart);
    this.queue = this.makeQueue(mayStart, onError);
    const onBegin = (error: unknown): void => this.hearOfBegin(error);
    this.runner = new JobRunner({ ...parts, workerId, claimer: () => identity.claimer, onError, onBegin });
    this.batcher = new OutcomeBatcher(
      engine,
      events,
      () => identity.claimer,
      (result) => this.count(result),
      () => this.onCircuitChange(),
      (batch) => this.queue.settleAndClaim(batch),
      (requests, error) => this.reportUnwritten(requests, error),
    );
    this.keeper = this.makeKeeper(onError);
    const { keeper, notifier } = this;
    this.starting = new PoolStart({ workerId, keeper, notifier, scheduler: parts.scheduler });
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
    return this.batcher.circuit.state;
  }

  /** Slots that run a job now. */
  get activeWorkers(): number {
    return this.admission.size;
  }

  stats(): WorkerPoolStats {
    return { active: this.admission.size, unwritten: this.batcher.pending, ...this.counters };
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
    this.unwatch = this.watchDatabase();
    this.notifier?.subscribe((news) => this.onNews(news));
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
    if (this.current === 'running' && !this.stopping) await this.keeper.describe();
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
    void this.keeper.leave();
    const scheduled = this.parts.scheduler?.stop();
    const emptied = this.queue.stop(Math.min(MAX_JOIN_MS, Math.max(MIN_JOIN_MS, timeoutMs)));
    void this.abortAfter(timeoutMs);
    await emptied;
    const idle = await settledWithin(Math.max(0, deadline - performance.now()), Promise.all(this.slots));
    const written = await this.flush(deadline);
    const lastSteps = async (): Promise<void> => {
      await scheduled;
      await this.starting.ended();
      await this.keeper.stop(idle && written && !this.queue.inDoubt);
      await this.notifier?.stop();
    };
    await settledWithin(LAST_STEPS_MS, lastSteps());
    await this.runner.stop();
    this.terminate();
    this.parts.events.emit('pool.stop', this.workerId, { forced: this.forced });
  }

  /** Waits for the last outcomes to be written, and says which could not be. Where settles fail, until the deadline. */
  private async flush(deadline: number): Promise<boolean> {
    const flushed = this.batcher.flush();
    if (await settledWithin(Math.max(0, deadline - performance.now()), flushed)) return true;
    if (this.circuit === 'closed' && (await settledWithin(FLUSH_MS, flushed))) return true;
    const left = this.batcher.giveUp();
    if (left.length) this.reportUnwritten(left, null);
    return left.length === 0;
  }

  /** What runs may still settle; the rest is for processes that know the schema. */
  private retire(reason: SchemaTooNewError): void {
    if (this.stopping) return;
    this.report(reason, 'checking the schema; the pool stops');
    this.interrupt();
  }

  private async abortAfter(timeoutMs: number): Promise<void> {
    const finished = await settledWithin(timeoutMs, Promise.all(this.slots));
    if (!finished) this.runner.abortAll(() => new ShutdownError('The worker pool is stopping.'));
  }

  private terminate(): void {
    this.current = 'terminated';
    this.batcher.giveUp();
    this.unwatch?.();
    this.leaveManager?.();
    this.markEnded();
  }

  /** One slot: takes and runs jobs until the queue stops. */
  private async slot(): Promise<void> {
    for (;;) {
      const job = this.queue.tryTakeJob() ?? (await this.queue.takeJob(Infinity));
      if (!job) return;
      this.parts.events.emit('job.started', this.workerId, { job });
      const attempt = await this.runner.run(job);
      this.leave(job);
      if (attempt.settled) this.batcher.announce([attempt], [attempt.settled]);
      else this.batcher.add(attempt);
      if (this.batcher.isFull) await this.batcher.flush();
    }
  }

  private leave(job: ClaimedJob): void {
    const freed = this.admission.leave(job);
    if (freed.suspect) this.queue.lookAgain();
    if (!freed.slot) return;
    this.queue.serve();
    this.queue.wake();
  }

  /** What other processes tell of claims and parents. */
  private onNews(news: News): void {
    if (news.kind === 'parents') {
      const { jobs } = this.parts;
      void jobs.engine.promoter.catchUp(news.ids).catch((error: unknown) => this.report(error, 'telling children'));
    }
    if (news.kind !== 'ended' && news.kind !== 'cancelled') return;
    const mine = [...this.queue.jobs(), ...this.admission.all()].some(({ id }) => news.ids.includes(id));
    if (news.kind === 'cancelled' && mine) {
      for (const id of news.ids) this.runner.abort(id, cancelled(news.reason));
    }
    if (mine || !news.ids.length) void this.keeper.checkClaims();
  }

  /** Claims that have ended elsewhere, or are asked to end: running ones are aborted, waiting ones never start. */
  private endClaims(claims: CheckedClaim[]): void {
    const dropped = new Set(this.queue.drop(claims));
    for (const { id, fence, standing, reason } of claims) {
      this.runner.abort(id, standing === 'gone' ? new LeaseLostError(id) : cancelled(reason), fence);
      if (standing === 'gone') continue;
      const waiting = [...dropped].find((job) => job.id === id && job.fence === fence);
      if (waiting) this.batcher.add({ job: waiting, outcome: { kind: 'cancelled', reason }, executionTimeMs: 0 });
    }
    if (dropped.size) this.queue.wake();
  }

  private count({ job, status, hasFreedPlace }: SettleResult): void {
    if (hasFreedPlace) this.queue.placeFreed(job);
    if (status === 'retrying' || status === 'snoozed') this.queue.comesBack(job);
    if (status === 'completed') this.counters.completed++;
    else if (status === 'retrying' || status === 'exhausted') this.counters.failed++;
  }

  private hearOfBegin(error: unknown): void {
    const { circuit } = this.batcher;
    if (error === null) circuit.begun();
    else circuit.beginFailed(error);
  }

  private makeQueue(mayClaim: () => boolean, onError: (error: unknown, context: string) => void): JobQueue {
    const { jobs, tasks, options } = this.parts;
    return new JobQueue({
      ...queueSettingsOf(options),
      jobs,
      workerId: this.workerId,
      notifier: this.notifier,
      // Evaluated late: Nest finds handlers only after it has created this pool.
      taskIdentifiers: () => options.taskIdentifiers ?? (this.takesAnyTask ? null : tasks.names()),
      claimer: () => this.identity.claimer,
      taskRooms: () => this.admission.rooms(() => this.queue.jobs()),
      onError,
      admit: (job) => this.admission.admit(job),
      mayClaim,
      held: () => this.held(),
      quarantine: this.admission.quarantine,
    });
  }

  private makeKeeper(onError: (error: unknown, context: string) => void): Heartbeat {
    const { jobs, tasks, options } = this.parts;
    return new Heartbeat({
      engine: jobs.engine,
      identity: this.identity,
      options,
      tasks: () => options.taskIdentifiers ?? tasks.names(),
      takesAnyTask: this.takesAnyTask,
      held: () => [...this.queue.jobs(), ...this.held()],
      onClaims: (claims) => this.endClaims(claims),
      onTooLate: () => this.runner.abortAll((job) => new LeaseLostError(job.id)),
      onDeath: () => {
        this.runner.abortAll((job) => new LeaseLostError(job.id));
        this.queue.dropAll();
      },
      onBeat: () => {
        this.queue.compareSoon();
        this.onCircuitChange();
      },
      onSchemaTooNew: (error) => this.retire(error),
      onError,
    });
  }

  private get takesAnyTask(): boolean {
    const { taskIdentifiers, unknownTasks } = this.parts.options;
    return !taskIdentifiers && unknownTasks === 'exhaust';
  }

  /** Jobs that run, and those whose outcome is not written yet. */
  private held(): ClaimedJob[] {
    return [...this.admission.all(), ...this.batcher.held().map(({ job }) => job)];
  }

  /** The circuit has opened or closed. */
  private onCircuitChange(): void {
    if (this.circuit !== 'closed') return;
    this.queue.serve();
    this.queue.wake();
  }

  private watchDatabase(): () => void {
    const { jobs, events } = this.parts;
    return jobs.engine.registry.watchDatabase({
      lost: (error) => events.emit('database.lost', this.workerId, { error }),
      back: (downMs, failures) => events.emit('database.back', this.workerId, { downMs, failures }),
    });
  }

  private reportUnwritten(requests: SettleRequest[], error: unknown): void {
    this.report(new OutcomesUnwrittenError(requests.map(({ job }) => job.id)), 'stopping');
    if (error !== null) this.report(error, 'settling outcomes');
  }

  /** Neither a claim nor an outcome can go through any more: said once, and the pool ends. */
  private abandon(error: StoppedError, context: string): void {
    if (this.abandoned || this.current === 'terminated') return;
    this.abandoned = true;
    this.parts.events.emit('worker.error', this.workerId, { error, context: `${context}; the pool stops` });
    void this.shutDown(0, true);
  }

  private report(error: unknown, context: string): void {
    this.counters.errors++;
    if (error instanceof StoppedError) return this.abandon(error, context);
    this.parts.events.emit('worker.error', this.workerId, { error, context });
  }
}

const cancelled = (reason: string | null): CancelJob => new CancelJob(reason ?? 'the job was cancelled');
