// What is under way, in no order.

/**
 * Not a Set: one that sees things come and go moves to a new table time and again, and the old table points to the new
 * one. Once the collector takes an old table for long-lived, all tables after it survive, with every job in them, until
 * it next looks at everything: that doubled the worker's memory, and the time for collecting it.
 */
export class SwapList<T> {
  private readonly items: T[] = [];

  get size(): number {
    return this.items.length;
  }

  add(item: T): void {
    this.items.push(item);
  }

  delete(item: T): void {
    const place = this.items.indexOf(item);
    if (place < 0) return;
    const last = this.items.pop()!;
    if (place < this.items.length) this.items[place] = last;
  }

  clear(): void {
    this.items.length = 0;
  }

  /** A copy: they may end while the caller iterates. */
  all(): T[] {
    return [...this.items];
  }
}
