// Lanes by name: queue, partition and rate limits, as lane_of of 1_tables.sql writes them; and where a lane stands
// in the walk of a claim, as place_in_walk of 2_claim.sql does.
import type { RateLimitUse } from '../interfaces/job.interface.js';
import { textOfLimits } from './rate.limits.js';

const SEPARATOR = '\x1f';
const LOWEST = -2_147_483_649;
const PRIORITY_DIGITS = 9;

interface Limited {
  queue: string | null;
  partition: string | null;
  rateLimits: RateLimitUse[];
}

/** The lane of jobs without a limit that are claimed for free slots only. */
export const SLOT_LANE = SEPARATOR + SEPARATOR;

export const laneOf = ({ queue, partition, rateLimits }: Limited): string =>
  `${queue ?? ''}${SEPARATOR}${partition ?? ''}${SEPARATOR}${textOfLimits(rateLimits) ?? ''}`;

/** The queue of a lane, or of what lanes begin with. */
export const queueOfLane = (lane: string): string => lane.slice(0, lane.indexOf(SEPARATOR));

/** How all lanes begin in which a place of the job counts: those of its partition, else of its queue. */
export const lanesOfBranch = (queue: string, partition: string | null): string =>
  partition === null ? lanesOfQueue(queue) : `${queue}${SEPARATOR}${partition}${SEPARATOR}`;

/** The place at which a queue begins, of the place of one of its lanes. */
export const queueAtPlace = (place: string): string => place.slice(0, place.indexOf(SEPARATOR) + 1);

/** How all lanes of a queue begin. */
export const lanesOfQueue = (queue: string): string => queue + SEPARATOR;

export const placeInWalk = (priority: number, lane: string): string =>
  (priority - LOWEST).toString(16).padStart(PRIORITY_DIGITS, '0') + lane;

export const priorityAtPlace = (place: string): string => place.slice(0, PRIORITY_DIGITS);

export const laneAtPlace = (place: string): string => place.slice(PRIORITY_DIGITS);

/** Whether the lane at the place begins like one of these. */
export function beginsLike(place: string, beginnings: Iterable<string>): boolean {
  for (const beginning of beginnings) if (place.startsWith(beginning, PRIORITY_DIGITS)) return true;
  return false;
}

/** As PostgreSQL compares them, with collation "C": by code points. */
export function comparePlaces(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let at = 0; at < length; at++) {
    const one = a.charCodeAt(at);
    const other = b.charCodeAt(at);
    if (one !== other) return rankOf(one) - rankOf(other);
  }
  return a.length - b.length;
}

const SURROGATES = 0xd800;
const AFTER_SURROGATES = 0xe000;
const UNITS = 0x10000;

/** Halves of code points above U+FFFF come after all below. */
function rankOf(unit: number): number {
  if (unit < SURROGATES) return unit;
  return unit < AFTER_SURROGATES ? unit + UNITS - AFTER_SURROGATES : unit - AFTER_SURROGATES + SURROGATES;
}
