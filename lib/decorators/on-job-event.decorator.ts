// @OnJobEvent subscribes a method to the events of jobs and pools. Metadata only.
import 'reflect-metadata';
import { JOB_EVENT_METADATA } from '../jobs.constants.js';
import type { JobEventType } from '../interfaces/event.interface.js';
import type { JobEvent } from '../monitoring/job.events.js';
import { registerDecoration } from './decorated.method.js';

export interface OnJobEventOptions {
  /** The module instance (`forRoot({ name })`) whose events are meant. Default: the unnamed one. */
  instance?: string | undefined;
}

/** One @OnJobEvent decoration, as it stands on the prototype of its class. */
export interface JobEventMetadata {
  method: string | symbol;
  type: JobEventType | 'all';
  options: OnJobEventOptions | undefined;
}

type EventOf<T extends JobEventType | 'all'> = T extends JobEventType ? JobEvent<T> : JobEvent;

/**
 * Calls the method of a provider or controller with each event of the type. What it throws is logged and counted as
 * dropped; the job does not notice. The provider must be a singleton: an event belongs to no request.
 *
 * @example
 * @OnJobEvent('job.exhausted')
 * alert({ job, error }: JobEvent<'job.exhausted'>): void { … }
 */
export const OnJobEvent =
  <T extends JobEventType | 'all'>(type: T, options?: OnJobEventOptions) =>
  <M extends (event: EventOf<T>) => unknown>(
    target: object,
    method: string | symbol,
    descriptor: TypedPropertyDescriptor<M>,
  ): void => {
    registerDecoration('@OnJobEvent', target, method, descriptor);
    const others = (Reflect.getOwnMetadata(JOB_EVENT_METADATA, target) ?? []) as JobEventMetadata[];
    Reflect.defineMetadata(JOB_EVENT_METADATA, [...others, { method, type, options }], target);
  };
