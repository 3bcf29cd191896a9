// Shape C: an immutable body; a narrow ready row, which the claim turns into a narrow leased row.
import { addBodies, addParameters, bodyTables, payloadOf } from './bodies.mjs';

export function readyLeased(options = {}) {
  return {
    live: ['jobs_ready', 'jobs_leased'],
    kept: ['job_bodies', 'job_history'],
    ddl: `
      create table jobs_ready (
        id uuid primary key,
        run_at timestamptz not null,
        priority int not null,
        revision int not null default 0,
        max_attempts int not null,
        attempts int not null default 0,
        fence bigint not null default 0,
        task text not null,
        queue text,
        rate_limit_key text,
        flags text[]
      );
      create index jobs_ready_order on jobs_ready (priority, run_at, id);
      create table jobs_leased (
        id uuid primary key,
        run_at timestamptz not null,
        priority int not null,
        revision int not null,
        max_attempts int not null,
        attempts int not null,
        fence bigint not null,
        locked_at timestamptz not null,
        locked_by text not null,
        task text not null,
        queue text,
        rate_limit_key text,
        flags text[]
      );
      ${bodyTables(options)}`,

    add: `
      with bodies as (${addBodies})
      insert into jobs_ready (id, run_at, priority, max_attempts, task, queue, flags)
      select id, coalesce(run_at, now()), priority, max_attempts, task, queue, flags
      from json_to_recordset($1::json) as spec(
        id uuid, run_at timestamptz, priority int, max_attempts int, task text, queue text, flags text[]
      )`,
    addParameters,

    claim: (due) => `
      with picked as materialized (
        select id
        from jobs_ready
        where ${due}
        order by priority, run_at, id
        limit $2
        for update skip locked
      ), taken as (
        delete from jobs_ready
        where id = any(array(select id from picked))
        returning *
      ), leased as (
        insert into jobs_leased
        select id, run_at, priority, revision + 1, max_attempts, attempts + 1, fence + 1, now(), $1,
          task, queue, rate_limit_key, flags
        from taken
        returning id, fence, run_at, priority, attempts, max_attempts, task, queue, flags
      )
      select leased.*, ${payloadOf('leased')}
      from leased`,

    settle: `
      with settled as (
        delete from jobs_leased
        using unnest($1::uuid[], $2::bigint[], $3::int[]) as outcome(id, fence, execution_time_ms)
        where jobs_leased.id = any($1) and jobs_leased.id = outcome.id and jobs_leased.fence = outcome.fence
        returning jobs_leased.*, execution_time_ms
      )
      insert into job_history
      select id, fence, locked_at, now(), now() + interval '30 days',
        extract(epoch from locked_at - run_at) * 1000, execution_time_ms, attempts, 'completed', locked_by
      from settled`,
  };
}
