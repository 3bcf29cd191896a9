// What specs of this folder do to the tables beside the library: empty them, and move time.
import type { Sql } from './invariants.js';
import type { JobState } from './transitions.js';

export async function emptyTables(sql: Sql): Promise<void> {
  await sql(`
    with jobs as (delete from jobs.jobs), bodies as (delete from jobs.job_bodies),
      history as (delete from jobs.job_history), receipts as (delete from jobs.settle_receipts),
      dependencies as (delete from jobs.job_dependencies), queues as (delete from jobs.job_queues),
      limits as (delete from jobs.rate_limits)
    delete from jobs.workers`);
}

/** Where a job stands, as the tables tell it; `JobState` of transitions.ts and what others hang on it. */
export interface StoredJob extends JobState {
  id: string;
  /** Why it is out of the claims' range. */
  parked: string | null;
  unmet: number;
  jobKey: string | null;
  revision: number;
}

/** All jobs of which anything is known, by id; of those that have ended, what their records tell. */
export async function readJobs(sql: Sql, ids: string[] | null = null): Promise<Map<string, StoredJob>> {
  const rows = await sql<StoredJob>(
    `select b.id, case
        when j.locked_by is not null then 'running' when j.parked = 'exhausted' then 'exhausted'
        when j.id is not null then 'waiting' when h.last = 'cancelled' then 'cancelled' else 'completed'
      end as standing, coalesce(j.run_at <= now(), true) as due, coalesce(j.attempts, 0) as attempts,
      coalesce(j.max_attempts, b.max_attempts) as "maxAttempts", coalesce(j.crashes, 0) as crashes,
      coalesce(j.fence, h.fence, 0)::integer as fence, j.locked_by as holder, j.lease_ms is not null as "byHand",
      coalesce(j.cancel_requested, false) as "cancelRequested", j.superseded_by is not null as superseded,
      coalesce(h.records, '{}') as records, j.parked, coalesce(j.unmet, 0) as unmet, j.job_key as "jobKey",
      coalesce(j.revision, 0) as revision
    from jobs.job_bodies b left join jobs.jobs j on j.id = b.id left join (
      select job_id, array_agg(status::text order by fence) as records, max(fence) as fence,
        (array_agg(status::text order by fence desc))[1] as last
      from jobs.job_history group by job_id
    ) h on h.job_id = b.id
    where $1::uuid[] is null or b.id = any($1)`,
    [ids],
  );
  return new Map(rows.map((row) => [row.id, row]));
}

/** The part of a job that the transition table knows; of a job that is gone, only what can be known. */
export function stateOf(job: JobState): Partial<JobState> {
  const { standing, due, attempts, maxAttempts, crashes, fence, holder, byHand, cancelRequested, superseded, records } =
    job;
  if (standing === 'completed' || standing === 'cancelled') return { standing, fence, records };
  return {
    standing,
    attempts,
    maxAttempts,
    crashes,
    fence,
    holder,
    byHand,
    cancelRequested,
    superseded,
    records,
    ...(standing === 'waiting' && { due }),
  };
}

/** Lets the time of waiting jobs come. */
export const letTimeCome = (sql: Sql, ids: string[] | null = null): Promise<unknown> =>
  sql(
    `update jobs.jobs set run_at = now() - interval '1 s'
     where locked_by is null and run_at > now() and ($1::uuid[] is null or id = any($1))`,
    [ids],
  );

/** Lets the leases of claims by hand run out. */
export const letLeasesEnd = (sql: Sql, workers: string[]): Promise<unknown> =>
  sql(
    `update jobs.jobs set lease_expires_at = now() - interval '1 s' where lease_ms is not null and locked_by = any($1)`,
    [workers],
  );

/** Pools stop to beat. */
export const letPoolsDie = (sql: Sql, workers: string[]): Promise<unknown> =>
  sql(`update jobs.workers set heartbeat_at = now() - lease_ms * interval '2 ms' where id = any($1)`, [workers]);

/** The current window of a rate limit passes. */
export const letWindowPass = (sql: Sql, key: string): Promise<unknown> =>
  sql(
    `update jobs.rate_limits set window_started_at = clock_timestamp() - interval_ms * interval '1 ms' where key = $1`,
    [key],
  );
