// The jobs a pool has claimed and not yet begun, best priority first. Grows with the backlog, within bounds.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { weightOf } from '../manager/job.weight.js';

const SMALLEST = 50;
const LARGEST = 1_000;
const MAX_KIB = 16 * 1024;

interface Entry {
  job: ClaimedJob;
  since: number;
  kib: number;
  /** Goes before others as urgent as it, in turns with them. */
  ahead: boolean;
}

export class JobBuffer {
  private entries: Entry[] = [];
  private adaptiveSize = SMALLEST;
  private kib = 0;
  /** No entry came in before. */
  private oldest = Infinity;
  /** The last one taken went ahead of others: it is their turn. */
  private wasAhead = false;

  constructor(private readonly fixedSize: number | null) {}

  get length(): number {
    return this.entries.length;
  }

  /** How many jobs it may hold now. */
  get size(): number {
    return this.fixedSize ?? this.adaptiveSize;
  }

  /** How many KiB of payloads it may still take. */
  get roomKib(): number {
    return Math.max(0, MAX_KIB - this.kib);
  }

  get room(): number {
    return this.roomKib > 0 ? Math.max(0, this.size - this.entries.length) : 0;
  }

  get headPriority(): number | null {
    return this.entries[0]?.job.priority ?? null;
  }

  /**
   * `more`: the database has more of them, so next time a larger batch pays. `ahead`: they take turns with others as urgent,
   * for those are many and these can only be few: jobs of tasks with a limit of their own.
   */
  add(jobs: ClaimedJob[], { more = false, ahead = false } = {}): void {
    if (more && this.entries.length <= this.size / 2) this.adaptiveSize = Math.min(LARGEST, this.adaptiveSize * 2);
    const since = performance.now();
    this.oldest = Math.min(this.oldest, since);
    // Jobs for free slots first: each goes before all others, behind those of its kind.
    for (const job of jobs) if (forSlot(job)) this.insert({ job, since, kib: weightOf(job), ahead: false });
    for (const job of jobs) if (!forSlot(job)) this.insert({ job, since, kib: weightOf(job), ahead });
  }

  /** The first job that may start. */
  take(admit?: (job: ClaimedJob) => boolean): ClaimedJob | null {
    const first = this.entries[0];
    if (!first) return null;
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

  /** Asked before each job that is taken, so it reads the entries only where one may be that old. */
  takeOlderThan(ms: number): ClaimedJob[] {
    const limit = performance.now() - ms;
    if (this.oldest >= limit) return [];
    const stale = this.takeWhere(({ since }) => since < limit);
    this.oldest = this.entries.reduce((oldest, { since }) => Math.min(oldest, since), Infinity);
    return stale;
  }

  /** Takes out these claims, whatever becomes of them. */
  takeClaims(claims: { id: string; fence: string }[]): ClaimedJob[] {
    const names = new Set(claims.map(({ id, fence }) => id + fence));
    return this.takeWhere(({ job }) => names.has(job.id + job.fence));
  }

  takeJobs(matches: (job: ClaimedJob) => boolean): ClaimedJob[] {
    return this.takeWhere(({ job }) => matches(job));
  }

  jobs(): ClaimedJob[] {
    return this.entries.map(({ job }) => job);
  }

  takeAll(): ClaimedJob[] {
    const all = this.jobs();
    this.entries = [];
    this.kib = 0;
    return all;
  }

  private remove(index: number): ClaimedJob {
    const { job, kib, ahead } = index === 0 ? this.entries.shift()! : this.entries.splice(index, 1)[0]!;
    this.kib -= kib;
    this.wasAhead = ahead;
    return job;
  }

  private takeWhere(matches: (entry: Entry) => boolean): ClaimedJob[] {
    const taken = this.entries.filter(matches);
    this.entries = this.entries.filter((entry) => !matches(entry));
    for (const { kib } of taken) this.kib -= kib;
    return taken.map(({ job }) => job);
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
