// How long pages of the noisy tenant and of the others wait: counted by the task, shown on the terminal.
import { Injectable } from '@nestjs/common';

export const NOISY = 'acme';

export class Group {
  asked = 0;
  readonly waits: number[] = [];

  get waiting(): number {
    return this.asked - this.waits.length;
  }

  /** That share of the waits was not longer, in ms. */
  quantile(share: number): number {
    return this.waits.toSorted((a, b) => a - b)[Math.floor(this.waits.length * share)] ?? 0;
  }
}

@Injectable()
export class Waits {
  readonly noisy = new Group();
  readonly others = new Group();

  of(tenant: string): Group {
    return tenant === NOISY ? this.noisy : this.others;
  }
}
