// Keeps a pool from running jobs whose outcomes cannot be written: opens when settles, or transactions that should begin,
// fail again and again, and closes with the first that goes through. What is being retried is its probe: a settle, or a slot
// that waits for its transaction.

/** `open`: nothing is claimed or started. `half-open`: the same, while a settle is being tried again. */
export type CircuitState = 'closed' | 'open' | 'half-open';

/** In a row. One or two failures are a hiccup that the retry takes care of. */
const FAILURES_TO_OPEN = 3;

export class CircuitBreaker {
  /** Counted apart: transactions may begin where outcomes cannot be written. */
  private readonly failures = { settle: 0, begin: 0 };
  private openedAt = 0;
  private probing = false;

  constructor(private readonly onChange: (state: 'open' | 'closed', openMs: number, error: unknown) => void) {}

  get state(): CircuitState {
    if (!this.isOpen) return 'closed';
    return this.probing ? 'half-open' : 'open';
  }

  /** A settle is on its way. */
  tries(): void {
    this.probing = true;
  }

  failed(error: unknown): void {
    this.probing = false;
    this.change({ settle: this.failures.settle + 1 }, error);
  }

  /** An attempt that waits for a transaction and gives up is settled, so the circuit cannot stay open for want of a probe. */
  succeeded(): void {
    if (this.failures.settle + this.failures.begin > 0) this.change({ settle: 0, begin: 0 });
  }

  /** A transaction could not begin. */
  beginFailed(error: unknown): void {
    this.change({ begin: this.failures.begin + 1 }, error);
  }

  begun(): void {
    if (this.failures.begin > 0) this.change({ begin: 0 });
  }

  private get isOpen(): boolean {
    return Math.max(this.failures.settle, this.failures.begin) >= FAILURES_TO_OPEN;
  }

  private change(failures: { settle?: number; begin?: number }, error: unknown = null): void {
    const wasOpen = this.isOpen;
    Object.assign(this.failures, failures);
    if (wasOpen === this.isOpen) return;
    if (wasOpen) return this.onChange('closed', performance.now() - this.openedAt, null);
    this.openedAt = performance.now();
    this.onChange('open', 0, error);
  }
}
