// Prepared jobs: what they need, how the database takes them, and what callers are told of them.
import type { AddedJob, JobStatus } from '../interfaces/job.interface.js';
import type { News } from '../storage/job.news.js';
import { toDate } from '../storage/row.types.js';
import type { NewJob } from '../storage/statements/add-jobs.js';
import type { PreparedJob } from './job.preparer.js';
import { newsOf } from './job.promoter.js';
import { laneOf } from './lane.names.js';
import { keyOfLimits, limitsOfText } from './rate.limits.js';

/** Pools that do not look for so long would come late. */
const SOON_MS = 2_000;
/** Jobs of one statement. */
export const CHUNK = 2_000;

export const isChild = ({ row }: PreparedJob): boolean => row.depends_on !== null;

/** Whether it may meet others, under a key or in a window. */
export const isKeyed = ({ row }: PreparedJob): boolean => row.job_key !== null || row.window_key !== null;

/** Plain jobs share inserts; those that may meet others, and those with parents, take statements of their own. */
export const needsRounds = (job: PreparedJob): boolean => isKeyed(job) || isChild(job);

export const isOneStatement = (jobs: PreparedJob[]): boolean =>
  jobs.length <= CHUNK && !jobs.some(isChild) && !(jobs.length > 1 && jobs.some(needsRounds));

/** The older job stays as it is. */
const KEEPING: (string | null)[] = ['unsafe_dedupe', 'unique'];

/** A key may have kept an older job as it is: its parents stay what they were. */
export const mayLink = ({ row }: PreparedJob, id: string): boolean =>
  row.depends_on !== null && (row.id === id || !KEEPING.includes(row.job_key_mode));

/** Nothing but a task, a payload, and when and how often to try. */
const isPlain = (row: NewJob): boolean =>
  row.timeout_ms === null &&
  row.queue === null &&
  row.limits === null &&
  row.job_key === null &&
  row.window_key === null &&
  row.flags === null &&
  row.tags === null &&
  row.group_id === null &&
  row.depends_on === null;

const isAlike = (row: NewJob, other: NewJob): boolean =>
  row.task === other.task &&
  row.priority === other.priority &&
  row.max_attempts === other.max_attempts &&
  row.run_at === other.run_at &&
  row.delay_ms === other.delay_ms;

export const parentsOf = (children: PreparedJob[]): string[] => [
  ...new Set(children.flatMap(({ row }) => row.depends_on ?? [])),
];

/** Children and their parents, pair by pair. */
export function pairsOf(children: PreparedJob[]): [childIds: string[], parentIds: string[]] {
  const parents = children.map(({ row }) => row.depends_on ?? []);
  return [children.flatMap(({ row }, index) => parents[index]!.map(() => row.id)), parents.flat()];
}

type Announced = Pick<AddedJob, 'status' | 'runAt' | 'queue' | 'partition' | 'rateLimits' | 'maxAttempts' | 'priority'>;

/** Of what may run soon: where pools should look. */
export function newsOfAdded(added: Announced[]): News[] {
  const soon = added.filter(({ status, runAt }) => {
    return status === 'available' || (status === 'scheduled' && runAt.getTime() - Date.now() < SOON_MS);
  });
  const isPlain = (job: Announced): boolean => job.queue === null && !job.rateLimits.length && job.maxAttempts > 1;
  const priorities = [...new Set(soon.filter(isPlain).map(({ priority }) => priority))];
  return newsOf(
    soon.map((job) => (isPlain(job) ? null : laneOf(job))),
    priorities,
  );
}

/** The same before they are added; null where that takes the database's clock, or more than one statement. */
export function newsAhead(jobs: PreparedJob[]): News[] | null {
  if (!isOneStatement(jobs) || jobs.some((job) => needsRounds(job) || job.row.run_at !== null)) return null;
  const now = Date.now();
  return newsOfAdded(
    jobs.map(({ row }) => ({
      status: row.delay_ms ? 'scheduled' : 'available',
      runAt: toDate(now + (row.delay_ms ?? 0)),
      queue: row.queue,
      partition: row.partition,
      rateLimits: limitsOfText(row.limits),
      maxAttempts: row.max_attempts,
      priority: row.priority,
    })),
  );
}

/** Without what is null: the database spends most of an add on reading these. */
function compact(row: NewJob): string {
  const given: Record<string, unknown> = {};
  for (const key in row) {
    const value = row[key as keyof NewJob];
    if (value !== null) given[key] = value;
  }
  return JSON.stringify(given);
}

export const parametersOf = (jobs: PreparedJob[]): [specs: string, payloads: string] => [
  `[${jobs.map(({ row }) => compact(row)).join(',')}]`,
  `[${jobs.map(({ json, sealed }) => sealed ?? json).join(',')}]`,
];

/** Null where the jobs are not alike. */
export function parametersOfAlike(jobs: PreparedJob[]): unknown[] | null {
  const first = jobs[0]!.row;
  if (!jobs.every(({ row }) => isPlain(row) && isAlike(row, first))) return null;
  return [
    `{${jobs.map(({ row }) => row.id).join()}}`,
    jobs.map(({ json, sealed }) => sealed ?? json).join('\n'),
    first.task,
    first.priority,
    first.max_attempts,
    first.run_at,
    first.delay_ms,
    jobs.some(({ row }) => row.payload_kib !== null) ? jobs.map(({ row }) => row.payload_kib) : null,
  ];
}

/** Each round has every key and every window once. */
export function roundsOf(jobs: PreparedJob[]): PreparedJob[][] {
  const rounds: PreparedJob[][] = [];
  const [keys, windows] = [new Map<string, number>(), new Map<string, number>()];
  for (const job of jobs) {
    const { job_key: key, window_key: window } = job.row;
    const turn = Math.max(keys.get(key ?? '') ?? 0, windows.get(window ?? '') ?? 0);
    if (key !== null) keys.set(key, turn + 1);
    if (window !== null) windows.set(window, turn + 1);
    (rounds[turn] ??= []).push(job);
  }
  return rounds;
}

/** A plain add stores what was asked for; only the time comes from the database. */
export const toAddedJob = ({ row, json }: PreparedJob, now: number): AddedJob => {
  const runAt = row.run_at === null ? now + (row.delay_ms ?? 0) : Date.parse(row.run_at);
  const status = row.depends_on ? 'blocked' : runAt > now ? 'scheduled' : 'available';
  return describe(row, json, status, runAt, now);
};

/** An older job that a key or a window has kept, and that nothing remembers any more. */
export const describeGone = ({ row, json }: PreparedJob, id: string): AddedJob => ({
  ...describe({ ...row, id }, json, 'completed', Date.now(), Date.now()),
  created: id === row.id,
});

export const describe = (row: NewJob, json: string, status: JobStatus, runAt: number, now: number): AddedJob => ({
  id: row.id,
  task: row.task,
  payload: JSON.parse(json) as unknown,
  status,
  priority: row.priority,
  queue: row.queue,
  partition: row.partition,
  rateLimitKey: keyOfLimits(row.limits),
  rateLimits: limitsOfText(row.limits),
  runAt: toDate(runAt),
  attempts: 0,
  maxAttempts: row.max_attempts,
  lastError: null,
  jobKey: null,
  jobKeyMode: null,
  flags: row.flags ?? [],
  tags: row.tags ?? [],
  groupId: row.group_id ?? row.id,
  dependsOn: row.depends_on ?? [],
  timeoutMs: row.timeout_ms,
  lockedBy: null,
  lockedAt: null,
  revision: 0,
  progress: null,
  createdAt: toDate(now),
  updatedAt: toDate(now),
  created: true,
});
