// The one subscriber that logs. Never payloads, never connection strings.
import type { BulkProgress } from '../interfaces/bulk.interface.js';
import { DatabaseUnavailableError } from '../jobs.errors.js';
import { errorMessage } from './error.text.js';
import type { JobEvents } from './job.events.js';
import { describePause, nameTarget } from './pause.text.js';

/** The part of Nest's Logger that is used. */
export interface LogSink {
  error(message: string, stack?: string): void;
  warn(message: string): void;
  log(message: string): void;
  debug(message: string): void;
}

/** An error that keeps coming back (the database is away) is logged once in so long. */
const REPEAT_ERROR_MS = 60_000;
const SAME_TROUBLE_MS = 5_000;

/** However many ways there are to say it: all of them are the same trouble. */
const UNAVAILABLE = 'the database is away';

/** Tells people what they should know: a warning for each attempt that failed, and for jobs that are lost or over. */
export class JobLogger {
  private readonly lastErrors = new Map<string, { at: number; hidden: number }>();
  /** Workers whose database is known to be away, and whether that was logged. */
  private readonly away = new Map<string | null, boolean>();

  constructor(private readonly sink: LogSink) {}

  subscribe(events: JobEvents): void {
    this.logJobs(events);
    this.logBulkActions(events);
    this.logPauses(events);
    this.logTrouble(events);
    events.onDropped((error, type, subscriber) => {
      this.logError(`${subscriber || 'A subscriber'} failed on the event ${type}: ${describe(error)}`, error);
    });
  }

  private logJobs(events: JobEvents): void {
    const { sink } = this;
    events.on('pool.start', ({ workerId, concurrency }) =>
      sink.log(`Worker ${workerId} started, ${concurrency} slots`),
    );
    events.on('pool.stop', ({ workerId, forced }) =>
      sink.log(`Worker ${workerId} stopped${forced ? ' by force' : ''}`),
    );
    events.on('job.failed', ({ job, error, retryAt }) => {
      // The last failure is told by the job's exhaustion.
      if (!retryAt) return;
      sink.warn(
        `${nameOf(job)} failed in attempt ${job.attempts} of ${job.maxAttempts} and runs again at ` +
          `${retryAt.toISOString()}: ${describe(error)}`,
      );
    });
    events.on('job.exhausted', ({ job, error }) => {
      sink.warn(`${nameOf(job)} is exhausted after ${job.attempts} of ${job.maxAttempts} attempts: ${describe(error)}`);
    });
    events.on('job.timeout', ({ job, timeoutMs }) => sink.debug(`${nameOf(job)} ran longer than ${timeoutMs} ms`));
    events.on('job.lost', ({ job, workerId }) => {
      sink.warn(`${nameOf(job)} was taken away from worker ${workerId} while it ran; its outcome was not recorded`);
    });
  }

  private logBulkActions(events: JobEvents): void {
    events.on('bulk.started', ({ bulk }) => this.sink.log(`${actionOf(bulk)} has begun`));
    events.on('bulk.finished', ({ bulk }) => {
      const { state, matched, done, failed, skipped, error } = bulk;
      const counts = `${matched} jobs matched, ${done} done, ${failed} failed, ${skipped} skipped`;
      this.sink.log(`${actionOf(bulk)} has ${state}: ${counts}${error === null ? '' : `; ${withoutSecrets(error)}`}`);
    });
  }

  private logPauses(events: JobEvents): void {
    events.on('jobs.paused', ({ pause }) =>
      this.sink.warn(`Paused ${nameTarget(pause.target)}${withoutSecrets(describePause(pause))}`),
    );
    events.on('jobs.resumed', ({ pause, by }) => {
      const who = by === null ? '' : ` by ${by}`;
      this.sink.warn(`Resumed ${nameTarget(pause.target)}${who}; it was paused${withoutSecrets(describePause(pause))}`);
    });
  }

  private logTrouble(events: JobEvents): void {
    const { sink } = this;
    events.on('worker.error', ({ workerId, error, context }) => {
      // Said once, when it began.
      if (error instanceof DatabaseUnavailableError && this.away.has(workerId)) return;
      this.logError(`Worker error (${context}): ${describe(error)}`, error);
    });
    events.on('database.lost', ({ workerId, error }) => {
      const text = `Worker ${workerId} waits for the database and goes on by itself: ${describe(error)}`;
      // The LISTEN connection may have told a moment before.
      const told = this.logError(text, error) || Date.now() - this.lastErrors.get(UNAVAILABLE)!.at < SAME_TROUBLE_MS;
      this.away.set(workerId, told);
    });
    events.on('database.back', ({ workerId, downMs, failures }) => {
      const told = this.away.get(workerId);
      this.away.delete(workerId);
      if (!told) return;
      sink.warn(
        `The database answers worker ${workerId} again after ${seconds(downMs)}; ${failures} statements failed meanwhile`,
      );
    });
    events.on('circuit.open', ({ workerId, unwritten, error }) => {
      const until = unwritten ? `it can write what became of ${unwritten}` : 'transactions begin again';
      sink.warn(`Worker ${workerId} starts no more jobs until ${until}: ${describe(error)}`);
    });
    events.on('circuit.closed', ({ workerId, openMs }) => {
      sink.log(`Worker ${workerId} can write again after ${seconds(openMs)}, and goes on`);
    });
    events.on('pool.stop', ({ workerId }) => void this.away.delete(workerId));
  }

  /** Returns whether it was logged: not if the same was logged within a minute. */
  private logError(message: string, error: unknown): boolean {
    const key = error instanceof DatabaseUnavailableError ? UNAVAILABLE : message;
    const last = this.lastErrors.get(key);
    if (last && Date.now() - last.at < REPEAT_ERROR_MS) {
      last.hidden++;
      return false;
    }
    this.forgetOld();
    this.lastErrors.set(key, { at: Date.now(), hidden: 0 });
    const again = last?.hidden ? ` (and ${last.hidden} times more since it was logged last)` : '';
    this.sink.error(
      `${message}${again}`,
      error instanceof Error && error.stack ? withoutSecrets(error.stack) : undefined,
    );
    return true;
  }

  private forgetOld(): void {
    for (const [message, { at }] of this.lastErrors) {
      if (Date.now() - at > REPEAT_ERROR_MS) this.lastErrors.delete(message);
    }
  }
}

const actionOf = ({ action, id, by, reason }: BulkProgress): string =>
  `Bulk ${action} ${id} by ${by}${reason === null ? '' : ` (${reason})`}`;

const nameOf = ({ task, id }: { task: string; id: string }): string => `Job ${id} of task "${task}"`;

const seconds = (ms: number): string => `${(ms / 1_000).toFixed(1)} s`;

const describe = (error: unknown): string => withoutSecrets(errorMessage(error));

/** Some drivers put the URL that they were given into their messages. */
const withoutSecrets = (text: string): string => text.replace(/\b([a-z][a-z0-9+.-]*:\/\/)[^\s@/]*@/gi, '$1***@');
