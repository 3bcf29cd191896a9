// Claims from beginning to end, as pools need them: taking, settling, giving back, and what happens to the claims of
// workers that died.
import type {
  ClaimRequest,
  ClaimResult,
  HeartbeatPlan,
  HeartbeatReport,
  SettleRequest,
  SettleResult,
  WorkerRegistration,
} from '../interfaces/claim.interface.js';
import type { ClaimedJob, Job, QueryExecutor } from '../interfaces/job.interface.js';
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import type { Database } from '../storage/database.js';
import type { ReachabilityListener } from '../storage/reachability.js';
import * as leases from '../storage/statements/lease-jobs.js';
import * as garbage from '../storage/statements/prune-jobs.js';
import * as lanes from '../storage/statements/queues.js';
import * as limits from '../storage/statements/rate-limits.js';
import { unblockSuccessors } from '../storage/statements/settle-jobs.js';
import { claim } from './claimer.js';
import { Dependents } from './dependents.js';
import { isSealed, opened, openedPayload, sealed, type JobCipher } from './job.cipher.js';
import { retryDelayMs } from './retry.policy.js';
import { SchemaGuard } from './schema.guard.js';
import { executionEnvironment, findEarlier, settleBatch, type SettleBatch, type Settlement } from './settlement.js';
import type { TaskRegistry } from './task.registry.js';

/** Rounds in which a claim by hand looks again after waiting jobs were let in. */
const CLAIM_ROUNDS = 4;
/** How long a job waits that this process cannot decrypt, for one that can. */
const UNREADABLE_MS = 60_000;

export interface SettleManner {
  /** Claims made by hand: the history names this process. */
  byHand?: boolean;
  repeated?: boolean;
}

export interface SettleAnswer {
  results: SettleResult[];
  /** What had to wait for others' transactions, and what is lost. */
  late: Promise<SettleResult[]> | null;
}

export class JobClaims {
  /** Whether there may be windows to refill: true until a heartbeat has told otherwise. */
  mayHaveRateLimits = true;
  readonly dependents: Dependents;
  private readonly seenTasks = new Set<string>();

  constructor(
    private readonly database: Database,
    private readonly settings: ManagerSettings,
    private readonly tasks: TaskRegistry,
    /** Hears of the jobs that are settled here. */
    private readonly onSettled: (ids: Set<string>) => void,
    private readonly cipher: JobCipher | undefined,
    readonly schemaGuard = new SchemaGuard(database.schema),
  ) {
    this.dependents = new Dependents(database, settings);
  }

  /** How long a claim by hand holds, in ms, unless it says otherwise. */
  get lockTimeoutMs(): number {
    return this.settings.lockTimeoutMs;
  }

  /** Claims for a pool's buffer. */
  async claim(request: ClaimRequest): Promise<ClaimResult> {
    this.schemaGuard.assertKnown();
    const { promote, ...claimed } = await claim(this.database, request);
    await this.seeTasks(claimed.jobs);
    const result = await this.decrypted(request.workerId, claimed);
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

  /**
   * Settles attempts of any outcome in at most two statements. `repeated`: an earlier call with these requests failed,
   * and nobody knows whether its commit went through.
   * Jobs that an open transaction holds (an addJob that replaces the running job) come `late`, when it has ended: they
   * must not keep the others waiting.
   */
  async settle(workerId: string, requests: SettleRequest[], how: SettleManner = {}): Promise<SettleAnswer> {
    const batch = { workerId, requests: this.encrypted(requests), byHand: how.byHand ?? false, wait: false };
    const { results, missing, ...freed } = await settleBatch(this.database, this.settings, batch);
    this.onSettled(new Set(results.map(({ job }) => job.id)));
    await this.letIn(freed);
    const rest = { ...batch, requests: missing };
    return { results, late: missing.length ? this.settleLate(rest, how.repeated ?? false) : null };
  }

  /**
   * Settles one attempt inside a transaction. `letIn`, to be called after the commit, lets those go on who waited for
   * the job to end.
   */
  async settleWithin(
    executor: QueryExecutor,
    workerId: string,
    request: SettleRequest,
  ): Promise<{ result: SettleResult; letIn: () => Promise<void> }> {
    const batch = { workerId, requests: this.encrypted([request]), byHand: false, wait: true };
    const { results, ...freed } = await settleBatch(this.database.on(executor), this.settings, batch);
    const result = results[0] ?? { job: request.job, status: 'lost', runAt: null };
    const letIn = async (): Promise<void> => {
      this.onSettled(new Set([request.job.id]));
      await this.letIn(freed);
    };
    return { result, letIn };
  }

  /** Gives claimed jobs back unstarted: the attempt does not count. */
  async release(workerId: string, jobs: ClaimedJob[]): Promise<void> {
    if (!jobs.length) return;
    const requests = jobs.map((job): SettleRequest => ({ job, outcome: { kind: 'released' }, executionTimeMs: 0 }));
    await (
      await this.settle(workerId, requests)
    ).late;
  }

  /** Until the next attempt of a job that failed, in ms; false: never. A task's own policy wins. */
  retryDelayMs(job: Job, error: unknown, policy = this.tasks.get(job.task)?.options.retry): number | false {
    return retryDelayMs(job.attempts, error, this.settings.retry, policy);
  }

  /** Claims by hand: no cursor, and another look where waiting jobs can be let in. */
  async claimExactly(
    base: Omit<ClaimRequest, 'limit' | 'slots' | 'cursor' | 'lookForSlots'>,
    batchSize: number,
  ): Promise<ClaimedJob[]> {
    const jobs: ClaimedJob[] = [];
    let cursor: ClaimRequest['cursor'] = [];
    for (let round = 0; jobs.length < batchSize && round < CLAIM_ROUNDS;) {
      const limit = batchSize - jobs.length;
      const found = await this.claim({ ...base, limit, slots: limit, lookForSlots: true, cursor });
      jobs.push(...found.jobs);
      cursor = found.more ? found.cursor : [];
      // Whose turn it is may be locked by somebody's open transaction: looking again and again would not end.
      if (!found.more || !found.jobs.length) round++;
      // Short: perhaps windows have passed, or places became free, that nobody has used yet.
      if (!found.more && (await this.letWaitingIn()).promoted === 0) break;
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
    await this.letIn(freedBy(rows));
    return rows;
  }

  /** Makes a pool known, or alive again: from now on its claims hold as long as its heartbeat. */
  async registerWorker({ id, host, pid, concurrency, tasks, leaseMs }: WorkerRegistration): Promise<void> {
    const environment = JSON.stringify(executionEnvironment());
    const values = [id, host, pid, concurrency, leaseMs, tasks, environment];
    this.schemaGuard.heed((await this.database.run(leases.registerWorker, values))[0]?.newer_schema ?? null);
  }

  /** Renews the leases of all that a worker holds. */
  async heartbeat(workerId: string): Promise<HeartbeatReport> {
    const [row] = await this.database.run(leases.heartbeat, [workerId]);
    return {
      expired: !row,
      cancelRequested: row?.cancel_requested ?? [],
      needsRescue: row?.needs_rescue ?? false,
      hasRateLimits: row?.has_rate_limits ?? true,
      newerSchema: row?.newer_schema ?? null,
    };
  }

  /** The same for a thread of its own; null where the connection's settings cannot be handed to one. */
  planHeartbeat(workerId: string): HeartbeatPlan | null {
    const config = this.database.portableConfig();
    return config && { config, query: this.database.describe(leases.heartbeat, [workerId]) };
  }

  /** Ids of a worker's jobs that somebody asked to cancel. */
  async findCancelRequests(workerId: string): Promise<string[]> {
    return (await this.database.run(leases.findCancelRequests, [workerId])).map(({ id }) => id);
  }

  /**
   * Gives back what a pool has claimed without knowing, because the claim's answer was lost: its heartbeat would keep those
   * jobs for ever. `held`: all that it knows of. No claim of its own may be under way.
   */
  async releaseUnknown(workerId: string, held: ClaimedJob[]): Promise<number> {
    const how = { reason: 'the answer to their claim was lost', giveBack: true, keepFailures: false };
    const values = [workerId, held.map(({ id }) => id), held.map(({ fence }) => fence)];
    const released = await this.database.transaction(async (executor) => {
      await this.database.run(leases.lockWorker, [workerId], executor);
      return this.database.run(leases.releaseUnknown, [...this.endValues(how), ...values], executor);
    });
    await this.letIn(freedBy(released));
    return released.length;
  }

  /** A failure on a connection beside the pool, in the library's words. */
  explainFailure(error: unknown): unknown {
    return this.database.explain(error);
  }

  /** Hears when the database goes away, and when it is back. Returns how to stop hearing. */
  watchDatabase(listener: ReachabilityListener): () => void {
    return this.database.reachability.watch(listener);
  }

  /** An orderly end: the pool holds nothing any more. */
  async unregisterWorker(workerId: string): Promise<void> {
    await this.database.run(leases.unregisterWorker, [workerId]);
  }

  /** Frees the jobs of workers that have not been heard of for their lease, and whoever waits for what they left undone. */
  async rescue(maxCrashes = this.settings.maxCrashes): Promise<number> {
    const dead = await this.database.transaction(async (executor) => {
      const marked = await this.database.run(leases.markDeadWorkers, [], executor);
      if (!marked.length) return null;
      const ids = marked.map(({ id }) => id);
      const how = { reason: 'worker died', maxCrashes };
      const rescued = await this.database.run(leases.rescueJobsOf, [...this.endValues(how), ids], executor);
      await this.database.run(leases.markLeftovers, [ids], executor);
      return rescued;
    });
    await this.letIn(freedBy(dead ?? []));
    await this.database.run(unblockSuccessors, [null, this.settings.history.retentionMs]);
    await this.letWaitingIn();
    if (dead) await this.dependents.resolveForgotten();
    return dead?.length ?? 0;
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

  /** Opens what is encrypted; jobs of which that fails are put off, and no attempt of theirs is used up. */
  private async decrypted(workerId: string, result: ClaimResult): Promise<ClaimResult> {
    const failures = new Map<ClaimedJob, unknown>();
    for (const job of result.jobs) {
      if (!isSealed(job.payload) && !isSealed(job.previous)) continue;
      try {
        job.payload = openedPayload(this.cipher, job.payload, job.id, job.task);
        job.previous = opened(this.cipher, job.previous, 'partial', job.id);
      } catch (error) {
        failures.set(job, error);
      }
    }
    if (!failures.size) return result;
    const requests = [...failures].map(([job, error]): SettleRequest => ({
      job,
      outcome: { kind: 'snoozed', delayMs: UNREADABLE_MS, error },
      executionTimeMs: 0,
    }));
    const { late } = await this.settle(workerId, requests);
    late?.catch(() => undefined);
    const jobs = result.jobs.filter((job) => !failures.has(job));
    return { ...result, jobs, unreadable: [...failures.values()][0] };
  }

  /** What outcomes carry, as it is stored. */
  private encrypted(requests: SettleRequest[]): SettleRequest[] {
    const { cipher } = this;
    if (!cipher) return requests;
    return requests.map((request) => {
      const { job, outcome } = request;
      const seal = (field: string, text: string): string => sealed(cipher, job.task, field, job.id, text);
      if (outcome.kind === 'completed' && outcome.result !== null)
        return { ...request, outcome: { ...outcome, result: seal('result', outcome.result) } };
      if (outcome.kind === 'partial')
        return { ...request, outcome: { ...outcome, sealed: seal('partial', JSON.stringify(outcome.partialResults)) } };
      return request;
    });
  }

  private async settleLate(batch: SettleBatch, repeated: boolean): Promise<SettleResult[]> {
    const waited = await settleBatch(this.database, this.settings, { ...batch, wait: true });
    const rest = { ...batch, requests: waited.missing };
    const earlier = repeated && rest.requests.length ? await findEarlier(this.database, rest) : null;
    // It waited for somebody's transaction, which may have added children that its snapshot does not show; and of what
    // was settled earlier nobody may have told the children.
    const ended = [...waited.results, ...(earlier?.results ?? [])].filter(({ status }) => hasEnded(status));
    await this.letIn({ ...waited, parents: ended.map(({ job }) => job.id) });
    const lost = (earlier ?? waited).missing.map(({ job }): SettleResult => ({ job, status: 'lost', runAt: null }));
    return [...waited.results, ...(earlier?.results ?? []), ...lost];
  }

  /** Others may go on where these jobs have left. */
  private async letIn({ promote, successors, parents }: Freed): Promise<void> {
    if (successors.length) await this.database.run(unblockSuccessors, [successors, this.settings.history.retentionMs]);
    await this.promote(promote);
    await this.dependents.resolve(parents);
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

/** What jobs leave behind for others: places in queues, keys. */
type Freed = Pick<Settlement, 'promote' | 'successors' | 'parents'>;

const hasEnded = (status: SettleResult['status']): boolean => ['completed', 'exhausted', 'cancelled'].includes(status);

const freedBy = (rows: leases.EndedClaimRow[]): Freed => ({
  promote: rows.flatMap(({ queue }) => queue ?? []),
  successors: rows.flatMap(({ superseded_by }) => superseded_by ?? []),
  parents: rows.filter(({ became }) => became !== 'available').map(({ id }) => id),
});
