// Statements on rows that any transaction may hold. They give up soon, so that they do not keep a connection waiting.
import { isLockTimeout } from '../storage/sql.states.js';
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
