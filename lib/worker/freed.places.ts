// Places in queues that settles of a pool have freed, until it fills them or tells others of them.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { lanesOfQueue } from '../manager/lane.names.js';

export class FreedPlaces {
  private readonly places = new Map<string, number>();

  add(queue: string): void {
    this.places.set(queue, (this.places.get(queue) ?? 0) + 1);
  }

  /** The pool has claimed these. */
  fill(jobs: ClaimedJob[]): void {
    for (const { queue } of jobs) {
      const left = queue === null ? undefined : this.places.get(queue);
      if (left === undefined) continue;
      if (left > 1) this.places.set(queue!, left - 1);
      else this.places.delete(queue!);
    }
  }

  /** The lanes that those not filled belong to; they are forgotten. */
  take(): string[] {
    const lanes = [...this.places.keys()].map(lanesOfQueue);
    this.places.clear();
    return lanes;
  }
}
