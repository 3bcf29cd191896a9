// Typed events of pools and jobs. A subscriber's error never reaches the emitter; the last thousand events are kept.
import type { JobEventFields, JobEventType } from '../interfaces/event.interface.js';
import type { Job } from '../interfaces/job.interface.js';
import { check } from '../validation.js';
import { rules } from '../validation.rules.js';
import { openScope } from './async.scope.js';
import { EventRing } from './event.ring.js';
import type { JobMask } from './job.mask.js';

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
  'bulk.started': true,
  'bulk.finished': true,
  'jobs.paused': true,
  'jobs.resumed': true,
  'worker.error': true,
  'database.lost': true,
  'database.back': true,
  'circuit.open': true,
  'circuit.closed': true,
};

/** All types, for checks at run time. */
export const JOB_EVENT_TYPES = Object.keys(EVENT_TYPES) as JobEventType[];

/** A type of event, or all of them. */
export const eventType = rules.oneOf(...JOB_EVENT_TYPES, 'all');

/** What every event carries, with the fields of its type. `workerId` is null for events of no pool. */
export type JobEvent<T extends JobEventType = JobEventType> = {
  [K in T]: { type: K; at: Date; workerId: string | null } & JobEventFields[K];
}[T];

export type JobEventHandler<T extends JobEventType | 'all'> = (
  event: T extends JobEventType ? JobEvent<T> : JobEvent,
) => unknown;

type AnyHandler = (event: JobEvent) => unknown;

/** Hears what a subscriber threw; `subscriber`: the name of its function. */
export type DroppedReport = (error: unknown, type: JobEventType, subscriber: string) => void;

interface Subscription {
  id: number;
  type: JobEventType | 'all';
  handler: AnyHandler;
}

/**
 * Where pools report what happens to jobs.
 *
 * @example
 * events.on('job.exhausted', ({ job, error }) => alerts.raise(job.task, error));
 */
export class JobEvents {
  /** A new list with each change, so that a handler may subscribe or unsubscribe while events are delivered. */
  private subscriptions: readonly Subscription[] = [];
  private readonly ring = new EventRing();
  private readonly masks: JobMask[] = [];
  private lastId = 0;
  private emitted = 0;
  private dropped = 0;
  private report: DroppedReport | null = null;

  /**
   * Subscribes and returns the id to unsubscribe by. A handler's error is counted as dropped; in Nest it is logged, too.
   * @throws InvalidArgumentError for a type that does not exist
   */
  on<T extends JobEventType | 'all'>(type: T, handler: JobEventHandler<T>): number {
    check({ type: [type, eventType], handler: [handler, rules.callable] });
    const id = ++this.lastId;
    this.subscriptions = [...this.subscriptions, { id, type, handler: handler as AnyHandler }];
    return id;
  }

  /** Unsubscribes; `false` where the id is not known. */
  off(id: number): boolean {
    const others = this.subscriptions.filter((subscription) => subscription.id !== id);
    const known = others.length < this.subscriptions.length;
    this.subscriptions = others;
    return known;
  }

  /**
   * The last 1,000 events, oldest first. Payloads, progress, results and errors of more than about 4 kB are not kept:
   * `'[too large to remember]'`, or a shortened error, stands in their place. Subscribers get them whole.
   */
  events(): JobEvent[] {
    return this.ring.read(eventOf);
  }

  stats(): { emitted: number; dropped: number } {
    return { emitted: this.emitted, dropped: this.dropped };
  }

  emit<T extends JobEventType>(type: T, workerId: string | null, fields: JobEventFields[T]): void {
    const at = Date.now();
    let shown = fields;
    for (const mask of this.masks) shown = mask.apply(shown);
    this.emitted++;
    this.ring.remember(type, at, workerId, shown);
    let event: JobEvent | undefined;
    for (const subscription of this.subscriptions) {
      if (subscription.type !== type && subscription.type !== 'all') continue;
      event ??= eventOf(type, at, workerId, shown);
      this.deliver(subscription.handler, event);
    }
  }

  /** For pools: what events must not show. */
  hide(mask: JobMask): void {
    this.masks.push(mask);
  }

  /** For the logger: calls `report` with each error that a subscriber throws. */
  onDropped(report: DroppedReport): void {
    this.report = report;
  }

  private deliver(handler: AnyHandler, event: JobEvent): void {
    try {
      // In a context of its own: what a listener enters is not seen by those after it, or by handlers.
      const answer: unknown = openScope().runInAsyncScope(handler, null, event);
      if (answer instanceof Promise) answer.catch((error: unknown) => this.drop(error, event, handler));
    } catch (error) {
      this.drop(error, event, handler);
    }
  }

  private drop(error: unknown, { type }: JobEvent, handler: AnyHandler): void {
    this.dropped++;
    try {
      this.report?.(error, type, handler.name);
    } catch {
      // A logger that fails must not fail the pool.
    }
  }
}

/** With a copy of the job: the pool settles by its own record, which listeners must not be able to change. */
function eventOf(type: JobEventType, at: number, workerId: string | null, fields: object): JobEvent {
  const { job } = fields as { job?: Job };
  return { type, at: new Date(at), workerId, ...fields, ...(job && { job: { ...job } }) } as unknown as JobEvent;
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
