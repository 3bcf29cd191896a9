// Whose turn is next: over the lanes of each priority, and within queues whose partitions take all that the queue can give.
import type { LaneReport, Turn } from '../interfaces/claim.interface.js';
import { comparePlaces, priorityAtPlace, queueAtPlace } from './lane.names.js';

const MAX_TURNS = 100;

export class Turns {
  /** By priority as a place names it. */
  private readonly lanes = new Map<string, Turn>();
  /** By the place at which a queue begins: the place behind which it is entered. */
  private readonly queues = new Map<string, string>();
  private lastPlace = '';

  get ofLanes(): Turn[] {
    return [...this.lanes.values()];
  }

  /** In order of the walk. */
  get ofQueues(): string[] {
    return [...this.queues.values()].sort(comparePlaces);
  }

  /** The place of the lane served last. */
  get last(): string {
    return this.lastPlace;
  }

  learn(report: LaneReport): void {
    for (const turn of turnsOf(report)) {
      setLast(this.lanes, priorityAtPlace(turn.place), turn);
      this.lastPlace = turn.place;
    }
    for (const queue of report.ended) this.queues.delete(queue);
    for (const place of report.cut) setLast(this.queues, queueAtPlace(place), place);
  }
}

/** As the newest of at most so many. */
function setLast<V>(turns: Map<string, V>, key: string, value: V): void {
  turns.delete(key);
  turns.set(key, value);
  if (turns.size > MAX_TURNS) turns.delete(turns.keys().next().value!);
}

export const turnsOf = ({ turns, left }: LaneReport): Turn[] =>
  turns.map((place, index) => ({ place, left: left[index] ?? 0 }));
