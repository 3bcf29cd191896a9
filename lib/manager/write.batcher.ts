// Natural batching of small writes that no job's outcome depends on: while one statement is under way the next entries
// gather. A failure is forgotten: the next entries try again. Memory is bounded even where a handler awaits nothing.

const MAX_BATCH = 1_000;
/** Characters in one statement. */
const MAX_BATCH_CHARS = 4 * 1024 * 1024;
/** Characters that wait. What comes beyond that is forgotten. */
const MAX_WAITING_CHARS = 16 * 1024 * 1024;

interface Waiting<T> {
  entry: T;
  written: Promise<void>;
  resolve: () => void;
}

export class WriteBatcher<T extends { text: string }> {
  private readonly gathered = new Map<unknown, Waiting<T>>();
  private gatheredChars = 0;
  private inFlight: Promise<void> | null = null;

  /** With `keyOf`, the last entry of a key counts: it takes the place of one that waits. */
  constructor(
    private readonly writeAll: (entries: T[]) => Promise<void>,
    private readonly keyOf: (entry: T) => unknown = () => Symbol(),
  ) {}

  /** Resolves when the entry, or one that took its place, has been written or could not be. Never rejects. */
  write(entry: T): Promise<void> {
    const key = this.keyOf(entry);
    const known = this.gathered.get(key);
    const chars = this.gatheredChars + entry.text.length - (known?.entry.text.length ?? 0);
    if (this.gathered.size && chars > MAX_WAITING_CHARS) return known?.written ?? this.idle();
    this.gatheredChars = chars;
    if (known) {
      known.entry = entry;
      return known.written;
    }
    let resolve!: () => void;
    const written = new Promise<void>((done) => (resolve = done));
    this.gathered.set(key, { entry, written, resolve });
    this.inFlight ??= this.drain();
    return written;
  }

  /** Resolves when everything so far has been written. */
  async idle(): Promise<void> {
    await this.inFlight;
  }

  private async drain(): Promise<void> {
    // One turn: entries of the same tick share a statement.
    await Promise.resolve();
    while (this.gathered.size) {
      const batch = this.takeBatch();
      await this.writeAll(batch.map(({ entry }) => entry)).catch(() => undefined);
      for (const { resolve } of batch) resolve();
    }
    this.inFlight = null;
  }

  private takeBatch(): Waiting<T>[] {
    const batch: Waiting<T>[] = [];
    let chars = 0;
    for (const [key, waiting] of this.gathered) {
      chars += waiting.entry.text.length;
      if (batch.length && (chars > MAX_BATCH_CHARS || batch.length === MAX_BATCH)) break;
      this.gathered.delete(key);
      this.gatheredChars -= waiting.entry.text.length;
      batch.push(waiting);
    }
    return batch;
  }
}
