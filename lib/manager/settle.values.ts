// What settles are as values of their statements, and their rows as results.
import { hostname } from 'node:os';
import type { Claimer, SettledStatus, SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import { serializeError } from '../monitoring/error.text.js';
import { toDateOrNull } from '../storage/row.types.js';
import type { CompletedRow, EndedAttempt, EndedRow, EndKind } from '../storage/statements/settle-jobs.js';
import { freedBy, type Freed } from './job.promoter.js';
import { laneOf } from './lane.names.js';
import { blocksOf } from './rate.limits.js';

export interface Settled {
  results: SettleResult[];
  /** An open transaction holds the job. */
  held: SettleRequest[];
  /** The claim is over. */
  lost: SettleRequest[];
  /** What others wait for. */
  freed: Freed;
  /** Queues in which a place became free. */
  queues: string[];
}

/** A claim that is named twice is settled by the first; the others are answered as lost. */
export function withoutRepeats(requests: SettleRequest[]): SettleRequest[] {
  const named = new Set<string>();
  return requests.filter(({ job }) => named.size !== named.add(job.id + job.fence).size);
}

export const isCompleted = ({ outcome }: SettleRequest): boolean => outcome.kind === 'completed';

export const lost = ({ job }: SettleRequest): SettleResult => ({ job, status: 'lost', runAt: null });

/** Where a job that was given back waits: it may be on its last attempt, or a suspect. */
export const laneOfWaiting = (job: ClaimedJob): string | null =>
  job.queue !== null || job.rateLimitKey !== null || job.attempts >= job.maxAttempts || job.crashes > 0
    ? laneOf(job)
    : null;

/** Rounded, and within what the column holds (24 days). */
export const millisecondsOf = ({ executionTimeMs }: SettleRequest): number =>
  Math.min(2_147_483_647, Math.max(0, Math.round(executionTimeMs)));

/** Null where no attempt has a result: most have none. */
export function resultsOf(requests: SettleRequest[]): (string | null)[] | null {
  const results = requests.map(({ outcome }) => (outcome.kind === 'completed' ? outcome.result : null));
  return results.some((result) => result !== null) ? results : null;
}

export function toEndedAttempt(request: SettleRequest): EndedAttempt {
  const { job, outcome } = request;
  const error = 'error' in outcome ? serializeError(outcome.error) : null;
  const reason = outcome.kind === 'cancelled' ? outcome.reason : null;
  return {
    id: job.id,
    fence: job.fence,
    kind: outcome.kind === 'permanent' ? 'failed' : (outcome.kind as EndKind),
    delay_ms: 'delayMs' in outcome ? outcome.delayMs : 0,
    permanent: outcome.kind === 'permanent',
    execution_time_ms: millisecondsOf(request),
    error_message: error?.message ?? (reason === null ? null : serializeError(reason).message),
    error_stack: error?.stack ?? null,
    blocks: outcome.kind === 'snoozed' && outcome.limited ? blocksOf(job.rateLimits, outcome.limited) : null,
    partial_results: outcome.kind === 'partial' ? (outcome.sealed ?? JSON.stringify(outcome.partialResults)) : null,
  };
}

/** Most have nothing to tell. */
const toResult = ({ job }: SettleRequest, status: SettledStatus, row?: EndedRow | CompletedRow): SettleResult =>
  row
    ? { job, status, runAt: toDateOrNull(row.run_at), reason: row.reason, hasFreedPlace: row.queue !== null }
    : { job, status, runAt: null };

/** Of completions the database tells only what deviates: those it does not mention have simply completed. */
export function toSettled(requests: SettleRequest[], rows: EndedRow[], deviations: CompletedRow[] | null): Settled {
  const told = new Map<string, EndedRow | CompletedRow>();
  for (const row of [...rows, ...(deviations ?? [])]) if (row.became !== 'parent') told.set(row.id + row.fence, row);
  const settled: Settled = {
    results: [],
    held: [],
    lost: [],
    freed: { holders: [], keys: [], parents: [] },
    queues: [],
  };
  for (const request of requests) {
    const { job, outcome } = request;
    const row = told.size ? told.get(job.id + job.fence) : undefined;
    const became = row?.became ?? (deviations && outcome.kind === 'completed' ? 'completed' : 'lost');
    if (became === 'held') settled.held.push(request);
    else if (became === 'lost') settled.lost.push(request);
    else settled.results.push(toResult(request, became as SettledStatus, row));
  }
  const ended = [...told.values()].filter(({ became }) => became !== 'held' && became !== 'lost') as EndedRow[];
  settled.freed = freedBy(ended);
  settled.queues = ended.flatMap(({ queue }) => queue ?? []);
  const unsettled = new Set([...settled.held, ...settled.lost].map(({ job }) => job.id));
  for (const { became, id } of deviations ?? []) {
    if (became === 'parent' && !unsettled.has(id)) settled.freed.parents.push(id);
  }
  return settled;
}

/** What the settling process is, for the history of claims made by hand (a pool's is in its row of workers). */
export const executionEnvironment = (): Record<string, unknown> => ({
  host: hostname(),
  pid: process.pid,
  node: process.version,
  platform: `${process.platform}-${process.arch}`,
});

export const environmentOf = ({ leaseMs }: Claimer): string | null =>
  leaseMs === null ? null : JSON.stringify(executionEnvironment());

/** Whether failures and snoozes leave a record, and how long records are kept. */
export const keepingOf = ({
  keep,
  retentionMs,
}: ManagerSettings['history']): [failures: boolean, snoozes: boolean, retentionMs: number] => [
  keep !== 'none',
  keep === 'all',
  retentionMs,
];
