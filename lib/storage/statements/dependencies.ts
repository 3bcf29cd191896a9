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
 * good does as its on_parent_failure says. $1 parents, $2 channel, $3 retention in ms. A statement of its own after the
 * one that ended the parents: only its own snapshot shows children that were added while that one ran. The statement
 * itself is the function of migration 7.
 */
export const resolveDependents = statement<ResolvedRow>(
  'resolve_dependents',
  (schema) => `select * from ${schema}.resolve_dependents($1::uuid[], $2::text, $3::bigint)`,
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
