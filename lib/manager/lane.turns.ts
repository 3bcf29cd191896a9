// Whose turn is next: over the lanes of each priority, and within queues whose partitions take all that the queue can give.
// Lanes are served in circles. In one circle each gets the same share, however many claims the circle takes.
import type { CircleTurn, LaneMemoryState, LaneReport, Turn } from '../interfaces/claim.interface.js';
import { comparePlaces, priorityAtPlace, queueAtPlace } from './lane.names.js';

const MAX_TURNS = 100;
/** A claim is told of so many, at least: those that it comes to first. */
const TOLD_QUEUES = 100;
const MAX_QUEUES = 5_000;

interface Circle extends Turn {
  share: number;
  /** Lanes that a whole circle serves, each counted by its weight; 0: not known. */
  weights: number;
  /** What this one has brought so far. */
  jobs: number;
}

export class Turns {
  /** By priority as a place names it. */
  private readonly circles = new Map<string, Circle>();
  /** By the place at which a queue begins. */
  private readonly queues = new Map<string, Turn>();
  private lastPlace = '';

  /** For a claim of so many jobs, which a whole circle should fill. */
  ofLanes(wanted: number): CircleTurn[] {
    return [...this.circles.values()].map(({ place, left, share, weights }) => ({
      place,
      left,
      share,
      nextShare: weights ? shareOf(wanted / weights) : 1,
    }));
  }

  /** Those that a claim of so many jobs comes to, in order of the walk. */
  ofQueues(wanted: number): Turn[] {
    const all = inOrder([...this.queues.values()]);
    const most = Math.max(TOLD_QUEUES, wanted);
    if (all.length <= most) return all;
    const priorities = new Map<string, Turn[]>();
    for (const turn of all) {
      const priority = priorityAtPlace(turn.place);
      const others = priorities.get(priority);
      if (others) others.push(turn);
      else priorities.set(priority, [turn]);
    }
    return [...priorities].flatMap(([priority, turns]) => {
      const { place } = this.circles.get(priority) ?? { place: '' };
      const next = turns.findIndex((turn) => comparePlaces(turn.place, place) >= 0);
      const behind = next < 0 ? [] : turns.slice(next);
      const before = next < 0 ? turns : turns.slice(0, next);
      return inOrder([...behind, ...before].slice(0, Math.ceil(most / priorities.size)));
    });
  }

  /** The place of the lane served last. */
  get last(): string {
    return this.lastPlace;
  }

  learn({ turns, cut, ended }: LaneReport): void {
    for (const [place, left, share, weights, jobs, begins] of turns) {
      const before = this.circles.get(priorityAtPlace(place));
      const known = weights || before?.weights || 0;
      const brought = jobs + ((!begins && before?.jobs) || 0);
      // There are more lanes than were known: small shares let all of them have their turns soon.
      const isLong = share > 1 && brought > 2 * share * known;
      const circle = { place, left, share: isLong ? 1 : share, weights: isLong ? 0 : known, jobs: brought };
      setLast(this.circles, priorityAtPlace(place), circle);
      this.lastPlace = place;
    }
    for (const queue of ended) this.queues.delete(queue);
    for (const [place, left] of cut) setLast(this.queues, queueAtPlace(place), { place, left }, MAX_QUEUES);
  }
}

/** What a claim is told that goes on where another one has ended. */
export function turnsAfter(
  { turns, queueTurns }: LaneMemoryState,
  { turns: served, cut, ended }: LaneReport,
): Pick<LaneMemoryState, 'turns' | 'queueTurns'> {
  const circles = new Map(turns.map((turn) => [priorityAtPlace(turn.place), turn]));
  for (const [place, left, share] of served) {
    const priority = priorityAtPlace(place);
    circles.set(priority, { place, left, share, nextShare: circles.get(priority)?.nextShare ?? 1 });
  }
  const queues = new Map(queueTurns.map((turn) => [queueAtPlace(turn.place), turn]));
  for (const queue of ended) queues.delete(queue);
  for (const [place, left] of cut) queues.set(queueAtPlace(place), { place, left });
  return { turns: [...circles.values()], queueTurns: inOrder([...queues.values()]) };
}

const inOrder = (turns: Turn[]): Turn[] => turns.sort((a, b) => comparePlaces(a.place, b.place));

/** A circle may be a little more than a claim, which spares it a look; not where that is many jobs. */
const shareOf = (jobs: number): number => (jobs < 8 ? Math.ceil(jobs) : Math.floor(jobs));

/** As the newest of at most so many. */
function setLast<V>(turns: Map<string, V>, key: string, value: V, most = MAX_TURNS): void {
  turns.delete(key);
  turns.set(key, value);
  if (turns.size > most) turns.delete(turns.keys().next().value!);
}
