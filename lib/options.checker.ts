// Reads what users wrote as options: every fault is found, however deep, and named by its path; what is left out gets
// its default.
import { closest, distance } from 'fastest-levenshtein';

/** Says what was expected where a value is wrong; null where it is right. */
export type Rule = (value: unknown) => string | null;

/** An option, or a section of them, whose settings are a `V`. */
export interface Option<V> {
  /** The faults of a value that stands at `path`; `undefined` is never one. */
  check(value: unknown, path: string): string[];
  /** The settings that a value without faults stands for. */
  read(value: any): V;
  /** Paths of the options inside. */
  readonly paths: string[];
}

export type Options = Record<string, Option<any>>;
export type Settings<T extends Options> = { [K in keyof T]: T[K] extends Option<infer V> ? V : never };

/** A single value. */
export const option = <V>(rule: Rule, fallback: V): Option<V> => ({
  check: (value, path) => {
    const expected = value === undefined ? null : rule(value);
    return expected === null ? [] : [`Expected ${path} to be ${expected}, got ${show(value)}.`];
  },
  read: (value) => (value === undefined ? fallback : value),
  paths: [],
});

/** Options by name; others are refused. */
export const section = <T extends Options>(options: T): Option<Settings<T>> => {
  const paths = Object.entries(options).flatMap(([name, { paths: inner }]) => [
    name,
    ...inner.map((path) => `${name}.${path}`),
  ]);
  return {
    check: (value, path) =>
      value === undefined
        ? []
        : (refuseOther(value, path) ??
          Object.entries(value as object).flatMap(([name, inner]) =>
            Object.hasOwn(options, name)
              ? options[name]!.check(inner, join(path, name))
              : [unknownOption(join(path, name), name, Object.keys(options), paths)],
          )),
    read: (value) =>
      Object.fromEntries(
        Object.entries(options).map(([name, inner]) => [name, inner.read(value?.[name])]),
      ) as Settings<T>,
    paths,
  };
};

/** The same option under whatever names users choose. */
export const mapOf = <V>(inner: Option<V>): Option<Record<string, V>> => ({
  check: (value, path) =>
    value === undefined
      ? []
      : (refuseOther(value, path) ??
        Object.entries(value as object).flatMap(([name, one]) => inner.check(one, join(path, name)))),
  read: (value) => Object.fromEntries(Object.entries(value ?? {}).map(([name, one]) => [name, inner.read(one)])),
  paths: [],
});

/** A section that `false` switches off: then its settings are null. */
export const orFalse = <V>(inner: Option<V>): Option<V | null> => ({
  check: (value, path) =>
    value === false || isObject(value) || value === undefined
      ? inner.check(value === false ? undefined : value, path)
      : [`Expected ${path} to be false or an object, got ${show(value)}.`],
  read: (value) => (value === false ? null : inner.read(value)),
  paths: inner.paths,
});

/** The name among `known` that somebody who wrote `name` probably meant. */
export function nearest(name: string, known: string[]): string | null {
  if (!known.length) return null;
  const lower = name.toLowerCase();
  const found = closest(
    lower,
    known.map((other) => other.toLowerCase()),
  );
  const close = distance(lower, found) <= Math.max(2, Math.floor(name.length / 3));
  return close ? known.find((other) => other.toLowerCase() === found)! : null;
}

/** A value for people: short, and without what could be a secret. */
export function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value);
  if (typeof value === 'function') return value.name ? `the function ${value.name}` : 'a function';
  if (typeof value === 'bigint') return `${value}n`;
  if (Array.isArray(value)) return `[${value.slice(0, 5).map(show).join(', ')}${value.length > 5 ? ', …' : ''}]`;
  return isObject(value) ? 'an object' : String(value);
}

function unknownOption(path: string, name: string, known: string[], paths: string[]): string {
  const deeper = paths.find((other) => other.endsWith(`.${name}`));
  const meant = nearest(name, known) ?? deeper;
  return `Unknown option ${path}; ${meant ? `did you mean ${meant}?` : `known are ${known.join(', ')}.`}`;
}

const refuseOther = (value: unknown, path: string): string[] | null =>
  isObject(value) ? null : [`Expected ${path || 'the options'} to be an object, got ${show(value)}.`];

const isObject = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const join = (path: string, name: string): string => (path ? `${path}.${name}` : name);
