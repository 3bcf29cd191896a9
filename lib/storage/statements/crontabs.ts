// Recurring jobs: one small row for each crontab, found by its primary key or read whole.
import type { CronJobOptions, CronOverlap } from '../../interfaces/cron.interface.js';
import { statement } from '../database.js';
import { ms } from './job-columns.js';
import { isRunning, mayChange } from './releases.js';

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

const timingColumns = `c.id, c.schedule, c.time_zone, c.backfill_ms,
    ${ms('greatest(c.known_since, c.last_slot_at)')} as open_since, ${ms('clock_timestamp()')} as now`;
const crontabColumns = `${timingColumns}, c.task, c.payload, c.options, c.overlap, c.declared,
    ${ms('c.known_since')} as known_since, ${ms('c.last_slot_at')} as last_slot_at, c.last_job_id`;

/** What a clock that was ahead once has left behind would keep the crontab silent until then; see set_back_times. */
const isAhead = `greatest(c.known_since, c.last_slot_at) > clock_timestamp() + interval '1 min'`;

/** What an update makes of the slots: with the same task and times, those that are due stay due. */
const keepSlots = `
      known_since = case
        when (c.task, c.schedule, c.time_zone) = (excluded.task, excluded.schedule, excluded.time_zone)
          and not ${isAhead}
          and (c.retired_at is null or c.retired_at > clock_timestamp() - interval '1 day')
        then c.known_since else clock_timestamp()
      end,
      last_slot_at = case when ${isAhead} then null else c.last_slot_at end`;

const putColumns = 'id, task, schedule, time_zone, payload, options, backfill_ms, overlap';
const putValues = '$1, $2, $3, $4, $5::text::json, $6::text::json, $7::bigint, $8';
const setColumns = `task = excluded.task, schedule = excluded.schedule, time_zone = excluded.time_zone,
      payload = excluded.payload, options = excluded.options, backfill_ms = excluded.backfill_ms,
      overlap = excluded.overlap, declared = excluded.declared, release = excluded.release,
      content = excluded.content, retired_at = null, updated_at = clock_timestamp(),${keepSlots}`;

/**
 * By hand. $1 id, $2 task, $3 schedule, $4 time zone, $5 payload and $6 options as JSON, $7 backfill in ms, $8 overlap.
 * Another schedule takes effect from now on: its slots before are none.
 */
export const putCrontab = statement<CrontabRow>(
  'put_crontab',
  (schema) => `
  with put as (
    insert into ${schema}.crontabs as c (${putColumns}) values (${putValues})
    on conflict (id) do update set ${setColumns}
    returning *
  )
  select ${crontabColumns} from put c`,
  { brief: true },
);

/**
 * As a task declares it. $1 to $8 as for putCrontab, $9 release, $10 the content's digest, $11 whether one that is not
 * there is added: an operator may have removed it. Changes nothing where it was scheduled by hand, which wins, where a
 * newer release that runs has declared it, and where all is as declared.
 */
export const declareCrontab = statement<never>(
  'declare_crontab',
  (schema) => `
  insert into ${schema}.crontabs as c (${putColumns}, declared, release, content)
  select ${putValues}, true, $9, $10
  where $11::boolean or exists (select from ${schema}.crontabs where id = $1)
  on conflict (id) do update set ${setColumns}
  where c.declared
    and (
      (c.release, c.content) is distinct from (excluded.release, excluded.content) or c.retired_at is not null
      or ${isAhead}
    )
    and ${mayChange(schema, 'excluded.release', 'c.release')}`,
  { brief: true },
);

/** $1 ids, $2 their contents' digests. Returns those that are not as declared. Reads the table by its primary key. */
export const findUndeclared = statement<{ id: string }>(
  'find_undeclared_crontabs',
  (schema) => `
  select mine.id from unnest($1::text[], $2::text[]) as mine(id, content)
  left join ${schema}.crontabs c on c.id = mine.id
  where c.id is null or (c.declared and (c.content is distinct from mine.content or c.retired_at is not null
    or ${isAhead}))`,
  { repeatable: true },
);

export const dropCrontab = statement<{ id: string }>(
  'drop_crontab',
  (schema) => `
  with dropped as (delete from ${schema}.crontabs where id = $1 returning id, retired_at)
  select id from dropped where retired_at is null`,
  { brief: true },
);

/**
 * Retires what no release declares any more, and forgets what was retired for a day. $1 release, $2 the tasks that its
 * processes handle, $3 the ids that it declares. Other declared crontabs of these tasks go, unless a newer release that
 * runs has declared them. Those of tasks that it does not handle go with the older release that has declared them, once no
 * pool runs that release or handles the task. Rows that others hold are left for the next time.
 */
export const retireCrontabs = statement<never>(
  'retire_crontabs',
  (schema) => `
  with mine as materialized (select * from ${schema}.releases where id = $1),
  left_over as materialized (
    select c.id, c.task, c.retired_at from ${schema}.crontabs c
    where c.declared and (
      c.retired_at < clock_timestamp() - interval '1 day'
      or c.retired_at is null and c.id <> all($3::text[]) and case
        when c.task = any($2::text[]) then ${mayChange(schema, '$1', 'c.release')}
        else not exists (
            select from ${schema}.releases r
            where r.id = c.release and (r.first_seen_at >= (select first_seen_at from mine) or ${isRunning(schema, 'r')})
          ) and not exists (
            select from ${schema}.workers w where c.task = any(w.tasks) and w.stopped_at is null
              and w.heartbeat_at + w.lease_ms * interval '1 ms' > clock_timestamp()
          )
      end
    )
    for update of c skip locked
  ),
  forgotten as (
    delete from ${schema}.crontabs c using left_over l where c.id = l.id and l.retired_at is not null
  )
  update ${schema}.crontabs c
  set retired_at = clock_timestamp(), release = case when l.task = any($2::text[]) then $1 else c.release end
  from left_over l where c.id = l.id and l.retired_at is null`,
);

export const listCrontabs = statement<CrontabRow>(
  'list_crontabs',
  (schema) => `
  select ${crontabColumns} from ${schema}.crontabs c where c.retired_at is null order by c.id`,
  { repeatable: true, patient: true },
);

/** Read by each pool before each slot, and twice a minute: reads the whole table, without payloads. */
export const listCronTimings = statement<CronTimingRow>(
  'list_cron_timings',
  (schema) => `
  select ${timingColumns} from ${schema}.crontabs c where c.retired_at is null`,
  { repeatable: true },
);

/**
 * $1 id. Returns nothing where another process fires it, or any transaction holds its row: that must not keep other
 * crontabs from firing. Materialized, so that the clock is read after the lock. Index: crontabs_pkey.
 */
export const lockCrontab = statement<CrontabRow>(
  'lock_crontab',
  (schema) => `
  with c as materialized (
    select * from ${schema}.crontabs where id = $1 and retired_at is null for update skip locked
  )
  select ${crontabColumns} from c`,
);

/**
 * Whether a crontab's last job still waits or runs. $1 its id. A statement of its own behind the lock: that one's snapshot
 * may be older than the job that another process has just added. Index: jobs_pkey.
 */
export const isBusy = statement<{ busy: boolean }>(
  'is_crontab_busy',
  (schema) => `
  select exists (
    select from ${schema}.jobs j where j.id = $1::uuid and j.parked is distinct from 'exhausted'
  ) as busy`,
);

/** $1 id, $2 the last slot that was fired or passed over, in ms, $3 the last job or null. Moves forward only. */
export const advanceCrontab = statement<never>(
  'advance_crontab',
  (schema) => `
  update ${schema}.crontabs
  set last_slot_at = to_timestamp($2::float8 / 1000), last_job_id = coalesce($3::uuid, last_job_id)
  where id = $1 and (last_slot_at is null or last_slot_at < to_timestamp($2::float8 / 1000))`,
);
