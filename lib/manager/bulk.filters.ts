// What bulk actions may be asked for, and how it is written down. An action must say which jobs it means: a filter that is empty,
// or has become so by a variable without a value, is refused.
import type {
  BulkAction,
  BulkActionName,
  BulkFilter,
  BulkMoveOptions,
  BulkOptions,
  BulkRescheduleOptions,
} from '../interfaces/bulk.interface.js';
import type { JobStatus } from '../interfaces/job.interface.js';
import type { JobFilter } from '../interfaces/report.interface.js';
import type { BulkActionRow } from '../storage/statements/bulk-actions.js';
import { faultOf, isRecord, option, refuseCall, required, section, show, type Option } from '../validation.js';
import { rules } from '../validation.rules.js';
import { attempts, JOB_STATUSES, priority } from './arguments.js';
import { type JobCipher, openValue, reveal } from './job.cipher.js';
import { searchPatterns } from './search.patterns.js';

const MAX_RATE = 1_000_000;
const WAITING: JobStatus[] = ['available', 'scheduled', 'snoozed', 'blocked'];
const LIVE: JobStatus[] = [...WAITING, 'running', 'exhausted'];

/** What each action can be done to. Running ones are met by reschedule and move as well, and skipped. */
const STATUSES: Record<BulkActionName, JobStatus[]> = {
  cancel: LIVE,
  retry: ['exhausted', 'cancelled'],
  reschedule: LIVE,
  purge: ['exhausted', 'completed', 'cancelled'],
  move: LIVE,
};

const given = (rule: Parameters<typeof option>[0]): Option<any> => option<any>(rule, undefined);

const FIELDS: Record<keyof BulkFilter, Option<any>> = {
  all: given((value) => (value === true ? null : 'true')),
  task: given(rules.name),
  queue: given(rules.laneName),
  status: given(rules.oneOf(...JOB_STATUSES)),
  tag: given(rules.name),
  groupId: given(rules.name),
  flag: given(rules.name),
  search: given((value) => (value === '' ? 'a text to look for' : rules.text(value))),
  from: given(rules.date),
  to: given(rules.date),
};
const filterSection = section(FIELDS);

const COMMON = {
  by: required(rules.name),
  reason: given(rules.reason),
  ratePerS: given(rules.integer(1, MAX_RATE)),
  dryRun: given(rules.flag),
};

const OPTIONS: Record<BulkActionName, Option<any>> = {
  cancel: section(COMMON),
  retry: section(COMMON),
  purge: section(COMMON),
  reschedule: section({
    ...COMMON,
    runAt: given(rules.date),
    priority: given(priority),
    maxAttempts: given(attempts),
  }),
  move: section({
    ...COMMON,
    queue: required((value) => (value === null ? null : rules.laneName(value) && `${rules.laneName(value)}, or null`)),
  }),
};

/** What an action needs to know beside its filter. */
export interface BulkSettings {
  runAt?: string;
  priority?: number;
  maxAttempts?: number;
  queue?: string | null;
}

const CHANGES = ['runAt', 'priority', 'maxAttempts'] as const;

/** @throws InvalidArgumentError */
export function checkBulk(action: BulkActionName, filter: BulkFilter, options: BulkOptions): void {
  const faults = [...filterFaults(action, filter), ...OPTIONS[action].check(options, '')];
  if (!faults.length && action === 'reschedule') {
    const isGiven = CHANGES.some((name) => (options as BulkRescheduleOptions)[name] !== undefined);
    if (!isGiven) faults.push('Expected runAt, priority or maxAttempts, got none of them.');
  }
  refuseCall(faults);
}

function filterFaults(action: BulkActionName, filter: unknown): string[] {
  if (!isRecord(filter)) return [`Expected the filter to be an object, got ${show(filter)}.`];
  const names = Object.keys(filter);
  const faults = names.flatMap((name) =>
    Object.hasOwn(FIELDS, name) && filter[name] === undefined
      ? [`Expected filter.${name} to have a value, got undefined: leave it out where it is not meant.`]
      : filterSection.check({ [name]: filter[name] }, 'filter'),
  );
  if (faults.length) return faults;
  if (!names.length)
    return ['Expected a filter that says which jobs are meant, got an empty one; all: true means all.'];
  if (filter.all && names.length > 1) return ['Expected filter.all alone, got it beside other fields.'];
  const skipsRunning = action === 'reschedule' || action === 'move';
  const statuses = STATUSES[action].filter((one) => one !== 'running' || !skipsRunning);
  if (filter.status === undefined) return [];
  return faultOf('filter.status', filter.status, (value) =>
    statuses.includes(value as JobStatus) ? null : `one that ${action} can be done to (${statuses.join(', ')})`,
  );
}

/** Which jobs the statuses of an action lie among. */
export type BulkSource = 'live' | 'exhausted' | 'all';

/** A filter as statements take it. */
export interface BulkScope {
  source: BulkSource;
  statuses: JobStatus[];
  /** The rest of the filter, as JSON. */
  wanted: string;
}

export function scopeOf(action: BulkActionName, filter: BulkFilter, settings: BulkSettings): BulkScope {
  const { status, search, all: _, ...rest } = filter;
  // What has failed for good is not scheduled; it is again where it gets attempts.
  const isIdle = action === 'reschedule' && settings.maxAttempts === undefined;
  const any = STATUSES[action].filter((one) => !isIdle || one !== 'exhausted');
  const statuses = status ? [status] : any;
  const isLive = statuses.every((one) => LIVE.includes(one));
  const source = statuses.join() === 'exhausted' ? 'exhausted' : isLive ? 'live' : 'all';
  const wanted = JSON.stringify({ ...rest, ...(search !== undefined && { patterns: searchPatterns(search) }) });
  return { source, statuses, wanted };
}

export function settingsOf(action: BulkActionName, options: BulkOptions): BulkSettings {
  if (action === 'move') return { queue: (options as BulkMoveOptions).queue };
  if (action !== 'reschedule') return {};
  const { runAt, priority: rank, maxAttempts } = options as BulkRescheduleOptions;
  return {
    ...(runAt && { runAt: runAt.toISOString() }),
    ...(rank !== undefined && { priority: rank }),
    ...(maxAttempts !== undefined && { maxAttempts }),
  };
}

const FIELD = 'filter';

/** A filter as it is stored. */
export function storedFilter(cipher: JobCipher | undefined, id: string, filter: BulkFilter): string {
  const text = JSON.stringify(filter);
  return cipher ? cipher.seal([FIELD, id], text) : text;
}

/** @throws DecryptionError where this process lacks the key */
export function readFilter(cipher: JobCipher | undefined, id: string, stored: unknown): BulkFilter {
  const { from, to, ...rest } = openValue(cipher, stored, FIELD, id) as Record<keyof JobFilter, string>;
  const times = { ...(from && { from: new Date(from) }), ...(to && { to: new Date(to) }) };
  return { ...rest, ...times } as BulkFilter;
}

const dateOrNull = (ms: number | null): Date | null => (ms === null ? null : new Date(Number(ms)));

export function toBulkAction(row: BulkActionRow, cipher: JobCipher | undefined): BulkAction {
  const { runAt, ...settings } = row.settings as BulkSettings;
  return {
    id: row.id,
    action: row.action,
    state: row.state,
    filter: reveal(() => readFilter(cipher, row.id, row.filter)) as BulkFilter,
    settings: { ...settings, ...(runAt !== undefined && { runAt: new Date(runAt) }) },
    by: row.asked_by,
    reason: row.reason,
    ratePerS: row.rate_per_s,
    matched: row.matched,
    done: row.done,
    failed: row.failed,
    skipped: row.skipped,
    held: row.held,
    reasons: row.reasons,
    createdAt: dateOrNull(row.created_at)!,
    startedAt: dateOrNull(row.started_at),
    finishedAt: dateOrNull(row.finished_at),
    error: row.error,
  };
}
