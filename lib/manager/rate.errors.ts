// How rate limits refuse jobs, and what a handler throws where another service is asked too often.
import { InvalidArgumentError, JobsError } from '../jobs.errors.js';

/** More tokens are asked for than the rate limit ever has at once; nothing was inserted, and no token was taken. */
export class RateLimitWeightError extends InvalidArgumentError {
  override readonly code = 'ERR_JOBS_RATE_LIMIT_WEIGHT';

  constructor(
    readonly key: string,
    readonly weight: number,
    /** The limit's burst, which for fixed and sliding windows is its capacity. */
    readonly most: number,
  ) {
    super([
      `Expected a weight of at most ${most} for rate limit "${key}", which never has more tokens at once, got ${weight}. ` +
        'Ask for less, or raise the capacity, or the burst, with registerRateLimit.',
    ]);
  }
}

/**
 * Throw it in a handler where another service says that it is asked too often: nothing takes tokens of the job's rate limits for
 * so long, in any process, and the job comes back then without using up an attempt. A job without rate limits only comes back.
 *
 * @example
 * if (response.status === 429) throw new RateLimitedError({ retryAfterMs: 30_000 });
 */
export class RateLimitedError extends JobsError {
  readonly code = 'ERR_JOBS_RATE_LIMITED';
  readonly retryAfterMs: number;
  /** The rate limit that is blocked; null: all those of the job. */
  readonly key: string | null;
  /** For which value; null: as the job says it, or for all. */
  readonly by: string | null;

  /** `retryAfterMs` must be a number from 0 to 1e12: else the job fails as by any other error. */
  constructor(limited: { retryAfterMs: number; key?: string | undefined; by?: string | undefined }) {
    const { retryAfterMs, key, by } = limited;
    super(`Rate limited: try again in ${retryAfterMs} ms.`);
    this.retryAfterMs = retryAfterMs;
    this.key = key ?? null;
    this.by = by ?? null;
  }
}
