// Claims whose answer never came, and jobs that could not be given back: the database may hold jobs for this pool that
// the pool does not know of. Its heartbeat would keep them for as long as it lives; so they are looked for and freed.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { JobManager } from '../manager/job.manager.js';

export interface ClaimDoubtsParts {
  jobs: JobManager;
  workerId: string;
  /** All that the pool knows to be claimed: in its buffer, running, or with an outcome that is not settled yet. */
  known: () => ClaimedJob[];
}

/** A claim that was on its way when its connection broke may arrive later still: look a second time. */
const LOOK_AGAIN_MS = 30_000;

export class ClaimDoubts {
  private dueAt = Infinity;
  private raised = 0;

  constructor(private readonly parts: ClaimDoubtsParts) {}

  /** Something was claimed, perhaps. */
  raise(): void {
    this.raised++;
    this.dueAt = performance.now();
  }

  get due(): boolean {
    return performance.now() >= this.dueAt;
  }

  /** Frees what the pool does not know of. No claim of the pool's may be under way. Rejects if the database is away. */
  async settle(): Promise<void> {
    const { jobs, workerId, known } = this.parts;
    const raised = this.raised;
    // In a turn of its own: a job that is just being handed over is in no place where it could be found.
    const held = await new Promise<ClaimedJob[]>((resolve) => setImmediate(() => resolve(known())));
    await jobs.claims.releaseUnknown(workerId, held);
    if (this.raised !== raised) return;
    this.dueAt = raised > 0 ? performance.now() + LOOK_AGAIN_MS : Infinity;
    this.raised = 0;
  }
}
