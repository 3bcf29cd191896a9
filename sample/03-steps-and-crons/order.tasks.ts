import { Injectable } from '@nestjs/common';
import { type JobContext, Task } from 'millrace';
import { World } from './world.js';

@Injectable()
export class OrderTasks {
  constructor(private readonly world: World) {}

  /** A retry finds the charge done, and goes on with the parcel: a busy courier makes no customer pay twice. */
  @Task('fulfil-order', { maxAttempts: 5 })
  async fulfil({ order }: { order: number }, ctx: JobContext): Promise<string> {
    const { receipt } = await ctx.step('charge', () => this.world.charge(order));
    void ctx.progress({ step: 'ship', receipt });
    const { tracking } = await ctx.step('ship', () => this.world.ship(order));
    void ctx.log(`order ${order}: ${receipt}, ${tracking}`);
    return tracking;
  }

  /** Depends on all orders: runs when the last of them is done. */
  @Task('close-books')
  close(): string {
    return 'no order is open';
  }
}
