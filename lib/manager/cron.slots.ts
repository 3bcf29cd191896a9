// When a crontab is due. `cron` reads the expression and finds the next wall-clock time, in UTC, where each occurs
// once; what the clocks of a time zone make of it is decided here, because `cron` by itself fires "30 2 * * *" in New
// York twice when the clocks go back: at 01:30 and at 02:30.
import { CronTime } from 'cron';

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;
/** Clocks are put back by two hours at most. */
const MAX_REPEAT_MS = 3 * HOUR_MS;
/** Making a formatter costs more than a thousand uses. */
const formats = new Map<string, Intl.DateTimeFormat>();

/** Whether `Intl` knows the time zone. */
export function isTimeZone(name: unknown): boolean {
  try {
    return typeof name === 'string' && Boolean(formatOf(name));
  } catch {
    return false;
  }
}

/** How many values each field has: second, minute, hour, day of the month, month, day of the week. */
const FIELD_SIZES = [60, 60, 24, 31, 12, 7];

/**
 * Whether it is a crontab expression of 5 or 6 fields that ever comes true: "0 0 30 2 *" does not. A step beyond its
 * field does not mean what it says: one of 90 minutes comes once in an hour.
 */
export const isSchedule = (expression: unknown): boolean =>
  typeof expression === 'string' && hasUsefulSteps(expression) && nextSlot(expression, 'UTC', Date.now()) !== null;

function hasUsefulSteps(expression: string): boolean {
  const fields = expression.trim().split(/\s+/);
  const sizes = FIELD_SIZES.slice(-fields.length);
  return fields.every((field, index) =>
    field.split(',').every((part) => Number(part.split('/')[1] ?? 1) <= (sizes[index] ?? 0)),
  );
}

/**
 * The first slot after a moment, both in ms since 1970; null where none comes within eight years.
 *
 * A slot in the hour that is skipped when the clocks go forward fires when they do. One in the hour that is repeated
 * when they go back fires the first time. A schedule that names all 24 hours of the day goes by the hours that pass instead: it
 * has nothing to fire in an hour that does not exist, and fires in both that have the same name.
 */
export function nextSlot(schedule: string, timeZone: string, after: number): number | null {
  try {
    const time = new CronTime(schedule, 'UTC');
    return isHourly(time, schedule) ? nextOfEveryHour(time, timeZone, after) : nextOfSomeHours(time, timeZone, after);
  } catch {
    // `cron` throws when it has searched for long enough.
    return null;
  }
}

/** The slots in (from, to], oldest first, at most `limit` of them. */
export function slotsBetween(schedule: string, timeZone: string, from: number, to: number, limit = Infinity): number[] {
  const slots: number[] = [];
  let slot = nextSlot(schedule, timeZone, from);
  while (slot !== null && slot <= to && slots.length < limit) {
    slots.push(slot);
    slot = nextSlot(schedule, timeZone, slot);
  }
  return slots;
}

/** The last slot in (from, to]. Looks at ever longer times before `to`: a frequent schedule has many slots. */
export function lastSlotBetween(schedule: string, timeZone: string, from: number, to: number): number | null {
  for (let span = MINUTE_MS; ; span *= 4) {
    const start = Math.max(from, to - span);
    const last = slotsBetween(schedule, timeZone, start, to).at(-1);
    if (last !== undefined) return last;
    if (start <= from) return null;
  }
}

function nextOfSomeHours(time: CronTime, timeZone: string, after: number): number {
  for (let wall = nextWall(time, wallOf(after, timeZone)); ; wall = nextWall(time, wall)) {
    const slot = instantsOf(wall, timeZone)[0] ?? endOfGap(wall, timeZone);
    if (slot > after) return slot;
  }
}

function nextOfEveryHour(time: CronTime, timeZone: string, after: number): number {
  let wall = wallOf(after, timeZone);
  let slot: number | undefined;
  while (slot === undefined) {
    wall = nextWall(time, wall);
    slot = instantsOf(wall, timeZone).find((instant) => instant > after);
  }
  return Math.min(slot, firstAfterClocksGoBack(time, timeZone, after) ?? slot);
}

/** If the clocks are about to go back, times come again that `after` has passed. */
function firstAfterClocksGoBack(time: CronTime, timeZone: string, after: number): number | null {
  if (offsetOf(after + MAX_REPEAT_MS, timeZone) >= offsetOf(after, timeZone)) return null;
  const change = changeBetween(after, after + MAX_REPEAT_MS, timeZone);
  const wall = nextWall(time, wallOf(change, timeZone) - SECOND_MS);
  return instantsOf(wall, timeZone).at(-1) ?? null;
}

/** `cron` takes the hours 0-22 for all of them, so it is asked for the last hour of a day. */
function isHourly(time: CronTime, schedule: string): boolean {
  if (time.toJSON()[2] !== '*') return false;
  const hours = schedule.trim().split(/\s+/).at(-4) ?? '*'; // "@hourly" has no fields
  return nextWall(new CronTime(`0 ${hours} * * *`, 'UTC'), 22 * HOUR_MS) === 23 * HOUR_MS;
}

/** Wall-clock times are written as the ms since 1970 at which UTC's clocks show them. */
const nextWall = (time: CronTime, wall: number): number => time.getNextDateFrom(new Date(wall), 'UTC').toMillis();

/** When the zone's clocks show this time, earliest first: never, once, or twice. */
function instantsOf(wall: number, timeZone: string): number[] {
  const offsets = [offsetOf(wall - DAY_MS, timeZone), offsetOf(wall + DAY_MS, timeZone)];
  const instants = [...new Set(offsets.map((offset) => wall - offset))];
  return instants.filter((instant) => wallOf(instant, timeZone) === wall).toSorted((a, b) => a - b);
}

/** When the clocks skipped this time. */
const endOfGap = (wall: number, timeZone: string): number => changeBetween(wall - DAY_MS, wall + DAY_MS, timeZone);

/** The first second of the offset that holds at `to`, given that another one holds at `from`. */
function changeBetween(from: number, to: number, timeZone: string): number {
  const offset = offsetOf(to, timeZone);
  let [before, since] = [Math.floor(from / SECOND_MS), Math.floor(to / SECOND_MS)];
  while (since - before > 1) {
    const middle = Math.floor((before + since) / 2);
    if (offsetOf(middle * SECOND_MS, timeZone) === offset) since = middle;
    else before = middle;
  }
  return since * SECOND_MS;
}

/** Local time minus UTC, in ms. */
const offsetOf = (instant: number, timeZone: string): number =>
  wallOf(instant, timeZone) - Math.floor(instant / SECOND_MS) * SECOND_MS;

/** What the zone's clocks show, to the second. */
function wallOf(instant: number, timeZone: string): number {
  const parts = Object.fromEntries(
    formatOf(timeZone)
      .formatToParts(instant)
      .map(({ type, value }) => [type, Number(value)]),
  ) as Record<'year' | 'month' | 'day' | 'hour' | 'minute' | 'second', number>;
  return Date.UTC(parts.year, parts.month - 1, parts.day, parts.hour, parts.minute, parts.second);
}

function formatOf(timeZone: string): Intl.DateTimeFormat {
  let format = formats.get(timeZone);
  if (!format) {
    const numeric = 'numeric' as const;
    const fields = { year: numeric, month: numeric, day: numeric, hour: numeric, minute: numeric, second: numeric };
    format = new Intl.DateTimeFormat('en-US', { ...fields, timeZone, hourCycle: 'h23', calendar: 'gregory' });
    formats.set(timeZone, format);
  }
  return format;
}
