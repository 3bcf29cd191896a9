// The marks of calls under way in callers' transactions. Calls of one turn of this process have no answer of the database
// between them, so they are in the same transaction, and in the same savepoint: they share a mark. Others never do.
import { randomBytes } from 'node:crypto';

/** Marks of one copy of the library begin alike; then they grow, as text too. */
const COPY = randomBytes(4).toString('hex');
export const COPY_LENGTH = COPY.length;

/** Calls under way by their marks, on whatever connection: several executors may lead to one. */
const underWay = new Map<string, number>();
/** Where more are under way, looking for those that are over costs more than leaving them. */
const MAX_LISTED = 200;
/** Marks of calls that are over are dropped so seldom: most transactions have a few calls. */
const DROP_ONE_IN = 64;
let turns = 0;
let ofThisTurn: string | null = null;

/** The mark of a call that is made now. */
export function beginCall(): string {
  ofThisTurn ??= begin();
  underWay.set(ofThisTurn, (underWay.get(ofThisTurn) ?? 0) + 1);
  return ofThisTurn;
}

export function endCall(mark: string): void {
  const left = underWay.get(mark)! - 1;
  if (left) underWay.set(mark, left);
  else underWay.delete(mark);
}

/** Now and then, the marks of calls under way, apart by spaces: those of others may be dropped. Null: nothing is dropped. */
export function marksToKeep(): string | null {
  if (underWay.size > MAX_LISTED || Math.random() * DROP_ONE_IN >= 1) return null;
  return [...underWay.keys()].join(' ');
}

function begin(): string {
  void Promise.resolve().then(() => (ofThisTurn = null));
  return COPY + (++turns).toString(36).padStart(8, '0');
}
