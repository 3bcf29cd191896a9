// What a handler's answer means. Whatever it returns or throws becomes an Outcome here and nowhere else.
import type { Outcome, SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { ClaimedJob, PartialResults } from '../interfaces/job.interface.js';
import { CancelJob, PermanentFailure } from '../jobs.errors.js';
import { callOptions } from '../manager/arguments.js';
import { exactJson } from '../manager/exact.json.js';
import { RateLimitedError } from '../manager/rate.errors.js';
import { readLimited } from '../manager/rate.limits.js';
import { check, type Rule } from '../validation.js';
import { rules } from '../validation.rules.js';

/** A fixed key, so that several copies of the package understand each other. */
const BRAND = Symbol.for('millrace:outcome');
const MAX_RESULT_BYTES = 1_048_576;

/** An attempt that has ended. */
export interface Attempt extends SettleRequest {
  /** What its own transaction has made of the job; null: it has yet to be settled. */
  settled: SettleResult | null;
}

/** One whose handler has ended: by an answer, or by throwing. */
export type Ended = Attempt & { thrown: boolean };

export function ended(job: ClaimedJob, outcome: Outcome, startedAt: number, thrown = false): Ended {
  return { job, outcome, executionTimeMs: performance.now() - startedAt, settled: null, thrown };
}

interface PartialSuccess {
  readonly [BRAND]: 'partial-success';
  readonly results: PartialResults;
}

interface Snooze {
  readonly [BRAND]: 'snooze';
  readonly ms: number;
}

/**
 * Return it from a handler that got half-way: the job runs again after its backoff and finds this as `ctx.previous`.
 *
 * @throws InvalidArgumentError
 * @example
 * return partialSuccess({ completedSteps: ['reserve'], retryFromStep: 'charge', results: { reservation: 7 } });
 */
export function partialSuccess(results: PartialResults): PartialSuccess {
  const given: Rule = (value) => (value === undefined ? 'an object' : null);
  check({ 'what partialSuccess is given': [results, given] }, [callOptions.partialResults, results]);
  return { [BRAND]: 'partial-success', results };
}

/** Whether a value was made by `partialSuccess`. */
export const isPartialSuccess = (value: unknown): value is PartialSuccess => brandOf(value) === 'partial-success';

/**
 * Return it from a handler to run again after `ms` without using up an attempt.
 * @throws InvalidArgumentError unless `ms` is a number of at least 0
 */
export function snooze(ms: number): Snooze {
  check({ 'the ms of snooze': [ms, rules.duration] });
  return { [BRAND]: 'snooze', ms };
}

/** Whether a value was made by `snooze`. */
export const isSnooze = (value: unknown): value is Snooze => brandOf(value) === 'snooze';

const brandOf = (value: unknown): unknown =>
  typeof value === 'object' && value !== null ? quietly(() => (value as Record<symbol, unknown>)[BRAND]) : undefined;

/** Hostile getters and proxies are none of ours. */
function quietly<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

/** `false`: never again. */
export type DelayOf = (error: unknown) => number | false;

/** `problem` tells why a result could not be kept; the work is done all the same. */
export type Reading = { outcome: Outcome; problem?: Error };

export function readReturned(value: unknown, delayOf: DelayOf): Reading {
  if (value === undefined) return { outcome: { kind: 'completed', result: null } };
  return readAnswer(value, delayOf) ?? readResult(value);
}

/** What is to be returned means the same where it is thrown. */
export function readThrown(thrown: unknown, delayOf: DelayOf): Outcome {
  const answer = readAnswer(thrown, delayOf);
  if (answer) return answer.outcome;
  const error = isVerdictClass(thrown) ? new PermanentFailure(notMade(thrown)) : thrown;
  const limited = quietly(() => readLimited(error));
  if (limited) return limited;
  const code = codeOf(error);
  if (code === 'ERR_JOBS_PERMANENT_FAILURE' || code === 'ERR_JOBS_STEP_RESULT') return { kind: 'permanent', error };
  if (code === 'ERR_JOBS_CANCELLED') return { kind: 'cancelled', reason: (error as Error).message };
  const delayMs = delayOf(error);
  return delayMs === false ? { kind: 'permanent', error } : { kind: 'failed', error, delayMs };
}

function readAnswer(value: unknown, delayOf: DelayOf): Reading | null {
  if (isPartialSuccess(value)) return readPartial(value, delayOf);
  if (isSnooze(value)) return { outcome: { kind: 'snoozed', delayMs: value.ms } };
  return null;
}

/**
 * An error that says what is to become of the job, or its class, of which no error was made. It means the same where it is
 * returned as where it is thrown.
 */
export const isVerdict = (value: unknown): boolean =>
  isVerdictClass(value) ||
  (quietly(() => value instanceof Error) === true &&
    ['ERR_JOBS_PERMANENT_FAILURE', 'ERR_JOBS_CANCELLED', 'ERR_JOBS_RATE_LIMITED'].includes(codeOf(value) as string));

const isVerdictClass = (value: unknown): value is { name: string } =>
  [PermanentFailure, CancelJob, RateLimitedError].includes(value as typeof CancelJob);

const notMade = ({ name }: { name: string }): string =>
  `Expected the handler to throw new ${name}(reason), got the class ${name} itself.`;

/** By code, not by class: the error may come from another copy of the package. */
const codeOf = (error: unknown): unknown => quietly(() => (error as { code?: unknown } | null | undefined)?.code);

function readPartial({ results }: PartialSuccess, delayOf: DelayOf): Reading {
  try {
    exactJson('the partial results', results);
  } catch (error) {
    return { outcome: readThrown(error, delayOf) };
  }
  const delayMs = delayOf(undefined);
  return { outcome: { kind: 'partial', partialResults: results, delayMs: delayMs === false ? 0 : delayMs } };
}

/** A result that cannot be kept must not make the job fail: its work is done, and would be done again. */
function readResult(value: unknown): Reading {
  const { text, problem } = refuse('the result', () => JSON.stringify(value));
  if (text === '{}' && !isPlain(value))
    return { outcome: { kind: 'completed', result: null }, problem: emptied(value) };
  return { outcome: { kind: 'completed', result: text ?? null }, ...(problem && { problem }) };
}

const isPlain = (value: unknown): boolean =>
  [Object.prototype, null].includes(quietly(() => Object.getPrototypeOf(value) as object) as object);

/** A Map, a Set, an Error … */
const emptied = (value: unknown): Error =>
  new Error(
    `the result is a ${quietly(() => (value as object).constructor.name) ?? 'strange object'}, of which JSON keeps nothing, and was not kept`,
  );

function refuse(what: string, write: () => string | undefined): { text?: string; problem?: Error } {
  try {
    const text = write();
    if (text === undefined || Buffer.byteLength(text) <= MAX_RESULT_BYTES) return text === undefined ? {} : { text };
    return { problem: new Error(`${what} is larger than ${MAX_RESULT_BYTES} bytes of JSON and was not kept`) };
  } catch (cause) {
    return { problem: new Error(`${what} cannot be written as JSON and was not kept`, { cause }) };
  }
}
