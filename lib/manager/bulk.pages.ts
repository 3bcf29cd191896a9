// The pages of bulk actions: each is one transaction that does it to some jobs and moves the action on, so a process that dies leaves
// a page done or not done. Any process may do the next one.
import type { BulkAction, BulkActionName, BulkFilter, BulkPreview, BulkReason } from '../interfaces/bulk.interface.js';
import type { QueryExecutor } from '../interfaces/job.interface.js';
import { DecryptionError } from '../jobs.errors.js';
import { isContention } from '../storage/sql.states.js';
import * as bulk from '../storage/statements/bulk-actions.js';
import { BulkEffects, type BulkParts, type Effects } from './bulk.effects.js';
import { readFilter, scopeOf, toBulkAction, type BulkSettings } from './bulk.filters.js';
import type { JobCipher } from './job.cipher.js';

const PAGE = 1_000;
/** A page looks at so many jobs at most, however few of them match. */
const MOST_LOOKED_AT = 10_000;
/** What open transactions hold is kept to the end; where it becomes so much, the action waits for it. */
const MAX_HELD = 1_000;
/** A little more than a minute. */
const HELD_TRIES = 8;
const HELD_PAUSE_MS = 1_000;
const MAX_HELD_PAUSE_MS = 15_000;
const FAILURES = 10;
const FAILURE_PAUSE_MS = 1_000;
const REASONS = 10;
const EXACT_MATCHES = 10_000;
const EXACT_LOOKED_AT = 100_000;
const SAMPLE = 10;
const NO_JOB = '00000000-0000-0000-0000-000000000000';
const LAST_JOB = 'ffffffff-ffff-ffff-ffff-ffffffffffff';
const HELD = 'an open transaction holds it';

/** A page that was done. */
export interface DonePage {
  action: BulkAction;
  /** It was the action's first one. */
  isFirst: boolean;
  /** Why others could not be told of it; sweeps find what is left to do. Null: they were. */
  failure: unknown;
}

/** The action was stopped while its page was done: nothing of the page is kept. */
class StoppedMeanwhile extends Error {}

/** A page that went wrong as a whole. */
class FailedPage extends Error {
  constructor(
    readonly taken: bulk.TakenRow,
    cause: unknown,
  ) {
    super('', { cause });
  }
}

interface Progress {
  position: string | null;
  held: string[] | null;
  tries: number;
  matched: number;
  skippedAsHeld: string[];
  pauseMs: number;
}

export class BulkPages {
  constructor(
    private readonly parts: BulkParts,
    private readonly cipher: JobCipher | undefined,
  ) {}

  /** In how many ms a page is due; null: none is to come. */
  async dueInMs(): Promise<number | null> {
    return (await this.parts.database.run(bulk.nextBulkPage, []))[0]?.due_in ?? null;
  }

  /**
   * Does the page that is due for longest. Null: none is due, or other processes are at it. What goes wrong with a page as a whole is
   * tried again, later and later, and ends the action at last.
   */
  async doNext(): Promise<DonePage | null> {
    const { database } = this.parts;
    let effects: Effects | undefined;
    try {
      const done = await database.transaction(async (executor) => {
        const [taken] = await database.run(bulk.takeBulkAction, [], executor);
        if (!taken) return null;
        const page = await this.doPage(taken, executor).catch((error: unknown) => {
          throw comesAgain(error) ? error : new FailedPage(taken, error);
        });
        effects = page.effects;
        return { action: toBulkAction(page.row, this.cipher), isFirst: taken.pages === 0 };
      });
      return done && { ...done, failure: await failureOf(effects?.after ?? []) };
    } catch (error) {
      if (error instanceof StoppedMeanwhile) return null;
      if (error instanceof FailedPage) return this.putOff(error);
      throw error;
    }
  }

  /** Counts what an action would be about, as far as that does not take long. */
  async preview(action: BulkActionName, filter: BulkFilter, settings: BulkSettings): Promise<BulkPreview> {
    const { source, statuses, wanted } = scopeOf(action, filter, settings);
    const sample: string[] = [];
    let [matched, lookedAt, position] = [0, 0, NO_JOB as string | null];
    while (position !== null && matched < EXACT_MATCHES && lookedAt < EXACT_LOOKED_AT) {
      const values = [source, position, LAST_JOB, wanted, statuses, 'infinity', PAGE, MOST_LOOKED_AT];
      const [page] = await this.parts.database.run(bulk.findBulkPage, values);
      sample.push(...page!.ids.slice(0, SAMPLE - sample.length));
      matched += page!.ids.length;
      lookedAt += page!.looked_at;
      position = page!.next_id;
    }
    if (position === null) return { action, matched, isEstimate: false, sample };
    const [row] = await this.parts.database.run(bulk.countBulkSource, [source]);
    const estimate = Math.round((matched / lookedAt) * Math.max(lookedAt, row?.jobs ?? 0));
    return { action, matched: Math.max(matched, estimate), isEstimate: true, sample };
  }

  private async doPage(taken: bulk.TakenRow, executor: QueryExecutor) {
    const filter = readFilter(this.cipher, taken.id, taken.filter);
    const { action, reason, known_by: knownBy } = taken;
    const settings = taken.settings as BulkSettings;
    const page = { ...scopeOf(action, filter, settings), action, settings, reason, knownBy, executor };
    const isRetry = taken.position === null || taken.held.length >= MAX_HELD;
    const found = isRetry ? null : await this.findPage(taken, page, executor);
    const effects = await new BulkEffects(this.parts, page).apply(found?.ids ?? taken.held);
    const progress = found ? progressOf(taken, found, effects) : progressOfHeld(taken, effects);
    const row = await this.moveOn(taken, progress, effects, executor);
    return { row, effects };
  }

  private async findPage(
    { position, last_id, rate_per_s: rate, failures }: bulk.TakenRow,
    { source, wanted, statuses, knownBy }: { source: string; wanted: string; statuses: string[]; knownBy: string },
    executor: QueryExecutor,
  ) {
    // One that went wrong, perhaps because it took too long, becomes smaller.
    const part = 2 ** failures;
    const size = Math.max(1, Math.floor(Math.min(PAGE, rate ?? PAGE) / part));
    const values = [source, position, last_id, wanted, statuses, knownBy, size, Math.ceil(MOST_LOOKED_AT / part)];
    return (await this.parts.database.run(bulk.findBulkPage, values, executor))[0]!;
  }

  private async moveOn(
    taken: bulk.TakenRow,
    { position, held, tries, matched, skippedAsHeld, pauseMs }: Progress,
    effects: Effects,
    executor: QueryExecutor,
  ): Promise<bulk.BulkActionRow> {
    const { done, failed, skipped } = effects;
    const others = skippedAsHeld.map((id): [string, string] => [id, HELD]);
    const reasons = withReasons(taken.reasons, failed, [...skipped, ...others]);
    const isLast = position === null && !(held ?? taken.held).length;
    const counts = [matched, done, failed.length, skipped.length + others.length];
    const [row] = await this.parts.database.run(
      bulk.moveBulkAction,
      [taken.id, taken.pages, position, held, tries, ...counts, reasons, pauseMs, isLast],
      executor,
    );
    if (!row) throw new StoppedMeanwhile();
    return row;
  }

  /** The action is left as it was; the error stands in it. */
  private async putOff({ taken, cause }: FailedPage): Promise<DonePage | null> {
    const why = cause instanceof Error ? cause.message : String(cause);
    const values = [taken.id, taken.pages, why, FAILURE_PAUSE_MS, FAILURES];
    const [row] = await this.parts.database.run(bulk.putOffBulkAction, values).catch(() => []);
    if (row?.state !== 'failed') throw cause;
    return { action: toBulkAction(row, this.cipher), isFirst: taken.pages === 0, failure: null };
  }
}

/** Another process may have the key; locks are gone the next time. */
const comesAgain = (error: unknown): boolean =>
  error instanceof StoppedMeanwhile || error instanceof DecryptionError || isContention(error);

/** Does each, whatever became of those before it. Returns the first failure, or null. */
async function failureOf(steps: (() => Promise<void>)[]): Promise<unknown> {
  let failure: unknown = null;
  for (const step of steps) await step().catch((error: unknown) => (failure ??= error));
  return failure;
}

/** What it counts is what it has met for the first time; what others hold stays with the action. */
function progressOf(
  { held, held_tries: tries, rate_per_s: rate }: bulk.TakenRow,
  { ids, next_id: position }: { ids: string[]; next_id: string | null },
  effects: Effects,
): Progress {
  return {
    position,
    held: effects.held.length ? [...held, ...effects.held] : null,
    tries,
    matched: ids.length,
    skippedAsHeld: [],
    pauseMs: paceOf(effects, rate),
  };
}

function progressOfHeld(taken: bulk.TakenRow, effects: Effects): Progress {
  const { position, held, rate_per_s: rate } = taken;
  const isStuck = held.length > 0 && effects.held.length === held.length;
  const tries = isStuck ? taken.held_tries + 1 : 0;
  const givesUp = tries >= HELD_TRIES;
  const pauseMs = effects.held.length ? Math.min(MAX_HELD_PAUSE_MS, HELD_PAUSE_MS * 2 ** tries) : paceOf(effects, rate);
  return {
    position,
    // The other end first, the next time: a page may have given up before it came there.
    held: givesUp ? [] : effects.held.toReversed(),
    tries: givesUp ? 0 : tries,
    matched: 0,
    skippedAsHeld: givesUp ? effects.held : [],
    pauseMs: givesUp ? 0 : pauseMs,
  };
}

const paceOf = ({ done }: Effects, rate: number | null): number => (rate === null ? 0 : (done * 1_000) / rate);

/** The first of each kind, as JSON; null: no new ones. */
function withReasons(
  known: BulkReason[],
  failed: [id: string, reason: string][],
  skipped: [id: string, reason: string][],
): string | null {
  const reasons = [...known];
  for (const [outcome, found] of [
    ['failed', failed],
    ['skipped', skipped],
  ] as const) {
    const room = REASONS - reasons.filter((one) => one.outcome === outcome).length;
    reasons.push(...found.slice(0, Math.max(0, room)).map(([jobId, reason]) => ({ jobId, outcome, reason })));
  }
  return reasons.length > known.length ? JSON.stringify(reasons) : null;
}
