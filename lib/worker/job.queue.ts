// The local buffer between the database and a pool's slots: claims in batches ahead of need, gives back what gets
// stale or is left over. Woken by notifications, by slots that ask for more than there is, and by its poll timer.
import type { ClaimRequest } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { AlreadyRunningError, StoppedError } from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import { isCertainlyRolledBack } from '../manager/settlement.js';
import { NEW_JOBS, type JobNotifier } from '../storage/job.notifier.js';
import { backoffMs, settledWithin } from './backoff.js';
import { ClaimDoubts } from './claim.doubts.js';
import { ClaimScan } from './claim.scan.js';
import type { Isolation } from './isolation.js';
import { JobBuffer } from './job.buffer.js';
import { PollPace } from './poll.pace.js';

export interface JobQueueOptions {
  jobs: JobManager;
  /** At least 10 characters. */
  workerId: string;
  notifier?: JobNotifier | null;
  /** Most jobs in the buffer. Default: adaptive, 50 to 1,000 jobs and at most 16 MiB of payloads. */
  queueSize?: number | null;
  /** Default 60,000. */
  queueTtlMs?: number;
  /** Fetch when the buffer holds no more than this. Default: half of the buffer's size. */
  refetchThreshold?: number | null;
  /** Pause after a fetch that brought less than was expected. Default 1,000; a notification or a poll comes before it. */
  refetchDelayMs?: number;
  /** Default 2,000. */
  pollIntervalMs?: number;
  /** Default: `pollIntervalMs`, no backoff. */
  maxPollIntervalMs?: number;
  /** Claim only these tasks. A function is asked before each claim. Default: any. */
  taskIdentifiers?: string[] | (() => string[] | null) | null;
  queues?: string[] | null;
  forbiddenFlags?: string[] | null;
  /** How long a claim holds; `null`: as long as the worker's heartbeat. Default: the manager's `lockTimeoutMs`. */
  leaseMs?: number | null;
  /**
   * Asked for a place before a job is handed out; `false`: it may not start now, is passed over and keeps its turn.
   * Default: always.
   */
  admit?: (job: ClaimedJob) => boolean;
  /** Default: none; every job may run beside any other. */
  isolation?: Isolation;
  /** What of the worker's is not in the buffer: running, or not settled yet. Where claims live by a heartbeat only. */
  known?: () => ClaimedJob[];
  onError?: (error: unknown, context: string) => void;
}

export interface JobQueueStats {
  fetched: number;
  dispatched: number;
  staleDropped: number;
  refetchCount: number;
  errors: number;
}

interface Taker {
  resolve: (job: ClaimedJob | null) => void;
  timer: NodeJS.Timeout | null;
}

/** A buffer that is never empty would starve jobs for free slots: so often a slot is held for them. */
const SLOT_CHECK_MS = 100;
/** Handlers that never wait run one after the other: after so many, answers from the database get their turn. */
const TURN = 100;
const STOP_JOIN_MS = 5_000;

/**
 * new → running → stopped. While running, one fetch at a time:
 * asleep → (woken) → claiming → asleep, or claiming again while there is more.
 */
export class JobQueue {
  readonly workerId: string;
  private readonly buffer: JobBuffer;
  private readonly scan = new ClaimScan();
  private readonly pace: PollPace;
  private readonly doubts: ClaimDoubts | null;
  private readonly takers: Taker[] = [];
  private readonly counters: JobQueueStats = { fetched: 0, dispatched: 0, staleDropped: 0, refetchCount: 0, errors: 0 };
  private state: 'new' | 'running' | 'stopped' = 'new';
  private loop: Promise<void> | null = null;
  private woken = false;
  private wakeUp: (() => void) | null = null;
  private unsubscribe: (() => void) | null = null;
  private failures = 0;
  private checkedSlotsAt = -Infinity;
  private turn: NodeJS.Immediate | null = null;
  private dispatchedInTurn = 0;

  constructor(private readonly options: JobQueueOptions) {
    this.workerId = options.workerId;
    this.buffer = new JobBuffer(options.queueSize ?? null);
    this.pace = new PollPace(options);
    const { jobs, workerId, known } = options;
    this.doubts = known ? new ClaimDoubts({ jobs, workerId, known: () => [...this.buffer.jobs(), ...known()] }) : null;
  }

  /** Jobs in the buffer. */
  get depth(): number {
    return this.buffer.length;
  }

  get running(): boolean {
    return this.state === 'running';
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
    if (this.loop && !(await settledWithin(joinTimeoutMs, this.loop))) this.doubts?.raise();
    const left = this.buffer.takeAll();
    await this.giveBack(left);
    return left;
  }

  /** Once stopped: whether nothing can be claimed for the worker any more without its knowing. */
  async holdsNothing(): Promise<boolean> {
    const settled = this.doubts?.due ? this.doubts.settle() : Promise.resolve();
    return settledWithin(Infinity, settled).catch(() => false);
  }

  /** The next job, or null after `timeoutMs` (Infinity: when the queue stops). */
  takeJob(timeoutMs: number): Promise<ClaimedJob | null> {
    if (this.state === 'stopped') return Promise.resolve(null);
    const job = this.tryTakeJob();
    if (job || timeoutMs <= 0) return Promise.resolve(job);
    return new Promise((resolve) => {
      const taker: Taker = { resolve, timer: null };
      if (Number.isFinite(timeoutMs)) taker.timer = setTimeout(() => this.giveUp(taker), timeoutMs);
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

  /** Looks for jobs now instead of at the next poll. */
  wake(): void {
    this.woken = true;
    this.wakeUp?.();
  }

  private async run(): Promise<void> {
    while (this.state === 'running') {
      this.woken = false;
      const pauseMs = this.wantsMore() ? await this.fetch() : this.pace.waitMs();
      if (this.state === 'running' && pauseMs > 0 && !this.woken) await this.sleep(pauseMs);
      this.dropStale();
    }
  }

  private wantsMore(): boolean {
    if (this.options.isolation?.holds) return false;
    const threshold = this.options.refetchThreshold ?? Math.floor(this.buffer.size / 2);
    const slotsAreEmpty = this.takers.length > 0 && !this.turn;
    return slotsAreEmpty || this.buffer.length <= threshold;
  }

  /** Claims once. Returns how long to sleep before the next claim, unless something happens. */
  private async fetch(): Promise<number> {
    const startedAt = performance.now();
    const request = this.request();
    try {
      if (this.doubts?.due) await this.doubts.settle();
      if (this.pace.windowHasBegun) await this.letWaitingIn();
      const result = await this.options.jobs.claims.claim(request);
      this.failures = 0;
      if (result.unreadable) this.options.onError?.(result.unreadable, 'decrypting claimed jobs');
      this.scan.learn(result, performance.now() - startedAt, request.limit);
      this.pace.windowIn(result.retryInMs);
      this.accept(await this.withoutExtraSuspects(result.jobs), result.more);
      return this.pauseAfter(result.jobs.length, result.more);
    } catch (error) {
      this.counters.errors++;
      if (!isCertainlyRolledBack(error)) this.doubts?.raise();
      this.options.onError?.(error, 'claiming jobs');
      this.woken = false;
      return backoffMs(this.failures++);
    }
  }

  private request(): ClaimRequest {
    const { taskIdentifiers = null, queues = null, forbiddenFlags = null } = this.options;
    const tasks = typeof taskIdentifiers === 'function' ? taskIdentifiers() : taskIdentifiers;
    const slots = this.takers.length;
    this.checkedSlotsAt = performance.now();
    return {
      workerId: this.workerId,
      limit: this.buffer.room + slots,
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
    this.pace.foundJobs();
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
    return Math.min(sweepInMs, this.pace.afterLook(found));
  }

  /** A rate limit's next window has begun: its waiting jobs come back to the start of what claims read. */
  private async letWaitingIn(): Promise<void> {
    const { retryInMs } = await this.options.jobs.claims.letWaitingIn();
    this.pace.forgetWindow();
    this.pace.windowIn(retryInMs);
    this.scan.restartSlotLane();
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
      // Claimed by hand, their leases end without us; a pool frees them before it claims more.
      this.counters.errors++;
      this.doubts?.raise();
      this.options.onError?.(error, 'giving jobs back');
    }
  }

  private giveUp(taker: Taker): void {
    const index = this.takers.indexOf(taker);
    if (index >= 0) this.takers.splice(index, 1);
    this.answer(taker, null);
  }

  private answer(taker: Taker, job: ClaimedJob | null): void {
    if (taker.timer) clearTimeout(taker.timer);
    taker.resolve(job);
  }
}
