// Statements on rows that anybody's transaction may hold: they give up soon, so that no connection waits with them.
import { isLockTimeout } from '../storage/database.errors.js';
import type { Database, Statement } from '../storage/database.js';
import { setLockTimeout } from '../storage/statements/releases.js';

const MAX_LOCK_WAIT = '100ms';

/**
 * Runs a statement that waits for locks for 100 ms at most. Inside a caller's transaction, that one's own limit holds
 * again afterwards. @throws an error for which `isLockTimeout` holds
 */
export async function runBriefly<Row>(database: Database, statement: Statement<Row>, values: unknown[]) {
  return database.transaction(async (executor): Promise<Row[]> => {
    const [limit] = await database.run(setLockTimeout, [MAX_LOCK_WAIT], executor);
    const rows = await database.run(statement, values, executor);
    await database.run(setLockTimeout, [limit?.before ?? '0'], executor);
    return rows;
  });
}

/** The same; null where the locks were not free. */
export async function tryBriefly<Row>(database: Database, statement: Statement<Row>, values: unknown[]) {
  try {
    return await runBriefly(database, statement, values);
  } catch (error) {
    if (isLockTimeout(error)) return null;
    throw error;
  }
}
