// Counts for people, from one grouped scan.
import type { JobStatus } from '../interfaces/job.interface.js';
import type { JobCounts } from '../interfaces/report.interface.js';
import type { CountRow } from '../storage/statements/inspect-jobs.js';

const STATUSES: JobStatus[] = [
  'available',
  'scheduled',
  'blocked',
  'running',
  'snoozed',
  'exhausted',
  'cancelled',
  'completed',
];

export function toCounts(rows: CountRow[]): JobCounts {
  const byName = (kind: CountRow['kind']): Record<string, number> =>
    Object.fromEntries(rows.filter((row) => row.kind === kind).map(({ name, jobs }) => [name, jobs]));
  const byStatus = byName('status');
  return {
    byStatus: Object.fromEntries(STATUSES.map((status) => [status, byStatus[status] ?? 0])) as Record<
      JobStatus,
      number
    >,
    byTask: byName('task'),
    byQueue: byName('queue'),
    oldestDueAgeMs: rows.find(({ kind }) => kind === 'oldest_due')?.jobs ?? null,
  };
}
