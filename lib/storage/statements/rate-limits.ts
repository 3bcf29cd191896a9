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
 * Starts the next window of every limit whose window has passed and brings as many of its waiting jobs back into the
 * claims' range as there are tokens; tells idle pools so ($1: the channel). Returns also when the next window of a
 * limit begins that somebody waits for. `skip locked`: whoever holds a row is doing the same, or claims and will see to
 * it. As with queues, the mark that somebody waits is cleared only when it is older than any running statement.
 * Index: jobs_waiting_for_tokens.
 */
export const refillRateLimits = statement<{ refilled: number; promoted: number; retry_in_ms: number | null }>(
  'refill_rate_limits',
  (schema) => `
  with due as materialized (
    select key, capacity, parked_at, window_started_at + floor(
      extract(epoch from clock_timestamp() - window_started_at) * 1000 / interval_ms
    ) * interval_ms * interval '1 ms' as started_at
    from ${schema}.rate_limits
    where clock_timestamp() >= window_started_at + interval_ms * interval '1 ms'
      and (parked_at is not null or available < capacity)
    order by key for update skip locked
  ),
  heads as materialized (
    select waiting.id, due.key
    from due cross join lateral (
      select j.id from ${schema}.jobs j
      where j.parked = 'tokens' and j.rate_limit_key = due.key
      order by j.priority, j.run_at, j.id
      limit due.capacity
      for update skip locked
    ) waiting
    where due.parked_at is not null
  ),
  promoted as (
    update ${schema}.jobs j set parked = null from heads where j.id = heads.id
  ),
  refilled as (
    update ${schema}.rate_limits r
    set available = due.capacity, window_started_at = due.started_at,
      parked_at = case
        when due.parked_at < statement_timestamp() - interval '1 min'
          and due.capacity > (select count(*) from heads where heads.key = due.key) then null
        else due.parked_at
      end
    from due where r.key = due.key
    returning r.key
  )
  select (select count(*)::integer from refilled) as refilled, (select count(*)::integer from heads) as promoted,
    (
      select min(${ms("coalesce(due.started_at, r.window_started_at) + r.interval_ms * interval '1 ms' - clock_timestamp()")})
      from ${schema}.rate_limits r left join due using (key) where r.parked_at is not null
    ) as retry_in_ms,
    (select pg_notify($1::text, '') from heads limit 1) as announced`,
  { prompt: true },
);
