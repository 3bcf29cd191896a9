// Jobs that come back by an operator's hand, with their keys and the parents that they still have to wait for; and jobs that go
// for good.
import type { JobStatus, QueryExecutor } from '../interfaces/job.interface.js';
import { JobKeyConflictError } from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import * as dependencies from '../storage/statements/dependencies.js';
import * as edits from '../storage/statements/edit-jobs.js';
import { newsOf, type JobPromoter } from './job.promoter.js';
import type { NewsPublisher } from './news.publisher.js';

export class JobRevival {
  constructor(
    private readonly database: Database,
    private readonly promoter: JobPromoter,
    private readonly publisher: NewsPublisher,
  ) {}

  /**
   * Brings those of the jobs back that have ended. A child waits for those of its parents that are under way, or that came back
   * with it.
   * @throws JobKeyConflictError where another live job holds a key of theirs
   */
  async retry(asked: string[], executor: QueryExecutor): Promise<edits.EditedRow[]> {
    await this.database.run(edits.keepBodies, [asked], executor);
    const jobs = await this.database.run(edits.findRetryable, [asked], executor);
    await this.takeKeys(jobs, executor);
    const ids = jobs.map(({ id }) => id);
    const rows = await this.database.run(edits.retryJobs, [ids], executor);
    await this.database.run(dependencies.relinkParents, [ids], executor);
    const parents = await this.database.run(dependencies.findParentsOf, [ids], executor);
    await this.promoter.resolve(
      parents.map(({ id }) => id),
      executor,
    );
    await this.publisher.publishIn(executor, newsOf(rows.map(({ lane }) => lane)));
    return rows;
  }

  /** Forgets jobs that have ended, and tells those that still wait for one of them. Returns how many. */
  async purge(status: JobStatus, olderThanMs: number, executor: QueryExecutor): Promise<number> {
    const locked = await this.database.run(edits.lockPurged, [status, olderThanMs], executor);
    const [row] = await this.database.run(edits.purgeJobs, [locked.map(({ id }) => id), status], executor);
    await this.promoter.resolve(row?.parents ?? [], executor);
    return row?.purged ?? 0;
  }

  private async takeKeys(
    jobs: { id: string; job_key: string | null; taken: boolean }[],
    executor: QueryExecutor,
  ): Promise<void> {
    const keyed = jobs.filter(({ job_key }) => job_key !== null);
    const taken = keyed.filter((row) => row.taken).map((row) => row.job_key!);
    if (taken.length) throw new JobKeyConflictError(taken);
    if (!keyed.length) return;
    const values = [keyed.map(({ job_key }) => job_key), keyed.map(({ id }) => id)];
    await this.database.run(edits.claimFreeKeys, values, executor);
    await this.database.run(edits.lockKeys, [values[0]], executor);
    const keys = new Set((await this.database.run(edits.takeKeys, values, executor)).map(({ key }) => key));
    const refused = keyed.filter(({ job_key }) => !keys.has(job_key!)).map(({ job_key }) => job_key!);
    if (refused.length) throw new JobKeyConflictError(refused);
  }
}
