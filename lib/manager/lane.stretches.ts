// Stretches of the walk over lanes in which nothing can be claimed for a while.
import { comparePlaces } from './lane.names.js';

export interface Stretch {
  after: string;
  upto: string;
  /** By the database's clock, in ms. */
  until: number;
}

export const byAfter = (a: Stretch, b: Stretch): number => comparePlaces(a.after, b.after);

/** A stretch is joined with those that it touches. */
export function joined(stretches: Stretch[], fresh: Stretch): Stretch[] {
  const whole = { ...fresh };
  const apart: Stretch[] = [];
  for (const other of stretches) {
    const touches = comparePlaces(other.after, whole.upto) <= 0 && comparePlaces(whole.after, other.upto) <= 0;
    if (!touches) apart.push(other);
    else {
      if (comparePlaces(other.after, whole.after) < 0) whole.after = other.after;
      if (comparePlaces(other.upto, whole.upto) > 0) whole.upto = other.upto;
      whole.until = Math.min(whole.until, other.until);
    }
  }
  return [...apart, whole].sort(byAfter);
}
