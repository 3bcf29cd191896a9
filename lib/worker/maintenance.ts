// Work that has to be done now and then. Every process may do it, at any time, and nothing depends on its
// being on time.
import type { JobManager } from '../manager/job.manager.js';
import { PartitionsHeldError } from '../manager/retention.errors.js';
import type { JobEvents } from '../monitoring/job.events.js';
import { backoffMs, settledWithin } from '../timing.js';

/** One of them runs each second; while the database is in trouble, the pauses grow. */
const FIRST_REST_MS = 1_000;
const MAX_REST_MS = 30_000;
const MAX_STOP_MS = 5_000;
/** A nightly dump holds locks on partitions for an hour: what could not be dropped is tried again during the day. */
const COLLECT_AGAIN_MS = 300_000;
const MAX_COLLECT_AGAIN_MS = 3_600_000;
/** In first pauses: after an hour, and then once a day. */
const WARN_AFTER = 12;
const WARN_AGAIN_AFTER = 288;

export class Maintenance {
  private readonly underWay = new Set<Promise<void>>();
  private stopped = false;
  private failures = 0;
  private restUntil = -Infinity;
  private nextCollection: NodeJS.Timeout | null = null;
  /** Since when locks have been in the way, by performance.now(); null: they are not. */
  private heldSince: number | null = null;
  private warnedAt = -Infinity;
  /** One collection at a time: the next one would take over what the last has found. */
  private collecting = false;

  constructor(
    private readonly jobs: JobManager,
    private readonly events: JobEvents,
    /** The first pause before what locks were in the way of is tried again, for specs. */
    private readonly collectAgainMs = COLLECT_AGAIN_MS,
  ) {}

  /** Starts the next window of rate limits whose window has passed. Never rejects, like all duties. */
  refillRateLimits(): Promise<void> {
    return this.perform('refilling rate limits', [() => this.jobs.refillRateLimits()]);
  }

  /** Takes away overdue claims, and those of workers that died. */
  resetLockedJobs(): Promise<void> {
    return this.perform('resetting locked jobs', [() => this.jobs.resetLockedJobs()]);
  }

  /** Makes the next partitions now: until the garbage is collected for the first time, there are none. */
  makePartitions(): Promise<void> {
    return this.perform('making partitions', [() => this.jobs.engine.retention.makePartitions()]);
  }

  /**
   * Removes expired history, and queues and task names that are not used. Where transactions held locks on partitions, the
   * history is collected again during the day.
   */
  collectGarbage(): Promise<void> {
    return this.perform('collecting garbage', [
      () => this.collectHistory(),
      () => this.jobs.gcJobQueues(),
      () => this.jobs.gcTaskIdentifiers(),
    ]);
  }

  /** Begins nothing more, and waits for what is under way. */
  async stop(): Promise<void> {
    this.stopped = true;
    this.collectLater(null);
    // Another process does later what is left.
    await settledWithin(MAX_STOP_MS, Promise.all(this.underWay));
  }

  private async collectHistory(): Promise<void> {
    const { jobs } = this;
    if (this.collecting) return;
    this.collecting = true;
    await jobs.gcJobHistory().finally(() => (this.collecting = false));
    if (!jobs.engine.retention.held.length) {
      this.heldSince = null;
      return this.collectLater(null);
    }
    this.heldSince ??= performance.now();
    if (!this.nextCollection) this.collectLater(this.collectAgainMs);
    await this.warnOfLocks(performance.now() - this.heldSince);
  }

  private async warnOfLocks(heldMs: number): Promise<void> {
    const { retention } = this.jobs.engine;
    const isNew = performance.now() - this.warnedAt > WARN_AGAIN_AFTER * this.collectAgainMs;
    if (!isNew || heldMs < WARN_AFTER * this.collectAgainMs) return;
    this.warnedAt = performance.now();
    const error = new PartitionsHeldError(retention.held, await retention.holders(), heldMs);
    this.events.emit('worker.error', null, { error, context: 'collecting garbage' });
  }

  /** Again and again, until nothing is in the way. Null: not before the duty's next time. */
  private collectLater(ms: number | null): void {
    if (this.nextCollection) clearTimeout(this.nextCollection);
    this.nextCollection = null;
    if (ms === null || this.stopped) return;
    const collect = (): void => {
      this.collectLater(Math.min(MAX_COLLECT_AGAIN_MS, ms * 2));
      void this.perform('collecting garbage', [() => this.collectHistory()]);
    };
    this.nextCollection = setTimeout(collect, ms * (0.75 + Math.random() / 4)).unref();
  }

  private perform(context: string, steps: (() => Promise<unknown>)[]): Promise<void> {
    const work = this.run(context, steps).finally(() => this.underWay.delete(work));
    this.underWay.add(work);
    return work;
  }

  /** The database may be away: the next time will do. */
  private async run(context: string, steps: (() => Promise<unknown>)[]): Promise<void> {
    if (performance.now() < this.restUntil) return;
    try {
      for (const step of steps) if (!this.stopped && !this.jobs.engine.registry.schemaCheck.refusal) await step();
      this.failures = 0;
    } catch (error) {
      this.restUntil = performance.now() + backoffMs(this.failures++, MAX_REST_MS, FIRST_REST_MS);
      this.events.emit('worker.error', null, { error, context });
    }
  }
}
