// Keeps a pool's claims alive: one heartbeat for all its jobs, from a thread of its own where that is possible. It also
// brings news (jobs to cancel, a lease that was taken away) and frees the jobs of workers that went silent.
import { hostname } from 'node:os';
import type { HeartbeatPlan, HeartbeatReport, WorkerRegistration } from '../interfaces/claim.interface.js';
import type { WorkerSettings } from '../interfaces/jobs-options.interface.js';
import type { SchemaTooNewError } from '../jobs.errors.js';
import type { JobEngine } from '../manager/job.engine.js';
import type { CheckedClaim, ClaimName } from '../manager/worker.registry.js';
import { maxPauseMs } from '../storage/sql.states.js';
import { backoffMs, pause, wallClock } from '../timing.js';
import { HeartbeatThread, monotonicMs, type HeartbeatThreadParts } from './heartbeat.thread.js';
import { DUTY_MS, SharedDuties } from './shared.duties.js';
import type { WorkerIdentity } from './worker.identity.js';

export interface HeartbeatParts {
  engine: JobEngine;
  identity: WorkerIdentity;
  options: WorkerSettings;
  /** Tasks that the pool has handlers for, or is to take, and how. */
  takes: () => Pick<WorkerRegistration, 'tasks' | 'takesAnyTask' | 'batchWaits'>;
  /** What the pool holds: buffered, running, or not yet written. */
  held: () => ClaimName[];
  /** These claims are over, or to be cancelled. */
  onClaims: (claims: CheckedClaim[]) => void;
  /** The lease is about to run out, or has: what runs must end. */
  onTooLate: () => void;
  /** The pool was taken for dead: all that it holds is, or will be, given to others. */
  onDeath: () => void;
  /** The lease holds again, or a beat was heard: what waited for it may go on. `hasPauses`: as far as it was told. */
  onBeat: (hasPauses?: boolean) => void;
  /** A newer release has changed the schema: this process must claim nothing more. */
  onSchemaTooNew: (error: SchemaTooNewError) => void;
  onError: (error: unknown, context: string) => void;
}

/** How often the main loop shows that it moves, and looks whether the lease still holds. */
const PULSE_MS = 1_000;
/** Without a thread the beat must be frequent, to survive a loop that is busy now and then. */
const MAX_BEAT_WITHOUT_THREAD_MS = 5_000;
const WORTH_A_WARNING_MS = 5_000;

export class Heartbeat {
  private thread: HeartbeatThread | null = null;
  private deaths = 0;
  private stopped = false;
  private respawning: NodeJS.Timeout | null = null;
  private beatingHere: NodeJS.Timeout | null = null;
  private timers: NodeJS.Timeout[] = [];
  private beating: Promise<void> | null = null;
  private looking = Promise.resolve();
  /** A look is asked for and has not begun. */
  private looksNext = false;
  private beginning: Promise<void> | null = null;
  private leaving: Promise<void> | null = null;
  private registeredAt = 0;
  private registeredWallAt = 0;
  private holdsUntil = -Infinity;
  private holdsUntilWall = -Infinity;
  private pulseAt = 0;
  private readonly duties: SharedDuties;

  constructor(private readonly parts: HeartbeatParts) {
    const { engine, options, onError } = parts;
    this.duties = new SharedDuties(engine.registry, options.maxCrashes, onError);
  }

  async start(): Promise<void> {
    await this.register();
    if (this.stopped) return;
    this.pulseAt = monotonicMs();
    this.every(PULSE_MS, () => this.pulse());
    this.every(DUTY_MS * (0.9 + Math.random() / 5), () => this.duties.perform());
    // Before the first job is claimed: it may block the loop at once, and for long.
    this.startBeating();
  }

  /** Whether the last lease that was granted still holds, by the monotonic clock and by the wall's. Asked before each job. */
  get holds(): boolean {
    return performance.now() < this.holdsUntil && wallClock.now() < this.holdsUntilWall;
  }

  /** Asks now, not at the next beat, what has become of claims; after a look under way, which may not know. Never rejects. */
  checkClaims(): Promise<void> {
    if (!this.looksNext) this.looking = this.looking.then(() => this.askForClaims());
    this.looksNext = true;
    return this.looking;
  }

  /** The pool is being stopped: whatever it leaves behind was no crash. Never rejects. */
  leave(): Promise<void> {
    const { engine, identity } = this.parts;
    return (this.leaving = engine.registry.leave(identity.incarnation).catch((error: unknown) => this.report(error)));
  }

  /** Tasks were found after the start. */
  async describe(): Promise<void> {
    await this.register();
  }

  /** Ends the lease at once if nothing is held any more; what is held goes by the lease's end. */
  async stop(holdsNothing: boolean): Promise<void> {
    this.stopped = true;
    for (const timer of this.timers.splice(0)) clearInterval(timer);
    clearTimeout(this.respawning ?? undefined);
    this.stopBeatingHere();
    const underWay = [this.beating, this.looking, this.beginning, this.leaving];
    await Promise.all([...underWay, this.thread?.stop(), this.duties.stop()]);
    this.thread = null;
    const { engine, identity } = this.parts;
    if (holdsNothing)
      await engine.registry.unregister(identity.incarnation).catch((error: unknown) => this.report(error));
  }

  private startBeating(): void {
    if (this.stopped) return;
    const { engine, identity, onError } = this.parts;
    const plan = engine.registry.planHeartbeat(identity.incarnation);
    if (!plan) {
      onError(new Error(NO_THREAD), 'starting the heartbeat');
      return this.beatHere();
    }
    this.thread = this.makeThread(plan);
    if (!this.thread) this.replaceThread();
  }

  /** Null where none can be made: the process may have no more, or not be allowed any. */
  private makeThread(plan: HeartbeatPlan): HeartbeatThread | null {
    const { engine, options } = this.parts;
    const parts: HeartbeatThreadParts = {
      plan,
      keepaliveMs: options.keepaliveMs,
      onBeat: (report) => {
        this.deaths = 0;
        this.stopBeatingHere();
        this.read(report);
      },
      onFailure: (error, fatal) => {
        this.report(engine.registry.explainFailure(error));
        if (fatal) this.replaceThread();
      },
    };
    try {
      return new HeartbeatThread(parts);
    } catch (error) {
      this.parts.onError(error, 'starting the heartbeat');
      return null;
    }
  }

  /** The thread has died: the main loop beats until the next one does. */
  private replaceThread(): void {
    this.keepTimes();
    this.thread = null;
    if (this.stopped) return;
    this.beatHere();
    this.respawning = setTimeout(() => this.startBeating(), backoffMs(this.deaths++));
  }

  private beatHere(): void {
    if (this.beatingHere) return;
    const { keepaliveMs } = this.parts.options;
    this.beatingHere = setInterval(() => this.beat(), Math.min(keepaliveMs, MAX_BEAT_WITHOUT_THREAD_MS));
  }

  private stopBeatingHere(): void {
    if (this.beatingHere) clearInterval(this.beatingHere);
    this.beatingHere = null;
  }

  /** One heartbeat from the main loop, unless one is under way. */
  private beat(): void {
    this.beating ??= this.renew().finally(() => (this.beating = null));
  }

  private async renew(): Promise<void> {
    const sentAt = monotonicMs();
    const sentWallAt = wallClock.now();
    try {
      const report = await this.parts.engine.registry.heartbeat(this.parts.identity.incarnation);
      if (!report.expired && !report.held) [this.registeredAt, this.registeredWallAt] = [sentAt, sentWallAt];
      this.read(report);
    } catch (error) {
      this.report(error);
    }
  }

  private read({ expired, held, needsRescue, newerSchema, hasPauses }: HeartbeatReport): void {
    if (this.stopped) return;
    const { schemaCheck } = this.parts.engine.registry;
    schemaCheck.learn(newerSchema);
    if (schemaCheck.refusal) this.parts.onSchemaTooNew(schemaCheck.refusal);
    if (needsRescue) this.duties.rescueSoon();
    if (expired) return this.reregister();
    this.noteLease();
    // A transaction holds the incarnation's row for longer than its lease: another one can claim meanwhile.
    if (held && !this.holds) return this.reregister();
    this.parts.onBeat(hasPauses);
    void this.checkClaims();
  }

  /** Taken for dead: what is held here has been, or will be, given to others. A new incarnation starts with nothing. */
  private reregister(): void {
    if (this.stopped) return;
    this.holdsUntil = -Infinity;
    this.parts.onDeath();
    this.beginning ??= this.registerAgain().finally(() => (this.beginning = null));
  }

  private async registerAgain(): Promise<void> {
    const { identity, onBeat } = this.parts;
    this.stopBeatingHere();
    await this.thread?.stop();
    this.thread = null;
    for (let failures = 0; !this.stopped; failures++) {
      identity.renew();
      try {
        await this.register();
        if (this.leaving) void this.leave();
        this.startBeating();
        return onBeat();
      } catch (error) {
        this.report(error);
        await pause(backoffMs(failures, maxPauseMs(error)));
      }
    }
  }

  /** How long the lease holds, as far as is known. */
  private noteLease(): void {
    const { leaseMs } = this.parts.options;
    this.keepTimes();
    this.holdsUntil = performance.now() + this.registeredAt + leaseMs - monotonicMs();
    this.holdsUntilWall = this.registeredWallAt + leaseMs;
  }

  private pulse(): void {
    const now = monotonicMs();
    const lagMs = now - this.pulseAt - PULSE_MS;
    this.pulseAt = now;
    this.thread?.markAlive();
    if (lagMs > WORTH_A_WARNING_MS) this.parts.onError(new Error(blocked(lagMs)), 'running jobs');
    this.abortIfTooLate(now);
  }

  /** No job may run beyond its lease: abort while it still holds rather than find out afterwards. */
  private abortIfTooLate(now: number): void {
    const { keepaliveMs, leaseMs } = this.parts.options;
    this.noteLease();
    if (now - this.registeredAt > leaseMs - Math.min(keepaliveMs / 2, leaseMs / 4)) this.parts.onTooLate();
  }

  private async askForClaims(): Promise<void> {
    this.looksNext = false;
    try {
      const claims = await this.parts.engine.registry.check(this.parts.held());
      if (claims.length) this.parts.onClaims(claims);
    } catch (error) {
      this.report(error);
    }
  }

  private async register(): Promise<void> {
    const { engine, identity, options } = this.parts;
    const { concurrency, leaseMs, queues, forbiddenFlags } = options;
    const [sentAt, sentWallAt] = [monotonicMs(), wallClock.now()];
    const { incarnation: id, label, instance } = identity;
    const takes = { ...this.parts.takes(), queues, forbiddenFlags };
    const who = { id, label, instance, host: hostname(), pid: process.pid };
    await engine.registry.register({ ...who, concurrency, leaseMs, ...takes });
    engine.registry.schemaCheck.assertKnown();
    [this.registeredAt, this.registeredWallAt] = [sentAt, sentWallAt];
    this.noteLease();
  }

  /** A thread that has gone takes its times with it. Both are of one beat: a wall clock that was ahead once made no later one. */
  private keepTimes(): void {
    const { renewedAt = 0, renewedWallAt = 0 } = this.thread ?? {};
    if (renewedAt >= this.registeredAt) [this.registeredAt, this.registeredWallAt] = [renewedAt, renewedWallAt];
  }

  private every(ms: number, work: () => void): void {
    this.timers.push(setInterval(work, ms));
  }

  private report(error: unknown): void {
    this.parts.onError(error, 'renewing the lease');
  }
}

const NO_THREAD =
  'The connection settings hold functions or streams, which cannot be handed to a thread: the heartbeat runs on the ' +
  'main loop, every 5 s at the latest, and a handler that blocks it for longer than the lease loses its jobs.';

const blocked = (ms: number): string =>
  `The event loop was blocked for ${Math.round(ms / 1000)} s. Move long computations to a worker thread, or let go of ` +
  'the loop between parts of them.';
