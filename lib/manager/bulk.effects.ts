// What a bulk action does to the jobs of one page, by the library's one way for each: in the page's transaction, to jobs that are
// locked and match. What is left to do after the commit (telling pools, children, successors) is a state that sweeps find, too.
import type { JobStatus, QueryExecutor } from '../interfaces/job.interface.js';
import { JobKeyConflictError } from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import { isContention, isDataFault } from '../storage/sql.states.js';
import * as bulk from '../storage/statements/bulk-actions.js';
import * as edits from '../storage/statements/edit-jobs.js';
import * as revivals from '../storage/statements/revive-jobs.js';
import type { BulkScope, BulkSettings } from './bulk.filters.js';
import { newsOf, type JobPromoter } from './job.promoter.js';
import type { JobRevival } from './job.revival.js';
import type { NewsPublisher } from './news.publisher.js';

export interface BulkParts {
  database: Database;
  promoter: JobPromoter;
  publisher: NewsPublisher;
  revival: JobRevival;
  /** For how long history is kept. */
  retentionMs: number;
}

/** One page of an action. */
export interface BulkPage extends BulkScope {
  action: bulk.TakenRow['action'];
  settings: BulkSettings;
  reason: string | null;
  knownBy: string;
  executor: QueryExecutor;
}

type Why = [id: string, reason: string];

/** What has become of jobs. */
export interface Effects {
  done: number;
  failed: Why[];
  skipped: Why[];
  /** Open transactions hold them. */
  held: string[];
  /** What others should know, once it is committed. */
  after: (() => Promise<void>)[];
}

const RUNS = 'it runs';
const CHANGED = 'it has changed meanwhile';
const KEY_TAKEN = 'another live job has its key';
const WAITED_FOR = 'other jobs wait for it';

/**
 * Rows of jobs and keys that others hold are passed over. So many other locks are waited for in one page, each for 100 ms, which is
 * enough to find the one job of a page that is at fault; then what is left of the page counts as held.
 */
const MAX_WAITS = 12;

const noEffects = (): Effects => ({ done: 0, failed: [], skipped: [], held: [], after: [] });

const because = (ids: string[], reason: string): Why[] => ids.map((id) => [id, reason]);

/** The lock on the bodies of jobs, by action. */
const BODY_LOCKS = { cancel: 'none', retry: 'keep', reschedule: 'keep', purge: 'update', move: 'keep' } as const;

export class BulkEffects {
  private waits = 0;

  constructor(
    private readonly parts: BulkParts,
    private readonly page: BulkPage,
  ) {}

  /** Does it to these jobs. What fails because of one of them is tried by halves, so that it fails alone. */
  async apply(ids: string[]): Promise<Effects> {
    if (!ids.length) return noEffects();
    if (this.waits >= MAX_WAITS) return { ...noEffects(), held: ids };
    try {
      return await this.asPart(() => this.applyTogether(ids));
    } catch (error) {
      const isHeld = isContention(error);
      if (isHeld) this.waits++;
      else if (!(error instanceof JobKeyConflictError) && !isDataFault(error)) throw error;
      if (ids.length > 1) return this.applyByHalves(ids);
      if (isHeld) return { ...noEffects(), held: ids };
      return { ...noEffects(), failed: because(ids, error instanceof Error ? error.message : String(error)) };
    }
  }

  private async applyByHalves(ids: string[]): Promise<Effects> {
    const middle = Math.ceil(ids.length / 2);
    const first = await this.apply(ids.slice(0, middle));
    return merged(first, await this.apply(ids.slice(middle)));
  }

  /** Keys come before jobs in the order of locks, so whose keys are taken is asked first. */
  private async applyTogether(ids: string[]): Promise<Effects> {
    const { action } = this.page;
    const { held, keyless } = await this.lockKeysOf(ids);
    const [row] = await this.run(bulk.lockBulkJobs, [ids.filter((id) => !held.has(id)), BODY_LOCKS[action]]);
    const locked = row!.ids;
    const isLocked = new Set(locked);
    const matches = await this.matchesAmong(locked);
    const statusOf = new Map(matches.map(({ id, status }) => [id, status]));
    const fit = locked.filter((id) => statusOf.has(id) && !keyless.has(id));
    const effects = await this.act(fit, statusOf);
    return merged(effects, {
      ...noEffects(),
      held: ids.filter((id) => !isLocked.has(id)),
      failed: because(
        locked.filter((id) => statusOf.has(id) && keyless.has(id)),
        KEY_TAKEN,
      ),
      skipped: because(
        locked.filter((id) => !statusOf.has(id)),
        CHANGED,
      ),
    });
  }

  private act(ids: string[], statusOf: Map<string, JobStatus>): Promise<Effects> {
    if (!ids.length) return Promise.resolve(noEffects());
    if (this.page.action === 'cancel') return this.cancel(ids);
    if (this.page.action === 'retry') return this.retry(ids);
    if (this.page.action === 'purge') return this.purge(ids, statusOf);
    const running = ids.filter((id) => statusOf.get(id) === 'running');
    const waiting = ids.filter((id) => statusOf.get(id) !== 'running');
    const edit = this.page.action === 'move' ? this.move(waiting) : this.reschedule(waiting);
    return edit.then((effects) => merged(effects, { ...noEffects(), skipped: because(running, RUNS) }));
  }

  private async cancel(ids: string[]): Promise<Effects> {
    const { publisher, promoter, retentionMs } = this.parts;
    const { reason } = this.page;
    const rows = await this.run(edits.cancelJobs, [ids, reason, retentionMs]);
    const running = rows.filter(({ became }) => became === 'running').map(({ id }) => id);
    const gone = rows.filter(({ became }) => became === 'cancelled');
    const after = async (): Promise<void> => {
      if (running.length) await publisher.publish({ kind: 'cancelled', ids: running, reason });
      const keys = gone.flatMap(({ job_key }) => job_key ?? []);
      await promoter.promote({ holders: [], keys, parents: gone.map(({ id }) => id) });
    };
    return { ...this.countDone(ids, [...running, ...gone.map(({ id }) => id)]), after: [after] };
  }

  private async retry(ids: string[]): Promise<Effects> {
    const rows = await this.parts.revival.retry(ids, this.page.executor);
    return this.countDone(
      ids,
      rows.map(({ id }) => id),
    );
  }

  private async reschedule(ids: string[]): Promise<Effects> {
    if (!ids.length) return noEffects();
    const { publisher, promoter, revival } = this.parts;
    const { runAt = null, priority = null, maxAttempts = null } = this.page.settings;
    const rows = await revival.reschedule(ids, [runAt, priority, maxAttempts], this.page.executor);
    const edited = rows.filter(({ held }) => !held);
    const after = async (): Promise<void> => {
      await publisher.publish(...newsOf(edited.map(({ lane }) => lane)));
      await promoter.resolve(edited.filter(({ exhausted }) => exhausted).map(({ id }) => id));
    };
    const effects = this.countDone(
      ids,
      rows.map(({ id }) => id),
    );
    const held = rows.filter((row) => row.held).map(({ id }) => id);
    return { ...effects, done: effects.done - held.length, held, after: [after] };
  }

  private async move(ids: string[]): Promise<Effects> {
    if (!ids.length) return noEffects();
    const rows = await this.run(bulk.moveJobs, [ids, this.page.settings.queue ?? null]);
    const after = (): Promise<void> => this.parts.publisher.publish(...newsOf(rows.map(({ lane }) => lane)));
    return {
      ...this.countDone(
        ids,
        rows.map(({ id }) => id),
      ),
      after: [after],
    };
  }

  /** Of those that ended in one way at a time. A job that has completed stays until its children know of it. */
  private async purge(ids: string[], statusOf: Map<string, JobStatus>): Promise<Effects> {
    const effects = noEffects();
    for (const status of new Set(ids.map((id) => statusOf.get(id)!))) {
      const some = ids.filter((id) => statusOf.get(id) === status);
      const [row] = await this.run(edits.purgeJobs, [some, status]);
      const left = await this.matchesAmong(some);
      effects.done += some.length - left.length;
      effects.skipped.push(
        ...because(
          left.map(({ id }) => id),
          WAITED_FOR,
        ),
      );
      const [keys, parents] = [row?.keys ?? [], row?.parents ?? []];
      effects.after.push(() => this.parts.promoter.promote({ holders: [], keys, parents }));
    }
    return effects;
  }

  /**
   * Locks the keys that jobs need to come back. `held`: jobs whose keys other transactions hold. `keyless`: jobs that must do without,
   * because another live job has the key. The oldest one of a page gets it.
   */
  private async lockKeysOf(ids: string[]): Promise<{ held: Set<string>; keyless: Set<string> }> {
    const [held, keyless, seen] = [new Set<string>(), new Set<string>(), new Set<string>()];
    const proposed = await this.findKeyed(ids);
    if (!proposed.length) return { held, keyless };
    const keys = proposed.map(({ job_key }) => job_key);
    await this.run(revivals.claimFreeKeys, [keys, proposed.map(({ id }) => id)]);
    const locked = new Set((await this.run(bulk.tryLockKeys, [keys])).map(({ key }) => key));
    for (const { id, job_key: key, taken } of await this.findKeyed(ids)) {
      if (!locked.has(key)) held.add(id);
      else if (taken || seen.has(key)) keyless.add(id);
      seen.add(key);
    }
    return { held, keyless };
  }

  /** Those of the jobs that have a key and need it to come back, oldest first. */
  private async findKeyed(ids: string[]): Promise<(revivals.RetryableRow & { job_key: string })[]> {
    const { action, settings } = this.page;
    const { maxAttempts } = settings;
    let rows: revivals.RetryableRow[] = [];
    if (action === 'retry') rows = await this.run(revivals.findRetryable, [ids]);
    else if (maxAttempts !== undefined) rows = await this.run(revivals.findRevivable, [ids, maxAttempts]);
    return rows.filter((row): row is typeof row & { job_key: string } => row.job_key !== null);
  }

  private matchesAmong(ids: string[]): Promise<{ id: string; status: JobStatus }[]> {
    const { wanted, statuses, knownBy } = this.page;
    return this.run(bulk.bulkMatches, [ids, wanted, statuses, knownBy]);
  }

  private countDone(asked: string[], done: string[]): Effects {
    const isDone = new Set(done);
    const left = asked.filter((id) => !isDone.has(id));
    return { ...noEffects(), done: isDone.size, skipped: because(left, CHANGED) };
  }

  private async asPart<T>(work: () => Promise<T>): Promise<T> {
    await this.run(bulk.beginPart, []);
    try {
      const result = await work();
      await this.run(bulk.keepPart, []);
      return result;
    } catch (error) {
      await this.run(bulk.undoPart, []);
      throw error;
    }
  }

  private run<Row>(
    ...[statement, values]: [Parameters<Database['run']>[0] & { row?: Row }, unknown[]]
  ): Promise<Row[]> {
    return this.parts.database.run(statement, values, this.page.executor) as Promise<Row[]>;
  }
}

const merged = (one: Effects, other: Effects): Effects => ({
  done: one.done + other.done,
  failed: [...one.failed, ...other.failed],
  skipped: [...one.skipped, ...other.skipped],
  held: [...one.held, ...other.held],
  after: [...one.after, ...other.after],
});
