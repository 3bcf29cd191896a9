// Which job may start now: within its task's own limit, one suspect of crashes at a time, while the pool may start any.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { TaskRegistry } from '../manager/task.registry.js';
import type { TaskRoom } from './claim.group.js';
import { SwapList } from './swap.list.js';
import { CrashQuarantine } from './crash.quarantine.js';
import { TaskSlots } from './task.slots.js';

export class Admission {
  readonly quarantine: CrashQuarantine;
  private readonly slots: TaskSlots;
  private readonly running = new SwapList<ClaimedJob>();

  constructor(
    tasks: TaskRegistry,
    maxCrashes: number,
    /** While the lease holds and outcomes can be written. */
    private readonly mayStart: () => boolean,
  ) {
    this.quarantine = new CrashQuarantine(maxCrashes);
    this.slots = new TaskSlots(tasks);
  }

  /** How many jobs have been admitted and have not ended. */
  get size(): number {
    return this.running.size;
  }

  all(): ClaimedJob[] {
    return this.running.all();
  }

  /**
   * Admits a job, or does not. Its place is taken here and given back by `leave`: several jobs may be handed out in a row, and
   * each must be known as held from here on. A batch takes one place.
   */
  admit(job: ClaimedJob, batch?: ClaimedJob[]): boolean {
    if (!this.mayStart() || !this.slots.take(job.task)) return false;
    if (batch) for (const one of batch) this.running.add(one);
    else this.running.add(job);
    return true;
  }

  /** A job has ended. `suspect`: another suspect may be claimed now; `slot`: others of its task may start. */
  leave(job: ClaimedJob): { suspect: boolean; slot: boolean } {
    this.running.delete(job);
    return { suspect: this.quarantine.leave(job), slot: this.slots.giveBack(job.task) };
  }

  /** A batch has ended. */
  leaveBatch(jobs: ClaimedJob[]): { suspect: boolean; slot: boolean } {
    for (const job of jobs) this.running.delete(job);
    const suspects = jobs.filter((job) => this.quarantine.leave(job));
    return { suspect: suspects.length > 0, slot: this.slots.giveBack(jobs[0]!.task) };
  }

  /** Tasks with a limit, and how many of each may start beside those that wait. */
  rooms(waiting: () => ClaimedJob[]): TaskRoom[] {
    return this.slots.rooms(waiting);
  }
}
