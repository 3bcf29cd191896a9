// JSON that says what the value said: what JSON would silently turn into something else is refused.
import { types } from 'node:util';
import { InvalidArgumentError } from '../jobs.errors.js';

/** Most bytes of JSON that an attempt can keep in one place: a step's result, its progress, its partial results. */
export const MAX_JSON_BYTES = 1_048_576;

/**
 * The JSON text of a value, undefined for none.
 * @throws InvalidArgumentError where there is no such text, where it would lose something, or where it is too large
 */
export function exactJson(what: string, value: unknown): string | undefined {
  const text = typeof value === 'object' && value !== null ? objectText(what, value) : plainText(what, value);
  if (text === undefined || Buffer.byteLength(text) <= MAX_JSON_BYTES) return text;
  throw new InvalidArgumentError([
    `Expected ${what} to be at most ${MAX_JSON_BYTES} bytes of JSON, got ${Buffer.byteLength(text)}.`,
  ]);
}

function plainText(what: string, value: unknown): string | undefined {
  const problem = value === undefined ? null : (lostBy(value) ?? (typeof value === 'function' ? 'a function' : null));
  if (problem) throw refusal(what, problem);
  try {
    return JSON.stringify(value);
  } catch (cause) {
    throw unwritable(what, cause);
  }
}

function objectText(what: string, value: object): string | undefined {
  const path: string[] = [];
  const holders: unknown[] = [];
  try {
    return JSON.stringify(value, function (this: unknown, key: string, shown: unknown) {
      while (holders.length && holders.at(-1) !== this) {
        holders.pop();
        path.pop();
      }
      const original = (this as Record<string, unknown>)[key];
      const problem = lostBy(original, shown) ?? (Array.isArray(this) ? lostInArrays(shown) : null);
      if (problem) throw refusal(what, problem, [...path, key].slice(1));
      if (typeof shown === 'object' && shown !== null) {
        holders.push(shown);
        path.push(key);
      }
      return shown;
    });
  } catch (cause) {
    if (cause instanceof InvalidArgumentError) throw cause;
    // Nested too deeply for this walk, but perhaps not for the one without.
    if (cause instanceof RangeError) return plainText(what, value);
    throw unwritable(what, cause);
  }
}

const unwritable = (what: string, cause: unknown): InvalidArgumentError =>
  new InvalidArgumentError([`Expected ${what} to be JSON-serialisable, got a value that is not.`], { cause });

const EMPTIED = [Error, RegExp, URLSearchParams, WeakMap, WeakSet, WeakRef];

/** Names what JSON would change. `shown`: what the value's own toJSON makes of it. */
function lostBy(value: unknown, shown = value): string | null {
  if (typeof shown === 'number' && !Number.isFinite(shown)) return String(shown);
  if (typeof shown === 'bigint') return 'a bigint';
  if (typeof shown === 'symbol') return 'a symbol';
  if (value instanceof Date && Number.isNaN(value.getTime())) return 'an invalid Date';
  if (typeof shown !== 'object' || shown === null) return null;
  if (types.isMap(shown)) return 'a Map';
  if (types.isSet(shown)) return 'a Set';
  if (types.isPromise(shown)) return 'a Promise (a missing await, perhaps)';
  if (types.isAnyArrayBuffer(shown) || ArrayBuffer.isView(shown)) return `a ${shown.constructor.name}`;
  const emptied = EMPTIED.find((type) => shown instanceof type);
  return emptied || types.isNativeError(shown) ? `a value of class ${(emptied ?? Error).name}` : null;
}

const lostInArrays = (shown: unknown): string | null =>
  shown === undefined || typeof shown === 'function' ? `${typeof shown} in an array` : null;

const refusal = (what: string, problem: string, path: string[] = []): InvalidArgumentError =>
  new InvalidArgumentError([
    `Expected ${what} to be a value that JSON can keep, got ${problem}${path.length ? ` at ${path.join('.')}` : ''}.`,
  ]);
