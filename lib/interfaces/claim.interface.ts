// What the manager and the runtime say to each other: claims with a cursor, outcomes, and what became of them.
import type { JobEventFields, JobEventType } from './event.interface.js';
import type { ClaimedJob, PartialResults, WorkedOnce } from './job.interface.js';

/** The pool, or the caller by hand, that claims. */
export interface Claimer {
  /** What the database knows the claims by: an incarnation of a pool, or the name that a claim by hand gives. */
  holder: string;
  /** The name that people see. */
  label: string;
  /** Set for claims by hand: they live by their own lease; `null` for pools, which live by their heartbeat. */
  leaseMs: number | null;
}

/** Which jobs a claim may take. */
export interface ClaimFilter {
  /** `null`: any task. */
  taskIdentifiers: string[] | null;
  /** Not these. */
  otherTasks: string[] | null;
  forbiddenFlags: string[] | null;
  /** Jobs of this priority or a better (lower) one; `null`: of any. */
  worstPriority: number | null;
}

/** Where a scan of the plain jobs of one priority goes on. */
export interface CursorPosition {
  priority: number;
  /** As the database printed it, with microseconds. */
  runAt: string;
  id: string;
}

/** A stretch of priorities (after, upto] in which nothing is due before a time, in ms. */
export interface QuietStretch {
  after: number;
  upto: number;
  until: number;
}

export interface PlainClaim extends Claimer, ClaimFilter {
  /** Most jobs to claim. */
  limit: number;
  /** Most KiB of payloads, except the first. */
  maxKib: number;
  /** Empty: from the start. Known positions save reading dead entries again; positions may be dropped any time. */
  cursor: CursorPosition[];
  quiet: QuietStretch | null;
}

export interface LaneClaim extends Claimer, ClaimFilter {
  /** Most jobs to claim: the slots that are free. */
  limit: number;
  /** Only jobs that have crashed at most so often; `null`: any. */
  maxCrashes: number | null;
  /** Only this queue. */
  queue: string | null;
  memory: LaneMemoryState;
}

/** Whose turn it was. */
export interface Turn {
  /** Of the lane. */
  place: string;
  /** How many more jobs it may get before its turn is over. */
  left: number;
}

/** Where the circle over the lanes of a priority goes on. In one circle, each lane gets as many jobs as its share. */
export interface CircleTurn extends Turn {
  /** How many jobs each lane gets in this circle, times its weight. */
  share: number;
  /** The same in the next one. */
  nextShare: number;
}

/** What a pool remembers of lanes, as the claim reads it. */
export interface LaneMemoryState {
  /** Of priorities. */
  turns: CircleTurn[];
  /** Of queues whose partitions took all that the queue could give: where they are entered, in order. */
  queueTurns: Turn[];
  /** Stretches of the walk in which nothing can be claimed, in order. */
  blocked: { after: string; upto: string }[];
  /** Beginnings of lanes to look at all the same, in order. */
  told: string[];
  /** Lanes of what became due since this time are looked at too. ms; `null`: nothing is remembered. */
  dueSince: number | null;
  /** Positions in lanes, in order of the walk. */
  positions: { place: string; runAt: string; id: string }[];
  /** Where the look before has ended, having come to as many lanes as it may, and up to which lane of that priority to go on. */
  resumes: [at: string, upto: string | null] | null;
  /** How many more jobs of a lane to try than are wanted, because others hold some; in order. */
  spares: { lane: string; jobs: number }[];
}

/** A lane that a settle may claim from without a look at others, behind a position. */
export interface NextInLane {
  priority: number;
  lane: string;
  runAt?: string;
  id?: string;
}

export interface ClaimResult {
  /** Ordered by priority, run-at and id. */
  jobs: ClaimedJob[];
  /** The scan ended at its limit: there is probably more to claim right now. */
  more: boolean;
  /** The database's time, in ms, when the first of the pauses that it has met ends by itself; `null`: none does. */
  pausedUntil: number | null;
  /** Why some of them are not among `jobs`: they were put off, because nothing here can decrypt or read them. */
  unreadable?: unknown;
}

export interface PlainClaimResult extends ClaimResult {
  /** The database's time of the claim, in ms; `null`: the holder may not claim. */
  claimedAt: number | null;
  /** Hand it to the next claim of the same scan. */
  cursor: CursorPosition[];
  quiet: QuietStretch | null;
  /** In which priorities it has passed jobs of paused tasks. */
  passed: number[];
  /** It has read as many jobs as it may: what lies behind its cursor is for the next one. */
  isCut: boolean;
}

/** What a claim of lanes tells of them, beside the jobs. */
export interface LaneReport {
  /** The last priority served; null: none was. */
  priority: number | null;
  /**
   * In each priority served: the place of the last lane that got a job, how many more it may get before its turn is over, the
   * share of the circle, how many lanes a whole circle has served, each counted by its weight, or 0, how many jobs the circle has
   * brought here, and whether it began here.
   */
  turns: [place: string, left: number, share: number, weights: number, jobs: number, begins: boolean][];
  /**
   * Of queues whose partitions took all that the queue could give, or that was wanted: the place of the last lane that got a job,
   * and how many more it may get.
   */
  cut: [place: string, left: number][];
  /** Places of queues that were walked to their end: their turns begin again. */
  ended: string[];
  /** Queues that are full or paused themselves, not partitions of them. */
  full: string[];
  /** How many lanes were served in one circle, each counted by its weight. */
  lanes: number;
  more: boolean;
  /** Stretches of the walk in which nothing can be claimed now: after, up to, until when (ms) or null. */
  blocked: [after: string, upto: string, until: number | null][];
  /** Lanes of which others hold what is needed. */
  held: string[];
  /** Where those lie that gave nothing, if the look has come to as many lanes as it may: after, up to. */
  heldStretches: [after: string, upto: string][] | null;
  /** When the first of the lanes that were served, and have no tokens left, gets some. By the database's clock, in ms. */
  tokensAt: number | null;
  /** Where the next look goes on, if this one has come to as many lanes as it may. */
  resumes: [at: string, upto: string | null] | null;
  /** Those of them that gave nothing, because others hold jobs. */
  crowded: string[];
  /** Queues to register. */
  unknown: string[];
  /** Up to where lanes hold nothing for this claim. */
  passed: [place: string, runAt: string, id: string][];
  /** Lanes that have become due. */
  due: string[] | null;
  /** When the first of the pauses that it has met ends by itself, in ms. */
  pausedUntil?: number | null;
  /** How long the look took in the database. */
  ms: number;
}

export interface LaneClaimResult extends ClaimResult {
  /** The database's time of the claim, in ms; `null`: the holder may not claim. */
  claimedAt: number | null;
  /** Where the jobs stood, in the order of their turn. */
  taken: { place: string; runAt: string; id: string }[];
  report: LaneReport | null;
}

/** What a handler has found exhausted: a rate limit by its key, or all those of the job. */
export interface Limited {
  key: string | null;
  by: string | null;
}

/** How one attempt ended. What a handler returns or throws becomes one of these in a single place. */
export type Outcome =
  | { kind: 'completed'; result: string | null }
  | { kind: 'partial'; partialResults: PartialResults; delayMs: number; sealed?: string }
  | { kind: 'failed'; error: unknown; delayMs: number }
  | { kind: 'permanent'; error: unknown }
  | { kind: 'snoozed'; delayMs: number; error?: unknown; limited?: Limited }
  | { kind: 'cancelled'; reason: string | null }
  | { kind: 'released' };

export interface SettleRequest {
  job: ClaimedJob;
  outcome: Outcome;
  executionTimeMs: number;
  /** A transaction that may or may not have been committed has tried to settle it before. */
  inDoubt?: boolean;
}

/** What became of the job: `lost` where the claim had been taken away, then nothing was changed. */
export type SettledStatus = 'completed' | 'retrying' | 'exhausted' | 'snoozed' | 'cancelled' | 'released' | 'lost';

export interface SettleResult {
  job: ClaimedJob;
  status: SettledStatus;
  /** When the job can run again; `null` where it will not. */
  runAt: Date | null;
  /** Why it was cancelled, where the canceller said so. */
  reason?: string | null;
  /** Its end has freed a place in its queue. */
  hasFreedPlace?: boolean;
}

/** What a process says of itself. */
export interface WorkerRegistration {
  /** The incarnation: a new one for each start. */
  id: string;
  label: string;
  host: string;
  pid: number;
  concurrency: number;
  /** What it takes, as its claims say it. */
  tasks: string[];
  takesAnyTask?: boolean;
  queues?: string[] | null;
  forbiddenFlags?: string[] | null;
  /** How long it gathers jobs of which tasks for one call of their handler, in ms. */
  batchWaits?: Record<string, number>;
  leaseMs: number;
  /** The module's instance that it is a pool of. Default: the one without a name. */
  instance?: string | null;
}

/** What a thread needs to send heartbeats by itself. */
export interface HeartbeatPlan {
  /** pg's client configuration, without anything that cannot be handed to a thread. */
  config: object;
  query: { text: string; values: unknown[] };
  /** What surrounds the query where the session needs other settings. */
  surroundings: { ask: string; begin: string; commit: string };
}

/** What a heartbeat brings back. */
export interface HeartbeatReport {
  /** The incarnation's row is gone or ended: it was taken for dead, and its jobs may have been given to others. */
  expired: boolean;
  /** Another transaction holds the incarnation's row: nothing was renewed. */
  held: boolean;
  /** Whether a worker has gone silent. */
  needsRescue: boolean;
  /** The version of the schema, where a newer release has changed what this one needs. */
  newerSchema: number | null;
  /** Whether tasks, instances or workers are paused now. */
  hasPauses: boolean;
}

/** Runs single jobs, for `workOnce`. */
export interface JobsOnce {
  /** An event of the manager's, for the subscribers of its handlers' events. */
  emit<T extends JobEventType>(type: T, fields: JobEventFields[T]): void;
  workOnce(queues: string[] | null): Promise<WorkedOnce | null>;
  /** Aborts what runs, and takes nothing more. */
  close(): Promise<void>;
}
