// Whether the database answers, as the library's own statements find it: when trouble begins, and when it is over.
import { DatabaseUnavailableError } from '../jobs.errors.js';
import { mayAnswerSoon } from './database.errors.js';

/** Trouble is over when the database has answered and nothing has failed for so long: some connections come back first. */
const QUIET_MS = 1_000;

export interface ReachabilityListener {
  lost(error: DatabaseUnavailableError): void;
  /** `failures`: statements that failed meanwhile. */
  back(downMs: number, failures: number): void;
}

export class Reachability {
  private readonly listeners = new Set<ReachabilityListener>();
  private lostAt: number | null = null;
  private failedAt = 0;
  private failures = 0;

  /** Whether the database was away when it was asked last. */
  get troubled(): boolean {
    return this.lostAt !== null;
  }

  /** Returns how to stop listening. */
  watch(listener: ReachabilityListener): () => void {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }

  failed(error: unknown): void {
    if (!(error instanceof DatabaseUnavailableError) || !mayAnswerSoon(error)) return;
    this.failures++;
    this.failedAt = performance.now();
    if (this.lostAt !== null) return;
    this.lostAt = this.failedAt;
    for (const listener of this.listeners) listener.lost(error);
  }

  answered(): void {
    const now = performance.now();
    if (this.lostAt === null || now - this.failedAt < QUIET_MS) return;
    const downMs = this.failedAt - this.lostAt;
    const { failures } = this;
    this.lostAt = null;
    this.failures = 0;
    for (const listener of this.listeners) listener.back(downMs, failures);
  }
}
