// The local buffer between the database and a pool's slots: claims in batches ahead of need, gives back what gets
// stale or is left over. Woken by notifications, by slots that ask for more than there is, and by its poll timer.
import type { SettleRequest } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { AlreadyRunningError, StoppedError } from '../jobs.errors.js';
import type { News } from '../storage/job.news.js';
import { maxPauseMs } from '../storage/sql.states.js';
import { backoffMs, settledWithin } from '../timing.js';
import { ClaimPlan } from './claim.plan.js';
import { JobBuffer } from './job.buffer.js';
import { JobDispatcher, type QueueState } from './job.dispatcher.js';
import { JobFetcher, type Claimed } from './job.fetcher.js';
import { JobReleaser } from './job.releaser.js';
import { ClaimReconciler } from './claim.reconciler.js';
import { PlaceFiller, type FillingAnswer } from './place.filler.js';
import { PollTimer } from './poll.timer.js';
import { checkQueueOptions, type JobQueueOptions, type JobQueueStats } from './queue.options.js';

export type { JobQueueOptions, JobQueueStats } from './queue.options.js';

const STOP_JOIN_MS = 5_000;

/**
 * new → running → stopped. While running, one fetch at a time:
 * asleep → (woken) → claiming → asleep, or claiming again while there is more.
 */
export class JobQueue {
  readonly workerId: string;
  private readonly buffer: JobBuffer;
  private readonly plan: ClaimPlan;
  private readonly fetcher: JobFetcher;
  private readonly reconciler: ClaimReconciler;
  private readonly releaser: JobReleaser;
  private readonly dispatcher: JobDispatcher;
  private readonly filler: PlaceFiller;
  private readonly counters = { fetched: 0, refetchCount: 0, errors: 0 };
  private state: QueueState = 'new';
  private loop: Promise<void> | null = null;
  private woken = false;
  private readonly poll: PollTimer;
  private unsubscribe: (() => void) | null = null;
  private failures = 0;
  private claiming = false;

  constructor(private readonly options: JobQueueOptions) {
    const { held, queueSize = null } = checkQueueOptions(options);
    this.workerId = options.workerId;
    this.buffer = new JobBuffer(queueSize, options.batchOf);
    this.plan = new ClaimPlan(options);
    this.poll = new PollTimer(options);
    this.dispatcher = new JobDispatcher({
      options,
      buffer: this.buffer,
      state: () => this.state,
      wake: () => this.wake(),
      dropStale: () => this.releaser.dropStale(),
    });
    this.fetcher = new JobFetcher(options, this.plan, this.buffer, {
      slots: () => this.dispatcher.freeSlots,
      wantsMore: () => this.dispatcher.wantsMore,
      failures: () => this.failures,
      pollMs: this.poll.shortestMs,
    });
    const all = held ? (): ClaimedJob[] => [...this.buffer.jobs(), ...held()] : null;
    this.reconciler = new ClaimReconciler(options, () => this.fetcher.claimer.holder, all);
    this.releaser = new JobReleaser(options, this.buffer, this.reconciler, () => this.fetcher.claimer);
    const { plan, fetcher, reconciler, releaser, dispatcher } = this;
    this.filler = new PlaceFiller(
      options,
      { plan, fetcher, reconciler, releaser, dispatcher },
      {
        isRunning: () => this.running,
        failures: () => this.failures,
        accept: (claimed) => this.accept(claimed),
        wake: () => this.wake(),
      },
    );
  }

  /** How many jobs are in the buffer. */
  get depth(): number {
    return this.buffer.length;
  }

  get running(): boolean {
    return this.state === 'running';
  }

  /** Whether the database may hold claims of this pool that the pool does not know of: a claim's answer was lost. */
  get inDoubt(): boolean {
    return this.reconciler.suspected || this.claiming || this.fetcher.looking;
  }

  stats(): JobQueueStats {
    const { dispatched } = this.dispatcher;
    const { staleDropped } = this.releaser;
    return { ...this.counters, dispatched, staleDropped, errors: this.counters.errors + this.releaser.errors };
  }

  /** Returns the queue. @throws AlreadyRunningError, or StoppedError after `stop()` */
  start(): this {
    if (this.running) throw new AlreadyRunningError('Expected a queue that does not run, got one that does.');
    if (this.state === 'stopped') throw new StoppedError('A stopped queue cannot start again; make a new one.');
    this.state = 'running';
    this.unsubscribe = this.options.notifier?.subscribe((news) => this.onNews(news)) ?? null;
    this.loop = this.run();
    return this;
  }

  /** Claims no more, gives back what is left, and returns it. Waits at most `joinTimeoutMs` for a claim under way. */
  async stop(joinTimeoutMs = STOP_JOIN_MS): Promise<ClaimedJob[]> {
    this.state = 'stopped';
    this.unsubscribe?.();
    this.wake();
    this.dispatcher.stop();
    const deadline = performance.now() + joinTimeoutMs;
    const inTime = (work: Promise<unknown>): Promise<boolean> => settledWithin(deadline - performance.now(), work);
    const claims = Promise.all([this.loop, this.fetcher.lookEnds()]);
    const ended = await inTime(claims);
    const left = this.buffer.takeAll();
    await inTime(this.releaser.ended());
    if (!ended) void claims.then(() => this.releaser.giveBack(this.buffer.takeAll()));
    await inTime(this.releaser.giveBack(left));
    if (ended) await this.reconciler.settle(deadline);
    return left;
  }

  /** The next job, or null after `timeoutMs` (Infinity: when the queue stops). */
  takeJob(timeoutMs: number): Promise<ClaimedJob | null> {
    return this.dispatcher.take(timeoutMs);
  }

  /** The jobs that run in one call with one that was taken; null: it runs by itself. Asked once. */
  batchFor(job: ClaimedJob): ClaimedJob[] | null {
    return this.dispatcher.batchFor(job);
  }

  /** The next job if there is one that may start right now. */
  tryTakeJob(): ClaimedJob | null {
    return this.dispatcher.tryTake();
  }

  /** Puts claimed jobs into the buffer, for tests and re-dispatch. They stay in it for `queueTtlMs` at most. */
  offerJobs(jobs: ClaimedJob[]): void {
    this.buffer.add(jobs);
    this.serve();
    this.dispatcher.awaitBatches();
  }

  /** Looks at the buffer again: a job that could not start may be able to now. */
  serve(): void {
    this.dispatcher.serve();
  }

  /** A settle of this pool has freed a place in the job's queue: if it does not fill it at once, others should. */
  placeFreed(job: ClaimedJob): void {
    this.filler.placeFreed(job);
  }

  /** A settle of this pool puts the job off: what looked at its lane before the commit has not seen it. */
  comesBack(job: ClaimedJob): void {
    this.plan.noteReturned(job);
  }

  /** Settles completions and fills the places that they free; null where they are to be settled apart. */
  settleAndClaim(requests: SettleRequest[]): Promise<FillingAnswer | null> | null {
    return this.filler.settleAndClaim(requests);
  }

  /** Looks at all lanes again: what was left to others, or for later, may run now. */
  lookAgain(): void {
    this.plan.noteRunnable(null);
    this.dispatcher.lookAt = -Infinity;
    this.wake();
  }

  /** Takes these claims out of the buffer: they are over, or to be cancelled. */
  drop(claims: { id: string; fence: string }[]): ClaimedJob[] {
    const dropped = this.buffer.takeClaims(claims);
    this.releaser.forget(dropped);
    return dropped;
  }

  /** Gives back what was claimed and has not started of what is paused now. */
  giveBackPaused(): void {
    this.releaser.givePausedBack();
  }

  /** Something is not paused any more: what was passed may run now. */
  resume(): void {
    this.onNews({ kind: 'pauses' });
  }

  /** Takes everything out of the buffer: the pool was taken for dead, and others have these jobs. */
  dropAll(): void {
    this.fetcher.forget();
    this.releaser.forget(this.buffer.takeAll());
  }

  /** Jobs in the buffer. */
  jobs(): ClaimedJob[] {
    return this.buffer.jobs();
  }

  /** Compares what is held with what is locked, before the next claim. */
  compareSoon(): void {
    this.reconciler.compareSoon();
    this.wake();
  }

  /** Looks for jobs now instead of at the next poll; after a failure, when its pause is over. */
  wake(): void {
    this.woken = true;
    if (this.failures === 0 || this.state !== 'running') this.poll.wake();
  }

  private async run(): Promise<void> {
    while (this.state === 'running') {
      await this.fetcher.lookEnds();
      this.woken = false;
      await this.reconciler.reconcile();
      const pauseMs = this.mayFetch() ? await this.fetch() : this.poll.ms;
      if (this.state === 'running' && pauseMs > 0 && !this.woken && (await this.poll.sleep(pauseMs))) this.plan.poll();
      this.releaser.dropStale();
    }
  }

  private mayFetch(): boolean {
    if (this.options.mayClaim?.() === false) return false;
    const { freeSlots, wantsMore } = this.dispatcher;
    return freeSlots > 0 || wantsMore || this.plan.next().some((planned) => this.fetcher.wantsPlain(planned));
  }

  /** Claims once for each group. Returns how long to sleep before the next claims, unless something happens. */
  private async fetch(): Promise<number> {
    const plan = this.plan.next();
    if (!plan.some((planned) => this.fetcher.wantsLanes(planned) || this.fetcher.wantsPlain(planned))) {
      this.dispatcher.lookAt = Math.min(Infinity, ...plan.map(({ group }) => group.lookAt));
      this.dispatcher.serveNow();
      return this.pauseBefore(this.poll.ms);
    }
    this.claiming = true;
    this.dispatcher.lookAt = Infinity;
    // What one of them finds is taken although the other fails.
    const [lanes, plain] = await Promise.allSettled([this.fetcher.claimLanes(plan), this.fetcher.claimPlain(plan)]);
    const found = [...(await this.acceptAll(lanes)), ...(await this.acceptAll(plain))];
    this.claiming = false;
    const failure = [lanes, plain].find(({ status }) => status === 'rejected') as PromiseRejectedResult | undefined;
    if (failure) return this.pauseAfterFailure(failure.reason);
    this.failures = 0;
    this.dispatcher.lookAt = Math.min(Infinity, ...plan.map(({ group }) => group.lookAt));
    this.filler.reportFreed();
    this.dispatcher.serveNow();
    const more = found.some((result) => result.more && (result.jobs.length > 0 || this.dispatcher.freeSlots > 0));
    return more ? 0 : this.pauseBefore(this.poll.after(found.reduce((sum, { jobs }) => sum + jobs.length, 0)));
  }

  private pauseAfterFailure(error: unknown): number {
    this.counters.errors++;
    this.reconciler.suspect(); // Also where a lock was in the way: an earlier claim of the round may have gone through.
    this.options.onError?.(error, 'claiming jobs');
    if (error instanceof StoppedError) void this.stop(); // The connection pool was closed.
    this.woken = false;
    return backoffMs(this.failures++, maxPauseMs(error));
  }

  private async acceptAll(claims: PromiseSettledResult<Claimed[]>): Promise<Claimed[]> {
    if (claims.status === 'rejected') return [];
    for (const result of claims.value) {
      if (result.look) this.filler.noteLook(result.look);
      this.options.pauses?.noteEnd(result.pausedUntil, result.claimedAt);
      if (result.unreadable) this.options.onError?.(result.unreadable, 'reading claimed jobs');
      this.accept({ ...result, jobs: await this.releaser.withoutExtraSuspects(result.jobs) });
    }
    return claims.value;
  }

  /** What other processes, or this one, have told. */
  private onNews(news: News): void {
    if (!this.plan.onNews(news)) return;
    if (news.kind !== 'jobs') this.dispatcher.lookAt = -Infinity;
    this.wake();
  }

  private accept({ jobs: claimed, more, ahead, claimedAt }: Claimed): void {
    const jobs = this.releaser.withoutPaused(claimed, claimedAt);
    if (!jobs.length) return this.dispatcher.serve();
    this.counters.fetched += jobs.length;
    this.counters.refetchCount++;
    this.poll.reset();
    this.buffer.add(jobs, { more: more && !ahead, ahead });
    this.dispatcher.serveArrived(jobs.length);
  }

  /** At most so many ms, less where something is to be looked at before. */
  private pauseBefore(ms: number): number {
    const lanesInMs = this.dispatcher.freeSlots ? this.plan.nextLookInMs : Infinity;
    return Math.max(0, Math.min(this.plan.sweepIsDueInMs, Math.max(1, lanesInMs), ms));
  }
}
