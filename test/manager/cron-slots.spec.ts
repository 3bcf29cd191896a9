import { describe, expect, it } from '@jest/globals';
import { isSchedule, isTimeZone, lastSlotBetween, nextSlot, slotsBetween } from '../../lib/manager/cron.slots.js';

const at = (text: string): number => Date.parse(text);
const iso = (slots: number[]): string[] => slots.map((slot) => new Date(slot).toISOString().replace('.000Z', 'Z'));
const between = (schedule: string, timeZone: string, from: string, to: string): string[] =>
  iso(slotsBetween(schedule, timeZone, at(from), at(to)));

describe('the slots of a crontab', () => {
  it('begin after the first moment and include the last one', () => {
    expect(between('*/20 * * * *', 'UTC', '2026-01-01T10:20:00Z', '2026-01-01T11:00:00Z')).toEqual([
      '2026-01-01T10:40:00Z',
      '2026-01-01T11:00:00Z',
    ]);
  });

  it('may be a second apart, where there are six fields', () => {
    expect(between('*/2 * * * * *', 'UTC', '2026-01-01T10:00:00.500Z', '2026-01-01T10:00:05Z')).toEqual([
      '2026-01-01T10:00:02Z',
      '2026-01-01T10:00:04Z',
    ]);
  });

  it('go by the clocks of the time zone', () => {
    const [from, to] = ['2026-01-01T00:00:00Z', '2026-01-02T00:00:00Z'];
    expect(between('0 8 * * *', 'Europe/Berlin', from, to)).toEqual(['2026-01-01T07:00:00Z']);
    expect(between('0 8 * * *', 'Asia/Kolkata', from, to)).toEqual(['2026-01-01T02:30:00Z']);
    expect(between('0 8 * * *', 'America/New_York', from, to)).toEqual(['2026-01-01T13:00:00Z']);
  });

  it('can be limited in number', () => {
    expect(slotsBetween('* * * * *', 'UTC', at('2026-01-01'), at('2027-01-01'), 3)).toHaveLength(3);
  });

  it('on February 29 come in leap years only', () => {
    expect(between('0 0 29 2 *', 'UTC', '2021-01-01T00:00:00Z', '2029-01-01T00:00:00Z')).toEqual([
      '2024-02-29T00:00:00Z',
      '2028-02-29T00:00:00Z',
    ]);
  });

  it('on day 31 come in months that have one', () => {
    const months = between('0 12 31 * *', 'Europe/Berlin', '2026-01-01T00:00:00Z', '2027-01-01T00:00:00Z');
    expect(months.map((slot) => slot.slice(5, 7))).toEqual(['01', '03', '05', '07', '08', '10', '12']);
  });

  it('come on either day, where day of the month and day of the week are both restricted', () => {
    const days = between('0 0 13 * 5', 'UTC', '2026-01-01T00:00:00Z', '2026-01-20T00:00:00Z');
    expect(days.map((slot) => slot.slice(8, 10))).toEqual(['02', '09', '13', '16']);
  });
});

describe('when the clocks go forward, a slot in the skipped hour', () => {
  const berlin: [string, string] = ['2026-03-28T12:00:00Z', '2026-03-30T12:00:00Z']; // 02:00 → 03:00 on March 29
  const newYork: [string, string] = ['2026-03-07T12:00:00Z', '2026-03-09T12:00:00Z']; // 02:00 → 03:00 on March 8

  it('fires once, at that moment', () => {
    expect(between('30 2 * * *', 'Europe/Berlin', ...berlin)).toEqual(['2026-03-29T01:00:00Z', '2026-03-30T00:30:00Z']);
    expect(between('30 2 * * *', 'America/New_York', ...newYork)).toEqual([
      '2026-03-08T07:00:00Z',
      '2026-03-09T06:30:00Z',
    ]);
  });

  it('fires once for all slots of that hour, and for one that falls on its end', () => {
    const day = between('*/15 2,3 * * *', 'Europe/Berlin', '2026-03-28T12:00:00Z', '2026-03-29T12:00:00Z');
    expect(day).toEqual([
      '2026-03-29T01:00:00Z',
      '2026-03-29T01:15:00Z',
      '2026-03-29T01:30:00Z',
      '2026-03-29T01:45:00Z',
    ]);
  });

  it('is none for a schedule of every hour', () => {
    expect(between('30 * * * *', 'Europe/Berlin', '2026-03-28T23:00:00Z', '2026-03-29T02:00:00Z')).toEqual([
      '2026-03-28T23:30:00Z',
      '2026-03-29T00:30:00Z',
      '2026-03-29T01:30:00Z',
    ]);
  });

  it('fires once where the skipped hour is the first of the day', () => {
    // Beirut: 00:00 → 01:00 on March 29.
    expect(between('0 0 * * *', 'Asia/Beirut', '2026-03-28T00:00:00Z', '2026-03-30T00:00:00Z')).toEqual([
      '2026-03-28T22:00:00Z',
      '2026-03-29T21:00:00Z',
    ]);
  });
});

describe('when the clocks go back, a slot in the repeated hour', () => {
  // Berlin: 03:00 → 02:00 on October 25. New York: 02:00 → 01:00 on November 1.
  it('fires once, the first time', () => {
    expect(between('30 2 * * *', 'Europe/Berlin', '2026-10-24T12:00:00Z', '2026-10-26T12:00:00Z')).toEqual([
      '2026-10-25T00:30:00Z',
      '2026-10-26T01:30:00Z',
    ]);
    expect(between('30 1 * * *', 'America/New_York', '2026-10-31T12:00:00Z', '2026-11-02T12:00:00Z')).toEqual([
      '2026-11-01T05:30:00Z',
      '2026-11-02T06:30:00Z',
    ]);
  });

  it('does not fire again for a process that starts in the second of the two hours', () => {
    expect(between('30 2 * * *', 'Europe/Berlin', '2026-10-25T01:10:00Z', '2026-10-25T12:00:00Z')).toEqual([]);
  });

  it('leaves the hour after it alone', () => {
    expect(between('30 2 * * *', 'America/New_York', '2026-10-31T12:00:00Z', '2026-11-01T12:00:00Z')).toEqual([
      '2026-11-01T07:30:00Z',
    ]);
  });

  it('fires in both hours for a schedule of every hour', () => {
    expect(between('30 * * * *', 'Europe/Berlin', '2026-10-24T23:00:00Z', '2026-10-25T03:00:00Z')).toEqual([
      '2026-10-24T23:30:00Z',
      '2026-10-25T00:30:00Z',
      '2026-10-25T01:30:00Z',
      '2026-10-25T02:30:00Z',
    ]);
    const minutes = between('* * * * *', 'America/New_York', '2026-11-01T05:50:00Z', '2026-11-01T07:10:00Z');
    expect(minutes).toHaveLength(80);
  });

  it('fires in both hours at the end of a day that comes once a year', () => {
    // Santiago: 24:00 → 23:00 on April 4.
    expect(between('0 * 4 4 *', 'America/Santiago', '2026-04-05T01:30:00Z', '2026-04-06T00:00:00Z')).toEqual([
      '2026-04-05T02:00:00Z',
      '2026-04-05T03:00:00Z',
    ]);
  });
});

describe('around any change of the clocks', () => {
  const DAY = 86_400_000;
  const changes: [zone: string, day: string][] = [
    ['Europe/Berlin', '2026-03-29'],
    ['Europe/Berlin', '2026-10-25'],
    ['America/New_York', '2026-03-08'],
    ['America/New_York', '2026-11-01'],
    ['Australia/Lord_Howe', '2026-04-05'], // by half an hour
    ['Australia/Lord_Howe', '2026-10-04'],
    ['Africa/Casablanca', '2026-02-15'],
    ['Africa/Casablanca', '2026-03-22'],
  ];

  it.each(changes)('a daily slot fires once on each day: %s %s', (timeZone, day) => {
    for (const time of ['0 0', '30 1', '15 2', '45 2', '0 3', '59 23']) {
      const noon = at(`${day}T12:00:00Z`);
      const days = slotsBetween(`${time} * * *`, timeZone, noon - 3 * DAY, noon + 3 * DAY);
      const names = days.map((slot) => new Date(slot).toLocaleDateString('en-CA', { timeZone }));
      expect([time, names.length, new Set(names).size]).toEqual([time, 6, 6]);
    }
  });

  it.each(changes)('a slot every ten minutes fires every ten minutes: %s %s', (timeZone, day) => {
    const from = at(`${day}T00:00:00Z`) - DAY / 2;
    const slots = slotsBetween('*/10 * * * *', timeZone, from, from + DAY);
    expect(slots).toEqual(Array.from({ length: 144 }, (_, index) => from + (index + 1) * 600_000));
  });
});

describe('schedules of every shape', () => {
  const MINUTE = 60_000;
  // Those that name all hours go by the hours that pass.
  const hours: Record<string, number[]> = {
    '*': all(24),
    '0-23': all(24),
    '0-11,12-23': all(24),
    '0-22': all(23),
    '0-1,3-23': all(24).filter((hour) => hour !== 2),
    '*/2': all(24).filter((hour) => hour % 2 === 0),
    '1-3': [1, 2, 3],
    '2,3': [2, 3],
    '2': [2],
  };
  const minutes: Record<string, number[]> = { '15': [15], '*/20': [0, 20, 40] };

  function all(count: number): number[] {
    return Array.from({ length: count }, (_, index) => index);
  }

  /** What the clocks show in each minute of some time, as the minutes of UTC that show the same. */
  function clock(timeZone: string, from: number, to: number): Map<number, number> {
    const format = new Intl.DateTimeFormat('sv-SE', { timeZone, dateStyle: 'short', timeStyle: 'short' });
    const shown = new Map<number, number>();
    for (let now = from; now <= to; now += MINUTE)
      shown.set(now, Date.parse(`${format.format(now).replace(' ', 'T')}Z`));
    return shown;
  }

  /** Looks at the clocks minute by minute: at what they show, at what they skip, and at what they have shown before. */
  function expected(clocks: Map<number, number>, ofHours: number[], ofMinutes: number[]): number[] {
    const isNamed = (wall: number): boolean =>
      ofHours.includes(new Date(wall).getUTCHours()) && ofMinutes.includes(new Date(wall).getUTCMinutes());
    const shown = new Set<number>();
    const slots: number[] = [];
    let last: number | null = null;
    for (const [now, wall] of clocks) {
      const skipped = last === null ? 0 : Math.max(0, (wall - last) / MINUTE - 1);
      const due =
        ofHours.length === 24
          ? isNamed(wall)
          : (isNamed(wall) && !shown.has(wall)) || all(skipped).some((index) => isNamed(wall - (index + 1) * MINUTE));
      if (due) slots.push(now);
      shown.add(wall);
      last = wall;
    }
    return slots;
  }

  it.each([
    ['Europe/Berlin', '2026-03-29T01:00:00Z'],
    ['Europe/Berlin', '2026-10-25T01:00:00Z'],
    ['America/New_York', '2026-03-08T07:00:00Z'],
    ['America/New_York', '2026-11-01T06:00:00Z'],
    ['Australia/Lord_Howe', '2026-10-03T15:30:00Z'], // by half an hour
    ['Australia/Lord_Howe', '2026-04-04T15:00:00Z'],
    ['Antarctica/Troll', '2026-03-29T01:00:00Z'], // by two hours
    ['Antarctica/Troll', '2026-10-25T01:00:00Z'],
  ])('fire when the clocks say so: %s %s', (timeZone, change) => {
    const [from, to] = [at(change) - 3 * 60 * MINUTE, at(change) + 4 * 60 * MINUTE];
    const clocks = clock(timeZone, from, to);
    for (const [hour, ofHours] of Object.entries(hours)) {
      for (const [minute, ofMinutes] of Object.entries(minutes)) {
        const schedule = `${minute} ${hour} * * *`;
        const want = expected(clocks, ofHours, ofMinutes);
        expect([schedule, iso(slotsBetween(schedule, timeZone, from - 1, to))]).toEqual([schedule, iso(want)]);
      }
    }
  });

  it('by name fire as what they stand for', () => {
    const night: [string, string, string] = ['Europe/Berlin', '2026-10-24T23:30:00Z', '2026-10-25T02:30:00Z'];
    expect(between('@hourly', ...night)).toEqual(between('0 * * * *', ...night));
    expect(between('@hourly', ...night)).toHaveLength(3);
    expect(between('@daily', 'Europe/Berlin', '2026-10-24T12:00:00Z', '2026-10-26T12:00:00Z')).toHaveLength(2);
  });
});

describe('the last slot within a time', () => {
  it.each([
    ['* * * * * *', '2026-01-01T00:00:00Z', '2026-01-01T10:00:00Z', '2026-01-01T10:00:00Z'],
    ['0 3 * * *', '2026-01-01T00:00:00Z', '2026-01-20T10:00:00Z', '2026-01-20T03:00:00Z'],
    ['0 3 1 * *', '2025-01-01T04:00:00Z', '2026-01-20T10:00:00Z', '2026-01-01T03:00:00Z'],
    ['0 3 * * *', '2026-01-01T04:00:00Z', '2026-01-02T02:00:00Z', null],
  ])('of %s', (schedule, from, to, expected) => {
    expect(lastSlotBetween(schedule, 'UTC', at(from), at(to))).toEqual(expected === null ? null : at(expected));
  });
});

describe('a schedule', () => {
  it.each(['* * * * *', '*/5 8-18 * * 1-5', '0 0 29 2 *', '30 0 3 * * *', '0 8 * jan mon', '*/60 */24 */31 */12 */7'])(
    'may be "%s"',
    (expression) => {
      expect(isSchedule(expression)).toBe(true);
    },
  );

  it.each(['', 'soon', '* * * *', '60 * * * *', '0 0 30 2 *', '* * * * * * *', 5, null])(
    'may not be %p',
    (expression) => {
      expect(isSchedule(expression)).toBe(false);
    },
  );

  it.each(['*/61 * * * *', '0,*/90 * * * *', '5/70 * * * *', '0 */25 * * *', '0 0 */32 * *', '*/61 * * * * *'])(
    'may not step beyond its field, where it would not mean what it says: "%s"',
    (expression) => {
      expect(isSchedule(expression)).toBe(false);
    },
  );

  it('that never comes true has no next slot', () => {
    expect(nextSlot('0 0 31 4 *', 'UTC', Date.now())).toBeNull();
  });

  it('is in a time zone that Intl knows', () => {
    expect(['UTC', 'Europe/Berlin', 'Mars/Olympus', '', 7].map(isTimeZone)).toEqual([true, true, false, false, false]);
  });
});
