// Fires recurring jobs for as long as its pool runs: sleeps until the next slot, then lets the manager fire what is
// due. Every pool does so; whose timer is first does not matter, and clocks of processes are never asked for the time.
import { StoppedError } from '../jobs.errors.js';
import { CrontabLockedError } from '../manager/crontab.errors.js';
import type { TaskDeclarations } from '../manager/declarations.js';
import type { JobEngine } from '../manager/job.engine.js';
import type { TaskRegistry } from '../manager/task.registry.js';
import type { JobEvents } from '../monitoring/job.events.js';

/** Other processes may have changed something. Well within the grace that a slot has. */
const MAX_SLEEP_MS = 30_000;
/** Timers fire up to a millisecond early. */
const MARGIN_MS = 1;
const FIRST_RETRY_MS = 1_000;

/** Another release may have ended. */
const REPEAT_MS = 25_000;
/** A crontab that a transaction holds for so many tries is reported. */
const HELD_TRIES = 4;

export interface CronSchedulerParts {
  engine: Pick<JobEngine, 'crontabs' | 'declarations'>;
  tasks: TaskRegistry;
  events: JobEvents;
}

/** Growing pauses, for a crontab that could not be fired and for a database that does not answer. */
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

  private declared: TaskDeclarations | null = null;
  private repeatAt = Infinity;

  constructor(private readonly parts: CronSchedulerParts) {}

  /**
   * Writes down what the tasks declare, and fires from now on.
   * @throws InvalidOptionsError, InvalidArgumentError, PayloadValidationError and what the database throws
   */
  async start(workerId: string): Promise<void> {
    this.workerId = workerId;
    await this.declare();
    this.unsubscribe = this.parts.engine.crontabs.onChange(() => this.wake());
    this.loop = this.run();
  }

  /** Writes down what the tasks declare: at the start, and when tasks of a lazy module have been found. */
  async declare(): Promise<void> {
    const { engine, tasks } = this.parts;
    const definitions = tasks.names().flatMap((name) => tasks.get(name) ?? []);
    this.declared = await engine.declarations.ofTasks(definitions, this.workerId);
    await this.declared.declare();
    this.repeatAt = performance.now() + REPEAT_MS;
    // What is new may be due before the loop would look again.
    this.wake();
  }

  /** Begins nothing more, and waits for what is under way. Never rejects. */
  async stop(): Promise<void> {
    this.stopped = true;
    this.unsubscribe?.();
    this.wake();
    await this.loop;
    // Where the database is away, the heartbeat that ends tells other releases as well.
    await this.declared?.withdraw().catch(() => undefined);
  }

  /** Fires what is due and returns in how many ms to look again. Never rejects. */
  async tick(): Promise<number> {
    try {
      await this.repeatDeclarations();
      const { due, nextInMs } = await this.parts.engine.crontabs.poll();
      this.failures = 0;
      for (const id of this.troubles.keys()) if (!due.includes(id)) this.troubles.delete(id);
      const waits = [nextInMs + MARGIN_MS, MAX_SLEEP_MS];
      for (const id of due) waits.push(await this.fire(id));
      return Math.min(...waits);
    } catch (error) {
      // The connection pool was closed: the worker pool notices that as well, and reports it.
      this.stopped ||= error instanceof StoppedError;
      if (!this.stopped) this.report(error, 'looking for crontabs that are due');
      return retryMs(this.failures++);
    }
  }

  private async repeatDeclarations(): Promise<void> {
    if (performance.now() < this.repeatAt) return;
    await this.declared?.repeat();
    this.repeatAt = performance.now() + REPEAT_MS;
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
      const { fired, more, held } = await this.parts.engine.crontabs.fire(id);
      for (const slot of fired) this.parts.events.emit('cron.fired', this.workerId, { cronId: id, ...slot });
      if (held) return this.restHeld(id, trouble);
      this.troubles.delete(id);
      return more ? 0 : Infinity;
    } catch (error) {
      this.report(error, `firing the crontab "${id}"`);
      return this.rest(id, trouble);
    }
  }

  /** Mostly another process fires it at this moment: then it is not due any more the next time. */
  private restHeld(id: string, trouble: Trouble): number {
    if (trouble.failures + 1 === HELD_TRIES) this.report(new CrontabLockedError(id), `firing the crontab "${id}"`);
    return this.rest(id, trouble);
  }

  private rest(id: string, { failures }: Trouble): number {
    const waitMs = retryMs(failures);
    this.troubles.set(id, { failures: failures + 1, until: performance.now() + waitMs });
    return waitMs;
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
  Math.min(MAX_SLEEP_MS, FIRST_RETRY_MS * 2 ** failures) * (0.75 + Math.random() / 4);
