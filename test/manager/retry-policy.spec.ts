import { afterEach, describe, expect, it, jest } from '@jest/globals';
import { createWorkerPool, type RetryFunction, type RetryOptions } from '../../lib/index.js';
import { retryDelayMs } from '../../lib/manager/retry.policy.js';

const settings = { baseDelayMs: 1_000, multiplier: 2, maxDelayMs: 3_600_000, jitter: 0 };

describe('the delay before a retry', () => {
  it.each<[string, number, RetryOptions, number]>([
    ['no base delay, at first', 1, { baseDelayMs: 0 }, 0],
    ['no base delay, after so many attempts that the power is infinite', 5_000, { baseDelayMs: 0, jitter: 1 }, 0],
    ['a base delay, after so many attempts that the power is infinite', 5_000, {}, 3_600_000],
    ['no growth', 30_000, { multiplier: 1 }, 1_000],
    ['no maximum delay', 3, { maxDelayMs: 0 }, 0],
    ['an undefined part', 2, { baseDelayMs: undefined, multiplier: 3 }, 3_000],
  ])('is a number with %s', (_what, attempt, policy, delay) => {
    expect(retryDelayMs(attempt, new Error('x'), settings, policy)).toBe(delay);
  });
});

describe('a retry function', () => {
  afterEach(() => void jest.restoreAllMocks());
  const warnings = (): string[] => {
    const seen: string[] = [];
    jest.spyOn(process, 'emitWarning').mockImplementation((warning) => void seen.push(String(warning)));
    return seen;
  };

  it('that is async is refused where it is declared', () => {
    const retry = (async () => 5) as unknown as RetryFunction;
    expect(() =>
      createWorkerPool({ jobs: { engine: {} } as never, tasks: { a: { handler: () => 1, retry } } }),
    ).toThrow('tasks["a"]: Expected retry to be a function that returns at once, got an async function.');
  });

  it.each<[string, () => unknown, RegExp]>([
    ['a promise', () => Promise.resolve(5), /got a promise/],
    ['a promise that rejects', () => Promise.reject(new Error('unheard')), /got a promise/],
    ['no number', () => NaN, /got NaN/],
    ['a text', () => '5s', /got "5s"/],
  ])('that answers %s is warned of once, and the default applies', async (_what, answer, reason) => {
    const seen = warnings();
    const policy = answer as RetryFunction;
    expect(retryDelayMs(1, new Error('x'), settings, policy)).toBe(1_000);
    expect(retryDelayMs(2, new Error('x'), settings, policy)).toBe(2_000);
    expect(seen).toEqual([expect.stringMatching(reason)]);
  });
});
