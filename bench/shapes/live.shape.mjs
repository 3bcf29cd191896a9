// Shapes C1 and C1H: an immutable body and one narrow live row, which the claim updates and the settle deletes.
import { addBodies, addParameters, bodyTables, payloadOf } from './bodies.mjs';

/**
 * `keepIndexed`: running rows stay in the ready index (C1H). The claim then changes no indexed column, and its update
 * is a heap-only one where the page has room, which is what `fillfactor` is for.
 */
export function live({ keepIndexed = false, fillfactor = 100, ...options } = {}) {
  return {
    live: ['jobs'],
    kept: ['job_bodies', 'job_history'],
    // The columns that a claim changes stand together at the end: an update within a page logs only what differs.
    ddl: `
      create table jobs (
        id uuid primary key,
        run_at timestamptz not null,
        priority int not null,
        max_attempts int not null,
        task text not null,
        queue text,
        rate_limit_key text,
        flags text[],
        parked text,
        attempts int not null default 0,
        revision int not null default 0,
        fence bigint not null default 0,
        locked_at timestamptz,
        locked_by text
      ) with (fillfactor = ${fillfactor});
      create index jobs_ready on jobs (priority, run_at, id)
        where ${keepIndexed ? 'parked is null' : 'locked_by is null and parked is null'};
      ${bodyTables(options)}`,

    add: `
      with bodies as (${addBodies})
      insert into jobs (id, run_at, priority, max_attempts, task, queue, flags)
      select id, coalesce(run_at, now()), priority, max_attempts, task, queue, flags
      from json_to_recordset($1::json) as spec(
        id uuid, run_at timestamptz, priority int, max_attempts int, task text, queue text, flags text[]
      )`,
    addParameters,

    claim: (due) => `
      with picked as materialized (
        select id
        from jobs
        where locked_by is null and parked is null and ${due}
        order by priority, run_at, id
        limit $2
        for update skip locked
      ), claimed as (
        update jobs
        set attempts = attempts + 1, revision = revision + 1, fence = fence + 1, locked_at = now(), locked_by = $1
        where id = any(array(select id from picked))
        returning id, fence, run_at, priority, attempts, max_attempts, task, queue, flags
      )
      select claimed.*, ${payloadOf('claimed')}
      from claimed`,

    settle: `
      with settled as (
        delete from jobs
        using unnest($1::uuid[], $2::bigint[], $3::int[]) as outcome(id, fence, execution_time_ms)
        where jobs.id = any($1) and jobs.id = outcome.id and jobs.fence = outcome.fence
        returning jobs.id, jobs.fence, attempts, run_at, locked_at, locked_by, execution_time_ms
      )
      insert into job_history
      select id, fence, locked_at, now(), now() + interval '30 days',
        extract(epoch from locked_at - run_at) * 1000, execution_time_ms, attempts, 'completed', locked_by
      from settled`,
  };
}
