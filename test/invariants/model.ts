// What a whole queue should be, in memory: the transition table of each job, and what jobs do to each other by keys,
// parents, queues and rate limits. Time stands still; specs say what comes due.
import type { HeldClaim, JobAsked, Policy } from './actions.js';
import {
  cancelled,
  claimed,
  failedForGood,
  isSuspect,
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

export interface ModelJob {
  readonly id: string;
  state: JobState;
  task: string;
  flagged: boolean;
  queue: string | null;
  limit: string | null;
  /** The key that it was added with; `holdsKey`: no other job has taken it. */
  key: string | null;
  holdsKey: boolean;
  /** The job whose key it took while that one ran. */
  behind: ModelJob | null;
  /** The parents that it still waits for, and those that it was added with. */
  parents: Set<ModelJob>;
  asked: ModelJob[];
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
  /** In the present window. */
  taken: number;
}

/** What the stored times, and nothing else, tell after a jump. */
export interface SeenAfterJump {
  jobs: Map<string, { due: boolean; expired: boolean }>;
  passedWindows: string[];
}

/** One start of a pool: an incarnation. */
export interface ModelPool {
  label: string;
  /** Since its last heartbeat, in hours; below zero: its heartbeat lies in the future, and no pool has seen it. */
  silentHours: number;
  alive: boolean;
}

/** How long a pool may be silent, and a claim by hand runs. */
export const LEASE_HOURS = 1;

const isLive = ({ state }: ModelJob): boolean => state.standing !== 'completed' && state.standing !== 'cancelled';

export class Model {
  readonly jobs = new Map<string, ModelJob>();
  readonly queues = new Map<string, ModelQueue>();
  readonly limits = new Map<string, ModelLimit>();
  readonly pools = new Map<string, ModelPool>();
  readonly pausedTasks = new Set<string>();
  /** The job that took the place of one under its key. */
  private readonly heirs = new Map<ModelJob, ModelJob>();

  queue(name: string): ModelQueue {
    const known = this.queues.get(name) ?? { concurrency: 1, paused: false };
    this.queues.set(name, known);
    return known;
  }

  incarnationsOf = (label: string): string[] =>
    [...this.pools].filter(([, pool]) => pool.label === label).map(([id]) => id);

  held(worker: string): ModelJob[] {
    return this.all().filter(({ state }) => state.holder === worker);
  }

  all(): ModelJob[] {
    return [...this.jobs.values()];
  }

  /** Of these claims, those that stand. */
  standing(claims: HeldClaim[]): HeldClaim[] {
    return claims.filter(({ worker, job }) => {
      const state = this.jobs.get(job.id)?.state;
      return state?.holder === worker && String(state.fence) === job.fence;
    });
  }

  keyHolder(key: string): ModelJob | undefined {
    const live = this.all().filter((job) => job.key === key && isLive(job));
    return live.find(({ holdsKey }) => holdsKey) ?? live.find(({ state }) => state.standing !== 'exhausted');
  }

  /** A job of its key that runs, or waits, beside it. */
  private besides(job: ModelJob): ModelJob | undefined {
    return this.all().find(
      (other) =>
        other !== job &&
        job.key !== null &&
        other.key === job.key &&
        isLive(other) &&
        other.state.standing !== 'exhausted',
    );
  }

  /** Whether another job has the key of one that has ended. Behind an older one that runs it may wait. */
  private isKeyTaken(job: ModelJob): boolean {
    if (job.key === null) return false;
    const others = this.all().filter(
      (other) =>
        other !== job &&
        other.key === job.key &&
        isLive(other) &&
        (other.holdsKey || other.state.standing !== 'exhausted'),
    );
    return others.some((other) => other.state.standing !== 'running' || other.id > job.id);
  }

  /** Whether the job whose key it took is still running. */
  isBehindKey(job: ModelJob): boolean {
    return job.state.standing === 'waiting' && job.behind?.state.standing === 'running';
  }

  /** Whether another job waits for it to leave. */
  isSuperseded(job: ModelJob): boolean {
    return this.all().some((other) => other.behind === job && this.isBehindKey(other));
  }

  isBlocked(job: ModelJob): boolean {
    return job.state.standing === 'waiting' && (job.parents.size > 0 || this.isBehindKey(job));
  }

  isClaimable(job: ModelJob): boolean {
    return job.state.standing === 'waiting' && job.state.due && !this.isBlocked(job) && !this.pausedTasks.has(job.task);
  }

  /** Places that are free in a queue. */
  free(name: string): number {
    const { concurrency, paused } = this.queue(name);
    const running = this.all().filter(({ queue, state }) => queue === name && state.standing === 'running').length;
    return paused ? 0 : Math.max(0, concurrency - running);
  }

  tokens(key: string): number {
    const limit = this.limits.get(key)!;
    return Math.max(0, limit.capacity - limit.taken);
  }

  /** Returns the job that the add leads to; `id` is the one it has if it is new. */
  add(asked: JobAsked, id: string): ModelJob {
    const holder = asked.key === null ? undefined : this.keyHolder(asked.key);
    if (holder && asked.mode === 'unsafe_dedupe') return holder;
    const parents = new Set(asked.parents.map((parent) => this.jobs.get(parent)!));
    const { task, flagged, queue, limit, key, policy } = asked;
    const standing = holder?.state.standing;
    if (holder && standing === 'waiting' && asked.mode === 'preserve_run_at') {
      const { due, fence, records } = holder.state;
      const state = { ...newJob(asked.maxAttempts, due), fence, records };
      Object.assign(holder, { state, task, flagged, queue, limit, policy, parents, asked: [...parents] });
      for (const parent of parents) this.tellChildrenOf(parent);
      return holder;
    }
    const job: ModelJob = {
      id,
      task,
      flagged,
      queue,
      limit,
      key,
      policy,
      parents,
      asked: [...parents],
      state: newJob(asked.maxAttempts, asked.due),
      holdsKey: true,
      behind: null,
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
      if (limit) limit.taken++;
    }
  }

  settle(ids: string[], outcome: Outcome): void {
    for (const id of ids) this.change(id, (state) => settled(state, outcome));
  }

  takeAway(jobs: ModelJob[], how: TakenAway): void {
    for (const { id } of jobs) this.change(id, (state) => takenAway(state, how));
  }

  /** Pools that do not beat are given up, claims by hand that ran out are taken away. */
  rescue({ byHand }: { byHand: boolean }): void {
    if (byHand) {
      const late = this.all().filter((job) => job.expired && job.state.standing === 'running');
      this.takeAway(late, 'unlock');
    }
    for (const [worker, pool] of this.pools) {
      if (!pool.alive) continue;
      pool.silentHours = Math.max(0, pool.silentHours);
      if (pool.silentHours < LEASE_HOURS) continue;
      pool.alive = false;
      const held = this.held(worker).filter(({ state }) => !state.byHand);
      const suspects = held.filter(({ state }) => isSuspect(state));
      this.takeAway(
        held.filter((job) => !suspects.includes(job)),
        suspects.length ? 'spare' : 'rescue',
      );
      this.takeAway(suspects, 'rescue');
    }
  }

  /** An orderly end: not while it holds a claim. Whether it has ended. */
  signOff(worker: string): boolean {
    const pool = this.pools.get(worker)!;
    if (!pool.alive || this.held(worker).length) return false;
    pool.alive = false;
    return true;
  }

  cancel = (id: string): void => this.change(id, cancelled);
  failForGood = (id: string): void => this.change(id, failedForGood);

  /** False where another job holds its key. */
  retry(id: string): boolean {
    const job = this.jobs.get(id);
    if (!job || (job.state.standing !== 'exhausted' && job.state.standing !== 'cancelled')) return true;
    if (this.isKeyTaken(job)) return false;
    this.comeBack(job);
    job.replayed = false;
    for (const parent of job.asked.map((asked) => this.lastHeirOf(asked)))
      if (parent !== job && ['waiting', 'running'].includes(parent.state.standing)) job.parents.add(parent);
    this.become(job, retried(job.state));
    for (const parent of job.parents) this.tellChildrenOf(parent);
    return true;
  }

  /** False where another job holds its key. */
  reschedule(id: string, due: boolean | null, maxAttempts: number | null): boolean {
    const job = this.jobs.get(id);
    if (job?.state.standing === 'exhausted' && maxAttempts !== null && maxAttempts > job.state.attempts) {
      if (this.isKeyTaken(job)) return false;
      this.comeBack(job);
    }
    this.change(id, (state) => rescheduled(state, due, maxAttempts));
    return true;
  }

  /** It has its key again, and gives way to no other. */
  private comeBack(job: ModelJob): void {
    const other = this.besides(job);
    if (job.key !== null)
      for (const { key, id } of this.all()) if (key === job.key) this.jobs.get(id)!.holdsKey = false;
    job.holdsKey = true;
    job.behind = other?.state.standing === 'running' ? other : null;
    this.heirs.delete(job);
  }

  /** Removes what has ended so; returns how many. A job that waited for it to come back has nothing to wait for. */
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

  /** Every stored time moves, and what is later than it should be stays so until it is seen. */
  clockJumps(hours: number, seen: SeenAfterJump): void {
    for (const pool of this.pools.values()) pool.silentHours += hours;
    for (const [id, { due, expired }] of seen.jobs) {
      const job = this.jobs.get(id)!;
      job.expired = expired;
      job.state = { ...job.state, due };
    }
    for (const key of seen.passedWindows) this.limits.get(key)!.taken = 0;
  }

  /** Whether a pool that beats is told that there is something to rescue. */
  get needsRescue(): boolean {
    return [...this.pools.values()].some(
      ({ alive, silentHours }) => alive && (silentHours >= LEASE_HOURS || silentHours < 0),
    );
  }

  /** Whatever waits for its time is due; what is exhausted would be, if it came back. */
  timeComes(): void {
    for (const job of this.all()) if (job.state.standing !== 'running') job.state = { ...job.state, due: true };
  }

  private change(id: string, to: (state: JobState) => JobState): void {
    const job = this.jobs.get(id);
    if (job) this.become(job, to({ ...job.state, superseded: this.isSuperseded(job) }));
  }

  private become(job: ModelJob, state: JobState): void {
    const before = job.state.standing;
    job.state = state;
    if (before === 'running' && state.standing !== 'running') {
      for (const other of this.all()) if (other.behind === job && isLive(other)) other.behind = null;
    }
    if (before !== state.standing && ['completed', 'exhausted', 'cancelled'].includes(state.standing))
      this.tellChildrenOf(job);
  }

  /** The holder of a key gives way to a new job: at once, or, if it runs, when it has left. */
  private giveWay(holder: ModelJob, job: ModelJob): void {
    if (holder.state.standing === 'running') {
      holder.holdsKey = false;
      job.behind = holder;
    } else {
      this.jobs.delete(holder.id);
      const other = this.besides(job);
      job.behind = other?.state.standing === 'running' ? other : null;
      if (other && !job.behind) this.become(other, leftWaiting(other.state));
    }
    this.heirs.set(holder, job);
    // Jobs that wait for the old job wait for the new one.
    for (const child of this.all()) if (child.parents.delete(holder)) child.parents.add(job);
  }

  /** Garbage was collected: jobs that gave way long ago are forgotten. */
  keepHeirs(old: Set<string>): void {
    for (const job of this.heirs.keys()) if (!old.has(job.id)) this.heirs.delete(job);
  }

  private lastHeirOf(job: ModelJob): ModelJob {
    for (let heir = this.heirs.get(job); heir && this.hasGivenWay(job); heir = this.heirs.get(heir)) job = heir;
    return job;
  }

  private hasGivenWay(job: ModelJob): boolean {
    if (!this.jobs.has(job.id)) return true;
    return isLive(job)
      ? job.state.standing !== 'exhausted' && this.isSuperseded(job)
      : job.state.standing === 'cancelled';
  }

  /** Whether `job` is, or waits for, `parent`, however far. */
  reaches(job: ModelJob, parent: ModelJob): boolean {
    return job === parent || [...job.parents].some((next) => this.reaches(next, parent));
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
