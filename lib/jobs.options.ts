// Every option's default and bound, once. What users wrote becomes settings with nothing left open, or one error that
// lists all that is wrong.
import { validateCronExpression } from 'cron';
import { closest, distance } from 'fastest-levenshtein';
import type pg from 'pg';
import type { DataSource } from 'typeorm';
import type {
  JobManagerOptions,
  JobsModuleOptions,
  ManagerSettings,
  WorkerOptions,
  WorkerSettings,
} from './interfaces/jobs-options.interface.js';
import { InvalidOptionsError } from './jobs.errors.js';
import { DEFAULT_INSTANCE } from './jobs.constants.js';
import { rules } from './manager/call.arguments.js';

const DAY_MS = 86_400_000;
const INT4_MAX = 2_147_483_647;
const LONGEST_MS = 1e12;
const MAX_SCHEMA_BYTES = 63;
const MAX_KEEPALIVE_MS = 10_000;

/** Returns what was expected where a value is wrong. */
type Rule = (value: unknown) => string | null;
/** Rules by option; a nested shape is a nested object. `'*'`: a rule or shape for whatever names users choose. */
interface Shape {
  [option: string]: Rule | Shape;
}

const anyOf =
  (...choices: Rule[]): Rule =>
  (value) =>
    choices.some((rule) => rule(value) === null) ? null : choices.map((rule) => rule(value)).join(' or ');
const exactly =
  (expected: unknown): Rule =>
  (value) =>
    value === expected ? null : String(expected);
const isTrue = (value: unknown): string | null => (typeof value === 'boolean' ? null : 'true or false');
const between =
  (min: number, max: number): Rule =>
  (value) =>
    typeof value === 'number' && value >= min && value <= max ? null : `a number from ${min} to ${max}`;
const milliseconds = (min = 0, max = LONGEST_MS): Rule => rules.integer(min, max);
const concurrency: Rule = anyOf(rules.integer(1, INT4_MAX), exactly(Infinity));
const an =
  (what: string): Rule =>
  (value) =>
    typeof value === 'object' && value !== null ? null : what;
const settings = an('an object of settings');
const schemaName: Rule = (value) =>
  typeof value === 'string' && value !== '' && !value.includes('\0') && Buffer.byteLength(value) <= MAX_SCHEMA_BYTES
    ? null
    : `a name of 1 to ${MAX_SCHEMA_BYTES} bytes`;
const crontab: Rule = (value) =>
  value === false || (typeof value === 'string' && validateCronExpression(value).valid)
    ? null
    : 'a crontab expression of 5 or 6 fields, or false';
const timeZone: Rule = (value) => {
  try {
    new Intl.DateTimeFormat('en', { timeZone: value as string });
    return typeof value === 'string' ? null : 'the name of a time zone';
  } catch {
    return "the name of a time zone, such as 'Europe/Berlin'";
  }
};

const RETRY: Shape = {
  baseDelayMs: milliseconds(),
  multiplier: between(1, 1_000),
  maxDelayMs: milliseconds(),
  jitter: between(0, 1),
};

const MANAGER: Shape = {
  connection: anyOf(rules.name, settings),
  dataSource: an('a TypeORM DataSource'),
  schema: schemaName,
  migrate: isTrue,
  retry: { ...RETRY, maxAttempts: rules.integer(1, 32_767) },
  history: { keep: rules.oneOf('all', 'failures', 'none'), retentionMs: milliseconds(1_000) },
  lockTimeoutMs: milliseconds(1),
  taskIdentifierRetentionMs: milliseconds(),
  waitForDatabaseMs: milliseconds(),
  listenConnection: anyOf(rules.name, settings),
  preparedStatements: isTrue,
  maxPayloadBytes: rules.integer(1, 256 * 1_048_576),
  queues: { '*': { concurrency } },
};

const WORKER: Shape = {
  concurrency: rules.integer(1, 10_000),
  queueSize: rules.integer(1, 100_000),
  queueTtlMs: milliseconds(1),
  refetchThreshold: rules.integer(0, 100_000),
  refetchDelayMs: milliseconds(),
  pollIntervalMs: milliseconds(10),
  maxPollIntervalMs: milliseconds(10),
  leaseMs: milliseconds(1_000),
  keepaliveMs: milliseconds(100),
  timeoutMs: milliseconds(1, INT4_MAX),
  gracefulShutdownTimeoutMs: milliseconds(),
  taskIdentifiers: rules.names,
  queues: rules.names,
  forbiddenFlags: rules.names,
  listen: isTrue,
  autoStart: isTrue,
};

const MODULE: Shape = {
  ...MANAGER,
  name: rules.name,
  isGlobal: isTrue,
  worker: WORKER,
  maintenance: { resetLockedJobs: crontab, refillRateLimits: crontab, gc: crontab, timeZone },
  unknownTasks: rules.oneOf('leave', 'exhaust'),
  globalEnhancers: isTrue,
};

const TASK: Shape = {
  payload: (value) =>
    typeof value === 'function' || (typeof value === 'object' && value !== null && '~standard' in value)
      ? null
      : 'a DTO class or a Standard Schema',
  queue: rules.name,
  priority: rules.integer(-INT4_MAX - 1, INT4_MAX),
  maxAttempts: rules.integer(1, 32_767),
  timeoutMs: milliseconds(1, INT4_MAX),
  retry: RETRY,
  rateLimitKey: rules.name,
  flags: rules.names,
  concurrency: rules.integer(1, 10_000),
  instance: rules.name,
};

/** The settings of an instance of the module. */
export interface ResolvedOptions extends ConnectionSettings {
  name: string;
  manager: ManagerSettings;
  /** `null`: this process only enqueues. */
  worker: WorkerSettings | null;
  maintenance: {
    resetLockedJobs: string | false;
    refillRateLimits: string | false;
    gc: string | false;
    timeZone: string;
  };
  globalEnhancers: boolean;
}

/** How to reach the database, and what to do there at start. */
export interface ConnectionSettings {
  connection: string | pg.PoolConfig | undefined;
  dataSource: DataSource | undefined;
  migrate: boolean;
  waitForDatabaseMs: number;
  listenConnection: string | pg.ClientConfig | undefined;
  preparedStatements: boolean;
}

/** @throws InvalidOptionsError that lists every fault */
export function resolveOptions(options: JobsModuleOptions = {}): ResolvedOptions {
  const faults = faultsOf(options, { ...MODULE, ...(options.worker === false && { worker: exactly(false) }) }, '');
  refuse([...faults, ...contradictions(options), ...keepaliveFaults(options.worker || {})]);
  const {
    name = DEFAULT_INSTANCE,
    worker = {},
    maintenance = {},
    unknownTasks = 'leave',
    globalEnhancers = false,
  } = options;
  return {
    name,
    ...connectionSettings(options),
    manager: managerSettings(options),
    worker: worker === false ? null : workerSettings(worker, unknownTasks),
    maintenance: withDefaults<ResolvedOptions['maintenance']>(
      { resetLockedJobs: '* * * * *', refillRateLimits: '* * * * * *', gc: '0 3 * * *', timeZone: 'UTC' },
      maintenance,
    ),
    globalEnhancers,
  };
}

/** For use outside Nest. @throws InvalidOptionsError that lists every fault */
export function resolveManagerOptions(options: JobManagerOptions): ConnectionSettings & { manager: ManagerSettings } {
  refuse([...faultsOf(options, MANAGER, ''), ...contradictions(options)]);
  return { ...connectionSettings(options), manager: managerSettings(options) };
}

/** For use outside Nest. @throws InvalidOptionsError that lists every fault */
export function resolveWorkerOptions(
  options: WorkerOptions,
  unknownTasks: 'leave' | 'exhaust' = 'leave',
): WorkerSettings {
  refuse([...faultsOf(options, WORKER, 'worker'), ...keepaliveFaults(options)]);
  return workerSettings(options, unknownTasks);
}

/** @throws InvalidOptionsError that lists every fault of a @Task decoration */
export function checkTaskOptions(task: unknown, options: object): void {
  const shape =
    typeof (options as { retry?: unknown }).retry === 'function' ? { ...TASK, retry: rules.anything } : TASK;
  const where = `@Task(${JSON.stringify(task)})`;
  const name = rules.name(task);
  refuse([...(name ? [`Expected @Task to get ${name}, got ${show(task)}.`] : []), ...faultsOf(options, shape, where)]);
}

const connectionSettings = (options: JobManagerOptions): ConnectionSettings => ({
  connection: options.connection,
  dataSource: options.dataSource,
  migrate: options.migrate ?? true,
  waitForDatabaseMs: options.waitForDatabaseMs ?? 0,
  listenConnection: options.listenConnection,
  preparedStatements: options.preparedStatements ?? true,
});

const managerSettings = (options: JobManagerOptions): ManagerSettings => ({
  schema: options.schema ?? 'jobs',
  retry: withDefaults(
    { baseDelayMs: 1_000, multiplier: 2, maxDelayMs: 3_600_000, jitter: 0.1, maxAttempts: 25 },
    options.retry,
  ),
  history: withDefaults<ManagerSettings['history']>({ keep: 'all', retentionMs: 30 * DAY_MS }, options.history),
  lockTimeoutMs: options.lockTimeoutMs ?? 4 * 3_600_000,
  taskIdentifierRetentionMs: options.taskIdentifierRetentionMs ?? 7 * DAY_MS,
  maxPayloadBytes: options.maxPayloadBytes ?? 1_048_576,
  queues: Object.fromEntries(
    Object.entries(options.queues ?? {}).map(([name, queue]) => [name, queue.concurrency ?? 1]),
  ),
});

function workerSettings(options: WorkerOptions, unknownTasks: 'leave' | 'exhaust'): WorkerSettings {
  const leaseMs = options.leaseMs ?? 30_000;
  const pollIntervalMs = options.pollIntervalMs ?? 2_000;
  return {
    concurrency: options.concurrency ?? 10,
    queueSize: options.queueSize ?? null,
    queueTtlMs: options.queueTtlMs ?? 60_000,
    refetchThreshold: options.refetchThreshold ?? null,
    refetchDelayMs: options.refetchDelayMs ?? 1_000,
    pollIntervalMs,
    maxPollIntervalMs: options.maxPollIntervalMs ?? pollIntervalMs,
    leaseMs,
    keepaliveMs: options.keepaliveMs ?? Math.min(MAX_KEEPALIVE_MS, Math.round(leaseMs * 0.7)),
    timeoutMs: options.timeoutMs ?? 300_000,
    gracefulShutdownTimeoutMs: options.gracefulShutdownTimeoutMs ?? 30_000,
    taskIdentifiers: options.taskIdentifiers ?? null,
    queues: options.queues ?? null,
    forbiddenFlags: options.forbiddenFlags ?? null,
    listen: options.listen ?? true,
    autoStart: options.autoStart ?? true,
    unknownTasks,
  };
}

/** Options set to `undefined` mean the default, like options left out. */
const withDefaults = <T extends object>(defaults: T, options: Partial<T> = {}): T =>
  Object.assign(defaults, Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)));

function contradictions({ connection, dataSource }: JobManagerOptions): string[] {
  return connection !== undefined && dataSource !== undefined ? ['Expected connection or dataSource, got both.'] : [];
}

function keepaliveFaults({ leaseMs = 30_000, keepaliveMs = 0 }: WorkerOptions): string[] {
  if (!(keepaliveMs >= leaseMs)) return [];
  return [`Expected worker.keepaliveMs to be less than worker.leaseMs (${leaseMs}), got ${keepaliveMs}.`];
}

function faultsOf(options: unknown, shape: Shape, path: string): string[] {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    return [`Expected ${path || 'the options'} to be an object, got ${show(options)}.`];
  }
  return Object.entries(options).flatMap(([key, value]) => {
    const rule = Object.hasOwn(shape, key) ? shape[key] : shape['*'];
    const name = path ? `${path}.${key}` : key;
    if (!rule) return [unknownOption(name, key, Object.keys(shape))];
    if (value === undefined) return [];
    if (typeof rule !== 'function') return faultsOf(value, rule, name);
    const expected = rule(value);
    return expected === null ? [] : [`Expected ${name} to be ${expected}, got ${show(value)}.`];
  });
}

function unknownOption(name: string, key: string, known: string[]): string {
  const nearest = closest(key, known);
  const hint = distance(key.toLowerCase(), nearest.toLowerCase()) <= Math.max(2, key.length / 3);
  return `Unknown option ${name}${hint ? `; did you mean ${nearest}?` : `; known are ${known.join(', ')}.`}`;
}

function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.replace(/:[^:@/]+@/, ':***@'));
  if (Array.isArray(value)) return `[${value.map(show).join(', ')}]`;
  return typeof value === 'object' && value !== null ? 'an object' : String(value);
}

function refuse(faults: string[]): void {
  if (faults.length) throw new InvalidOptionsError(faults);
}
