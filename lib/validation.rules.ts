// The rules for single values, each in one place, so that the same wrong value is refused with the same words everywhere.
import { isRecord, type Rule } from './validation.js';

export const INT4_MAX = 2_147_483_647;
export const MAX_ATTEMPTS = 32_767;
/** About 31 years. */
export const MAX_MS = 1e12;
/** PostgreSQL cuts longer names, silently. */
const MAX_SCHEMA_BYTES = 63;
/** Node's timers fire at once beyond 2^31 ms; a little less leaves room for what is added to it. */
const MAX_TIMER_MS = 2_147_000_000;
/** PostgreSQL's indexes hold no longer ones, whatever the characters. */
const MAX_NAME_BYTES = 1_000;
const MAX_PATHS = 20;
const MAX_JOB_KEY_BYTES = 2_000;
const MAX_REASON = 1_000;
const MAX_TEXT = 10_000;
/** Dates beyond need another notation in SQL. */
const LAST_DATE = Date.UTC(9999, 11, 31);
const FIRST_DATE = Date.UTC(1, 0, 1);
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

export const isUuid = (value: unknown): value is string => typeof value === 'string' && UUID.test(value);

/** PostgreSQL's text knows neither NUL nor lone surrogates. */
export const isStorable = (text: string): boolean => !text.includes('\0') && !/\p{Surrogate}/u.test(text);

const integer =
  (min: number, max: number): Rule =>
  (value) =>
    Number.isInteger(value) && (value as number) >= min && (value as number) <= max
      ? null
      : `an integer from ${min} to ${max}`;

const isName = (value: unknown, maxBytes = MAX_NAME_BYTES): boolean =>
  typeof value === 'string' && value !== '' && Buffer.byteLength(value) <= maxBytes && isStorable(value);

/** The lane of a job is made of the names of its queue and its rate limit, with control characters between them. */
const isLaneName = (value: unknown): boolean => isName(value) && !/[^\u0020-\uffff]/.test(value as string);

const isPath = (value: unknown): boolean =>
  value === 'queue' ||
  value === 'partition' ||
  (typeof value === 'string' && value.length <= MAX_NAME_BYTES && /^payload(\.[^.]+)*$/.test(value));

const ofName = (maxBytes: number): string => `of 1 to ${maxBytes} bytes of UTF-8 without NUL and lone surrogates`;
const OF_LANE_NAME = `of 1 to ${MAX_NAME_BYTES} bytes of UTF-8 without control characters and lone surrogates`;

/** A string that goes into an index. */
const nameUpTo =
  (maxBytes: number): Rule =>
  (value) =>
    isName(value, maxBytes) ? null : `a string ${ofName(maxBytes)}`;

const MAX_PARTITION_CHARS = 200;
const MAX_PARTITION_BYTES = 600;

const partition: Rule = (value) =>
  isLaneName(value) &&
  (value as string).length <= MAX_PARTITION_CHARS &&
  Buffer.byteLength(value as string) <= MAX_PARTITION_BYTES
    ? null
    : `a string of 1 to ${MAX_PARTITION_CHARS} characters and at most ${MAX_PARTITION_BYTES} bytes of UTF-8 without control characters and lone surrogates`;

const listOf =
  (fits: (value: unknown) => boolean, expected: string): Rule =>
  (value) =>
    Array.isArray(value) && value.every((entry) => fits(entry)) ? null : `an array of strings ${expected}`;

const name = nameUpTo(MAX_NAME_BYTES);

const oneOf = (...choices: string[]): Rule =>
  Object.assign(
    (value: unknown) =>
      choices.includes(value as string) ? null : `one of ${choices.map((entry) => `'${entry}'`).join(', ')}`,
    { choices },
  );

const positive = integer(1, INT4_MAX);

export const rules = {
  integer,
  name,
  oneOf,
  positive,
  anything: (() => null) as Rule,
  nameUpTo,
  names: listOf((value) => isName(value), ofName(MAX_NAME_BYTES)),
  /** Of a queue, or the key of a rate limit. */
  laneName: ((value) => (isLaneName(value) ? null : `a string ${OF_LANE_NAME}`)) as Rule,
  laneNames: listOf(isLaneName, OF_LANE_NAME),
  partition,
  jobKey: nameUpTo(MAX_JOB_KEY_BYTES),
  jobKeys: listOf((value) => isName(value, MAX_JOB_KEY_BYTES), ofName(MAX_JOB_KEY_BYTES)),
  /** What jobs are compared by. */
  uniqueBy: ((value) =>
    Array.isArray(value) && value.length > 0 && value.length <= MAX_PATHS && value.every(isPath)
      ? null
      : `an array of 1 to ${MAX_PATHS} of 'payload', 'queue', 'partition' and paths of the payload such as 'payload.user.id'`) as Rule,
  /** The length of a window. */
  window: ((value) =>
    typeof value === 'number' && value >= 1 && value <= MAX_MS
      ? null
      : 'a number of milliseconds from 1 to 1e12') as Rule,
  /** Why something was done by hand. */
  reason: ((value) =>
    typeof value === 'string' && value !== '' && value.length <= MAX_REASON && isStorable(value)
      ? null
      : `a string of 1 to ${MAX_REASON} characters without NUL and lone surrogates`) as Rule,
  text: ((value) =>
    typeof value === 'string' && value.length <= MAX_TEXT && isStorable(value)
      ? null
      : `a string of at most ${MAX_TEXT} characters without NUL and lone surrogates`) as Rule,
  string: ((value) => (typeof value === 'string' ? null : 'a string')) as Rule,
  strings: ((value) =>
    Array.isArray(value) && value.every((entry) => typeof entry === 'string') ? null : 'an array of strings') as Rule,
  list: ((value) => (Array.isArray(value) ? null : 'an array')) as Rule,
  flag: ((value) => (typeof value === 'boolean' ? null : 'true or false')) as Rule,
  callable: ((value) => (typeof value === 'function' ? null : 'a function')) as Rule,
  between: ((min: number, max: number) => (value: unknown) =>
    typeof value === 'number' && value >= min && value <= max ? null : `a number from ${min} to ${max}`) as (
    min: number,
    max: number,
  ) => Rule,
  date: ((value) =>
    value instanceof Date && value.getTime() >= FIRST_DATE && value.getTime() <= LAST_DATE
      ? null
      : 'a valid Date between the years 1 and 9999') as Rule,
  duration: ((value) =>
    typeof value === 'number' && value >= 0 && value <= MAX_MS
      ? null
      : 'a number of milliseconds from 0 to 1e12') as Rule,
  /** How long a call waits: `Infinity` is as long as it takes. */
  wait: ((value) =>
    typeof value === 'number' && value >= 0 ? null : 'a number of milliseconds of at least 0, or Infinity') as Rule,
  /** An interval that a timer of Node can hold. */
  timer: (min = 0): Rule => integer(min, MAX_TIMER_MS),
  /** A part of something. */
  share: ((value) =>
    typeof value === 'number' && value > 0 && value <= 1 ? null : 'a number above 0 and up to 1') as Rule,
  concurrency: ((value) =>
    value === Infinity || positive(value) === null ? null : `an integer from 1 to ${INT4_MAX}, or Infinity`) as Rule,
  uuid: ((value) => (isUuid(value) ? null : 'a job id (UUID)')) as Rule,
  uuids: ((value) => (Array.isArray(value) && value.every(isUuid) ? null : 'an array of job ids (UUIDs)')) as Rule,
  schema: ((value) => {
    if (typeof value === 'string' && value.startsWith('pg_')) return 'a name that PostgreSQL does not keep for itself';
    return isName(value, MAX_SCHEMA_BYTES) ? null : `a string of 1 to ${MAX_SCHEMA_BYTES} bytes`;
  }) as Rule,
  executor: ((value) =>
    typeof (value as { query?: unknown } | null)?.query === 'function'
      ? null
      : 'something with query(text, values)') as Rule,
  signal: ((value) =>
    isRecord(value) && typeof value.aborted === 'boolean' && typeof value.addEventListener === 'function'
      ? null
      : 'an AbortSignal') as Rule,
  dataSource: ((value) => (isRecord(value) && 'driver' in value ? null : 'a TypeORM DataSource')) as Rule,
  /** `undefined` and null pass. */
  optional: (rule: Rule): Rule =>
    Object.assign((value: unknown) => (value === undefined || value === null ? null : rule(value)), {
      choices: rule.choices,
    }),
};
