// Natural batching of settles: at once when none is in flight; while one is, outcomes gather and go together when it
// is back. Outcomes are kept until they are applied or known to be lost, however long the database is away.
import type { Outcome, SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { JobManager } from '../manager/job.manager.js';
import type { JobEvents } from '../monitoring/job.events.js';
import { isDataFault } from '../manager/settlement.js';
import { backoffMs, pause } from './backoff.js';

const MAX_BATCH = 1_000;

export class OutcomeBatcher {
  private gathered: SettleRequest[] = [];
  private inFlight: Promise<void> | null = null;
  private settling: SettleRequest[] = [];
  private readonly late = new Map<Promise<void>, SettleRequest[]>();

  constructor(
    private readonly jobs: JobManager,
    private readonly events: JobEvents,
    private readonly workerId: string,
    private readonly onSettled: (result: SettleResult) => void,
  ) {}

  /** Outcomes that are not settled yet. */
  get pending(): number {
    return this.gathered.length + this.settling.length;
  }

  /** Jobs whose outcomes are not known to be settled. */
  unsettled(): ClaimedJob[] {
    return [this.gathered, this.settling, ...this.late.values()].flatMap((batch) => batch.map(({ job }) => job));
  }

  add(request: SettleRequest): void {
    this.gathered.push(request);
    this.inFlight ??= this.drain();
  }

  /** Tells the world what has become of attempts. */
  announce(batch: SettleRequest[], results: SettleResult[]): void {
    // Results come in the order of their requests, mostly all of them: looking each up would cost more.
    let index = 0;
    for (const result of results) {
      if (batch[index]?.job !== result.job) index = batch.findIndex(({ job }) => job === result.job);
      this.onSettled(result);
      this.emit(batch[index++]!, result);
    }
  }

  /** Resolves when every outcome so far has been applied, or is known to be lost. */
  async flush(): Promise<void> {
    while (this.inFlight || this.late.size) await Promise.all([this.inFlight, ...this.late.keys()]);
  }

  private async drain(): Promise<void> {
    // One turn: outcomes of the same tick share the first settle already.
    await Promise.resolve();
    while (this.gathered.length) {
      const batch = this.gathered.splice(0, MAX_BATCH);
      this.settling = batch;
      await this.settle(batch);
      this.settling = [];
    }
    this.inFlight = null;
  }

  /** Repeats until it is done: outcomes are kept however long the database is away. */
  private async settle(batch: SettleRequest[]): Promise<void> {
    for (let failures = 0; ; failures++) {
      try {
        const repeated = failures > 0 || batch.some(({ inDoubt }) => inDoubt);
        const { results, late } = await this.jobs.claims.settle(this.workerId, batch, { repeated });
        this.announce(batch, results);
        if (late) this.await(late, batch, new Set(results.map(({ job }) => job)));
        return;
      } catch (error) {
        this.report(error);
        if (isDataFault(error)) return this.settleApart(batch, error);
        await pause(backoffMs(failures));
      }
    }
  }

  /** Somebody's values are at fault: each goes alone, and what cannot be stored gives way to the reason. */
  private async settleApart(batch: SettleRequest[], error: unknown): Promise<void> {
    if (batch.length > 1) for (const request of batch) await this.settle([request]);
    else await this.settle(batch.map((request) => withoutValues(request, error)));
  }

  /** Those that wait for other people's transactions keep nobody else waiting. */
  private await(late: Promise<SettleResult[]>, batch: SettleRequest[], settled: Set<ClaimedJob>): void {
    const work = late
      .then(
        (results) => this.announce(batch, results),
        (error: unknown) => {
          this.report(error);
          for (const request of batch) if (!settled.has(request.job)) this.add(request);
        },
      )
      .finally(() => this.late.delete(work));
    this.late.set(work, batch);
  }

  private report(error: unknown): void {
    this.events.emit('worker.error', this.workerId, { error, context: 'settling outcomes' });
  }

  private emit({ job, outcome, executionTimeMs }: SettleRequest, { status, runAt }: SettleResult): void {
    const { events, workerId } = this;
    if (status === 'released') return;
    if (status === 'lost') events.emit('job.lost', workerId, { job });
    else if (status === 'cancelled') {
      events.emit('job.cancelled', workerId, { job, reason: outcome.kind === 'cancelled' ? outcome.reason : null });
    } else if (status === 'completed') {
      const result = outcome.kind === 'completed' ? outcome.result : null;
      events.emit('job.completed', workerId, { job, executionTimeMs, result });
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

/** The outcome without what a handler put into it: a result is let go of, a failure keeps only the reason. */
function withoutValues(request: SettleRequest, error: unknown): SettleRequest {
  const { kind } = request.outcome;
  const outcome: Outcome = kind === 'completed' ? { kind, result: null } : { kind: 'permanent', error };
  return { ...request, outcome };
}
