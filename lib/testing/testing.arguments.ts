// What the calls of the testing kit take. A filter that can match nothing, or everything, would let an expectation pass
// that checks nothing.
import { inspect, types } from 'node:util';
import type { Job } from '../interfaces/job.interface.js';
import { JOB_STATUSES, taskFaults } from '../manager/arguments.js';
import { isRecord, option, section, type Option, type Rule } from '../validation.js';
import { INT4_MAX, rules } from '../validation.rules.js';
import { isMatcher } from './enqueued.jobs.js';

const isPattern = (value: unknown): value is RegExp => value instanceof RegExp;

/** One rule for each field of a job: what a job can hold there, or a matcher of the test runner. */
const field = (rule: Rule): Option<unknown> =>
  option(
    Object.assign((value: unknown) => (isMatcher(value) ? null : rule(value)), { choices: rule.choices }),
    undefined,
  );

/** Patterns are for texts. */
const textLike = (rule: Rule): Option<unknown> => {
  const expected = (value: unknown): string | null => {
    const fault = isPattern(value) ? null : rule(value);
    return fault && `${fault}, or a regular expression`;
  };
  return field(Object.assign(expected, { choices: rule.choices }));
};

const orNull =
  (rule: Rule): Rule =>
  (value) =>
    value === null ? null : rule(value) && `${rule(value)}, or null`;

const whole = field(rules.integer(-INT4_MAX - 1, INT4_MAX));
const date = field(((value) =>
  value instanceof Date && !Number.isNaN(value.getTime()) ? null : 'a valid Date') as Rule);
const text = textLike(rules.string);
const textOrNull = textLike(orNull(rules.string));
const texts = field(((value) =>
  Array.isArray(value) && value.every((one) => typeof one === 'string' || isPattern(one) || isMatcher(one))
    ? null
    : 'an array of strings') as Rule);
const anything: Option<unknown> = option(rules.anything, undefined);
const task: Option<unknown> = {
  ...anything,
  check: (value) => (value === undefined || isMatcher(value) || isPattern(value) ? [] : taskFaults(value)),
};

const FIELDS: Record<keyof Job, Option<unknown>> = {
  id: textLike(rules.uuid),
  task,
  payload: anything,
  status: textLike(rules.oneOf(...JOB_STATUSES)),
  priority: whole,
  queue: textOrNull,
  partition: textOrNull,
  rateLimitKey: textOrNull,
  rateLimits: anything,
  runAt: date,
  attempts: whole,
  maxAttempts: whole,
  lastError: textOrNull,
  jobKey: textOrNull,
  jobKeyMode: textOrNull,
  flags: texts,
  tags: texts,
  groupId: text,
  dependsOn: texts,
  timeoutMs: field(orNull(rules.integer(0, INT4_MAX))),
  lockedBy: textOrNull,
  lockedAt: field(orNull((value) => (value instanceof Date ? null : 'a Date'))),
  revision: whole,
  progress: anything,
  createdAt: date,
  updatedAt: date,
};
const fields = section(FIELDS);

/** Which jobs are looked for: fields of jobs, with values that a job can hold. */
export const testingFilter: Option<unknown> = {
  ...fields,
  check: (filter, path) => [
    ...fields.check(filter, path),
    ...(isRecord(filter) ? Object.entries(filter).flatMap(([name, value]) => foreignIn(value, name)) : []),
  ],
};

const through = { manager: option(rules.executor, undefined) };

export const testingOptions = {
  create: section({ instance: option(rules.name, undefined) }),
  inline: section({ onFailure: option(rules.oneOf('throw', 'record'), 'throw') }),
  drain: section({
    maxJobs: option(rules.wait, undefined),
    timeoutMs: option(rules.wait, undefined),
    tasks: option(rules.names, undefined),
    queues: option(rules.laneNames, undefined),
  }),
  clear: section({ configuration: option(rules.flag, false) }),
  through: section(through),
  expectation: section({ ...through, times: option(rules.integer(0, 1e9), undefined) }),
};

/** What no job can hold: it would match nothing, or, without fields of its own, everything. */
function foreignIn(value: unknown, path: string): string[] {
  if (isMatcher(value) || isPattern(value) || value instanceof Date) return [];
  const isNoNumber = typeof value === 'number' && !Number.isFinite(value);
  if (isNoNumber || ['bigint', 'function', 'symbol'].includes(typeof value) || isForeign(value)) {
    return [
      `Expected ${path} to be JSON data, a Date, a regular expression or a matcher, got ${inspect(value, { depth: 0 })}.`,
    ];
  }
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([key, inner]) => foreignIn(inner, `${path}.${key}`));
}

const isForeign = (value: unknown): boolean =>
  types.isMap(value) || types.isSet(value) || types.isPromise(value) || ArrayBuffer.isView(value);
