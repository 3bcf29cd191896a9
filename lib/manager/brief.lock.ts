// Statements on rows that anybody's transaction may hold: they give up soon, so that no connection waits with them.
import { isLockTimeout } from '../storage/database.errors.js';
import type { Database, Statement } from '../storage/database.js';

/** Runs a statement that waits for locks for 100 ms at most (see `brief`); null where they were not free. */
export async function tryBriefly<Row>(database: Database, statement: Statement<Row>, values: unknown[]) {
  try {
    return await database.run(statement, values);
  } catch (error) {
    if (isLockTimeout(error)) return null;
    throw error;
  }
}
