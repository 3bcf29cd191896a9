// What lies outside of the database and cannot be rolled back: a bank, and a courier that is often busy. They keep
// count.
import { Injectable } from '@nestjs/common';

@Injectable()
export class World {
  readonly charges: number[] = [];
  readonly parcels: number[] = [];
  private readonly asked = new Map<number, number>();

  async charge(order: number): Promise<{ receipt: string }> {
    this.charges.push(order);
    return { receipt: `receipt-${order}` };
  }

  /** Every third order finds the courier busy, twice. */
  async ship(order: number): Promise<{ tracking: string }> {
    const times = (this.asked.get(order) ?? 0) + 1;
    this.asked.set(order, times);
    if (order % 3 === 0 && times <= 2) throw new Error('the courier is busy');
    this.parcels.push(order);
    return { tracking: `parcel-${order}` };
  }
}
