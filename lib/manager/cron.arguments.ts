// What a crontab may consist of, scheduled by hand or declared by a task.
import { check, faultOf, option, required, section, type Option, type Rule } from '../validation.js';
import { MAX_MS, rules } from '../validation.rules.js';
import { JOB_OPTIONS, taskFaults } from './arguments.js';
import { isSchedule, isTimeZone } from './cron.slots.js';

/** The id becomes part of a tag, which has 1,000 bytes at most. */
const MAX_ID_BYTES = 900;

const { queue, partition, priority, maxAttempts, flags, tags, groupId, rateLimit, rateLimitKey, timeoutMs } =
  JOB_OPTIONS;

/** What a crontab's parts must be. */
export const cronRules = {
  id: rules.nameUpTo(MAX_ID_BYTES),
  schedule: ((value) =>
    isSchedule(value)
      ? null
      : 'a crontab expression of 5 or 6 fields that comes true on some day, with no step beyond its field') as Rule,
  timeZone: ((value) => (isTimeZone(value) ? null : "the name of a time zone, such as 'Europe/Berlin'")) as Rule,
};

const timing = {
  schedule: required(cronRules.schedule),
  timeZone: option(cronRules.timeZone, undefined),
  payload: option(rules.anything, undefined),
  backfillMs: option(rules.integer(0, MAX_MS), undefined),
  overlap: option(rules.oneOf('skip', 'queue'), undefined),
};
const task: Option<unknown> = { check: (value) => taskFaults(value), read: (value) => value, paths: [] };

/** The argument of `scheduleCron`. */
const cronSpec = section({
  id: required(cronRules.id),
  task,
  ...timing,
  options: section({
    queue,
    partition,
    priority,
    maxAttempts,
    flags,
    tags,
    groupId,
    rateLimit,
    rateLimitKey,
    timeoutMs,
  }),
});

const described = section({ ...timing, key: option(cronRules.id, undefined) });

/** The `cron` of a task: a schedule alone, or with more to it. */
export const taskCron: Option<unknown> = {
  ...described,
  check: (value, path) => {
    if (value === undefined) return [];
    return typeof value === 'string' ? faultOf(path, value, cronRules.schedule) : described.check(value, path);
  },
};

/** The argument of scheduleCron. @throws InvalidArgumentError */
export const checkCron = (spec: unknown): void => check({}, [cronSpec, spec]);
