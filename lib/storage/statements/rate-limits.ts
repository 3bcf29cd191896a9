// Rate limits: how they are registered, and how tokens are taken outside of claims. See migrations/0001_initial/1_tokens.sql.
import { isMalformed, violates } from '../database.errors.js';
import { statement } from '../database.js';
import { inCall } from '../statement.js';
import { ms } from './job-columns.js';

export interface RateLimitRow {
  key: string;
  algorithm: 'fixed' | 'sliding' | 'bucket' | 'smooth';
  capacity: number;
  interval_ms: string;
  burst: number;
  available: number;
  refilled_at: number;
  blocked_until: number | null;
}

const limitColumns = `key, algorithm, capacity, interval_ms, burst, available, ${ms('refilled_at')} as refilled_at,
    ${ms('blocked_until')} as blocked_until`;

/**
 * $1 key, $2 algorithm, $3 capacity, $4 interval in ms or null, $5 interval as SQL text or null, $6 burst. What was taken stays
 * taken.
 */
export const registerRateLimit = statement<RateLimitRow>(
  'register_rate_limit',
  (schema) => `
  select ${limitColumns}
  from ${schema}.put_rate_limit($1::text, $2::text, $3::integer,
    coalesce($4::bigint, extract(epoch from $5::text::interval) * 1000)::bigint, $6::integer)`,
  { limited: true },
);

/** Whether PostgreSQL could not read the interval, or it is shorter than a millisecond. */
export const refusesInterval = (error: unknown): boolean =>
  violates(error, 'interval_is_positive') || isMalformed(error);

export interface TakenRow {
  known: boolean;
  burst: number;
  is_taken: boolean;
  retry_in_ms: number;
}

/** $1 key, $2 value of `by` or '', $3 how many, $4 whether to wait for the caller's lock_timeout. */
export const takeTokens = statement<TakenRow>(
  'take_tokens',
  (schema) => `select * from ${schema}.take_tokens($1::text, $2::text, $3::integer, $4::boolean)`,
  {
    limited: true,
    withinText: (schema) => `
  select t.* from (select where ${inCall(5)}) one
  cross join lateral ${schema}.take_tokens($1::text, $2::text, $3::integer, $4::boolean) t`,
  },
);

/** By key. $1 how many, $2 behind which key, or null. */
export const listRateLimits = statement<RateLimitRow>(
  'list_rate_limits',
  (schema) => `select ${limitColumns} from ${schema}.list_rate_limits($1::integer, $2::text)`,
  { repeatable: true, patient: true },
);

export interface LimitValueRow {
  by_value: string;
  available: number;
  enough_at: number;
  blocked_until: number | null;
}

/** Values of `by`, in order. $1 key, $2 how many, $3 behind which value, or null. */
export const listValuesOfLimit = statement<LimitValueRow>(
  'list_values_of_limit',
  (schema) => `
  select by_value, available, ${ms('enough_at')} as enough_at, ${ms('blocked_until')} as blocked_until
  from ${schema}.list_values_of_limit($1::text, $2::integer, $3::text)`,
  { repeatable: true, patient: true },
);

/** Whether the burst would take too long to come back. */
export const refusesBurst = (error: unknown): boolean => violates(error, 'burst_comes_back_in_time');

/** Forgets states of limits that have all their tokens back, so many at most, and blocks that are over. */
export const refillRateLimits = statement<{ refilled: number }>(
  'refill_rate_limits',
  (schema) => `select ${schema}.refill_rate_limits() as refilled`,
  { limited: true },
);
