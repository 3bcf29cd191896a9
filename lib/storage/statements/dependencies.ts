// Jobs that wait for others: pairs of a child and a parent that it still waits for.
import type { JobStatus } from '../../interfaces/job.interface.js';
import { statement } from '../database.js';
import { anyStatus, joinLiveAndLast, lastAttempts, lastRunAt, lastUpdatedAt, ms } from './job-columns.js';

/** Which of these jobs are known, live or finished. Locks nothing: see keepParents. $1 ids. Index: job_bodies_pkey. */
export const findParents = statement<{ id: string }>(
  'find_parents',
  (schema) => `
  select b.id from ${schema}.job_bodies b where b.id = any($1::uuid[])`,
);

/**
 * Which of these jobs are still known, once their children are linked, or have been replaced since. Keeps their bodies from
 * being forgotten until the transaction ends: retention locks bodies first and looks for children then. Locks no live row, so
 * no parent waits for it. $1 ids. Indexes: job_bodies_pkey, job_replacements_pkey.
 */
export const keepParents = statement<{ id: string }>(
  'keep_parents',
  (schema) => `
  with kept as materialized (
    select b.id from ${schema}.job_bodies b where b.id = any($1::uuid[]) order by b.id for key share
  )
  select id from kept union select r.old_id from ${schema}.job_replacements r where r.old_id = any($1::uuid[])`,
);

/**
 * Whether other jobs wait for any of these, or behind the key of one that runs no more, and the role of this connection may
 * tell them: one that only enqueues may not. $1 ids. Indexes: job_dependencies_pkey, jobs_behind, jobs_pkey.
 */
export const hasOthersToTell = statement<{ waits: boolean }>(
  'has_others_to_tell',
  (schema) => `
  select true as waits where pg_catalog.has_table_privilege('${schema.replaceAll("'", "''")}.jobs', 'update') and (
    exists (select from ${schema}.job_dependencies where parent_id = any($1::uuid[]))
    or exists (
      select from ${schema}.jobs s where s.behind = any($1::uuid[]) and s.parked = 'key'
        and not exists (select from ${schema}.jobs h where h.id = s.behind and h.locked_by is not null)
    )
  )`,
  { repeatable: true },
);

/** For children that are new and have no key: those of a key are linked by add_keyed_jobs. $1 children, $2 parents, pair by pair. */
export const linkParents = statement(
  'link_parents',
  (schema) => `
  insert into ${schema}.job_dependencies (parent_id, child_id)
  select pair.parent_id, pair.child_id from unnest($1::uuid[], $2::uuid[]) as pair(child_id, parent_id)
  order by pair.parent_id, pair.child_id
  on conflict do nothing`,
);

export interface PairRow {
  child_id: string;
  parent_id: string;
}

/** Pairs among which a circle through one of these jobs lies, if there is one: see circle_pairs of 4_ends.sql. $1 ids. */
export const findCircleOf = statement<PairRow>(
  'find_circle_of',
  (schema) => `select child_id, parent_id from ${schema}.circle_pairs($1::uuid[])`,
  { limited: true },
);

/** The parents for which these jobs wait, or waited when they were cancelled. $1 ids. Index: job_dependencies_of_child. */
export const findParentsOf = statement<{ id: string }>(
  'find_parents_of',
  (schema) => `
  select distinct d.parent_id as id from ${schema}.job_dependencies d where d.child_id = any($1::uuid[])`,
);

/**
 * Jobs that came back wait for those of their parents that are under way, or came back with them: what has failed for good
 * does not hold them. $1 ids.
 */
export const relinkParents = statement<{ id: string }>(
  'relink_parents',
  (schema) => `
  with wanted as materialized (
    select b.id as child_id, parent.id as parent_id
    from ${schema}.job_bodies b cross join lateral unnest(b.depends_on) as asked(id)
    cross join lateral ${schema}.heir_of(asked.id, b.id) as parent(id)
    join ${schema}.jobs p on p.id = parent.id and p.parked is distinct from 'exhausted'
    where b.id = any($1::uuid[]) and b.depends_on is not null
  ),
  linked as (
    insert into ${schema}.job_dependencies (parent_id, child_id)
    select distinct parent_id, child_id from wanted on conflict do nothing
  ),
  counted as (
    select child_id, count(distinct parent_id)::integer as unmet from (
      select child_id, parent_id from wanted
      union
      select d.child_id, d.parent_id from ${schema}.job_dependencies d where d.child_id = any($1::uuid[])
    ) pairs group by child_id
  )
  update ${schema}.jobs j set unmet = c.unmet, parked = coalesce(j.parked, 'parents')
  from counted c where j.id = c.child_id and c.unmet > 0
  returning j.id`,
);

export interface RelativeRow {
  id: string;
  parents: string[];
  task: string;
  status: JobStatus;
  queue: string | null;
  group_id: string | null;
  attempts: number;
  max_attempts: number;
  run_at: number;
  created_at: number;
  updated_at: number;
  on_parent_failure: 'cancel' | 'run' | 'wait' | null;
}

/** A job, its ancestors and its descendants, nearest first, without what may be large. $1 id, $2 how many at most. */
export const findFamily = statement<RelativeRow>(
  'find_family',
  (schema) => `
  select b.id, to_json(f.parents) as parents, b.task, ${anyStatus} as status, b.queue, b.group_id,
    ${lastAttempts} as attempts, coalesce(j.max_attempts, b.max_attempts) as max_attempts,
    ${lastRunAt} as run_at, ${ms('b.created_at')} as created_at, ${lastUpdatedAt} as updated_at,
    case when b.depends_on is not null then coalesce(b.on_parent_failure, 'cancel') end as on_parent_failure
  from ${schema}.family_of($1::uuid, $2::integer) with ordinality as f(id, parents, place)
  join ${schema}.job_bodies b on b.id = f.id
  ${joinLiveAndLast(schema)}
  order by f.place`,
  { repeatable: true, patient: true },
);
