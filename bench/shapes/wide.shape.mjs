// Shape B: one wide job row, updated by the claim; a settle moves it, payload and all, into history.

const spec = `id uuid, priority int, run_at timestamptz, max_attempts int, task text, queue text, flags text[],
        tags text[], payload json`;

export function wide() {
  return {
    live: ['jobs'],
    kept: ['job_history'],
    ddl: `
      create table jobs (
        id uuid primary key,
        run_at timestamptz not null,
        created_at timestamptz not null default now(),
        priority int not null,
        revision int not null default 0,
        max_attempts int not null,
        attempts int not null default 0,
        fence bigint not null default 0,
        locked_at timestamptz,
        locked_by text,
        task text not null,
        queue text,
        flags text[],
        tags text[],
        payload json not null
      );
      create index jobs_ready on jobs (priority, run_at, id) where locked_by is null;
      create table job_history (
        job_id uuid not null,
        fence bigint not null,
        started_at timestamptz not null,
        completed_at timestamptz not null,
        expires_at timestamptz not null,
        run_at timestamptz not null,
        created_at timestamptz not null,
        queue_time_ms int not null,
        execution_time_ms int not null,
        attempt int not null,
        max_attempts int not null,
        priority int not null,
        status text not null,
        worker_id text not null,
        task text not null,
        queue text,
        flags text[],
        tags text[],
        payload json not null
      );
      create index job_history_job on job_history (job_id);`,

    add: `
      insert into jobs (id, priority, run_at, max_attempts, task, queue, flags, tags, payload)
      select id, priority, coalesce(run_at, now()), max_attempts, task, queue, flags, tags, payload
      from json_to_recordset($1::json) as spec(${spec})`,
    addParameters: (jobs) => [`[${jobs.map((job) => `{${job.head},"payload":${job.payload}}`).join()}]`],

    claim: (due) => `
      with picked as materialized (
        select id
        from jobs
        where locked_by is null and ${due}
        order by priority, run_at, id
        limit $2
        for update skip locked
      )
      update jobs
      set locked_by = $1, locked_at = now(), attempts = attempts + 1, fence = fence + 1, revision = revision + 1
      where id = any(array(select id from picked))
      returning id, fence, run_at, priority, attempts, max_attempts, task, queue, flags, tags, payload`,

    settle: `
      with settled as (
        delete from jobs
        using unnest($1::uuid[], $2::bigint[], $3::int[]) as outcome(id, fence, execution_time_ms)
        where jobs.id = any($1) and jobs.id = outcome.id and jobs.fence = outcome.fence
        returning jobs.*, execution_time_ms
      )
      insert into job_history
      select id, fence, locked_at, now(), now() + interval '30 days', run_at, created_at,
        extract(epoch from locked_at - run_at) * 1000, execution_time_ms, attempts, max_attempts, priority,
        'completed', locked_by, task, queue, flags, tags, payload
      from settled`,
  };
}
