// Jobs of one task that gather in the buffer until one call of its handler takes them all.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { BatchOptions } from '../interfaces/task.interface.js';
import { InvalidArgumentError } from '../jobs.errors.js';
import { show } from '../validation.js';

/** Until a batch that is not full starts. */
const WAIT_MS = 100;

export const waitOf = ({ waitMs = WAIT_MS }: BatchOptions): number => waitMs;

export class GatheringBatch {
  readonly jobs: ClaimedJob[];
  /** When it starts although it is not full; by performance.now(). */
  readonly dueAt: number;
  /** Nothing joins it any more, also where jobs are taken out of it before it starts. */
  isFull: boolean;

  constructor(
    /** Jobs of the same key join it; null: none does. */
    readonly key: string | null,
    first: ClaimedJob,
    private readonly options: BatchOptions,
    now: number,
  ) {
    this.jobs = [first];
    this.isFull = key === null || options.size <= 1;
    this.dueAt = key === null ? now : now + waitOf(options);
  }

  /** Adds a job. Returns an older claim of the same job, which is over: a batch never has a job twice. */
  join(job: ClaimedJob): ClaimedJob | null {
    const index = this.jobs.findIndex(({ id }) => id === job.id);
    if (index < 0) {
      this.jobs.push(job);
      this.isFull ||= this.jobs.length >= this.options.size;
      return null;
    }
    return this.jobs.splice(index, 1, job)[0]!;
  }

  /** Takes out these jobs. */
  remove(jobs: ClaimedJob[]): void {
    for (const job of jobs) this.jobs.splice(this.jobs.indexOf(job), 1);
  }
}

/**
 * What jobs of one batch have in common; null for a job that runs alone: one that was running when its process died, so
 * that the one to blame is found, and one that cannot be grouped.
 */
export function batchKey(job: ClaimedJob, options: BatchOptions): string | null {
  if (job.crashes > 0) return null;
  try {
    return `${job.task}\0${groupOf(job, options)}`;
  } catch {
    return null;
  }
}

/** @throws what the task's own function throws, or InvalidArgumentError for what is no string */
export function groupOf(job: ClaimedJob, { by }: BatchOptions): string {
  if (by === undefined) return '';
  if (by === 'queue') return job.queue ?? '';
  if (by === 'partition') return (job as { partition?: string | null }).partition ?? '';
  const group: unknown = by(job.payload);
  if (typeof group === 'string') return group;
  throw new InvalidArgumentError([`Expected batch.by of task "${job.task}" to return a string, got ${show(group)}.`]);
}
