// The local buffer between the database and a pool's slots: claims in batches ahead of need, gives back what gets
// stale or is left over. Woken by notifications, by slots that ask for more than there is, and by its poll timer.
import type { Claimer, ClaimFilter, ClaimResult, LaneClaimResult } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { AlreadyRunningError, StoppedError } from '../jobs.errors.js';
import { lanesOfQueue } from '../manager/lane.names.js';
import { byHand } from '../manager/worker.registry.js';
import type { News } from '../storage/job.news.js';
import { after } from '../timers.js';
import { backoffMs, pause, settledWithin } from './backoff.js';
import { ClaimGroup } from './claim.group.js';
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

/** Handlers that never wait run one after the other: after so many, answers from the database get their turn. */
const TURN = 100;
const STOP_JOIN_MS = 5_000;
const LOOK_AGAIN_MS = 50;
/** Most KiB of payloads that one claim reads, except the first. */
const MAX_CLAIM_KIB = 4 * 1024;

/**
 * new → running → stopped. While running, one fetch at a time:
 * asleep → (woken) → claiming → asleep, or claiming again while there is more.
 */
export class JobQueue {
  readonly workerId: string;
  private readonly buffer: JobBuffer;
  private readonly groups = new Map<string, ClaimGroup>();
  private readonly lost: LostClaims;
  private readonly takers: Taker[] = [];
  private readonly counters: JobQueueStats = { fetched: 0, dispatched: 0, staleDropped: 0, refetchCount: 0, errors: 0 };
  /** Queues in which a settle of this pool has freed a place that it may fill itself. */
  private readonly freed = new Set<string>();
  private state: 'new' | 'running' | 'stopped' = 'new';
  private loop: Promise<void> | null = null;
  private woken = false;
  private wakeUp: (() => void) | null = null;
  private unsubscribe: (() => void) | null = null;
  private idlePolls = 0;
  private failures = 0;
  private claiming = false;
  private comparing = false;
  private readonly givingBack = new Set<Promise<void>>();
  /** How many slots were free when the claims under way began, less those that got a job of a lane. */
  private slots = 0;
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
    const all = held ? (): ClaimedJob[] => [...this.buffer.jobs(), ...held()] : null;
    this.lost = new LostClaims(options.jobs, () => this.claimer.holder, all);
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
    this.unsubscribe = this.options.notifier?.subscribe((news) => this.hear(news)) ?? null;
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
    await inTime(Promise.all(this.givingBack));
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

  /** A settle of this pool has freed a place in the job's queue: if it does not fill it at once, others should. */
  placeFreed(job: ClaimedJob): void {
    for (const group of this.groups.values()) group.lanes.tellOf(job);
    this.freed.add(lanesOfQueue(job.queue!));
    if (!this.takers.length || this.state !== 'running') return this.tellFreed();
    this.tellGroups([]);
    this.wake();
  }

  /** Looks at all lanes again: what was left to others, or for later, may run now. */
  lookAgain(): void {
    this.tellGroups(null);
    this.wake();
  }

  /** Takes these claims out of the buffer: they are over, or to be cancelled. */
  drop(claims: { id: string; fence: string }[]): ClaimedJob[] {
    const dropped = this.buffer.takeClaims(claims);
    for (const job of dropped) this.options.isolation?.leave(job);
    return dropped;
  }

  /** Takes everything out of the buffer: the pool was taken for dead, and others have these jobs. */
  dropAll(): void {
    for (const job of this.buffer.takeAll()) this.options.isolation?.leave(job);
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
    if (this.failures === 0 || this.state !== 'running') this.wakeUp?.();
  }

  private async run(): Promise<void> {
    while (this.state === 'running') {
      this.woken = false;
      if (this.lost.isDue) await this.lookForLost();
      else if (this.comparing) await this.compare();
      const pauseMs = this.mayFetch() ? await this.fetch() : this.pollMs();
      if (this.state === 'running' && pauseMs > 0 && !this.woken) await this.sleep(pauseMs);
      this.dropStale();
    }
  }

  private mayFetch(): boolean {
    return this.options.mayClaim?.() !== false && (this.takers.length > 0 || this.wantsMore());
  }

  /** Whether the buffer should be filled. */
  private wantsMore(): boolean {
    if (this.options.mayClaim?.() === false) return false;
    const threshold = this.options.refetchThreshold ?? Math.floor(this.buffer.size / 2);
    const slotsAreEmpty = this.takers.length > 0 && !this.turn;
    return slotsAreEmpty || this.buffer.length <= threshold;
  }

  /** Claims once for each group. Returns how long to sleep before the next claims, unless something happens. */
  private async fetch(): Promise<number> {
    this.claiming = true;
    try {
      let found = 0;
      let given = 0;
      let more = false;
      this.lookAt = Infinity;
      // Slots that become free meanwhile wait for the next round: queues are claimed from in their order.
      const slots = this.takers.length;
      for (const { group, limit } of this.plan()) {
        this.slots = Math.max(0, Math.min(this.takers.length, slots - given));
        const results = await Promise.all([this.claimLanes(group, limit), this.claimPlain(group, limit)]);
        given += results[0]?.jobs.length ?? 0;
        for (const result of results) {
          if (!result) continue;
          found += result.jobs.length;
          more ||= result.more && (result.jobs.length > 0 || this.takers.length > 0);
          if (result.unreadable) this.options.onError?.(result.unreadable, 'reading claimed jobs');
          this.accept(await this.withoutExtraSuspects(result.jobs), result.more);
        }
        this.lookAt = Math.min(this.lookAt, group.lookAt);
      }
      this.failures = 0;
      this.tellFreed();
      if (!this.turn) this.serve();
      return this.pauseAfter(found, more);
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

  private async compare(): Promise<void> {
    this.comparing = false;
    await this.lost.compare().catch((error: unknown) => this.options.onError?.(error, 'looking for lost claims'));
  }

  /** What to claim now, and at most how much of it: queues in their order; tasks with a limit of their own up to it. */
  private plan(): { group: ClaimGroup; limit: number | null }[] {
    const rooms = this.options.taskRooms?.() ?? [];
    const queues = this.options.queues ?? [null];
    return queues.flatMap((queue) => [
      { group: this.groupOf(queue, null), limit: null },
      ...rooms
        .filter(({ free }) => free > 0)
        .map(({ task, free }) => ({ group: this.groupOf(queue, task), limit: free })),
    ]);
  }

  private groupOf(queue: string | null, task: string | null): ClaimGroup {
    const name = JSON.stringify([queue, task]);
    let group = this.groups.get(name);
    if (!group) this.groups.set(name, (group = new ClaimGroup(queue, task, this.options.pollIntervalMs ?? 2_000)));
    return group;
  }

  private filterOf({ task }: ClaimGroup): ClaimFilter {
    const { taskIdentifiers = null, forbiddenFlags = null } = this.options;
    const rooms = this.options.taskRooms?.() ?? [];
    const limited = new Set(rooms.map((room) => room.task));
    const tasks = typeof taskIdentifiers === 'function' ? taskIdentifiers() : taskIdentifiers;
    const others = limited.size && !tasks ? [...limited] : null;
    const general = limited.size && tasks ? tasks.filter((name) => !limited.has(name)) : tasks;
    return {
      taskIdentifiers: task === null ? general : [task],
      otherTasks: task === null ? others : null,
      forbiddenFlags,
      worstPriority: null,
    };
  }

  private get claimer(): Claimer {
    const { claimer, jobs, workerId, leaseMs } = this.options;
    return claimer?.() ?? byHand(workerId, leaseMs ?? jobs.registry.lockTimeoutMs);
  }

  /** Jobs of lanes, for the slots that are free; null where there are none, or nothing new. */
  private async claimLanes(group: ClaimGroup, limit: number | null): Promise<ClaimResult | null> {
    const wanted = Math.min(this.slots, limit ?? Infinity) >> Math.min(this.failures, 10);
    if (wanted < 1 || group.lookAt > performance.now()) return null;
    const startedAt = performance.now();
    const { share, spare, ...memory } = group.lanes.next(wanted);
    group.looks();
    const result = await this.options.jobs.claims.claimLanes({
      ...this.claimer,
      ...this.filterOf(group),
      worstPriority: this.buffer.headPriority,
      maxCrashes: this.options.isolation?.claimableCrashes ?? null,
      queue: group.queue,
      limit: wanted,
      share,
      spare,
      memory,
    });
    const costMs = performance.now() - startedAt;
    group.lanes.learn(result, costMs);
    group.looked(costMs, result);
    this.plainTurns = this.plainTurnsAfter(result);
    for (const job of result.jobs) if (job.queue !== null) this.freed.delete(lanesOfQueue(job.queue));
    return result;
  }

  /** Where lanes have more to give, plain jobs of the same priority count as one lane: so many of them go before the next look. */
  private plainTurnsAfter({ jobs, more, report }: LaneClaimResult): number {
    if (!more || !jobs.length || !report || report.priority !== this.buffer.headPriority) return 0;
    return Math.ceil(jobs.length / Math.max(1, report.lanes));
  }

  /** A batch of plain jobs, for the buffer; null where it needs none. */
  private async claimPlain(group: ClaimGroup, limit: number | null): Promise<ClaimResult | null> {
    if (group.queue !== null || !this.wantsMore()) return null;
    const room = limit === null ? this.buffer.room + this.takers.length : Math.min(limit, this.takers.length);
    // Smaller after a failure: it may have been too much for the server's statement_timeout.
    const wanted = Math.max(limit === null ? 1 : 0, room >> Math.min(this.failures, 10));
    if (wanted < 1) return null;
    const startedAt = performance.now();
    const result = await this.options.jobs.claims.claimPlain({
      ...this.claimer,
      ...this.filterOf(group),
      limit: wanted,
      maxKib: Math.min(MAX_CLAIM_KIB, this.buffer.roomKib),
      ...group.scan.next(),
    });
    group.scan.learn(result, performance.now() - startedAt, wanted);
    return result;
  }

  /** What other processes, or this one, have told. */
  private hear(news: News): void {
    if (news.kind === 'jobs') for (const group of this.groups.values()) group.scan.tell(news.priorities);
    else if (news.kind === 'lanes' || news.kind === 'all') {
      this.tellGroups(news.kind === 'all' ? null : news.lanes);
      if (news.kind === 'all') for (const group of this.groups.values()) group.scan.tell(null);
    } else return;
    this.wake();
  }

  private tellGroups(lanes: string[] | null): void {
    for (const group of this.groups.values()) group.tell(lanes);
    this.lookAt = -Infinity;
  }

  /** Places that this pool has freed and not filled: others may. */
  private tellFreed(): void {
    if (!this.freed.size) return;
    const lanes = [...this.freed];
    this.freed.clear();
    void this.options.jobs.publisher.publish({ kind: 'lanes', lanes }).catch(() => undefined);
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
    const groups = [...this.groups.values()];
    const sweepInMs = Math.min(Infinity, ...groups.map(({ scan }) => scan.sweepIsDueInMs()));
    const lanesInMs = this.takers.length
      ? Math.min(Infinity, ...groups.map(({ nextLookInMs }) => nextLookInMs))
      : Infinity;
    return Math.max(0, Math.min(sweepInMs, Math.max(1, lanesInMs), this.idleMs(found)));
  }

  private idleMs(found: number): number {
    if (found > 0) return Math.min(this.pollMs(), this.options.refetchDelayMs ?? 1_000);
    this.idlePolls++;
    return this.pollMs();
  }

  /** The poll interval, longer with each poll that found nothing. */
  private pollMs(): number {
    const { pollIntervalMs = 2_000, maxPollIntervalMs = pollIntervalMs } = this.options;
    const ceiling = Math.min(maxPollIntervalMs, pollIntervalMs * 2 ** Math.min(this.idlePolls, 20));
    return ceiling > pollIntervalMs ? ceiling * (0.75 + Math.random() * 0.25) : pollIntervalMs;
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
    const job = this.buffer.take(this.options.admit);
    if (!job) return null;
    this.counters.dispatched++;
    this.dispatchedInTurn++;
    if (this.plainTurns > 0) this.plainTurns--;
    if (this.state === 'running' && this.wantsMore()) this.wake();
    return job;
  }

  private dropStale(): void {
    const stale = this.buffer.takeOlderThan(this.options.queueTtlMs ?? 60_000);
    this.counters.staleDropped += stale.length;
    const work = this.giveBack(stale).finally(() => this.givingBack.delete(work));
    this.givingBack.add(work);
  }

  private async giveBack(jobs: ClaimedJob[]): Promise<void> {
    for (const job of jobs) this.options.isolation?.leave(job);
    try {
      await this.options.jobs.settlement.release(this.claimer, jobs);
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
