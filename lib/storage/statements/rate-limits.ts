// Rate limits: at most `capacity` claims in each fixed window, by the database's clock.
import { isMalformed, violates } from '../database.errors.js';
import { statement } from '../database.js';
import { ms } from './job-columns.js';

export interface RateLimitRow {
  key: string;
  capacity: number;
  interval_ms: string;
  available: number;
  window_started_at: number;
}

/** $1 key, $2 capacity, $3 interval in ms or null, $4 interval as SQL text or null. Keeps the current window. */
export const registerRateLimit = statement<RateLimitRow>(
  'register_rate_limit',
  (schema) => `
  select key, capacity, interval_ms, available, ${ms('window_started_at')} as window_started_at
  from ${schema}.put_rate_limit($1::text, $2::integer,
    coalesce($3::bigint, extract(epoch from $4::text::interval) * 1000)::bigint)`,
  { limited: true },
);

/** Whether PostgreSQL could not read the interval, or it is shorter than a millisecond. */
export const refusesInterval = (error: unknown): boolean =>
  violates(error, 'interval_is_positive') || isMalformed(error);

/** Starts the next window of the limits whose window has passed. */
export const refillRateLimits = statement<{ refilled: number }>(
  'refill_rate_limits',
  (schema) => `select ${schema}.refill_rate_limits() as refilled`,
  { limited: true },
);
