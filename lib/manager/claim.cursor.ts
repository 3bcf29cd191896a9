// Where the next claim begins to read, and what two claims have brought together: arithmetic on positions, without a database.
import type { CursorPosition, LaneClaimResult, LaneReport } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';

/** Where a claimed job stood: run-at in ms, with microseconds behind the point. */
export interface JobPosition {
  priority: number;
  runAt: number;
  id: string;
}

/** Moves the position of each priority behind the last job taken of it. Jobs come in the order in which they are stored. */
export function advance(cursor: CursorPosition[], taken: JobPosition[]): CursorPosition[] {
  if (!taken.length) return cursor;
  const last = new Map<number, JobPosition>();
  for (const job of taken) {
    const furthest = last.get(job.priority);
    if (!furthest || isBehind(job, furthest)) last.set(job.priority, job);
  }
  const kept = cursor.filter(({ priority }) => !last.has(priority));
  return [...kept, ...[...last.values()].map(positionOf)].sort((a, b) => a.priority - b.priority);
}

const isBehind = (job: JobPosition, other: JobPosition): boolean =>
  job.runAt > other.runAt || (job.runAt === other.runAt && job.id > other.id);

const positionOf = ({ priority, runAt, id }: JobPosition): CursorPosition => ({
  priority,
  runAt: microseconds(runAt),
  id,
});

/** As PostgreSQL reads it, to the microsecond; a Date would lose three digits. */
export function microseconds(ms: number): string {
  const total = Math.round(ms * 1_000);
  const whole = new Date(Math.floor(total / 1_000)).toISOString().slice(0, -1);
  return `${whole}${String(total - Math.floor(total / 1_000) * 1_000).padStart(3, '0')}Z`;
}

/** Priority, run-at, id: the order in which jobs are due. */
const byTurn = (a: ClaimedJob, b: ClaimedJob): number =>
  a.priority - b.priority || a.runAt.getTime() - b.runAt.getTime() || (a.id < b.id ? -1 : 1);

/** Sorts only where it must. */
export function inTurn(jobs: ClaimedJob[]): ClaimedJob[] {
  const sorted = jobs.every((job, index) => index === 0 || byTurn(jobs[index - 1]!, job) <= 0);
  return sorted ? jobs : jobs.sort(byTurn);
}

const joinReports = (first: LaneReport, next: LaneReport): LaneReport => ({
  ...next,
  turns: [...first.turns, ...next.turns],
  cut: [...first.cut, ...next.cut],
  ended: [...first.ended, ...next.ended],
  full: [...first.full, ...next.full],
  tokensAt: Math.min(first.tokensAt ?? Infinity, next.tokensAt ?? Infinity),
});

/** Two looks at lanes, the second for what the first has left. */
export const joinLooks = (first: LaneClaimResult, next: LaneClaimResult): LaneClaimResult => ({
  ...next,
  jobs: inTurn([...first.jobs, ...next.jobs]),
  taken: [...first.taken, ...next.taken],
  report: next.report && first.report ? joinReports(first.report, next.report) : next.report,
  unreadable: first.unreadable ?? next.unreadable,
});
