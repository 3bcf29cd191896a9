// Fills the places in queues that this pool's completions free: the settle that frees them claims the next jobs in the same
// commit. Of places that it does not fill it tells other pools.
import type { LaneClaimResult, SettleRequest } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { SettleAnswer } from '../manager/job.settlement.js';
import { isLockTimeout } from '../storage/sql.states.js';
import type { ClaimGroup } from './claim.group.js';
import type { ClaimPlan } from './claim.plan.js';
import type { ClaimReconciler } from './claim.reconciler.js';
import { FreedPlaces } from './freed.places.js';
import type { JobDispatcher } from './job.dispatcher.js';
import type { Claimed, JobFetcher } from './job.fetcher.js';
import type { JobReleaser } from './job.releaser.js';
import type { JobQueueOptions } from './queue.options.js';

/** A settle that has claimed as well. */
export interface FillingAnswer extends SettleAnswer {
  /** Begins what it has claimed: to be called when what became of the settled jobs is told. */
  begin: () => void;
}

interface QueueParts {
  plan: ClaimPlan;
  fetcher: JobFetcher;
  reconciler: ClaimReconciler;
  releaser: JobReleaser;
  dispatcher: JobDispatcher;
}

/** What it asks of its queue. */
interface OfQueue {
  isRunning: () => boolean;
  /** How many of the last claims have failed in a row. */
  failures: () => number;
  /** Puts claimed jobs into the buffer. */
  accept: (claimed: Claimed) => void;
  wake: () => void;
}

/** Of so many limited queues is it known that their settles are worth a look at lanes. */
const MAX_LIMITED = 1_000;

export class PlaceFiller {
  private readonly freed = new FreedPlaces();
  /** Queues that have freed places here: a settle of theirs is worth a look at lanes. */
  private readonly limited = new Set<string>();

  constructor(
    private readonly options: Pick<JobQueueOptions, 'jobs' | 'mayClaim' | 'onError'>,
    private readonly parts: QueueParts,
    private readonly queue: OfQueue,
  ) {}

  /**
   * Settles completions that free places, and fills the places by the same commit. Null where no slot is free: then they are
   * settled apart.
   */
  settleAndClaim(requests: SettleRequest[]): Promise<FillingAnswer | null> | null {
    const isWorthIt = requests.some(({ job }) => job.queue !== null && this.limited.has(job.queue));
    return isWorthIt ? this.settleAfterLook(requests) : null;
  }

  /** A settle has freed a place in the job's queue: if this pool does not fill it at once, others should. */
  placeFreed(job: ClaimedJob): void {
    const { plan, dispatcher } = this.parts;
    this.noteFreed(job);
    plan.noteReturned(job);
    if (!dispatcher.freeSlots || !this.queue.isRunning()) return void this.reportFreed();
    plan.noteRunnable([]);
    dispatcher.lookAt = -Infinity;
    this.queue.wake();
  }

  /** What a look has brought fills places. */
  noteLook(look: LaneClaimResult): void {
    this.parts.dispatcher.noteLook(look);
    this.freed.fill(look.jobs);
  }

  /** Places that this pool has freed and not filled: others may. Returns whether there are any. */
  reportFreed(): boolean {
    const lanes = this.freed.take();
    if (!lanes.length) return false;
    const { publisher } = this.options.jobs.engine;
    void publisher.publish({ kind: 'lanes', lanes }).catch(() => undefined);
    return true;
  }

  private noteFreed(job: ClaimedJob): void {
    this.freed.add(job);
    if (this.limited.size >= MAX_LIMITED) this.limited.clear();
    this.limited.add(job.queue!);
  }

  /** A look under way is awaited: it could take what the settle is to take, before the end of the settled job is told. */
  private async settleAfterLook(requests: SettleRequest[]): Promise<FillingAnswer | null> {
    const { plan, fetcher, dispatcher } = this.parts;
    const { isRunning, failures, wake } = this.queue;
    await fetcher.lookEnds();
    if (fetcher.looking || !isRunning() || failures() > 0 || !dispatcher.freeSlots) return null;
    const [planned, ...others] = plan.next();
    if (!planned || others.length || this.options.mayClaim?.() === false) return null;
    for (const { job } of requests) if (job.queue !== null) plan.noteFreed(job);
    const end = fetcher.beginLook();
    return this.settleAndFill(planned.group, requests, () => {
      end();
      wake();
    });
  }

  private async settleAndFill(group: ClaimGroup, requests: SettleRequest[], end: () => void): Promise<FillingAnswer> {
    const { fetcher, reconciler } = this.parts;
    try {
      const { answer, look } = await fetcher.settleAndLook(group, requests);
      return await this.fill(group, answer, look, end);
    } catch (error) {
      if (!isLockTimeout(error)) reconciler.suspect();
      end();
      if (!isLockTimeout(error)) throw error;
      const answer = await this.options.jobs.engine.settlement.settle(fetcher.claimer, requests);
      return { ...answer, begin: () => undefined };
    }
  }

  private async fill(
    group: ClaimGroup,
    answer: SettleAnswer,
    look: LaneClaimResult,
    end: () => void,
  ): Promise<FillingAnswer> {
    const { plan, dispatcher, releaser } = this.parts;
    for (const { job, hasFreedPlace } of answer.results) if (hasFreedPlace) this.noteFreed(job);
    this.noteLook(look);
    const isLeft = this.reportFreed();
    // One lane alone does not fill them all: others of the queue may.
    if (look.report?.unknown.length || (isLeft && !look.report)) plan.noteRunnable([]);
    dispatcher.lookAt = group.lookAt;
    if (look.unreadable) this.options.onError?.(look.unreadable, 'reading claimed jobs');
    const jobs = await releaser.withoutExtraSuspects(look.jobs);
    const results = answer.results.map((settled) => ({ ...settled, hasFreedPlace: false }));
    const begin = (): void => {
      end();
      const { more, claimedAt } = look;
      this.queue.accept({ jobs, more, ahead: false, claimedAt, pausedUntil: null });
    };
    return { ...answer, results, begin };
  }
}
