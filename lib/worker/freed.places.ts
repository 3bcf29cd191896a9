// Places in queues and partitions that settles of a pool have freed, until it fills them or tells others of them.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { lanesOfBranch, lanesOfQueue } from '../manager/lane.names.js';

export class FreedPlaces {
  private readonly places = new Map<string, number>();

  add({ queue, partition }: ClaimedJob): void {
    const lanes = lanesOfBranch(queue!, partition);
    this.places.set(lanes, (this.places.get(lanes) ?? 0) + 1);
  }

  /** The pool has claimed these. */
  fill(jobs: ClaimedJob[]): void {
    for (const { queue, partition } of jobs) {
      if (queue === null) continue;
      const own = lanesOfBranch(queue, partition);
      // Where the queue is limited, one partition fills the place of another.
      const lanes = this.places.has(own) ? own : this.anyOf(lanesOfQueue(queue));
      if (lanes === undefined) continue;
      const left = this.places.get(lanes)!;
      if (left > 1) this.places.set(lanes, left - 1);
      else this.places.delete(lanes);
    }
  }

  private anyOf(queue: string): string | undefined {
    for (const lanes of this.places.keys()) if (lanes.startsWith(queue)) return lanes;
    return undefined;
  }

  /** The lanes that those not filled belong to; they are forgotten. */
  take(): string[] {
    const lanes = [...this.places.keys()];
    this.places.clear();
    return lanes;
  }
}
