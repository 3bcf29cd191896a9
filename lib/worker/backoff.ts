// Waiting after so many failures in a row, with jitter, so that many processes do not come back as one.
import { isLockTimeout } from '../storage/database.errors.js';

const FIRST_MS = 100;
const LONGEST_MS = 10_000;
/** A lock costs the database nothing, and is gone from one moment to the next. */
const LONGEST_FOR_LOCKS_MS = 1_000;

/** `error`: the last failure, which may be locks of others that were in the way. */
export function backoffMs(failures: number, error?: unknown): number {
  const longestMs = isLockTimeout(error) ? LONGEST_FOR_LOCKS_MS : LONGEST_MS;
  const ceiling = Math.min(longestMs, FIRST_MS * 2 ** Math.min(failures, 20));
  return ceiling / 2 + Math.random() * (ceiling / 2);
}

export const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
