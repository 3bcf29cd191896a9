// How an add meets what was added before it: under a job key, in a window of time, or both.
import { createHash } from 'node:crypto';
import type { AddJobOptions, Throttle, Unique, UniqueBy } from '../interfaces/job.interface.js';
import type { TaskOptions } from '../interfaces/task.interface.js';
import { InvalidArgumentError, PayloadNotSerializableError } from '../jobs.errors.js';
import type { NewJob } from '../storage/statements/add-jobs.js';
import { canonicalJson, partAt } from './canonical.json.js';

type Meeting = Pick<
  NewJob,
  'delay_ms' | 'debounce_max_ms' | 'job_key' | 'job_key_mode' | 'window_key' | 'window_ms' | 'window_mode'
>;

/** What is compared, beside the task's name. */
export interface Compared {
  task: string;
  queue: string | null;
  partition: string | null;
  /** The payload's JSON. */
  json: string;
  /** For payloads that are encrypted: their digests must tell nothing to those without the key. */
  digest: ((text: string) => string) | undefined;
}

const ALONE: Meeting = {
  delay_ms: null,
  debounce_max_ms: null,
  job_key: null,
  job_key_mode: null,
  window_key: null,
  window_ms: null,
  window_mode: null,
};

/** @throws InvalidArgumentError where the payload lacks what is compared, PayloadNotSerializableError */
export function meetingOf(options: AddJobOptions, defaults: TaskOptions, compared: Compared): Meeting {
  const { jobKey, jobKeyMode = 'replace', debounce, delayMs = null } = options;
  if (debounce) {
    const { key, ms, maxMs = null } = debounce;
    return { ...ALONE, delay_ms: ms, debounce_max_ms: maxMs, job_key: key, job_key_mode: 'debounce' };
  }
  if (jobKey !== undefined) return { ...ALONE, delay_ms: delayMs, job_key: jobKey, job_key_mode: jobKeyMode };
  const { throttle, unique } = windowsOf(options, defaults);
  if (throttle) return { ...throttled(throttle, options), delay_ms: delayMs };
  if (unique) return { ...uniqueBy(unique, compared), delay_ms: delayMs };
  return { ...ALONE, delay_ms: delayMs };
}

type Windows = Pick<AddJobOptions, 'throttle' | 'unique'>;

function windowsOf(options: AddJobOptions, defaults: TaskOptions): Windows {
  const hasOwn = Boolean(options.throttle ?? options.unique);
  return {
    throttle: options.throttle === undefined && !hasOwn ? defaults.throttle : options.throttle,
    unique: options.unique === undefined && !hasOwn ? defaults.unique : options.unique,
  };
}

/** What is asked for where partitions are compared, apart from the caller's objects; null: none are. */
export function comparingPartitions(options: AddJobOptions, defaults: TaskOptions): AddJobOptions | null {
  const { throttle, unique } = windowsOf(options, defaults);
  if (throttle || options.debounce || options.jobKey !== undefined || !unique?.by?.includes('partition')) return null;
  return { unique: structuredClone(unique), delayMs: options.delayMs };
}

function throttled({ key, ms, mode = 'drop' }: Throttle, { runAt, delayMs }: AddJobOptions): Meeting {
  // The task's throttle may be what says so.
  if (mode === 'delay' && (runAt ?? delayMs) !== undefined) {
    throw new InvalidArgumentError([
      "Expected neither runAt nor delayMs beside a throttle with mode 'delay', which says when the job runs. Pass " +
        'throttle: null to add it without.',
    ]);
  }
  return {
    ...ALONE,
    job_key_mode: mode === 'delay' ? 'throttle' : 'unique',
    window_key: `throttle:${key}`,
    window_ms: ms,
    window_mode: mode,
  };
}

function uniqueBy({ by = ['payload'], withinMs, ...unique }: Unique, compared: Compared): Meeting {
  const key = `unique:${hashOf(by, compared)}`;
  const isLive = withinMs === undefined || unique.while === 'live';
  return {
    ...ALONE,
    job_key: isLive ? key : null,
    job_key_mode: 'unique',
    ...(withinMs !== undefined && { window_key: key, window_ms: withinMs, window_mode: 'drop' as const }),
  };
}

function hashOf(by: UniqueBy[], compared: Compared): string {
  const { task, json, digest = sha256 } = compared;
  const payload: unknown = JSON.parse(json);
  const parts = [...new Set(by)].toSorted().map((name) => [name, valueOf(name, payload, compared)]);
  try {
    return digest(`millrace:unique:${canonicalJson([task, parts])}`);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new PayloadNotSerializableError(task, 'it is nested too deeply to be compared.', { cause: error });
  }
}

function valueOf(name: UniqueBy, payload: unknown, { task, queue, partition }: Compared): unknown {
  if (name === 'payload') return payload;
  if (name === 'queue') return queue;
  if (name === 'partition') return partition;
  const value = partAt(payload, name.split('.').slice(1));
  // A misspelt path would make all jobs of the task the same.
  if (value !== undefined) return value;
  throw new InvalidArgumentError([
    `Expected the payload of task "${task}" to have ${name}, which unique.by names, got none. Correct the path, or give the ` +
      'property a value: null will do.',
  ]);
}

const sha256 = (text: string): string => createHash('sha256').update(text).digest('base64url');
