// Pages by keyset: a cursor names the last item seen, so pages stay stable while jobs come and go.
import type { Page, PageRequest } from '../interfaces/report.interface.js';
import { InvalidArgumentError } from '../jobs.errors.js';
import { isMalformed } from '../storage/database.errors.js';
import { check, option, section } from '../validation.js';
import { isUuid, rules } from '../validation.rules.js';

const DEFAULT_LIMIT = 50;
const MAX_LIMIT = 1_000;
/** Of the longest key, each character of it escaped. */
const MAX_CURSOR_BYTES = 10_000;

const pageRequest = section({
  limit: option(rules.integer(1, MAX_LIMIT), DEFAULT_LIMIT),
  cursor: option<string | null>(rules.optional(rules.nameUpTo(MAX_CURSOR_BYTES)), null),
});

/** @throws InvalidArgumentError */
export function readPageRequest(page?: PageRequest): { limit: number; cursor: string | null } {
  check({}, [pageRequest, page]);
  return pageRequest.read(page);
}

/** What a cursor's keys must look like. */
export const keyRules = {
  uuid: isUuid,
  count: (key: unknown): boolean => typeof key === 'string' && /^\d{1,18}$/.test(key),
  /** As PostgreSQL printed it, in whatever style. */
  time: (key: unknown): boolean => typeof key === 'string' && /^[\w :.,/+-]{1,64}$/.test(key),
};

/** The keys in a cursor, each by its rule; nulls for the first page. @throws InvalidArgumentError */
export function readCursor(cursor: string | null, ...keys: ((key: unknown) => boolean)[]): (string | null)[] {
  if (cursor === null) return keys.map(() => null);
  try {
    const found = JSON.parse(Buffer.from(cursor, 'base64url').toString()) as unknown;
    if (Array.isArray(found) && found.length === keys.length && keys.every((fits, index) => fits(found[index])))
      return found as string[];
  } catch {
    // falls through to the refusal
  }
  throw wrongCursor();
}

/** A time that PostgreSQL cannot read comes from a made-up cursor. @throws InvalidArgumentError */
export const refusingCursor = <T>(rows: Promise<T>): Promise<T> =>
  rows.catch((error: unknown) => {
    throw isMalformed(error) ? wrongCursor() : error;
  });

const wrongCursor = (): InvalidArgumentError =>
  new InvalidArgumentError(['Expected cursor to be one that this list returned; leave it out for page one.']);

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
