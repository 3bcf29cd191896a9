// Gives claimed jobs back unstarted: those that waited too long in the buffer, suspects of crashes beside another one, and what
// is left when the queue stops.
import type { Claimer } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { ClaimReconciler } from './claim.reconciler.js';
import type { JobBuffer } from './job.buffer.js';
import type { JobQueueOptions } from './queue.options.js';

const QUEUE_TTL_MS = 60_000;

export class JobReleaser {
  staleDropped = 0;
  errors = 0;
  private readonly underWay = new Set<Promise<void>>();

  constructor(
    private readonly options: Pick<JobQueueOptions, 'jobs' | 'quarantine' | 'queueTtlMs' | 'onError' | 'pauses'>,
    private readonly buffer: JobBuffer,
    private readonly reconciler: ClaimReconciler,
    private readonly claimer: () => Claimer,
  ) {}

  /** Jobs that have waited in the buffer for too long. */
  dropStale(): void {
    const stale = this.buffer.takeOlderThan(this.options.queueTtlMs ?? QUEUE_TTL_MS);
    if (!stale.length) return;
    this.staleDropped += stale.length;
    this.giveBackSoon(stale);
  }

  /** Gives back what has not started of what is paused now. */
  givePausedBack(): void {
    const { pauses } = this.options;
    const paused = pauses ? this.buffer.takeJobs((job) => pauses.holdsBack(job, job.lockedAt?.getTime())) : [];
    if (paused.length) this.giveBackSoon(paused);
  }

  /** Without what is paused, which goes back. `claimedAt`: the database's time of the claim, if it is known. */
  withoutPaused(jobs: ClaimedJob[], claimedAt: number | null): ClaimedJob[] {
    const { pauses } = this.options;
    if (claimedAt !== null) pauses?.noteClaimed(claimedAt);
    const paused = pauses ? jobs.filter((job) => pauses.holdsBack(job, claimedAt ?? undefined)) : [];
    if (!paused.length) return jobs;
    this.giveBackSoon(paused);
    return jobs.filter((job) => !paused.includes(job));
  }

  /** Is not waited for, but by `ended`. */
  giveBackSoon(jobs: ClaimedJob[]): void {
    const work = this.giveBack(jobs).finally(() => this.underWay.delete(work));
    this.underWay.add(work);
  }

  /** Keeps one suspect. The others go back before it may start: a crash would be blamed on all that the pool holds. */
  async withoutExtraSuspects(jobs: ClaimedJob[]): Promise<ClaimedJob[]> {
    const extra = this.options.quarantine?.take(jobs) ?? [];
    if (!extra.length) return jobs;
    await this.giveBack(extra);
    return jobs.filter((job) => !extra.includes(job));
  }

  /** Never rejects. */
  async giveBack(jobs: ClaimedJob[]): Promise<void> {
    this.forget(jobs);
    try {
      await this.options.jobs.engine.settlement.release(this.claimer(), jobs);
    } catch (error) {
      // As long as our heartbeat goes on, no other pool would get them.
      this.reconciler.suspect();
      this.errors++;
      this.options.onError?.(error, 'giving jobs back');
    }
  }

  /** They are not the pool's any more, and were never started. */
  forget(jobs: ClaimedJob[]): void {
    for (const job of jobs) this.options.quarantine?.leave(job);
  }

  /** Resolves when the stale jobs are given back. */
  async ended(): Promise<void> {
    await Promise.all(this.underWay);
  }
}
