// Natural batching of settles: at once when none is in flight; while one is, outcomes gather and go together when it
// is back. Outcomes are kept until they are applied or known to be lost, however long the database is away.
import type { SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { JobManager } from '../manager/job.manager.js';
import type { JobEvents } from '../monitoring/job.events.js';
import { backoffMs, pause } from './backoff.js';

const MAX_BATCH = 1_000;

export class OutcomeBatcher {
  private gathered: SettleRequest[] = [];
  private inFlight: Promise<void> | null = null;
  private inFlightCount = 0;

  constructor(
    private readonly jobs: JobManager,
    private readonly events: JobEvents,
    private readonly workerId: string,
    private readonly onSettled: (result: SettleResult) => void,
  ) {}

  /** Outcomes that are not settled yet. */
  get pending(): number {
    return this.gathered.length + this.inFlightCount;
  }

  add(request: SettleRequest): void {
    this.gathered.push(request);
    this.inFlight ??= this.drain();
  }

  /** Resolves when every outcome so far has been applied, or is known to be lost. */
  async flush(): Promise<void> {
    while (this.inFlight) await this.inFlight;
  }

  private async drain(): Promise<void> {
    // One turn: outcomes of the same tick share the first settle already.
    await Promise.resolve();
    while (this.gathered.length) {
      const batch = this.gathered.splice(0, MAX_BATCH);
      this.inFlightCount = batch.length;
      await this.settle(batch);
      this.inFlightCount = 0;
    }
    this.inFlight = null;
  }

  private async settle(batch: SettleRequest[]): Promise<void> {
    for (let failures = 0; ; failures++) {
      try {
        const results = await this.jobs.claims.settle(this.workerId, batch);
        this.announce(batch, results);
        return;
      } catch (error) {
        this.events.emit('worker.error', this.workerId, { error, context: 'settling outcomes' });
        await pause(backoffMs(failures));
      }
    }
  }

  private announce(batch: SettleRequest[], results: SettleResult[]): void {
    const requests = new Map(batch.map((request) => [request.job, request]));
    for (const result of results) {
      this.onSettled(result);
      this.emit(requests.get(result.job)!, result);
    }
  }

  private emit({ job, outcome, executionTimeMs }: SettleRequest, { status, runAt }: SettleResult): void {
    const { events, workerId } = this;
    if (status === 'released') return;
    if (status === 'lost') events.emit('job.lost', workerId, { job });
    else if (status === 'cancelled') {
      events.emit('job.cancelled', workerId, { job, reason: outcome.kind === 'cancelled' ? outcome.reason : null });
    } else if (outcome.kind === 'completed') {
      events.emit('job.completed', workerId, { job, executionTimeMs, result: outcome.result });
    } else if (outcome.kind === 'snoozed') events.emit('job.snoozed', workerId, { job, ms: outcome.delayMs });
    else if (outcome.kind === 'partial') {
      const { partialResults } = outcome;
      events.emit('job.partial-success', workerId, { job, executionTimeMs, partialResults });
      if (status === 'exhausted') events.emit('job.exhausted', workerId, { job, error: EXHAUSTED_BY_PARTIAL_SUCCESS });
    } else if ('error' in outcome) {
      events.emit('job.failed', workerId, { job, error: outcome.error, executionTimeMs, retryAt: runAt });
      if (status === 'exhausted') events.emit('job.exhausted', workerId, { job, error: outcome.error });
    }
    events.emit('job.settled', workerId, { job, outcome: status });
  }
}

const EXHAUSTED_BY_PARTIAL_SUCCESS = new Error('max-attempts reached on partial-success');
