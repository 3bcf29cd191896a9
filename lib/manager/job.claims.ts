// Claims from beginning to end, as pools need them: taking, settling, giving back, and what happens to the claims of
// workers that died.
import type {
  ClaimRequest,
  ClaimResult,
  HeartbeatReport,
  SettleRequest,
  SettleResult,
  WorkerRegistration,
} from '../interfaces/claim.interface.js';
import type { ClaimedJob, Job } from '../interfaces/job.interface.js';
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import type { Database } from '../storage/database.js';
import * as leases from '../storage/statements/lease-jobs.js';
import * as garbage from '../storage/statements/prune-jobs.js';
import * as lanes from '../storage/statements/queues.js';
import * as limits from '../storage/statements/rate-limits.js';
import { claim } from './claimer.js';
import { retryDelayMs } from './retry.policy.js';
import { executionEnvironment, settleBatch } from './settlement.js';
import type { TaskRegistry } from './task.registry.js';

/** A job that has taken its process down so often is not run again. */
const MAX_CRASHES = 3;
/** Rounds in which a claim by hand looks again after waiting jobs were let in. */
const CLAIM_ROUNDS = 4;

export class JobClaims {
  private readonly seenTasks = new Set<string>();

  constructor(
    private readonly database: Database,
    private readonly settings: ManagerSettings,
    private readonly tasks: TaskRegistry,
  ) {}

  /** How long a claim by hand holds, in ms, unless it says otherwise. */
  get lockTimeoutMs(): number {
    return this.settings.lockTimeoutMs;
  }

  /** Claims for a pool's buffer. */
  async claim(request: ClaimRequest): Promise<ClaimResult> {
    const { promote, ...result } = await claim(this.database, request);
    await this.seeTasks(result.jobs);
    if ((await this.promote(promote)) === 0) return result;
    // Jobs came back to places that the cursor has passed.
    return { ...result, more: true, cursor: result.cursor.filter(({ slotOnly }) => !slotOnly) };
  }

  /**
   * Refills due rate limits and fills free places. Returns how many waiting jobs may be claimed now, and in how many ms
   * the next window begins that somebody waits for.
   */
  async letWaitingIn(): Promise<{ promoted: number; retryInMs: number | null }> {
    const [row] = await this.database.run(limits.refillRateLimits, [this.database.channel]);
    const promoted = (row?.promoted ?? 0) + (await this.promoteStalled());
    return { promoted, retryInMs: row?.retry_in_ms ?? null };
  }

  /** Settles attempts of any outcome in at most two statements; answers in the order of the requests. */
  async settle(workerId: string, requests: SettleRequest[], byHand = false): Promise<SettleResult[]> {
    const batch = { workerId, requests, byHand, wait: false };
    const first = await settleBatch(this.database, this.settings, batch);
    const second = first.missing.length
      ? await settleBatch(this.database, this.settings, { ...batch, requests: first.missing, wait: true })
      : { results: [], missing: [], promote: [] };
    await this.promote([...first.promote, ...second.promote]);
    const lost = second.missing.map(({ job }): SettleResult => ({ job, status: 'lost', runAt: null }));
    return [...first.results, ...second.results, ...lost];
  }

  /** Gives claimed jobs back unstarted: the attempt does not count. */
  async release(workerId: string, jobs: ClaimedJob[]): Promise<void> {
    if (!jobs.length) return;
    await this.settle(
      workerId,
      jobs.map((job) => ({ job, outcome: { kind: 'released' }, executionTimeMs: 0 })),
    );
  }

  /** Until the next attempt of a job that failed, in ms; false: never. A task's own policy wins. */
  retryDelayMs(job: Job, error: unknown, policy = this.tasks.get(job.task)?.options.retry): number | false {
    return retryDelayMs(job.attempts, error, this.settings.retry, policy);
  }

  /** Claims by hand: no cursor, and another look where waiting jobs can be let in. */
  async claimExactly(base: Omit<ClaimRequest, 'limit' | 'slots' | 'cursor'>, batchSize: number): Promise<ClaimedJob[]> {
    const jobs: ClaimedJob[] = [];
    let cursor: ClaimRequest['cursor'] = [];
    for (let round = 0; jobs.length < batchSize && round < CLAIM_ROUNDS;) {
      const limit = batchSize - jobs.length;
      const found = await this.claim({ ...base, limit, slots: limit, cursor });
      jobs.push(...found.jobs);
      cursor = found.more ? found.cursor : [];
      // Short: perhaps windows have passed, or places became free, that nobody has used yet.
      if (!found.more && (round++, (await this.letWaitingIn()).promoted === 0)) break;
    }
    return jobs;
  }

  /** Lets those in who wait for a free place in these queues; `stuck`: see promoteQueued. Returns how many. */
  async promote(queues: string[], stuck = false): Promise<number> {
    if (!queues.length) return 0;
    const [row] = await this.database.run(lanes.promoteQueued, [[...new Set(queues)], stuck]);
    return row?.promoted ?? 0;
  }

  /** Ends claims without their holder's word: one statement of lease-jobs. */
  async end(
    statement: typeof leases.forceUnlockJobs,
    how: Partial<leases.EndClaimSettings> & { reason: string },
    values: unknown[],
  ): Promise<leases.EndedClaimRow[]> {
    const rows = await this.database.run(statement, [...this.endValues(how), ...values]);
    await this.promote(rows.flatMap(({ queue }) => queue ?? []));
    return rows;
  }

  /** Makes a pool known, or alive again: from now on its claims hold as long as its heartbeat. */
  async registerWorker({ id, host, pid, concurrency, tasks, leaseMs }: WorkerRegistration): Promise<void> {
    const environment = JSON.stringify(executionEnvironment());
    await this.database.run(leases.registerWorker, [id, host, pid, concurrency, leaseMs, tasks, environment]);
  }

  /** Renews the leases of all that a worker holds. */
  async heartbeat(workerId: string, runningIds: string[]): Promise<HeartbeatReport> {
    const [row] = await this.database.run(leases.heartbeat, [workerId, runningIds]);
    return { expired: !row, cancelRequested: row?.cancel_requested ?? [] };
  }

  /** An orderly end: the pool holds nothing any more. */
  async unregisterWorker(workerId: string): Promise<void> {
    await this.database.run(leases.unregisterWorker, [workerId]);
  }

  /** Frees the jobs of workers that have not been heard of for their lease, and lines that got stuck. */
  async rescue(): Promise<number> {
    const dead = await this.database.transaction(async (executor) => {
      const marked = await this.database.run(leases.markDeadWorkers, [], executor);
      if (!marked.length) return [];
      const ids = marked.map(({ id }) => id);
      const how = { reason: 'worker died', maxCrashes: MAX_CRASHES };
      return this.database.run(leases.rescueJobsOf, [...this.endValues(how), ids], executor);
    });
    await this.promoteStalled();
    await this.promote(dead.flatMap(({ queue }) => queue ?? []));
    return dead.length;
  }

  /** Names of tasks are noted again when they are met again. */
  forgetTasks(): void {
    this.seenTasks.clear();
  }

  private endValues(how: Partial<leases.EndClaimSettings> & { reason: string }): unknown[] {
    const { keep, retentionMs } = this.settings.history;
    const defaults = { maxCrashes: null, permanent: false, giveBack: false };
    return leases.endClaimValues({ ...defaults, keepFailures: keep !== 'none', retentionMs, ...how });
  }

  private async promoteStalled(): Promise<number> {
    return this.promote(
      (await this.database.run(lanes.stalledQueues, [])).map(({ name }) => name),
      true,
    );
  }

  private async seeTasks(jobs: ClaimedJob[]): Promise<void> {
    const fresh = new Set(jobs.map(({ task }) => task).filter((task) => !this.seenTasks.has(task)));
    if (!fresh.size) return;
    await this.database.run(garbage.seeTasks, [[...fresh]]);
    for (const task of fresh) this.seenTasks.add(task);
  }
}
