import 'reflect-metadata';
import { JOB_EVENT_METADATA } from '../jobs.constants.js';
import type { JobEventType } from '../monitoring/job.events.js';

export interface JobEventMetadata {
  type: JobEventType | 'all';
  instance: string | undefined;
}

/**
 * Calls the method with each event of the type. Its errors are counted as dropped and reach nobody.
 *
 * @example
 * @OnJobEvent('job.exhausted')
 * alert({ job, error }: JobEvent<'job.exhausted'>): void { … }
 */
export const OnJobEvent =
  (type: JobEventType | 'all', { instance }: { instance?: string } = {}): MethodDecorator =>
  (_target, _key, descriptor) => {
    const method = descriptor.value as object;
    const others = (Reflect.getMetadata(JOB_EVENT_METADATA, method) ?? []) as JobEventMetadata[];
    Reflect.defineMetadata(JOB_EVENT_METADATA, [...others, { type, instance }], method);
  };
