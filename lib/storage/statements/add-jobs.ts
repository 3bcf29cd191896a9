// Adding: body row, live row, and, where job keys are involved, what becomes of the job that held the key.
import { statement } from '../database.js';
import { inCall } from '../statement.js';
import { ms } from './job-columns.js';

/** One job to add, as the statements read it from JSON. */
export interface NewJob {
  id: string;
  task: string;
  priority: number;
  run_at: string | null;
  delay_ms: number | null;
  /** Of a debounced job: how long after its first add it is due at the latest. */
  debounce_max_ms: number | null;
  /** While this is open, nothing is added, or one job to its end. */
  window_key: string | null;
  window_ms: number | null;
  window_mode: 'drop' | 'delay' | null;
  max_attempts: number;
  timeout_ms: number | null;
  queue: string | null;
  partition: string | null;
  limits: string | null;
  job_key: string | null;
  job_key_mode: string | null;
  flags: string[] | null;
  tags: string[] | null;
  group_id: string | null;
  depends_on: string[] | null;
  on_parent_failure: string | null;
  /** The payload's size in units of 1,024 bytes, rounded down; null: less than one. */
  payload_kib: number | null;
}

export interface AddedRow {
  /** The id asked for. */
  requested: string;
  /** The job's id: another one where a key kept an older job. */
  id: string;
  created: boolean;
}

export interface KeyedRow extends AddedRow {
  /** A rate limit that refuses it: as refused_limits of 1_tokens.sql says it. */
  missing: string | null;
  /** The job that gives way to it. */
  replaced: string | null;
  /** The job whose end it waits for. */
  behind: string | null;
}

/**
 * The specs ($1: one JSON array) beside their payloads ($2: one JSON array). Payloads travel apart because
 * json_array_elements hands them on untouched, while json_to_recordset decodes every escape and refuses \u0000.
 * Specs and payloads are two plain JSON parameters so that every driver encodes them alike.
 */
const specsIf = (condition: string): string => `clock as materialized (select clock_timestamp() as at),
  specs as materialized (
    select spec.*, coalesce(spec.asked_run_at, clock.at + spec.delay_ms * interval '1 ms', clock.at) as run_at
    from clock, rows from (
      json_to_recordset($1::text::json) as (id uuid, task text, priority integer, run_at timestamptz, delay_ms float8,
        max_attempts smallint, timeout_ms integer, queue text, partition text, limits text, job_key text, job_key_mode text,
        flags text[], tags text[], group_id text, depends_on uuid[], on_parent_failure text, payload_kib smallint),
      json_array_elements($2::text::json)
    ) with ordinality as spec (id, task, priority, asked_run_at, delay_ms, max_attempts, timeout_ms, queue, partition,
      limits, job_key, job_key_mode, flags, tags, group_id, depends_on, on_parent_failure, payload_kib, payload,
      position)
    where ${condition}
  )`;

const bodyColumns = `id, run_at, priority, max_attempts, timeout_ms, task, payload, queue, partition, limits, job_key,
    job_key_mode, flags, tags, group_id, depends_on, on_parent_failure`;

/** Last attempts are claimed for free slots only. */
const slotOnly = '(s.max_attempts = 1)';

/** Until its parents are resolved, right after the insert, a child waits for all of them. */
const unmet = 'coalesce(cardinality(s.depends_on), 0)';

const missingRateLimits = (schema: string): string => `missing as materialized (
    select distinct r.name as key from specs s cross join lateral ${schema}.refused_limits(s.limits) r(name)
    where s.limits is not null
  )`;

/** One more column, whose value tells other processes with the commit. `place`: of its parameters, a channel and a JSON array. */
const telling = (place: number): string => `, (
    select pg_catalog.count(pg_catalog.pg_notify($${place}::text, message))
    from pg_catalog.json_array_elements_text($${place + 1}::text::json) as message
  ) as told`;

const addJobsIf = (schema: string, condition: string, told = ''): string => `
  with ${specsIf(condition)},
  ${missingRateLimits(schema)},
  bodies as (
    insert into ${schema}.job_bodies (created_at, ${bodyColumns})
    select clock.at, ${bodyColumns} from specs s, clock where not exists (select from missing)
    on conflict (id) do nothing
    returning id
  ),
  live as (
    insert into ${schema}.jobs
      (id, run_at, priority, max_attempts, slot_only, lane, payload_kib, task, queue, partition, limits, flags,
        unmet, parked)
    select s.id, s.run_at, s.priority, s.max_attempts, ${slotOnly},
      ${schema}.lane_of(s.queue, s.partition, s.limits, ${slotOnly}), coalesce(s.payload_kib, 0), s.task, s.queue,
      s.partition, s.limits, s.flags, ${unmet}, case when s.depends_on is not null then 'parents' end
    from bodies join specs s using (id)
  )
  select ${ms('clock.at')} as now, null as missing${told} from clock
  where ${condition} and not exists (select from missing)
  union all
  select null, key${told && ', null'} from missing`;

/**
 * $1 specs, $2 payloads.
 * Idempotent by id: an add that is repeated because its commit's fate was unknown finds its body row and does nothing.
 * Returns the time, by which the caller can tell what was stored; or a row for each rate limit that refuses a job, and adds
 * nothing then. Rows of their own for a thousand jobs would cost as much as writing them.
 */
export const addJobs = statement<{ now: number; missing: string | null }>(
  'add_jobs',
  (schema) => addJobsIf(schema, 'true'),
  {
    limitedText: (schema) => `select now, missing from ${schema}.add_jobs($1::text::json, $2::text::json)`,
    withinText: (schema) => addJobsIf(schema, inCall(3)),
  },
);

/**
 * The same in a caller's transaction, where a round trip is saved: what is added is told, unless it is refused. $3 channel,
 * $4 messages, a JSON array.
 */
export const addAndTell = statement<{ now: number; missing: string | null }>(
  'add_and_tell',
  (schema) => addJobsIf(schema, 'true', telling(3)),
  { withinText: (schema) => addJobsIf(schema, inCall(5), telling(3)) },
);

const addAlikeJobsIf = (schema: string, condition: string, told = ''): string => `
  with due as materialized (
    select coalesce($6::timestamptz, clock.at + $7::float8 * interval '1 ms', clock.at) as at, clock.at as present
    from (select clock_timestamp() as at) clock
  ),
  bodies as (
    insert into ${schema}.job_bodies (id, created_at, run_at, priority, max_attempts, task, payload)
    select s.id, (select present from due), (select at from due), $4::integer, $5::smallint, $3::text, s.payload::json
    from rows from (unnest($1::text::uuid[]), string_to_table($2::text, E'\\n')) as s (id, payload) where ${condition}
  ),
  live as (
    insert into ${schema}.jobs (id, run_at, priority, max_attempts, slot_only, lane, payload_kib, task)
    select s.id, (select at from due), $4, $5, $5 = 1, ${schema}.lane_of(null, null, null, $5 = 1), coalesce(s.payload_kib, 0), $3
    from unnest($1::text::uuid[], $8::smallint[]) as s (id, payload_kib) where ${condition}
  )
  select ${ms('present')} as now, null as missing${told} from due where ${condition}`;

/**
 * For first tries of jobs that differ in id and payload alone, and have no more than what is named here. $1 ids, $2
 * payloads, one in a line (JSON text has no line breaks of its own), $3 task, $4 priority, $5 max attempts, $6 run-at or
 * null, $7 delay in ms or null, $8 sizes of payloads in KiB or null (all are small). Much cheaper than addJobs: no spec is
 * read from JSON, payloads are parsed once, and no id is looked up first. Where an id is there already, this fails with a
 * unique violation. The same function of 7_enqueue.sql costs a tenth more, so it is only for where a round trip is saved.
 */
export const addAlikeJobs = statement<{ now: number; missing: null }>(
  'add_alike_jobs',
  (schema) => addAlikeJobsIf(schema, 'true'),
  {
    limitedText: (schema) => `
  select now, null as missing
  from ${schema}.add_alike_jobs($1::text::uuid[], $2, $3, $4, $5::smallint, $6, $7, $8::smallint[]) now`,
    withinText: (schema) => addAlikeJobsIf(schema, inCall(9)),
  },
);

/** The same in a caller's transaction, as addAndTell. $9 channel, $10 messages, a JSON array. */
export const addAlikeAndTell = statement<{ now: number; missing: null }>(
  'add_alike_and_tell',
  (schema) => addAlikeJobsIf(schema, 'true', telling(9)),
  { withinText: (schema) => addAlikeJobsIf(schema, inCall(11), telling(9)) },
);

/**
 * As addJobs, for specs that all have a job key, each key once. $1 specs, $2 payloads, $3 whether to wait for the caller's
 * lock_timeout, $4 whether an earlier try may have gone through.
 * - replace: a waiting job gives way: its live row is removed, and jobs that wait for it wait for the new one. A
 *   running one loses its key, will not be retried, and the new job is parked behind it.
 * - preserve_run_at: a waiting job takes over everything but the run-at; a running or exhausted one as above.
 * - debounce: as preserve_run_at, but it waits again, `delay_ms` from now; `debounce_max_ms` from its first add at most.
 *   A job that has begun once gives way to a new one, whose time begins now.
 * - throttle: as preserve_run_at; its key is that of one window's beginning.
 * - unsafe_dedupe: whatever holds the key stays.
 * - unique: the same, but a job that has failed for good keeps nothing out.
 * The statement itself is the function of migrations/0001_initial/7_enqueue.sql, so that roles that may only enqueue can
 * replace jobs without the right to change or delete them.
 */
export const addKeyedJobs = statement<KeyedRow>(
  'add_keyed_jobs',
  (schema) => `select * from ${schema}.add_keyed_jobs($1::text::json, $2::text::json, $3::boolean, $4::boolean)`,
  {
    limited: true,
    withinText: (schema) => `
  select * from ${schema}.add_keyed_jobs(case when ${inCall(5)} then $1::text::json else '[]' end,
    case when ${inCall(5)} then $2::text::json else '[]' end, $3::boolean, $4::boolean)`,
  },
);

/**
 * As addKeyedJobs, for specs of which some have a window (`window_key`), each window once: while it is open, `drop` answers with
 * its job, and `delay` puts the job to its end, where it takes the place of one that waits there. Of the same file.
 */
export const addWindowedJobs = statement<KeyedRow>(
  'add_windowed_jobs',
  (schema) => `select * from ${schema}.add_windowed_jobs($1::text::json, $2::text::json, $3::boolean, $4::boolean)`,
  {
    limited: true,
    withinText: (schema) => `
  select * from ${schema}.add_windowed_jobs(case when ${inCall(5)} then $1::text::json else '[]' end,
    case when ${inCall(5)} then $2::text::json else '[]' end, $3::boolean, $4::boolean)`,
  },
);

/** The jobs of these windows. $1 keys. Index: job_windows_pkey. */
export const findWindowJobs = statement<{ key: string; job_id: string }>(
  'find_window_jobs',
  (schema) => `select key, job_id from ${schema}.job_windows where key = any($1::text[])`,
  { repeatable: true, patient: true },
);

/** Tells other processes. $1 channel, $2 messages. */
export const publishNews = statement(
  'publish_news',
  () => `select pg_notify($1::text, message) from unnest($2::text[]) as message`,
  { repeatable: true, limited: true },
);

/** What rate limits refuse of jobs with these limits. $1 limits of jobs. Index: rate_limits_pkey. */
export const findMissingLimits = statement<{ missing: string }>(
  'find_missing_limits',
  (schema) => `
  select distinct r.name as missing from unnest($1::text[]) as asked (limits)
  cross join lateral ${schema}.refused_limits(asked.limits) r(name)`,
);

/** The jobs that own these keys. $1 keys. Index: job_keys_pkey. */
export const findKeyOwners = statement<{ job_id: string }>(
  'find_key_owners',
  (schema) => `select job_id from ${schema}.job_keys where key = any($1::text[])`,
  { repeatable: true, patient: true },
);
