// The local buffer between the database and a pool's slots: claims in batches ahead of need, gives back what gets
// stale or is left over. Woken by notifications, by slots that ask for more than there is, and by its poll timer.
import type { ClaimRequest } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { AlreadyRunningError, StoppedError } from '../jobs.errors.js';
import { NEW_JOBS } from '../storage/job.notifier.js';
import { after } from '../timers.js';
import { backoffMs, pause, settledWithin } from './backoff.js';
import { ClaimScan } from './claim.scan.js';
import { JobBuffer } from './job.buffer.js';
import { LostClaims } from './lost.claims.js';
import { checkQueueOptions, type JobQueueOptions } from './queue.options.js';

export type { JobQueueOptions } from './queue.options.js';

export interface JobQueueStats {
  fetched: number;
  dispatched: number;
  staleDropped: number;
  refetchCount: number;
  errors: number;
}

interface Taker {
  resolve: (job: ClaimedJob | null) => void;
  endTimer: (() => void) | null;
}

/** A buffer that is never empty would starve jobs for free slots: so often a slot is held for them. */
const SLOT_CHECK_MS = 100;
/** Handlers that never wait run one after the other: after so many, answers from the database get their turn. */
const TURN = 100;
const STOP_JOIN_MS = 5_000;
const LOOK_AGAIN_MS = 50;

/**
 * new → running → stopped. While running, one fetch at a time:
 * asleep → (woken) → claiming → asleep, or claiming again while there is more.
 */
export class JobQueue {
  readonly workerId: string;
  private readonly buffer: JobBuffer;
  private readonly scan = new ClaimScan();
  private readonly lost: LostClaims;
  private readonly takers: Taker[] = [];
  private readonly counters: JobQueueStats = { fetched: 0, dispatched: 0, staleDropped: 0, refetchCount: 0, errors: 0 };
  private state: 'new' | 'running' | 'stopped' = 'new';
  private loop: Promise<void> | null = null;
  private woken = false;
  private wakeUp: (() => void) | null = null;
  private unsubscribe: (() => void) | null = null;
  private idlePolls = 0;
  private failures = 0;
  private claiming = false;
  private checkedSlotsAt = -Infinity;
  private turn: NodeJS.Immediate | null = null;
  private dispatchedInTurn = 0;
  private retryAt = Infinity;

  constructor(private readonly options: JobQueueOptions) {
    const { held, queueSize = null } = checkQueueOptions(options);
    this.workerId = options.workerId;
    this.buffer = new JobBuffer(queueSize);
    const all = held ? (): ClaimedJob[] => [...this.buffer.jobs(), ...held()] : null;
    this.lost = new LostClaims(options.jobs, options.workerId, all);
  }

  /** Jobs in the buffer. */
  get depth(): number {
    return this.buffer.length;
  }

  get running(): boolean {
    return this.state === 'running';
  }

  /** Whether the database may count jobs as this pool's of which nobody here knows: a claim's answer was lost. */
  get inDoubt(): boolean {
    return this.lost.suspected || this.claiming;
  }

  stats(): JobQueueStats {
    return { ...this.counters };
  }

  /** @throws AlreadyRunningError, or StoppedError after `stop()` */
  start(): void {
    if (this.state === 'running')
      throw new AlreadyRunningError('Expected a queue that does not run, got one that does.');
    if (this.state === 'stopped') throw new StoppedError('A stopped queue cannot start again; make a new one.');
    this.state = 'running';
    this.unsubscribe = this.options.notifier?.subscribe((news) => news === NEW_JOBS && this.wake()) ?? null;
    this.loop = this.run();
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
    for (const taker of this.takers.splice(0)) this.answer(taker, null);
    const deadline = performance.now() + joinTimeoutMs;
    const inTime = (work: Promise<unknown>): Promise<boolean> => settledWithin(deadline - performance.now(), work);
    const ended = !this.loop || (await inTime(this.loop));
    const left = this.buffer.takeAll();
    if (!ended) void this.loop!.then(() => this.giveBack(this.buffer.takeAll()));
    await inTime(this.giveBack(left));
    // A database that is just coming back may need more than one try.
    while (ended && this.lost.isUnsettled && performance.now() < deadline) {
      await inTime(this.lost.isDue ? this.lookForLost() : pause(LOOK_AGAIN_MS));
    }
    return left;
  }

  /** The next job, or null after `timeoutMs` (Infinity: when the queue stops). */
  takeJob(timeoutMs: number): Promise<ClaimedJob | null> {
    if (this.state === 'stopped') return Promise.resolve(null);
    const job = this.tryTakeJob();
    if (job || timeoutMs <= 0) return Promise.resolve(job);
    return new Promise((resolve) => {
      const taker: Taker = { resolve, endTimer: null };
      taker.endTimer = after(timeoutMs, () => this.giveUp(taker));
      this.takers.push(taker);
      if (!this.turn) this.wake();
    });
  }

  /** The next job if there is one that may start right now. */
  tryTakeJob(): ClaimedJob | null {
    return this.state !== 'stopped' && this.mayDispatch() ? this.next() : null;
  }

  /** Puts claimed jobs into the buffer, for tests and re-dispatch. */
  offerJobs(jobs: ClaimedJob[]): void {
    this.buffer.add(jobs);
    this.serve();
  }

  /** Looks at the buffer again: a job that could not start may be able to now. */
  serve(): void {
    while (this.takers.length) {
      const job = this.next();
      if (!job) return;
      this.answer(this.takers.shift()!, job);
    }
  }

  /** A place in a limited queue became free: who waited for it stands before what claims have read. */
  lookForSlotJobs(): void {
    this.scan.restartSlotLane();
    if (this.takers.length) this.wake();
  }

  /** Looks for jobs now instead of at the next poll; after a failure, when its pause is over. */
  wake(): void {
    this.woken = true;
    if (this.failures === 0 || this.state !== 'running') this.wakeUp?.();
  }

  private async run(): Promise<void> {
    while (this.state === 'running') {
      this.woken = false;
      if (this.lost.isDue) await this.lookForLost();
      const pauseMs = this.wantsMore() ? await this.fetch() : this.pollMs();
      if (this.state === 'running' && pauseMs > 0 && !this.woken) await this.sleep(pauseMs);
      this.dropStale();
    }
  }

  private wantsMore(): boolean {
    if (this.options.isolation?.holds || this.options.mayClaim?.() === false) return false;
    const threshold = this.options.refetchThreshold ?? Math.floor(this.buffer.size / 2);
    const slotsAreEmpty = this.takers.length > 0 && !this.turn;
    return slotsAreEmpty || this.buffer.length <= threshold;
  }

  /** Claims once. Returns how long to sleep before the next claim, unless something happens. */
  private async fetch(): Promise<number> {
    const startedAt = performance.now();
    const request = this.request();
    this.claiming = true;
    try {
      if (this.retryAt <= startedAt) await this.letWaitingIn();
      const result = await this.options.jobs.claims.claim(request);
      this.failures = 0;
      if (result.unreadable) this.options.onError?.(result.unreadable, 'decrypting claimed jobs');
      this.scan.learn(result, performance.now() - startedAt, request.limit);
      this.retryAfter(result.retryInMs);
      this.accept(await this.withoutExtraSuspects(result.jobs), result.more);
      return this.pauseAfter(result.jobs.length, result.more);
    } catch (error) {
      this.counters.errors++;
      this.lost.suspect();
      this.options.onError?.(error, 'claiming jobs');
      this.woken = false;
      return backoffMs(this.failures++);
    } finally {
      this.claiming = false;
    }
  }

  /** Never rejects. */
  private async lookForLost(): Promise<void> {
    await this.lost.look().catch((error: unknown) => this.options.onError?.(error, 'looking for lost claims'));
  }

  private request(): ClaimRequest {
    const { taskIdentifiers = null, queues = null, forbiddenFlags = null } = this.options;
    const tasks = typeof taskIdentifiers === 'function' ? taskIdentifiers() : taskIdentifiers;
    const slots = this.takers.length;
    this.checkedSlotsAt = performance.now();
    return {
      workerId: this.workerId,
      // Smaller after a failure: it may have been too much for the server's statement_timeout.
      limit: Math.max(1, (this.buffer.room + slots) >> Math.min(this.failures, 10)),
      slots,
      slotPriorityLimit: this.buffer.headPriority,
      taskIdentifiers: tasks,
      queues,
      forbiddenFlags,
      ...this.scan.next(),
      leaseMs: this.options.leaseMs === undefined ? this.options.jobs.claims.lockTimeoutMs : this.options.leaseMs,
    };
  }

  /** They go back before the first one may start: a crash would be blamed on all that the pool holds. */
  private async withoutExtraSuspects(jobs: ClaimedJob[]): Promise<ClaimedJob[]> {
    const extra = this.options.isolation?.take(jobs) ?? [];
    if (!extra.length) return jobs;
    await this.giveBack(extra);
    return jobs.filter((job) => !extra.includes(job));
  }

  private accept(jobs: ClaimedJob[], more: boolean): void {
    if (!jobs.length) return this.serve();
    this.counters.fetched += jobs.length;
    this.counters.refetchCount++;
    this.idlePolls = 0;
    this.buffer.add(jobs, more);
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
    if (more) return 0;
    const sweepInMs = Math.max(0, this.scan.sweepIsDueInMs());
    return Math.min(sweepInMs, this.idleMs(found));
  }

  private idleMs(found: number): number {
    if (found > 0) return Math.min(this.pollMs(), this.options.refetchDelayMs ?? 1_000);
    this.idlePolls++;
    return this.pollMs();
  }

  /** The poll interval, longer with each poll that found nothing, or shorter where a window is about to begin. */
  private pollMs(): number {
    const { pollIntervalMs = 2_000, maxPollIntervalMs = pollIntervalMs } = this.options;
    const ceiling = Math.min(maxPollIntervalMs, pollIntervalMs * 2 ** Math.min(this.idlePolls, 20));
    const backedOff = ceiling > pollIntervalMs ? ceiling * (0.75 + Math.random() * 0.25) : pollIntervalMs;
    return Math.max(1, Math.min(backedOff, this.retryAt - performance.now()));
  }

  /** A rate limit's next window has begun: its waiting jobs come back to the start of what claims read. */
  private async letWaitingIn(): Promise<void> {
    const { retryInMs } = await this.options.jobs.claims.letWaitingIn();
    this.retryAt = Infinity;
    this.retryAfter(retryInMs);
    this.scan.restartSlotLane();
  }

  private retryAfter(ms: number | null): void {
    if (ms !== null) this.retryAt = Math.min(this.retryAt, performance.now() + Math.max(1, ms));
  }

  private sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.wakeUp = () => {
        clearTimeout(timer);
        this.wakeUp = null;
        resolve();
      };
    });
  }

  /** Now and then a slot is kept empty for one claim, for jobs that may not wait in the buffer. */
  private mayDispatch(): boolean {
    if (this.turn) return false;
    if (this.dispatchedInTurn >= TURN && this.state === 'running') {
      this.serveNextTurn();
      return false;
    }
    return this.state !== 'running' || performance.now() - this.checkedSlotsAt < SLOT_CHECK_MS;
  }

  private next(): ClaimedJob | null {
    const job = this.buffer.take(this.options.admit);
    if (!job) return null;
    this.counters.dispatched++;
    this.dispatchedInTurn++;
    if (this.state === 'running' && this.wantsMore()) this.wake();
    return job;
  }

  private dropStale(): void {
    const stale = this.buffer.takeOlderThan(this.options.queueTtlMs ?? 60_000);
    this.counters.staleDropped += stale.length;
    void this.giveBack(stale);
  }

  private async giveBack(jobs: ClaimedJob[]): Promise<void> {
    for (const job of jobs) this.options.isolation?.forget(job);
    try {
      await this.options.jobs.claims.release(this.workerId, jobs);
    } catch (error) {
      // As long as our heartbeat goes on, nobody else would get them.
      this.lost.suspect();
      this.counters.errors++;
      this.options.onError?.(error, 'giving jobs back');
    }
  }

  private giveUp(taker: Taker): void {
    const index = this.takers.indexOf(taker);
    if (index >= 0) this.takers.splice(index, 1);
    this.answer(taker, null);
  }

  private answer(taker: Taker, job: ClaimedJob | null): void {
    taker.endTimer?.();
    taker.resolve(job);
  }
}
