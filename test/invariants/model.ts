// What a whole queue should be, in memory: the transition table of each job, and what jobs do to each other by keys,
// parents, queues and rate limits. Time stands still; specs say what comes due.
import {
  cancelled,
  claimed,
  failedForGood,
  leftWaiting,
  newJob,
  rescheduled,
  retried,
  settled,
  takenAway,
  type JobState,
  type Outcome,
  type TakenAway,
} from './transitions.js';

export type Policy = 'cancel' | 'run' | 'wait';
export type KeyMode = 'replace' | 'preserve_run_at' | 'unsafe_dedupe';

/** What is asked for when a job is added. */
export interface JobAsked {
  task: string;
  priority: number;
  due: boolean;
  maxAttempts: number;
  queue: string | null;
  limit: string | null;
  key: string | null;
  mode: KeyMode;
  parents: string[];
  policy: Policy;
}

export interface ModelJob {
  readonly id: string;
  state: JobState;
  task: string;
  queue: string | null;
  limit: string | null;
  /** The key that it was added with; `holdsKey`: nobody has taken it. */
  key: string | null;
  holdsKey: boolean;
  /** Who took its key while it ran. */
  successor: ModelJob | null;
  parents: Set<ModelJob>;
  policy: Policy;
  /** Its lease by hand has run out. */
  expired: boolean;
  replayed: boolean;
}

export interface ModelQueue {
  concurrency: number;
  paused: boolean;
}

export interface ModelLimit {
  capacity: number;
  left: number;
  windowOver: boolean;
}

export interface ModelPool {
  silent: boolean;
  alive: boolean;
}

const isLive = ({ state }: ModelJob): boolean => state.standing !== 'completed' && state.standing !== 'cancelled';

export class Model {
  readonly jobs = new Map<string, ModelJob>();
  readonly queues = new Map<string, ModelQueue>();
  readonly limits = new Map<string, ModelLimit>();
  readonly pools = new Map<string, ModelPool>();

  queue(name: string): ModelQueue {
    const known = this.queues.get(name) ?? { concurrency: 1, paused: false };
    this.queues.set(name, known);
    return known;
  }

  held(worker: string): ModelJob[] {
    return this.all().filter(({ state }) => state.holder === worker);
  }

  all(): ModelJob[] {
    return [...this.jobs.values()];
  }

  keyHolder(key: string): ModelJob | undefined {
    return this.all().find((job) => job.key === key && job.holdsKey && isLive(job));
  }

  /** Whether the job whose key it took is still running. */
  isBehindKey(job: ModelJob): boolean {
    return this.all().some(({ state, successor }) => successor === job && state.standing === 'running');
  }

  isBlocked(job: ModelJob): boolean {
    return job.state.standing === 'waiting' && (job.parents.size > 0 || this.isBehindKey(job));
  }

  isClaimable(job: ModelJob): boolean {
    return job.state.standing === 'waiting' && job.state.due && !this.isBlocked(job);
  }

  /** Places that are free in a queue. */
  free(name: string): number {
    const { concurrency, paused } = this.queue(name);
    const running = this.all().filter(({ queue, state }) => queue === name && state.standing === 'running').length;
    return paused ? 0 : Math.max(0, concurrency - running);
  }

  tokens(key: string): number {
    const limit = this.limits.get(key)!;
    return limit.windowOver ? limit.capacity : limit.left;
  }

  /** Returns the job that the add leads to; `id` is the one it has if it is new. */
  add(asked: JobAsked, id: string): ModelJob {
    const holder = asked.key === null ? undefined : this.keyHolder(asked.key);
    if (holder && asked.mode === 'unsafe_dedupe') return holder;
    const parents = new Set(asked.parents.map((parent) => this.jobs.get(parent)!));
    const { task, queue, limit, key, policy } = asked;
    const standing = holder?.state.standing;
    if (holder && standing === 'waiting' && asked.mode === 'preserve_run_at') {
      const { due, fence, records } = holder.state;
      const state = { ...newJob(asked.maxAttempts, due), fence, records };
      Object.assign(holder, { state, task, queue, limit, policy, parents });
      for (const parent of parents) this.tellChildrenOf(parent);
      return holder;
    }
    const job: ModelJob = {
      id,
      task,
      queue,
      limit,
      key,
      policy,
      parents,
      state: newJob(asked.maxAttempts, asked.due),
      holdsKey: true,
      successor: null,
      expired: false,
      replayed: false,
    };
    if (holder) this.giveWay(holder, job);
    this.jobs.set(id, job);
    for (const parent of parents) this.tellChildrenOf(parent);
    return job;
  }

  claim(ids: string[], worker: string, byHand: boolean): void {
    for (const id of ids) {
      const job = this.jobs.get(id)!;
      job.expired = false;
      this.become(job, claimed(job.state, worker, byHand));
      const limit = job.limit === null ? undefined : this.limits.get(job.limit)!;
      if (limit) Object.assign(limit, { left: this.tokens(job.limit!) - 1, windowOver: false });
    }
  }

  settle(ids: string[], outcome: Outcome): void {
    for (const id of ids) this.change(id, (state) => settled(state, outcome));
  }

  takeAway(jobs: ModelJob[], how: TakenAway): void {
    for (const job of jobs) this.become(job, takenAway(job.state, how));
  }

  /** Pools that do not beat are given up, claims by hand that ran out are taken away. */
  rescue({ byHand }: { byHand: boolean }): void {
    if (byHand) {
      const late = this.all().filter((job) => job.expired && job.state.standing === 'running');
      this.takeAway(late, 'unlock');
    }
    for (const [worker, pool] of this.pools) {
      if (!pool.silent || !pool.alive) continue;
      pool.alive = false;
      this.takeAway(
        this.held(worker).filter(({ state }) => !state.byHand),
        'rescue',
      );
    }
  }

  cancel = (id: string): void => this.change(id, cancelled);
  failForGood = (id: string): void => this.change(id, failedForGood);

  /** False where another job holds its key. */
  retry(id: string): boolean {
    const job = this.jobs.get(id);
    if (!job || (job.state.standing !== 'exhausted' && job.state.standing !== 'cancelled')) return true;
    const holder = job.key === null ? undefined : this.keyHolder(job.key);
    if (holder && holder !== job) return false;
    if (job.state.standing === 'cancelled') job.holdsKey = true;
    job.successor = null;
    job.replayed = false;
    this.become(job, retried(job.state));
    for (const parent of job.parents) this.tellChildrenOf(parent);
    return true;
  }

  reschedule(id: string, due: boolean | null, maxAttempts: number | null): void {
    this.change(id, (state) => rescheduled(state, due, maxAttempts));
  }

  /** Removes what has ended so; returns how many. Who waited for it to come back has nothing to wait for. */
  purge(standing: JobState['standing']): number {
    const ended = this.all().filter(({ state }) => state.standing === standing);
    for (const { id } of ended) this.jobs.delete(id);
    for (const parent of ended) {
      for (const child of this.all().filter(({ parents }) => parents.has(parent))) {
        const dies = this.isBlocked(child);
        child.parents.delete(parent);
        if (dies) this.become(child, leftWaiting(child.state));
      }
    }
    return ended.length;
  }

  /** Whatever waits for its time is due; what is exhausted would be, if it came back. */
  timeComes(): void {
    for (const job of this.all()) if (job.state.standing !== 'running') job.state = { ...job.state, due: true };
  }

  private change(id: string, to: (state: JobState) => JobState): void {
    const job = this.jobs.get(id);
    if (job) this.become(job, to(job.state));
  }

  private become(job: ModelJob, state: JobState): void {
    const before = job.state.standing;
    job.state = state;
    if (!state.superseded && state.standing === 'exhausted') job.successor = null;
    if (before !== state.standing && ['completed', 'exhausted', 'cancelled'].includes(state.standing))
      this.tellChildrenOf(job);
  }

  /** The holder of a key gives way to a new job: at once, or, if it runs, when it has left. */
  private giveWay(holder: ModelJob, job: ModelJob): void {
    if (holder.state.standing === 'running') {
      holder.holdsKey = false;
      holder.successor = job;
      holder.state = { ...holder.state, superseded: true };
    } else {
      for (const other of this.all()) if (other.successor === holder) other.successor = job;
      this.jobs.delete(holder.id);
    }
    // Who waits for the old job waits for the new one.
    for (const child of this.all()) if (child.parents.delete(holder)) child.parents.add(job);
  }

  private tellChildrenOf(parent: ModelJob): void {
    const { standing } = parent.state;
    if (standing === 'waiting' || standing === 'running') return;
    for (const child of this.all()) {
      if (!child.parents.has(parent)) continue;
      if (standing !== 'completed' && child.policy === 'wait') continue;
      const dies = standing !== 'completed' && child.policy === 'cancel' && this.isBlocked(child);
      child.parents.delete(parent);
      if (dies) this.become(child, leftWaiting(child.state));
    }
  }
}
