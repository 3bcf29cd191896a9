// Keeps a pool from running jobs whose outcomes nobody can write: opens when settles fail again and again, and closes with
// the first that goes through. The settle that is being retried is its probe.

/** `open`: nothing is claimed or started. `half-open`: the same, while a settle is being tried again. */
export type CircuitState = 'closed' | 'open' | 'half-open';

/** In a row. One or two failures are a hiccup that the retry takes care of. */
const FAILURES_TO_OPEN = 3;

export class SettleCircuit {
  private failures = 0;
  private openedAt = 0;
  private probing = false;

  constructor(private readonly onChange: (state: 'open' | 'closed', openMs: number, error: unknown) => void) {}

  get state(): CircuitState {
    if (this.failures < FAILURES_TO_OPEN) return 'closed';
    return this.probing ? 'half-open' : 'open';
  }

  /** A settle is on its way. */
  tries(): void {
    this.probing = true;
  }

  failed(error: unknown): void {
    this.probing = false;
    if (++this.failures !== FAILURES_TO_OPEN) return;
    this.openedAt = performance.now();
    this.onChange('open', 0, error);
  }

  succeeded(): void {
    const wasOpen = this.failures >= FAILURES_TO_OPEN;
    this.failures = 0;
    if (wasOpen) this.onChange('closed', performance.now() - this.openedAt, null);
  }
}
