// What decorators have written on a provider's class, and where a provider's class is to be found.
import type { InstanceWrapper } from '@nestjs/core/injector/instance-wrapper.js';
import { JOB_EVENT_METADATA, TASK_METADATA } from '../jobs.constants.js';
import { isStatic } from '../jobs.handlers.js';

/**
 * Where a provider's decorations are. Factories and values tell only by their instance, which a factory may not have
 * made yet; one that stands in for a class (`overrideProvider(MailTasks).useValue(…)`) has that class's decorations. So
 * does a factory in request or transient scope whose token is its class: its instances come with the jobs. Whether one
 * is, is known when providers have been `made`.
 */
export function prototypeOf(wrapper: InstanceWrapper, made: boolean): object | null {
  const { isNotMetatype, metatype, instance, token } = wrapper;
  if (!isNotMetatype) return (metatype?.prototype ?? null) as object | null;
  const named = typeof token === 'function' ? (token.prototype as object | null) : null;
  if (typeof instance !== 'object' || instance === null) {
    return made && wrapper.isFactory && isDecorated(named) && !isStatic(wrapper) ? named : null;
  }
  const own = Object.getPrototypeOf(instance) as object | null;
  return isDecorated(own) ? own : (named ?? own);
}

export const isOrExtends = (prototype: object, base: object): boolean =>
  prototype === base || Object.prototype.isPrototypeOf.call(base, prototype);

export const isDecorated = (prototype: object | null): boolean =>
  prototype !== null && [TASK_METADATA, JOB_EVENT_METADATA].some((key) => Reflect.hasMetadata(key, prototype));

/** The decorations of a class and of those that it extends; a decoration that is repeated in a subclass counts once. */
export function decorationsOf<T>(key: string, prototype: object, identify: (decoration: T) => string): T[] {
  const found = new Map<string, T>();
  for (let level: object | null = prototype; level; level = Object.getPrototypeOf(level) as object | null) {
    for (const decoration of (Reflect.getOwnMetadata(key, level) ?? []) as T[]) {
      if (!found.has(identify(decoration))) found.set(identify(decoration), decoration);
    }
  }
  return [...found.values()];
}

export const sourceOf = ({ host }: InstanceWrapper, prototype: object, method: string | symbol): string =>
  `${prototype.constructor.name}.${String(method)}${host ? ` in ${host.name}` : ''}`;
