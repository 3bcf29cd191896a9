// Fires recurring jobs for as long as its pool runs: sleeps until the next slot, then lets the manager fire what is
// due. Every pool does so; whose timer is first does not matter, and clocks of processes are never asked for the time.
import type { Crontabs } from '../manager/crontabs.js';
import type { TaskDefinition, TaskRegistry } from '../manager/task.registry.js';
import type { JobEvents } from '../monitoring/job.events.js';

/** Other processes may have changed something. Well within the grace that a slot has. */
const LONGEST_SLEEP_MS = 30_000;
/** Timers fire up to a millisecond early. */
const MARGIN_MS = 1;
const FIRST_RETRY_MS = 1_000;

export interface CronSchedulerParts {
  crontabs: Crontabs;
  tasks: TaskRegistry;
  events: JobEvents;
}

/** A crontab that could not be fired, and the database when it does not answer, are left alone for ever longer. */
interface Trouble {
  failures: number;
  until: number;
}

export class CronScheduler {
  private readonly troubles = new Map<string, Trouble>();
  private workerId: string | null = null;
  private failures = 0;
  private stopped = false;
  private woken = false;
  private wakeUp: (() => void) | null = null;
  private unsubscribe: (() => void) | null = null;
  private loop: Promise<void> | null = null;

  constructor(private readonly parts: CronSchedulerParts) {}

  /**
   * Writes down what the tasks declare, and fires from now on.
   * @throws InvalidOptionsError, InvalidArgumentError, PayloadValidationError and what the database throws
   */
  async start(workerId: string): Promise<void> {
    const { crontabs, tasks } = this.parts;
    this.workerId = workerId;
    await crontabs.declare(tasks.names().map((name) => tasks.get(name) as TaskDefinition));
    this.unsubscribe = crontabs.onChange(() => this.wake());
    this.loop = this.run();
  }

  /** Begins nothing more, and waits for what is under way. Never rejects. */
  async stop(): Promise<void> {
    this.stopped = true;
    this.unsubscribe?.();
    this.wake();
    await this.loop;
  }

  /** Fires what is due and returns in how many ms to look again. Never rejects. */
  async tick(): Promise<number> {
    try {
      const { due, nextInMs } = await this.parts.crontabs.look();
      this.failures = 0;
      const waits = [nextInMs + MARGIN_MS, LONGEST_SLEEP_MS];
      for (const id of due) waits.push(await this.fire(id));
      return Math.min(...waits);
    } catch (error) {
      this.report(error, 'looking for crontabs that are due');
      return retryMs(this.failures++);
    }
  }

  private async run(): Promise<void> {
    while (!this.stopped) await this.sleep(await this.tick());
  }

  /** Returns in how many ms to try this one again, if that is before its next slot. */
  private async fire(id: string): Promise<number> {
    const trouble = this.troubles.get(id) ?? { failures: 0, until: 0 };
    const restMs = trouble.until - performance.now();
    if (restMs > 0 || this.stopped) return Math.max(0, restMs);
    try {
      const { fired, more } = await this.parts.crontabs.fire(id);
      this.troubles.delete(id);
      for (const slot of fired) this.parts.events.emit('cron.fired', this.workerId, { cronId: id, ...slot });
      return more ? 0 : Infinity;
    } catch (error) {
      this.report(error, `firing the crontab "${id}"`);
      const waitMs = retryMs(trouble.failures);
      this.troubles.set(id, { failures: trouble.failures + 1, until: performance.now() + waitMs });
      return waitMs;
    }
  }

  private async sleep(ms: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.wakeUp = resolve;
      timer = setTimeout(resolve, ms);
      if (this.woken) resolve();
    });
    clearTimeout(timer);
    this.woken = false;
  }

  /** Also cuts short the sleep that a tick under way is about to begin: it may have looked too early. */
  private wake(): void {
    this.woken = true;
    this.wakeUp?.();
  }

  private report(error: unknown, context: string): void {
    this.parts.events.emit('worker.error', this.workerId, { error, context });
  }
}

const retryMs = (failures: number): number =>
  Math.min(LONGEST_SLEEP_MS, FIRST_RETRY_MS * 2 ** failures) * (0.75 + Math.random() / 4);
