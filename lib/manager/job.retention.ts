// What becomes of the past: whole partitions are dropped, rows of those that cannot be are deleted, and the next
// partitions are made ahead. All of it may be late, be cut short, and run in many processes at once.
import type { HistoryOptions } from '../interfaces/jobs-options.interface.js';
import { MissingPrivilegesError } from '../jobs.errors.js';
import { isContention } from '../storage/sql.states.js';
import type { Database, Statement } from '../storage/database.js';
import { pruneBulkActions } from '../storage/statements/bulk-actions.js';
import * as partitions from '../storage/statements/partitions.js';
import * as garbage from '../storage/statements/prune-jobs.js';
import { pause } from '../timing.js';
import { tryBriefly } from './brief.lock.js';

const DAY_MS = 86_400_000;
/** Maintenance may miss two nights. */
const LEAD_MS = 3 * DAY_MS;
/** So many partitions make up the retention: the more, the sooner they go, and the more each plan costs. */
const PARTS = 6;
/** Their bodies move while everybody waits: about 100 ms. */
const MAX_WANTED = 20_000;
/** The default is read while everybody waits: about a second, if it ever is so large. */
const MAX_BYTES = 1024 ** 3;
/** Rows of so many pages go in one transaction: 8 MB. */
const PAGES = 1_000;
/** Each try makes others wait for 100 ms at most. */
const TRIES = 20;
/** Where the last one was not enough, the next collection comes soon. */
const TRIES_AGAIN = 2;
const PAUSE_MS = 400;

export class JobRetention {
  private readonly said = new Set<string>();
  /** Whether this process may not make and drop partitions. */
  private refused = false;
  private changed = false;
  private readonly heldUp = new Set<string>();
  private tries = TRIES;

  constructor(
    private readonly database: Database,
    private readonly history: Required<HistoryOptions>,
    private readonly debug: (message: string) => void,
  ) {}

  /**
   * What the last collection could not drop, or of which table it could make none, because open transactions held locks:
   * a dump, for example. The next collection tries again.
   */
  get held(): string[] {
    return [...this.heldUp];
  }

  /** The sessions that are in the way of partitions at this moment, the oldest transaction first. */
  async holders(): Promise<string[]> {
    return (await this.database.run(partitions.partitionHolders, [])).map(
      ({ pid, application, started_at }) => `pid ${pid} (${application || 'no application_name'}, since ${started_at})`,
    );
  }

  /**
   * Removes what has expired and makes the next partitions. Returns how many records of the history went. `at` moves the
   * present of the partitions, for specs; null: the database's.
   */
  async collect(at: Date | null = null): Promise<number> {
    this.refused = false;
    this.changed = false;
    this.heldUp.clear();
    const records = (await this.dropHistory(at)) + (await this.sweepHistory(at));
    await this.unlessHeld(garbage.pruneReceipts, []);
    await this.unlessHeld(garbage.pruneReplacements, []);
    await this.removeBodies(at);
    await this.unlessHeld(pruneBulkActions, [this.history.retentionMs]);
    await this.unlessHeld(garbage.pruneWorkers, [this.history.retentionMs]);
    await this.makePartitions(at);
    if (this.changed && !this.refused) await this.database.run(partitions.analyzeParents, []);
    if (!this.heldUp.size) this.tries = TRIES;
    return records;
  }

  /** Makes what will be needed within three days. Bodies that are not kept for the history need no longer ones. */
  async makePartitions(at: Date | null = null): Promise<void> {
    const { keep, retentionMs } = this.history;
    const width = Math.ceil(Math.max(DAY_MS, retentionMs / PARTS));
    await this.makeAll('job_history', retentionMs, width, at);
    await this.makeAll('job_bodies', 0, keep === 'all' ? width : DAY_MS, at);
  }

  private async makeAll(
    table: partitions.PartitionedTable,
    aheadMs: number,
    widthMs: number,
    at: Date | null,
  ): Promise<void> {
    for (;;) {
      const values = [table, aheadMs, LEAD_MS, widthMs, MAX_BYTES, at];
      const [row] = await this.runWithLockRetries(partitions.makePartition, values, `a new one of ${table}`);
      if (row?.hindrance) this.logOnce(row.hindrance, 'rows go one by one; see docs/operations.md');
      if (!row?.made) return;
      this.changed = true;
    }
  }

  private async dropHistory(at: Date | null): Promise<number> {
    let records = 0;
    for (;;) {
      const [row] = await this.runWithLockRetries(partitions.dropHistoryPartition, [at], 'expired ones of job_history');
      if (!row) return records;
      records += row.records;
      this.changed = true;
    }
  }

  /** What is in the default, and in partitions that could not be dropped. */
  private async sweepHistory(at: Date | null): Promise<number> {
    let records = 0;
    for (const partition of await this.list(partitions.expiredHistory, [at])) {
      records += await this.sweep(garbage.pruneHistory, partition);
    }
    return records;
  }

  private async removeBodies(at: Date | null): Promise<void> {
    for (const partition of await this.list(partitions.oldBodyPartitions, [MAX_WANTED, at])) {
      if (await this.dropBodies(partition, at)) continue;
      // Where all jobs leave records, nearly all of them are still asked for, unless the partition could have been dropped.
      if (this.history.keep !== 'all' || this.refused || this.heldUp.has(partition.name))
        await this.sweep(garbage.pruneBodies, partition);
    }
    for (const partition of await this.list(partitions.defaultBodies, [])) {
      await this.sweep(garbage.pruneBodies, partition);
    }
  }

  private async dropBodies(
    { name, lower, upper, droppable }: partitions.OldBodyPartition,
    at: Date | null,
  ): Promise<boolean> {
    if (!droppable || this.refused) return false;
    if (!(await this.unlessHeld(partitions.forgetNotesOfRange, [lower, upper, MAX_WANTED]))) return false;
    const [row] = await this.runWithLockRetries(partitions.dropBodyPartition, [name, MAX_WANTED, at], name);
    if (typeof row?.moved !== 'number') return false;
    this.changed = true;
    return true;
  }

  /** In batches of pages: a transaction that lasts keeps dead rows alive in every table. */
  private async sweep(
    statement: Statement<{ pruned: number }>,
    { place, lower, upper, blocks }: partitions.SweptPartition,
  ): Promise<number> {
    let pruned = 0;
    for (let page = 0; page < Number(blocks); page += PAGES) {
      const pages = [`(${page},0)`, `(${page + PAGES},0)`];
      const row = await this.unlessHeld(statement, [place, lower, upper, ...pages]);
      pruned += row?.pruned ?? 0;
    }
    return pruned;
  }

  /** What others hold rows of is left to the next collection. */
  private async unlessHeld<Row>(statement: Statement<Row>, values: unknown[]): Promise<Row | undefined> {
    try {
      return (await this.database.run(statement, values))[0];
    } catch (error) {
      if (!isContention(error)) throw error;
      return undefined;
    }
  }

  private async list<Row>(statement: Statement<Row>, values: unknown[]): Promise<Row[]> {
    return (await tryBriefly(this.database, statement, values)) ?? [];
  }

  /** Tries until the locks are free, for some seconds. Nothing where they never were, or where the role may not. */
  private async runWithLockRetries<Row>(statement: Statement<Row>, values: unknown[], what: string): Promise<Row[]> {
    for (let tries = 1; ; tries++) {
      try {
        return await this.database.run(statement, values);
      } catch (error) {
        if (error instanceof MissingPrivilegesError) return this.refuse(error);
        if (!isContention(error)) throw error;
        if (tries >= this.tries) break;
        await pause(PAUSE_MS);
      }
    }
    this.logOnce(`${statement.name} never got its locks`, `${this.tries} tries; the next collection tries again`);
    this.heldUp.add(what);
    // The same transaction is in the way of the others.
    this.tries = TRIES_AGAIN;
    return [];
  }

  private refuse(error: MissingPrivilegesError): [] {
    this.refused = true;
    this.logOnce('This role may not make or drop partitions, so rows go one by one', error.message);
    return [];
  }

  private logOnce(what: string, more: string): void {
    if (this.said.has(what)) return;
    this.said.add(what);
    this.debug(`${what}: ${more}`);
  }
}
