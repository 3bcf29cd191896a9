// Rows become what users see, and a job becomes the spec of its replay.
import type { ClaimedJob, Job, JobSpec } from '../interfaces/job.interface.js';
import type {
  HistoryRecord,
  PartitionState,
  Pause,
  PauseDetails,
  PauseTarget,
  QueueState,
  RateLimit,
  RateLimitValue,
  WorkerInfo,
} from '../interfaces/report.interface.js';
import { toDate, toDateOrNull } from '../storage/row.types.js';
import type { HistoryRow } from '../storage/statements/inspect-jobs.js';
import type { ClaimedText, ClaimExtra } from '../storage/statements/claim-jobs.js';
import type { JobRow } from '../storage/statements/job-columns.js';
import type { WorkerRow } from '../storage/statements/workers.js';
import type { PartitionRow, QueueRow } from '../storage/statements/queues.js';
import type { PauseRow } from '../storage/statements/pauses.js';
import type { LimitValueRow, RateLimitRow } from '../storage/statements/rate-limits.js';
import { isSealed, openValue, openPayload, reveal, type JobCipher } from './job.cipher.js';
import { correlationIdOf } from './job.id.js';
import { keyOfLimits, limitsAsOption, limitsOfText } from './rate.limits.js';

/** What cannot be decrypted is shown as an `EncryptedValue`. */
export const toJob = (row: JobRow, cipher: JobCipher | undefined): Job => ({
  id: row.id,
  task: row.task,
  payload: shownPayload(row.payload, row.id, row.task, cipher),
  status: row.status,
  priority: row.priority,
  queue: row.queue,
  partition: row.partition,
  rateLimitKey: keyOfLimits(row.limits),
  rateLimits: limitsOfText(row.limits),
  runAt: toDate(row.run_at),
  attempts: row.attempts,
  maxAttempts: row.max_attempts,
  lastError: row.last_error,
  jobKey: row.job_key,
  jobKeyMode: row.job_key_mode,
  flags: row.flags ?? [],
  tags: row.tags ?? [],
  groupId: row.group_id ?? row.id,
  dependsOn: row.depends_on ?? [],
  timeoutMs: row.timeout_ms,
  lockedBy: row.locked_by,
  lockedAt: toDateOrNull(row.locked_at),
  revision: row.revision,
  progress: shownField(row.progress ?? null, 'progress', row.id, cipher),
  createdAt: toDate(row.created_at),
  updatedAt: toDate(row.updated_at),
});

const shownPayload = (payload: unknown, id: string, task: string, cipher: JobCipher | undefined): unknown =>
  isSealed(payload) ? reveal(() => openPayload(cipher, payload, id, task)) : payload;

const shownField = <T>(value: T, field: string, id: string, cipher: JobCipher | undefined): T =>
  isSealed(value) ? (reveal(() => openValue(cipher, value, field, id)) as T) : value;

const NOTHING_EXTRA: ClaimExtra = {
  lastError: null,
  jobKey: null,
  jobKeyMode: null,
  flags: null,
  tags: null,
  groupId: null,
  dependsOn: null,
  timeoutMs: null,
  previous: null,
  crashes: 0,
};

/** What a claim tells of a job. */
export const toClaimedJob = (told: ClaimedText, label: string, lockedAtMs: number): ClaimedJob => {
  // By index: taking an array apart makes an iterator and its results, for each job.
  const id = told[0];
  const fence = told[1];
  const extra: Partial<ClaimExtra> = told[9] ?? NOTHING_EXTRA;
  return {
    id,
    task: told[4],
    payload: told[10],
    status: 'running',
    priority: told[2],
    queue: extra.queue ?? null,
    partition: extra.partition ?? null,
    rateLimitKey: keyOfLimits(extra.limits),
    rateLimits: limitsOfText(extra.limits),
    runAt: toDate(told[3]),
    attempts: told[5],
    maxAttempts: told[6],
    lastError: extra.lastError ?? null,
    jobKey: extra.jobKey ?? null,
    jobKeyMode: extra.jobKeyMode ?? null,
    flags: extra.flags ?? [],
    tags: extra.tags ?? [],
    groupId: extra.groupId ?? id,
    dependsOn: extra.dependsOn ?? [],
    timeoutMs: extra.timeoutMs ?? null,
    lockedBy: label,
    lockedAt: toDate(lockedAtMs),
    revision: told[7],
    progress: null,
    createdAt: toDate(told[8]),
    updatedAt: toDate(lockedAtMs),
    correlationId: correlationIdOf(id, fence),
    fence,
    previous: extra.previous ?? null,
    crashes: extra.crashes ?? 0,
  };
};

/** What stands before the payload, and what is before it, of a text that cannot be parsed. */
export function readableStart(text: string): ClaimedText {
  const [, id = '', fence = '0', priority, runAt] = /^\["([^"]+)","(\d+)",(-?\d+),(-?[\d.e+]+),/.exec(text) ?? [];
  return [id, fence, Number(priority ?? 0), Number(runAt ?? 0), '', 1, 1, 0, 0, null, null];
}

export const toHistoryRecord = (row: HistoryRow, cipher: JobCipher | undefined): HistoryRecord => ({
  jobId: row.job_id,
  correlationId: correlationIdOf(row.job_id, row.fence),
  task: row.task ?? '',
  payload: shownPayload(row.payload, row.job_id, row.task ?? '', cipher),
  workerId: row.worker_id,
  status: row.status,
  startedAt: toDateOrNull(row.started_at),
  completedAt: toDateOrNull(row.completed_at),
  queueTimeMs: row.queue_time_ms === null ? null : Number(row.queue_time_ms),
  executionTimeMs: row.execution_time_ms,
  attempt: row.attempt,
  errorMessage: row.error_message,
  errorStack: row.error_stack,
  partialResults: shownField(row.partial_results, 'partial', row.job_id, cipher),
  result: shownField(row.result, 'result', row.job_id, cipher),
  executionEnvironment: row.environment,
  expiresAt: toDateOrNull(row.expires_at),
});

export const toQueueState = (row: QueueRow): QueueState => ({
  name: row.name,
  concurrency: row.concurrency ?? Infinity,
  maxWaiting: row.max_waiting ?? Infinity,
  paused: row.paused,
  pause: row.paused
    ? toPauseDetails({
        since: row.paused_since,
        until: row.paused_until,
        reason: row.pause_reason,
        paused_by: row.paused_by,
      })
    : null,
  running: row.running,
  waiting: row.waiting,
  lockedBy: row.locked_by,
});

export const toPartitionState = (row: PartitionRow): PartitionState => ({
  partition: row.partition,
  waiting: row.waiting,
  running: row.running,
  concurrency: row.concurrency ?? Infinity,
  share: row.share ?? 1,
  weight: row.weight,
});

export const toPauseDetails = (row: Pick<PauseRow, 'since' | 'until' | 'reason' | 'paused_by'>): PauseDetails => ({
  since: toDateOrNull(row.since),
  until: toDateOrNull(row.until),
  reason: row.reason,
  by: row.paused_by,
});

export const toPause = (row: PauseRow): Pause => ({ target: targetOf(row), ...toPauseDetails(row) });

function targetOf({ kind, name, partition }: PauseRow): PauseTarget {
  if (kind === 'all') return { all: true };
  if (kind === 'partition') return { partition: { queue: name, partition } };
  return { [kind]: name } as unknown as PauseTarget;
}

export const toRateLimit = (row: RateLimitRow): RateLimit => ({
  key: row.key,
  algorithm: row.algorithm,
  capacity: row.capacity,
  intervalMs: Number(row.interval_ms),
  burst: row.burst,
  availableTokens: row.available,
  lastRefillAt: toDate(row.refilled_at),
  blockedUntil: toDateOrNull(row.blocked_until),
});

export const toRateLimitValue = (row: LimitValueRow): RateLimitValue => ({
  by: row.by_value,
  availableTokens: row.available,
  nextTokenAt: toDate(row.enough_at),
  blockedUntil: toDateOrNull(row.blocked_until),
});

export const toWorkerInfo = (row: WorkerRow): WorkerInfo => ({
  id: row.id,
  host: row.host,
  pid: row.pid,
  concurrency: row.concurrency,
  startedAt: toDate(row.started_at),
  heartbeatAt: toDate(row.heartbeat_at),
  running: row.running,
  tasks: row.tasks,
});

/** The same work once more, under the old id as its key. */
export const replayOf = (job: Job, maxAttempts: number | undefined): JobSpec => ({
  task: job.task,
  payload: job.payload,
  priority: job.priority,
  maxAttempts: maxAttempts ?? job.maxAttempts,
  flags: [...new Set([...job.flags, 'replay'])],
  tags: job.tags,
  jobKey: job.id,
  groupId: job.groupId,
  queue: job.queue,
  partition: job.partition,
  ...limitsAsOption(job.rateLimits),
  ...(job.timeoutMs !== null && { timeoutMs: job.timeoutMs }),
});
