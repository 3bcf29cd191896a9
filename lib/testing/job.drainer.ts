// Runs due jobs one after the other, by the same claim, run and settle as a pool, until none is due.
import type { Claimer } from '../interfaces/claim.interface.js';
import { byHand } from '../manager/worker.registry.js';
import { AsyncLocalStorage } from 'node:async_hooks';
import type { Outcome, SettleResult } from '../interfaces/claim.interface.js';
import type { AddedJob, ClaimedJob } from '../interfaces/job.interface.js';
import { InvalidArgumentError, ShutdownError } from '../jobs.errors.js';
import { GRACE_MS } from '../manager/crontabs.js';
import { passIntoScopes } from '../monitoring/async.scope.js';
import { after } from '../timing.js';
import { JobRunner } from '../worker/job.runner.js';
import { batchKey } from '../worker/gathering.batch.js';
import type { Attempt } from '../worker/outcome.js';
import { newWorkerId } from '../worker/worker.identity.js';
import { OutcomeBatcher } from '../worker/outcome.batcher.js';
import type { WorkerPoolParts } from '../worker/pool.engine.js';
import { type DrainedJobs, type PausedJobs, type RanJob, withPaused } from './drained.jobs.js';
import type { TestDatabase } from './test.database.js';
import { endlessDrain, type EndlessDrainError } from './testing.errors.js';

/** Which jobs `drain` runs, and when it gives up. */
export interface DrainOptions {
  /** Most jobs to run. Default 500: more are probably a task that adds itself again and again. */
  maxJobs?: number | undefined;
  /** Longest time for all of them, in ms. Default 30,000; the limit of your test runner may be shorter. */
  timeoutMs?: number | undefined;
  /** Only these tasks. Default: what the application's worker takes, that is, all that have a handler. */
  tasks?: string[] | undefined;
  /** Only these queues, one after the other. Default: what the application's worker takes, that is, all. */
  queues?: string[] | undefined;
}

/** A job, the jobs it added, the jobs those added, and so on: the call that added the first is told of each failure. */
export type Family = Set<string>;

type Limits = Pick<DrainOptions, 'maxJobs' | 'timeoutMs'>;

/** The family of the job that runs where this is asked. */
const running = new AsyncLocalStorage<{ drainer: JobDrainer; family: Family }>();
passIntoScopes(running);

const MAX_JOBS = 500;
const TIMEOUT_MS = 30_000;

export class JobDrainer {
  /** What has run so far. */
  readonly ran: RanJob[] = [];
  private readonly workerId = newWorkerId('testing');
  private readonly claimer: Claimer;
  private readonly runner: JobRunner;
  private readonly batcher: OutcomeBatcher;
  private readonly results = new Map<ClaimedJob, SettleResult>();
  private readonly abandoned = new WeakSet<ClaimedJob>();
  private readonly families = new Map<string, Family>();
  private readonly adding = new Set<Promise<unknown>>();

  private prepared = false;
  private declared = '';
  private travelledMs = 0;

  constructor(
    private readonly parts: WorkerPoolParts,
    private readonly database: TestDatabase,
  ) {
    const { workerId } = this;
    this.claimer = byHand(workerId, parts.jobs.engine.registry.lockTimeoutMs);
    const claimer = (): Claimer => this.claimer;
    const onError = (error: unknown, context: string): void =>
      parts.events.emit('worker.error', workerId, { error, context });
    this.runner = new JobRunner({ ...parts, workerId, claimer, onError });
    this.batcher = new OutcomeBatcher(parts.jobs.engine, parts.events, claimer, (result) =>
      this.results.set(result.job, result),
    );
  }

  /** Whether the caller is a handler, or an event of its job. */
  get insideJob(): boolean {
    return this.family !== undefined;
  }

  /** Runs what is due, best priority first, then by run-at and id. Returns what ran. */
  async drain(options: DrainOptions = {}): Promise<DrainedJobs> {
    const { maxJobs = MAX_JOBS, timeoutMs = TIMEOUT_MS } = options;
    if (this.insideJob) throw new InvalidArgumentError(['Expected drain() outside of handlers, got it inside one.']);
    const first = this.ran.length;
    try {
      await this.parts.jobs.resetLockedJobs();
      await this.fireCrontabs();
      await this.performBulkActions();
      do await this.runAll(options, { maxJobs, timeoutMs }, first);
      while (await this.performBulkActions());
    } finally {
      // No timer stays behind.
      await this.runner.stop();
    }
    return withPaused(this.ran.slice(first), await this.findPaused(options));
  }

  /** An add is under way: inside a job it is waited for, even where the handler does not wait. */
  async watch(add: () => Promise<AddedJob[]>): Promise<AddedJob[]> {
    const { family } = this;
    if (!family) return add();
    const work = add();
    const watched = work.then((added) => added.forEach(({ id }) => this.join(id, family))).catch(() => undefined);
    this.adding.add(watched);
    void watched.then(() => this.adding.delete(watched));
    return work;
  }

  /** The family of a job that was added from outside. */
  familyOf(id: string): Family {
    return this.families.get(id) ?? this.join(id, new Set());
  }

  forget(): void {
    this.ran.length = 0;
    this.families.clear();
    this.travelledMs = 0;
  }

  /** Writes down the crontabs that the tasks declare. */
  async declare(): Promise<void> {
    const { jobs, tasks } = this.parts;
    const names = tasks.names();
    const declared = JSON.stringify(names);
    // Nest finds tasks only when the application is initialised.
    if (declared === this.declared) return;
    await (await jobs.engine.declarations.ofTasks(names.flatMap((name) => tasks.get(name) ?? []))).declare();
    this.declared = declared;
  }

  /** Time was made to pass. */
  travelled(ms: number): void {
    this.travelledMs += ms;
  }

  private get family(): Family | undefined {
    const store = running.getStore();
    return store?.drainer === this ? store.family : undefined;
  }

  private async runAll(options: DrainOptions, limits: Required<Limits>, first: number): Promise<void> {
    const { maxJobs, timeoutMs } = limits;
    const deadline = performance.now() + timeoutMs;
    for (let job = await this.claim(options); job; job = await this.claim(options)) {
      const ran = this.ran.slice(first);
      if (ran.length >= maxJobs) throw await this.giveUp([job], ran, `within ${maxJobs} jobs`, options);
      const batch = await this.gather(job, options, maxJobs - ran.length);
      const done = await within(deadline - performance.now(), this.inFamily(job, batch));
      if (!done) throw await this.giveUp(batch, ran, `within ${timeoutMs} ms`, options);
    }
  }

  /**
   * As a pool does, and as if one had run while time was made to pass: slots of that time are not missed. A crontab that
   * cannot be fired is reported and keeps nothing else from running.
   */
  private async fireCrontabs(): Promise<void> {
    await this.declare();
    const { crontabs } = this.parts.jobs.engine;
    const graceMs = GRACE_MS + this.travelledMs;
    for (const id of (await crontabs.poll(graceMs)).due) await this.fireCrontab(id, graceMs);
    this.travelledMs = 0;
  }

  private async fireCrontab(cronId: string, graceMs: number): Promise<void> {
    const { jobs, events } = this.parts;
    try {
      for (let more = true; more;) {
        const firing = await jobs.engine.crontabs.fire(cronId, graceMs);
        for (const slot of firing.fired) events.emit('cron.fired', this.workerId, { cronId, ...slot });
        ({ more } = firing);
      }
    } catch (error) {
      events.emit('worker.error', this.workerId, { error, context: `firing the crontab "${cronId}"` });
    }
  }

  /** Those that are due, as pools perform them. Returns whether there were any. */
  private async performBulkActions(): Promise<boolean> {
    const { bulk } = this.parts.jobs.engine;
    let pages = 0;
    while ((await bulk.dueInMs()) === 0 && (await bulk.doNext())) pages++;
    return pages > 0;
  }

  private join(id: string, family: Family): Family {
    this.families.set(id, family);
    return family.add(id);
  }

  private async claim(options: DrainOptions): Promise<ClaimedJob | undefined> {
    while (this.adding.size) await Promise.all(this.adding);
    return (await this.claimSome(this.tasksToTake(options.tasks), options.queues, 1))[0];
  }

  private claimSome(tasks: string[] | null, queues: string[] | undefined, limit: number): Promise<ClaimedJob[]> {
    const { jobs, options } = this.parts;
    const filter = { taskIdentifiers: tasks, forbiddenFlags: options.forbiddenFlags };
    return jobs.engine.exactClaims.claim({ ...this.claimer, ...filter }, queues ?? options.queues, limit);
  }

  /** The job with others that are due and run in one call with it. Those that share no batch with it are given back. */
  private async gather(job: ClaimedJob, { queues }: DrainOptions, most: number): Promise<ClaimedJob[]> {
    const batch = this.parts.tasks.get(job.task)?.options.batch;
    const key = batch ? batchKey(job, batch) : null;
    const limit = key === null ? 0 : Math.min(batch!.size, most) - 1;
    if (limit < 1) return [job];
    const found = await this.claimSome([job.task], queues, limit);
    const others = found.filter((other) => batchKey(other, batch!) !== key);
    if (others.length) await this.parts.jobs.engine.settlement.release(this.claimer, others);
    return [job, ...found.filter((other) => !others.includes(other))];
  }

  private findPaused({ tasks, queues }: DrainOptions): Promise<PausedJobs[]> {
    const { options } = this.parts;
    return this.database.findPaused(this.tasksToTake(tasks), queues ?? options.queues ?? null, options.forbiddenFlags);
  }

  private tasksToTake(chosen: string[] | undefined): string[] | null {
    const { options, tasks } = this.parts;
    const unknown = chosen?.filter((task) => !tasks.get(task)) ?? [];
    if (unknown.length) {
      const names = unknown.map((task) => `"${task}"`).join(', ');
      throw new InvalidArgumentError([`Expected tasks that have a handler in this application, got ${names}.`]);
    }
    return chosen ?? options.taskIdentifiers ?? (options.unknownTasks === 'exhaust' ? null : tasks.names());
  }

  private async inFamily(job: ClaimedJob, batch: ClaimedJob[]): Promise<true> {
    await running.run({ drainer: this, family: this.familyOf(job.id) }, () => this.attempt(job, batch));
    return true;
  }

  private async attempt(first: ClaimedJob, batch: ClaimedJob[]): Promise<void> {
    const { events, tasks } = this.parts;
    for (const job of batch) events.emit('job.started', this.workerId, { job });
    const { transactional, batch: isBatch } = tasks.get(first.task)?.options ?? {};
    if (transactional) await this.prepareTransactions();
    const attempts = isBatch ? await this.runner.runBatch(batch) : [await this.runner.run(first)];
    for (const attempt of attempts) await this.settle(attempt);
  }

  private async settle(attempt: Attempt): Promise<void> {
    const { job } = attempt;
    // Its claim was given back when the time was up.
    if (this.abandoned.has(job)) return;
    if (attempt.settled) this.batcher.announce([attempt], [attempt.settled]);
    else this.batcher.add(attempt);
    await this.batcher.flush();
    const status = this.results.get(job)?.status ?? 'lost';
    this.results.delete(job);
    this.ran.push({ job, status, ...detailsOf(attempt.outcome) });
  }

  private async prepareTransactions(): Promise<void> {
    if (!this.prepared) await this.parts.jobs.engine.transactions.prepare(1);
    this.prepared = true;
  }

  /** Leaves jobs as they were before their claim, and says what kept the spec from its end. */
  private async giveUp(
    batch: ClaimedJob[],
    ran: RanJob[],
    limit: string,
    options: DrainOptions,
  ): Promise<EndlessDrainError> {
    const [job] = batch as [ClaimedJob];
    const running = this.runner.isRunning(job.id);
    for (const one of batch) {
      this.abandoned.add(one);
      this.runner.abort(one.id, new ShutdownError('The spec waits no longer.'));
    }
    await this.parts.jobs.engine.settlement.release(this.claimer, batch);
    const left = `"${job.task}" (job ${job.id}) ${running ? 'still runs' : 'is due'}`;
    return endlessDrain(limit, ran, left, job.task, await this.findPaused(options));
  }
}

function detailsOf(outcome: Outcome): Pick<RanJob, 'error' | 'result'> {
  if ('error' in outcome) return { error: outcome.error };
  if (outcome.kind === 'completed' && outcome.result !== null) return { result: JSON.parse(outcome.result) as unknown };
  return {};
}

/** What the work resolved to; undefined when it took too long. Leaves no timer behind. */
async function within<T>(ms: number, work: Promise<T>): Promise<T | undefined> {
  let endTimer!: () => void;
  const timeout = new Promise<undefined>((resolve) => (endTimer = after(Math.max(0, ms), () => resolve(undefined))));
  try {
    return await Promise.race([work, timeout]);
  } finally {
    endTimer();
  }
}
