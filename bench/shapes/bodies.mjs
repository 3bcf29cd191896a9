// What shapes C and C1 share: the immutable body, written once, and the narrow history row.

const day = 24 * 60 * 60 * 1000;

export const addBodies = `
  insert into job_bodies (id, priority, max_attempts, task, queue, flags, tags, payload)
  select id, priority, max_attempts, task, queue, flags, tags, payload
  from json_to_recordset($2::json) as body(
    id uuid, priority int, max_attempts int, task text, queue text, flags text[], tags text[], payload json
  )`;

/** The narrow columns and the bodies travel apart, so that no CTE copies the payloads. */
export const addParameters = (jobs) => [
  `[${jobs.map((job) => `{${job.head}}`).join()}]`,
  `[${jobs.map((job) => `{${job.head},"payload":${job.payload}}`).join()}]`,
];

/** As a scalar subquery the body is fetched by its key whatever the statistics say; a join may become a hash join. */
export const payloadOf = (row) => `(select payload from job_bodies where job_bodies.id = ${row}.id) as payload`;

export function bodyTables({ json = 'json', historyIndex = 'btree', partitioned = false } = {}) {
  return `
    create table job_bodies (
      id uuid primary key,
      created_at timestamptz not null default now(),
      priority int not null,
      max_attempts int not null,
      task text not null,
      queue text,
      flags text[],
      tags text[],
      payload ${json} not null
    ) ${partitioned ? 'partition by range (id)' : ''};
    create table job_history (
      job_id uuid not null,
      fence bigint not null,
      started_at timestamptz not null,
      completed_at timestamptz not null,
      expires_at timestamptz not null,
      queue_time_ms int not null,
      execution_time_ms int not null,
      attempt int not null,
      status text not null,
      worker_id text not null
    ) ${partitioned ? 'partition by range (expires_at)' : ''};
    ${historyIndex === 'none' ? '' : `create index job_history_job on job_history using ${historyIndex} (job_id);`}
    ${partitioned ? [...bodyPartitions(), ...historyPartitions()].join('\n') : ''}`;
}

/** Yesterday to the day after tomorrow: a version 7 id starts with its time, so ids range like days. */
function bodyPartitions() {
  const bound = (days) => uuidFloor(midnight(days));
  return [
    ...[-1, 0, 1, 2].map((i) => partition('job_bodies', i + 1, bound(i), bound(i + 1))),
    'create table job_bodies_default partition of job_bodies default;',
  ];
}

/** Ten days of expiry; the jobs settled today expire in the middle of them. */
function historyPartitions() {
  const bound = (days) => new Date(midnight(days)).toISOString();
  return [
    ...Array.from({ length: 10 }, (_, i) => partition('job_history', i, bound(25 + i), bound(26 + i))),
    'create table job_history_default partition of job_history default;',
  ];
}

const partition = (table, n, from, to) =>
  `create table ${table}_${n} partition of ${table} for values from ('${from}') to ('${to}');`;

const midnight = (days) => Math.floor(Date.now() / day) * day + days * day;

function uuidFloor(time) {
  const hex = time.toString(16).padStart(12, '0');
  return `${hex.slice(0, 8)}-${hex.slice(8)}-0000-0000-000000000000`;
}
