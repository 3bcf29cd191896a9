// What the calls of a JobManager may be given: every object of options by the names and rules of its parts.
import type { AddJobOptions, ClaimedJob, ClaimOptions } from '../interfaces/job.interface.js';
import type { HistoryFilter, JobFilter } from '../interfaces/report.interface.js';
import type { TaskToken } from '../interfaces/task.interface.js';
import { InvalidWorkerIdError } from '../jobs.errors.js';
import {
  faultOf,
  ifGiven,
  isRecord,
  listOf,
  nullable,
  option,
  refuseCall,
  required,
  section,
  show,
  type Rule,
} from '../validation.js';
import { INT4_MAX, isStorable, isUuid, MAX_ATTEMPTS, MAX_MS, rules } from '../validation.rules.js';
import { partitionOptions, queueOptions } from './queue.settings.js';
import { jobLimits, limitConflicts } from './rate.limits.js';

const MIN_WORKER_ID = 10;
const MAX_PARENTS = 1_000;
const MAX_BATCH = 10_000;
const MAX_AGE_MS = 1e14;

const given = (rule: Rule) => option<any>(rule, undefined);
/** `null` counts as left out. */
const orNull = (rule: Rule) => given(rules.optional(rule));

export const priority = rules.integer(-INT4_MAX - 1, INT4_MAX);
export const attempts = rules.integer(1, MAX_ATTEMPTS);

const parents: Rule = (value) =>
  Array.isArray(value) && value.length <= MAX_PARENTS && value.every(isUuid)
    ? null
    : `an array of at most ${MAX_PARENTS} job ids (UUIDs)`;

const claimedJob: Rule = (value) => (isRecord(value) && value.id && value.fence ? null : 'a job that getJobs returned');

/** What `addJob` may say of a job, wherever it is described: also in `addJobs`, and in parts by crontabs. */
export const JOB_OPTIONS = {
  queue: orNull(rules.laneName),
  partition: orNull(rules.partition),
  priority: given(priority),
  runAt: given(rules.date),
  delayMs: given(rules.duration),
  maxAttempts: given(attempts),
  jobKey: given(rules.jobKey),
  jobKeyMode: given(rules.oneOf('replace', 'preserve_run_at', 'unsafe_dedupe')),
  flags: given(rules.names),
  tags: given(rules.names),
  groupId: given(rules.name),
  dependsOn: given(parents),
  onParentFailure: given(rules.oneOf('cancel', 'run', 'wait')),
  rateLimit: jobLimits,
  rateLimitKey: given(rules.laneName),
  timeoutMs: given(rules.integer(1, INT4_MAX)),
};

const DEBOUNCE = ifGiven(
  section({ key: required(rules.jobKey), ms: required(rules.duration), maxMs: given(rules.duration) }),
);

/** Of a job, and of a task. */
export const THROTTLE = ifGiven(
  section({ key: required(rules.name), ms: required(rules.window), mode: given(rules.oneOf('drop', 'delay')) }),
);

/** Of a job, and of a task. */
export const UNIQUE = ifGiven(
  section({ by: given(rules.uniqueBy), withinMs: given(rules.window), while: given(rules.oneOf('live')) }),
);

/** What `addJob` and `addJobs` may say beside: crontabs may not. */
const MEETING = { debounce: DEBOUNCE, throttle: nullable(THROTTLE), unique: nullable(UNIQUE) };

/** Where jobs are inserted, and whether pools are told. */
const TARGET = { manager: given(rules.executor), notify: given(rules.flag) };

const addOptions = section({ ...JOB_OPTIONS, ...MEETING, ...TARGET });
const addManyOptions = section(TARGET);
const jobSpec = section({ task: required(rules.name), payload: given(rules.anything), ...JOB_OPTIONS, ...MEETING });

/** Each of these says what the others would. */
const KEYING = ['debounce', 'throttle', 'unique'] as const;
const BESIDE: Record<(typeof KEYING)[number], (keyof AddJobOptions)[]> = {
  debounce: ['jobKey', 'jobKeyMode', 'runAt', 'delayMs', 'throttle', 'unique'],
  throttle: ['jobKey', 'jobKeyMode', 'unique'],
  unique: ['jobKey', 'jobKeyMode'],
};

const meetingConflicts = (options: Partial<AddJobOptions>, path: string): string[] => [
  ...KEYING.flatMap((meeting) =>
    (options[meeting] ? BESIDE[meeting] : [])
      .filter((name) => (options[name] ?? undefined) !== undefined)
      .map((name) => `Expected ${path}${meeting} alone, which says what ${name} would, got both.`),
  ),
  ...(options.debounce?.maxMs !== undefined && options.debounce.maxMs < options.debounce.ms
    ? [
        `Expected ${path}debounce.maxMs to be at least debounce.ms (${options.debounce.ms}), got ${options.debounce.maxMs}.`,
      ]
    : []),
];

const conflictsOf = (options: Partial<AddJobOptions>, path: string): string[] => [
  ...meetingConflicts(options, path),
  ...limitConflicts(options, path),
  ...(options.runAt && options.delayMs !== undefined ? [`Expected ${path}runAt or delayMs, got both.`] : []),
  ...(options.onParentFailure && !options.dependsOn?.length
    ? [`Expected ${path}dependsOn beside onParentFailure, got none.`]
    : []),
  ...(options.jobKeyMode && options.jobKey === undefined
    ? [`Expected a ${path}jobKey beside jobKeyMode, got none.`]
    : []),
];

/** The task and options of `addJob`. @throws InvalidArgumentError */
export function checkAdd(task: string | TaskToken, options: AddJobOptions): void {
  const faults = [...taskFaults(task), ...addOptions.check(options, '')];
  refuseCall(faults.length ? faults : conflictsOf(options, ''));
}

/** The arguments of `addJobs`. @throws InvalidArgumentError */
export function checkAddMany(specs: unknown, options: unknown): void {
  refuseCall([...specList.check(specs, 'specs'), ...addManyOptions.check(options, '')]);
}

const specList = listOf({
  ...jobSpec,
  check: (value, path) => {
    const faults = jobSpec.check(value, path);
    return faults.length ? faults : conflictsOf(value as AddJobOptions, `${path}.`);
  },
});

/** What a token holds as its payload: a class, a Standard Schema, or nothing. */
const mayBeSchema = (payload: unknown): boolean =>
  payload === undefined || typeof payload === 'function' || (isRecord(payload) && '~standard' in payload);

const SPEC_FOR_TASK =
  'Expected a task and its payload as two arguments, as in addJob(task, payload, options), got one object with a payload; ' +
  'addJobs takes a list of such objects.';

/** What is wrong with a task's name, or with its token. */
export function taskFaults(task: unknown): string[] {
  if (typeof task === 'string') return faultOf('task', task, rules.name);
  if (isRecord(task) && !mayBeSchema(task.payload)) return [SPEC_FOR_TASK];
  if (isRecord(task)) return faultOf('task.task', task.task, rules.name);
  return faultOf('task', task, () => "a task's name or a token of defineTask");
}

export const JOB_STATUSES = 'available scheduled blocked running snoozed exhausted cancelled completed'.split(' ');
const RECORD_STATUSES = 'completed failed partial_success snoozed cancelled'.split(' ');
const SINCE_AND_UNTIL = { from: orNull(rules.date), to: orNull(rules.date) };

const jobFilter: Record<keyof JobFilter, ReturnType<typeof given>> = {
  task: orNull(rules.name),
  queue: orNull(rules.laneName),
  status: orNull(rules.oneOf(...JOB_STATUSES)),
  tag: orNull(rules.name),
  groupId: orNull(rules.name),
  flag: orNull(rules.name),
  search: orNull(rules.text),
  ...SINCE_AND_UNTIL,
};

const historyFilter: Record<keyof HistoryFilter, ReturnType<typeof given>> = {
  jobId: orNull(rules.uuid),
  task: orNull(rules.name),
  status: orNull(rules.oneOf(...RECORD_STATUSES)),
  workerId: orNull(rules.text),
  ...SINCE_AND_UNTIL,
};

const claimOptions: Record<keyof ClaimOptions, ReturnType<typeof given>> = {
  batchSize: given(rules.integer(1, MAX_BATCH)),
  leaseMs: given(rules.integer(1, MAX_MS)),
  taskIdentifiers: orNull(rules.names),
  forbiddenFlags: orNull(rules.names),
  queues: orNull(rules.laneNames),
};

/** The objects that calls take, by call. */
export const callOptions = {
  getJobs: section(claimOptions),
  completeJobs: section({ results: orNull(rules.list) }),
  workOnce: section({ queues: orNull(rules.laneNames) }),
  rescheduleJobs: section({ runAt: orNull(rules.date), priority: orNull(priority), maxAttempts: orNull(attempts) }),
  replayFailedJobs: section({ ...SINCE_AND_UNTIL, task: orNull(rules.name), maxAttempts: orNull(attempts) }),
  resetLockedJobs: section({ lockTimeoutMs: orNull(rules.integer(0, MAX_MS)) }),
  purgeJobs: section({
    status: required(rules.oneOf('exhausted', 'completed', 'cancelled')),
    olderThanMs: required(rules.integer(0, MAX_AGE_MS)),
  }),
  configureQueue: queueOptions,
  configurePartition: partitionOptions,
  pauseQueue: section({ until: orNull(rules.date), reason: orNull(rules.reason), by: orNull(rules.reason) }),
  pause: section({ until: orNull(rules.date), reason: required(rules.reason), by: required(rules.reason) }),
  resume: section({ by: orNull(rules.reason) }),
  gcTaskIdentifiers: section({ keepSinceMs: orNull(rules.integer(0, MAX_AGE_MS)) }),
  reencryptJobs: section({ batchSize: orNull(rules.integer(1, MAX_BATCH)), signal: given(rules.signal) }),
  waitForJob: section({ timeoutMs: orNull(rules.wait), signal: given(rules.signal) }),
  failures: listOf(section({ job: required(claimedJob), error: given(rules.anything) })),
  partialResults: section({
    completedSteps: orNull(rules.strings),
    failedSteps: orNull(rules.strings),
    retryFromStep: orNull(rules.string),
    results: given(rules.anything),
  }),
  jobFilter: section(jobFilter),
  historyFilter: section(historyFilter),
};

/** Jobs handed to a settling call. */
export const claimedJobs: Rule = (value) =>
  Array.isArray(value) && value.every((job: Partial<ClaimedJob> | null) => claimedJob(job) === null)
    ? null
    : 'an array of jobs that getJobs returned';

/** What is wrong with a worker's id. */
export const workerIdFaults = (workerId: unknown): string[] =>
  typeof workerId === 'string' && workerId.length >= MIN_WORKER_ID && isStorable(workerId)
    ? []
    : [
        `Expected a worker id of at least ${MIN_WORKER_ID} characters, got ${show(workerId)}. Use something unique to ` +
          'the process, such as a UUID: two workers with one id could settle each other’s jobs.',
      ];

/** @throws InvalidWorkerIdError */
export function checkWorkerId(workerId: unknown): void {
  for (const fault of workerIdFaults(workerId)) throw new InvalidWorkerIdError(fault);
}

/** For what is read after the turn of the call: by then the caller may have changed its list. */
export const copyOf = (list: string[] | null | undefined): string[] | null => (list ? [...list] : null);

/** Ids of jobs as the database writes them, each once: what it answers is compared with them. */
export const idsOf = (ids: string[]): string[] => [...new Set(ids.map((id) => id.toLowerCase()))];
