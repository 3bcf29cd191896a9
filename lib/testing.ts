// millrace/testing: jobs under the eyes of a spec. Runs them where the spec says so, moves time, shows what is enqueued.
import type { AddedJob, Job, QueryExecutor } from './interfaces/job.interface.js';
import { DEFAULT_INSTANCE } from './jobs.constants.js';
import { type PlainTasks, poolPartsOf, type WorkerPoolOptions } from './jobs.factory.js';
import { resolveWorkerOptions, type ResolvedOptions } from './jobs.options.js';
import { tokensOf } from './jobs.providers.js';
import type { JobManager } from './manager/job.manager.js';
import { TestDatabase } from './testing/test.database.js';
import { assertionError, matchingJobs, type EnqueuedFilter } from './testing/enqueued.jobs.js';
import { JobDrainer, type DrainOptions } from './testing/job.drainer.js';
import type { DrainedJobs, RanJob } from './testing/drained.jobs.js';
import { PoolRunningError } from './testing/testing.errors.js';
import { testingFilter, testingOptions } from './testing/testing.arguments.js';
import { check, isRecord } from './validation.js';
import type { WorkerPoolParts } from './worker/pool.engine.js';
import type { WorkerPool } from './worker/worker.pool.js';

export type { EnqueuedFilter } from './testing/enqueued.jobs.js';
export type { DrainOptions } from './testing/job.drainer.js';
export type { DrainedJobs, PausedJobs, RanJob } from './testing/drained.jobs.js';
export { EndlessDrainError, PoolRunningError } from './testing/testing.errors.js';

/** A Nest application, application context or `TestingModule`. */
export interface NestContext {
  get(token: any, options: { strict: boolean }): any;
}

/** The parts of an application without Nest: as for `createWorkerPool`, only that handlers may be missing. */
export type PlainParts<T extends string = string> = Omit<WorkerPoolOptions, 'tasks' | 'workerId'> & {
  tasks?: PlainTasks<T> | undefined;
};

/** Looks through this connection, into its open transaction. */
export interface Through {
  manager?: QueryExecutor | undefined;
}

/**
 * Testing for an application: with Nest from the application or `TestingModule` (whose worker pool must not run: give
 * `JobsModule` `worker: { autoStart: false }`), outside Nest from the manager and its tasks.
 *
 * @example
 * const testing = createJobsTesting(app);                         // or createJobsTesting(app, { instance: 'reports' })
 * const testing = createJobsTesting({ jobs, tasks: { 'send-email': send } });
 */
export function createJobsTesting(app: NestContext, options?: { instance?: string | undefined }): JobsTesting;
export function createJobsTesting<T extends string>(parts: PlainParts<T>): JobsTesting;
export function createJobsTesting(source: NestContext | PlainParts, options: { instance?: string | undefined } = {}) {
  check({}, [testingOptions.create, options]);
  if (!isNestContext(source)) {
    const parts = isRecord(source) ? { ...source, tasks: source.tasks ?? {} } : source;
    return new JobsTesting(poolPartsOf(parts as WorkerPoolOptions), null);
  }
  const { instance } = options;
  const tokens = tokensOf(instance ?? DEFAULT_INSTANCE);
  const { jobs, tasks, validator, events, pool } = tokens;
  const find = <T>(token: unknown): T => source.get(token, { strict: false }) as T;
  const worker = find<ResolvedOptions>(tokens.options).worker || resolveWorkerOptions();
  const parts = { jobs: find(jobs), tasks: find(tasks), validator: find(validator), events: find(events) };
  return new JobsTesting({ ...(parts as Omit<WorkerPoolParts, 'options'>), options: worker }, find(pool));
}

const isNestContext = (source: NestContext | PlainParts): source is NestContext =>
  typeof (source as NestContext | null)?.get === 'function';

/** Made by `createJobsTesting`. Nothing that it opens stays open; `close()` only ends its part in the manager. */
export class JobsTesting {
  /** The manager under test. */
  readonly jobs: JobManager;
  /** What was added through the manager, in order, even where the transaction rolled back. */
  readonly added: AddedJob[] = [];
  private readonly bench: TestDatabase;
  private readonly drainer: JobDrainer;
  private readonly unobserve: () => void;
  private mode: 'manual' | 'throw' | 'record' = 'manual';
  private turn: Promise<unknown> = Promise.resolve();

  constructor(
    parts: WorkerPoolParts,
    private readonly pool: WorkerPool | null,
  ) {
    this.jobs = parts.jobs;
    this.bench = new TestDatabase(parts.jobs);
    this.drainer = new JobDrainer(parts, this.bench);
    this.unobserve = this.bench.observeAdds((add, inTransaction) => this.add(add, inTransaction));
  }

  /** Every attempt that ran here, in order. */
  get ran(): readonly RanJob[] {
    return this.drainer.ran;
  }

  // Running jobs

  /**
   * From now on `addJob` and `addJobs` resolve after their jobs, and those that these add, have run and were settled.
   * What a handler threw is thrown by the call that added the job; with `onFailure: 'record'` it only stands in `ran`.
   * Jobs for later wait for `travel` and `drain`. Jobs that are added in a caller's transaction (`manager`) cannot run
   * before it commits: they run at the next `drain`, or with the next job that is added.
   *
   * @throws PoolRunningError
   * @example
   * testing.inline();
   * await signUp.register('ada@example.org'); // adds 'send-welcome', which has run by now
   */
  inline(options: { onFailure?: 'throw' | 'record' | undefined } = {}): void {
    check({}, [testingOptions.inline, options]);
    this.refuseRunningPool();
    this.mode = options.onFailure ?? 'throw';
  }

  /** Ends inline mode: jobs wait for `drain` again. */
  manual(): void {
    this.mode = 'manual';
  }

  /**
   * Performs bulk actions that are due, and runs all due jobs in this process, and those that they add, until none is due: one at a time, in order of priority,
   * run-at and id. Handlers, payload checks, timeouts, retries, limits and events are those of production. Failures are
   * not thrown but returned. What waits for its backoff, its time or a rate limit's window is left: see `travel`.
   * So is what is paused: `paused` of the answer names the pauses, and the jobs that they keep from running.
   *
   * @throws EndlessDrainError when there is no end to it, PoolRunningError
   * @example
   * const ran = await testing.drain();
   * expect(ran.map(({ job, status }) => [job.task, status])).toEqual([['send-email', 'completed']]);
   */
  async drain(options: DrainOptions = {}): Promise<DrainedJobs> {
    check({}, [testingOptions.drain, options]);
    this.refuseRunningPool();
    // A handler that drains would wait for its own end.
    return this.drainer.insideJob ? this.drainer.drain(options) : this.inTurn(() => this.drainer.drain(options));
  }

  // Looking

  /**
   * Jobs that wait to run, oldest first; with `status` in the filter, jobs of that status. `manager` looks into an open
   * transaction.
   *
   * @throws InvalidArgumentError for fields that jobs do not have, and values that no job can hold
   * @example
   * const [job] = await testing.enqueued({ task: 'send-email', payload: { to: 'ada@example.org' } });
   */
  async enqueued(filter: EnqueuedFilter = {}, options: Through = {}): Promise<Job[]> {
    check({}, [testingFilter, filter], [testingOptions.through, options]);
    return matchingJobs(await this.bench.list(options.manager), filter);
  }

  /**
   * As `enqueued`, but fails unless there is such a job, or exactly as many as `times`; the message lists what is
   * enqueued instead.
   *
   * @throws AssertionError of node:assert, InvalidArgumentError
   * @example
   * await testing.expectEnqueued({ task: 'send-email', payload: { to: 'ada@example.org' } }, { times: 1 });
   */
  async expectEnqueued(
    filter: EnqueuedFilter = {},
    options: Through & { times?: number | undefined } = {},
  ): Promise<Job[]> {
    check({}, [testingFilter, filter], [testingOptions.expectation, options]);
    const { manager, times } = options;
    const jobs = await this.bench.list(manager);
    const found = matchingJobs(jobs, filter);
    if (times === undefined ? found.length > 0 : found.length === times) return found;
    throw assertionError({ filter, times, found, jobs, added: this.added });
  }

  /** Fails if such a job is enqueued. @throws AssertionError of node:assert, InvalidArgumentError */
  async expectNotEnqueued(filter: EnqueuedFilter = {}, options: Through = {}): Promise<void> {
    check({}, [testingOptions.through, options]);
    await this.expectEnqueued(filter, { ...options, times: 0 });
  }

  // Time and order

  /**
   * Lets so many ms pass for everything that is stored: delays, backoff, snoozes, leases, rate limits' windows, crontabs
   * and retention. PostgreSQL's clock decides what is due, and it stays: what is stored moves into the past. So a job
   * that was to run at noon shows an earlier `runAt` afterwards. Runs nothing; `drain` does. Crontabs of the tasks are
   * known before: those whose time comes meanwhile fire at the next `drain`, however long ago that was.
   *
   * @throws InvalidArgumentError unless it is an integer of at least 0
   * @example
   * await testing.travel(60_000);
   * await testing.drain();
   */
  async travel(ms: number): Promise<void> {
    await this.drainer.declare();
    await this.bench.travel(ms);
    this.drainer.travelled(ms);
  }

  /**
   * Removes all jobs and their history, for `beforeEach`: also frees queues, refills rate limits, and empties `added`
   * and `ran`. What was configured stays (queues' concurrency, pauses, rate limits) unless `configuration` is true.
   *
   * @example
   * beforeEach(() => testing.clear());
   */
  async clear(options: { configuration?: boolean | undefined } = {}): Promise<void> {
    check({}, [testingOptions.clear, options]);
    await this.bench.clear(options);
    this.added.length = 0;
    this.drainer.forget();
  }

  /** Ends inline mode and hears of no more adds. Waits for a drain under way. The manager stays open: it is yours. */
  async close(): Promise<void> {
    this.manual();
    this.unobserve();
    await this.turn;
  }

  private async add(add: () => Promise<AddedJob[]>, inTransaction: boolean): Promise<AddedJob[]> {
    const ranBefore = this.ran.length;
    const added = await this.drainer.watch(add);
    this.added.push(...added);
    // Inside a job: the drain that runs it goes on to these, when it has ended.
    const atOnce = this.mode !== 'manual' && !inTransaction && !this.drainer.insideJob;
    if (atOnce) await this.runInline(added, ranBefore);
    return added;
  }

  private async runInline(added: AddedJob[], ranBefore: number): Promise<void> {
    const families = added.map(({ id }) => this.drainer.familyOf(id));
    await this.drain();
    if (this.mode !== 'throw') return;
    const failed = this.ran.slice(ranBefore).filter((one) => 'error' in one);
    const own = failed.find(({ job }) => added.some(({ id }) => id === job.id));
    const failure = own ?? failed.find(({ job }) => families.some((family) => family.has(job.id)));
    if (failure) throw failure.error;
  }

  /** Drains take turns: two at once would mix up their order. */
  private async inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.turn.then(work);
    this.turn = mine.catch(() => undefined);
    return mine;
  }

  private refuseRunningPool(): void {
    if (this.pool?.running) throw new PoolRunningError();
  }
}
