// Who waits how long: counted by the tasks, shown by the terminal.
import { Injectable } from '@nestjs/common';

export const NOISY = 'acme';

export class Group {
  asked = 0;
  readonly waits: number[] = [];

  get waiting(): number {
    return this.asked - this.waits.length;
  }

  /** The wait, in ms, that this share of the jobs has not exceeded. */
  quantile(share: number): number {
    const sorted = this.waits.toSorted((a, b) => a - b);
    return sorted[Math.floor(sorted.length * share)] ?? 0;
  }
}

@Injectable()
export class Waits {
  readonly noisy = new Group();
  readonly others = new Group();

  of(tenant: string): Group {
    return tenant === NOISY ? this.noisy : this.others;
  }

  begun(tenant: string, waitMs: number): void {
    this.of(tenant).waits.push(waitMs);
  }
}
