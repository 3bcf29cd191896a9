// The jobs a pool has claimed and not yet begun, best priority first. Grows with the backlog, within bounds.
import type { ClaimedJob } from '../interfaces/job.interface.js';

const SMALLEST = 50;
const LARGEST = 1_000;
const MAX_BYTES = 16 * 1024 * 1024;

interface Entry {
  job: ClaimedJob;
  since: number;
}

export class JobBuffer {
  private entries: Entry[] = [];
  private adaptiveSize = SMALLEST;
  private bytesPerJob = 0;

  constructor(private readonly fixedSize: number | null) {}

  get length(): number {
    return this.entries.length;
  }

  /** How many jobs it may hold now. */
  get size(): number {
    if (this.fixedSize !== null) return this.fixedSize;
    return this.bytesPerJob
      ? Math.max(1, Math.min(this.adaptiveSize, Math.floor(MAX_BYTES / this.bytesPerJob)))
      : this.adaptiveSize;
  }

  get room(): number {
    return Math.max(0, this.size - this.entries.length);
  }

  get headPriority(): number | null {
    return this.entries[0]?.job.priority ?? null;
  }

  /** `more`: the database has more of them, so next time a larger batch pays. */
  add(jobs: ClaimedJob[], more = false): void {
    if (more && this.entries.length <= this.size / 2) this.adaptiveSize = Math.min(LARGEST, this.adaptiveSize * 2);
    this.weigh(jobs);
    const since = performance.now();
    // Jobs for free slots first: each goes before all others, behind those of its kind.
    for (const job of jobs) if (forSlot(job)) this.insert({ job, since });
    for (const job of jobs) if (!forSlot(job)) this.insert({ job, since });
  }

  /** The first job that may start. */
  take(admit?: (job: ClaimedJob) => boolean): ClaimedJob | null {
    if (!admit) return this.entries.shift()?.job ?? null;
    const first = this.entries[0];
    if (first && admit(first.job)) return this.entries.shift()!.job;
    const index = this.entries.findIndex(({ job }, place) => place > 0 && admit(job));
    return index < 0 ? null : this.entries.splice(index, 1)[0]!.job;
  }

  takeOlderThan(ms: number): ClaimedJob[] {
    const limit = performance.now() - ms;
    if (!this.entries.some(({ since }) => since < limit)) return [];
    const stale = this.entries.filter(({ since }) => since < limit);
    this.entries = this.entries.filter(({ since }) => since >= limit);
    return stale.map(({ job }) => job);
  }

  jobs(): ClaimedJob[] {
    return this.entries.map(({ job }) => job);
  }

  takeAll(): ClaimedJob[] {
    const all = this.jobs();
    this.entries = [];
    return all;
  }

  /** Behind everything as urgent as it; jobs for free slots go before all, a slot waits for them. */
  private insert(entry: Entry): void {
    const before = forSlot(entry.job)
      ? (other: Entry) => !forSlot(other.job)
      : (other: Entry) => !forSlot(other.job) && other.job.priority > entry.job.priority;
    let index = this.entries.length;
    while (index > 0 && before(this.entries[index - 1]!)) index--;
    if (index === this.entries.length) this.entries.push(entry);
    else this.entries.splice(index, 0, entry);
  }

  /** A sample is enough: the bound keeps memory in check, not to the byte. */
  private weigh(jobs: ClaimedJob[]): void {
    const sample = jobs.slice(0, 3).map(({ payload }) => JSON.stringify(payload).length);
    if (sample.length) this.bytesPerJob = Math.max(1, ...sample);
  }
}

const forSlot = ({ queue, rateLimitKey, attempts, maxAttempts, crashes }: ClaimedJob): boolean =>
  queue !== null || rateLimitKey !== null || attempts >= maxAttempts || crashes > 0;
