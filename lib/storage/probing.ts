// After a failure one caller at a time tries again, after longer and longer pauses, until one try goes through.
import { backoffMs } from '../timing.js';

const FIRST_MS = 100;
const MAX_MS = 10_000;

export class Probing {
  private failures = 0;
  /** Grows with each failure; those of tries that began side by side are one. */
  private round = 0;
  private nextAt = 0;
  private readonly asleep = new Set<() => void>();

  /** Resolves when the caller may try, with what `failed` is to be told. @throws the signal's reason */
  async turn(signal: AbortSignal): Promise<number> {
    signal.throwIfAborted();
    for (let waitMs = this.waitMs(); waitMs > 0; waitMs = this.waitMs()) {
      await this.sleep(waitMs, signal);
      signal.throwIfAborted();
    }
    if (this.failures > 0) this.pause();
    return this.round;
  }

  failed(round: number): void {
    if (round !== this.round) return;
    this.round++;
    this.failures++;
    this.pause();
  }

  /** Lets all others try as well. */
  succeeded(): void {
    if (this.failures === 0) return;
    this.failures = 0;
    for (const wake of this.asleep) wake();
  }

  private waitMs(): number {
    return this.failures === 0 ? 0 : this.nextAt - performance.now();
  }

  private pause(): void {
    this.nextAt = performance.now() + backoffMs(this.failures, MAX_MS, FIRST_MS);
  }

  private async sleep(ms: number, signal: AbortSignal): Promise<void> {
    await new Promise<void>((resolve) => {
      const wake = (): void => {
        clearTimeout(timer);
        signal.removeEventListener('abort', wake);
        this.asleep.delete(wake);
        resolve();
      };
      const timer = setTimeout(wake, ms);
      signal.addEventListener('abort', wake, { once: true });
      this.asleep.add(wake);
    });
  }
}
