// Jobs that may go on because others have ended: those behind their keys, and their children. What ends a job looks for
// its own at once; what a dead process left undone is a state that the sweep finds.
import type { QueryExecutor } from '../interfaces/job.interface.js';
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import type { Database, Statement } from '../storage/database.js';
import { isContention } from '../storage/sql.states.js';
import type { News } from '../storage/job.news.js';
import * as statements from '../storage/statements/end-jobs.js';
import { pruneWindows } from '../storage/statements/prune-jobs.js';
import type { EndedRow } from '../storage/statements/settle-jobs.js';
import { findDutyPosition, moveDuty, takeDuty, type DutyPosition } from '../storage/statements/workers.js';
import { pause } from '../timing.js';
import { circlesIn } from './dependency.circles.js';
import { lanesOfQueue } from './lane.names.js';
import type { NewsPublisher } from './news.publisher.js';

/** What ends leave to others. */
export interface Freed {
  /** Jobs with a key that have ended, or were given back. */
  holders: string[];
  /** Keys of jobs that are gone. */
  keys: string[];
  /** Jobs that have ended for good. */
  parents: string[];
}

/** Pools ask every 3.6 to 4.4 s: one pool alone sweeps each time, many together hardly more often. */
const SWEEP_MS = 3_000;
/** Of one sweep: 2,500 a second. */
const MAX_WINDOWS = 10_000;
const FIRST_PAUSE_MS = 2;
const MAX_PAUSE_MS = 50;
const BEFORE_ANY_ID = '00000000-0000-0000-0000-000000000000';

export class JobPromoter {
  constructor(
    private readonly database: Database,
    private readonly settings: ManagerSettings,
    private readonly publisher: NewsPublisher,
    /** Ends jobs that wait for each other in a circle. */
    private readonly failCircle: (id: string, path: string[]) => Promise<void>,
  ) {}

  /** Lets those go on that waited for these to end, and tells idle pools so. */
  async promote({ holders, keys, parents }: Freed, executor?: QueryExecutor): Promise<void> {
    const lanes: (string | null)[] = [];
    const ended = [...parents];
    if (holders.length) ended.push(...(await this.freeSuccessors({ holders }, lanes, executor)));
    if (keys.length) await this.unlessHeld(statements.freeKeys, [keys], executor);
    await this.tellChildren(ended, lanes, executor);
    await this.tellPools(lanes, executor);
  }

  /** Tells the children of these what has become of them; what is cancelled for it is a parent itself. */
  async resolve(parents: string[], executor?: QueryExecutor): Promise<void> {
    await this.promote({ holders: [], keys: [], parents }, executor);
  }

  /** What others have said of these jobs, whose end may have been missed: others wait for them, or behind their key. */
  async catchUp(ids: string[]): Promise<void> {
    await this.promote({ holders: ids, keys: [], parents: ids });
  }

  /** Tells these children alone, in the transaction that adds them. The parents' other children are told after it. */
  async resolveFor(parents: string[], children: string[], executor?: QueryExecutor): Promise<void> {
    const values = [parents, this.settings.history.retentionMs, children];
    await this.unlessHeld(statements.tellTheseChildren, values, executor);
  }

  /** What was left undone, wherever. Returns queues in which places became free; null: another process is at it. */
  async sweep(): Promise<string[] | null> {
    if (!(await this.database.run(takeDuty, ['sweep', SWEEP_MS])).length) return null;
    return this.sweepNow();
  }

  /**
   * One slice of each kind, from where the last sweep of any process has stopped. What fails keeps none of the others from being
   * done: it begins where it began, the next time.
   */
  async sweepNow(): Promise<string[]> {
    const { database } = this;
    const lanes: (string | null)[] = [];
    const [{ position: from } = { position: {} }] = await database.run(findDutyPosition, ['sweep']);
    const next: DutyPosition = { ...from };
    let queues: string[] = [];
    const failure = await doAll([
      async () => (next.successor = await this.sweepSuccessors(from.successor ?? BEFORE_ANY_ID, lanes)),
      async () => (next.key = (await database.run(statements.freeStaleKeys, [from.key ?? '']))[0]?.next_key ?? null),
      async () => (next.parent = await this.sweepPairs(from.parent ?? BEFORE_ANY_ID, lanes)),
      () => this.sweepCircles(),
      async () => {
        const [places] = await database.run(statements.freePlaces, from.place ?? ['', 0]);
        next.place = places?.next_queue ? [places.next_queue, places.next_number!] : null;
        queues = places?.queues ?? [];
      },
      async () => void (await database.run(pruneWindows, [MAX_WINDOWS])),
      async () => void (await database.run(moveDuty, ['sweep', JSON.stringify(next)])),
      () => this.tellPools([...lanes, ...queues.map(lanesOfQueue)]),
    ]);
    if (failure) throw failure.error;
    return queues;
  }

  private async sweepSuccessors(from: string, lanes: (string | null)[]): Promise<string | null> {
    const [found] = await this.database.run(statements.findPassedOver, [from]);
    const waiters = found?.waiters ?? [];
    if (waiters.length) await this.tellChildren(await this.freeSuccessors({ waiters }, lanes), lanes);
    return found?.next_job ?? null;
  }

  private async sweepPairs(from: string, lanes: (string | null)[]): Promise<string | null> {
    const [found] = await this.database.run(statements.findUntold, [from]);
    await this.tellChildren(found?.parents ?? [], lanes);
    return found?.next_parent ?? null;
  }

  private async sweepCircles(): Promise<void> {
    for (const path of circlesIn(await this.database.run(statements.findCircles, []))) {
      await this.failCircle(path[0]!, path);
    }
  }

  private async freeSuccessors(
    { holders = null, waiters = null }: { holders?: string[] | null; waiters?: string[] | null },
    lanes: (string | null)[],
    executor?: QueryExecutor,
  ): Promise<string[]> {
    const values = [holders, waiters, this.settings.history.retentionMs];
    const rows = await this.unlessHeld(statements.freeSuccessors, values, executor);
    lanes.push(...rows.filter(({ ended }) => !ended).map(({ lane }) => lane));
    return rows.filter(({ ended }) => ended).map(({ id }) => id);
  }

  private async tellChildren(parents: string[], lanes: (string | null)[], executor?: QueryExecutor): Promise<void> {
    let pauseMs = FIRST_PAUSE_MS;
    for (let ended = parents; ended.length;) {
      const values = [ended, this.settings.history.retentionMs];
      const rows = await this.unlessHeld(statements.tellChildren, values, executor);
      lanes.push(...rows.filter(({ became }) => became === 'released').map(({ lane }) => lane));
      const cancelled = rows.filter(({ became }) => became === 'cancelled').map(({ id }) => id);
      const isHeld = rows.some(({ became }) => became === 'held');
      // Parents that end at once meet at the child: for some milliseconds. What is held for longer is found by the sweep.
      if (isHeld && pauseMs < MAX_PAUSE_MS && !executor) {
        await pause(pauseMs * (0.5 + Math.random()));
        pauseMs *= 2;
        ended = [...ended, ...cancelled];
      } else ended = cancelled;
    }
  }

  /** What others' locks are in the way of is found by the sweep. */
  private async unlessHeld<Row>(
    statement: Statement<Row>,
    values: unknown[],
    executor?: QueryExecutor,
  ): Promise<Row[]> {
    try {
      return await this.database.run(statement, values, executor);
    } catch (error) {
      if (executor || this.database.isBound || !isContention(error)) throw error;
      return [];
    }
  }

  private async tellPools(lanes: (string | null)[], executor?: QueryExecutor): Promise<void> {
    const news = newsOf(lanes);
    if (executor) await this.publisher.publishIn(executor, news);
    else await this.publisher.publish(...news);
  }
}

/** Does each thing, whatever became of those before it. Returns the first failure. */
async function doAll(work: (() => Promise<unknown>)[]): Promise<{ error: unknown } | null> {
  let failure: { error: unknown } | null = null;
  for (const part of work) await part().catch((error: unknown) => (failure ??= { error }));
  return failure;
}

/** What tells that jobs of these lanes (null: plain ones, of these priorities, or of any) may run. */
export function newsOf(lanes: (string | null)[], priorities: number[] | null = null): News[] {
  const named = [...new Set(lanes.filter((lane) => lane !== null))];
  return [
    ...(named.length ? [{ kind: 'lanes', lanes: named } as const] : []),
    ...(lanes.includes(null) ? [{ kind: 'jobs', priorities } as const] : []),
  ];
}

const GONE = ['completed', 'cancelled'];

/** What these ends leave to others. */
export const freedBy = (rows: Pick<EndedRow, 'id' | 'became' | 'job_key' | 'has_dependents'>[]): Freed => ({
  holders: rows.filter(({ job_key, became }) => job_key !== null && became !== 'unchanged').map(({ id }) => id),
  keys: rows.flatMap(({ job_key, became }) => (job_key !== null && GONE.includes(became) ? [job_key] : [])),
  parents: rows.filter((row) => row.has_dependents).map(({ id }) => id),
});
