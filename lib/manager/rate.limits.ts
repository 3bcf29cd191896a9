// The rate limits of a job: what may be asked for, and the one text by which rows and lanes name them: limits, sorted, with \x1e
// between them; each a key, or key \x1d by \x1d weight. limits_of of 1_tokens.sql reads it.
import type { Limited, Outcome } from '../interfaces/claim.interface.js';
import type { AddJobOptions, JobRateLimit, RateLimitUse } from '../interfaces/job.interface.js';
import type { TaskOptions, TaskRateLimit } from '../interfaces/task.interface.js';
import { InvalidArgumentError } from '../jobs.errors.js';
import { faultOf, isRecord, option, refuseCall, required, section, type Option, type Rule } from '../validation.js';
import { INT4_MAX, rules } from '../validation.rules.js';
import type { RateLimitedError } from './rate.errors.js';

const BETWEEN_LIMITS = '\x1e';
const WITHIN_LIMIT = '\x1d';
const MAX_LIMITS = 3;
/** Beside the longest names of a queue and a partition, an index holds no more. */
const MAX_BYTES = 1_000;

type Asked = string | TaskRateLimit | (string | TaskRateLimit)[];

const by = rules.optional(rules.partition);
const byOrFunction: Rule = (value) => {
  const expected = typeof value === 'function' ? null : by(value);
  return expected && `${expected}, or a function of the payload`;
};
const weight = rules.integer(1, INT4_MAX);

const limitWith = (byRule: Rule): Option<unknown> =>
  section({
    key: required(rules.laneName),
    by: option<any>(byRule, undefined),
    weight: option<any>(weight, undefined),
  });

const EXPECTED = `the key of a rate limit, an object { key, by, weight }, or an array of 1 to ${MAX_LIMITS} of them`;

/** One or several limits: keys, or objects. */
function limitsWith(byRule: Rule): Option<any> {
  const limit = limitWith(byRule);
  const checkOne = (value: unknown, path: string): string[] =>
    isRecord(value) ? limit.check(value, path) : faultOf(path, value, (key) => rules.laneName(key) && EXPECTED);
  const check = (value: unknown, path: string): string[] => {
    if (value === undefined || value === null) return [];
    if (Array.isArray(value) && (!value.length || value.length > MAX_LIMITS))
      return faultOf(path, value, () => EXPECTED);
    const faults = Array.isArray(value)
      ? value.flatMap((one, index) => checkOne(one, `${path}[${index}]`))
      : checkOne(value, path);
    return faults.length ? faults : textFaults(value as Asked, path);
  };
  return { check, read: (value: unknown) => value, paths: [] };
}

/** The `rateLimit` of a job. */
export const jobLimits = limitsWith(by);

/** The `rateLimit` of a task. */
export const taskLimits = limitsWith(byOrFunction);

/** As takeTokens takes them. */
export const tokenOptions = section({
  by: option<any>(by, undefined),
  weight: option<any>(weight, undefined),
  manager: option<any>(rules.executor, undefined),
});

/** What is asked for twice, or too long. */
function textFaults(asked: Asked, path: string): string[] {
  const uses = usesOf(asked).map((use) => ({ ...use, by: typeof use.by === 'function' ? null : use.by }));
  const isPending = usesOf(asked).some((use) => typeof use.by === 'function');
  const names = uses.map(nameOf);
  const again = isPending ? undefined : names.find((name, index) => names.indexOf(name) < index);
  if (again !== undefined) return [`Expected each limit of ${path} once, got "${again.split(WITHIN_LIMIT)[0]}" twice.`];
  const bytes = Buffer.byteLength(uses.map(toText).join(BETWEEN_LIMITS));
  return bytes > MAX_BYTES
    ? [`Expected the keys and values of ${path} to be at most ${MAX_BYTES} bytes together, got ${bytes}.`]
    : [];
}

type Use = { key: string; by: Exclude<TaskRateLimit['by'], undefined>; weight: number };

const usesOf = (asked: Asked): Use[] =>
  (Array.isArray(asked) ? asked : [asked]).map((one) =>
    typeof one === 'string'
      ? { key: one, by: null, weight: 1 }
      : { key: one.key, by: one.by ?? null, weight: one.weight ?? 1 },
  );

const nameOf = ({ key, by }: Pick<RateLimitUse, 'key' | 'by'>): string => `${key}${WITHIN_LIMIT}${by ?? ''}`;

const toText = (use: RateLimitUse): string =>
  use.by === null && use.weight === 1 ? use.key : `${nameOf(use)}${WITHIN_LIMIT}${use.weight}`;

/** Null: a job without limits. */
export function textOfLimits(uses: RateLimitUse[]): string | null {
  if (!uses.length) return null;
  if (uses.length === 1) return toText(uses[0]!);
  const texts = uses.map(toText).sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  return texts.join(BETWEEN_LIMITS);
}

export function limitsOfText(text: string | null | undefined): RateLimitUse[] {
  if (!text) return [];
  return text.split(BETWEEN_LIMITS).map((limit) => {
    const [key = '', by = '', weight = '1'] = limit.split(WITHIN_LIMIT);
    return { key, by: by || null, weight: Number(weight) };
  });
}

/** Of the first one. */
export const keyOfLimits = (text: string | null | undefined): string | null => limitsOfText(text)[0]?.key ?? null;

/** What an add asks for, apart from the caller's objects: its text, or what waits for the payload. */
export interface AskedLimits {
  limits: string | null;
  limitsBy: Use[] | null;
}

export function askedLimits(options: AddJobOptions, defaults: TaskOptions): AskedLimits {
  const own = options.rateLimit === undefined ? options.rateLimitKey : options.rateLimit;
  const asked = own === undefined ? (defaults.rateLimit ?? defaults.rateLimitKey) : own;
  if (asked === undefined || asked === null) return NONE;
  if (typeof asked === 'string') return { limits: asked, limitsBy: null };
  const uses = usesOf(asked as Asked);
  if (uses.some((use) => typeof use.by === 'function')) return { limits: null, limitsBy: uses };
  return { limits: textOfLimits(uses as RateLimitUse[]), limitsBy: null };
}

const NONE: AskedLimits = { limits: null, limitsBy: null };

/** Of functions of the payload. @throws InvalidArgumentError */
export function limitsByPayload(uses: Use[], task: string, stored: () => unknown): string | null {
  const named = uses.map((use) => ({ ...use, by: typeof use.by === 'function' ? (use.by(stored()) ?? null) : use.by }));
  for (const { key, by: value } of named)
    refuseCall(faultOf(`the value of rate limit "${key}" that task "${task}" names`, value, by));
  const faults = textFaults(named, `rateLimit of task "${task}"`);
  if (faults.length) throw new InvalidArgumentError(faults);
  return textOfLimits(named as RateLimitUse[]);
}

/** Of the options of a job and of a task. */
export const limitConflicts = (options: { rateLimit?: unknown; rateLimitKey?: unknown }, path: string): string[] =>
  (options.rateLimit ?? undefined) !== undefined && options.rateLimitKey !== undefined
    ? [`Expected ${path}rateLimit or rateLimitKey, got both.`]
    : [];

/** As an option of a job that is added again. */
export const limitsAsOption = (uses: RateLimitUse[]): { rateLimit?: JobRateLimit[] } =>
  uses.length ? { rateLimit: uses } : {};

/** What a statement has refused: see refused_limits of 1_tokens.sql. */
export function readRefused(text: string): { key: string; weight: number; most: number } | string {
  const [key = '', weight, most] = text.split(WITHIN_LIMIT);
  return weight === undefined ? key : { key, weight: Number(weight), most: Number(most) };
}

/** What a RateLimitedError says: of another copy of the package, too. Null: it is none, or says nothing that can be stored. */
export function readLimited(error: unknown): (Outcome & { kind: 'snoozed' }) | null {
  const { code, retryAfterMs, key = null, by: value = null } = Object(error) as Partial<RateLimitedError>;
  if (code !== 'ERR_JOBS_RATE_LIMITED') return null;
  if (rules.duration(retryAfterMs) ?? rules.optional(rules.laneName)(key) ?? by(value)) return null;
  return { kind: 'snoozed', delayMs: retryAfterMs!, error, limited: { key, by: value } };
}

/** What is blocked: all limits of the job, or those of the key, for the value or all that the job names; else the key itself. */
export function blocksOf(uses: RateLimitUse[], { key, by: value }: Limited): { key: string; by_value: string }[] {
  const own = uses.filter((use) => (key === null || use.key === key) && (value === null || use.by === value));
  const blocked = own.length || key === null ? own : [{ key, by: value }];
  return blocked.map((one) => ({ key: one.key, by_value: one.by ?? '' }));
}
