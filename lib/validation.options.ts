// Options of a kind of their own: a connection, keys, batches, and what may be a function.
import { ifGiven, option, required, section, show, type Option, type Rule } from './validation.js';
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

/** Never shows a key. */
export const encryptionKeys: Rule = (value) => {
  const expected = 'an array of { id, key }, each id once, each key 32 bytes (a Buffer, base64 or hex)';
  if (!Array.isArray(value) || value.length === 0) return expected;
  const ids = new Set(value.map((entry: { id?: unknown } | null) => entry?.id));
  return ids.size === value.length && value.every(isEncryptionKey) ? null : expected;
};
const isEncryptionKey = (entry: unknown): boolean => {
  const { id, key, ...others } = Object(entry) as Record<string, unknown>;
  return rules.name(id) === null && keyBytes(key)?.length === 32 && Object.keys(others).length === 0;
};
/** A key's bytes, of a Buffer, base64 or hex. */
export const keyBytes = (key: unknown): Uint8Array | null => {
  if (key instanceof Uint8Array) return key;
  if (typeof key !== 'string') return null;
  if (/^[0-9a-f]{64}$/i.test(key)) return Buffer.from(key, 'hex');
  return /^[\w+/-]{43}=?$/.test(key) ? Buffer.from(key, 'base64') : null;
};
