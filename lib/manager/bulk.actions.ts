// Actions on many jobs, as JobManager offers them. A call checks what is asked for and writes it down; pools do it.
import type {
  BulkAction,
  BulkActionName,
  BulkFilter,
  BulkMoveOptions,
  BulkOptions,
  BulkPreview,
  BulkRescheduleOptions,
} from '../interfaces/bulk.interface.js';
import type { Page, PageRequest } from '../interfaces/report.interface.js';
import { WaitTimeoutError } from '../jobs.errors.js';
import * as bulk from '../storage/statements/bulk-actions.js';
import { after } from '../timing.js';
import { check } from '../validation.js';
import { rules } from '../validation.rules.js';
import { callOptions } from './arguments.js';
import { BulkActionNotFoundError } from './bulk.errors.js';
import { checkBulk, settingsOf, storedFilter, toBulkAction } from './bulk.filters.js';
import type { JobEngine } from './job.engine.js';
import { newJobId } from './job.id.js';
import type { WaitOptions } from './job.waiter.js';
import { keyRules, pageOf, readCursor, readPageRequest } from './page.js';

const FIRST_LOOK_MS = 20;
const MAX_LOOK_MS = 1_000;
const SLOWER = 1.5;

/**
 * What can be done to many jobs at once. Each call returns as soon as the action is written down; running pools do it page by page, as
 * one of them has time. Jobs that are added later are not touched. See docs/operations.md.
 */
export class BulkActions {
  /** @internal */
  constructor(private readonly engine: JobEngine) {}

  /**
   * Cancels jobs, as `cancelJobs` does: waiting and exhausted ones leave, running ones are asked to stop.
   * @throws InvalidArgumentError where the filter is empty, holds an undefined value, or matches no job that can be cancelled
   * @example
   * const { id } = await jobs.bulk.cancel({ task: 'send-email', tag: 'spring' }, { by: 'ada', reason: 'wrong prices' });
   * await jobs.bulk.wait(id);
   */
  cancel(filter: BulkFilter, options: BulkOptions & { dryRun: true }): Promise<BulkPreview>;
  cancel(filter: BulkFilter, options: BulkOptions & { dryRun?: false | undefined }): Promise<BulkAction>;
  async cancel(filter: BulkFilter, options: BulkOptions): Promise<BulkAction | BulkPreview> {
    return this.begin('cancel', filter, options);
  }

  /**
   * Brings exhausted and cancelled jobs back, as `retryJobs` does, oldest first. Jobs whose keys others have count as failed.
   * @throws InvalidArgumentError
   */
  retry(filter: BulkFilter, options: BulkOptions & { dryRun: true }): Promise<BulkPreview>;
  retry(filter: BulkFilter, options: BulkOptions & { dryRun?: false | undefined }): Promise<BulkAction>;
  async retry(filter: BulkFilter, options: BulkOptions): Promise<BulkAction | BulkPreview> {
    return this.begin('retry', filter, options);
  }

  /**
   * Gives waiting jobs another run-at, priority or number of attempts, as `rescheduleJobs` does; running ones are skipped. Exhausted
   * ones are met only where `maxAttempts` or the filter's status says so.
   * @throws InvalidArgumentError
   */
  reschedule(filter: BulkFilter, options: BulkRescheduleOptions & { dryRun: true }): Promise<BulkPreview>;
  reschedule(filter: BulkFilter, options: BulkRescheduleOptions & { dryRun?: false | undefined }): Promise<BulkAction>;
  async reschedule(filter: BulkFilter, options: BulkRescheduleOptions): Promise<BulkAction | BulkPreview> {
    return this.begin('reschedule', filter, options);
  }

  /**
   * Forgets exhausted, completed and cancelled jobs with their history, as `purgeJobs` does. A completed one for which children still
   * wait is skipped, and one without a record (`history.keep`) is not met: maintenance removes it.
   * @throws InvalidArgumentError
   */
  purge(filter: BulkFilter, options: BulkOptions & { dryRun: true }): Promise<BulkPreview>;
  purge(filter: BulkFilter, options: BulkOptions & { dryRun?: false | undefined }): Promise<BulkAction>;
  async purge(filter: BulkFilter, options: BulkOptions): Promise<BulkAction | BulkPreview> {
    return this.begin('purge', filter, options);
  }

  /**
   * Moves jobs that are not finished to another queue, or out of any; running ones are skipped.
   * @throws InvalidArgumentError
   * @example
   * await jobs.bulk.move({ queue: 'mail' }, { queue: 'mail-slow', by: 'ada', ratePerS: 500 });
   */
  move(filter: BulkFilter, options: BulkMoveOptions & { dryRun: true }): Promise<BulkPreview>;
  move(filter: BulkFilter, options: BulkMoveOptions & { dryRun?: false | undefined }): Promise<BulkAction>;
  async move(filter: BulkFilter, options: BulkMoveOptions): Promise<BulkAction | BulkPreview> {
    return this.begin('move', filter, options);
  }

  /** An action as it stands; null where none has the id. */
  async find(id: string): Promise<BulkAction | null> {
    check({ id: [id, rules.uuid] });
    const [row] = await this.engine.database.run(bulk.findBulkAction, [id]);
    return row ? toBulkAction(row, this.engine.cipher) : null;
  }

  /** Actions, newest first, for as long as history is kept. */
  async list(page?: PageRequest): Promise<Page<BulkAction>> {
    const { limit, cursor } = readPageRequest(page);
    const values = [...readCursor(cursor, keyRules.uuid), limit + 1];
    const rows = await this.engine.database.run(bulk.listBulkActions, values);
    return pageOf(
      rows,
      limit,
      (row) => toBulkAction(row, this.engine.cipher),
      (row) => [row.id],
    );
  }

  /**
   * Ends an action that has not ended yet. Once this resolves, it touches no more jobs; what it has done stays done.
   * @throws BulkActionNotFoundError
   */
  async stop(id: string): Promise<BulkAction> {
    check({ id: [id, rules.uuid] });
    const [row] = await this.engine.database.run(bulk.stopBulkAction, [id]);
    return row ? toBulkAction(row, this.engine.cipher) : this.get(id);
  }

  /**
   * Waits until an action has ended. Some process must run a pool.
   * @throws BulkActionNotFoundError, WaitTimeoutError, or the signal's reason
   */
  async wait(id: string, options: WaitOptions = {}): Promise<BulkAction> {
    check({ id: [id, rules.uuid] }, [callOptions.waitForJob, options]);
    const { timeoutMs = Infinity, signal } = options;
    const deadline = performance.now() + timeoutMs;
    for (let pauseMs = FIRST_LOOK_MS; ; pauseMs = Math.min(MAX_LOOK_MS, pauseMs * SLOWER)) {
      signal?.throwIfAborted();
      const action = await this.get(id);
      if (action.finishedAt) return action;
      const leftMs = deadline - performance.now();
      if (leftMs <= 0)
        throw new WaitTimeoutError(`Bulk action ${id} has not ended within ${timeoutMs} ms; it goes on.`);
      await pauseUnless(Math.min(pauseMs, leftMs), signal);
    }
  }

  private async get(id: string): Promise<BulkAction> {
    const action = await this.find(id);
    if (!action) throw new BulkActionNotFoundError(id);
    return action;
  }

  private async begin(
    action: BulkActionName,
    filter: BulkFilter,
    options: BulkOptions,
  ): Promise<BulkAction | BulkPreview> {
    checkBulk(action, filter, options);
    const { database, cipher, publisher, bulk: pages } = this.engine;
    const settings = settingsOf(action, options);
    if (options.dryRun) return pages.preview(action, { ...filter }, settings);
    const id = newJobId();
    const { by, reason = null, ratePerS = null } = options;
    const stored = storedFilter(cipher, id, filter);
    const values = [id, action, stored, JSON.stringify(settings), by, reason, ratePerS];
    const [row] = await database.run(bulk.addBulkAction, values);
    await publisher.publish({ kind: 'bulk' });
    return toBulkAction(row!, cipher);
  }
}

/** Leaves neither a timer nor a listener behind. */
async function pauseUnless(ms: number, signal: AbortSignal | undefined): Promise<void> {
  let end!: () => void;
  const ended = new Promise<void>((resolve) => (end = resolve));
  const endTimer = after(ms, end);
  signal?.addEventListener('abort', end);
  try {
    await ended;
  } finally {
    endTimer();
    signal?.removeEventListener('abort', end);
  }
}
