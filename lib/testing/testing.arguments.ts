// What the calls of the testing kit take. A filter that can match nothing, or everything, would let an expectation pass
// that checks nothing.
import { inspect, types } from 'node:util';
import type { Job } from '../interfaces/job.interface.js';
import { JOB_STATUSES, taskFaults } from '../manager/call.arguments.js';
import { isRecord, option, section, type Option, type Rule } from '../validation.js';
import { rules } from '../validation.rules.js';
import { isMatcher } from './enqueued.jobs.js';

const isPattern = (value: unknown): boolean => isMatcher(value) || value instanceof RegExp;

/** What each field may be is for the filter to say: a value, a pattern, or a matcher of the test runner. */
const anything: Option<unknown> = option(rules.anything, undefined);
const knownStatus = rules.oneOf(...JOB_STATUSES);
const status: Rule = Object.assign((value: unknown) => (isPattern(value) ? null : knownStatus(value)), {
  choices: JOB_STATUSES,
});
const task: Option<unknown> = {
  ...anything,
  check: (value) => (value === undefined || isPattern(value) ? [] : taskFaults(value)),
};

const FIELDS: Record<keyof Job, Option<unknown>> = {
  id: anything,
  task,
  payload: anything,
  status: option(status, undefined),
  priority: anything,
  queue: anything,
  rateLimitKey: anything,
  runAt: anything,
  attempts: anything,
  maxAttempts: anything,
  lastError: anything,
  jobKey: anything,
  jobKeyMode: anything,
  flags: anything,
  tags: anything,
  groupId: anything,
  dependsOn: anything,
  timeoutMs: anything,
  lockedBy: anything,
  lockedAt: anything,
  revision: anything,
  progress: anything,
  createdAt: anything,
  updatedAt: anything,
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
  if (isPattern(value) || value instanceof Date) return [];
  if (['bigint', 'function', 'symbol'].includes(typeof value) || isForeign(value)) {
    return [
      `Expected ${path} to be JSON data, a Date, a regular expression or a matcher, got ${inspect(value, { depth: 0 })}.`,
    ];
  }
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([key, inner]) => foreignIn(inner, `${path}.${key}`));
}

const isForeign = (value: unknown): boolean =>
  types.isMap(value) || types.isSet(value) || types.isPromise(value) || ArrayBuffer.isView(value);
