// How many jobs of each task with a limit of its own run in a pool.
import type { ClaimedJob } from '../interfaces/job.interface.js';
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

  /** Tasks with a limit, and how many of each may begin beside those that wait. */
  rooms(waiting: () => ClaimedJob[]): TaskRoom[] {
    const limited = this.tasks.names().filter((task) => this.limitOf(task) !== null);
    if (!limited.length) return NO_ROOMS;
    const jobs = waiting();
    return limited.map((task) => {
      const buffered = jobs.filter((job) => job.task === task).length;
      return { task, free: this.limitOf(task)! - (this.running.get(task) ?? 0) - buffered };
    });
  }

  private limitOf(task: string): number | null {
    return this.tasks.get(task)?.options.concurrency ?? null;
  }
}
