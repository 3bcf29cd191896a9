// Timers for times that users choose, and waiting for no longer than they say: Node's fire at once beyond 2^31 ms (24.8 days),
// and know no Infinity.

const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** Calls `work` once after so many ms, however many; never for `Infinity`. Returns what ends the wait. */
export function after(ms: number, work: () => void): () => void {
  const deadline = performance.now() + ms;
  let timer: NodeJS.Timeout | undefined;
  const wait = (leftMs: number): void => {
    timer = setTimeout(
      () => {
        const stillMs = deadline - performance.now();
        if (leftMs > LONGEST_TIMER_MS && stillMs > 0) wait(stillMs);
        else work();
      },
      Math.min(LONGEST_TIMER_MS, leftMs),
    );
  };
  if (ms !== Infinity) wait(ms);
  return () => clearTimeout(timer);
}

/** Whether the work ended within the time. Leaves no timer behind. */
export async function settledWithin(ms: number, work: Promise<unknown>): Promise<boolean> {
  let endTimer!: () => void;
  const timeout = new Promise<false>((resolve) => (endTimer = after(ms, () => resolve(false))));
  try {
    return await Promise.race([work.then(() => true as const), timeout]);
  } finally {
    endTimer();
  }
}
