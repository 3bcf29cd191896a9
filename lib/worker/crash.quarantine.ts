// Jobs that have taken their process down again and again: if one does so once more, it is to blame, and its neighbours are not.
// That holds for one such suspect at a time.
import type { ClaimedJob } from '../interfaces/job.interface.js';

/** At most one suspect is in the pool's hands, waiting or running, beside any number of other jobs. */
export class CrashQuarantine {
  private suspect: ClaimedJob | null = null;

  constructor(private readonly maxCrashes: number) {}

  /** After how many crashes a job may be claimed now; null: after any. */
  get claimableCrashes(): number | null {
    return this.suspect ? Math.max(0, this.maxCrashes - 2) : null;
  }

  /** Keeps one suspect at most; returns those to give back. */
  take(jobs: ClaimedJob[]): ClaimedJob[] {
    const suspects = jobs.filter((job) => this.isSuspect(job));
    this.suspect ??= suspects[0] ?? null;
    return suspects.filter((job) => job !== this.suspect);
  }

  /** The job has ended, or goes back unstarted. Returns whether another suspect may be claimed now. */
  leave(job: ClaimedJob): boolean {
    if (job !== this.suspect) return false;
    this.suspect = null;
    return true;
  }

  private isSuspect({ crashes }: ClaimedJob): boolean {
    return crashes > 0 && crashes >= this.maxCrashes - 1;
  }
}
