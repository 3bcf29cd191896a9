// What calls of the testing kit may be given. A filter that can match nothing, or everything, would let an expectation pass
// that checks nothing.
import { inspect, types } from 'node:util';
import { InvalidArgumentError } from '../jobs.errors.js';
import type { Job } from '../interfaces/job.interface.js';
import { faultsOf, rules, type Rule } from '../manager/call.arguments.js';
import { isMatcher, type EnqueuedFilter } from './enqueued.jobs.js';

const STATUSES = 'available scheduled blocked running snoozed exhausted cancelled completed'.split(' ');

const orPattern =
  (rule: Rule): Rule =>
  (value) =>
    isMatcher(value) || value instanceof RegExp ? null : rule(value);

const task: Rule = (value) =>
  rules.name(typeof value === 'object' ? (value as { task?: unknown } | null)?.task : value);

const FILTER_RULES: Record<keyof Job, Rule> = {
  id: orPattern(rules.anything),
  task: orPattern(task),
  payload: rules.anything,
  status: orPattern(rules.oneOf(...STATUSES)),
  priority: rules.anything,
  queue: rules.anything,
  rateLimitKey: rules.anything,
  runAt: rules.anything,
  attempts: rules.anything,
  maxAttempts: rules.anything,
  lastError: rules.anything,
  jobKey: rules.anything,
  jobKeyMode: rules.anything,
  flags: rules.anything,
  tags: rules.anything,
  groupId: rules.anything,
  timeoutMs: rules.anything,
  lockedBy: rules.anything,
  lockedAt: rules.anything,
  revision: rules.anything,
  progress: rules.anything,
  createdAt: rules.anything,
  updatedAt: rules.anything,
};

const boolean: Rule = (value) => (typeof value === 'boolean' ? null : 'true or false');
const manager: Rule = (value) =>
  typeof (value as { query?: unknown } | null)?.query === 'function' ? null : 'something with query(text, values)';

const OPTION_RULES = {
  drain: {
    maxJobs: rules.positive,
    timeoutMs: rules.duration,
    tasks: rules.names,
    queues: rules.names,
  },
  inline: { onFailure: rules.oneOf('throw', 'record') },
  clear: { configuration: boolean },
  enqueued: { manager },
  expectEnqueued: { manager, times: rules.integer(0, 1_000_000) },
  expectNotEnqueued: { manager },
} satisfies Record<string, Record<string, Rule>>;

/** @throws InvalidArgumentError */
export function checkOptions(method: keyof typeof OPTION_RULES, options: object): void {
  throwIfAny(faultsOf(OPTION_RULES[method], options));
}

/** @throws InvalidArgumentError */
export function checkFilter(filter: EnqueuedFilter): void {
  throwIfAny([
    ...faultsOf(FILTER_RULES, filter, { path: 'filter.' }),
    ...Object.entries(filter).flatMap(([key, value]) => foreignIn(value, `filter.${key}`)),
  ]);
}

/** What no job can hold: it would match nothing, or, without fields of its own, everything. */
function foreignIn(value: unknown, path: string): string[] {
  if (isMatcher(value) || value instanceof RegExp || value instanceof Date) return [];
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

function throwIfAny(faults: string[]): void {
  if (faults.length) throw new InvalidArgumentError(faults);
}
