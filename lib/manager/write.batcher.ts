// Natural batching of small writes that nobody's work depends on: while one statement is under way the next entries
// gather. A failure is forgotten: the next entries try again.

const MAX_BATCH = 1_000;

interface Waiting<T> {
  entry: T;
  resolve: () => void;
}

export class WriteBatcher<T> {
  private gathered: Waiting<T>[] = [];
  private inFlight: Promise<void> | null = null;

  constructor(private readonly writeAll: (entries: T[]) => Promise<void>) {}

  /** Resolves when the entry has been written, or could not be. Never rejects. */
  write(entry: T): Promise<void> {
    return new Promise((resolve) => {
      this.gathered.push({ entry, resolve });
      this.inFlight ??= this.drain();
    });
  }

  /** Resolves when everything so far has been written. */
  async idle(): Promise<void> {
    await this.inFlight;
  }

  private async drain(): Promise<void> {
    // One turn: entries of the same tick share a statement.
    await Promise.resolve();
    while (this.gathered.length) {
      const batch = this.gathered.splice(0, MAX_BATCH);
      await this.writeAll(batch.map(({ entry }) => entry)).catch(() => undefined);
      for (const { resolve } of batch) resolve();
    }
    this.inFlight = null;
  }
}
