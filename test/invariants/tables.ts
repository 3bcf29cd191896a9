// What specs of this folder do to the tables beside the library: empty them, and move time.
import type { Sql } from './invariants.js';

export async function emptyTables(sql: Sql): Promise<void> {
  await sql(`
    with jobs as (delete from jobs.jobs), bodies as (delete from jobs.job_bodies),
      history as (delete from jobs.job_history), receipts as (delete from jobs.settle_receipts),
      dependencies as (delete from jobs.job_dependencies), queues as (delete from jobs.job_queues),
      limits as (delete from jobs.rate_limits)
    delete from jobs.workers`);
}
