// What a crontab may consist of, scheduled by hand or declared by a task.
import type { CronSpec } from '../interfaces/cron.interface.js';
import type { TaskToken } from '../interfaces/task.interface.js';
import { InvalidArgumentError } from '../jobs.errors.js';
import { faultsOf, JOB_OPTION_RULES, rules, type Rule } from './call.arguments.js';
import { isSchedule, isTimeZone } from './cron.slots.js';

/** The id becomes part of a tag, which has 1,000 characters at most. */
const MAX_ID = 900;
const MAX_BACKFILL_MS = 1e12;

const { queue, priority, maxAttempts, flags, tags, groupId, rateLimitKey, timeoutMs } = JOB_OPTION_RULES;
const CRON_JOB_RULES = { queue, priority, maxAttempts, flags, tags, groupId, rateLimitKey, timeoutMs };

/** What a crontab's parts must be. */
export const cronRules = {
  id: ((value) =>
    rules.name(value) === null && (value as string).length <= MAX_ID
      ? null
      : `a string of 1 to ${MAX_ID} characters without NUL and lone surrogates`) as Rule,
  schedule: ((value) =>
    isSchedule(value)
      ? null
      : 'a crontab expression of 5 or 6 fields that comes true on some day, with no step beyond its field') as Rule,
  timeZone: ((value) => (isTimeZone(value) ? null : "the name of a time zone, such as 'Europe/Berlin'")) as Rule,
  backfillMs: rules.integer(0, MAX_BACKFILL_MS),
  overlap: rules.oneOf('skip', 'queue'),
};

const { id, schedule, ...optional } = cronRules;
const SPEC_RULES = {
  id,
  task: rules.anything,
  schedule,
  ...optional,
  payload: rules.anything,
  options: rules.anything,
};

/** The argument of scheduleCron, but for its task and payload. @throws InvalidArgumentError */
export function checkCron(spec: CronSpec & { task: string | TaskToken }): void {
  if (typeof spec !== 'object' || spec === null) {
    throw new InvalidArgumentError(['Expected { id, task, schedule } of a crontab, got no object.']);
  }
  const { options = {} } = spec;
  const task = typeof spec.task === 'object' ? spec.task?.task : spec.task;
  const faults = [
    ...faultsOf({ id, task: rules.name, schedule }, { id: spec.id, task, schedule: spec.schedule }, { required: true }),
    ...faultsOf(SPEC_RULES, { ...spec, id: undefined, schedule: undefined }),
    ...(typeof options === 'object' && options !== null
      ? faultsOf(CRON_JOB_RULES, options, { path: 'options.' })
      : ['Expected options to be an object.']),
  ];
  if (faults.length) throw new InvalidArgumentError(faults);
}
