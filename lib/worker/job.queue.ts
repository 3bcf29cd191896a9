// The local buffer between the database and a pool's slots: claims in batches ahead of need, gives back what gets
// stale or is left over. Woken by notifications, by slots that ask for more than there is, and by its poll timer.
import type { LaneClaimResult, SettleRequest } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { AlreadyRunningError, StoppedError } from '../jobs.errors.js';
import type { SettleAnswer } from '../manager/job.settlement.js';
import type { News } from '../storage/job.news.js';
import { isLockTimeout, maxPauseMs } from '../storage/sql.states.js';
import { backoffMs, pause, settledWithin } from '../timing.js';
import type { ClaimGroup } from './claim.group.js';
import { ClaimPlan } from './claim.plan.js';
import { FreedPlaces } from './freed.places.js';
import { JobBuffer } from './job.buffer.js';
import { JobFetcher, type Claimed } from './job.fetcher.js';
import { ClaimReconciler } from './claim.reconciler.js';
import { PollTimer } from './poll.timer.js';
import { checkQueueOptions, type JobQueueOptions } from './queue.options.js';
import { Takers } from './takers.js';

export type { JobQueueOptions } from './queue.options.js';

/** A settle that has claimed as well. */
export interface FillingAnswer extends SettleAnswer {
  /** Begins what it has claimed: to be called when what became of the settled jobs is told. */
  begin: () => void;
}

export interface JobQueueStats {
  fetched: number;
  dispatched: number;
  staleDropped: number;
  refetchCount: number;
  errors: number;
}

/** Handlers that never wait run one after the other: after so many, answers from the database get their turn. */
const TURN = 100;
const STOP_JOIN_MS = 5_000;
const LOOK_AGAIN_MS = 50;
/** Of so many limited queues is it known that their settles are worth a look at lanes. */
const MAX_LIMITED = 1_000;
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
  private readonly takers = new Takers();
  private readonly counters: JobQueueStats = { fetched: 0, dispatched: 0, staleDropped: 0, refetchCount: 0, errors: 0 };
  /** Settles of this pool have freed them, and it may fill them itself. */
  private readonly freed = new FreedPlaces();
  /** Queues that have freed places here: a settle of theirs is worth a look at lanes. */
  private readonly limited = new Set<string>();
  private state: 'new' | 'running' | 'stopped' = 'new';
  private loop: Promise<void> | null = null;
  private woken = false;
  private readonly poll: PollTimer;
  private unsubscribe: (() => void) | null = null;
  private failures = 0;
  private claiming = false;
  private comparing = false;
  private readonly givingBack = new Set<Promise<void>>();
  /** Whether the buffer had nothing that may start for the taker that asked last. */
  private starving = false;
  /** So many plain jobs go before lanes are looked at again. */
  private plainTurns = 0;
  /** When lanes are to be looked at again, before a slot takes a job from the buffer. */
  private lookAt = -Infinity;
  private turn: NodeJS.Immediate | null = null;
  private dispatchedInTurn = 0;

  constructor(private readonly options: JobQueueOptions) {
    const { held, queueSize = null } = checkQueueOptions(options);
    this.workerId = options.workerId;
    this.buffer = new JobBuffer(queueSize);
    this.plan = new ClaimPlan(options);
    this.poll = new PollTimer(options);
    this.fetcher = new JobFetcher(options, this.plan, this.buffer, {
      slots: () => this.takers.length,
      wantsMore: () => this.wantsMore(),
      failures: () => this.failures,
      pollMs: this.poll.shortestMs,
    });
    const all = held ? (): ClaimedJob[] => [...this.buffer.jobs(), ...held()] : null;
    this.reconciler = new ClaimReconciler(options.jobs.engine, () => this.fetcher.claimer.holder, all);
  }

  /** Jobs in the buffer. */
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
    return { ...this.counters };
  }

  /** Returns the queue. @throws AlreadyRunningError, or StoppedError after `stop()` */
  start(): this {
    if (this.state === 'running')
      throw new AlreadyRunningError('Expected a queue that does not run, got one that does.');
    if (this.state === 'stopped') throw new StoppedError('A stopped queue cannot start again; make a new one.');
    this.state = 'running';
    this.unsubscribe = this.options.notifier?.subscribe((news) => this.onNews(news)) ?? null;
    this.loop = this.run();
    return this;
  }

  /**
   * Claims no more, gives back what is left, and returns it. Waits for a claim under way, at most `joinTimeoutMs`;
   * what a later answer brings is given back too.
   */
  async stop(joinTimeoutMs = STOP_JOIN_MS): Promise<ClaimedJob[]> {
    this.state = 'stopped';
    this.unsubscribe?.();
    this.wake();
    if (this.turn) clearImmediate(this.turn);
    this.turn = null;
    this.takers.sendAway();
    const deadline = performance.now() + joinTimeoutMs;
    const inTime = (work: Promise<unknown>): Promise<boolean> => settledWithin(deadline - performance.now(), work);
    const claims = Promise.all([this.loop, this.fetcher.lookEnds()]);
    const ended = await inTime(claims);
    const left = this.buffer.takeAll();
    await inTime(Promise.all(this.givingBack));
    if (!ended) void claims.then(() => this.giveBack(this.buffer.takeAll()));
    await inTime(this.giveBack(left));
    // A database that is just coming back may need more than one try.
    while (ended && this.reconciler.isUnsettled && performance.now() < deadline) {
      await inTime(this.reconciler.isDue ? this.lookForLost() : pause(LOOK_AGAIN_MS));
    }
    return left;
  }

  /** The next job, or null after `timeoutMs` (Infinity: when the queue stops). */
  takeJob(timeoutMs: number): Promise<ClaimedJob | null> {
    if (this.state === 'stopped') return Promise.resolve(null);
    const job = this.tryTakeJob();
    if (job || timeoutMs <= 0) return Promise.resolve(job);
    const waiting = this.takers.wait(timeoutMs);
    if (!this.turn) this.wake();
    return waiting;
  }

  /** The next job if there is one that may start right now. */
  tryTakeJob(): ClaimedJob | null {
    return this.state !== 'stopped' && this.mayDispatch() ? this.next() : null;
  }

  /** Puts claimed jobs into the buffer, for tests and re-dispatch. They stay in it for `queueTtlMs` at most. */
  offerJobs(jobs: ClaimedJob[]): void {
    this.buffer.add(jobs);
    this.serve();
  }

  /** Looks at the buffer again: a job that could not start may be able to now. */
  serve(): void {
    while (this.takers.length) {
      const wasStarving = this.starving;
      const job = this.next();
      // What lies in the buffer may not start now: other jobs may.
      if (!job && !wasStarving && this.buffer.length) this.wake();
      if (!job) return;
      this.takers.give(job);
    }
  }

  /** A settle of this pool has freed a place in the job's queue: if it does not fill it at once, others should. */
  placeFreed(job: ClaimedJob): void {
    this.noteFreed(job.queue!);
    this.plan.noteReturned(job);
    if (!this.takers.length || this.state !== 'running') return void this.reportFreed();
    this.tellLanes([]);
    this.wake();
  }

  /** A settle of this pool puts the job off: what looked at its lane before the commit has not seen it. */
  comesBack(job: ClaimedJob): void {
    this.plan.noteReturned(job);
  }

  /**
   * Settles completions that free places, and fills the places by the same commit. Null where no slot is free: then they are
   * settled apart.
   */
  settleAndClaim(requests: SettleRequest[]): Promise<FillingAnswer | null> | null {
    const isWorthIt = requests.some(({ job }) => job.queue !== null && this.limited.has(job.queue));
    return isWorthIt ? this.settleAfterLook(requests) : null;
  }

  /** A look under way is awaited: it could take what the settle is to take, before the end of the settled job is told. */
  private async settleAfterLook(requests: SettleRequest[]): Promise<FillingAnswer | null> {
    await this.fetcher.lookEnds();
    if (this.state !== 'running' || this.fetcher.looking || this.failures > 0 || !this.takers.length) return null;
    const [planned, ...others] = this.plan.next();
    if (!planned || others.length || this.options.mayClaim?.() === false) return null;
    for (const { job } of requests) if (job.queue !== null) this.plan.noteFreed(job.queue);
    const end = this.fetcher.beginLook();
    return this.settleAndFill(planned.group, requests, () => {
      end();
      this.wake();
    });
  }

  /** Looks at all lanes again: what was left to others, or for later, may run now. */
  lookAgain(): void {
    this.tellLanes(null);
    this.wake();
  }

  /** Takes these claims out of the buffer: they are over, or to be cancelled. */
  drop(claims: { id: string; fence: string }[]): ClaimedJob[] {
    const dropped = this.buffer.takeClaims(claims);
    for (const job of dropped) this.options.quarantine?.leave(job);
    return dropped;
  }

  /** Gives back what was claimed and has not started of what is paused now. */
  giveBackPaused(): void {
    const { pauses } = this.options;
    const paused = pauses ? this.buffer.takeJobs((job) => pauses.holdsBack(job)) : [];
    if (paused.length) this.giveBackSoon(paused);
  }

  /** Something is not paused any more: what was passed may run now. */
  resume(): void {
    this.onNews({ kind: 'pauses' });
  }

  /** Takes everything out of the buffer: the pool was taken for dead, and others have these jobs. */
  dropAll(): void {
    this.fetcher.forget();
    for (const job of this.buffer.takeAll()) this.options.quarantine?.leave(job);
  }

  /** Jobs in the buffer. */
  jobs(): ClaimedJob[] {
    return this.buffer.jobs();
  }

  /** Compares what is held with what is locked, before the next claim. */
  compareSoon(): void {
    this.comparing = true;
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
      if (this.reconciler.isDue) await this.lookForLost();
      else if (this.comparing) await this.compare();
      const pauseMs = this.mayFetch() ? await this.fetch() : this.poll.ms;
      if (this.state === 'running' && pauseMs > 0 && !this.woken && (await this.poll.sleep(pauseMs))) this.plan.poll();
      this.dropStale();
    }
  }

  private mayFetch(): boolean {
    if (this.options.mayClaim?.() === false) return false;
    return (
      this.takers.length > 0 || this.wantsMore() || this.plan.next().some((planned) => this.fetcher.wantsPlain(planned))
    );
  }

  /** Whether the buffer should be filled. */
  private wantsMore(): boolean {
    if (this.options.mayClaim?.() === false) return false;
    const threshold = this.options.refetchThreshold ?? Math.floor(this.buffer.size / 2);
    // A taker that only waits for a look at lanes gets a job of the buffer after it.
    const slotsAreEmpty = this.takers.length > 0 && this.starving && !this.turn;
    return slotsAreEmpty || this.buffer.length <= threshold;
  }

  /** Claims once for each group. Returns how long to sleep before the next claims, unless something happens. */
  private async fetch(): Promise<number> {
    const plan = this.plan.next();
    if (!plan.some((planned) => this.fetcher.wantsLanes(planned) || this.fetcher.wantsPlain(planned))) {
      this.lookAt = Math.min(Infinity, ...plan.map(({ group }) => group.lookAt));
      if (!this.turn) this.serve();
      return this.pauseBefore(this.poll.ms);
    }
    this.claiming = true;
    this.lookAt = Infinity;
    // What one of them finds is taken although the other fails.
    const [lanes, plain] = await Promise.allSettled([this.fetcher.claimLanes(plan), this.fetcher.claimPlain(plan)]);
    const found = [...(await this.acceptAll(lanes)), ...(await this.acceptAll(plain))];
    this.claiming = false;
    const failure = [lanes, plain].find(({ status }) => status === 'rejected') as PromiseRejectedResult | undefined;
    if (failure) return this.pauseAfterFailure(failure.reason);
    this.failures = 0;
    this.lookAt = Math.min(Infinity, ...plan.map(({ group }) => group.lookAt));
    this.reportFreed();
    if (!this.turn) this.serve();
    const more = found.some((result) => result.more && (result.jobs.length > 0 || this.takers.length > 0));
    return this.pauseAfter(
      found.reduce((sum, { jobs }) => sum + jobs.length, 0),
      more,
    );
  }

  private pauseAfterFailure(error: unknown): number {
    this.counters.errors++;
    this.reconciler.suspect(); // Also where a lock was in the way: an earlier claim of the round may have gone through.
    this.options.onError?.(error, 'claiming jobs');
    // The connection pool was closed: nothing can be claimed any more.
    if (error instanceof StoppedError) void this.stop();
    this.woken = false;
    return backoffMs(this.failures++, maxPauseMs(error));
  }

  private async acceptAll(claims: PromiseSettledResult<Claimed[]>): Promise<Claimed[]> {
    if (claims.status === 'rejected') return [];
    for (const result of claims.value) {
      if (result.look) this.noteLook(result.look);
      this.options.pauses?.noteEnd(result.pausedUntil, result.claimedAt);
      if (result.unreadable) this.options.onError?.(result.unreadable, 'reading claimed jobs');
      this.accept({ ...result, jobs: await this.withoutExtraSuspects(result.jobs) });
    }
    return claims.value;
  }

  /** Never rejects. */
  private async lookForLost(): Promise<void> {
    await this.reconciler.poll().catch((error: unknown) => this.options.onError?.(error, 'looking for lost claims'));
  }

  private async compare(): Promise<void> {
    this.comparing = false;
    await this.reconciler.compare().catch((error: unknown) => this.options.onError?.(error, 'looking for lost claims'));
  }

  private async settleAndFill(group: ClaimGroup, requests: SettleRequest[], end: () => void): Promise<FillingAnswer> {
    try {
      const { answer, look } = await this.fetcher.settleAndLook(group, requests);
      for (const { job, hasFreedPlace } of answer.results) if (hasFreedPlace) this.noteFreed(job.queue!);
      this.noteLook(look);
      const isLeft = this.reportFreed();
      // One lane alone does not fill them all: others of the queue may.
      if (look.report?.unknown.length || (isLeft && !look.report)) this.plan.noteRunnable([]);
      this.lookAt = group.lookAt;
      if (look.unreadable) this.options.onError?.(look.unreadable, 'reading claimed jobs');
      const jobs = await this.withoutExtraSuspects(look.jobs);
      const results = answer.results.map((settled) => ({ ...settled, hasFreedPlace: false }));
      const begin = (): void => {
        end();
        this.accept({ jobs, more: look.more, ahead: false, claimedAt: look.claimedAt, pausedUntil: null });
      };
      return { ...answer, results, begin };
    } catch (error) {
      if (!isLockTimeout(error)) this.reconciler.suspect();
      end();
      if (!isLockTimeout(error)) throw error;
      return {
        ...(await this.options.jobs.engine.settlement.settle(this.fetcher.claimer, requests)),
        begin: () => undefined,
      };
    }
  }

  private noteLook(look: LaneClaimResult): void {
    this.plainTurns = this.plainTurnsAfter(look);
    this.freed.fill(look.jobs);
  }

  /** Where lanes have more to give, plain jobs of the same priority count as one lane: so many of them go before the next look. */
  private plainTurnsAfter({ jobs, more, report }: LaneClaimResult): number {
    if (!more || !jobs.length || !report || report.priority !== this.buffer.headPriority) return 0;
    return Math.ceil(jobs.length / Math.max(1, report.lanes));
  }

  /** What other processes, or this one, have told. */
  private onNews(news: News): void {
    if (!this.plan.onNews(news)) return;
    if (news.kind !== 'jobs') this.lookAt = -Infinity;
    this.wake();
  }

  private tellLanes(lanes: string[] | null): void {
    this.plan.noteRunnable(lanes);
    this.lookAt = -Infinity;
  }

  private noteFreed(queue: string): void {
    this.freed.add(queue);
    if (this.limited.size >= MAX_LIMITED) this.limited.clear();
    this.limited.add(queue);
  }

  /** Places that this pool has freed and not filled: others may. Returns whether there are any. */
  private reportFreed(): boolean {
    const lanes = this.freed.take();
    if (!lanes.length) return false;
    void this.options.jobs.engine.publisher.publish({ kind: 'lanes', lanes }).catch(() => undefined);
    return true;
  }

  /** They go back before the first one may start: a crash would be blamed on all that the pool holds. */
  private async withoutExtraSuspects(jobs: ClaimedJob[]): Promise<ClaimedJob[]> {
    const extra = this.options.quarantine?.take(jobs) ?? [];
    if (!extra.length) return jobs;
    await this.giveBack(extra);
    return jobs.filter((job) => !extra.includes(job));
  }

  private accept({ jobs: claimed, more, ahead, claimedAt }: Claimed): void {
    const { pauses } = this.options;
    const paused = pauses ? claimed.filter((job) => pauses.holdsBack(job, claimedAt ?? undefined)) : [];
    if (paused.length) this.giveBackSoon(paused);
    const jobs = paused.length ? claimed.filter((job) => !paused.includes(job)) : claimed;
    if (!jobs.length) return this.serve();
    this.counters.fetched += jobs.length;
    this.counters.refetchCount++;
    this.poll.reset();
    this.buffer.add(jobs, { more: more && !ahead, ahead });
    // A full batch waits for one turn of the event loop, so that the next claim is on its way before the slots, whose
    // jobs follow each other without one, keep the loop busy.
    if (jobs.length >= TURN) this.serveNextTurn();
    else if (this.state === 'running') this.serve();
  }

  private serveNextTurn(): void {
    this.turn ??= setImmediate(() => {
      this.turn = null;
      this.dispatchedInTurn = 0;
      if (this.state === 'running') this.serve();
    });
  }

  private pauseAfter(found: number, more: boolean): number {
    return more ? 0 : this.pauseBefore(this.poll.after(found));
  }

  /** At most so many ms, less where something is to be looked at before. */
  private pauseBefore(ms: number): number {
    const lanesInMs = this.takers.length ? this.plan.nextLookInMs : Infinity;
    return Math.max(0, Math.min(this.plan.sweepIsDueInMs, Math.max(1, lanesInMs), ms));
  }

  /** A slot is kept empty for one claim where a due job of a lane may wait for it. */
  private mayDispatch(): boolean {
    if (this.turn) return false;
    if (this.dispatchedInTurn >= TURN && this.state === 'running') {
      this.serveNextTurn();
      return false;
    }
    return this.state !== 'running' || this.plainTurns > 0 || performance.now() < this.lookAt;
  }

  private next(): ClaimedJob | null {
    this.dropStale();
    const job = this.buffer.take(this.options.admit);
    this.starving = job === null;
    if (!job) return null;
    this.counters.dispatched++;
    this.dispatchedInTurn++;
    if (this.plainTurns > 0) this.plainTurns--;
    if (this.state === 'running' && this.wantsMore()) this.wake();
    return job;
  }

  private dropStale(): void {
    const stale = this.buffer.takeOlderThan(this.options.queueTtlMs ?? 60_000);
    if (!stale.length) return;
    this.counters.staleDropped += stale.length;
    this.giveBackSoon(stale);
  }

  private giveBackSoon(jobs: ClaimedJob[]): void {
    const work = this.giveBack(jobs).finally(() => this.givingBack.delete(work));
    this.givingBack.add(work);
  }

  private async giveBack(jobs: ClaimedJob[]): Promise<void> {
    for (const job of jobs) this.options.quarantine?.leave(job);
    try {
      await this.options.jobs.engine.settlement.release(this.fetcher.claimer, jobs);
    } catch (error) {
      // As long as our heartbeat goes on, no other pool would get them.
      this.reconciler.suspect();
      this.counters.errors++;
      this.options.onError?.(error, 'giving jobs back');
    }
  }
}
