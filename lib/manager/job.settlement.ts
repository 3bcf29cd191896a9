// Settling: outcomes become parameters of the two settling statements, and their rows become results; ends by others go the
// same way. A job that an open transaction holds is settled by itself, later, and keeps nothing else waiting.
import type { Claimer, SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { ClaimedJob, Job, QueryExecutor } from '../interfaces/job.interface.js';
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import { JobHeldError, StoppedError } from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import { isDataFault, isLockTimeout } from '../storage/sql.states.js';
import {
  completeAndClaim,
  completeJobs,
  completeWithin,
  endAttempts,
  endWithin,
  findSettled,
  type CompletedRow,
} from '../storage/statements/settle-jobs.js';
import { pause } from '../timing.js';
import { sealText, type JobCipher } from './job.cipher.js';
import { newsOf, type JobPromoter } from './job.promoter.js';
import { lanesOfQueue } from './lane.names.js';
import { LateSettles } from './late.settles.js';
import type { NewsPublisher } from './news.publisher.js';
import { retryDelayMs } from './retry.policy.js';
import {
  environmentOf,
  isCompleted,
  keepingOf,
  laneOfWaiting,
  lost,
  millisecondsOf,
  resultsOf,
  toEndedAttempt,
  toSettled,
  withoutRepeats,
  type Settled,
} from './settle.values.js';
import type { TaskRegistry } from './task.registry.js';

export interface SettleAnswer {
  results: SettleResult[];
  /** What an open transaction holds: it resolves when it has let go. */
  late: Promise<SettleResult[]> | null;
}

const FIRST_PAUSE_MS = 5;
const MAX_PAUSE_MS = 1_000;
/** An attempt's own transaction waits so long for what another one holds. */
const PATIENCE_MS = 10_000;

export class JobSettlement {
  private readonly late = new LateSettles((claimer, request) => this.settleLate(claimer, request));

  constructor(
    private readonly database: Database,
    private readonly settings: ManagerSettings,
    private readonly tasks: TaskRegistry,
    private readonly cipher: JobCipher | undefined,
    private readonly promoter: JobPromoter,
    private readonly publisher: NewsPublisher,
    /** Hears of the jobs that are settled here. */
    private readonly onSettled: (ids: Set<string>) => void,
  ) {}

  /**
   * Settles attempts of any outcome in at most two statements. `repeated`: an earlier call with these requests failed,
   * and nothing tells whether its commit went through.
   */
  async settle(claimer: Claimer, requests: SettleRequest[], { repeated = false } = {}): Promise<SettleAnswer> {
    const once = claimer.leaseMs === null ? requests : withoutRepeats(requests);
    const settled = await this.settleBatch(this.database, claimer, this.encrypted(once));
    await this.announce(settled, claimer);
    const earlier = repeated && settled.lost.length ? await this.findEarlier(claimer, settled.lost) : null;
    const results = [...settled.results, ...(earlier?.results ?? []), ...(earlier ?? settled).lost.map(lost)];
    for (const request of once === requests ? [] : requests) if (!once.includes(request)) results.push(lost(request));
    return { results, late: this.waitFor(claimer, settled.held) };
  }

  /**
   * Settles completions of a pool and claims jobs of lanes in one transaction. `lanes`: of JobClaims.valuesAfterSettle; `claimed`
   * is for JobClaims.readLanes.
   */
  async completeAndClaim(
    claimer: Claimer,
    requests: SettleRequest[],
    lanes: unknown[],
  ): Promise<SettleAnswer & { claimed: { job: string }[] }> {
    const encrypted = this.encrypted(requests);
    const settling = this.completionOf(claimer, encrypted).slice(1, 8);
    const rows = await this.database.run(completeAndClaim, [...settling, ...lanes]);
    const settled = toSettled(
      encrypted,
      [],
      rows.filter(({ claimed }) => claimed === null),
    );
    await this.announce(settled, claimer);
    const late = this.waitFor(claimer, settled.held);
    const claimed = rows.flatMap(({ claimed: job }) => (job === null ? [] : { job }));
    return { results: [...settled.results, ...settled.lost.map(lost)], late, claimed };
  }

  /**
   * Settles one attempt inside its transaction, and waits for what others hold for 10 s. `promote`, to be called after the
   * commit, lets those go on that waited for the job to end.
   * @throws JobHeldError, RowsHeldError where a table is locked as a whole
   */
  async settleWithin(
    executor: QueryExecutor,
    claimer: Claimer,
    request: SettleRequest,
  ): Promise<{ result: SettleResult; promote: () => Promise<void> }> {
    const database = this.database.on(executor);
    for (let pauseMs = FIRST_PAUSE_MS, deadline = performance.now() + PATIENCE_MS; ;) {
      const settled = await this.settleOne(database, claimer, this.encrypted([request]));
      if (settled.held.length && performance.now() < deadline) {
        await pause(pauseMs);
        pauseMs = Math.min(MAX_PAUSE_MS, pauseMs * 2);
        continue;
      }
      if (settled.held.length) throw new JobHeldError([request.job.id]);
      return { result: settled.results[0] ?? lost(request), promote: () => this.announce(settled, claimer) };
    }
  }

  /** Settles these now, or when what is in the way has gone. */
  async settleAtLast(claimer: Claimer, requests: SettleRequest[]): Promise<void> {
    const { late } = await this.settle(claimer, requests).catch((error: unknown) => {
      if (this.database.isBound) throw error;
      return { late: this.waitFor(claimer, requests) };
    });
    late?.catch(() => undefined);
  }

  /** Gives claimed jobs back unstarted: the attempt does not count. */
  async release(claimer: Claimer, jobs: ClaimedJob[]): Promise<void> {
    if (!jobs.length) return;
    const requests = jobs.map((job): SettleRequest => ({ job, outcome: { kind: 'released' }, executionTimeMs: 0 }));
    const { late } = await this.settle(claimer, requests);
    await late;
  }

  /** Until the next attempt of a job that failed, in ms; false: never. A task's own policy wins. */
  retryDelayMs(job: Job, error: unknown, policy = this.tasks.get(job.task)?.options.retry): number | false {
    return retryDelayMs(job.attempts, error, this.settings.retry, policy);
  }

  private async settleBatch(database: Database, claimer: Claimer, requests: SettleRequest[]): Promise<Settled> {
    const completed = requests.every(isCompleted) ? requests : requests.filter(isCompleted);
    const ended = completed === requests ? [] : requests.filter((request) => !isCompleted(request));
    const [deviations, rows] = await Promise.all([
      completed.length ? this.complete(database, claimer, completed) : [],
      ended.length ? database.run(endAttempts, this.endingOf(claimer, ended)) : [],
    ]);
    return toSettled(requests, rows, deviations);
  }

  /** In the attempt's own transaction. */
  private async settleOne(database: Database, claimer: Claimer, requests: SettleRequest[]): Promise<Settled> {
    if (!requests.every(isCompleted))
      return toSettled(requests, await database.run(endWithin, this.endingOf(claimer, requests)), []);
    return toSettled(requests, [], await database.run(completeWithin, this.completionOf(claimer, requests)));
  }

  /** Most batches meet no row that others hold; one that does is repeated with care. */
  private async complete(database: Database, claimer: Claimer, requests: SettleRequest[]): Promise<CompletedRow[]> {
    const values = this.completionOf(claimer, requests);
    // In a caller's transaction a failure would end everything; a settle by hand must check which worker holds it.
    if (database.isBound || claimer.leaseMs !== null) return database.run(completeJobs, [...values, true]);
    try {
      return await database.run(completeJobs, [...values, false]);
    } catch (error) {
      if (!isLockTimeout(error)) throw error;
      return database.run(completeJobs, [...values, true]);
    }
  }

  private completionOf(claimer: Claimer, requests: SettleRequest[]): unknown[] {
    return [
      claimer.leaseMs === null ? null : claimer.holder,
      claimer.label,
      // Array literals by hand: nothing in them needs quotes, which the driver would look for in each.
      `{${requests.map(({ job }) => job.id).join()}}`,
      `{${requests.map(({ job }) => job.fence).join()}}`,
      `{${requests.map(millisecondsOf).join()}}`,
      resultsOf(requests),
      this.settings.history.keep === 'all',
      this.settings.history.retentionMs,
      environmentOf(claimer),
      requests.some(({ job }) => job.queue !== null),
    ];
  }

  private endingOf(claimer: Claimer, requests: SettleRequest[]): unknown[] {
    return [
      claimer.leaseMs === null ? null : claimer.holder,
      claimer.label,
      JSON.stringify(requests.map(toEndedAttempt)),
      ...keepingOf(this.settings.history),
      environmentOf(claimer),
      null,
    ];
  }

  /** Of requests that match nothing: what an earlier call, whose commit's fate was unknown, has already settled. */
  private async findEarlier(claimer: Claimer, requests: SettleRequest[]): Promise<Settled> {
    const rows = await this.database.run(findSettled, [
      claimer.label,
      requests.map(({ job }) => job.id),
      requests.map(({ job }) => job.fence),
      requests.map(millisecondsOf),
    ]);
    const settled = toSettled(requests, rows, null);
    // Nothing tells whether the children were told, nor of the place that may have become free.
    settled.queues = settled.results.flatMap(({ job }) => job.queue ?? []);
    settled.results = settled.results.map((result) => ({ ...result, hasFreedPlace: result.job.queue !== null }));
    await this.announce(settled, claimer);
    return settled;
  }

  /** Lets those go on that waited for these jobs to end. A pool looks itself whether it fills a place that became free. */
  private async announce({ results, freed, queues }: Settled, { leaseMs }: Claimer): Promise<void> {
    this.onSettled(new Set(results.map(({ job }) => job.id)));
    await this.promoter.promote(freed);
    const back = results.filter(({ status }) => status === 'released').map(({ job }) => laneOfWaiting(job));
    await this.publisher.publish(...newsOf([...back, ...(leaseMs === null ? [] : queues.map(lanesOfQueue))]));
  }

  private waitFor(claimer: Claimer, held: SettleRequest[]): SettleAnswer['late'] {
    return held.length ? Promise.all(held.map((request) => this.late.add(claimer, request))) : null;
  }

  /** Null: an open transaction still holds the job. */
  private async settleLate(claimer: Claimer, request: SettleRequest): Promise<SettleResult | null> {
    try {
      const settled = await this.settleBatch(this.database, claimer, [request]);
      if (settled.held.length) return null;
      await this.announce(settled, claimer);
      // The call before may have gone through although its answer was lost.
      const earlier = settled.lost.length ? await this.findEarlier(claimer, settled.lost) : settled;
      return earlier.results[0] ?? lost(request);
    } catch (error) {
      if (isDataFault(error) || error instanceof StoppedError) throw error;
      // A database that is away is asked again.
      return null;
    }
  }

  /** What outcomes carry, as it is stored. */
  private encrypted(requests: SettleRequest[]): SettleRequest[] {
    const { cipher } = this;
    if (!cipher) return requests;
    return requests.map((request) => {
      const { job, outcome } = request;
      const seal = (field: string, text: string): string => sealText(cipher, job.task, field, job.id, text);
      if (outcome.kind === 'completed' && outcome.result !== null)
        return { ...request, outcome: { ...outcome, result: seal('result', outcome.result) } };
      if (outcome.kind === 'partial')
        return { ...request, outcome: { ...outcome, sealed: seal('partial', JSON.stringify(outcome.partialResults)) } };
      return request;
    });
  }
}
