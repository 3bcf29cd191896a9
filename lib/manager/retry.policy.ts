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
  if (typeof policy === 'function') return byFunction(policy, attempt, error, settings);
  const { baseDelayMs, multiplier, maxDelayMs, jitter } = { ...settings, ...policy };
  const delay = baseDelayMs * multiplier ** (attempt - 1);
  return Math.min(maxDelayMs, delay * (1 + Math.random() * jitter));
}

/** What a user's function answers, or the default where it fails or answers no delay at all. */
function byFunction(policy: RetryFunction, attempt: number, error: unknown, settings: RetrySettings): number | false {
  try {
    const answer: unknown = policy(attempt, error);
    if (answer === false) return false;
    if (typeof answer === 'number' && answer >= 0) return Math.min(answer, FOREVER_MS);
  } catch {
    // A policy that throws must not lose the outcome it was asked about.
  }
  return retryDelayMs(attempt, error, settings);
}
