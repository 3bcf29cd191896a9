// Recurring jobs: how they are described and shown.
import type { AddJobOptions } from './job.interface.js';

/** What a crontab does with a slot while its last job waits or runs: let it pass, or add its job all the same. */
export type CronOverlap = 'skip' | 'queue';

/** Options of the jobs that a crontab adds. */
export type CronJobOptions = Pick<
  AddJobOptions,
  | 'queue'
  | 'partition'
  | 'priority'
  | 'maxAttempts'
  | 'flags'
  | 'tags'
  | 'groupId'
  | 'rateLimit'
  | 'rateLimitKey'
  | 'timeoutMs'
>;

/** When jobs are added, and what happens to slots that passed while no process was running. */
export interface CronTiming {
  /** 5 fields: minute, hour, day of the month, month, day of the week; or 6, with the second before them. */
  schedule: string;
  /** Whose clocks the schedule goes by, such as 'Europe/Berlin'. Default 'UTC'. */
  timeZone?: string | undefined;
  /** Slots that were missed within so many ms are made up for. Default 0: within the grace of a minute only. */
  backfillMs?: number | undefined;
  /** Default 'skip'. */
  overlap?: CronOverlap | undefined;
}

/** The `cron` of a task. */
export interface TaskCron extends CronTiming {
  /** Default null. */
  payload?: unknown;
  /** The crontab's id. Default: the task's name. */
  key?: string | undefined;
}

/** A crontab for `scheduleCron`. */
export interface CronSpec<P = unknown> extends CronTiming {
  /** Names it from now on: at most 900 characters. */
  id: string;
  /** Default null. */
  payload?: P | undefined;
  /** Default: those of the task. */
  options?: CronJobOptions | undefined;
}

/** A crontab as the database knows it. */
export interface CronInfo<P = unknown> {
  id: string;
  task: string;
  schedule: string;
  timeZone: string;
  payload: P;
  options: CronJobOptions;
  backfillMs: number;
  overlap: CronOverlap;
  /** Whether it comes from the `cron` of a task, and not from `scheduleCron`. */
  declared: boolean;
  /** Since when it has this schedule: no slot before that is fired. */
  knownSince: Date;
  /** The slot that fires next; it lies in the past while it is due and no worker has fired it yet. */
  nextSlotAt: Date | null;
  /** The last slot that was fired, or passed over. */
  lastSlotAt: Date | null;
  /** The job of the last slot that was fired. */
  lastJobId: string | null;
}
