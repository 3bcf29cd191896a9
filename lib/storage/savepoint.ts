// A call of several statements in a caller's transaction, which may be committed although the call has failed.
import type { QueryExecutor } from '../interfaces/job.interface.js';
import type { Database } from './database.js';
import { isConflict } from './database.errors.js';
import { statement } from './statement.js';

const begin = statement('savepoint', () => 'savepoint millrace_call');
const takeBack = statement('rollback_to_savepoint', () => 'rollback to savepoint millrace_call');
const release = statement('release_savepoint', () => 'release savepoint millrace_call');

/** Does `work` as a whole or not at all. A conflict with other transactions has ended the caller's. */
export async function asOne<T>(database: Database, executor: QueryExecutor, work: () => Promise<T>): Promise<T> {
  await database.run(begin, [], executor);
  let result: T;
  try {
    result = await work();
  } catch (error) {
    if (isConflict(error)) throw error;
    for (const end of [takeBack, release]) await database.run(end, [], executor).catch(() => undefined);
    throw error;
  }
  await database.run(release, [], executor);
  return result;
}
