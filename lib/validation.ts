// The one validator of what users write: options of the module and of decorators, arguments of calls, filters, the
// command line. It finds every fault, however deep, names it by its path, and fills in the defaults.
import { closest, distance } from 'fastest-levenshtein';
import { InvalidArgumentError, InvalidOptionsError } from './jobs.errors.js';

/** Says what was expected where a value is wrong; null where it is right. */
export interface Rule {
  (value: unknown): string | null;
  /** The values to choose from, for "did you mean". */
  readonly choices?: readonly string[] | undefined;
}

/** An option, or a section of them, whose settings are a `V`. */
export interface Option<V> {
  /** The faults of a value that stands at `path`; `undefined` is one only where the option is required. */
  check(value: unknown, path: string): string[];
  /** The settings that a value without faults stands for. */
  read(value: any): V;
  /** Paths of the options inside. */
  readonly paths: string[];
}

export type Options = Record<string, Option<any>>;
export type Settings<T extends Options> = { [K in keyof T]: T[K] extends Option<infer V> ? V : never };

/** So many faults of one list are named; the rest is counted. */
const MAX_LISTED = 20;
const MAX_SHOWN = 60;

/** A single value that may be left out. */
export const option = <V>(rule: Rule, fallback: V): Option<V> => ({
  check: (value, path) => (value === undefined ? [] : faultOf(path, value, rule)),
  read: (value) => (value === undefined ? fallback : value),
  paths: [],
});

/** A single value that must be given. */
export const required = (rule: Rule): Option<any> => ({
  check: (value, path) => faultOf(path, value, rule),
  read: (value) => value,
  paths: [],
});

/** Options by name; others are refused. `elsewhere`: what they are called in other places, and what they are called here. */
export const section = <T extends Options>(
  options: T,
  elsewhere: Record<string, keyof T & string> = {},
): Option<Settings<T>> => {
  const names = Object.keys(options);
  const mandatory = names.filter((name) => options[name]!.check(undefined, name).length > 0);
  const paths = names.flatMap((name) => [name, ...options[name]!.paths.map((path) => `${name}.${path}`)]);
  return {
    check: (value, path) => {
      if (value === undefined && !mandatory.length) return [];
      if (!isRecord(value)) return [notAnObject(value, path)];
      const given = Object.keys(value);
      const missing = mandatory.filter((name) => !given.includes(name));
      return [...given, ...missing].flatMap((name) =>
        Object.hasOwn(options, name)
          ? options[name]!.check(value[name], join(path, name))
          : [unknownOption(join(path, name), name, names, paths, elsewhere[name])],
      );
    },
    read: (value) => Object.fromEntries(names.map((name) => [name, options[name]!.read(value?.[name])])) as Settings<T>,
    paths,
  };
};

/** The same option under names that users choose. */
export const mapOf = <V>(inner: Option<V>, name: Rule = () => null): Option<Record<string, V>> => ({
  check: (value, path) => {
    if (value === undefined) return [];
    if (!isRecord(value)) return [notAnObject(value, path)];
    return Object.entries(value).flatMap(([key, one]) => [
      ...faultOf(`a name in ${path}`, key, name),
      ...inner.check(one, join(path, key)),
    ]);
  },
  read: (value) => Object.fromEntries(Object.entries(value ?? {}).map(([name, one]) => [name, inner.read(one)])),
  paths: [],
});

/** A list of the same option; it must be given. */
export const listOf = <V>(inner: Option<V>): Option<V[]> => ({
  check: (value, path) => {
    if (!Array.isArray(value)) return faultOf(path, value, () => 'an array');
    const faults: string[] = [];
    for (let index = 0; index < value.length; index++) faults.push(...inner.check(value[index], `${path}[${index}]`));
    if (faults.length <= MAX_LISTED) return faults;
    return [...faults.slice(0, MAX_LISTED), `There are ${faults.length - MAX_LISTED} more faults.`];
  },
  read: (value: unknown[]) => value.map((one) => inner.read(one)),
  paths: [],
});

/** A section that may be left out as a whole, whatever of it must be given. */
export const ifGiven = <V>(inner: Option<V>): Option<V | undefined> => ({
  check: (value, path) => (value === undefined ? [] : inner.check(value, path)),
  read: (value) => (value === undefined ? undefined : inner.read(value)),
  paths: inner.paths,
});

/** The same where null says that there is none. */
export const nullable = <V>(inner: Option<V>): Option<V | null> => ({
  check: (value, path) => (value === null ? [] : inner.check(value, path)),
  read: (value) => (value === null ? null : inner.read(value)),
  paths: inner.paths,
});

/** A section that `false` switches off: then its settings are null. */
export const orFalse = <V>(inner: Option<V>): Option<V | null> => ({
  check: (value, path) =>
    value === false || value === undefined || isRecord(value)
      ? inner.check(value === false ? undefined : value, path)
      : [`Expected ${path} to be false or an object, got ${show(value)}.`],
  read: (value) => (value === false ? null : inner.read(value)),
  paths: inner.paths,
});

/** What is wrong with one value. */
export function faultOf(path: string, value: unknown, rule: Rule): string[] {
  const expected = rule(value);
  if (expected === null) return [];
  const meant = typeof value === 'string' && rule.choices ? nearestChoice(value, rule.choices) : null;
  return [`Expected ${path} to be ${expected}, got ${show(value)}${meant === null ? '.' : `; did you mean ${meant}?`}`];
}

/**
 * Checks the arguments of a call: values by name, and objects of options.
 *
 * @throws InvalidArgumentError that lists every fault
 * @example
 * check({ ids: [ids, rules.uuids] }, [RESCHEDULE, changes]);
 */
export function check(
  values: Record<string, [value: unknown, rule: Rule]>,
  ...objects: [section: Option<any>, value: unknown, path?: string][]
): void {
  refuseCall([
    ...Object.entries(values).flatMap(([name, [value, rule]]) => faultOf(name, value, rule)),
    ...objects.flatMap(([inner, value, path = '']) => inner.check(value, path)),
  ]);
}

/** @throws InvalidArgumentError if there is any fault */
export function refuseCall(faults: string[]): void {
  if (faults.length) throw new InvalidArgumentError(faults);
}

/** @throws InvalidOptionsError if there is any fault */
export function throwIfAny(faults: string[]): void {
  if (faults.length) throw new InvalidOptionsError(faults);
}

/** Choices are short and few, and resemble each other more than names do. */
const nearestChoice = (value: string, choices: readonly string[]): string | null =>
  closestWithin(Math.max(1, Math.floor(value.length / 3)), value, choices);

/** The name among `known` that was probably meant by `name`. */
export function nearest(name: string, known: readonly string[]): string | null {
  const limit = Math.max(2, Math.floor(name.length / 3));
  return closestWithin(limit, name, known);
}

/** The closest of the known names, unless it differs in more than `limit` characters; case does not count. */
export function closestWithin(limit: number, name: string, known: readonly string[]): string | null {
  if (!known.length) return null;
  const lower = name.toLowerCase();
  const found = closest(
    lower,
    known.map((other) => other.toLowerCase()),
  );
  if (distance(lower, found) > limit) return null;
  return known.find((other) => other.toLowerCase() === found)!;
}

/** How a name that is not known is refused, with what was probably meant, or with all there are. */
export function unknownName(
  kind: string,
  name: string,
  known: readonly string[],
  meant = nearest(name, known),
): string {
  return `Unknown ${kind} ${name}; ${meant === null ? `known are ${known.join(', ')}.` : `did you mean ${meant}?`}`;
}

/** A value for people: short, and without what could be a secret. */
export function show(value: unknown): string {
  if (typeof value === 'string')
    return JSON.stringify(value.length > MAX_SHOWN ? `${value.slice(0, MAX_SHOWN)}…` : value);
  if (typeof value === 'function') return value.name ? `the function ${value.name}` : 'a function';
  if (typeof value === 'bigint') return `${value}n`;
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? 'an invalid Date' : value.toISOString();
  if (Array.isArray(value)) return `[${value.slice(0, 5).map(show).join(', ')}${value.length > 5 ? ', …' : ''}]`;
  return isRecord(value) ? 'an object' : String(value);
}

export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** An option that belongs into a section is sent there. */
function unknownOption(path: string, name: string, known: string[], paths: string[], here?: string): string {
  const deeper = paths.find((other) => other.endsWith(`.${name}`)) ?? null;
  return unknownName('option', path, known, here ?? nearest(name, known) ?? deeper);
}

const notAnObject = (value: unknown, path: string): string =>
  `Expected ${path || 'the options'} to be an object, got ${show(value)}.`;

const join = (path: string, name: string): string => (path ? `${path}.${name}` : name);
