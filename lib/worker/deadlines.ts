// Timeouts of all running jobs on one timer: a timer for each job would cost more than many a job.
import { outsideOfScopes } from '../monitoring/async.scope.js';
import { SwapList } from './swap.list.js';

export interface Deadline {
  readonly at: number;
  readonly expire: () => void;
}

export class Deadlines {
  private readonly pending = new SwapList<Deadline>();
  private timer: NodeJS.Timeout | null = null;
  private timerAt = Infinity;

  add(ms: number, expire: () => void): Deadline {
    const deadline = { at: performance.now() + ms, expire };
    this.pending.add(deadline);
    if (deadline.at < this.timerAt) this.schedule(deadline.at);
    return deadline;
  }

  /** The timer stays: it finds nothing due and goes on to the next deadline, if there is one. */
  remove(deadline: Deadline): void {
    this.pending.delete(deadline);
  }

  clear(): void {
    this.pending.clear();
    if (this.timer) clearTimeout(this.timer);
    this.timer = null;
    this.timerAt = Infinity;
  }

  private schedule(at: number): void {
    if (this.timer) clearTimeout(this.timer);
    this.timerAt = at;
    const ms = Math.min(2 ** 31 - 1, Math.max(1, at - performance.now()));
    this.timer = outsideOfScopes(() => setTimeout(() => this.expireDue(), ms));
    // A deadline alone keeps no process alive: the pool does.
    this.timer.unref();
  }

  private expireDue(): void {
    this.timer = null;
    this.timerAt = Infinity;
    const now = performance.now();
    let next = Infinity;
    for (const deadline of this.pending.all()) {
      if (deadline.at > now) next = Math.min(next, deadline.at);
      else {
        this.pending.delete(deadline);
        deadline.expire();
      }
    }
    if (next < this.timerAt) this.schedule(next);
  }
}
