// What decorations of methods have in common: what they may stand on, and which classes have any.
import { InvalidOptionsError } from '../jobs.errors.js';

const classes = new Set<WeakRef<object>>();

/**
 * Refuses what is no method of an instance, where Nest would never find it, and remembers the class.
 * @throws InvalidOptionsError
 */
export function registerDecoration(
  decorator: string,
  target: object,
  method: string | symbol,
  given?: PropertyDescriptor,
): void {
  const fault = faultOf(target, method, given);
  if (fault) throw new InvalidOptionsError([`Expected ${decorator} on a method of an instance, got ${fault}.`]);
  if (!decoratedClasses().includes(target)) classes.add(new WeakRef(target));
}

/** The prototypes of all classes that have decorations, in this process. */
export const decoratedClasses = (): object[] => [...classes].flatMap((reference) => reference.deref() ?? []);

function faultOf(target: object, method: string | symbol, given?: PropertyDescriptor): string | null {
  if (typeof method === 'object') {
    return 'the call of a standard decorator: compile with "experimentalDecorators", as Nest needs it';
  }
  if (typeof target === 'function') return `the static ${target.name}.${String(method)}`;
  const descriptor = given ?? descriptorOf(target, method);
  const place = `${target.constructor.name}.${String(method)}`;
  if (descriptor?.get || descriptor?.set) return `the accessor ${place}`;
  return typeof descriptor?.value === 'function' ? null : `the property ${place}`;
}

function descriptorOf(target: object, method: string | symbol): PropertyDescriptor | undefined {
  for (let level: object | null = target; level; level = Object.getPrototypeOf(level) as object | null) {
    const descriptor = Object.getOwnPropertyDescriptor(level, method);
    if (descriptor) return descriptor;
  }
  return undefined;
}
