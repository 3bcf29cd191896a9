// Jobs that wait for others: parents, children, and what becomes of a child when a parent has ended.
import { statement } from '../database.js';

/**
 * Locks parents until the transaction that adds their children has ended, so that none can end unseen meanwhile: a
 * settle skips a locked job, and settles it when it can see the children. Claims pass it over until then.
 * $1 ids. Returns the ids that exist, live or finished.
 */
export const lockParents = statement<{ id: string }>(
  'lock_parents',
  (schema) => `
  with live as materialized (
    select j.id from ${schema}.jobs j where j.id = any($1::uuid[]) order by j.id for key share
  )
  select b.id from ${schema}.job_bodies b where b.id = any($1::uuid[]) and (select count(*) from live) >= 0`,
);

/**
 * The parents for which these jobs wait, or waited when they were cancelled. Locked, as by lockParents, and so is the
 * wait itself: nobody can resolve it until the transaction has ended. $1 ids. Index: job_dependencies_of_child.
 */
export const lockParentsOf = statement<{ id: string }>(
  'lock_parents_of',
  (schema) => `
  with waits as materialized (
    select d.parent_id from ${schema}.job_dependencies d
    where d.child_id = any($1::uuid[]) order by d.child_id, d.parent_id for update
  ),
  live as materialized (
    select j.id from ${schema}.jobs j where j.id in (select parent_id from waits) order by j.id for key share
  )
  select distinct parent_id as id from waits where (select count(*) from live) >= 0`,
);

/** $1 children, $2 their parents, pair by pair; what the children waited for before is forgotten. */
export const linkParents = statement(
  'link_parents',
  (schema) => `
  with pairs as materialized (
    select * from unnest($1::uuid[], $2::uuid[]) as pair(child_id, parent_id)
  ),
  old as (
    delete from ${schema}.job_dependencies d using pairs p
    where d.child_id = p.child_id
      and not exists (select from pairs kept where kept.child_id = d.child_id and kept.parent_id = d.parent_id)
  )
  insert into ${schema}.job_dependencies (parent_id, child_id)
  select parent_id, child_id from pairs order by parent_id, child_id
  on conflict do nothing`,
);

export interface ResolvedRow {
  id: string;
  became: 'released' | 'cancelled' | 'waiting';
}

/**
 * Tells children that these parents have ended. A child whose last parent is met is ready; one whose parent failed for
 * good does as its on_parent_failure says. $1 parents, $2 channel, $3 retention in ms.
 *
 * A statement of its own after the one that ended the parents: only its own snapshot shows children that were added
 * while that one ran. Two parents that end at once meet at the child's row: unmet is counted on its latest version.
 * Indexes: job_dependencies_pkey, the primary keys of jobs and bodies, job_history_by_job.
 */
export const resolveDependents = statement<ResolvedRow>(
  'resolve_dependents',
  (schema) => `
  with ended as materialized (
    select d.parent_id, d.child_id, coalesce(child.on_parent_failure, 'cancel') as policy,
      j.id is null and b.id is not null and h.status is distinct from 'cancelled' as completed
    from ${schema}.job_dependencies d
    left join ${schema}.jobs j on j.id = d.parent_id
    left join ${schema}.job_bodies b on b.id = d.parent_id
    left join ${schema}.job_bodies child on child.id = d.child_id
    left join lateral (
      select status from ${schema}.job_history h where h.job_id = d.parent_id order by h.fence desc limit 1
    ) h on j.id is null
    where d.parent_id = any($1::uuid[]) and (j.id is null or j.parked = 'exhausted')
    order by d.child_id, d.parent_id
    for update of d
  ),
  verdicts as materialized (
    select child_id, count(*) filter (where completed or policy <> 'wait') as over,
      (array_agg(parent_id) filter (where not completed and policy = 'cancel'))[1] as failed_parent
    from ended group by child_id
  ),
  children as materialized (
    select j.*, v.over, v.failed_parent
    from ${schema}.jobs j join verdicts v on v.child_id = j.id order by j.id for update of j
  ),
  gone as (
    delete from ${schema}.jobs j using children c
    where j.id = c.id and c.failed_parent is not null and j.locked_by is null and j.parked in ('parents', 'key')
    returning j.id, j.fence, j.attempts, c.failed_parent
  ),
  recorded as (
    insert into ${schema}.job_history (job_id, fence, expires_at, status, attempt, error_message)
    select id, fence + 1, now() + $3::bigint * interval '1 ms', 'cancelled', attempts,
      'parent job ' || failed_parent || ' did not complete'
    from gone
  ),
  -- Also on a child that is exhausted: it may be retried, and must not wait for a parent that is forgotten.
  counted as (
    update ${schema}.jobs j
    set unmet = greatest(0, j.unmet - c.over), updated_at = now(),
      parked = case when j.parked = 'parents' and j.unmet <= c.over then null else j.parked end
    from children c
    where j.id = c.id and c.over > 0
      and (c.failed_parent is null or c.locked_by is not null or c.parked is null or c.parked not in ('parents', 'key'))
    returning j.id, j.parked
  ),
  forgotten as (
    delete from ${schema}.job_dependencies d using ended e
    where d.parent_id = e.parent_id and d.child_id = e.child_id and (e.completed or e.policy <> 'wait')
  ),
  announced as materialized (
    select pg_notify($2::text, '') from counted where parked is null limit 1
  )
  select id, 'cancelled' as became from gone
  union all
  select counted.id, case when counted.parked is null then 'released' else 'waiting' end
  from counted left join announced on true`,
);

/** Parents that have ended without their children being told: what a process that died in between leaves behind. */
export const forgottenParents = statement<{ id: string }>(
  'forgotten_parents',
  (schema) => `
  select distinct d.parent_id as id
  from ${schema}.job_dependencies d
  left join ${schema}.jobs j on j.id = d.parent_id
  left join ${schema}.job_bodies child on child.id = d.child_id
  where (j.id is null or j.parked = 'exhausted') and child.on_parent_failure is distinct from 'wait'`,
  { repeatable: true },
);
