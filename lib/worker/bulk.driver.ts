// Performs bulk actions for as long as its pool runs, beside its slots: whatever tasks, queues and flags the pool takes. Every pool does;
// the database gives each page to one of them.
import type { BulkPages, DonePage } from '../manager/bulk.pages.js';
import type { SchemaCheck } from '../manager/schema.check.js';
import type { BulkAction, BulkProgress } from '../interfaces/bulk.interface.js';
import { DatabaseUnavailableError, StoppedError } from '../jobs.errors.js';
import type { JobEvents } from '../monitoring/job.events.js';
import { isLockTimeout } from '../storage/sql.states.js';
import { backoffMs, jittered } from '../timing.js';

/** NOTIFY may be lost, and other processes may have died in the middle of a page. */
const MAX_SLEEP_MS = 5_000;
const MAX_BACKOFF_MS = 30_000;
/** Another process is at it. */
const BUSY_MS = 1_000;

export interface BulkDriverParts {
  pages: BulkPages;
  schemaCheck: SchemaCheck;
  events: JobEvents;
  workerId: string;
  onError: (error: unknown, context: string) => void;
}

export class BulkDriver {
  private stopped = false;
  private woken = false;
  private failures = 0;
  private wakeUp: (() => void) | null = null;
  private loop: Promise<void> | null = null;

  constructor(private readonly parts: BulkDriverParts) {}

  start(): void {
    this.loop ??= this.run();
  }

  /** An action was asked for. */
  wake(): void {
    this.woken = true;
    this.wakeUp?.();
  }

  /** Begins no further page, and waits for the one under way. Never rejects. */
  async stop(): Promise<void> {
    this.stopped = true;
    this.wake();
    await this.loop;
  }

  private async run(): Promise<void> {
    while (!this.stopped) await this.sleep(await this.tick());
  }

  /** Does what is due, and returns in how many ms to look again. Never rejects. */
  private async tick(): Promise<number> {
    const { pages, schemaCheck } = this.parts;
    if (schemaCheck.refusal) return MAX_SLEEP_MS;
    try {
      const dueInMs = await pages.dueInMs();
      if (dueInMs === null || dueInMs > 0) {
        this.failures = 0;
        return Math.min(MAX_SLEEP_MS, dueInMs ?? MAX_SLEEP_MS);
      }
      const done = await pages.doNext();
      this.failures = 0;
      if (!done) return jittered(BUSY_MS);
      this.announce(done);
      return 0;
    } catch (error) {
      return this.rest(error);
    }
  }

  private rest(error: unknown): number {
    // The connection pool was closed: the worker pool notices that as well, and reports it.
    this.stopped ||= error instanceof StoppedError;
    const isKnown = error instanceof DatabaseUnavailableError || isLockTimeout(error);
    if (!this.stopped && (!isKnown || this.failures === 0)) this.parts.onError(error, 'performing a bulk action');
    return backoffMs(this.failures++, MAX_BACKOFF_MS);
  }

  private announce({ action, isFirst, failure }: DonePage): void {
    const { events, workerId } = this.parts;
    if (isFirst && action.startedAt) events.emit('bulk.started', workerId, { bulk: progressOf(action) });
    if (failure !== null) this.parts.onError(failure, 'telling what a bulk action has done');
    if (action.finishedAt) events.emit('bulk.finished', workerId, { bulk: progressOf(action) });
  }

  private async sleep(ms: number): Promise<void> {
    if (ms <= 0 && !this.stopped) return;
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.wakeUp = resolve;
      timer = setTimeout(resolve, ms);
      if (this.woken) resolve();
    });
    clearTimeout(timer);
    this.woken = false;
  }
}

/** Without the filter. */
function progressOf(action: BulkAction): BulkProgress {
  const { filter: _, ...progress } = action;
  return progress;
}
