// The jobs a pool has claimed and not yet begun, best priority first. Grows with the backlog, within bounds.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { BatchOptions } from '../interfaces/task.interface.js';
import { weightOf } from '../manager/job.weight.js';
import { batchKey, GatheringBatch } from './gathering.batch.js';

const SMALLEST = 50;
const LARGEST = 1_000;
const MAX_KIB = 16 * 1024;

interface Entry {
  job: ClaimedJob;
  since: number;
  kib: number;
  /** Goes before others as urgent as it, in turns with them. */
  ahead: boolean;
  /** Of a task that takes many jobs at once; `job` is the first of them to go by. Its time begins when it may start. */
  batch: GatheringBatch | null;
}

/** Whether the jobs may start now. `batch`: all jobs of the one call. */
type Admit = (job: ClaimedJob, batch?: ClaimedJob[]) => boolean;

export class JobBuffer {
  private entries: Entry[] = [];
  private adaptiveSize = SMALLEST;
  private kib = 0;
  /** No entry came in before. */
  private oldest = Infinity;
  /** The last one taken went ahead of others: it is their turn. */
  private wasAhead = false;
  /** Batches that are not full, by what their jobs have in common. */
  private readonly open = new Map<string, Entry>();
  private batches = 0;
  private batchedJobs = 0;
  private largestBatch = 0;
  /** Taken out, and not asked for yet. */
  private readonly taken = new Map<ClaimedJob, ClaimedJob[]>();

  constructor(
    private readonly fixedSize: number | null,
    /** How jobs of the task are gathered; null: each runs by itself. */
    private readonly batchOf: (task: string) => BatchOptions | null = () => null,
  ) {}

  get length(): number {
    return this.singles + this.batchedJobs;
  }

  /** Jobs that run each by itself. */
  get singles(): number {
    return this.entries.length - this.batches;
  }

  /** How many such jobs it may hold now, and about as many of batches; never less than one batch. */
  get size(): number {
    return Math.max(this.fixedSize ?? this.adaptiveSize, this.largestBatch);
  }

  /** When the next batch that is not full starts, after now; by performance.now(). */
  dueAfter(now: number): number {
    let dueAt = Infinity;
    for (const { batch } of this.open.values()) if (batch!.dueAt > now) dueAt = Math.min(dueAt, batch!.dueAt);
    return dueAt;
  }

  /** How many KiB of payloads it may still take. */
  get roomKib(): number {
    return Math.max(0, MAX_KIB - this.kib);
  }

  get room(): number {
    return this.roomKib > 0 ? Math.max(0, this.size - this.singles) : 0;
  }

  /** Of the first that may start; a batch that gathers does not keep others waiting. */
  get headPriority(): number | null {
    const first = this.batches === 0 ? this.entries[0] : this.entries.find(this.readiness());
    return first?.job.priority ?? null;
  }

  /**
   * `more`: the database has more of them, so next time a larger batch pays. `ahead`: they take turns with others as urgent,
   * for those are many and these can only be few: jobs of tasks with a limit of their own.
   */
  add(jobs: ClaimedJob[], { more = false, ahead = false } = {}): void {
    if (more && this.singles <= this.size / 2) this.adaptiveSize = Math.min(LARGEST, this.adaptiveSize * 2);
    const since = performance.now();
    this.oldest = Math.min(this.oldest, since);
    // Jobs for free slots first: each goes before all others, behind those of its kind.
    for (const job of jobs)
      if (forSlot(job)) this.insertJob({ job, since, kib: weightOf(job), ahead: false, batch: null });
    for (const job of jobs) if (!forSlot(job)) this.insertJob({ job, since, kib: weightOf(job), ahead, batch: null });
  }

  /** The first job that may start. If it is of a batch, `batchFor` has the others. */
  take(admit?: Admit): ClaimedJob | null {
    const first = this.entries[0];
    if (!first) return null;
    if (this.batches > 0) return this.takeReady(admit);
    if (first.ahead && this.wasAhead) {
      const { priority } = first.job;
      const other = this.entries.findIndex(
        ({ job, ahead }) => !ahead && job.priority === priority && (!admit || admit(job)),
      );
      if (other > 0) return this.remove(other);
    }
    if (!admit || admit(first.job)) return this.remove(0);
    const index = this.entries.findIndex(({ job }, place) => place > 0 && admit(job));
    return index < 0 ? null : this.remove(index);
  }

  /** The jobs that run in one call with one that was taken; null: it runs by itself. Asked once. */
  batchFor(job: ClaimedJob): ClaimedJob[] | null {
    if (this.taken.size === 0) return null;
    const batch = this.taken.get(job) ?? null;
    this.taken.delete(job);
    return batch;
  }

  /** Asked before each job that is taken, so it reads the entries only where one may be that old. */
  takeOlderThan(ms: number): ClaimedJob[] {
    const limit = performance.now() - ms;
    if (this.oldest >= limit) return [];
    const stale = this.takeWhere(({ since }) => since < limit);
    this.oldest = this.entries.reduce((least, { since }) => Math.min(least, since), Infinity);
    return stale;
  }

  /** Takes out these claims, whatever becomes of them. */
  takeClaims(claims: { id: string; fence: string }[]): ClaimedJob[] {
    const names = new Set(claims.map(({ id, fence }) => id + fence));
    const isNamed = ({ id, fence }: ClaimedJob): boolean => names.has(id + fence);
    return this.takeJobs(isNamed);
  }

  takeJobs(matches: (job: ClaimedJob) => boolean): ClaimedJob[] {
    const ofBatches = this.batches > 0 ? this.takeOutOfBatches(matches) : [];
    return [...ofBatches, ...this.takeWhere(({ job, batch }) => !batch && matches(job))];
  }

  jobs(): ClaimedJob[] {
    return this.entries.flatMap(jobsOf);
  }

  takeAll(): ClaimedJob[] {
    return this.takeWhere(() => true);
  }

  private takeReady(admit?: Admit): ClaimedJob | null {
    const mayStart = this.readiness(admit);
    const index = this.entries.findIndex(mayStart);
    if (index < 0) return null;
    const { ahead, job: first } = this.entries[index]!;
    const others = (entry: Entry): boolean => !entry.ahead && entry.job.priority === first.priority && mayStart(entry);
    const turn = ahead && this.wasAhead ? this.entries.findIndex(others) : -1;
    return this.remove(turn >= 0 ? turn : index);
  }

  /** Batches wait until they are full, or their time has come, or too many jobs have gathered. */
  private readiness(admit?: Admit): (entry: Entry) => boolean {
    const now = performance.now();
    const isCrowded = this.batchedJobs >= this.size || this.roomKib === 0;
    return ({ job, batch }) =>
      (!batch || batch.isFull || isCrowded || now >= batch.dueAt) && (!admit || admit(job, batch?.jobs));
  }

  private insertJob(entry: Entry): void {
    const options = this.batchOf(entry.job.task);
    if (options) this.gather(entry, options);
    else this.insert(entry);
  }

  private gather(entry: Entry, options: BatchOptions): void {
    const { job, kib, since } = entry;
    this.largestBatch = Math.max(this.largestBatch, options.size);
    this.batchedJobs++;
    const key = batchKey(job, options);
    const open = key === null ? undefined : this.open.get(key);
    if (open) return this.join(open, job, kib);
    const batch = new GatheringBatch(key, job, options, since);
    this.batches++;
    this.insert({ ...entry, batch, since: batch.dueAt });
    if (!batch.isFull)
      this.open.set(
        key!,
        this.entries.find((one) => one.batch === batch)!,
      );
  }

  private join(entry: Entry, job: ClaimedJob, kib: number): void {
    const batch = entry.batch!;
    const replaced = batch.join(job);
    if (replaced) this.batchedJobs--;
    const added = kib - (replaced ? weightOf(replaced) : 0);
    entry.kib += added;
    this.kib += added;
    if (batch.isFull) this.open.delete(batch.key!);
    const goesBefore = forSlot(job) ? !forSlot(entry.job) : !forSlot(entry.job) && job.priority < entry.job.priority;
    if (!goesBefore && batch.jobs.includes(entry.job)) return;
    this.entries.splice(this.entries.indexOf(entry), 1);
    this.kib -= entry.kib;
    entry.job = job;
    this.insert(entry);
  }

  private takeOutOfBatches(matches: (job: ClaimedJob) => boolean): ClaimedJob[] {
    const found = this.entries.flatMap((entry) => {
      const jobs = entry.batch?.jobs.filter(matches) ?? [];
      entry.batch?.remove(jobs);
      this.batchedJobs -= jobs.length;
      const kib = jobs.reduce((sum, job) => sum + weightOf(job), 0);
      entry.kib -= kib;
      this.kib -= kib;
      if (jobs.includes(entry.job)) entry.job = entry.batch!.jobs[0] ?? entry.job;
      return jobs;
    });
    this.takeWhere(({ batch }) => batch?.jobs.length === 0);
    return found;
  }

  private remove(index: number): ClaimedJob {
    const entry = index === 0 ? this.entries.shift()! : this.entries.splice(index, 1)[0]!;
    this.kib -= entry.kib;
    this.wasAhead = entry.ahead;
    if (entry.batch) this.taken.set(entry.job, this.close(entry.batch));
    return entry.job;
  }

  private takeWhere(matches: (entry: Entry) => boolean): ClaimedJob[] {
    const taken = this.entries.filter(matches);
    this.entries = this.entries.filter((entry) => !matches(entry));
    for (const { kib, batch } of taken) {
      this.kib -= kib;
      if (batch) this.close(batch);
    }
    return taken.flatMap(jobsOf);
  }

  /** Nothing joins it any more. */
  private close({ key, jobs }: GatheringBatch): ClaimedJob[] {
    this.batches--;
    this.batchedJobs -= jobs.length;
    if (key !== null && this.open.get(key)?.batch?.jobs === jobs) this.open.delete(key);
    return jobs;
  }

  /** Behind everything as urgent as it; jobs for free slots go before all, a slot waits for them. */
  private insert(entry: Entry): void {
    const before = forSlot(entry.job)
      ? (other: Entry) => !forSlot(other.job)
      : (other: Entry) =>
          !forSlot(other.job) &&
          (other.job.priority > entry.job.priority ||
            (entry.ahead && !other.ahead && other.job.priority === entry.job.priority));
    this.kib += entry.kib;
    let index = this.entries.length;
    while (index > 0 && before(this.entries[index - 1]!)) index--;
    if (index === this.entries.length) this.entries.push(entry);
    else this.entries.splice(index, 0, entry);
  }
}

const forSlot = ({ queue, rateLimitKey, attempts, maxAttempts, crashes }: ClaimedJob): boolean =>
  queue !== null || rateLimitKey !== null || attempts >= maxAttempts || crashes > 0;

const jobsOf = ({ job, batch }: Entry): ClaimedJob[] => batch?.jobs ?? [job];
