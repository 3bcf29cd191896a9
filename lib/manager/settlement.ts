// Settling from the manager's side: outcomes become parameters of the two settling statements, and their rows become
// results. The only place that knows both.
import { hostname } from 'node:os';
import type { SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import type { Database } from '../storage/database.js';
import { isLockTimeout } from '../storage/database.errors.js';
import { toDateOrNull } from '../storage/row.types.js';
import {
  completeJobs,
  completeJobsPatiently,
  endAttempts,
  endAttemptsPatiently,
  findSettled,
  type CompletedRow,
  type EndedAttempt,
  type SettledRow,
  type SettleManner,
} from '../storage/statements/settle-jobs.js';
import { errorText } from '../monitoring/error.text.js';

export { isCertainlyRolledBack, isDataFault, isStatementTimeout, withReason } from '../storage/database.errors.js';

/** What the settling process is, for the history of claims made by hand (a pool's is in its row of workers). */
export const executionEnvironment = (): Record<string, unknown> => ({
  host: hostname(),
  pid: process.pid,
  node: process.version,
  platform: `${process.platform}-${process.arch}`,
});

export interface Settlement {
  results: SettleResult[];
  /** Not settled: the claim is lost, or the row is locked by an open transaction; the waiting variant tells which. */
  missing: SettleRequest[];
  /** Queues in which others wait for the places that became free. */
  promote: string[];
  /** Jobs that waited for these to leave. */
  successors: string[];
  /** Jobs that have ended and that others wait for. */
  parents: string[];
}

export interface SettleBatch {
  workerId: string;
  requests: SettleRequest[];
  /** Wait for rows that other transactions hold. */
  wait: boolean;
  byHand: boolean;
}

/** Runs the settling statements for one batch: one for what completed, one for everything else. */
export async function settleBatch(
  database: Database,
  settings: ManagerSettings,
  batch: SettleBatch,
): Promise<Settlement> {
  const isCompleted = ({ outcome }: SettleRequest): boolean => outcome.kind === 'completed';
  const completed = batch.requests.every(isCompleted) ? batch.requests : batch.requests.filter(isCompleted);
  const ended = completed === batch.requests ? [] : batch.requests.filter((request) => !isCompleted(request));
  const [deviations, rows] = await Promise.all([
    completed.length ? complete(database, settings, batch, completed) : [],
    ended.length ? end(database, settings, batch, ended) : [],
  ]);
  return toSettlement(batch.requests, rows, deviations);
}

/** Of requests that match nothing: what an earlier call, whose commit's fate was unknown, has already settled. */
export async function findEarlier(database: Database, { workerId, requests }: SettleBatch): Promise<Settlement> {
  const rows = await database.run(findSettled, [
    workerId,
    requests.map(({ job }) => job.id),
    requests.map(({ job }) => job.fence),
    requests.map(millisecondsOf),
  ]);
  return toSettlement(requests, rows, null);
}

/** Rounded, and within what the column holds (24 days). */
const millisecondsOf = ({ executionTimeMs }: SettleRequest): number =>
  Math.min(2_147_483_647, Math.max(0, Math.round(executionTimeMs)));

/** Most batches meet no row that anybody else holds; one that does is repeated without those. */
async function complete(database: Database, settings: ManagerSettings, batch: SettleBatch, requests: SettleRequest[]) {
  if (batch.wait) return completeIn('wait', database, settings, batch, requests);
  try {
    return await completeIn('direct', database, settings, batch, requests);
  } catch (error) {
    if (!isLockTimeout(error)) throw error;
    return completeIn('skip', database, settings, batch, requests);
  }
}

async function completeIn(
  manner: SettleManner,
  database: Database,
  settings: ManagerSettings,
  batch: SettleBatch,
  requests: SettleRequest[],
): Promise<CompletedRow[]> {
  return database.run(manner === 'wait' ? completeJobsPatiently : completeJobs, [
    batch.workerId,
    // Array literals by hand: nothing in them needs quotes, which the driver would look for in each.
    `{${requests.map(({ job }) => job.id).join()}}`,
    `{${requests.map(({ job }) => job.fence).join()}}`,
    `{${requests.map(millisecondsOf).join()}}`,
    resultsOf(requests),
    settings.history.keep === 'all',
    settings.history.retentionMs,
    environmentOf(batch),
    manner,
  ]);
}

/** Null where no attempt has a result: most have none. */
function resultsOf(requests: SettleRequest[]): (string | null)[] | null {
  const results = requests.map(({ outcome }) => (outcome.kind === 'completed' ? outcome.result : null));
  return results.some((result) => result !== null) ? results : null;
}

const end = (database: Database, settings: ManagerSettings, batch: SettleBatch, requests: SettleRequest[]) => {
  const { keep, retentionMs } = settings.history;
  return database.run(batch.wait ? endAttemptsPatiently : endAttempts, [
    batch.workerId,
    JSON.stringify(requests.map(toEndedAttempt)),
    keep !== 'none',
    keep === 'all',
    retentionMs,
    environmentOf(batch),
    batch.wait ? 'wait' : 'skip',
  ]);
};

const environmentOf = ({ byHand }: SettleBatch): string | null =>
  byHand ? JSON.stringify(executionEnvironment()) : null;

function toEndedAttempt(request: SettleRequest): EndedAttempt {
  const { job, outcome } = request;
  const error = 'error' in outcome ? errorText(outcome.error) : null;
  const reason = outcome.kind === 'cancelled' ? outcome.reason : null;
  return {
    id: job.id,
    fence: job.fence,
    kind: outcome.kind === 'permanent' ? 'failed' : (outcome.kind as EndedAttempt['kind']),
    delay_ms: 'delayMs' in outcome ? outcome.delayMs : 0,
    permanent: outcome.kind === 'permanent',
    execution_time_ms: millisecondsOf(request),
    error_message: error?.message ?? (reason === null ? null : errorText(reason).message),
    error_stack: error?.stack ?? null,
    partial_results: outcome.kind === 'partial' ? (outcome.sealed ?? JSON.stringify(outcome.partialResults)) : null,
  };
}

/** Of completions the database tells only what deviates: those it does not mention have simply completed. */
function toSettlement(requests: SettleRequest[], rows: SettledRow[], deviations: CompletedRow[] | null): Settlement {
  const told = new Map<string, SettledRow | CompletedRow>(rows.map((row) => [row.id, row]));
  const parents = new Set(rows.filter(({ has_dependents }) => has_dependents).map(({ id }) => id));
  for (const row of deviations ?? []) {
    if (row.became === 'parent') parents.add(row.id);
    else told.set(row.id, row);
  }
  const results: SettleResult[] = [];
  const missing: SettleRequest[] = [];
  for (const request of requests) {
    const { job, outcome } = request;
    const row = told.get(job.id);
    const unmentioned = deviations && outcome.kind === 'completed' ? 'completed' : 'missing';
    const became = row ? (row.became as SettledRow['became'] | 'missing') : unmentioned;
    if (became !== 'missing') results.push({ job, status: became, runAt: toDateOrNull(row?.run_at ?? null) });
    else {
      missing.push(request);
      parents.delete(job.id);
    }
  }
  return {
    results,
    missing,
    promote: [...told.values()].flatMap(({ promote }) => promote ?? []),
    successors: [...told.values()].flatMap(({ superseded_by }) => superseded_by ?? []),
    parents: [...parents],
  };
}
