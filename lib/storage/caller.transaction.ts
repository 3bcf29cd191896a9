// The transaction that a call was made in. A call takes time, and its caller may end the transaction meanwhile: what is left
// of the call must then run nowhere, neither by itself nor in the next transaction of the connection. So PostgreSQL is asked
// to mark the transaction when the call is made, and what the call writes does nothing where the mark is not found.
import { randomBytes } from 'node:crypto';
import type { QueryExecutor } from '../interfaces/job.interface.js';

/** Calls on one connection whose times overlap. They share a mark, and take turns: statements of two must not mix. */
interface Overlap {
  mark: string;
  marked: Promise<unknown>;
  calls: number;
  lastTurn: Promise<unknown>;
}

const overlaps = new WeakMap<object, Overlap>();
/** Calls under way in this process, on whatever connection: several executors may lead to one. */
let underWay = 0;

/** Sets the mark. `others`: calls may be under way whose marks must stay. */
export type SetMark = (mark: string, others: boolean) => Promise<unknown>;

/** What `executor` is in now. Statements that run on this run there or do nothing. */
export class CallerTransaction implements QueryExecutor {
  private readonly connection: object;
  private readonly overlap: Overlap;

  /** In the turn of the caller's own call, so that the mark is asked for before anything that the caller does next. */
  constructor(
    readonly executor: QueryExecutor,
    setMark: SetMark,
  ) {
    this.connection = (executor as { queryRunner?: object }).queryRunner ?? executor;
    this.overlap = overlaps.get(this.connection) ?? begin(setMark);
    overlaps.set(this.connection, this.overlap);
    this.overlap.calls++;
    underWay++;
  }

  get mark(): string {
    return this.overlap.mark;
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
      await this.overlap.marked.catch(() => undefined);
      underWay--;
      if (--this.overlap.calls === 0) overlaps.delete(this.connection);
    }
  }

  /** The statements of the call, when all that was asked for before on this connection have ended, well or not. */
  async inTurn<T>(work: () => Promise<T>): Promise<T> {
    const { marked, lastTurn } = this.overlap;
    const turn = lastTurn.then(() => marked).then(work);
    this.overlap.lastTurn = turn.catch(() => undefined);
    return turn;
  }
}

function begin(setMark: SetMark): Overlap {
  const mark = randomBytes(6).toString('hex');
  const marked = setMark(mark, underWay > 0);
  // A call that is refused before its turn does not look at it.
  marked.catch(() => undefined);
  return { mark, marked, calls: 0, lastTurn: Promise.resolve() };
}
