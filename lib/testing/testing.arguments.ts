// What the calls of the testing kit take: a misspelt field of a filter would match nothing, or let an expectation pass.
import type { Job } from '../interfaces/job.interface.js';
import { JOB_STATUSES } from '../manager/call.arguments.js';
import { option, section, type Option, type Rule } from '../validation.js';
import { rules } from '../validation.rules.js';

/** Fields of jobs. What each may be is for the filter to say: a value, or a matcher of the test runner. */
const JOB_FIELDS: Record<keyof Job, true> = {
  id: true,
  task: true,
  payload: true,
  status: true,
  priority: true,
  queue: true,
  rateLimitKey: true,
  runAt: true,
  attempts: true,
  maxAttempts: true,
  lastError: true,
  jobKey: true,
  jobKeyMode: true,
  flags: true,
  tags: true,
  groupId: true,
  timeoutMs: true,
  lockedBy: true,
  lockedAt: true,
  revision: true,
  progress: true,
  createdAt: true,
  updatedAt: true,
};

const anything: Option<unknown> = option(rules.anything, undefined);
const knownStatus = rules.oneOf(...JOB_STATUSES);
const status: Rule = Object.assign((value: unknown) => (typeof value === 'string' ? knownStatus(value) : null), {
  choices: JOB_STATUSES,
});
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
  filter: section({
    ...Object.fromEntries(Object.keys(JOB_FIELDS).map((name) => [name, anything])),
    status: option(status, undefined),
  }),
  through: section(through),
  expectation: section({ ...through, times: option(rules.integer(0, 1e9), undefined) }),
};
