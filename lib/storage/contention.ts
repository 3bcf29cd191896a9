// Calls that others' locks may get in the way of, and that do no harm when they are repeated.
import { isContention } from './database.errors.js';

const FIRST_PAUSE_MS = 10;
const LONGEST_PAUSE_MS = 1_000;
const PATIENCE_MS = 10_000;

/**
 * Repeats what gave up waiting for a lock, for some seconds. `once`: inside a caller's transaction a failure has ended
 * everything.
 */
export async function retryOnContention<T>(work: () => Promise<T>, once = false): Promise<T> {
  const deadline = performance.now() + PATIENCE_MS;
  for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(LONGEST_PAUSE_MS, pauseMs * 2)) {
    try {
      return await work();
    } catch (error) {
      if (once || !isContention(error) || performance.now() > deadline) throw error;
      await new Promise((resolve) => setTimeout(resolve, pauseMs * (0.5 + Math.random() / 2)));
    }
  }
}
