// Bulk actions: the record of each, and the pages by which pools perform them. The functions are of
// migrations/0001_initial/8_bulk.sql.
import type { BulkActionName, BulkReason, BulkState } from '../../interfaces/bulk.interface.js';
import type { JobStatus } from '../../interfaces/job.interface.js';
import { statement } from '../database.js';
import { ms } from './job-columns.js';

export interface BulkActionRow {
  id: string;
  action: BulkActionName;
  state: BulkState;
  filter: unknown;
  settings: unknown;
  asked_by: string;
  reason: string | null;
  rate_per_s: number | null;
  created_at: number;
  started_at: number | null;
  finished_at: number | null;
  held: number;
  matched: number;
  done: number;
  failed: number;
  skipped: number;
  reasons: BulkReason[];
  error: string | null;
}

const columns = `a.id, a.action, a.state, a.filter, a.settings, a.asked_by, a.reason, a.rate_per_s,
    ${ms('a.created_at')} as created_at, ${ms('a.started_at')} as started_at, ${ms('a.finished_at')} as finished_at,
    cardinality(a.held) as held, a.matched::float8 as matched, a.done::float8 as done, a.failed::float8 as failed,
    a.skipped::float8 as skipped, a.reasons, a.error`;

/**
 * Jobs with ids up to the youngest one that is known now. $1 id, $2 action, $3 filter, $4 settings, $5 by, $6 reason,
 * $7 jobs a second, or null. Index: job_bodies_pkey, backwards.
 */
export const addBulkAction = statement<BulkActionRow>(
  'add_bulk_action',
  (schema) => `
  insert into ${schema}.job_bulk_actions as a (id, action, filter, settings, asked_by, reason, rate_per_s, last_id)
  values ($1::uuid, $2::text, $3::json, $4::json, $5::text, $6::text, $7::integer, coalesce(
    (select b.id from ${schema}.job_bodies b order by b.id desc limit 1), '00000000-0000-0000-0000-000000000000'
  ))
  returning ${columns}`,
  { patient: true },
);

/** $1 id. Index: job_bulk_actions_pkey. */
export const findBulkAction = statement<BulkActionRow>(
  'find_bulk_action',
  (schema) => `select ${columns} from ${schema}.job_bulk_actions a where a.id = $1::uuid`,
  { repeatable: true, patient: true },
);

/** Newest first. $1 only ids below, or null; $2 how many. Index: job_bulk_actions_pkey, backwards. */
export const listBulkActions = statement<BulkActionRow>(
  'list_bulk_actions',
  (schema) => `
  select ${columns} from ${schema}.job_bulk_actions a
  where $1::uuid is null or a.id < $1::uuid order by a.id desc limit $2`,
  { repeatable: true, patient: true },
);

/** Ends an action that has not ended: a page that is under way finds this out at its end, and is undone. $1 id. */
export const stopBulkAction = statement<BulkActionRow>(
  'stop_bulk_action',
  (schema) => `
  update ${schema}.job_bulk_actions a set state = 'stopped', finished_at = clock_timestamp()
  where a.id = $1::uuid and a.finished_at is null
  returning ${columns}`,
  { patient: true },
);

/** In how many ms a page is due; null: nothing is to be done. Index: job_bulk_actions_open. */
export const nextBulkPage = statement<{ due_in: number | null }>(
  'next_bulk_page',
  (schema) => `
  select case when bool_or(a.next_at > clock_timestamp() + interval '2 min') then 0
    when count(*) > 0 then greatest(0, extract(epoch from min(a.next_at) - clock_timestamp()) * 1000)::float8 end as due_in
  from ${schema}.job_bulk_actions a where a.finished_at is null`,
  { repeatable: true },
);

export interface TakenRow {
  id: string;
  action: BulkActionName;
  state: BulkState;
  filter: unknown;
  settings: unknown;
  reason: string | null;
  rate_per_s: number | null;
  last_id: string;
  position: string | null;
  held: string[];
  held_tries: number;
  pages: number;
  failures: number;
  reasons: BulkReason[];
  /** As PostgreSQL writes it, to the microsecond. */
  known_by: string;
}

/** Takes the turn of the action that is due for longest, until the transaction ends. */
export const takeBulkAction = statement<TakenRow>(
  'take_bulk_action',
  (schema) => `
  select a.id, a.action, a.state, a.filter, a.settings, a.reason, a.rate_per_s, a.last_id, a.position,
    to_json(a.held) as held, a.held_tries, a.pages, a.failures, a.reasons, to_json(a.created_at) #>> '{}' as known_by
  from ${schema}.take_bulk_action() a`,
  { limited: true },
);

/**
 * The next jobs that match. $1 source: live, exhausted, or all, $2 position, $3 last id, $4 filter, $5 statuses, $6 known by,
 * $7 most matches, $8 most ids that are looked at.
 */
export const findBulkPage = statement<{ ids: string[]; next_id: string | null; looked_at: number }>(
  'find_bulk_page',
  (schema) => `
  select to_json(p.ids) as ids, p.next_id, p.looked_at from ${schema}.bulk_page(
    $1::text, $2::uuid, $3::uuid, $4::json, $5::text[], $6::timestamptz, $7::integer, $8::integer) p`,
  { repeatable: true, limited: true, patient: true },
);

/** About how many jobs there are to look at. $1 source, as above. Index: jobs_exhausted; else the statistics of the tables. */
export const countBulkSource = statement<{ jobs: number }>(
  'count_bulk_source',
  (schema) => `
  select case $1::text
    when 'exhausted' then (
      select count(*) from (select from ${schema}.jobs j where j.parked = 'exhausted' limit 1000000) e
    )::float8
    else (
      select sum(greatest(c.reltuples, 0)) from pg_catalog.pg_class c where c.oid in (
        select '${schema.replaceAll("'", "''")}.jobs'::regclass where $1 = 'live'
        union all
        select i.inhrelid from pg_catalog.pg_inherits i
        where i.inhparent = '${schema.replaceAll("'", "''")}.job_bodies'::regclass and $1 <> 'live'
      )
    )::float8
  end as jobs`,
  { repeatable: true, patient: true },
);

/** Those that match, with their status. $1 ids, $2 filter, $3 statuses, $4 known by. */
export const bulkMatches = statement<{ id: string; status: JobStatus }>(
  'bulk_matches',
  (schema) => `select * from ${schema}.bulk_matches($1::uuid[], $2::json, $3::text[], $4::timestamptz)`,
  { repeatable: true, limited: true },
);

/** Locks jobs and returns those that are locked. $1 ids, $2 the lock on their bodies: none, keep, or update. */
export const lockBulkJobs = statement<{ ids: string[] }>(
  'lock_bulk_jobs',
  (schema) => `select to_json(${schema}.lock_bulk_jobs($1::uuid[], $2::text)) as ids`,
  { limited: true },
);

/** Locks keys, but for those that others hold. $1 keys. Index: job_keys_pkey. */
export const tryLockKeys = statement<{ key: string }>(
  'try_lock_keys',
  (schema) =>
    `select k.key from ${schema}.job_keys k where k.key = any($1::text[]) order by k.key for update skip locked`,
);

/** Gives waiting jobs another queue. $1 ids, $2 queue or null. */
export const moveJobs = statement<{ id: string; lane: string | null }>(
  'move_jobs',
  (schema) => `select * from ${schema}.move_jobs($1::uuid[], $2::text)`,
  { limited: true },
);

/**
 * Writes down what a page has done: no row where the action has ended meanwhile, or another process has done the page.
 * $1 id, $2 pages before it, $3 position, $4 held jobs or null: as they were, $5 tries of these, $6 matched, $7 done, $8 failed,
 * $9 skipped, $10 reasons or null, $11 ms until the next page, $12 whether it was the last. Index: job_bulk_actions_pkey.
 */
export const moveBulkAction = statement<BulkActionRow>(
  'move_bulk_action',
  (schema) => `
  update ${schema}.job_bulk_actions a
  set state = case when $12::boolean then 'completed' else 'running' end,
    started_at = coalesce(a.started_at, now()),
    finished_at = case when $12::boolean then clock_timestamp() end,
    position = $3::uuid, held = coalesce($4::uuid[], a.held), held_tries = $5::smallint, pages = a.pages + 1,
    matched = a.matched + $6::integer, done = a.done + $7::integer, failed = a.failed + $8::integer,
    skipped = a.skipped + $9::integer, reasons = coalesce($10::json, a.reasons), failures = 0, error = null,
    next_at = clock_timestamp() + $11::float8 * interval '1 ms'
  where a.id = $1::uuid and a.finished_at is null and a.pages = $2::integer
  returning ${columns}`,
);

/** A page went wrong as a whole. $1 id, $2 pages before it, $3 why, $4 ms until it is tried again, $5 most tries. */
export const putOffBulkAction = statement<BulkActionRow>(
  'put_off_bulk_action',
  (schema) => `
  update ${schema}.job_bulk_actions a
  set failures = a.failures + 1, error = $3::text,
    next_at = clock_timestamp() + least(60000, $4::float8 * 2 ^ a.failures) * interval '1 ms',
    state = case when a.failures + 1 >= $5::integer then 'failed' else a.state end,
    finished_at = case when a.failures + 1 >= $5::integer then clock_timestamp() end
  where a.id = $1::uuid and a.finished_at is null and a.pages = $2::integer
  returning ${columns}`,
);

/** Forgets actions that ended so long ago. $1 retention in ms. */
export const pruneBulkActions = statement(
  'prune_bulk_actions',
  (schema) => `
  delete from ${schema}.job_bulk_actions a where a.ctid = any(array(
    select o.ctid from ${schema}.job_bulk_actions o
    where o.finished_at <= clock_timestamp() - $1::bigint * interval '1 ms' for update skip locked
  ))`,
);

/** Parts of a page: one that fails takes nothing else of the page along. */
export const beginPart = statement('begin_part', () => 'savepoint millrace_part');
export const keepPart = statement('keep_part', () => 'release savepoint millrace_part');
export const undoPart = statement('undo_part', () => 'rollback to savepoint millrace_part');
