// Whether a pooler (PgBouncer and its like) is between this process and PostgreSQL.
import { translateError } from './database.errors.js';
import type { Database } from './database.js';

/**
 * A pooler that hands each transaction another connection may run a statement where it was never prepared. Such a
 * pooler is recognised at once: it tells the client another process than the one that answers.
 * @throws DatabaseUnavailableError
 */
export async function isPooled({ pool, schema }: Database): Promise<boolean> {
  try {
    const client = await pool.connect();
    try {
      const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
      const { processID } = client as { processID?: number | null };
      return Boolean(processID) && processID !== rows[0]?.pid;
    } finally {
      client.release();
    }
  } catch (error) {
    throw translateError(error, schema);
  }
}
