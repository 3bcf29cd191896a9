// Why is this job not running? The obstacle that comes first, in one sentence and in fields.
import type { Job } from '../interfaces/job.interface.js';
import type { ExplainReason, JobExplanation, PauseDetails } from '../interfaces/report.interface.js';
import { describePause } from '../monitoring/pause.text.js';
import { toDate, toDateOrNull } from '../storage/row.types.js';
import type { ExplainRow, LimitNow } from '../storage/statements/inspect-jobs.js';
import type { PauseRow } from '../storage/statements/pauses.js';
import { toPauseDetails } from './job.mapper.js';

type Finding = {
  reason: ExplainReason;
  message: string;
  until?: Date | null;
  blockedBy?: string[];
  pause?: PauseDetails;
};

export function explainLiveJob(job: Job, row: ExplainRow | undefined): JobExplanation {
  const found = row ? ofLive(job, row) : ofFinished(job);
  return { status: job.status, until: null, blockedBy: [], pause: null, ...found };
}

function ofFinished(job: Job): Finding {
  if (job.status === 'cancelled') {
    return { reason: 'cancelled', message: `It was cancelled${job.lastError ? `: ${job.lastError}` : '.'}` };
  }
  return { reason: 'completed', message: `It has completed, after ${count(job.attempts, 'attempt')}.` };
}

function ofLive(job: Job, row: ExplainRow): Finding {
  return (
    ofState(job, row) ??
    ofTime(job, row) ??
    ofPause(row.pause) ??
    ofQueue(job, row) ??
    ofPartition(job, row) ??
    ofTokens(row) ??
    ofWorkers(job, row)
  );
}

function ofState(job: Job, row: ExplainRow): Finding | null {
  if (row.running && row.left_until !== null) {
    const until = toDate(row.left_until);
    const what = 'goes back without counting when it ends, or else when the lease does';
    return {
      reason: 'running',
      message: `Its worker ${job.lockedBy} is being stopped while it runs: it ${what}, at ${iso(until)}.`,
      until,
    };
  }
  if (row.running) return ofClaim(job, row);
  if (row.parked === 'exhausted') {
    const error = job.lastError ?? 'unknown error';
    return { reason: 'exhausted', message: `It failed for good after ${count(job.attempts, 'attempt')}: ${error}` };
  }
  const blockedBy = row.blocked_by ?? [];
  if (row.parked === 'key') {
    return { reason: 'job_key', message: `It took the key of job ${blockedBy[0] ?? ''}, which still runs.`, blockedBy };
  }
  if (row.parked === 'parents')
    return { reason: 'parents', message: `It waits for ${count(blockedBy.length, 'job')} it depends on.`, blockedBy };
  return null;
}

/** What its pool has begun is known to the pool alone. */
function ofClaim({ lockedBy, lockedAt }: Job, { in_batch, gathers_until }: ExplainRow): Finding {
  const claim = `claimed by ${lockedBy} at ${iso(lockedAt)}`;
  if (!in_batch) return { reason: 'running', message: `It is running, ${claim}.` };
  const until = toDateOrNull(gathers_until);
  const waits = until
    ? `It waits there for more jobs until ${iso(until)} at the latest, unless its batch is full and runs`
    : 'Its batch runs, or waits there for a free slot';
  return { reason: 'running', message: `It is ${claim}. ${waits}.`, until };
}

function ofTime(job: Job, row: ExplainRow): Finding | null {
  if (row.due) return null;
  const until = toDate(row.run_at);
  if (job.status === 'snoozed') return { reason: 'snoozed', message: `It is snoozed until ${iso(until)}.`, until };
  const kept = job.attempts === 0 && MEETINGS[job.jobKeyMode ?? ''];
  if (kept) return { reason: 'future', message: `${kept} ${iso(until)}.`, until };
  const message = job.attempts > 0 ? `${soFar(job, row)}; the next one is due at` : 'It is scheduled for';
  return { reason: 'future', message: `${message} ${iso(until)}.`, until };
}

/** Of what waits because adds come close together. */
const MEETINGS: Record<string, string> = {
  debounce: 'It is debounced: each add of its key puts it off. So far it is due at',
  throttle: 'It waits for the end of its throttle’s window, at',
};

/** Without a history, nothing tells how the last attempt went. */
function soFar({ attempts }: Job, { last_outcome }: ExplainRow): string {
  if (last_outcome === 'failed') return `Attempt ${attempts} failed`;
  if (last_outcome === 'partial_success') return `Attempt ${attempts} got half-way`;
  return `It has made ${count(attempts, 'attempt')}`;
}

function ofPause(row: PauseRow | null): Finding | null {
  if (!row) return null;
  const pause = toPauseDetails(row);
  const message = `${subjectOf(row)} paused${describePause(pause)}${pause.reason === null ? '.' : ''}`;
  return { reason: `${row.kind}_paused`, message, until: pause.until, pause };
}

function subjectOf({ kind, name, partition }: PauseRow): string {
  if (kind === 'all') return 'Everything is';
  if (kind === 'partition') return `The partition "${partition}" of its queue "${name}" is`;
  if (kind === 'worker') return `The worker "${name}", which would take it, is`;
  if (kind === 'instance') return `The instance "${name}", whose workers would take it, is`;
  return `Its ${kind} "${name}" is`;
}

function ofQueue(job: Job, row: ExplainRow): Finding | null {
  if (job.queue === null) return null;
  const blockedBy = row.queue_jobs ?? [];
  const places = row.queue_known ? row.queue_concurrency : 1;
  if (places === null || blockedBy.length < places) return null;
  const message =
    `Its queue "${job.queue}" runs ${count(places, 'job')} at once and is busy` +
    `${blockedBy.length ? ` with job ${blockedBy.join(', ')}` : ''}.`;
  return { reason: 'queue_busy', message, blockedBy };
}

function ofPartition(job: Job, row: ExplainRow): Finding | null {
  if (row.partition_free === null || row.partition_free > 0) return null;
  const blockedBy = row.partition_jobs ?? [];
  const message =
    `Its partition "${job.partition}" of queue "${job.queue}" runs ${count(blockedBy.length, 'job')} at once and is busy` +
    `${blockedBy.length ? ` with job ${blockedBy.join(', ')}` : ''}.`;
  return { reason: 'partition_full', message, blockedBy };
}

/** Of several limits, the one that is in its way for longest. */
function ofTokens(row: ExplainRow): Finding | null {
  const missing = (row.limits ?? []).filter(({ known, tokens, weight }) => !known || (tokens ?? 0) < weight);
  const endOf = ({ enough_at: at }: LimitNow): number => at ?? Infinity;
  const [last] = missing.toSorted((a, b) => endOf(b) - endOf(a));
  if (!last) return null;
  const until = toDateOrNull(last.enough_at);
  return { reason: 'no_tokens', message: `Rate limit "${last.key}" ${stateOf(last, until)}.`, until };
}

function stateOf(limit: LimitNow, until: Date | null): string {
  const { by, weight, known, tokens, burst, blocked_until: blockedUntil } = limit;
  if (!known) return 'is not registered';
  const whose = by === null ? '' : ` for "${by}"`;
  if (weight > (burst ?? 0)) return `never has the ${count(weight, 'token')} that it takes: at most ${burst}`;
  if (blockedUntil !== null) {
    return `gives no tokens${whose} until ${iso(until)}: a handler has blocked it (RateLimitedError) until ${iso(toDate(blockedUntil))}`;
  }
  if (!tokens) return `has no tokens${whose} until ${iso(until)}`;
  return `has ${count(tokens, 'token')}${whose}, and the ${weight} that it takes at ${iso(until)}`;
}

function ofWorkers(job: Job, row: ExplainRow): Finding {
  if (!row.has_worker) return { reason: 'no_worker', message: 'No worker is alive.' };
  if (!row.has_handler) return { reason: 'no_handler', message: `No live worker handles task "${job.task}".` };
  if (!row.has_queue_taker) {
    const jobs = `jobs ${job.queue === null ? 'without a queue' : `from queue "${job.queue}"`}`;
    return { reason: 'no_taker', message: `No live worker that handles task "${job.task}" takes ${jobs}.` };
  }
  if (!row.has_taker) {
    const flags = (row.forbidden ?? []).map((flag) => `"${flag}"`).join(', ');
    const message = `No live worker that handles task "${job.task}" takes jobs with the flag ${flags} (forbiddenFlags).`;
    return { reason: 'no_taker', message };
  }
  const paused = ofPause(row.taker_pause);
  if (paused) return paused;
  return { reason: 'ready', message: 'It is ready: the next free worker takes it when its turn comes.' };
}

const iso = (date: Date | null): string => date?.toISOString() ?? 'an unknown time';

const count = (n: number, noun: string): string => `${n} ${noun}${n === 1 ? '' : 's'}`;
