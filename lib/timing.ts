// Waiting: how long after failures, and no longer than users say.

/** Node's timers fire at once beyond it (24.8 days), and know no Infinity. */
export const MAX_TIMER_MS = 2 ** 31 - 1;

/** The wall's clock, as it is when the library is loaded: what a spec puts in the place of `Date` later stops no pool. */
export const wallClock = { now: Date.now };

const FIRST_BACKOFF_MS = 100;
const MAX_BACKOFF_MS = 10_000;

export const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Half of it to all of it: processes that fail together do not come back as one. */
export const jittered = (ms: number): number => ms * (0.5 + Math.random() / 2);

/** How long to wait after so many failures in a row: twice as long each time, with jitter. */
export const backoffMs = (failures: number, maxMs = MAX_BACKOFF_MS, firstMs = FIRST_BACKOFF_MS): number =>
  jittered(Math.min(maxMs, firstMs * 2 ** Math.min(failures, 20)));

/** Calls `work` once after so many ms, however many; never for `Infinity`. Returns what ends the wait. */
export function after(ms: number, work: () => void): () => void {
  const deadline = performance.now() + ms;
  let timer: NodeJS.Timeout | undefined;
  const wait = (leftMs: number): void => {
    timer = setTimeout(
      () => {
        const stillMs = deadline - performance.now();
        if (leftMs > MAX_TIMER_MS && stillMs > 0) wait(stillMs);
        else work();
      },
      Math.min(MAX_TIMER_MS, leftMs),
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

/** What the work answers; rejects with `late()` where it takes longer. Leaves no timer behind. */
export async function answeredWithin<T>(ms: number, work: Promise<T>, late: () => Error): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const silence = new Promise<never>((_, reject) => (timer = setTimeout(() => reject(late()), ms)));
  return Promise.race([work, silence]).finally(() => clearTimeout(timer));
}
