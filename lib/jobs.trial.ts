// Makes a provider in request or transient scope once, outside of any request, to see of which class it is.
import { ContextIdFactory, type ModuleRef } from '@nestjs/core';
import type { InstanceWrapper } from '@nestjs/core/injector/instance-wrapper.js';
import { moduleRefOf } from './jobs.handlers.js';

/** What came of it: the prototype of the instance, or why there is none. */
export interface Trial {
  prototype: object | null;
  error: string | null;
}

/** A factory that waits for something of a request must not keep the application from starting. */
const TRIAL_MS = 5_000;
/** What such factories usually look at, so that most of them get along without a job or a request. */
const NO_REQUEST = Object.freeze({ payload: {}, headers: {}, params: {}, query: {} });

export async function makeOnce(wrapper: InstanceWrapper): Promise<Trial> {
  try {
    const instance = await within(TRIAL_MS, make(moduleRefOf(wrapper), wrapper));
    const isObject = typeof instance === 'object' && instance !== null;
    return { prototype: isObject ? (Object.getPrototypeOf(instance) as object | null) : null, error: null };
  } catch (error) {
    return { prototype: null, error: error instanceof Error ? error.message : String(error) };
  }
}

function make(moduleRef: ModuleRef, { token }: InstanceWrapper): Promise<unknown> {
  const contextId = ContextIdFactory.create();
  moduleRef.registerRequestByContextId(NO_REQUEST, contextId);
  return moduleRef.resolve(token, contextId, { strict: true });
}

function within<T>(ms: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const silence = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no instance within ${ms} ms`)), ms);
  });
  return Promise.race([work, silence]).finally(() => clearTimeout(timer));
}
