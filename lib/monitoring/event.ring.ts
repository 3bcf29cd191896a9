// The last events, bounded in number and in bytes. Small values are kept as they are; one that is large is replaced, so
// that jobs which are long done do not stay in memory with their payloads.
import { types } from 'node:util';
import type { JobEventType } from '../interfaces/event.interface.js';

const { isDate, isNativeError } = types;
const REMEMBERED = 1_000;
/** Of one value, about. A thousand events of five such values are the worst case. */
const MAX_BYTES = 4_096;
/** What an entry of an object or an array takes beside its value, at least. Also limits how much is looked at. */
const ENTRY_BYTES = 32;
const MAX_TEXT = 1_000;

/** Stands in `events()` in the place of a value that is too large to be remembered. Subscribers get the value. */
export const TOO_LARGE = '[too large to remember]';

/** In parts: most are never looked at, and three objects for each job would be a good part of its garbage. */
export class EventRing {
  private readonly types: JobEventType[] = [];
  private readonly times = new Float64Array(REMEMBERED);
  private readonly workerIds: (string | null)[] = [];
  private readonly fields: object[] = [];
  private next = 0;

  remember(type: JobEventType, at: number, workerId: string | null, fields: object): void {
    const index = this.next;
    this.types[index] = type;
    this.times[index] = at;
    this.workerIds[index] = workerId;
    this.fields[index] = withoutLarge(fields);
    this.next = (index + 1) % REMEMBERED;
  }

  /** Oldest first. */
  read<E>(make: (type: JobEventType, at: number, workerId: string | null, fields: object) => E): E[] {
    const events = this.types.map((type, index) =>
      make(type, this.times[index]!, this.workerIds[index]!, this.fields[index]!),
    );
    return [...events.slice(this.next), ...events.slice(0, this.next)];
  }
}

/** The parts of a job, and of an event, that may be of any size. */
interface Large {
  job?: LargeOfJob;
  result?: unknown;
  partialResults?: unknown;
  error?: unknown;
}
type LargeOfJob = Partial<Record<'payload' | 'progress' | 'previous' | 'lastError' | 'tags' | 'flags', unknown>>;

/** The same object where nothing in it is large. Three events of each job come by here: it takes some 100 ns. */
function withoutLarge(fields: Large): object {
  const { job, result, partialResults, error } = fields;
  const largeJob = job !== undefined && isLargeJob(job);
  if (!largeJob && isSmall(result) && isSmall(partialResults) && isSmall(error)) return fields;
  const copy: Large = { ...fields };
  if (largeJob) copy.job = smallJobOf(job);
  for (const name of ['result', 'partialResults', 'error'] as const) if (name in copy) copy[name] = smallOf(copy[name]);
  return copy;
}

const isLargeJob = ({ payload, progress, previous, lastError, tags, flags }: LargeOfJob): boolean =>
  !(
    isSmall(payload) &&
    isSmall(progress) &&
    isSmall(previous) &&
    isSmall(lastError) &&
    isSmall(tags) &&
    isSmall(flags)
  );

function smallJobOf(job: LargeOfJob): LargeOfJob {
  const copy = { ...job };
  for (const name of ['payload', 'progress', 'previous', 'lastError', 'tags', 'flags'] as const) {
    if (name in copy) copy[name] = smallOf(copy[name]);
  }
  return copy;
}

function smallOf(value: unknown): unknown {
  try {
    if (isSmall(value)) return value;
    return isError(value) ? shortened(value) : Array.isArray(value) ? [TOO_LARGE] : TOO_LARGE;
  } catch {
    // Whatever a handler throws or returns, getters and proxies that throw included.
    return TOO_LARGE;
  }
}

function isSmall(value: unknown): boolean {
  if (value === null || value === undefined) return true;
  if (typeof value === 'string') return value.length <= MAX_BYTES;
  try {
    return bytesLeft(value, MAX_BYTES) >= 0;
  } catch {
    return false;
  }
}

/** A masked error is a copy that only has the class of one. */
const isError = (value: unknown): value is Error => value instanceof Error || isNativeError(value);

/** What a value leaves of so many bytes; below zero: it is larger, or of a class that may hold on to anything. */
function bytesLeft(value: unknown, budget: number): number {
  if (typeof value === 'string') return budget - value.length;
  if (typeof value === 'function') return -1;
  if (typeof value !== 'object' || value === null) return budget;
  if (Array.isArray(value)) return bytesLeftOfArray(value, budget);
  const prototype = Object.getPrototypeOf(value) as object | null;
  // Plain, wherever it was made: Jest gives each spec an Object of its own.
  const isPlain = prototype === Object.prototype || prototype === null || Object.getPrototypeOf(prototype) === null;
  if (isPlain) return bytesLeftOfObject(value, budget);
  if (isError(value)) return bytesLeftOfError(value, budget);
  return isDate(value) ? budget - ENTRY_BYTES : -1;
}

function bytesLeftOfArray(entries: unknown[], budget: number): number {
  let left = budget - ENTRY_BYTES * entries.length;
  for (let index = 0; index < entries.length && left >= 0; index++) left = bytesLeft(entries[index], left);
  return left;
}

function bytesLeftOfObject(object: object, budget: number): number {
  let left = budget;
  for (const key in object) {
    left = bytesLeft((object as Record<string, unknown>)[key], left - ENTRY_BYTES - key.length);
    if (left < 0) return left;
  }
  return left;
}

/** Its message, stack, cause and errors are not enumerable. */
function bytesLeftOfError(error: Error, budget: number): number {
  let left = budget;
  for (const name of Object.getOwnPropertyNames(error)) {
    left = bytesLeft((error as unknown as Record<string, unknown>)[name], left - ENTRY_BYTES);
    if (left < 0) return left;
  }
  return left;
}

/** Of the same class, with what says most. */
function shortened(error: Error): Error {
  const copy = Object.create(Object.getPrototypeOf(error) as object) as Error;
  const { name, message, stack = '', code } = error as Error & { code?: unknown };
  const short = {
    name,
    message: cut(message),
    stack: cut(stack),
    ...(typeof code === 'string' && { code: cut(code) }),
  };
  for (const [key, value] of Object.entries(short)) {
    Object.defineProperty(copy, key, { value, enumerable: key === 'code', writable: true, configurable: true });
  }
  return copy;
}

/** Copied: a part of a long string would keep the whole of it. */
const cut = (text: string): string =>
  text.length <= MAX_TEXT ? text : Buffer.from(`${text.slice(0, MAX_TEXT)}…`).toString();
