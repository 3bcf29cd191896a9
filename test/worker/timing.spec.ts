// Times that users choose may be longer than the 24.8 days of a timer of Node, which fires at once beyond that.
import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import { WaitTimeoutError } from '../../lib/index.js';
import { JobWaiter } from '../../lib/manager/job.waiter.js';
import { after, settledWithin } from '../../lib/timing.js';

const DAY_MS = 86_400_000;
const never = new Promise<never>(() => undefined);

describe('a time of 30 days', () => {
  beforeEach(() => void jest.useFakeTimers());
  afterEach(() => void jest.useRealTimers());

  it('is waited for to its end, and called once', async () => {
    const work = jest.fn();
    after(30 * DAY_MS, work);
    await jest.advanceTimersByTimeAsync(30 * DAY_MS - 1);
    expect(work).not.toHaveBeenCalled();
    await jest.advanceTimersByTimeAsync(2);
    await jest.advanceTimersByTimeAsync(60 * DAY_MS);
    expect(work).toHaveBeenCalledTimes(1);
  });

  it('can be ended, also after a part of it', async () => {
    const work = jest.fn();
    const end = after(60 * DAY_MS, work);
    await jest.advanceTimersByTimeAsync(40 * DAY_MS);
    end();
    await jest.advanceTimersByTimeAsync(40 * DAY_MS);
    expect(work).not.toHaveBeenCalled();
    expect(jest.getTimerCount()).toBe(0);
  });

  it('without an end takes no timer', () => {
    after(Infinity, () => undefined)();
    expect(jest.getTimerCount()).toBe(0);
  });

  it('is what a stopping pool gives its jobs', async () => {
    let ended: boolean | undefined;
    void settledWithin(30 * DAY_MS, never).then((within) => (ended = within));
    await jest.advanceTimersByTimeAsync(29 * DAY_MS);
    expect(ended).toBeUndefined();
    await jest.advanceTimersByTimeAsync(2 * DAY_MS);
    expect(ended).toBe(false);
  });

  it('is what waitForJob waits, and no longer', async () => {
    const waiter = new JobWaiter({ run: () => never } as never, undefined);
    let failure: unknown;
    void waiter.wait('x', { timeoutMs: 30 * DAY_MS }).catch((error: unknown) => (failure = error));
    await jest.advanceTimersByTimeAsync(29 * DAY_MS);
    expect(failure).toBeUndefined();
    await jest.advanceTimersByTimeAsync(2 * DAY_MS);
    expect(failure).toBeInstanceOf(WaitTimeoutError);
  });
});
