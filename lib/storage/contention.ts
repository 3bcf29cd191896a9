// Calls that others' locks may get in the way of, and that do no harm when they are repeated.
import { JobHeldError } from '../jobs.errors.js';
import { jittered, pause } from '../timing.js';
import { isContention, isLockTimeout } from './database.errors.js';

const FIRST_PAUSE_MS = 10;
const MAX_PAUSE_MS = 1_000;
const PATIENCE_MS = 10_000;

/**
 * Repeats what gave up waiting for a lock, for 10 s. No connection waits meanwhile. `once`: inside a caller's transaction a
 * failure has ended everything.
 * @throws RowsHeldError where that was not enough
 */
export async function retryOnContention<T>(
  work: () => Promise<T>,
  once = false,
  deadline = performance.now() + PATIENCE_MS,
): Promise<T> {
  for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(MAX_PAUSE_MS, pauseMs * 2)) {
    try {
      return await work();
    } catch (error) {
      if (once || !isContention(error) || performance.now() > deadline) throw error;
      await pause(jittered(pauseMs));
    }
  }
}

/** How one call does each of its steps. */
export type Doing = <T>(step: () => Promise<T>) => Promise<T>;

/** What comes again by itself. */
export const once: Doing = (step) => step();

/** Repeats steps as retryOnContention does, for 10 s in all. */
export function withLockRetries(inTransaction: boolean): Doing {
  const deadline = performance.now() + PATIENCE_MS;
  return (step) => retryOnContention(step, inTransaction, deadline);
}

/**
 * Tries again what open transactions hold: `work` returns which of the ids these are.
 * @throws JobHeldError after some seconds; what could be done is done
 */
export async function retryHeld(ids: string[], work: (ids: string[]) => Promise<string[]>): Promise<void> {
  const deadline = performance.now() + PATIENCE_MS;
  let held = await work(ids);
  for (let pauseMs = FIRST_PAUSE_MS / 2; held.length; pauseMs = Math.min(MAX_PAUSE_MS, pauseMs * 2)) {
    if (performance.now() > deadline) throw new JobHeldError(held);
    await pause(pauseMs);
    held = await work(held);
  }
}

/** For a claim that a lock has cut short, and that has some jobs already: on a connection of the library's they are claimed. */
export const nullIfLocked =
  (hasSome: () => boolean) =>
  (error: unknown): null => {
    if (isLockTimeout(error) && hasSome()) return null;
    throw error;
  };
