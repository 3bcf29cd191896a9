// What specs of this folder do to the tables beside the library: empty them, and move time.
import { TABLES_OF_JOBS } from '../../lib/storage/statements/testing.js';
import type { Sql } from './invariants.js';
import type { SeenAfterJump } from './model.js';
import type { JobState } from './transitions.js';

export async function emptyTables(sql: Sql): Promise<void> {
  const all = [
    ...TABLES_OF_JOBS,
    'job_queues',
    'job_partitions',
    'job_pauses',
    'rate_limits',
    'workers',
    'job_tasks',
    'crontabs',
  ];
  const deletes = all.map((table) => `no_${table} as (delete from jobs.${table})`);
  const text = `with ${deletes.join(', ')} update jobs.duties set due_at = '2000-01-01', position = '{}'`;
  await sql(text, [], 'empty tables');
}

/**
 * Refuses, at its commit, a claim that brings a queue over its limit, and a count of tokens over a rate limit's capacity: the
 * claim holds the lock that keeps others from claiming then, so what is counted is true. Jobs are counted, not places.
 */
export async function watchLimits(sql: Sql): Promise<void> {
  await sql(`
    create or replace function jobs.watch_claims() returns trigger language plpgsql as $$
    declare
      most integer := (select concurrency from jobs.job_queues where name = new.queue);
      running integer := (select count(*) from jobs.jobs where queue = new.queue and locked_by is not null);
    begin
      if running > most then
        raise exception 'a claim brought % to % running jobs, the limit is %', new.queue, running, most;
      end if;
      if not exists (select from jobs.job_queues where name = new.queue) then
        raise exception 'a job of %, which is not registered, was claimed', new.queue;
      end if;
      if (select jobs.is_in_force(paused, paused_until, clock_timestamp()) from jobs.job_queues where name = new.queue) then
        raise exception 'a job of %, which is paused, was claimed', new.queue;
      end if;
      return null;
    end $$;
    create or replace function jobs.watch_tokens() returns trigger language plpgsql as $$
    declare
      most integer := (select capacity from jobs.rate_limits where key = new.key);
    begin
      if new.counts[1] > most then
        raise exception '% tokens of % were taken, there are %', new.counts[1], new.key, most;
      end if;
      return null;
    end $$;
    create constraint trigger watch_claims after update on jobs.jobs deferrable initially deferred for each row
      when (old.locked_by is null and new.locked_by is not null and new.queue is not null)
      execute function jobs.watch_claims();
    create constraint trigger watch_tokens after insert on jobs.rate_limit_states deferrable initially deferred for each row
      execute function jobs.watch_tokens()`);
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
      coalesce(j.cancel_requested, false) as "cancelRequested",
      exists (select from jobs.jobs s where s.behind = j.id and s.parked = 'key') as superseded,
      coalesce(h.records, '{}') as records, j.parked, coalesce(j.unmet, 0) as unmet,
      (select k.key from jobs.job_keys k where k.key = j.job_key and k.job_id = j.id) as "jobKey",
      coalesce(j.revision, 0) as revision
    from jobs.job_bodies b left join jobs.jobs j on j.id = b.id left join (
      select job_id, array_agg(status::text order by fence) as records, max(fence) as fence,
        (array_agg(status::text order by fence desc))[1] as last
      from jobs.job_history group by job_id
    ) h on h.job_id = b.id
    where $1::uuid[] is null or b.id = any($1)`,
    [ids],
    'read jobs',
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

/** Jobs of which it is known that others took their keys. */
export async function readReplaced(sql: Sql): Promise<Set<string>> {
  return new Set((await sql<{ id: string }>('select old_id as id from jobs.job_replacements')).map(({ id }) => id));
}

/** What is due, has expired or has passed, by the stored times. */
export async function seeAfterJump(sql: Sql): Promise<SeenAfterJump> {
  const jobs = await sql<{ id: string; due: boolean; expired: boolean }>(
    `select id, run_at <= now() as due, coalesce(lease_expires_at <= now(), false) as expired from jobs.jobs`,
  );
  const windows = await sql<{ key: string }>(
    `select w.key from (select distinct on (key) * from jobs.rate_limit_states order by key, number desc) w
     join jobs.rate_limits r on r.key = w.key where w.at + r.interval_ms * interval '1 ms' <= now()`,
  );
  return { jobs: new Map(jobs.map((job) => [job.id, job])), passedWindows: windows.map(({ key }) => key) };
}

/** Duties are due, but for those of a clock that is ahead: these are due at once. */
export const letDutiesCome = (sql: Sql): Promise<unknown> =>
  sql(`update jobs.duties set due_at = now() where due_at <= now() + interval '1 minute'`);

/** Pools stop to beat. */
export const letPoolsDie = (sql: Sql, workers: string[]): Promise<unknown> =>
  sql(`update jobs.workers set heartbeat_at = now() - lease_ms * interval '2 ms' where id = any($1)`, [workers]);

/** The current window of a rate limit passes: the next one begins now. */
export const letWindowPass = (sql: Sql, key: string): Promise<unknown> =>
  sql(
    `with passed as (
      update jobs.rate_limits set window_started_at = clock_timestamp() - interval_ms * interval '1 ms' where key = $1
      returning key, window_started_at
    )
    update jobs.rate_limit_states w set at = p.window_started_at, full_at = clock_timestamp() from passed p where w.key = p.key`,
    [key],
  );
