// What a running attempt says of itself: steps done, progress, log lines, and whether it still holds its job.
import { statement } from '../database.js';
import { ms } from './job-columns.js';

/** $1 job, $2 fence: the claim in whose name something is written. */
const claim = `j.id = $1::uuid and j.fence = $2::bigint and j.locked_by is not null`;

/**
 * Whether the claim is still valid: no row where it is not; locks it until the end of the transaction, so that it is not
 * taken away before. `locked` is false where an open transaction holds the job. $1, $2. Index: jobs_pkey.
 */
export const assertOwned = statement<{ locked: boolean }>(
  'assert_owned',
  (schema) => `
  with locked as materialized (
    select j.id from ${schema}.jobs j where ${claim} for share skip locked
  )
  select exists (select from locked) as locked from ${schema}.jobs j where ${claim}`,
);

export interface StepRow {
  name: string;
  position: number;
  /** JSON text, so that a result is kept apart from none. */
  result: string | null;
}

/** The steps done so far, in the order in which they were done. $1 job. Index: job_steps_pkey. */
export const findSteps = statement<StepRow>(
  'find_steps',
  (schema) => `
  select name, position, result::text as result from ${schema}.job_steps where job_id = $1::uuid order by position, completed_at`,
  { repeatable: true, patient: true },
);

/** $1, $2, $3 name, $4 position, $5 result as JSON text or null. `saved` is false where the claim is lost. */
export const saveStep = statement<{ saved: boolean }>(
  'save_step',
  (schema) => `select ${schema}.save_step($1::uuid, $2::bigint, $3::text, $4::integer, $5::text) as saved`,
  { repeatable: true, limited: true },
);

/** $1, $2, $3 names. */
export const forgetSteps = statement(
  'forget_steps',
  (schema) => `
  delete from ${schema}.job_steps s using ${schema}.jobs j
  where ${claim} and s.job_id = j.id and s.name = any($3::text[])`,
);

/** The latest progress of several attempts. $1 jobs, $2 fences, $3 values as JSON text. */
export const saveProgress = statement(
  'save_progress',
  (schema) => `select ${schema}.save_progress($1::uuid[], $2::bigint[], $3::text[])`,
  { limited: true },
);

/** $1 jobs, $2 fences, $3 messages. */
export const addLogs = statement(
  'add_logs',
  (schema) => `
  insert into ${schema}.job_logs (job_id, fence, message)
  select job_id, fence, message
  from unnest($1::uuid[], $2::bigint[], $3::text[]) with ordinality as i(job_id, fence, message, position)
  order by position`,
);

export interface LogRow {
  id: string;
  fence: string;
  logged_at: number;
  message: string;
}

/** $1 job, $2 the last id of the page before or null, $3 how many. Oldest first. Index: job_logs_pkey. */
export const findLogs = statement<LogRow>(
  'find_logs',
  (schema) => `
  select id, fence, ${ms('logged_at')} as logged_at, message from ${schema}.job_logs
  where job_id = $1::uuid and ($2::bigint is null or id > $2)
  order by id limit $3`,
  { repeatable: true, patient: true },
);
