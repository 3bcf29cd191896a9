// How long to wait after so many failures in a row, with jitter, so that many processes do not come back as one.

const FIRST_MS = 100;
const LONGEST_MS = 10_000;

export function backoffMs(failures: number): number {
  const ceiling = Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(failures, 20));
  return ceiling / 2 + Math.random() * (ceiling / 2);
}

export const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
