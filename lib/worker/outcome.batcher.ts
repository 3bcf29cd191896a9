// Natural batching of settles: at once when none is in flight; while one is, outcomes gather and go together when it
// is back. Outcomes are kept until they are applied or known to be lost, however long the database is away; only where the
// connection pool was closed, or the pool has ended, is one try enough.
import type { Claimer, Outcome, SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { StoppedError } from '../jobs.errors.js';
import type { JobEngine } from '../manager/job.engine.js';
import type { JobEvents } from '../monitoring/job.events.js';
import { isDataFault, isStatementTimeout, maxPauseMs } from '../storage/sql.states.js';
import { backoffMs } from '../timing.js';
import type { FillingAnswer } from './place.filler.js';
import { CircuitBreaker } from './circuit.breaker.js';

const MAX_BATCH = 1_000;
/** Outcomes that wait to be written before slots stop taking more: the database is away or slow. */
const MAX_PENDING = 2_000;
const MAX_PENDING_BYTES = 32 * 1024 * 1024;

export class OutcomeBatcher {
  readonly circuit: CircuitBreaker;
  private gathered: SettleRequest[] = [];
  private inFlight: Promise<void> | null = null;
  private writing: SettleRequest[] = [];
  private resultBytes = 0;
  /** Outcomes that wait for other people's transactions. */
  private readonly late = new Map<Promise<void>, SettleRequest[]>();
  private givenUp = false;
  private endPause: (() => void) | null = null;

  constructor(
    private readonly engine: JobEngine,
    private readonly events: JobEvents,
    private readonly claimer: () => Claimer,
    private readonly onSettled: (result: SettleResult) => void,
    onCircuit: () => void = () => undefined,
    /** Settles completions and fills the places that they free in one go; null where it cannot now. */
    private readonly settleAndClaim: (batch: SettleRequest[]) => Promise<FillingAnswer | null> | null = () => null,
    /** Hears of outcomes that are not tried again. */
    private readonly onUnwritten: (requests: SettleRequest[], error: unknown) => void = (_requests, error) =>
      this.report(error),
  ) {
    this.circuit = new CircuitBreaker((state, openMs, error) => {
      const unwritten = this.pending;
      if (state === 'open') events.emit('circuit.open', this.workerId, { error, unwritten });
      else events.emit('circuit.closed', this.workerId, { openMs, unwritten });
      onCircuit();
    });
  }

  private get workerId(): string {
    return this.claimer().label;
  }

  /** Outcomes that are not settled yet. */
  get pending(): number {
    return this.gathered.length + this.writing.length;
  }

  /** Whether so much waits to be written that slots should wait too. */
  get isFull(): boolean {
    return this.pending > MAX_PENDING || this.resultBytes > MAX_PENDING_BYTES;
  }

  add(request: SettleRequest): void {
    this.gathered.push(request);
    this.resultBytes += bytesOf(request);
    this.inFlight ??= this.drain();
  }

  /** Outcomes that are on their way to the database, however far they have got. */
  held(): SettleRequest[] {
    return [...this.gathered, ...this.writing, ...[...this.late.values()].flat()];
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

  /** Resolves when every outcome so far has been applied, or is known to be lost; or when no more tries are made. */
  async flush(): Promise<void> {
    while (this.inFlight || this.late.size) await Promise.all([this.inFlight, ...this.late.keys()]);
  }

  /**
   * Tries no more, and returns what is not written. Statements under way may still go through. An outcome that comes later,
   * of a handler that was left behind, is tried once: its lease may still hold.
   */
  giveUp(): SettleRequest[] {
    const left = this.held();
    this.givenUp = true;
    this.gathered = [];
    this.endPause?.();
    return left;
  }

  private async drain(): Promise<void> {
    // One turn: outcomes of the same tick share the first settle already.
    await Promise.resolve();
    while (this.gathered.length) {
      const batch = this.gathered.splice(0, MAX_BATCH);
      this.writing = batch;
      await this.settle(batch);
      this.writing = [];
      for (const request of batch) this.resultBytes -= bytesOf(request);
    }
    this.inFlight = null;
  }

  /** Repeats until it is done: outcomes are kept however long the database is away. */
  private async settle(batch: SettleRequest[]): Promise<void> {
    const isLate = this.givenUp;
    for (let failures = 0; isLate || !this.givenUp; failures++) {
      try {
        this.circuit.tries();
        const repeated = failures > 0 || batch.some(({ inDoubt }) => inDoubt);
        const filling = repeated || !batch.every(isCompleted) ? null : await this.settleAndClaim(batch);
        const answer = filling ?? (await this.engine.settlement.settle(this.claimer(), batch, { repeated }));
        const { results, late } = answer;
        this.circuit.succeeded();
        try {
          this.announce(batch, results);
        } finally {
          filling?.begin();
        }
        if (late) this.await(late, batch, new Set(results.map(({ job }) => job)));
        return;
      } catch (error) {
        const isLast = isLate || error instanceof StoppedError;
        // What giveUp has returned is told by its caller.
        if (isLast && !isDataFault(error)) return isLate || !this.givenUp ? this.onUnwritten(batch, error) : undefined;
        this.report(error);
        if (isDataFault(error)) return this.settleApart(batch, error);
        if (isStatementTimeout(error) && batch.length > 1) return this.settleHalves(batch);
        this.circuit.failed(error);
        await this.pause(backoffMs(failures, maxPauseMs(error)));
      }
    }
  }

  private pause(ms: number): Promise<void> {
    if (this.givenUp) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.endPause = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** The server's `statement_timeout` is too short for so many. */
  private async settleHalves(batch: SettleRequest[]): Promise<void> {
    const middle = batch.length >> 1;
    for (const half of [batch.slice(0, middle), batch.slice(middle)]) await this.settle(half.map(inDoubt));
  }

  /** One outcome's values are at fault. Each goes alone, and what cannot be stored gives way to the reason. */
  private async settleApart(batch: SettleRequest[], error: unknown): Promise<void> {
    if (batch.length > 1) for (const request of batch) await this.settle([inDoubt(request)]);
    else await this.settle(batch.map((request) => withoutValues(request, error)));
  }

  /** Outcomes that wait for foreign transactions do not keep others waiting. */
  private await(late: Promise<SettleResult[]>, batch: SettleRequest[], settled: Set<ClaimedJob>): void {
    const waiting = batch.filter(({ job }) => !settled.has(job));
    const work = late
      .then(
        (results) => this.announce(batch, results),
        (error: unknown) => {
          if (this.givenUp) return;
          if (!(error instanceof StoppedError)) this.report(error);
          for (const request of waiting) this.add(inDoubt(request));
        },
      )
      .finally(() => this.late.delete(work));
    this.late.set(work, waiting);
  }

  private report(error: unknown): void {
    this.events.emit('worker.error', this.workerId, { error, context: 'settling outcomes' });
  }

  private emit({ job, outcome, executionTimeMs }: SettleRequest, { status, runAt, reason = null }: SettleResult): void {
    const { events, workerId } = this;
    // Given back, by this call or by an earlier one whose answer was lost.
    if (status === 'released' || outcome.kind === 'released') return;
    if (status === 'lost') events.emit('job.lost', workerId, { job });
    else if (status === 'cancelled') {
      events.emit('job.cancelled', workerId, {
        job,
        reason: reason ?? (outcome.kind === 'cancelled' ? outcome.reason : null),
      });
    } else if (status === 'completed') {
      const text = outcome.kind === 'completed' ? outcome.result : null;
      const result: unknown = text === null ? null : JSON.parse(text);
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

const isCompleted = ({ outcome }: SettleRequest): boolean => outcome.kind === 'completed';

const bytesOf = ({ outcome }: SettleRequest): number =>
  outcome.kind === 'completed' && outcome.result !== null ? outcome.result.length : 0;

/** A call that failed as a whole may have settled some of its requests. */
const inDoubt = (request: SettleRequest): SettleRequest => ({ ...request, inDoubt: true });

/** The outcome without what a handler put into it: a result is let go of, a failure keeps only the reason. */
function withoutValues(request: SettleRequest, error: unknown): SettleRequest {
  const { kind } = request.outcome;
  const outcome: Outcome = kind === 'completed' ? { kind, result: null } : { kind: 'permanent', error };
  return { ...request, outcome };
}
