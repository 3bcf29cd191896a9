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

/**
 * $1 key, $2 capacity, $3 interval in ms or null, $4 interval as SQL text or null. Keeps the current window; tokens
 * are clamped to a smaller capacity, and a larger one adds the difference.
 */
export const registerRateLimit = statement<RateLimitRow>(
  'register_rate_limit',
  (schema) => `
  with registered as (
    insert into ${schema}.rate_limits as r (key, capacity, interval_ms, available, window_started_at)
    values ($1, $2::integer, coalesce($3::bigint, extract(epoch from $4::text::interval) * 1000), $2::integer,
      clock_timestamp())
    on conflict (key) do update set capacity = excluded.capacity, interval_ms = excluded.interval_ms,
      available = least(excluded.capacity, greatest(0, r.available + greatest(0, excluded.capacity - r.capacity)))
    returning *
  )
  select key, capacity, interval_ms, available, ${ms('window_started_at')} as window_started_at from registered`,
);

/** Whether PostgreSQL could not read the interval, or it is shorter than a millisecond. */
export const refusesInterval = (error: unknown): boolean =>
  violates(error, 'interval_is_positive') || isMalformed(error);

/**
 * Refills the limits whose window has passed and lets their waiting jobs in; tells idle pools so ($1: the channel). Returns
 * also when the next window begins that somebody waits for. The statement itself is the function of migration 7, which
 * pins its plan.
 */
export const refillRateLimits = statement<{ refilled: number; promoted: number; retry_in_ms: number | null }>(
  'refill_rate_limits',
  (schema) => `select * from ${schema}.refill_rate_limits($1::text)`,
  { prompt: true },
);
