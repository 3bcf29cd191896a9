// A job that has taken its process down again and again runs alone before it is given up: were it to crash beside
// others, they would be blamed with it.
import type { ClaimedJob } from '../interfaces/job.interface.js';

/**
 * Which jobs may start beside which. At most one suspect is in the pool's hands, waiting or running; while it is,
 * nothing else is claimed, and nothing else starts.
 */
export class Isolation {
  private running = 0;
  private suspect: ClaimedJob | null = null;

  constructor(private readonly maxCrashes: number) {}

  /** Whether the pool should claim nothing more for now. */
  get holds(): boolean {
    return this.suspect !== null;
  }

  /** Keeps one suspect at most; returns those to give back before it may start. */
  take(jobs: ClaimedJob[]): ClaimedJob[] {
    const suspects = jobs.filter((job) => this.isSuspect(job));
    this.suspect ??= suspects[0] ?? null;
    return suspects.filter((job) => job !== this.suspect);
  }

  /** Whether the job may start now; if so it has. */
  enter(job: ClaimedJob): boolean {
    if (this.suspect && (job !== this.suspect || this.running > 0)) return false;
    this.running++;
    return true;
  }

  /** The job has ended. */
  leave(job: ClaimedJob): void {
    this.running--;
    this.forget(job);
  }

  /** The job goes back unstarted. */
  forget(job: ClaimedJob): void {
    if (job === this.suspect) this.suspect = null;
  }

  private isSuspect({ crashes }: ClaimedJob): boolean {
    return crashes > 0 && crashes >= this.maxCrashes - 1;
  }
}
