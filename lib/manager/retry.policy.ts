// When a failed job runs again.
import type { RetryFunction, RetryOptions } from '../interfaces/task.interface.js';
import type { RetrySettings } from '../interfaces/jobs-options.interface.js';
import { show } from '../validation.js';

/** Runs at most this far into the future, whatever a user's function says: about 31 years. */
const FOREVER_MS = 1e12;
const warned = new WeakSet<RetryFunction>();

/**
 * How long to wait after the given attempt (from 1), in ms; `false` for never again.
 * `min(maxDelay, baseDelay × multiplier^(attempt − 1) × (1 + up to jitter))`; a task's own policy comes before the
 * module's.
 */
export function retryDelayMs(
  attempt: number,
  error: unknown,
  settings: RetrySettings,
  policy?: RetryOptions | RetryFunction,
): number | false {
  if (typeof policy === 'function') return byFunction(policy, attempt, error, settings);
  const given = Object.entries(policy ?? {}).filter(([, value]) => value !== undefined);
  const { baseDelayMs, multiplier, maxDelayMs, jitter } = { ...settings, ...Object.fromEntries(given) };
  // A power that is too large is Infinity: below the maximum delay it counts for nothing, but times 0 it is NaN.
  const delay = baseDelayMs === 0 ? 0 : baseDelayMs * multiplier ** (attempt - 1);
  return Math.min(maxDelayMs, delay * (1 + Math.random() * jitter));
}

/** What a user's function answers, or the default where it fails or answers no delay at all. */
function byFunction(policy: RetryFunction, attempt: number, error: unknown, settings: RetrySettings): number | false {
  try {
    const answer: unknown = policy(attempt, error);
    if (answer === false) return false;
    if (typeof answer === 'number' && answer >= 0) return Math.min(answer, FOREVER_MS);
    warnOf(policy, answer);
  } catch {
    // A policy that throws must not lose the outcome it was asked about.
  }
  return retryDelayMs(attempt, error, settings);
}

/** Once for each function. An answer that comes later cannot be waited for, and must not end the process. */
function warnOf(policy: RetryFunction, answer: unknown): void {
  const isLate = answer instanceof Promise;
  if (isLate) answer.catch(() => undefined);
  if (warned.has(policy)) return;
  warned.add(policy);
  process.emitWarning(
    `Expected ${show(policy)} of the option retry to return milliseconds or false, got ` +
      `${isLate ? 'a promise' : show(answer)}. The delays of the module's option retry apply.`,
    { type: 'MillraceWarning', code: 'MILLRACE_RETRY' },
  );
}
