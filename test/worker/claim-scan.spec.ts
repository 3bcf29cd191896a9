// Where claims of plain jobs begin to read: without a database, by what they are told.
import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import type { CursorPosition, PlainClaimResult } from '../../lib/interfaces/claim.interface.js';
import { ClaimScan } from '../../lib/worker/claim.scan.js';

const at = (priority: number): CursorPosition => ({ priority, runAt: '2026-01-01T00:00:00Z', id: `id ${priority}` });
const result = (cursor: CursorPosition[], rest: Partial<PlainClaimResult> = {}): PlainClaimResult => ({
  jobs: [],
  more: true,
  cursor,
  quiet: null,
  claimedAt: Date.now(),
  passed: [],
  isCut: false,
  pausedUntil: null,
  ...rest,
});

beforeEach(() => void jest.useFakeTimers());
afterEach(() => void jest.useRealTimers());

function scanOf(...priorities: number[]): ClaimScan {
  const scan = new ClaimScan();
  scan.next();
  scan.learn(result(priorities.map(at)), 1, 10);
  return scan;
}

const prioritiesOf = (scan: ClaimScan): number[] => scan.next().cursor.map(({ priority }) => priority);

describe('a priority that was told of', () => {
  it('is read from its start by the next claim, the others from where they were', () => {
    const scan = scanOf(-10, 0);
    expect(prioritiesOf(scan)).toEqual([-10, 0]);
    scan.noteDue([-10]);
    expect(prioritiesOf(scan)).toEqual([0]);
    scan.learn(result([at(0)]), 1, 10);
    expect(prioritiesOf(scan)).toEqual([-10, 0]);
  });

  it('while a claim is under way is read from its start by the next one', () => {
    const scan = new ClaimScan();
    scan.next();
    scan.noteDue([0]);
    scan.learn(result([at(0)]), 1, 10);
    expect(prioritiesOf(scan)).toEqual([]);
  });

  it('is read from its start no more often than is affordable, and then without being told again', () => {
    const scan = scanOf(0);
    scan.noteDue([0]);
    expect(prioritiesOf(scan)).toEqual([]);
    scan.learn(result([at(0)]), 10, 10);
    scan.noteDue(null);
    expect(prioritiesOf(scan)).toEqual([0]);
    jest.advanceTimersByTime(1_000);
    expect(prioritiesOf(scan)).toEqual([]);
  });
});

it('priorities are quiet until the database’s clock says otherwise, whatever this process takes the time to be', () => {
  const ahead = Date.now() + 3_600_000;
  const scan = new ClaimScan();
  scan.next();
  scan.learn(result([], { claimedAt: ahead, quiet: { after: 0, upto: 30, until: ahead + 4_000 } }), 1, 10);
  expect(scan.next().quiet).not.toBeNull();
  jest.advanceTimersByTime(4_100);
  expect(scan.next().quiet).toBeNull();
});

describe('while claims come back full, what was released behind the position', () => {
  it('is looked for every other second', () => {
    const scan = scanOf(0);
    expect(prioritiesOf(scan)).toEqual([0]);
    scan.learn(result([at(0)]), 1, 10);
    jest.advanceTimersByTime(2_100);
    expect(prioritiesOf(scan)).toEqual([]);
  });

  it('is looked for in one per cent of the time, and every half minute at least', () => {
    const scan = new ClaimScan();
    scan.next();
    scan.learn(result([at(0)]), 100, 10);
    jest.advanceTimersByTime(9_000);
    expect(prioritiesOf(scan)).toEqual([0]);
    scan.learn(result([at(0)]), 100, 10);
    jest.advanceTimersByTime(2_000);
    expect(prioritiesOf(scan)).toEqual([]);
    scan.learn(result([at(0)]), 10_000, 10);
    jest.advanceTimersByTime(31_000);
    expect(prioritiesOf(scan)).toEqual([]);
  });
});
