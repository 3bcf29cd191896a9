// Options of a kind of their own: a connection, and what may be a function.
import { ifGiven, option, required, section, show, type Option } from './validation.js';
import { rules } from './validation.rules.js';

/** A URL is never shown: it may hold a password. */
export function connectionOption<V>(configuration: string): Option<V | undefined> {
  const expected = `a PostgreSQL URL (postgres://…) or ${configuration}`;
  const fault = (value: unknown): string | null => {
    if (typeof value === 'string')
      return isPostgresUrl(value) ? null : value ? 'a string that is no such URL' : 'an empty string';
    if (typeof value !== 'object' || value === null || Array.isArray(value)) return show(value);
    const misnamed = Object.entries({ url: 'connectionString', username: 'user' }).find(([name]) => name in value);
    return misnamed ? `one with "${misnamed[0]}", which pg calls "${misnamed[1]}"` : null;
  };
  return {
    check: (value, path) => {
      const got = value === undefined ? null : fault(value);
      return got === null ? [] : [`Expected ${path} to be ${expected}, got ${got}.`];
    },
    read: (value) => value,
    paths: [],
  };
}

/** A function must answer at once: a promise of a delay would be taken for no answer. */
export function orFunction<V>(inner: Option<V>): Option<V> {
  const check = (value: unknown, path: string): string[] => {
    if (typeof value !== 'function') return inner.check(value, path);
    const isAsync = value.constructor.name === 'AsyncFunction';
    return isAsync ? [`Expected ${path} to be a function that returns at once, got an async function.`] : [];
  };
  return { ...inner, check };
}

const MAX_BATCH = 1_000;
const MAX_BATCH_WAIT_MS = 600_000;

/** How a task gathers jobs for one call. */
export const batchOption = ifGiven(
  section({
    size: required(rules.integer(1, MAX_BATCH)),
    waitMs: option(rules.integer(0, MAX_BATCH_WAIT_MS), undefined),
    by: orFunction(option(rules.optional(rules.oneOf('queue', 'partition')), undefined)),
  }),
);

const isPostgresUrl = (text: string): boolean => /^(postgres(ql)?:\/\/|socket:|\/)/i.test(text);
