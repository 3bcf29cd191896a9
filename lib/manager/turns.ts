// Calls that share a connection take turns: the statements of one must not stand among those of another.
import type { QueryExecutor } from '../interfaces/job.interface.js';

const lastTurns = new WeakMap<object, Promise<unknown>>();

/** Begins when all that was asked for before on this connection has ended, well or not. For no call within another one. */
export async function inTurn<T>(executor: QueryExecutor, work: () => Promise<T>): Promise<T> {
  const connection = (executor as { queryRunner?: object }).queryRunner ?? executor;
  const turn = (lastTurns.get(connection) ?? Promise.resolve()).then(work);
  const ended = turn.catch(() => undefined);
  lastTurns.set(connection, ended);
  return turn;
}
