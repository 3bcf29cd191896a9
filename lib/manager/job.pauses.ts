// Pauses: begins and ends them, and tells pools. Claims read what is paused; nothing is written to jobs.
import type { JobEventFields } from '../interfaces/event.interface.js';
import type { Pause, PauseOptions, PauseTarget, ResumeOptions } from '../interfaces/report.interface.js';
import { InvalidArgumentError } from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import type { News } from '../storage/job.news.js';
import { retryOnContention } from '../storage/retry.js';
import * as statements from '../storage/statements/pauses.js';
import { pause as sleep } from '../timing.js';
import { toPause } from './job.mapper.js';
import { lanesOfQueue } from './lane.names.js';
import type { NewsPublisher } from './news.publisher.js';
import { ClaimsUnderWayError } from './pause.errors.js';
import { readTarget, type TargetKey } from './pause.target.js';

/** Tells what took effect at once; of a caller's transaction it is not known whether it will. */
type Emit = <T extends 'jobs.paused' | 'jobs.resumed'>(type: T, fields: JobEventFields[T]) => void;

const FIRST_PAUSE_MS = 2;
const MAX_PAUSE_MS = 100;
const PATIENCE_MS = 10_000;

/** What a pool knows of pauses. */
export interface KnownPauses {
  /** The database's time of the look, in ms. */
  readAt: number;
  pauses: KnownPause[];
}

export interface KnownPause {
  kind: string;
  /** Of a partition: its queue. */
  name: string;
  partition: string;
  until: number | null;
}

/** A queue, and one of its partitions. */
export type Branch = [queue: string, partition: string | null];

export class JobPauses {
  constructor(
    private readonly database: Database,
    private readonly publisher: NewsPublisher,
    private readonly emit: Emit,
  ) {}

  /** @throws InvalidArgumentError, RowsHeldError, ClaimsUnderWayError */
  async pause(target: PauseTarget, { until = null, reason, by }: Partial<PauseOptions>): Promise<void> {
    const key = readTarget(target);
    const values = [...valuesOf(key), until?.toISOString() ?? null, reason ?? null, by ?? null];
    const { isBound } = this.database;
    const rows = await retryOnContention(
      () => this.database.run(key.kind === 'queue' ? statements.pauseQueue : statements.pauseTarget, values),
      isBound,
    );
    if (!rows.length) throw inThePast(until!);
    if (!isBound) this.emit('jobs.paused', { pause: toPause(rows[0]!) });
    await this.publisher.publish(...newsOf(key));
    // Claims of a queue were excluded; what a caller's transaction does takes effect with its commit.
    if (key.kind !== 'queue' && !isBound) await this.awaitClaims();
  }

  /** @throws InvalidArgumentError, RowsHeldError */
  async resume(target: PauseTarget, { by }: ResumeOptions): Promise<boolean> {
    const key = readTarget(target);
    const run = () =>
      this.database.run(key.kind === 'queue' ? statements.resumeQueue : statements.resumeTarget, valuesOf(key));
    const { isBound } = this.database;
    const [row] = await retryOnContention(run, isBound);
    if (row && !isBound) this.emit('jobs.resumed', { pause: toPause(row), by: by ?? null });
    await this.publisher.publish(...newsOf(key));
    return row !== undefined;
  }

  async list(): Promise<Pause[]> {
    return (await this.database.run(statements.listPauses, [])).map(toPause);
  }

  /** Those that an incarnation must know: of tasks, of everything, of its instance and of itself, and in these branches. */
  async find(incarnation: string, branches: Branch[]): Promise<KnownPauses> {
    const [queues, partitions] = [branches.map(([queue]) => queue), branches.map(([, partition]) => partition)];
    const [row] = await this.database.run(statements.findPauses, [incarnation, queues, partitions]);
    const pauses = row!.pauses.map(([kind, name, partition, until]) => ({ kind, name, partition, until }));
    return { readAt: Number(row!.present), pauses };
  }

  /** Until every transaction has ended that claimed when the pause was committed: it may not know of it. */
  private async awaitClaims(): Promise<void> {
    const deadline = performance.now() + PATIENCE_MS;
    let claims = await this.claimsUnderWay(null);
    for (let pauseMs = FIRST_PAUSE_MS; claims.length; pauseMs = Math.min(MAX_PAUSE_MS, pauseMs * 2)) {
      if (performance.now() > deadline) throw new ClaimsUnderWayError(claims.length);
      await sleep(pauseMs);
      claims = await this.claimsUnderWay(claims);
    }
  }

  private async claimsUnderWay(known: string[] | null): Promise<string[]> {
    return (await this.database.run(statements.claimsUnderWay, [known]))[0]!.claims;
  }
}

const valuesOf = ({ kind, name, partition }: TargetKey): [string, string, string] => [kind, name, partition];

/** Pools ask what is paused, and look at the lanes of a queue. */
const newsOf = ({ kind, name }: TargetKey): News[] => [
  kind === 'queue' || kind === 'partition' ? { kind: 'pauses', lanes: [lanesOfQueue(name)] } : { kind: 'pauses' },
];

const inThePast = (until: Date): InvalidArgumentError =>
  new InvalidArgumentError([
    `Expected until to be later than now, by the clock of the database, got ${until.toISOString()}.`,
  ]);
