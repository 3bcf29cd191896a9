// Everything that can become of one job in the hands of two workers and an operator, by the transition table: all
// states that can be reached, and the steps between them.
import {
  cancelled,
  claimed,
  failedForGood,
  newJob,
  rescheduled,
  retried,
  settled,
  takenAway,
  type JobState,
  type Outcome,
} from './transitions.js';

/** One claims by hand and has a lease, the other is a pool and has a heartbeat. */
export type Worker = 'hand' | 'pool';
export const WORKERS: Worker[] = ['hand', 'pool'];

/** `job`, and the fence of the claim that each worker believes to hold. */
export interface World {
  readonly job: JobState;
  readonly claims: Readonly<Record<Worker, number | null>>;
}

export type Step =
  | { kind: 'claim' | 'extend'; worker: Worker }
  | { kind: 'settle'; worker: Worker; outcome: Outcome }
  | { kind: 'reschedule'; maxAttempts: number }
  | { kind: 'time passes' | 'lease ends' | 'pool dies' | 'unlock' | 'revoke' | 'cancel' | 'retry' | 'fail for good' };

export const MAX_CRASHES = 2;
const OUTCOMES: Outcome[] = ['completed', 'failed', 'permanent', 'partial', 'snoozed', 'cancelled', 'released'];
/** Each way into the database once; a lost claim has no finer points. */
const STALE_OUTCOMES: Outcome[] = ['completed', 'failed', 'released'];

export const holds = ({ job, claims }: World, worker: Worker): boolean =>
  job.holder === worker && claims[worker] === job.fence;

export const stepName = (step: Step): string => Object.values(step).join(' ');

/** All that can happen in a world. */
export function stepsOf(world: World, mostAttempts: number): Step[] {
  const { job, claims } = world;
  const steps: Step[] = [];
  for (const worker of WORKERS) {
    // A worker forgets an older claim of the job when it gets a new one.
    steps.push({ kind: 'claim', worker });
    if (claims[worker] === null) continue;
    for (const outcome of holds(world, worker) ? OUTCOMES : STALE_OUTCOMES)
      steps.push({ kind: 'settle', worker, outcome });
    if (worker === 'hand') steps.push({ kind: 'extend', worker });
  }
  if (job.standing === 'waiting' && !job.due) steps.push({ kind: 'time passes' });
  if (job.holder === 'hand') steps.push({ kind: 'lease ends' });
  if (job.holder === 'pool') steps.push({ kind: 'pool dies' });
  steps.push({ kind: 'unlock' }, { kind: 'revoke' }, { kind: 'cancel' }, { kind: 'retry' }, { kind: 'fail for good' });
  for (let max = 1; max <= mostAttempts; max++) steps.push({ kind: 'reschedule', maxAttempts: max });
  return steps;
}

/** What a step makes of a world. A step that is refused changes nothing but, perhaps, what a worker believes. */
export function after(world: World, step: Step): World {
  const { job, claims } = world;
  const running = job.standing === 'running';
  const to = (next: JobState): World => ({ job: next, claims });
  switch (step.kind) {
    case 'claim': {
      if (job.standing !== 'waiting' || !job.due) return world;
      const next = claimed(job, step.worker, step.worker === 'hand');
      return { job: next, claims: { ...claims, [step.worker]: next.fence } };
    }
    case 'settle': {
      const next = holds(world, step.worker) ? settled(job, step.outcome) : job;
      return { job: next, claims: { ...claims, [step.worker]: null } };
    }
    case 'time passes':
      return to({ ...job, due: true });
    case 'lease ends':
    case 'unlock':
      return running ? to(takenAway(job, 'unlock')) : world;
    case 'revoke':
      return running ? to(takenAway(job, 'revoke')) : world;
    case 'pool dies':
      return to(takenAway(job, 'rescue', MAX_CRASHES));
    case 'cancel':
      return to(cancelled(job));
    case 'retry':
      return to(retried(job));
    case 'fail for good':
      return to(failedForGood(job));
    case 'reschedule':
      return to(rescheduled(job, null, step.maxAttempts));
    default:
      return world;
  }
}

/** Worlds that differ in nothing but how often they have been here are one. */
export function nameOf({ job, claims }: World): string {
  const { standing, due, attempts, maxAttempts, crashes, holder, cancelRequested, fence } = job;
  const believes = WORKERS.map((worker) => {
    if (claims[worker] === null) return '-';
    return holder === worker && claims[worker] === fence ? 'holds' : 'stale';
  });
  const gone = standing === 'completed' || standing === 'cancelled';
  const rest = gone
    ? [maxAttempts]
    : [due || standing === 'running', attempts, maxAttempts, crashes, holder, cancelRequested];
  return [standing, ...rest, ...believes].join(' ');
}

export interface Edge {
  from: string;
  step: Step;
  to: string;
}

export interface Graph {
  start: World;
  worlds: Map<string, World>;
  edges: Map<string, Edge[]>;
}

/** All worlds that a job with so many attempts can get into. */
export function explore(maxAttempts: number): Graph {
  const start: World = { job: newJob(maxAttempts), claims: { hand: null, pool: null } };
  const worlds = new Map([[nameOf(start), start]]);
  const edges = new Map<string, Edge[]>();
  for (const [from, world] of worlds) {
    const out = stepsOf(world, maxAttempts).map((step): Edge => {
      const next = after(world, step);
      const to = nameOf(next);
      if (!worlds.has(to)) worlds.set(to, next);
      return { from, step, to };
    });
    edges.set(from, out);
  }
  return { start, worlds, edges };
}

/** From which worlds one of `goals` can be reached, by the steps that `may` be taken. */
export function reaching(graph: Graph, goals: (world: World) => boolean, may: (edge: Edge) => boolean): Set<string> {
  const sources = new Map<string, string[]>();
  for (const edge of [...graph.edges.values()].flat()) {
    if (may(edge)) sources.set(edge.to, [...(sources.get(edge.to) ?? []), edge.from]);
  }
  const found = new Set([...graph.worlds].filter(([, world]) => goals(world)).map(([name]) => name));
  for (const name of found) for (const source of sources.get(name) ?? []) found.add(source);
  return found;
}

/** The shortest way from a world to an edge that is still `open`, that edge included; null: there is none. */
export function wayToOpen(graph: Graph, from: string, open: Set<Edge>): Edge[] | null {
  const ways = new Map<string, Edge[]>([[from, []]]);
  for (const [name, way] of ways) {
    for (const edge of graph.edges.get(name) ?? []) {
      if (open.has(edge)) return [...way, edge];
      if (!ways.has(edge.to)) ways.set(edge.to, [...way, edge]);
    }
  }
  return null;
}
