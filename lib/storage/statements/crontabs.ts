// Recurring jobs: one small row for each crontab, found by its primary key or read whole.
import type { CronJobOptions, CronOverlap } from '../../interfaces/cron.interface.js';
import { statement } from '../database.js';
import { ms } from './job-columns.js';

/** What decides when a crontab is due. */
export interface CronTimingRow {
  id: string;
  schedule: string;
  time_zone: string;
  backfill_ms: string;
  /** After this moment, its slots have neither been fired nor passed over. */
  open_since: number;
  /** The database's clock. */
  now: number;
}

export interface CrontabRow extends CronTimingRow {
  task: string;
  payload: unknown;
  options: CronJobOptions;
  overlap: CronOverlap;
  declared: boolean;
  known_since: number;
  last_slot_at: number | null;
  last_job_id: string | null;
}

export interface LockedCrontabRow extends CrontabRow {
  /** Whether its last job still waits or runs. */
  busy: boolean;
}

const timingColumns = `c.id, c.schedule, c.time_zone, c.backfill_ms,
    ${ms('greatest(c.known_since, c.last_slot_at)')} as open_since, ${ms('clock_timestamp()')} as now`;
const crontabColumns = `${timingColumns}, c.task, c.payload, c.options, c.overlap, c.declared,
    ${ms('c.known_since')} as known_since, ${ms('c.last_slot_at')} as last_slot_at, c.last_job_id`;

/**
 * $1 id, $2 task, $3 schedule, $4 time zone, $5 payload and $6 options as JSON, $7 backfill in ms, $8 overlap,
 * $9 declared. Another schedule takes effect from now on: its slots before are none. Returns nothing where a
 * declaration meets a crontab that was scheduled by hand, which wins.
 */
export const putCrontab = statement<CrontabRow>(
  'put_crontab',
  (schema) => `
  with put as (
    insert into ${schema}.crontabs as c
      (id, task, schedule, time_zone, payload, options, backfill_ms, overlap, declared)
    values ($1, $2, $3, $4, $5::text::json, $6::text::json, $7::bigint, $8, $9::boolean)
    on conflict (id) do update set task = excluded.task, schedule = excluded.schedule,
      time_zone = excluded.time_zone, payload = excluded.payload, options = excluded.options,
      backfill_ms = excluded.backfill_ms, overlap = excluded.overlap, declared = excluded.declared,
      known_since = case
        when (c.task, c.schedule, c.time_zone) = (excluded.task, excluded.schedule, excluded.time_zone)
        then c.known_since else clock_timestamp()
      end,
      updated_at = clock_timestamp()
    where c.declared or not excluded.declared
    returning *
  )
  select ${crontabColumns} from put c`,
);

export const dropCrontab = statement<{ id: string }>(
  'drop_crontab',
  (schema) => `
  delete from ${schema}.crontabs where id = $1 returning id`,
);

/** $1 the tasks that a process handles, $2 the ids that it declares: the other declared crontabs of these tasks go. */
export const dropUndeclared = statement<{ id: string }>(
  'drop_undeclared_crontabs',
  (schema) => `
  delete from ${schema}.crontabs
  where declared and task = any($1::text[]) and id <> all($2::text[])
  returning id`,
);

export const listCrontabs = statement<CrontabRow>(
  'list_crontabs',
  (schema) => `
  select ${crontabColumns} from ${schema}.crontabs c order by c.id`,
  { repeatable: true },
);

/** Read by each pool before each slot, and twice a minute: reads the whole table, without payloads. */
export const listCronTimings = statement<CronTimingRow>(
  'list_cron_timings',
  (schema) => `
  select ${timingColumns} from ${schema}.crontabs c`,
  { repeatable: true, prompt: true },
);

/**
 * $1 id. Who comes second waits here, and then sees what the first has done. Materialized, so that the clock is read
 * after the wait. Indexes: crontabs_pkey, jobs_pkey.
 */
export const lockCrontab = statement<LockedCrontabRow>(
  'lock_crontab',
  (schema) => `
  with c as materialized (
    select * from ${schema}.crontabs where id = $1 for update
  )
  select ${crontabColumns}, exists (
    select from ${schema}.jobs j where j.id = c.last_job_id and j.parked is distinct from 'exhausted'
  ) as busy
  from c`,
);

/** $1 id, $2 the last slot that was fired or passed over, in ms, $3 the last job or null. Moves forward only. */
export const advanceCrontab = statement<never>(
  'advance_crontab',
  (schema) => `
  update ${schema}.crontabs
  set last_slot_at = to_timestamp($2::float8 / 1000), last_job_id = coalesce($3::uuid, last_job_id)
  where id = $1 and (last_slot_at is null or last_slot_at < to_timestamp($2::float8 / 1000))`,
);
