// What a JobQueue is made with, and what of a pool's settings is its own.
import type { Claimer } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { BatchOptions } from '../interfaces/task.interface.js';
import type { JobManager } from '../manager/job.manager.js';
import type { WorkerSettings } from '../interfaces/jobs-options.interface.js';
import { workerIdFaults } from '../manager/arguments.js';
import type { JobNotifier } from '../storage/job.notifier.js';
import { check, isRecord, option, throwIfAny, required, section, type Rule } from '../validation.js';
import { rules } from '../validation.rules.js';
import type { TaskRoom } from './claim.group.js';
import type { PauseWatch } from './pause.watch.js';
import type { CrashQuarantine } from './crash.quarantine.js';

export interface JobQueueStats {
  fetched: number;
  dispatched: number;
  staleDropped: number;
  refetchCount: number;
  errors: number;
}

export interface JobQueueOptions {
  jobs: JobManager;
  /** At least 10 characters. */
  workerId: string;
  notifier?: JobNotifier | null | undefined;
  /** Most jobs in the buffer. Default: adaptive, 50 to 1,000 jobs. In any case at most 16 MiB of payloads, and one job. */
  queueSize?: number | null | undefined;
  /** Default 60,000. */
  queueTtlMs?: number | undefined;
  /** Fetch when the buffer holds no more than this. Default: half of the buffer's size. */
  refetchThreshold?: number | null | undefined;
  /** Pause after a fetch that brought less than was expected. Default 1,000; a notification or a poll comes before it. */
  refetchDelayMs?: number | undefined;
  /** Default 2,000. */
  pollIntervalMs?: number | undefined;
  /** Default: `pollIntervalMs`, no backoff. */
  maxPollIntervalMs?: number | undefined;
  /** Claim only these tasks. A function is asked before each claim. Default: any. */
  taskIdentifiers?: (string[] | (() => string[] | null) | null) | undefined;
  queues?: string[] | null | undefined;
  forbiddenFlags?: string[] | null | undefined;
  /** How long a claim holds. Default: the manager's `lockTimeoutMs`. */
  leaseMs?: number | null | undefined;
  /** For pools: in whose name to claim. Default: by hand, under `workerId`. */
  claimer?: (() => Claimer) | undefined;
  /** Tasks that run no more than so many jobs at once here: no more are claimed than may begin. Default: none. */
  taskRooms?: (() => TaskRoom[]) | undefined;
  /**
   * Asked for a place before a job is handed out; `false`: it may not start now, is passed over and keeps its turn.
   * Default: always.
   */
  admit?: ((job: ClaimedJob, batch?: ClaimedJob[]) => boolean) | undefined;
  /** How jobs of a task are gathered to be handed out together; see `batchFor`. Default: each is handed out by itself. */
  batchOf?: ((task: string) => BatchOptions | null) | undefined;
  /** For pools: what they know of pauses. Default: claims alone know. */
  pauses?: PauseWatch | undefined;
  /** Default: none; every job may run beside any other. */
  quarantine?: CrashQuarantine | undefined;
  /** Asked before each claim; `false`: claim nothing for now, until `wake()`. Default: always. */
  mayClaim?: (() => boolean) | undefined;
  /**
   * What the pool holds beside the buffer: jobs that run, and outcomes that are not written. Default: nothing can tell, and
   * claims whose answer was lost are left to their lease.
   */
  held?: (() => ClaimedJob[]) | undefined;
  onError?: ((error: unknown, context: string) => void) | undefined;
}

const { optional, timer } = rules;
const given = (rule: Rule) => option<any>(rule, undefined);
/** `null`: adaptive, derived from others, or all. */
const orNull = (rule: Rule) => given(optional(rule));
const namesOrFunction: Rule = (value) =>
  typeof value === 'function' || rules.names(value) === null ? null : 'an array of names, or a function';

const queueOptions = section({
  jobs: required((value) => (isRecord(value) && 'engine' in value ? null : 'a JobManager')),
  workerId: required(rules.string),
  notifier: orNull(rules.anything),
  queueSize: orNull(rules.integer(1, 100_000)),
  queueTtlMs: given(timer(1)),
  refetchThreshold: orNull(rules.integer(0, 100_000)),
  refetchDelayMs: given(timer()),
  pollIntervalMs: given(timer(1)),
  maxPollIntervalMs: given(timer(1)),
  taskIdentifiers: orNull(namesOrFunction),
  queues: orNull(rules.laneNames),
  forbiddenFlags: orNull(rules.names),
  leaseMs: orNull(rules.integer(1, 1e12)),
  claimer: given(rules.callable),
  taskRooms: given(rules.callable),
  admit: given(rules.callable),
  batchOf: given(rules.callable),
  pauses: given(rules.anything),
  quarantine: given(rules.anything),
  mayClaim: given(rules.callable),
  held: given(rules.callable),
  onError: given(rules.callable),
});

/** @throws InvalidOptionsError listing every fault */
export function checkQueueOptions(options: JobQueueOptions): JobQueueOptions {
  const faults = queueOptions.check(options, '');
  throwIfAny(faults.length ? faults : workerIdFaults(options.workerId));
  return options;
}

/** How long a stop waits. @throws InvalidArgumentError */
export const checkWait = (timeoutMs: unknown): void => check({ timeoutMs: [timeoutMs, rules.wait] });

/** The settings of a pool that are its queue's. */
export const queueSettingsOf = (pool: WorkerSettings) => {
  const { queueSize, queueTtlMs, refetchThreshold, refetchDelayMs, pollIntervalMs, maxPollIntervalMs } = pool;
  const { queues, forbiddenFlags } = pool;
  const pace = { queueTtlMs, refetchThreshold, refetchDelayMs, pollIntervalMs, maxPollIntervalMs };
  return { queueSize, ...pace, queues, forbiddenFlags };
};
