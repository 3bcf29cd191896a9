// The transaction that a call was made in. A call takes time, and its caller may end the transaction meanwhile: what is left
// of the call must then run nowhere, neither by itself nor in the next transaction of the connection. So PostgreSQL is asked
// to mark the transaction when the call is made, and what the call writes does nothing where the mark is not found.
import type { QueryExecutor } from '../interfaces/job.interface.js';
import { beginCall, endCall, marksToKeep } from './call.marks.js';

/** Calls on one connection whose times overlap. They take turns: statements of two must not mix. */
interface Overlap {
  /** The last that was set. */
  marking: Marking | null;
  calls: number;
  lastTurn: Promise<unknown>;
}

interface Marking {
  mark: string;
  /** Whether it could be set. */
  done: Promise<unknown>;
}

const overlaps = new WeakMap<object, Overlap>();

/** Sets the mark. `kept`: marks of this process that must stay; null: all of them. */
export type SetMark = (mark: string, kept: string | null) => Promise<unknown>;

/** What `executor` is in now. Statements that run on this run there or do nothing. */
export class CallerTransaction implements QueryExecutor {
  private readonly connection: object;
  private readonly overlap: Overlap;
  private readonly marking: Marking;

  /** In the turn of the caller's own call, so that the mark is asked for before anything that the caller does next. */
  constructor(
    readonly executor: QueryExecutor,
    setMark: SetMark,
  ) {
    this.connection = (executor as { queryRunner?: object }).queryRunner ?? executor;
    this.overlap = overlaps.get(this.connection) ?? { marking: null, calls: 0, lastTurn: Promise.resolve() };
    overlaps.set(this.connection, this.overlap);
    this.overlap.calls++;
    this.marking = this.markBy(setMark);
  }

  get mark(): string {
    return this.marking.mark;
  }

  query(text: string, values?: unknown[]): Promise<unknown> {
    return this.executor.query(text, values);
  }

  /** The whole call. To be called once. */
  async during<T>(call: () => Promise<T>): Promise<T> {
    try {
      return await call();
    } finally {
      // A refusal comes before the answer: what the caller sends next must not meet the mark on the connection.
      await this.marking.done.catch(() => undefined);
      endCall(this.mark);
      if (--this.overlap.calls === 0) overlaps.delete(this.connection);
    }
  }

  /** The statements of the call, when all that was asked for before on this connection have ended, well or not. */
  async inTurn<T>(work: () => Promise<T>): Promise<T> {
    const { overlap, marking } = this;
    const turn = overlap.lastTurn.then(() => marking.done).then(work);
    overlap.lastTurn = turn.catch(() => undefined);
    return turn;
  }

  private markBy(setMark: SetMark): Marking {
    const { overlap } = this;
    const mark = beginCall();
    if (overlap.marking?.mark === mark) return overlap.marking;
    const done = setMark(mark, marksToKeep());
    // A call that is refused before its turn does not look at it.
    done.catch(() => undefined);
    return (overlap.marking = { mark, done });
  }
}
