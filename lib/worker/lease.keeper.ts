// Keeps a pool's claims alive: one heartbeat for all its jobs, from a thread of its own where that is possible. It also
// brings news (jobs to cancel, a lease that was taken away) and frees the jobs of workers that went silent.
import { hostname } from 'node:os';
import type { HeartbeatReport } from '../interfaces/claim.interface.js';
import type { WorkerSettings } from '../interfaces/jobs-options.interface.js';
import { CancelJob, LeaseLostError, type SchemaTooNewError } from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import { backoffMs } from './backoff.js';
import { HeartbeatThread, monotonicMs } from './heartbeat.thread.js';
import type { JobRunner } from './job.runner.js';

export interface LeaseKeeperParts {
  jobs: JobManager;
  runner: JobRunner;
  workerId: string;
  options: WorkerSettings;
  tasks: () => string[];
  /** A newer release has changed the schema: this process must claim nothing more. */
  onSchemaTooNew: (error: SchemaTooNewError) => void;
  onError: (error: unknown, context: string) => void;
}

/** How often the main loop shows that it moves, and looks whether the lease still holds. */
const PULSE_MS = 1_000;
/** Without a thread the beat must be frequent, to survive a loop that is busy now and then. */
const LONGEST_BEAT_WITHOUT_THREAD_MS = 5_000;
const WORTH_A_WARNING_MS = 5_000;

export class LeaseKeeper {
  private thread: HeartbeatThread | null = null;
  private deaths = 0;
  private stopped = false;
  private respawning: NodeJS.Timeout | null = null;
  private beatingHere: NodeJS.Timeout | null = null;
  private timers: NodeJS.Timeout[] = [];
  private beating: Promise<void> | null = null;
  private looking: Promise<void> | null = null;
  private rescuing: Promise<void> | null = null;
  private registeredAt = 0;
  private pulseAt = 0;

  constructor(private readonly parts: LeaseKeeperParts) {}

  async start(): Promise<void> {
    await this.register();
    this.pulseAt = monotonicMs();
    this.every(PULSE_MS, () => this.pulse());
    // Before the first job is claimed: it may block the loop at once, and for long.
    this.startBeating();
  }

  /** Asks for jobs to cancel now instead of at the next beat. Never rejects. */
  lookForCancelled(): Promise<void> {
    this.looking ??= this.findCancelled().finally(() => (this.looking = null));
    return this.looking;
  }

  /** Ends the lease at once if nothing is held any more; what is held goes by the lease's end. */
  async stop(holdsNothing: boolean): Promise<void> {
    this.stopped = true;
    for (const timer of this.timers.splice(0)) clearInterval(timer);
    if (this.respawning) clearTimeout(this.respawning);
    this.stopBeatingHere();
    await Promise.all([this.thread?.stop(), this.beating, this.looking, this.rescuing]);
    this.thread = null;
    if (!holdsNothing) return;
    await this.parts.jobs.claims.unregisterWorker(this.parts.workerId).catch((error: unknown) => this.report(error));
  }

  private startBeating(): void {
    const { jobs, workerId, options, onError } = this.parts;
    const plan = jobs.claims.planHeartbeat(workerId);
    if (!plan) {
      onError(new Error(NO_THREAD), 'starting the heartbeat');
      return this.beatHere();
    }
    this.thread = new HeartbeatThread({
      plan,
      keepaliveMs: options.keepaliveMs,
      onBeat: (report) => {
        this.deaths = 0;
        this.stopBeatingHere();
        this.heed(report);
      },
      onFailure: (error, fatal) => {
        this.report(jobs.claims.explainFailure(error));
        if (fatal) this.replaceThread();
      },
    });
  }

  /** The thread has died: the main loop beats until the next one does. */
  private replaceThread(): void {
    this.registeredAt = Math.max(this.registeredAt, this.thread?.renewedAt ?? 0);
    this.thread = null;
    if (this.stopped) return;
    this.beatHere();
    this.respawning = setTimeout(() => this.startBeating(), backoffMs(this.deaths++));
  }

  private beatHere(): void {
    if (this.beatingHere) return;
    const { keepaliveMs } = this.parts.options;
    this.beatingHere = setInterval(() => this.beat(), Math.min(keepaliveMs, LONGEST_BEAT_WITHOUT_THREAD_MS));
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
    try {
      const report = await this.parts.jobs.claims.heartbeat(this.parts.workerId);
      if (!report.expired) this.registeredAt = sentAt;
      this.heed(report);
    } catch (error) {
      this.report(error);
    }
  }

  private heed({ expired, cancelRequested, needsRescue, hasRateLimits, newerSchema }: HeartbeatReport): void {
    const { schemaGuard } = this.parts.jobs.claims;
    schemaGuard.heed(newerSchema);
    if (schemaGuard.refusal) this.parts.onSchemaTooNew(schemaGuard.refusal);
    this.abortCancelled(cancelRequested);
    this.parts.jobs.claims.mayHaveRateLimits = hasRateLimits;
    if (needsRescue) this.rescue();
    if (expired) void this.beginAgain();
  }

  private abortCancelled(ids: string[]): void {
    for (const id of ids) this.parts.runner.abort(id, new CancelJob('the job was cancelled'));
  }

  /** Taken for dead: what runs here has been, or will be, given to others. Start over with a lease of our own. */
  private async beginAgain(): Promise<void> {
    this.abortAll();
    await this.register().catch((error: unknown) => this.report(error));
  }

  private pulse(): void {
    const now = monotonicMs();
    const lagMs = now - this.pulseAt - PULSE_MS;
    this.pulseAt = now;
    this.thread?.moved();
    if (lagMs > WORTH_A_WARNING_MS) this.parts.onError(new Error(blocked(lagMs)), 'running jobs');
    this.abortIfTooLate(now);
  }

  /** Nobody may run a job beyond its lease: abort while it still holds rather than find out afterwards. */
  private abortIfTooLate(now: number): void {
    const { keepaliveMs, leaseMs } = this.parts.options;
    const renewedAt = Math.max(this.registeredAt, this.thread?.renewedAt ?? 0);
    if (now - renewedAt > leaseMs - Math.min(keepaliveMs / 2, leaseMs / 4)) this.abortAll();
  }

  private abortAll(): void {
    for (const id of this.parts.runner.runningIds()) this.parts.runner.abort(id, new LeaseLostError(id));
  }

  private async findCancelled(): Promise<void> {
    try {
      this.abortCancelled(await this.parts.jobs.claims.findCancelRequests(this.parts.workerId));
    } catch (error) {
      this.report(error);
    }
  }

  private rescue(): void {
    const { jobs, options } = this.parts;
    this.rescuing ??= jobs.claims
      .rescue(options.maxCrashes)
      .then(
        () => undefined,
        (error: unknown) => this.report(error),
      )
      .finally(() => (this.rescuing = null));
  }

  private async register(): Promise<void> {
    const { jobs, workerId, options, tasks } = this.parts;
    const { concurrency, leaseMs } = options;
    const sentAt = monotonicMs();
    const host = hostname();
    await jobs.claims.registerWorker({ id: workerId, host, pid: process.pid, concurrency, tasks: tasks(), leaseMs });
    jobs.claims.schemaGuard.assertKnown();
    this.registeredAt = sentAt;
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
