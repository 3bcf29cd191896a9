// Pages by keyset: a cursor names the last item seen, so pages stay stable while jobs come and go.
import type { Page, PageRequest } from '../interfaces/job.interface.js';
import { InvalidArgumentError } from '../jobs.errors.js';
import { check, rules } from './call.arguments.js';

const DEFAULT_LIMIT = 50;
const MAX_LIMIT = 1_000;

/** @throws InvalidArgumentError */
export function readPageRequest(page: PageRequest = {}): { limit: number; cursor: string | null } {
  const { limit = DEFAULT_LIMIT, cursor = null } = page;
  check({ limit: [limit, rules.integer(1, MAX_LIMIT)], cursor: [cursor, rules.optional(rules.name)] });
  return { limit, cursor };
}

/** The keys in a cursor, `length` of them; nulls for the first page. @throws InvalidArgumentError */
export function readCursor(cursor: string | null, length: number): (string | null)[] {
  if (cursor === null) return Array<null>(length).fill(null);
  try {
    const keys = JSON.parse(Buffer.from(cursor, 'base64url').toString()) as unknown;
    if (Array.isArray(keys) && keys.length === length && keys.every((key) => typeof key === 'string')) return keys;
  } catch {
    // falls through to the refusal
  }
  throw new InvalidArgumentError(['Expected cursor to be one that this list returned; leave it out for page one.']);
}

/** A page of rows of which one more than `limit` was asked for. */
export function pageOf<Row, T>(
  rows: Row[],
  limit: number,
  map: (row: Row) => T,
  keysOf: (row: Row) => string[],
): Page<T> {
  const shown = rows.slice(0, limit);
  const last = rows.length > limit ? shown.at(-1) : undefined;
  return {
    items: shown.map(map),
    cursor: last === undefined ? null : Buffer.from(JSON.stringify(keysOf(last))).toString('base64url'),
  };
}
