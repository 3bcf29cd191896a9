// Jobs that wait for others: told when a parent has ended, and brought back with the waits that they still have.
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import type { JobStatus, QueryExecutor } from '../interfaces/job.interface.js';
import { JobKeyConflictError } from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import { isUniqueViolation } from '../storage/database.errors.js';
import * as statements from '../storage/statements/dependencies.js';
import * as edits from '../storage/statements/edit-jobs.js';

export class Dependents {
  constructor(
    private readonly database: Database,
    private readonly settings: ManagerSettings,
  ) {}

  /** Tells the jobs that wait for these parents what has become of them; what is cancelled for it is a parent itself. */
  async resolve(parents: string[], executor?: QueryExecutor): Promise<void> {
    for (let ended = parents; ended.length;) {
      const values = [ended, this.database.channel, this.settings.history.retentionMs];
      const rows = await this.database.run(statements.resolveDependents, values, executor);
      ended = rows.filter(({ became }) => became === 'cancelled').map(({ id }) => id);
    }
  }

  /** The same for parents of which nobody has told their children: whoever should have has died. */
  async resolveForgotten(): Promise<void> {
    await this.resolve((await this.database.run(statements.forgottenParents, [])).map(({ id }) => id));
  }

  /**
   * Brings those of the jobs back that have ended; who was cancelled while it waited for parents waits on.
   * @throws JobKeyConflictError where another live job holds a key of theirs
   */
  async retry(asked: string[], executor: QueryExecutor): Promise<edits.EditedRow[]> {
    await this.database.run(edits.keepBodies, [asked], executor);
    const jobs = await this.database.run(edits.findRetryable, [asked], executor);
    const taken = jobs.filter((row) => row.taken).map((row) => row.job_key ?? '');
    if (taken.length) throw new JobKeyConflictError(taken);
    const ids = jobs.map(({ id }) => id);
    const parents = await this.database.run(statements.lockParentsOf, [ids], executor);
    const rows = await this.database.run(edits.retryJobs, [ids], executor).catch((error: unknown) => {
      throw isUniqueViolation(error) ? new JobKeyConflictError(jobs.flatMap(({ job_key }) => job_key ?? [])) : error;
    });
    const parentIds = parents.map(({ id }) => id);
    await this.resolve(parentIds, executor);
    return rows;
  }

  /** Forgets jobs that have ended, and tells those that still wait for one of them. Returns how many. */
  async purge(status: JobStatus, olderThanMs: number, executor: QueryExecutor): Promise<number> {
    await this.database.run(edits.lockPurged, [status, olderThanMs], executor);
    const [row] = await this.database.run(edits.purgeJobs, [status, olderThanMs], executor);
    await this.resolve(row?.parents ?? [], executor);
    return row?.purged ?? 0;
  }
}
