// Rate limits outside of claims: registering them, taking their tokens, and what people see of them.
import type { QueryExecutor } from '../interfaces/job.interface.js';
import type {
  Page,
  PageRequest,
  RateLimit,
  RateLimitOptions,
  RateLimitValue,
  TokenOptions,
  TokensTaken,
} from '../interfaces/report.interface.js';
import { InvalidArgumentError, UnknownRateLimitError } from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import { retryOnContention, withLockRetries } from '../storage/retry.js';
import * as limits from '../storage/statements/rate-limits.js';
import { check, faultOf, option, refuseCall, required, section, type Rule } from '../validation.js';
import { MAX_MS, rules } from '../validation.rules.js';
import { toRateLimit, toRateLimitValue } from './job.mapper.js';
import type { NewsPublisher } from './news.publisher.js';
import { pageOf, readCursor, readPageRequest } from './page.js';
import { RateLimitWeightError } from './rate.errors.js';
import { tokenOptions } from './rate.limits.js';

const interval: Rule = (value) =>
  typeof value === 'number' ? rules.integer(1, MAX_MS)(value) : rules.name(value) && 'ms, or an SQL interval';

const registration = section({
  capacity: required(rules.positive),
  algorithm: option(rules.oneOf('fixed', 'sliding', 'bucket', 'smooth'), 'fixed'),
  interval: required(interval),
  burst: option<number | undefined>(rules.positive, undefined),
});

export class RateLimiter {
  constructor(
    private readonly database: Database,
    private readonly publisher: NewsPublisher,
    private readonly ambient: () => QueryExecutor | undefined,
  ) {}

  /** @throws InvalidArgumentError, RowsHeldError */
  async register(key: string, asked: RateLimitOptions): Promise<RateLimit> {
    check({ key: [key, rules.laneName] }, [registration, asked]);
    const { algorithm = 'fixed', capacity, interval: length, burst } = asked;
    if (burst !== undefined && algorithm !== 'bucket')
      throw new InvalidArgumentError([burstlessFault(algorithm, burst)]);
    const [ms, sql] = typeof length === 'number' ? [length, null] : [null, length];
    const most = algorithm === 'smooth' ? 1 : (burst ?? capacity);
    const { database } = this;
    const values = [key, algorithm, capacity, ms, sql, most];
    const rows = await retryOnContention(() => database.run(limits.registerRateLimit, values), database.isBound).catch(
      (error: unknown) => {
        throw faultOfInterval(error, asked) ?? error;
      },
    );
    await this.publisher.publish({ kind: 'all' });
    return toRateLimit(rows[0] as limits.RateLimitRow);
  }

  /** @throws InvalidArgumentError, UnknownRateLimitError, RowsHeldError */
  take(key: string, options: TokenOptions): Promise<TokensTaken> {
    check({ key: [key, rules.laneName] }, [tokenOptions, options]);
    const { by, weight = 1, manager } = options;
    const values = [key, by ?? '', weight];
    const { database } = this;
    // Before the first await: by then the caller may be in another transaction, or in none.
    const caller = database.join(manager ?? this.ambient());
    if (caller)
      return caller.during(() =>
        caller.inTurn(async () => this.read(key, weight, await this.run(values, true, caller))),
      );
    const isPatient = database.isBound;
    return retryOnContention(() => this.run(values, isPatient), isPatient).then((rows) => this.read(key, weight, rows));
  }

  async list(page: PageRequest | undefined): Promise<Page<RateLimit>> {
    const { limit, cursor } = readPageRequest(page);
    const [behind] = readCursor(cursor, (key) => rules.laneName(key) === null);
    const rows = await this.database.run(limits.listRateLimits, [limit + 1, behind]);
    return pageOf(rows, limit, toRateLimit, ({ key }) => [key]);
  }

  /** @throws InvalidArgumentError */
  async listValues(key: string, page: PageRequest | undefined): Promise<Page<RateLimitValue>> {
    check({ key: [key, rules.laneName] });
    const { limit, cursor } = readPageRequest(page);
    const [behind] = readCursor(cursor, (value) => rules.partition(value) === null);
    const rows = await this.database.run(limits.listValuesOfLimit, [key, limit + 1, behind]);
    return pageOf(rows, limit, toRateLimitValue, ({ by_value: by }) => [by]);
  }

  /** How many states were forgotten. */
  async refill(): Promise<number> {
    const { database } = this;
    const doing = withLockRetries(database.isBound);
    for (let total = 0; ;) {
      const [row] = await doing(() => database.run(limits.refillRateLimits, []));
      total += row?.refilled ?? 0;
      if ((row?.refilled ?? 0) < MAX_REFILLED) return total;
    }
  }

  private run(values: unknown[], isPatient: boolean, executor?: QueryExecutor): Promise<limits.TakenRow[]> {
    return this.database.run(limits.takeTokens, [...values, isPatient], executor);
  }

  private read(key: string, weight: number, [row]: limits.TakenRow[]): TokensTaken {
    if (!row?.known) throw new UnknownRateLimitError([key]);
    if (row.burst < weight) throw new RateLimitWeightError(key, weight, row.burst);
    return { ok: row.is_taken, retryInMs: row.is_taken ? 0 : Math.max(1, row.retry_in_ms) };
  }
}

/** Of one statement. */
const MAX_REFILLED = 1_000;

const burstlessFault = (algorithm: string, burst: number): string =>
  `Expected burst beside algorithm 'bucket' alone, got ${burst} beside '${algorithm}'.`;

/** Null: something else went wrong. */
function faultOfInterval(error: unknown, { interval: length, capacity, burst }: RateLimitOptions): Error | null {
  if (burst !== undefined && limits.refusesBurst(error)) {
    const fault = `Expected a burst that comes back within 1e12 ms, got ${burst} at ${capacity} in each ${length}.`;
    return new InvalidArgumentError([fault]);
  }
  if (!limits.refusesInterval(error) && !limits.refusesBurst(error)) return null;
  refuseCall(faultOf('interval', length, () => 'ms or an SQL interval, from 1 ms to 1e12 ms'));
  return null;
}
