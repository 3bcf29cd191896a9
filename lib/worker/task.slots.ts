// How many jobs, or batches, of each task with a limit of its own run in a pool.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { BatchOptions } from '../interfaces/task.interface.js';
import type { TaskRegistry } from '../manager/task.registry.js';
import type { TaskRoom } from './claim.group.js';

const NO_ROOMS: TaskRoom[] = [];

export class TaskSlots {
  private readonly running = new Map<string, number>();

  constructor(private readonly tasks: TaskRegistry) {}

  /** Whether a job of the task may begin: it counts from here on, until `giveBack`. */
  take(task: string): boolean {
    const limit = this.limitOf(task);
    if (limit === null) return true;
    const running = this.running.get(task) ?? 0;
    if (running >= limit) return false;
    this.running.set(task, running + 1);
    return true;
  }

  /** Whether the task has a limit, so that others of it may begin now. */
  giveBack(task: string): boolean {
    if (this.limitOf(task) === null) return false;
    this.running.set(task, (this.running.get(task) ?? 1) - 1);
    return true;
  }

  /** Tasks with a limit, or with batches, and how many jobs of each may begin beside those that wait. */
  rooms(waiting: () => ClaimedJob[]): TaskRoom[] {
    const tasks = this.tasks.names().filter((task) => this.limitOf(task) !== null || this.batchOf(task) !== null);
    if (!tasks.length) return NO_ROOMS;
    const jobs = waiting();
    return tasks.map((task) => {
      const limit = this.limitOf(task) ?? Infinity;
      const size = this.batchOf(task)?.size ?? 1;
      const buffered = jobs.filter((job) => job.task === task).length;
      const free = (limit - (this.running.get(task) ?? 0)) * size - buffered;
      return { task, free, ...(this.batchOf(task) && { batch: { size, waiting: buffered } }) };
    });
  }

  private batchOf(task: string): BatchOptions | null {
    return this.tasks.get(task)?.options.batch ?? null;
  }

  private limitOf(task: string): number | null {
    return this.tasks.get(task)?.options.concurrency ?? null;
  }
}
