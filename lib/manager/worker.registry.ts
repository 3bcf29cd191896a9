// Incarnations of workers: their beginning, their heartbeat, what they hold against what the database counts as theirs, and the
// end of those that died.
import type { Claimer, HeartbeatPlan, HeartbeatReport, WorkerRegistration } from '../interfaces/claim.interface.js';
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import type { Database } from '../storage/database.js';
import { once, retryOnContention } from '../storage/retry.js';
import type { ReachabilityListener } from '../storage/reachability.js';
import { findExpiredLeases } from '../storage/statements/claims-by-hand.js';
import { SURROUNDINGS } from '../storage/pool.sessions.js';
import * as statements from '../storage/statements/workers.js';
import { tryBriefly } from './brief.lock.js';
import type { ClaimEnds } from './claim.ends.js';
import type { JobPromoter } from './job.promoter.js';
import type { SchemaCheck } from './schema.check.js';
import { executionEnvironment } from './settle.values.js';

/** A claim by name. */
export interface ClaimName {
  id: string;
  fence: string;
}

export interface CheckedClaim extends ClaimName {
  standing: 'gone' | 'cancelled';
  reason: string | null;
}

/** How often the live table is compared with what is known: more often where that costs little. */
const AUDIT_MS = 60_000;
const FIRST_AUDIT_MS = 15_000;
const AUDIT_PER_COST = 200;
/** 80 MB of the live table: some 100 ms. */
const AUDIT_PAGES = 10_000;

type Place = [queue: string, number: string];
const FIRST_PLACE: Place = ['', '0'];

export class WorkerRegistry {
  /** By incarnation: each pool goes through all places by itself. None: from the first. */
  private readonly nextPlaces = new Map<string, Place>();

  constructor(
    private readonly database: Database,
    private readonly settings: ManagerSettings,
    private readonly ends: ClaimEnds,
    private readonly promoter: JobPromoter,
    readonly schemaCheck: SchemaCheck,
  ) {}

  /** How long a claim by hand holds, in ms, unless it says otherwise. */
  get lockTimeoutMs(): number {
    return this.settings.lockTimeoutMs;
  }

  /** Makes an incarnation known: from now on its claims hold as long as its heartbeat. */
  async register({ id, label, host, pid, concurrency, leaseMs, ...takes }: WorkerRegistration): Promise<void> {
    const environment = JSON.stringify(executionEnvironment());
    const {
      tasks,
      takesAnyTask = false,
      queues = null,
      forbiddenFlags = null,
      instance = null,
      batchWaits = {},
    } = takes;
    const filter = [tasks, takesAnyTask, queues, forbiddenFlags];
    const values = [
      id,
      label,
      host,
      pid,
      concurrency,
      leaseMs,
      ...filter,
      environment,
      instance,
      JSON.stringify(batchWaits),
    ];
    this.schemaCheck.learn((await this.database.run(statements.registerWorker, values))[0]?.newer_schema ?? null);
  }

  /** Renews the leases of all that an incarnation holds. */
  async heartbeat(incarnation: string): Promise<HeartbeatReport> {
    const [row] = await this.database.run(statements.heartbeat, [incarnation]);
    return {
      expired: !row,
      held: row?.held ?? false,
      needsRescue: row?.needs_rescue ?? false,
      newerSchema: row?.newer_schema ?? null,
      hasPauses: row?.has_pauses ?? false,
    };
  }

  /** The same for a thread of its own; null where the connection's settings cannot be handed to one. */
  planHeartbeat(incarnation: string): HeartbeatPlan | null {
    const config = this.database.portableConfig();
    const query = this.database.describe(statements.heartbeat, [incarnation]);
    return config && { config, query, surroundings: SURROUNDINGS };
  }

  /** Which of these claims are over, or to be cancelled. */
  async check(claims: ClaimName[]): Promise<CheckedClaim[]> {
    if (!claims.length) return [];
    return this.database.run(statements.checkClaims, namesOf(claims));
  }

  /**
   * Gives back what the database counts as an incarnation's and what it does not hold. `everywhere` reads the live table, after a
   * claim or a release whose answer was lost; no claim of its own may be under way then.
   */
  async releaseUnknown(incarnation: string, held: ClaimName[], everywhere: boolean): Promise<number> {
    const values = [incarnation, ...namesOf(held)];
    const unknown = everywhere
      ? await this.database.run(statements.unknownClaimsAnywhere, values)
      : await this.findUnknown(incarnation, values);
    if (!unknown.length) return 0;
    return (await this.ends.end(unknown, 'unknown', 'its holder does not know of the claim', { patient: false }))
      .length;
  }

  /** A slice of the places, from where the last one stopped. */
  private async findUnknown(incarnation: string, values: unknown[]): Promise<ClaimName[]> {
    const from = this.nextPlaces.get(incarnation) ?? FIRST_PLACE;
    const rows = await this.database.run(statements.unknownClaims, [...values, ...from]);
    const { next_queue: queue, next_number: number } = rows.at(-1)!;
    if (queue === null) this.nextPlaces.delete(incarnation);
    else this.nextPlaces.set(incarnation, [queue, number!]);
    return rows.filter((row): row is typeof row & ClaimName => row.id !== null);
  }

  /** Its pool is being stopped: what it still holds when its lease runs out is given back, and was no crash. */
  async leave(incarnation: string): Promise<void> {
    await retryOnContention(() => this.database.run(statements.leaveIncarnation, [incarnation]));
  }

  /** An orderly end. Whether it has ended: not while it holds a claim. */
  async unregister(incarnation: string): Promise<boolean> {
    this.nextPlaces.delete(incarnation);
    return (await this.database.run(statements.endIncarnations, [incarnation])).length > 0;
  }

  /** Ends the claims of incarnations that have not been heard of for their lease. Returns how many. */
  async rescue(maxCrashes = this.settings.maxCrashes, doing = once): Promise<number> {
    await doing(() => this.database.run(statements.endIncarnations, [null]));
    let rescued = 0;
    for (;;) {
      const claims = await doing(() => this.database.run(statements.claimsOfTheDead, [maxCrashes]));
      const left = claims.filter(({ has_left }) => has_left);
      const lost = claims.filter(({ has_left }) => !has_left);
      const spared = new Set(lost.filter(({ is_spared }) => is_spared).map(({ id }) => id));
      const kindOf = ({ id }: { id: string }) => (spared.has(id) ? ('spared' as const) : ('crashed' as const));
      const ended = [
        ...(await doing(() => this.ends.end(left, 'released', null, { patient: false }))),
        ...(await doing(() => this.ends.end(lost, kindOf, 'worker died', { maxCrashes, patient: false }))),
      ];
      rescued += ended.length;
      // What open transactions of frozen processes hold comes later.
      if (ended.length < 1_000) return rescued;
    }
  }

  /** Claims by hand whose lease has run out. Returns how many were taken away. */
  async resetExpired(lockTimeoutMs: number | null, doing = once): Promise<number> {
    let reset = 0;
    for (;;) {
      const claims = await doing(() => this.database.run(findExpiredLeases, [lockTimeoutMs]));
      const ended = await doing(() => this.ends.end(claims, 'unlocked', 'lease expired', { patient: false }));
      reset += ended.length;
      if (ended.length < 1_000) return reset;
    }
  }

  /** Once a minute or more often, for all pools together: puts old claims to their holders, finds those of the dead, sets back times. */
  async audit(maxCrashes?: number): Promise<void> {
    if (!(await this.database.run(statements.takeDuty, ['audit', AUDIT_MS])).length) return;
    const startedAt = performance.now();
    await tryBriefly(this.database, statements.setBackTimes, []);
    for (let page = 0, more = true; more; page += AUDIT_PAGES) {
      [{ more }] = (await retryOnContention(() => this.database.run(statements.auditClaims, [page, AUDIT_PAGES]))) as [
        { more: boolean },
      ];
    }
    await this.rescue(maxCrashes);
    const pauseMs = Math.min(AUDIT_MS, Math.max(FIRST_AUDIT_MS, (performance.now() - startedAt) * AUDIT_PER_COST));
    await this.database.run(statements.putOffDuty, ['audit', Math.round(pauseMs)]);
  }

  /** What was left undone, wherever: see JobPromoter. */
  async sweep(): Promise<void> {
    const isMine = await this.promoter.sweep().catch(async (error: unknown) => {
      await this.resetExpired(null);
      throw error;
    });
    if (isMine !== null) await this.resetExpired(null);
  }

  /** Hears when the database goes away, and when it is back. Returns how to stop hearing. */
  watchDatabase(listener: ReachabilityListener): () => void {
    return this.database.reachability.watch(listener);
  }

  /** A failure on a connection beside the pool, as a typed error. */
  explainFailure(error: unknown): unknown {
    return this.database.explain(error);
  }
}

const namesOf = (claims: ClaimName[]): [ids: string[], fences: string[]] => [
  claims.map(({ id }) => id),
  claims.map(({ fence }) => fence),
];

/** A claim by hand. */
export const byHand = (workerId: string, leaseMs: number): Claimer => ({ holder: workerId, label: workerId, leaseMs });
