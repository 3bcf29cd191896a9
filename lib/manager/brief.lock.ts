// Statements on rows that anybody's transaction may hold: they give up soon, so that no connection waits with them.
import { isLockTimeout } from '../storage/database.errors.js';
import type { Database, Statement } from '../storage/database.js';

/** Null where the statement's locks were not free within 100 ms. */
export async function tryBriefly<Row>(database: Database, statement: Statement<Row>, values: unknown[]) {
  try {
    return await database.run(statement, values);
  } catch (error) {
    if (isLockTimeout(error)) return null;
    throw error;
  }
}
