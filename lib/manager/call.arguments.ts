// What calls may be given: every fault of a call is found before anything happens, and named in one error.
import type { AddJobOptions, ClaimedJob, HistoryFilter, JobFilter } from '../interfaces/job.interface.js';
import { InvalidArgumentError, InvalidWorkerIdError } from '../jobs.errors.js';
import { isUuid } from './job.id.js';

const INT4_MAX = 2_147_483_647;
const MAX_ATTEMPTS = 32_767;
const MIN_WORKER_ID = 10;
const MAX_NAME = 1_000;
const MAX_PARENTS = 1_000;
const MAX_SEARCH = 10_000;
/** Dates beyond need another notation in SQL; nobody waits that long. */
const LAST_DATE = Date.UTC(9999, 11, 31);
const FIRST_DATE = Date.UTC(1, 0, 1);

/** A rule returns what it expected where the value does not meet it. */
export type Rule = (value: unknown) => string | null;

const integer =
  (min: number, max: number): Rule =>
  (value) =>
    Number.isInteger(value) && (value as number) >= min && (value as number) <= max
      ? null
      : `an integer from ${min} to ${max}`;

const name: Rule = (value) =>
  typeof value === 'string' && value.length > 0 && value.length <= MAX_NAME && isStorable(value)
    ? null
    : `a string of 1 to ${MAX_NAME} characters without NUL and lone surrogates`;

const names: Rule = (value) =>
  Array.isArray(value) && value.every((entry) => name(entry) === null)
    ? null
    : 'an array of non-empty strings without NUL and lone surrogates';

const date: Rule = (value) =>
  value instanceof Date && value.getTime() >= FIRST_DATE && value.getTime() <= LAST_DATE
    ? null
    : 'a valid Date between the years 1 and 9999';

const duration: Rule = (value) =>
  typeof value === 'number' && value >= 0 && value <= 1e12 ? null : 'a number of milliseconds from 0 to 1e12';

const oneOf =
  (...allowed: string[]): Rule =>
  (value) =>
    allowed.includes(value as string) ? null : `one of ${allowed.map((entry) => `'${entry}'`).join(', ')}`;

const anything: Rule = () => null;

/** Rules for the options of a job. */
export const JOB_OPTION_RULES: Record<keyof AddJobOptions, Rule> = {
  queue: name,
  priority: integer(-INT4_MAX - 1, INT4_MAX),
  runAt: date,
  delayMs: duration,
  maxAttempts: integer(1, MAX_ATTEMPTS),
  jobKey: name,
  jobKeyMode: oneOf('replace', 'preserve_run_at', 'unsafe_dedupe'),
  flags: names,
  tags: names,
  groupId: name,
  dependsOn: (value) =>
    Array.isArray(value) && value.length <= MAX_PARENTS && value.every(isUuid)
      ? null
      : `an array of at most ${MAX_PARENTS} job ids (UUIDs)`,
  onParentFailure: oneOf('cancel', 'run', 'wait'),
  rateLimitKey: name,
  timeoutMs: integer(1, INT4_MAX),
  manager: (value) =>
    typeof (value as { query?: unknown } | null)?.query === 'function' ? null : 'something with query(text, values)',
  notify: (value) => (typeof value === 'boolean' ? null : 'true or false'),
};

/** Options of addJob and of each spec of addJobs. @throws InvalidArgumentError */
export function checkAddOptions(task: unknown, options: AddJobOptions): void {
  const problems = [
    ...problemOf('task', task, name),
    ...faultsOf(JOB_OPTION_RULES, options),
    ...(options.runAt && options.delayMs !== undefined ? ['Expected runAt or delayMs, got both.'] : []),
    ...(options.onParentFailure && !options.dependsOn?.length
      ? ['Expected dependsOn beside onParentFailure, got none.']
      : []),
    ...(options.jobKeyMode && options.jobKey === undefined ? ['Expected a jobKey beside jobKeyMode, got none.'] : []),
  ];
  refuse(problems);
}

const optional =
  (rule: Rule): Rule =>
  (value) =>
    value === undefined || value === null ? null : rule(value);

const text: Rule = (value) =>
  typeof value === 'string' && value.length <= MAX_SEARCH && isStorable(value)
    ? null
    : `a string of at most ${MAX_SEARCH} characters without NUL and lone surrogates`;

const JOB_STATUSES = 'available scheduled blocked running snoozed exhausted cancelled completed'.split(' ');
const RECORD_STATUSES = 'completed failed partial_success snoozed cancelled'.split(' ');
const SINCE_AND_UNTIL = { from: optional(date), to: optional(date) };

/** Filters of listJobs. */
const JOB_FILTER_RULES: Record<keyof JobFilter, Rule> = {
  task: optional(name),
  queue: optional(name),
  status: optional(oneOf(...JOB_STATUSES)),
  tag: optional(name),
  groupId: optional(name),
  flag: optional(name),
  search: optional(text),
  ...SINCE_AND_UNTIL,
};

/** Filters of listHistory. */
const HISTORY_FILTER_RULES: Record<keyof HistoryFilter, Rule> = {
  jobId: optional((value) => rules.uuid(value)),
  task: optional(name),
  status: optional(oneOf(...RECORD_STATUSES)),
  workerId: optional(text),
  ...SINCE_AND_UNTIL,
};

/** @throws InvalidArgumentError */
export const checkJobFilter = (filter: JobFilter): void => refuse(faultsOf(JOB_FILTER_RULES, filter));

/** @throws InvalidArgumentError */
export const checkHistoryFilter = (filter: HistoryFilter): void => refuse(faultsOf(HISTORY_FILTER_RULES, filter));

/** The faults of options, each by its rule; what no rule is for is one, what is undefined only where it is `required`. */
export function faultsOf(known: Record<string, Rule>, options: object, { path = '', required = false } = {}): string[] {
  return Object.entries(options).flatMap(([key, value]) => {
    const rule = Object.hasOwn(known, key) ? known[key] : undefined;
    if (!rule) return [`Unknown option "${path}${key}"; known are ${Object.keys(known).join(', ')}.`];
    return value === undefined && !required ? [] : problemOf(path + key, value, rule);
  });
}

const problemOf = (key: string, value: unknown, rule: Rule): string[] => {
  const expected = rule(value);
  return expected ? [`Expected ${key} to be ${expected}, got ${show(value)}.`] : [];
};

/** Checks named values: `check({ limit: [limit, rules.positive] })`. @throws InvalidArgumentError */
export function check(values: Record<string, [value: unknown, rule: Rule]>): void {
  refuse(Object.entries(values).flatMap(([key, [value, rule]]) => problemOf(key, value, rule)));
}

/** Rules for `check`; `optional` lets undefined and null pass. */
export const rules = {
  integer,
  name,
  names,
  date,
  duration,
  oneOf,
  anything,
  positive: integer(1, INT4_MAX),
  concurrency: ((value) =>
    value === Infinity || rules.positive(value) === null ? null : 'a positive integer or Infinity') as Rule,
  claimedJobs: ((value) =>
    Array.isArray(value) && value.every((job: Partial<ClaimedJob> | null) => job?.id && job.fence)
      ? null
      : 'an array of jobs that getJobs returned') as Rule,
  uuid: ((value) => (isUuid(value) ? null : 'a job id (UUID)')) as Rule,
  uuids: ((value) => (Array.isArray(value) && value.every(isUuid) ? null : 'an array of job ids (UUIDs)')) as Rule,
  optional,
};

/** @throws InvalidWorkerIdError */
export function checkWorkerId(workerId: unknown): void {
  if (typeof workerId === 'string' && workerId.length >= MIN_WORKER_ID && isStorable(workerId)) return;
  throw new InvalidWorkerIdError(
    `Expected a worker id of at least ${MIN_WORKER_ID} characters, got ${show(workerId)}. Use something unique to ` +
      'the process, such as a UUID: two workers with one id could settle each other’s jobs.',
  );
}

function refuse(problems: string[]): void {
  if (problems.length) throw new InvalidArgumentError(problems);
}

/** PostgreSQL's text knows neither NUL nor lone surrogates. */
const isStorable = (text: string): boolean => !text.includes('\0') && !/\p{Surrogate}/u.test(text);

function show(value: unknown): string {
  if (typeof value === 'string') return value.length > 60 ? `"${value.slice(0, 60)}…"` : `"${value}"`;
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? 'an invalid Date' : value.toISOString();
  if (Array.isArray(value)) return `[${value.slice(0, 5).map(show).join(', ')}]`;
  return typeof value === 'object' && value !== null ? 'an object' : String(value);
}
