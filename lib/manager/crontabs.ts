// Recurring jobs: which there are, which slots are due by the database's clock, and the one transaction that fires a
// slot. Any number of processes may fire: the row's lock lets one in at a time, and its last slot tells the next.
import { setImmediate } from 'node:timers/promises';
import type { CronInfo, CronSpec, TaskCron } from '../interfaces/cron.interface.js';
import type { Job, JobSpec, QueryExecutor } from '../interfaces/job.interface.js';
import type { TaskToken } from '../interfaces/task.interface.js';
import { InvalidOptionsError, TransactionOverError } from '../jobs.errors.js';
import type { Database, Statement } from '../storage/database.js';
import { toDate, toDateOrNull } from '../storage/row.types.js';
import * as statements from '../storage/statements/crontabs.js';
import { check } from '../validation.js';
import { pause } from '../timing.js';
import { tryBriefly } from './brief.lock.js';
import { checkCron, cronRules } from './cron.arguments.js';
import { CrontabLockedError } from './crontab.errors.js';
import { digestOf } from './digest.js';
import { lastSlotBetween, nextSlot, slotsBetween } from './cron.slots.js';
import type { JobAdder } from './job.adder.js';
import { openValue, sealText, reveal, type JobCipher } from './job.cipher.js';
import type { JobPreparer } from './job.preparer.js';
import type { TaskDefinition } from './task.registry.js';

/** A slot is fired up to this late without a backfill: pools look twice a minute, and restarts take a while. */
export const GRACE_MS = 60_000;
/** Slots that are made up for in one transaction. */
const MAX_AT_ONCE = 100;
/** What scheduling by hand does where some transaction holds the crontab's row. */
const TRIES = 10;
const PAUSE_MS = 150;

/** What is due, and in how many ms something will be; `Infinity` where nothing is known. */
export interface CronOutlook {
  due: string[];
  nextInMs: number;
}

export interface FiredSlot {
  slot: Date;
  job: Job;
}

export interface Firing {
  fired: FiredSlot[];
  /** There are more slots to make up for: call again. */
  more: boolean;
  /** Another process fires it at this moment, or some transaction holds its row. */
  held: boolean;
}

/** A crontab as it is stored. */
export interface PreparedCrontab {
  id: string;
  /** For putCrontab. */
  values: unknown[];
  /** A digest of what was scheduled or declared. */
  content: string;
}

type AnyCronSpec = CronSpec & { task: string | TaskToken };

/** The slot that follows each moment from `after` to it. */
interface Upcoming {
  schedule: string;
  timeZone: string;
  after: number;
  slot: number | null;
}

export class Crontabs {
  private readonly listeners = new Set<() => void>();
  private upcoming = new Map<string, Upcoming>();

  constructor(
    private readonly database: Database,
    private readonly adder: JobAdder,
    private readonly preparer: JobPreparer,
    private readonly cipher: JobCipher | undefined,
  ) {}

  /** @throws CrontabLockedError besides what is said at JobManager.scheduleCron */
  async schedule(spec: AnyCronSpec): Promise<CronInfo> {
    checkCron(spec);
    const { id, values } = await this.prepare(spec);
    const [row] = await this.runWithLockRetries(id, statements.putCrontab, values);
    this.changed();
    return this.describe(row as statements.CrontabRow);
  }

  /** @throws CrontabLockedError */
  async unschedule(id: string): Promise<boolean> {
    check({ id: [id, cronRules.id] });
    const dropped = await this.runWithLockRetries(id, statements.dropCrontab, [id]);
    this.changed();
    return dropped.length > 0;
  }

  async list(): Promise<CronInfo[]> {
    const crons: CronInfo[] = [];
    for (const row of await this.database.run(statements.listCrontabs, [])) crons.push(await this.describe(row));
    return crons;
  }

  /** The crontabs of tasks, as they are stored. @throws InvalidOptionsError, InvalidArgumentError, PayloadValidationError */
  async prepareDeclared(definitions: TaskDefinition[]): Promise<PreparedCrontab[]> {
    const specs = definitions.flatMap(declaredBy);
    refuseDuplicates(specs);
    specs.forEach(checkCron);
    return Promise.all(specs.map((spec) => this.prepare(spec)));
  }

  /**
   * What is due now, in no order, so that processes do not queue up for the same rows; and when to look again. Slots are
   * due for `graceMs` in any case.
   */
  async poll(graceMs = GRACE_MS): Promise<CronOutlook> {
    const rows = await this.database.run(statements.listCronTimings, []);
    const readAt = performance.now();
    const known = this.upcoming;
    this.upcoming = new Map();
    const due: string[] = [];
    let nextInMs = Infinity;
    for (const row of rows) {
      const pending = await this.slotAfter(row, openFrom(row, graceMs), known.get(row.id));
      const isDue = pending !== null && pending <= row.now;
      if (isDue) due.splice(Math.floor(Math.random() * (due.length + 1)), 0, row.id);
      const next = isDue ? await this.slotAfter(row, row.now) : pending;
      if (next !== null) nextInMs = Math.min(nextInMs, next - row.now);
    }
    return { due, nextInMs: Math.max(0, nextInMs - (performance.now() - readAt)) };
  }

  /** Adds the jobs of a crontab's due slots, once: a process that comes second finds none due. */
  async fire(id: string, graceMs = GRACE_MS): Promise<Firing> {
    return this.database.transaction(async (executor) => {
      const [row] = await this.database.run(statements.lockCrontab, [id], executor);
      if (!row) return { fired: [], more: false, held: true };
      const slots = dueSlots(row, graceMs);
      if (!slots.length) return { fired: [], more: false, held: false };
      const passes = row.overlap === 'skip' && (await this.isBusy(row, executor));
      const specs = passes ? [] : slots.map(() => jobOf(row, this.cipher));
      const jobs = await this.adder.addMany(specs, { manager: executor, notify: true, bounded: false });
      await this.database.run(statements.advanceCrontab, [id, slots.at(-1), jobs.at(-1)?.id ?? null], executor);
      const fired = jobs.map((job, index) => ({ slot: toDate(slots[index] as number), job }));
      return { fired, more: slots.length === MAX_AT_ONCE, held: false };
    });
  }

  /** Calls back when this process has changed a crontab. Returns what ends that. */
  onChange(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }

  private async prepare(spec: AnyCronSpec): Promise<PreparedCrontab> {
    const {
      id,
      task,
      schedule,
      timeZone = 'UTC',
      payload = null,
      options = {},
      backfillMs = 0,
      overlap = 'skip',
    } = spec;
    // Before the first await: the caller's objects may say something else afterwards.
    const optionsText = JSON.stringify(options);
    const { row, json } = await this.preparer.check(this.preparer.take(task, payload, { ...options, ...ALONE }));
    const stored = sealText(this.cipher, row.task, 'crontab', id, json);
    const values = [id, row.task, schedule, timeZone, stored, optionsText, backfillMs, overlap];
    const content = JSON.stringify(values.with(4, json));
    // Whatever is encrypted must not be guessed from its digest.
    const digest = this.cipher?.covers(row.task) ? this.cipher.digest(content) : digestOf(content);
    return { id, values, content: digest };
  }

  private async isBusy({ last_job_id }: statements.CrontabRow, executor: QueryExecutor): Promise<boolean> {
    const [row] = await this.database.run(statements.isBusy, [last_job_id], executor);
    return row!.busy;
  }

  /** Tries for some seconds, each time waiting 100 ms at most. */
  private async runWithLockRetries<Row>(id: string, statement: Statement<Row>, values: unknown[]): Promise<Row[]> {
    for (let tries = 1; tries <= TRIES; tries++) {
      const rows = await tryBriefly(this.database, statement, values).catch((error: unknown) => {
        // The caller's own transaction, which the first try has aborted.
        throw tries > 1 && error instanceof TransactionOverError ? new CrontabLockedError(id) : error;
      });
      if (rows) return rows;
      await pause(PAUSE_MS);
    }
    throw new CrontabLockedError(id);
  }

  private async describe(row: statements.CrontabRow): Promise<CronInfo> {
    return toCronInfo(row, this.cipher, await this.slotAfter(row, openFrom(row, GRACE_MS), this.upcoming.get(row.id)));
  }

  /** Remembered, because `cron` takes about a millisecond; thousands of these must leave time for others. */
  private async slotAfter(row: statements.CronTimingRow, after: number, known?: Upcoming): Promise<number | null> {
    const { id, schedule, time_zone: timeZone } = row;
    const holds = known?.schedule === schedule && known.timeZone === timeZone && isWithin(known, after);
    if (!holds) await setImmediate();
    const upcoming = holds ? known : { schedule, timeZone, after, slot: nextSlot(schedule, timeZone, after) };
    this.upcoming.set(id, upcoming);
    return upcoming.slot;
  }

  private changed(): void {
    for (const listener of this.listeners) listener();
  }
}

const isWithin = ({ after, slot }: Upcoming, moment: number): boolean =>
  slot !== null && after <= moment && moment < slot;

/** Slots after this moment are to be fired: later than the last one, but not those that were missed too long ago. */
const openFrom = ({ open_since, now, backfill_ms }: statements.CronTimingRow, graceMs: number): number =>
  Math.max(open_since, now - Math.max(Number(backfill_ms), graceMs));

/** Where one job at a time is wanted, the last slot stands for all that were missed. */
function dueSlots(row: statements.CrontabRow, graceMs: number): number[] {
  const from = openFrom(row, graceMs);
  if (row.overlap === 'queue') return slotsBetween(row.schedule, row.time_zone, from, row.now, MAX_AT_ONCE);
  const slot = lastSlotBetween(row.schedule, row.time_zone, from, row.now);
  return slot === null ? [] : [slot];
}

/** Whether a slot adds a job is for `overlap` to say, not for what the task compares adds by. */
const ALONE = { throttle: null, unique: null };

/** @throws DecryptionError */
const jobOf = ({ id, task, options, ...row }: statements.CrontabRow, cipher: JobCipher | undefined): JobSpec => {
  const { tags = [], ...others } = options;
  const payload = openValue(cipher, row.payload, 'crontab', id);
  return { ...others, ...ALONE, task, payload, tags: [...tags, `cron:${id}`] };
};

function declaredBy({ task, options: { cron } }: TaskDefinition): (CronSpec & { task: string })[] {
  if (cron === undefined) return [];
  const { key = task, ...timing }: TaskCron = typeof cron === 'string' ? { schedule: cron } : cron;
  return [{ ...timing, id: key, task }];
}

function refuseDuplicates(specs: { id: string; task: string }[]): void {
  const faults = specs
    .filter(({ id }, index) => specs.findIndex((other) => other.id === id) < index)
    .map(({ id, task }) => `Expected cron.key of task "${task}" to be its own, got "${id}", which another task has.`);
  if (faults.length) throw new InvalidOptionsError(faults);
}

const toCronInfo = (
  row: statements.CrontabRow,
  cipher: JobCipher | undefined,
  nextSlotAt: number | null,
): CronInfo => ({
  id: row.id,
  task: row.task,
  schedule: row.schedule,
  timeZone: row.time_zone,
  payload: reveal(() => openValue(cipher, row.payload, 'crontab', row.id)),
  options: row.options,
  backfillMs: Number(row.backfill_ms),
  overlap: row.overlap,
  declared: row.declared,
  knownSince: toDate(row.known_since),
  nextSlotAt: toDateOrNull(nextSlotAt),
  lastSlotAt: toDateOrNull(row.last_slot_at),
  lastJobId: row.last_job_id,
});
