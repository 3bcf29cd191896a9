// What an operator changes of given jobs: cancels them, or gives them another run-at, priority or number of attempts. What
// another session holds is tried again for a while.
import type { Job } from '../interfaces/job.interface.js';
import { retryHeld } from '../storage/retry.js';
import type { Database } from '../storage/database.js';
import * as edits from '../storage/statements/edit-jobs.js';
import type { JobInspector } from './job.inspector.js';
import { newsOf, type JobPromoter } from './job.promoter.js';
import type { JobRevival } from './job.revival.js';
import type { NewsPublisher } from './news.publisher.js';

export interface JobEditsParts {
  database: Database;
  promoter: JobPromoter;
  publisher: NewsPublisher;
  revival: JobRevival;
  inspector: JobInspector;
  /** For how long history is kept. */
  retentionMs: number;
}

/** Another job may take a key as often as that while its jobs are edited. */
const MAX_LOOKS = 3;

export class JobEdits {
  constructor(private readonly parts: JobEditsParts) {}

  async cancel(ids: string[], reason: string | null): Promise<Job[]> {
    const rows: edits.CancelledRow[] = [];
    await retryHeld(ids, async (open) => {
      const found = await this.cancelNow(open, reason);
      rows.push(...found.filter(({ became }) => became !== 'held'));
      return found.filter(({ became }) => became === 'held').map(({ id }) => id);
    });
    const running = new Set(rows.filter(({ became }) => became === 'running').map(({ id }) => id));
    // Its worker may have heard of it, and settled it, by now.
    const jobs = await this.parts.inspector.findAll(rows);
    return jobs.map((job) => (running.has(job.id) ? { ...job, status: 'running' } : job));
  }

  /** `changes`: run-at, priority, max attempts; null: as it is. */
  async reschedule(ids: string[], changes: [unknown, unknown, number | null]): Promise<Job[]> {
    const { revival, publisher, promoter, inspector } = this.parts;
    const rows: edits.EditedRow[] = [];
    await retryHeld(ids, async (open) => {
      const found = await revival.reschedule(open, changes);
      rows.push(...found.filter(({ held }) => !held));
      return found.filter(({ held }) => held).map(({ id }) => id);
    });
    await publisher.publish(...newsOf(rows.map(({ lane }) => lane)));
    const jobs = await inspector.findAll(rows);
    await promoter.resolve(jobs.filter(({ status }) => status === 'exhausted').map(({ id }) => id));
    return jobs;
  }

  /** Edits the jobs that have these keys. Where another one has taken a key meanwhile, that one is looked up. */
  async ofKeys(keys: string[], edit: (ids: string[]) => Promise<Job[]>): Promise<Job[]> {
    const edited: Job[] = [];
    for (let look = 0, open = keys; look < MAX_LOOKS && open.length; look++) {
      const found = await this.findOfKeys(open);
      const done = await edit(found.map(({ id }) => id));
      edited.push(...done);
      const ids = new Set(done.map(({ id }) => id));
      open = found.flatMap(({ id, jobKey }) => (ids.has(id) ? [] : (jobKey ?? [])));
    }
    return edited;
  }

  /** The jobs that have these keys, oldest first. One that runs on after another one took its key has none. */
  async findOfKeys(keys: string[]): Promise<Job[]> {
    const { database, inspector } = this.parts;
    const jobs = await inspector.findAll(await database.run(edits.findJobsOfKeys, [keys]));
    const asked = new Set(keys);
    return jobs.filter(({ jobKey }) => jobKey !== null && asked.has(jobKey)).toSorted((a, b) => (a.id < b.id ? -1 : 1));
  }

  /** One try: what an open transaction holds comes back as held, and its holder hears of it all the same. */
  private async cancelNow(ids: string[], reason: string | null): Promise<edits.CancelledRow[]> {
    const { database, publisher, promoter, retentionMs } = this.parts;
    const rows = await database.run(edits.cancelJobs, [ids, reason, retentionMs]);
    const told = rows.filter(({ became }) => became !== 'cancelled').map(({ id }) => id);
    if (told.length) await publisher.publish({ kind: 'cancelled', ids: told, reason });
    const gone = rows.filter(({ became }) => became === 'cancelled');
    const keys = gone.flatMap(({ job_key }) => job_key ?? []);
    await promoter.promote({ holders: [], keys, parents: gone.map(({ id }) => id) });
    return rows;
  }
}
