// When a failed job runs again.
import type { RetryFunction, RetryOptions } from '../interfaces/task.interface.js';
import type { RetrySettings } from '../interfaces/jobs-options.interface.js';

/** Runs at most this far into the future, whatever a user's function says: about 31 years. */
const FOREVER_MS = 1e12;

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
  if (typeof policy === 'function') return delayOf(policy(attempt, error), attempt, settings);
  const { baseDelayMs, multiplier, maxDelayMs, jitter } = { ...settings, ...policy };
  const delay = baseDelayMs * multiplier ** (attempt - 1);
  return Math.min(maxDelayMs, delay * (1 + Math.random() * jitter));
}

/** What a user's function answered, or the default where that is no delay at all. */
function delayOf(answer: unknown, attempt: number, settings: RetrySettings): number | false {
  if (answer === false) return false;
  if (typeof answer === 'number' && answer >= 0) return Math.min(answer, FOREVER_MS);
  return retryDelayMs(attempt, undefined, settings);
}
