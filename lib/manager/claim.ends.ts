// Ends of claims by others than their holders: by operators, and of workers that have died.
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import { JobHeldError } from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import { isLockTimeout } from '../storage/sql.states.js';
import { endAttempts, type EndedAttempt, type EndedRow, type EndKind } from '../storage/statements/settle-jobs.js';
import { pause } from '../timing.js';
import { freedBy, newsOf, type JobPromoter } from './job.promoter.js';
import { lanesOfQueue } from './lane.names.js';
import type { NewsPublisher } from './news.publisher.js';
import { keepingOf } from './settle.values.js';

/** A claim as an operator found it; without a fence, the job as it stands. */
export interface FoundClaim {
  id: string;
  fence: string | null;
}

const FIRST_PAUSE_MS = 5;
const MAX_PAUSE_MS = 1_000;
/** An operator's call waits so long for what an open transaction holds. */
const PATIENCE_MS = 10_000;

export class ClaimEnds {
  constructor(
    private readonly database: Database,
    private readonly history: ManagerSettings['history'],
    private readonly promoter: JobPromoter,
    private readonly publisher: NewsPublisher,
  ) {}

  /**
   * Ends claims without their holder's word, one apart from the other, and tells their holders. What an open transaction holds
   * is tried again for some seconds.
   * @throws JobHeldError where that was not enough; the others have ended
   */
  async end(
    found: FoundClaim[],
    kind: EndKind | ((claim: FoundClaim) => EndKind),
    reason: string | null,
    { maxCrashes = null, patient = true }: { maxCrashes?: number | null; patient?: boolean } = {},
  ): Promise<EndedRow[]> {
    const ended: EndedRow[] = [];
    let open = found;
    for (let pauseMs = FIRST_PAUSE_MS, deadline = performance.now() + PATIENCE_MS; open.length;) {
      const rows = await this.endNow(open, kind, reason, maxCrashes).catch((error: unknown) => {
        // A table is locked as a whole.
        if (!patient || this.database.isBound || !isLockTimeout(error)) throw error;
        return open.map(({ id }) => ({ id, became: 'held' }) as EndedRow);
      });
      const held = new Set(rows.filter(({ became }) => became === 'held').map(({ id }) => id));
      ended.push(...rows.filter(({ became }) => !['held', 'lost', 'unchanged'].includes(became)));
      open = open.filter(({ id }) => held.has(id));
      if (!open.length || !patient) break;
      if (performance.now() > deadline) throw new JobHeldError([...held]);
      await pause(pauseMs);
      pauseMs = Math.min(MAX_PAUSE_MS, pauseMs * 2);
    }
    return ended;
  }

  private async endNow(
    found: FoundClaim[],
    kind: EndKind | ((claim: FoundClaim) => EndKind),
    reason: string | null,
    maxCrashes: number | null,
  ): Promise<EndedRow[]> {
    const input = found.map((claim): EndedAttempt => ({
      id: claim.id,
      fence: claim.fence,
      kind: typeof kind === 'string' ? kind : kind(claim),
      error_message: reason,
    }));
    const values = [null, null, JSON.stringify(input), ...keepingOf(this.history), null, maxCrashes];
    const rows = await this.database.run(endAttempts, values);
    const ended = rows.filter(({ became }) => !['held', 'lost', 'unchanged'].includes(became));
    await this.promoter.promote(freedBy(ended));
    const running = ended.filter(({ holder }) => holder != null).map(({ id }) => id);
    await this.publisher.publish(
      ...(running.length ? [{ kind: 'ended', ids: running } as const] : []),
      ...newsOf(ended.flatMap(({ queue }) => (queue === null ? [] : [lanesOfQueue(queue)]))),
      ...newsOf(
        ended.flatMap(({ became, lane }) => (became === 'available' || became === 'released' ? [lane ?? null] : [])),
      ),
    );
    return rows;
  }
}
