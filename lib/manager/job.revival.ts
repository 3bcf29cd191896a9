// Jobs that come back by an operator's hand, with their keys and the parents that they still have to wait for; and jobs that go
// for good.
import type { JobStatus, QueryExecutor } from '../interfaces/job.interface.js';
import { JobKeyConflictError } from '../jobs.errors.js';
import { retryOnContention } from '../storage/retry.js';
import type { Database } from '../storage/database.js';
import * as dependencies from '../storage/statements/dependencies.js';
import * as edits from '../storage/statements/edit-jobs.js';
import * as revivals from '../storage/statements/revive-jobs.js';
import { newsOf, type JobPromoter } from './job.promoter.js';
import type { NewsPublisher } from './news.publisher.js';

const NO_JOB = '00000000-0000-0000-0000-000000000000';

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
    const proposed = await this.database.run(revivals.findRetryable, [asked], executor);
    const keys = await this.lockKeys(proposed, executor);
    await this.database.run(edits.lockJobs, [asked], executor);
    await this.database.run(edits.keepBodies, [asked], executor);
    // Of those whose keys are locked, what may come back now that it cannot change.
    const jobs = (await this.database.run(revivals.findRetryable, [asked], executor)).filter(
      ({ job_key }) => job_key === null || keys.has(job_key),
    );
    await this.takeKeys(jobs, executor);
    const ids = jobs.map(({ id }) => id);
    const rows = await this.database.run(revivals.retryJobs, [ids], executor);
    await this.database.run(revivals.forgetSuccessors, [ids], executor);
    await this.database.run(dependencies.relinkParents, [ids], executor);
    const parents = await this.database.run(dependencies.findParentsOf, [ids], executor);
    await this.promoter.resolve(
      parents.map(({ id }) => id),
      executor,
    );
    await this.publisher.publishIn(executor, newsOf(rows.map(({ lane }) => lane)));
    return rows;
  }

  /**
   * Changes run-at, priority or max attempts of the jobs. One that failed for good and gets attempts left needs its key, as it
   * does for a retry. `changes`: run-at, priority, max attempts.
   * @throws JobKeyConflictError where another live job holds a key of theirs
   */
  async reschedule(
    ids: string[],
    changes: [unknown, unknown, number | null],
    within?: QueryExecutor,
  ): Promise<edits.EditedRow[]> {
    const { database } = this;
    const most = changes[2];
    const find = (executor = within): Promise<revivals.RetryableRow[]> =>
      most === null ? Promise.resolve([]) : database.run(revivals.findRevivable, [ids, most], executor);
    const proposed = await find();
    if (!proposed.length) return database.run(edits.rescheduleJobs, [ids, ...changes, []], within);
    const revive = async (executor: QueryExecutor): Promise<edits.EditedRow[]> => {
      const keys = await this.lockKeys(proposed, executor);
      const jobs = (await find(executor)).filter(({ job_key }) => keys.has(job_key!));
      await this.takeKeys(jobs, executor);
      const rows = await database.run(edits.rescheduleJobs, [ids, ...changes, [...keys]], executor);
      await database.run(revivals.forgetSuccessors, [jobs.map(({ id }) => id)], executor);
      return rows;
    };
    if (within) return revive(within);
    return retryOnContention(() => database.transaction(revive), database.isBound);
  }

  /** Forgets jobs that have ended, and tells those that still wait for one of them. Returns how many. */
  async purge(status: JobStatus, olderThanMs: number, executor: QueryExecutor): Promise<number> {
    const locked = await this.database.run(edits.lockPurged, [status, olderThanMs], executor);
    const [row] = await this.database.run(edits.purgeJobs, [locked.map(({ id }) => id), status], executor);
    await this.promoter.promote({ holders: [], keys: row?.keys ?? [], parents: row?.parents ?? [] }, executor);
    return row?.purged ?? 0;
  }

  /**
   * Marks exhausted jobs as replayed and returns them: locked by their ids as keys, which the adds that follow take, and then by
   * themselves.
   */
  async takeToReplay(window: unknown[], executor: QueryExecutor): Promise<{ id: string }[]> {
    const found = (await this.database.run(revivals.findJobsToReplay, window, executor)).map(({ id }) => id);
    // Nothing owns such a key: a row whose job is unknown is free.
    await this.database.run(revivals.claimFreeKeys, [found, found.map(() => NO_JOB)], executor);
    await this.database.run(revivals.lockKeys, [found], executor);
    return this.database.run(revivals.takeJobsToReplay, [found], executor);
  }

  /** Before the jobs: this is the order of locks. Returns the keys. */
  private async lockKeys(jobs: revivals.RetryableRow[], executor: QueryExecutor): Promise<Set<string>> {
    const keyed = jobs.filter(({ job_key }) => job_key !== null);
    const keys = keyed.map(({ job_key }) => job_key!);
    if (!keyed.length) return new Set();
    // A key that is free again before it is locked has no row any more, and is claimed again.
    const wanted = new Set(keys);
    for (let locked = 0; locked < wanted.size;) {
      await this.database.run(revivals.claimFreeKeys, [keys, keyed.map(({ id }) => id)], executor);
      locked = (await this.database.run(revivals.lockKeys, [keys], executor)).length;
    }
    return wanted;
  }

  /** Once they are locked. A key is had by one job at most, of those that come back together as well. */
  private async takeKeys(jobs: revivals.RetryableRow[], executor: QueryExecutor): Promise<void> {
    const keyed = jobs.filter(({ job_key }) => job_key !== null);
    const keys = keyed.map(({ job_key }) => job_key!);
    const taken = keyed.filter((row, at) => row.taken || keys.indexOf(row.job_key!) < at).map((row) => row.job_key!);
    if (taken.length) throw new JobKeyConflictError([...new Set(taken)]);
    if (keys.length) await this.database.run(revivals.takeKeys, [keys, keyed.map(({ id }) => id)], executor);
  }
}
