// The algorithms of rate limits, beside a clock of the spec's own, against what is known of every take.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;

beforeAll(async () => {
  test = await createTestManager();
  // As claims do it: the state at a time, and the next state where there are enough tokens.
  await test.sql(`create function jobs.play(limit_key text, start timestamptz, offsets bigint[], weights integer[])
    returns table (nth bigint, granted boolean, enough_us numeric) language plpgsql as $$
    declare
      step record;
      state record;
      present timestamptz;
    begin
      delete from jobs.rate_limit_states;
      for step in select * from unnest(offsets, weights) with ordinality s(us, weight, nth) loop
        present := start + step.us * interval '1 microsecond';
        select t.* into state from jobs.tokens_of(limit_key, '', present) t;
        nth := step.nth;
        granted := state.tokens >= step.weight;
        enough_us := extract(epoch from jobs.enough_at(state.algorithm, state.at, state.counts, state.room, state.capacity,
          state.burst, state.interval_us, state.width_us, state.blocked_until, step.weight, present) - start) * 1000000;
        if granted then
          insert into jobs.rate_limit_states (key, by_value, number, at, counts, full_at)
          select limit_key, '', state.number + 1, s.at, s.counts, s.full_at from jobs.state_after(state.algorithm, state.at,
            state.counts, state.capacity, state.interval_us, state.width_us, step.weight) s;
        end if;
        return next;
      end loop;
    end $$;
    alter function jobs.play set search_path to jobs`);
}, 30_000);
afterAll(() => test.close());

interface Take {
  /** Microseconds since the start. */
  us: number;
  weight: number;
  granted: boolean;
  /** When there would be enough. */
  enoughUs: number;
}

interface Limit {
  algorithm: 'fixed' | 'sliding' | 'bucket' | 'smooth';
  capacity: number;
  intervalMs: number;
  burst: number;
}

async function play(limit: Limit, asked: { gapUs: number; weight: number }[]): Promise<Take[]> {
  const { algorithm, capacity, intervalMs, burst } = limit;
  const start = '2030-01-01 00:00:00+00';
  await test.sql(
    `insert into jobs.rate_limits (key, algorithm, capacity, interval_ms, burst, window_started_at)
     values ('l', $1, $2, $3, $4, $5) on conflict (key) do update
     set algorithm = $1, capacity = $2, interval_ms = $3, burst = $4, window_started_at = $5`,
    [algorithm, capacity, intervalMs, burst, start],
    'put limit',
  );
  let us = 0;
  const offsets = asked.map(({ gapUs }) => (us += gapUs));
  const rows = await test.sql<{ granted: boolean; enough_us: string }>(
    `select * from jobs.play('l', $1::timestamptz, $2::bigint[], $3::integer[]) order by nth`,
    [start, offsets, asked.map(({ weight }) => weight)],
    'play',
  );
  return rows.map(({ granted, enough_us: enough }, index) => ({
    us: offsets[index]!,
    weight: asked[index]!.weight,
    granted,
    enoughUs: Number(enough),
  }));
}

/** Limits, and what is asked of them: in bursts, at the edges of windows, and anywhere. */
const cases = (algorithm: Limit['algorithm']) =>
  fc
    .record({ capacity: fc.integer({ min: 1, max: 40 }), intervalMs: fc.constantFrom(1, 7, 100, 1_000, 3_600_000) })
    .chain(({ capacity, intervalMs }) => {
      const most =
        algorithm === 'bucket' ? fc.integer({ min: 1, max: 60 }) : fc.constant(algorithm === 'smooth' ? 1 : capacity);
      const us = intervalMs * 1_000;
      const twelfth = Math.ceil(us / 12);
      const gap = fc.oneof(
        { weight: 4, arbitrary: fc.constant(0) },
        { weight: 4, arbitrary: fc.integer({ min: 0, max: Math.ceil((3 * us) / capacity) }) },
        { weight: 2, arbitrary: fc.constantFrom(twelfth, twelfth - 1, us, us - 1, us + 1, Math.floor(us / capacity)) },
        { weight: 1, arbitrary: fc.integer({ min: 0, max: 3 * us }) },
      );
      return most.chain((burst) =>
        fc.record({
          limit: fc.constant({ algorithm, capacity, intervalMs, burst }),
          asked: fc.array(
            fc.record({ gapUs: gap, weight: fc.oneof(fc.constant(1), fc.integer({ min: 1, max: burst })) }),
            { minLength: 1, maxLength: 120 },
          ),
        }),
      );
    });

const granted = (takes: Take[]): Take[] => takes.filter((take) => take.granted);
const sumOf = (takes: Take[]): number => takes.reduce((sum, { weight }) => sum + weight, 0);
const check = (algorithm: Limit['algorithm'], expectOf: (limit: Limit, takes: Take[]) => void): Promise<void> =>
  fc.assert(
    fc.asyncProperty(cases(algorithm), async ({ limit, asked }) => expectOf(limit, await play(limit, asked))),
    { numRuns: 150 },
  );

describe('a fixed window', () => {
  it('grants what its capacity holds, and nothing more', () =>
    check('fixed', ({ capacity, intervalMs }, takes) => {
      const taken = new Map<number, number>();
      for (const { us, weight, granted: isGranted, enoughUs } of takes) {
        const window = Math.floor(us / (intervalMs * 1_000));
        const before = taken.get(window) ?? 0;
        expect(isGranted).toBe(before + weight <= capacity);
        expect(enoughUs).toBe(isGranted ? us : (window + 1) * intervalMs * 1_000);
        if (isGranted) taken.set(window, before + weight);
      }
    }));
});

describe('a sliding window', () => {
  it('is never exceeded in any interval of its length', () =>
    check('sliding', ({ capacity, intervalMs }, takes) => {
      const all = granted(takes);
      for (const [index, last] of all.entries()) {
        const within = all.slice(0, index + 1).filter(({ us }) => us > last.us - intervalMs * 1_000);
        expect(sumOf(within)).toBeLessThanOrEqual(capacity);
      }
    }));

  it('refuses nothing that a window longer by a twelfth has room for', () =>
    check('sliding', ({ capacity, intervalMs }, takes) => {
      const twelfth = Math.ceil((intervalMs * 1_000) / 12);
      for (const [index, { us, weight, granted: isGranted }] of takes.entries()) {
        const within = granted(takes.slice(0, index)).filter((take) => take.us > us - 13 * twelfth);
        expect(isGranted || sumOf(within) + weight > capacity).toBe(true);
      }
    }));
});

describe.each(['bucket', 'smooth'] as const)('%s', (algorithm) => {
  it('grants exactly what the rate lets in', () =>
    check(algorithm, ({ capacity, intervalMs, burst }, takes) => {
      const [rate, interval, most] = [BigInt(capacity), BigInt(intervalMs) * 1_000n, BigInt(burst)];
      const cost = (weight: number): bigint => (BigInt(weight) * interval + rate - 1n) / rate;
      let full = 0n;
      for (const { us, weight, granted: isGranted } of takes) {
        const now = BigInt(us);
        const from = full > now ? full : now;
        // tat + weight × interval / capacity − now ≤ burst × interval / capacity, without a division.
        expect(isGranted).toBe((from - now) * rate + BigInt(weight) * interval <= most * interval);
        if (isGranted) full = from + cost(weight);
      }
    }));

  it('never grants more than its burst and what comes back in any stretch of time', () =>
    check(algorithm, ({ capacity, intervalMs, burst }, takes) => {
      const all = granted(takes);
      for (const [index, last] of all.entries()) {
        for (const [from, first] of all.slice(0, index + 1).entries()) {
          const came = ((last.us - first.us) * capacity) / (intervalMs * 1_000);
          expect(sumOf(all.slice(from, index + 1))).toBeLessThanOrEqual(burst + came + 1e-6);
        }
      }
    }));
});

describe.each(['fixed', 'sliding', 'bucket', 'smooth'] as const)('what %s refuses', (algorithm) => {
  it('is granted at the time that it names, and not a microsecond earlier', () =>
    fc.assert(
      fc.asyncProperty(cases(algorithm), async ({ limit, asked }) => {
        const takes = await play(limit, asked);
        const index = takes.findIndex((take) => !take.granted);
        if (index < 0) return;
        const { us, enoughUs } = takes[index]!;
        const upto = asked.slice(0, index);
        const again = async (at: number): Promise<boolean> =>
          (await play(limit, [...upto, { gapUs: at - (takes[index - 1]?.us ?? 0), weight: asked[index]!.weight }]))[
            index
          ]!.granted;
        expect(enoughUs).toBeGreaterThan(us);
        expect([await again(enoughUs - 1), await again(enoughUs)]).toEqual([false, true]);
      }),
      { numRuns: 60 },
    ));
});
