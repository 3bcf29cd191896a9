// Every option's default and bound, once. What users wrote becomes settings with nothing left open, or one error that
// lists all that is wrong.
import { createSecretKey } from 'node:crypto';
import { validateCronExpression } from 'cron';
import type { DataSource } from './interfaces/typeorm.interface.js';
import type { PgClientOptions, PgPoolOptions } from './interfaces/connection.interface.js';
import type {
  EncryptionOptions,
  EncryptionSettings,
  JobManagerOptions,
  JobsModuleOptions,
  ManagerSettings,
  WorkerOptions,
  WorkerSettings,
} from './interfaces/jobs-options.interface.js';
import type { Mask, TaskOptions } from './interfaces/task.interface.js';
import { DEFAULT_INSTANCE } from './jobs.constants.js';
import { attempts, priority, THROTTLE, UNIQUE, workerIdFaults } from './manager/arguments.js';
import { cronRules, taskCron } from './manager/cron.arguments.js';
import { JobEvents } from './monitoring/job.events.js';
import {
  faultOf,
  isRecord,
  mapOf,
  option,
  orFalse,
  throwIfAny,
  required,
  section,
  type Rule,
  type Settings,
} from './validation.js';
import { INT4_MAX, MAX_ATTEMPTS, MAX_MS, rules } from './validation.rules.js';
import { partitionOrFunction, queueOptions, queueSettings } from './manager/queue.settings.js';
import { limitConflicts, taskLimits } from './manager/rate.limits.js';
import { batchOption, connectionOption, encryptionKeys, keyBytes, orFunction } from './validation.options.js';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const MIB = 1_048_576;
/** Crashed workers are looked for at each beat, so that must not be rare. */
const MAX_KEEPALIVE_MS = 10_000;
const DEFAULT_MAX_CRASHES = 3;

const milliseconds = (min = 0, max = MAX_MS): Rule => rules.integer(min, max);
const { between, flag, timer } = rules;
const crontab: Rule = (value) =>
  value === false || (typeof value === 'string' && validateCronExpression(value).valid)
    ? null
    : 'a crontab expression of 5 or 6 fields, or false';
const payloadSchema: Rule = (value) =>
  value === false ||
  typeof value === 'function' ||
  (typeof value === 'object' && value !== null && '~standard' in value)
    ? null
    : 'a DTO class, a Standard Schema, or false';

const mask: Rule = (value) =>
  typeof value === 'function' || rules.names(value) === null
    ? null
    : 'an array of property names and paths, or a function';

const RETRY = {
  baseDelayMs: option(milliseconds(), 1_000),
  multiplier: option(between(1, 1_000), 2),
  maxDelayMs: option(milliseconds(), HOUR_MS),
  jitter: option(between(0, 1), 0.1),
};

const MANAGER = {
  schema: option(rules.schema, 'jobs'),
  retry: section({ ...RETRY, maxAttempts: option(attempts, 25) }),
  history: section({
    keep: option<'all' | 'failures' | 'none'>(rules.oneOf('all', 'failures', 'none'), 'all'),
    retentionMs: option(milliseconds(1_000), 30 * DAY_MS),
  }),
  lockTimeoutMs: option(milliseconds(1), 4 * HOUR_MS),
  taskIdentifierRetentionMs: option(milliseconds(), 7 * DAY_MS),
  maxPayloadBytes: option(rules.integer(1, 256 * MIB), MIB),
  queues: mapOf(queueOptions, rules.laneName),
  encryption: section({
    keys: option<EncryptionOptions['keys'] | null>(encryptionKeys, null),
    tasks: option<string[] | null>(rules.names, null),
  }),
};

const CONNECTION = {
  connection: connectionOption<string | PgPoolOptions>('a pg pool configuration'),
  dataSource: option<DataSource | undefined>(rules.dataSource, undefined),
  migrate: option(flag, true),
  waitForDatabaseMs: option(timer(), 0),
  listenConnection: connectionOption<string | PgClientOptions>('a pg client configuration'),
  preparedStatements: option<boolean | null>(flag, null),
};

/** `null`: adaptive, derived from others, or all. */
const WORKER = {
  concurrency: option(rules.integer(1, 10_000), 10),
  queueSize: option<number | null>(rules.integer(1, 100_000), null),
  queueTtlMs: option(timer(1), 60_000),
  refetchThreshold: option<number | null>(rules.integer(0, 100_000), null),
  refetchDelayMs: option(timer(), 1_000),
  pollIntervalMs: option(timer(10), 2_000),
  maxPollIntervalMs: option<number | null>(timer(10), null),
  leaseMs: option(timer(1_000), 30_000),
  keepaliveMs: option<number | null>(timer(100), null),
  timeoutMs: option(milliseconds(1, INT4_MAX), 300_000),
  gracefulShutdownTimeoutMs: option(timer(), 30_000),
  taskIdentifiers: option<string[] | null>(rules.names, null),
  queues: option<string[] | null>(rules.laneNames, null),
  forbiddenFlags: option<string[] | null>(rules.names, null),
  maxCrashes: option(rules.integer(1, MAX_ATTEMPTS), DEFAULT_MAX_CRASHES),
  listen: option(flag, true),
  autoStart: option(flag, true),
};

const MAINTENANCE = {
  resetLockedJobs: option<string | false>(crontab, '* * * * *'),
  refillRateLimits: option<string | false>(crontab, '* * * * * *'),
  gc: option<string | false>(crontab, '0 3 * * *'),
  timeZone: option(cronRules.timeZone, 'UTC'),
};

const UNKNOWN_TASKS = option<'leave' | 'exhaust'>(rules.oneOf('leave', 'exhaust'), 'leave');

const managerOptions = section({ ...CONNECTION, ...MANAGER });
const workerOptions = section(WORKER);
const moduleOptions = section({
  ...CONNECTION,
  ...MANAGER,
  name: option(rules.name, DEFAULT_INSTANCE),
  isGlobal: option(flag, true),
  worker: orFalse(workerOptions),
  maintenance: section(MAINTENANCE),
  unknownTasks: UNKNOWN_TASKS,
  globalEnhancers: option(flag, false),
  mask: option<Mask | undefined>(mask, undefined),
});
const taskOptions = section({
  payload: option(payloadSchema, undefined),
  queue: option(rules.laneName, undefined),
  partition: option<unknown>(partitionOrFunction, undefined),
  priority: option(priority, undefined),
  maxAttempts: option(attempts, undefined),
  timeoutMs: option(milliseconds(1, INT4_MAX), undefined),
  retry: orFunction(section(RETRY)),
  rateLimit: taskLimits,
  rateLimitKey: option(rules.laneName, undefined),
  flags: option(rules.names, undefined),
  mask: option<Mask | undefined>(mask, undefined),
  concurrency: option(rules.integer(1, 10_000), undefined),
  transactional: option(flag, undefined),
  throttle: THROTTLE,
  unique: UNIQUE,
  batch: batchOption,
  cron: taskCron,
  instance: option(rules.name, DEFAULT_INSTANCE),
});

/** What `createWorkerPool` and the testing kit take besides the pool's own options. */
const poolParts = section(
  {
    jobs: required((value) => (isRecord(value) && 'engine' in value ? null : 'a JobManager')),
    tasks: required((value) => (isRecord(value) ? null : 'an object of handlers by task')),
    events: option((value) => (value instanceof JobEvents ? null : 'a JobEvents'), undefined),
    // Checked by themselves, as the module's `worker`.
    options: option(rules.anything, undefined),
    unknownTasks: UNKNOWN_TASKS,
    workerId: option(rules.string, undefined),
    instance: option(rules.name, undefined),
    mask: option(mask, undefined),
  },
  { worker: 'options' },
);

/** The parts of a pool outside Nest, its options aside. @throws InvalidOptionsError listing every fault */
export function checkPoolParts(parts: object): void {
  const { workerId } = Object(parts) as { workerId?: unknown };
  throwIfAny([...poolParts.check(parts, ''), ...(workerId === undefined ? [] : workerIdFaults(workerId))]);
}

/** How to reach the database, and what to do there at start. */
export type ConnectionSettings = Settings<typeof CONNECTION>;

export type MaintenanceSettings = Settings<typeof MAINTENANCE>;

/** The settings of an instance of the module. */
export interface ResolvedOptions extends ConnectionSettings {
  name: string;
  manager: ManagerSettings;
  /** `null`: this process only enqueues. */
  worker: WorkerSettings | null;
  maintenance: MaintenanceSettings;
  globalEnhancers: boolean;
  mask: Mask | undefined;
}

/** The settings of a module's instance, with every default filled in. @throws InvalidOptionsError listing every fault */
export function resolveOptions(options: JobsModuleOptions = {}): ResolvedOptions {
  const worker = options?.worker === false ? undefined : options?.worker;
  throwIfAny([...moduleOptions.check(options, ''), ...connectionConflicts(options), ...workerConflicts(worker)]);
  const settings = moduleOptions.read(options);
  return {
    name: settings.name,
    ...pick(settings, CONNECTION),
    manager: managerSettings(settings, settings.worker ? settings.worker.maxCrashes : DEFAULT_MAX_CRASHES),
    worker: settings.worker && workerSettings(settings.worker, settings.unknownTasks),
    maintenance: settings.maintenance,
    globalEnhancers: settings.globalEnhancers,
    mask: settings.mask,
  };
}

/** For use outside Nest. @throws InvalidOptionsError listing every fault */
export function resolveManagerOptions(
  options: JobManagerOptions = {},
): ConnectionSettings & { manager: ManagerSettings } {
  throwIfAny([...managerOptions.check(options, ''), ...connectionConflicts(options)]);
  const settings = managerOptions.read(options);
  return { ...pick(settings, CONNECTION), manager: managerSettings(settings, DEFAULT_MAX_CRASHES) };
}

/** For use outside Nest. @throws InvalidOptionsError listing every fault */
export function resolveWorkerOptions(
  options: WorkerOptions = {},
  unknownTasks: 'leave' | 'exhaust' = 'leave',
): WorkerSettings {
  throwIfAny([...workerOptions.check(options, 'worker'), ...workerConflicts(options)]);
  return workerSettings(workerOptions.read(options), unknownTasks);
}

/** What is wrong with a @Task decoration, or a task of `createWorkerPool`; `source` says where it stands. */
export function taskFaults(task: unknown, options: unknown, source: string): string[] {
  const name = faultOf("the task's name", task, rules.name);
  return [...name, ...taskOptions.check(options, ''), ...taskConflicts(options)].map((fault) => `${source}: ${fault}`);
}

function taskConflicts(options: unknown): string[] {
  const { throttle, unique } = Object(options) as TaskOptions;
  const faults = throttle && unique ? ['Expected either throttle or unique, got both.'] : [];
  return [...faults, ...limitConflicts(Object(options) as TaskOptions, '')];
}

function managerSettings(settings: Settings<typeof MANAGER>, maxCrashes: number): ManagerSettings {
  const queues = Object.entries(settings.queues).map(([name, options]) => [name, queueSettings(options)] as const);
  const encryption = encryptionSettings(settings.encryption);
  return { ...pick(settings, MANAGER), maxCrashes, encryption, queues: Object.fromEntries(queues) };
}

const encryptionSettings = ({ keys, tasks }: Settings<typeof MANAGER>['encryption']): EncryptionSettings | null =>
  keys && { keys: keys.map(({ id, key }) => ({ id, key: createSecretKey(keyBytes(key)!) })), tasks };

function workerSettings(settings: Settings<typeof WORKER>, unknownTasks: 'leave' | 'exhaust'): WorkerSettings {
  const { leaseMs, pollIntervalMs } = settings;
  return {
    ...settings,
    maxPollIntervalMs: settings.maxPollIntervalMs ?? pollIntervalMs,
    keepaliveMs: settings.keepaliveMs ?? Math.min(MAX_KEEPALIVE_MS, Math.round(leaseMs * 0.7)),
    unknownTasks,
  };
}

const connectionConflicts = (options: JobManagerOptions | null): string[] => [
  ...(options?.connection !== undefined && options.dataSource !== undefined
    ? ['Expected either connection or dataSource, got both.']
    : []),
  ...(options?.encryption && options.encryption.keys === undefined
    ? ['Expected encryption.keys beside encryption, got none.']
    : []),
];

/** Values that are right alone, but not beside each other; what is no number at all has been named already. */
function workerConflicts(options: WorkerOptions | undefined): string[] {
  const { leaseMs, keepaliveMs, pollIntervalMs, maxPollIntervalMs } = workerOptions.read(options);
  const { queueSize, refetchThreshold } = workerOptions.read(options);
  const faults: string[] = [];
  if (keepaliveMs !== null && keepaliveMs >= leaseMs)
    faults.push(`Expected worker.keepaliveMs to be less than worker.leaseMs (${leaseMs}), got ${keepaliveMs}.`);
  if (maxPollIntervalMs !== null && maxPollIntervalMs < pollIntervalMs)
    faults.push(
      `Expected worker.maxPollIntervalMs to be at least worker.pollIntervalMs (${pollIntervalMs}), got ${maxPollIntervalMs}.`,
    );
  if (queueSize !== null && refetchThreshold !== null && refetchThreshold >= queueSize)
    faults.push(
      `Expected worker.refetchThreshold to be less than worker.queueSize (${queueSize}), got ${refetchThreshold}.`,
    );
  return faults;
}

const pick = <T extends object, S extends object>(settings: T, names: S): Pick<T, keyof T & keyof S> =>
  Object.fromEntries(Object.keys(names).map((name) => [name, settings[name as keyof T]])) as Pick<T, keyof T & keyof S>;
