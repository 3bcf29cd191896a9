// The columns by which a job is shown, live or finished, and the row they come back as.
import type { JobStatus, StoredKeyMode } from '../../interfaces/job.interface.js';

export interface JobRow {
  id: string;
  task: string;
  payload: unknown;
  status: JobStatus;
  priority: number;
  queue: string | null;
  partition: string | null;
  limits: string | null;
  run_at: number;
  attempts: number;
  max_attempts: number;
  last_error: string | null;
  job_key: string | null;
  job_key_mode: StoredKeyMode | null;
  flags: string[] | null;
  tags: string[] | null;
  group_id: string | null;
  depends_on: string[] | null;
  timeout_ms: number | null;
  locked_by: string | null;
  locked_at: number | null;
  revision: number;
  created_at: number;
  updated_at: number;
  progress?: unknown;
}

/** Milliseconds since 1970: independent of the session's time zone, its digits of floats and the driver's parsers. */
export const ms = (expression: string): string => `(extract(epoch from ${expression}) * 1000)::numeric`;

/** The status of a live row `j`. */
export const liveStatus = `case
      when j.locked_by is not null then 'running'
      when j.parked = 'exhausted' then 'exhausted'
      when j.parked in ('parents', 'key') then 'blocked'
      when j.run_at > clock_timestamp() and j.snoozed then 'snoozed'
      when j.run_at > clock_timestamp() then 'scheduled'
      else 'available'
    end`;

/** The status of any job: without a live row it is completed unless its last record `h` says that it was cancelled. */
export const anyStatus = `case
      when j.id is not null then ${liveStatus} when h.status = 'cancelled' then 'cancelled' else 'completed'
    end`;
export const lastAttempts = 'coalesce(j.attempts, h.attempt, 0)';
export const lastRunAt = ms("coalesce(j.run_at, h.started_at - h.queue_time_ms * interval '1 ms', b.run_at)");
export const lastUpdatedAt = ms('greatest(b.created_at, j.updated_at, j.locked_at, h.completed_at)');

/** What never changes, from the body row `b`. */
const bodyColumns = `b.task, b.payload, b.queue, b.partition, b.limits, b.job_key_mode, to_json(b.flags) as flags,
    to_json(b.tags) as tags, b.group_id, to_json(b.depends_on) as depends_on, b.timeout_ms, ${ms('b.created_at')} as created_at`;

/**
 * The columns of any job: row `b` of job_bodies, row `j` of jobs or nulls, row `h` (the last attempt) of job_history
 * or nulls.
 */
export const anyJobColumns = (schema: string): string => `b.id, ${bodyColumns},
    ${anyStatus} as status,
    coalesce(j.priority, b.priority) as priority,
    ${lastRunAt} as run_at, ${lastAttempts} as attempts,
    coalesce(j.max_attempts, b.max_attempts) as max_attempts,
    coalesce(j.last_error, h.error_message) as last_error,
    case when j.id is null then b.job_key
      when j.job_key is not null and exists (select from ${schema}.job_keys k where k.key = j.job_key and k.job_id = j.id)
        then j.job_key end as job_key,
    coalesce(w.label, j.locked_by) as locked_by, ${ms('j.locked_at')} as locked_at,
    coalesce(j.revision, 0) as revision,
    ${lastUpdatedAt} as updated_at, p.value as progress`;

/** Joins `j`, `h` and `p` to the bodies `b`. */
export const joinLiveAndLast = (schema: string): string => `left join ${schema}.jobs j on j.id = b.id
  left join ${schema}.job_progress p on p.job_id = b.id
  left join ${schema}.workers w on w.id = j.locked_by
  left join lateral (
    select * from ${schema}.job_history h
    where h.job_id = b.id and j.id is null
    order by h.fence desc limit 1
  ) h on true`;
