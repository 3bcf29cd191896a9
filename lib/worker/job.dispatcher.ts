// Hands the jobs of the buffer to slots: to one that asks, or to those that wait, first come, first served. A slot is kept
// empty for one claim where a due job of a lane may wait for it.
import type { LaneClaimResult } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { JobBuffer } from './job.buffer.js';
import type { JobQueueOptions } from './queue.options.js';
import { Takers } from './takers.js';

/** new → running → stopped */
export type QueueState = 'new' | 'running' | 'stopped';

export interface DispatcherParts {
  options: Pick<JobQueueOptions, 'admit' | 'mayClaim' | 'refetchThreshold'>;
  buffer: JobBuffer;
  state: () => QueueState;
  /** Jobs are needed. */
  wake: () => void;
  /** Before each job that is taken. */
  dropStale: () => void;
}

/** Handlers that never wait run one after the other: after so many, answers from the database get their turn. */
const TURN = 100;

export class JobDispatcher {
  /** How many jobs it has handed out. */
  dispatched = 0;
  /** When lanes are to be looked at again, before a slot takes a job from the buffer. */
  lookAt = -Infinity;
  private readonly takers = new Takers();
  /** Whether the buffer had nothing that may start for the taker that asked last. */
  private starving = false;
  /** So many plain jobs go before lanes are looked at again. */
  private plainTurns = 0;
  private turn: NodeJS.Immediate | null = null;
  private dispatchedInTurn = 0;
  private batchTimer: NodeJS.Timeout | null = null;
  private batchTimerAt = Infinity;

  constructor(private readonly parts: DispatcherParts) {}

  /** How many slots wait for a job. */
  get freeSlots(): number {
    return this.takers.length;
  }

  /** The next job, or null after `timeoutMs` (Infinity: when the queue stops). */
  take(timeoutMs: number): Promise<ClaimedJob | null> {
    if (this.parts.state() === 'stopped') return Promise.resolve(null);
    const job = this.tryTake();
    if (job || timeoutMs <= 0) return Promise.resolve(job);
    const waiting = this.takers.wait(timeoutMs);
    if (!this.turn) this.parts.wake();
    return waiting;
  }

  /** The next job if there is one that may start right now. */
  tryTake(): ClaimedJob | null {
    return this.parts.state() !== 'stopped' && this.mayDispatch() ? this.next() : null;
  }

  /** Looks at the buffer for all slots that wait. */
  serve(): void {
    while (this.takers.length) {
      const wasStarving = this.starving;
      const job = this.next();
      // What lies in the buffer may not start now: other jobs may.
      if (!job && !wasStarving && this.parts.buffer.length) this.parts.wake();
      if (!job) return;
      this.takers.give(job);
    }
  }

  /** Unless a turn of the event loop is awaited, after which slots are served. */
  serveNow(): void {
    if (!this.turn) this.serve();
  }

  /** So many jobs have come into the buffer. */
  serveArrived(count: number): void {
    // A full batch waits for one turn of the event loop, so that the next claim is on its way before the slots, whose
    // jobs follow each other without one, keep the loop busy.
    if (count >= TURN) this.serveNextTurn();
    else if (this.parts.state() === 'running') this.serve();
    this.awaitBatches();
  }

  /** The jobs that run in one call with one that was handed out; null: it runs by itself. Asked once. */
  batchFor(job: ClaimedJob): ClaimedJob[] | null {
    return this.parts.buffer.batchFor(job);
  }

  /** Whether the buffer should be filled. */
  get wantsMore(): boolean {
    const { options, buffer } = this.parts;
    if (options.mayClaim?.() === false) return false;
    const threshold = options.refetchThreshold ?? Math.floor(buffer.size / 2);
    // A taker that only waits for a look at lanes gets a job of the buffer after it.
    const slotsAreEmpty = this.takers.length > 0 && this.starving && !this.turn;
    return slotsAreEmpty || buffer.singles <= threshold;
  }

  /** Where lanes have more to give, plain jobs of the same priority count as one lane: so many of them go before the next look. */
  noteLook({ jobs, more, report }: LaneClaimResult): void {
    const isShared = more && jobs.length && report && report.priority === this.parts.buffer.headPriority;
    this.plainTurns = isShared ? Math.ceil(jobs.length / Math.max(1, report.lanes)) : 0;
  }

  /** Slots that wait get nothing more. */
  stop(): void {
    if (this.turn) clearImmediate(this.turn);
    this.turn = null;
    if (this.batchTimer) clearTimeout(this.batchTimer);
    this.batchTimerAt = -Infinity;
    this.takers.sendAway();
  }

  /** A batch that is not full starts when its time has come. */
  awaitBatches(): void {
    const now = performance.now();
    const dueAt = this.parts.buffer.dueAfter(now);
    if (dueAt >= this.batchTimerAt) return;
    if (this.batchTimer) clearTimeout(this.batchTimer);
    this.batchTimerAt = dueAt;
    this.batchTimer = setTimeout(() => this.startBatches(), Math.max(1, Math.ceil(dueAt - now)));
  }

  private startBatches(): void {
    this.batchTimerAt = Infinity;
    if (this.parts.state() !== 'running') return;
    this.serveNow();
    this.awaitBatches();
  }

  private serveNextTurn(): void {
    this.turn ??= setImmediate(() => {
      this.turn = null;
      this.dispatchedInTurn = 0;
      if (this.parts.state() === 'running') this.serve();
    });
  }

  private mayDispatch(): boolean {
    if (this.turn) return false;
    const isRunning = this.parts.state() === 'running';
    if (this.dispatchedInTurn >= TURN && isRunning) {
      this.serveNextTurn();
      return false;
    }
    return !isRunning || this.plainTurns > 0 || performance.now() < this.lookAt;
  }

  private next(): ClaimedJob | null {
    this.parts.dropStale();
    const job = this.parts.buffer.take(this.parts.options.admit);
    this.starving = job === null;
    if (!job) return null;
    this.dispatched++;
    this.dispatchedInTurn++;
    if (this.plainTurns > 0) this.plainTurns--;
    if (this.parts.state() === 'running' && this.wantsMore) this.parts.wake();
    return job;
  }
}
