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
 * $1 key, $2 capacity, $3 interval in ms or null, $4 interval as SQL text or null. What has been taken in the current
 * window stays taken, so a smaller capacity clamps and a larger one adds the difference.
 */
export const registerRateLimit = statement<RateLimitRow>(
  'register_rate_limit',
  (schema) => `
  with registered as (
    insert into ${schema}.rate_limits as r (key, capacity, interval_ms, window_started_at)
    values ($1, $2::integer, coalesce($3::bigint, extract(epoch from $4::text::interval) * 1000), clock_timestamp())
    on conflict (key) do update set capacity = excluded.capacity, interval_ms = excluded.interval_ms
    returning *
  )
  select r.key, r.capacity, r.interval_ms,
    greatest(0, r.capacity - case when w.started_at + r.interval_ms * interval '1 ms' > clock_timestamp() then w.taken else 0 end)
      as available,
    ${ms('coalesce(w.started_at, r.window_started_at)')} as window_started_at
  from registered r left join lateral (
    select * from ${schema}.rate_limit_windows w where w.key = r.key order by w.number desc limit 1
  ) w on true`,
);

/** Whether PostgreSQL could not read the interval, or it is shorter than a millisecond. */
export const refusesInterval = (error: unknown): boolean =>
  violates(error, 'interval_is_positive') || isMalformed(error);

/** Starts the next window of the limits whose window has passed. */
export const refillRateLimits = statement<{ refilled: number }>(
  'refill_rate_limits',
  (schema) => `select ${schema}.refill_rate_limits() as refilled`,
  { prompt: true },
);
