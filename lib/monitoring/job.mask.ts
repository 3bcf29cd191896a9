// What events, and so the log, must not show: values that options name are replaced in payloads and results, and
// wherever else they turn up, such as the texts of errors. Handlers and the database never see a mask.
import type { JobEventFields } from '../interfaces/event.interface.js';
import type { ClaimedJob, Job } from '../interfaces/job.interface.js';
import type { Mask, MaskedPart } from '../interfaces/task.interface.js';

/** Stands in the place of what is masked. */
export const MASKED = '[masked]';
/** Shorter values turn up everywhere by chance: replacing them would make texts unreadable and hide nothing. */
const MIN_SECRET = 4;
const DEEPEST = 100;

type Fields = Partial<JobEventFields[keyof JobEventFields]> & { job?: Job };
type Replace = (text: string) => string;

interface MaskedJob {
  job: Job;
  secrets: Set<string>;
}

export class JobMask {
  /** A job is shown several times. */
  private readonly known = new WeakMap<Job, MaskedJob>();

  constructor(
    private readonly everywhere: Mask | undefined,
    private readonly maskOf: (task: string) => Mask | undefined,
  ) {}

  /** The fields of an event as they may be seen. */
  apply<T extends object>(fields: T): T {
    const { job } = fields as Fields;
    if (!job) return fields;
    const own = this.maskOf(job.task);
    if (this.everywhere === undefined && own === undefined) return fields;
    return this.mask(fields as Fields & { job: Job }, [this.everywhere, own]) as T;
  }

  private mask(fields: Fields & { job: Job }, masks: (Mask | undefined)[]): Fields {
    const { task } = fields.job;
    const { job, secrets: ofJob } = this.known.get(fields.job) ?? this.maskJob(fields.job, masks);
    const secrets = new Set(ofJob);
    const shown: Record<string, unknown> = { ...fields, job };
    if ('result' in shown) {
      shown.result = maskValue(shown.result, task, 'result', masks, secrets);
    }
    if ('partialResults' in shown) {
      shown.partialResults = maskValue(shown.partialResults, task, 'partialResults', masks, secrets);
    }
    const replace = replacing(secrets);
    if ('error' in shown) shown.error = maskError(shown.error, replace);
    if (typeof shown.reason === 'string') shown.reason = replace(shown.reason);
    return shown as Fields;
  }

  private maskJob(job: Job, masks: (Mask | undefined)[]): MaskedJob {
    const secrets = new Set<string>();
    const copy = { ...job, payload: maskValue(job.payload, job.task, 'payload', masks, secrets) };
    copy.progress = maskValue(job.progress, job.task, 'progress', masks, secrets);
    if ('previous' in copy) {
      (copy as ClaimedJob).previous = maskValue(copy.previous, job.task, 'partialResults', masks, secrets) as never;
    }
    if (copy.lastError !== null) copy.lastError = replacing(secrets)(copy.lastError);
    const masked = { job: copy, secrets };
    this.known.set(job, masked);
    return masked;
  }
}

function maskValue(
  value: unknown,
  task: string,
  part: MaskedPart,
  masks: (Mask | undefined)[],
  secrets: Set<string>,
): unknown {
  if (value === undefined || value === null) return value;
  const masked = masks.reduce<unknown>(
    (shown, mask) => (mask === undefined ? shown : applyMask(mask, shown, task, part)),
    value,
  );
  if (masked !== value) noteSecrets(value, new Set(leavesOf(masked)), secrets);
  return masked;
}

/** A mask that fails must not show what it was to hide. */
function applyMask(mask: Mask, value: unknown, task: string, part: MaskedPart): unknown {
  try {
    return typeof mask === 'function'
      ? mask(structuredClone(value), task, part)
      : withoutPaths(value, mask.map(stepsOf));
  } catch {
    return MASKED;
  }
}

const stepsOf = (path: string): string[] => path.split('.');

/**
 * A copy without what the paths name. A single name is masked wherever it stands, a dotted path counts from the top;
 * arrays are passed through.
 */
function withoutPaths(value: unknown, paths: string[][], top = true, depth = 0): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (depth > DEEPEST) return MASKED;
  if (Array.isArray(value)) return value.map((entry) => withoutPaths(entry, paths, top, depth + 1));
  const entries = Object.entries(value).map(([name, inner]) => {
    const begun = paths.filter(([first, ...rest]) => first === name && (top || rest.length === 0));
    if (begun.some(({ length }) => length === 1)) return [name, MASKED];
    const names = paths.filter(({ length }) => length === 1);
    const deeper = top ? begun.map(([, ...rest]) => rest) : [];
    return [name, withoutBoth(inner, names, deeper, depth + 1)];
  });
  // fromEntries defines "__proto__" like any other name.
  return Object.fromEntries(entries) as unknown;
}

/** `names` anywhere below, and what is left of dotted paths from here. */
function withoutBoth(value: unknown, names: string[][], rests: string[][], depth: number): unknown {
  const anywhere = withoutPaths(value, names, false, depth);
  return rests.length ? withoutPath(anywhere, rests, depth) : anywhere;
}

/** Paths that count from this very value. */
function withoutPath(value: unknown, paths: string[][], depth: number): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map((entry) => withoutPath(entry, paths, depth + 1));
  const entries = Object.entries(value).map(([name, inner]) => {
    const rests = paths.filter(([first]) => first === name).map(([, ...rest]) => rest);
    if (rests.some(({ length }) => length === 0)) return [name, MASKED];
    return [name, rests.length ? withoutPath(inner, rests, depth + 1) : inner];
  });
  return Object.fromEntries(entries) as unknown;
}

/** Texts and numbers that a value holds and its masked form does not. */
function noteSecrets(value: unknown, kept: Set<string>, secrets: Set<string>): void {
  for (const leaf of leavesOf(value)) if (leaf.length >= MIN_SECRET && !kept.has(leaf)) secrets.add(leaf);
}

function leavesOf(value: unknown, depth = 0): string[] {
  if (typeof value === 'string') return [value];
  if (typeof value === 'number' || typeof value === 'bigint') return [String(value)];
  if (typeof value !== 'object' || value === null || depth > DEEPEST) return [];
  return Object.values(value).flatMap((inner) => leavesOf(inner, depth + 1));
}

/** The longest first: one secret may be part of another. As JSON writes them, too. */
function replacing(secrets: Set<string>): Replace {
  const forms = [...secrets].flatMap((secret) => [secret, JSON.stringify(secret).slice(1, -1)]);
  const sorted = [...new Set(forms)].toSorted((a, b) => b.length - a.length);
  return (text) => sorted.reduce((shown, secret) => shown.replaceAll(secret, MASKED), text);
}

/** A copy of the same class, for `instanceof`, with nothing in it that is masked elsewhere. */
function maskError(error: unknown, replace: Replace, depth = 0): unknown {
  if (typeof error === 'string') return replace(error);
  if (typeof error !== 'object' || error === null) return error;
  if (depth > DEEPEST) return MASKED;
  try {
    if (!(error instanceof Error)) return maskTexts(error, replace, depth);
    const copy = Object.create(Object.getPrototypeOf(error) as object) as Record<string, unknown>;
    for (const name of new Set(['message', 'stack', ...Object.getOwnPropertyNames(error)])) {
      const value = maskError((error as unknown as Record<string, unknown>)[name], replace, depth + 1);
      const enumerable = Object.prototype.propertyIsEnumerable.call(error, name);
      Object.defineProperty(copy, name, { value, enumerable, writable: true, configurable: true });
    }
    return copy;
  } catch {
    return new Error(MASKED);
  }
}

/** Plain data only: requests, connections and the like, which errors carry along, hold anything. */
function maskTexts(value: object, replace: Replace, depth: number): unknown {
  if (Array.isArray(value)) return value.map((inner) => maskError(inner, replace, depth + 1));
  const prototype = Object.getPrototypeOf(value) as object | null;
  if (prototype !== null && prototype !== Object.prototype) return MASKED;
  return Object.fromEntries(
    Object.entries(value).map(([name, inner]) => [name, maskError(inner, replace, depth + 1)]),
  ) as unknown;
}
