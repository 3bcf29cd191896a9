// The one subscriber that logs. Never payloads, never connection strings.
import type { JobEvents } from './job.events.js';

/** The part of Nest's Logger that is used. */
export interface LogSink {
  error(message: string, stack?: string): void;
  warn(message: string): void;
  debug(message: string): void;
}

/** Writes what operators want to know to the log; retries only at the debug level. */
export function logJobEvents(events: JobEvents, log: LogSink): void {
  events.on('job.exhausted', ({ job, error }) => {
    log.warn(
      `${job.task} ${job.id} failed for good after ${job.attempts} of ${job.maxAttempts} attempts: ${messageOf(error)}`,
    );
  });
  events.on('job.failed', ({ job, error, retryAt }) => {
    if (retryAt)
      log.debug(
        `${job.task} ${job.id} failed (attempt ${job.attempts}), again at ${retryAt.toISOString()}: ${messageOf(error)}`,
      );
  });
  events.on('job.timeout', ({ job, timeoutMs }) => log.warn(`${job.task} ${job.id} ran longer than ${timeoutMs} ms`));
  events.on('job.lost', ({ job }) => {
    log.warn(`${job.task} ${job.id} was taken away from this worker while it ran; its outcome was not recorded`);
  });
  events.on('worker.error', ({ error, context }) => {
    log.error(`${context}: ${messageOf(error)}`, error instanceof Error ? error.stack : undefined);
  });
}

function messageOf(error: unknown): string {
  try {
    return error instanceof Error ? error.message : String(error);
  } catch {
    return 'unknown error';
  }
}
