// Builds the parts of a pool and lets them hear of each other: what is settled frees slots and places, what has ended elsewhere
// is aborted, and what a heartbeat learns reaches the queue.
import { hostname } from 'node:os';
import type { SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { WorkerSettings } from '../interfaces/jobs-options.interface.js';
import {
  CancelJob,
  LeaseLostError,
  OutcomesUnwrittenError,
  type SchemaTooNewError,
  StoppedError,
} from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import type { PayloadValidator } from '../manager/payload.validator.js';
import type { TaskRegistry } from '../manager/task.registry.js';
import type { CheckedClaim } from '../manager/worker.registry.js';
import type { JobEvents } from '../monitoring/job.events.js';
import type { News } from '../storage/job.news.js';
import type { JobNotifier } from '../storage/job.notifier.js';
import { Admission } from './admission.js';
import { BulkDriver } from './bulk.driver.js';
import type { CircuitState } from './circuit.breaker.js';
import type { CronScheduler } from './cron.scheduler.js';
import { waitOf } from './gathering.batch.js';
import { Heartbeat } from './heartbeat.js';
import { PauseWatch } from './pause.watch.js';
import { JobQueue } from './job.queue.js';
import { JobRunner } from './job.runner.js';
import { OutcomeBatcher } from './outcome.batcher.js';
import { queueSettingsOf } from './queue.options.js';
import { newWorkerId, WorkerIdentity } from './worker.identity.js';

export interface WorkerPoolParts {
  jobs: JobManager;
  tasks: TaskRegistry;
  validator: PayloadValidator;
  events: JobEvents;
  options: WorkerSettings;
  workerId?: string;
  /** The module's instance that it is a pool of. Default: the one without a name. */
  instance?: string | undefined;
  scheduler?: CronScheduler;
}

/** What a pool does when a part of it can go on no more. */
interface Lifecycle {
  /** What runs may still settle; the rest is for processes that know the schema. */
  retire: (reason: SchemaTooNewError) => void;
  /** Neither a claim nor an outcome can go through any more. */
  abandon: (error: StoppedError, context: string) => void;
}

export class PoolEngine {
  readonly workerId: string;
  readonly queue: JobQueue;
  readonly runner: JobRunner;
  readonly batcher: OutcomeBatcher;
  readonly heartbeat: Heartbeat;
  readonly notifier: JobNotifier | null;
  readonly admission: Admission;
  readonly bulk: BulkDriver;
  readonly pauses: PauseWatch;
  readonly counters = { completed: 0, failed: 0, errors: 0 };
  private readonly identity: WorkerIdentity;

  constructor(
    private readonly parts: WorkerPoolParts,
    private readonly lifecycle: Lifecycle,
  ) {
    const { tasks, events, options } = parts;
    const { engine } = parts.jobs;
    const workerId = (this.workerId = parts.workerId ?? newWorkerId(hostname()));
    const identity = (this.identity = new WorkerIdentity(workerId, parts.instance));
    const onError = (error: unknown, context: string): void => this.report(error, context);
    const onDeaf = (error: unknown): void => onError(error, 'listening for jobs');
    this.notifier = options.listen ? engine.createNotifier(onDeaf) : null;
    const mayStart = (): boolean => this.circuit === 'closed' && this.heartbeat.holds;
    this.admission = new Admission(tasks, options.maxCrashes, mayStart);
    this.pauses = new PauseWatch({
      pauses: engine.pauses,
      incarnation: () => identity.incarnation,
      held: () => this.queue.jobs(),
      onPaused: () => this.queue.giveBackPaused(),
      onResumed: () => this.queue.resume(),
      onError,
    });
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
    this.heartbeat = this.makeHeartbeat(onError);
    const { bulk: pages, registry } = engine;
    this.bulk = new BulkDriver({ pages, schemaCheck: registry.schemaCheck, events, workerId, onError });
  }

  get circuit(): CircuitState {
    return this.batcher.circuit.state;
  }

  leave(job: ClaimedJob): void {
    this.noteFreed(this.admission.leave(job));
  }

  leaveBatch(jobs: ClaimedJob[]): void {
    this.noteFreed(this.admission.leaveBatch(jobs));
  }

  private noteFreed(freed: { suspect: boolean; slot: boolean }): void {
    if (freed.suspect) this.queue.lookAgain();
    if (!freed.slot) return;
    this.queue.serve();
    this.queue.wake();
  }

  /** What other processes tell of claims and parents. */
  onNews(news: News): void {
    if (news.kind === 'bulk') this.bulk.wake();
    if (news.kind === 'parents') {
      const { jobs } = this.parts;
      void jobs.engine.promoter.catchUp(news.ids).catch((error: unknown) => this.report(error, 'telling children'));
    }
    if (news.kind === 'pauses') this.pauses.ask();
    if (news.kind !== 'ended' && news.kind !== 'cancelled') return;
    const mine = [...this.queue.jobs(), ...this.admission.all()].some(({ id }) => news.ids.includes(id));
    if (news.kind === 'cancelled' && mine) {
      for (const id of news.ids) this.runner.abort(id, cancelled(news.reason));
    }
    if (mine || !news.ids.length) void this.heartbeat.checkClaims();
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

  /** Jobs that run, and those whose outcome is not written yet. */
  private held(): ClaimedJob[] {
    return [...this.admission.all(), ...this.batcher.held().map(({ job }) => job)];
  }

  watchDatabase(): () => void {
    const { jobs, events } = this.parts;
    return jobs.engine.registry.watchDatabase({
      lost: (error) => events.emit('database.lost', this.workerId, { error }),
      back: (downMs, failures) => events.emit('database.back', this.workerId, { downMs, failures }),
    });
  }

  reportUnwritten(requests: SettleRequest[], error: unknown): void {
    this.report(new OutcomesUnwrittenError(requests.map(({ job }) => job.id)), 'stopping');
    if (error !== null) this.report(error, 'settling outcomes');
  }

  report(error: unknown, context: string): void {
    this.counters.errors++;
    if (error instanceof StoppedError) return this.lifecycle.abandon(error, context);
    this.parts.events.emit('worker.error', this.workerId, { error, context });
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

  /** The circuit has opened or closed. */
  private onCircuitChange(): void {
    if (this.circuit !== 'closed') return;
    this.queue.serve();
    this.queue.wake();
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
      admit: (job, batch) => this.admission.admit(job, batch),
      batchOf: (task) => tasks.get(task)?.options.batch ?? null,
      pauses: this.pauses,
      mayClaim,
      held: () => this.held(),
      quarantine: this.admission.quarantine,
    });
  }

  private makeHeartbeat(onError: (error: unknown, context: string) => void): Heartbeat {
    const { jobs, tasks, options } = this.parts;
    return new Heartbeat({
      engine: jobs.engine,
      identity: this.identity,
      options,
      takes: () => ({
        tasks: options.taskIdentifiers ?? tasks.names(),
        takesAnyTask: this.takesAnyTask,
        batchWaits: batchWaitsOf(tasks),
      }),
      held: () => [...this.queue.jobs(), ...this.held()],
      onClaims: (claims) => this.endClaims(claims),
      onTooLate: () => this.runner.abortAll((job) => new LeaseLostError(job.id)),
      onDeath: () => {
        this.runner.abortAll((job) => new LeaseLostError(job.id));
        this.queue.dropAll();
      },
      onBeat: (hasPauses = false) => {
        this.pauses.onBeat(hasPauses);
        this.queue.compareSoon();
        this.onCircuitChange();
      },
      onSchemaTooNew: (error) => this.lifecycle.retire(error),
      onError,
    });
  }

  private get takesAnyTask(): boolean {
    const { taskIdentifiers, unknownTasks } = this.parts.options;
    return !taskIdentifiers && unknownTasks === 'exhaust';
  }
}

const batchWaitsOf = (tasks: TaskRegistry): Record<string, number> =>
  Object.fromEntries(
    tasks.names().flatMap((task) => {
      const { batch } = tasks.get(task)!.options;
      return batch ? [[task, waitOf(batch)]] : [];
    }),
  );

const cancelled = (reason: string | null): CancelJob => new CancelJob(reason ?? 'the job was cancelled');
