// Typed events of pools and jobs: subscribers never harm whoever emits, and the last thousand can be looked at.
import type { Job } from '../interfaces/job.interface.js';
import type { JobMask } from './job.mask.js';

export interface JobEventFields {
  'pool.start': { concurrency: number };
  'pool.stop': { forced: boolean };
  'job.started': { job: Job };
  'job.completed': { job: Job; executionTimeMs: number; result?: unknown };
  'job.failed': { job: Job; error: unknown; executionTimeMs: number; retryAt: Date | null };
  'job.exhausted': { job: Job; error: unknown };
  'job.partial-success': { job: Job; executionTimeMs: number; partialResults: unknown };
  'job.snoozed': { job: Job; ms: number };
  'job.cancelled': { job: Job; reason: string | null };
  'job.timeout': { job: Job; timeoutMs: number };
  'job.lost': { job: Job };
  'job.settled': { job: Job; outcome: string };
  'cron.fired': { cronId: string; slot: Date; job: Job };
  'worker.error': { error: unknown; context: string };
}

export type JobEventType = keyof JobEventFields;

const EVENT_TYPES: Record<JobEventType, true> = {
  'pool.start': true,
  'pool.stop': true,
  'job.started': true,
  'job.completed': true,
  'job.failed': true,
  'job.exhausted': true,
  'job.partial-success': true,
  'job.snoozed': true,
  'job.cancelled': true,
  'job.timeout': true,
  'job.lost': true,
  'job.settled': true,
  'cron.fired': true,
  'worker.error': true,
};

/** All types, for checks at run time. */
export const JOB_EVENT_TYPES = Object.keys(EVENT_TYPES) as JobEventType[];

/** What every event carries, with the fields of its type. `workerId` is null for events of no pool. */
export type JobEvent<T extends JobEventType = JobEventType> = {
  [K in T]: { type: K; at: Date; workerId: string | null } & JobEventFields[K];
}[T];

export type JobEventHandler<T extends JobEventType | 'all'> = (
  event: T extends JobEventType ? JobEvent<T> : JobEvent,
) => unknown;

type AnyHandler = (event: JobEvent) => unknown;

const REMEMBERED = 1_000;

/**
 * Where pools report what happens to jobs.
 *
 * @example
 * events.on('job.exhausted', ({ job, error }) => alerts.raise(job.task, error));
 */
export class JobEvents {
  private readonly handlers = new Map<number, { type: JobEventType | 'all'; handler: AnyHandler }>();
  private readonly ring: JobEvent[] = [];
  private readonly masks: JobMask[] = [];
  private next = 0;
  private lastId = 0;
  private emitted = 0;
  private dropped = 0;

  /** Subscribes and returns the id to unsubscribe by. A handler's error is counted as dropped and goes nowhere else. */
  on<T extends JobEventType | 'all'>(type: T, handler: JobEventHandler<T>): number {
    this.handlers.set(++this.lastId, { type, handler: handler as AnyHandler });
    return this.lastId;
  }

  /** Unsubscribes; `false` where the id is not known. */
  off(id: number): boolean {
    return this.handlers.delete(id);
  }

  /** The last 1,000 events, oldest first. */
  events(): JobEvent[] {
    return [...this.ring.slice(this.next), ...this.ring.slice(0, this.next)];
  }

  stats(): { emitted: number; dropped: number } {
    return { emitted: this.emitted, dropped: this.dropped };
  }

  emit<T extends JobEventType>(type: T, workerId: string | null, fields: JobEventFields[T]): void {
    let shown = fields;
    for (const mask of this.masks) shown = mask.apply(shown);
    const event = { type, at: new Date(), workerId, ...shown } as unknown as JobEvent;
    this.remember(event);
    for (const subscription of this.handlers.values()) {
      if (subscription.type === type || subscription.type === 'all') this.deliver(subscription.handler, event);
    }
  }

  /** For pools: what nobody is to see here. */
  hide(mask: JobMask): void {
    this.masks.push(mask);
  }

  private remember(event: JobEvent): void {
    this.emitted++;
    this.ring[this.next] = event;
    this.next = (this.next + 1) % REMEMBERED;
  }

  private deliver(handler: AnyHandler, event: JobEvent): void {
    try {
      const answer = handler(event);
      if (answer instanceof Promise) answer.catch(() => this.dropped++);
    } catch {
      this.dropped++;
    }
  }
}

/** Events that also keep everything they were given, for tests. */
export class CollectingJobEvents extends JobEvents {
  /** Every event since the last `clear()`, oldest first, without the limit of `events()`. */
  readonly collected: JobEvent[] = [];

  constructor() {
    super();
    this.on('all', (event) => this.collected.push(event));
  }

  /** The collected events of one type. */
  ofType<T extends JobEventType>(type: T): JobEvent<T>[] {
    return this.collected.filter((event) => event.type === type) as unknown as JobEvent<T>[];
  }

  clear(): void {
    this.collected.length = 0;
  }
}

class NoopJobEvents extends JobEvents {
  override emit(): void {}
}

/** A `JobEvents` for tests that keeps every event in `collected`. */
export const createCollectingEvents = (): CollectingJobEvents => new CollectingJobEvents();

/** A `JobEvents` that delivers nothing and costs nothing. */
export const createNoopEvents = (): JobEvents => new NoopJobEvents();
