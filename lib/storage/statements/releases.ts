// Which release may change what another one has declared: the newest of those that run.
import { statement } from '../database.js';

/** Whether a pool runs the release `alias`. */
export const isRunning = (schema: string, alias: string): string => `exists (
      select from unnest(${alias}.worker_ids) as member(id) where ${schema}.worker_is_alive(member.id, ${alias}.joined_at)
    )`;

/** Whether a release may change what `theirs` has declared: it is not older, or no pool runs the other one any more. */
export const mayChange = (schema: string, mine: string, theirs: string): string =>
  `${schema}.may_change(${mine}, ${theirs})`;

/** $1 release, $2 the label of the worker that runs it, or null for a process without a pool. Forgets workers that are gone. */
export const joinRelease = statement<never>(
  'join_release',
  (schema) => `
  insert into ${schema}.releases as r (id, worker_ids)
  values ($1, case when $2::text is null then '{}' else array[$2::text] end)
  on conflict (id) do update set joined_at = clock_timestamp(), worker_ids = array(
    select member.id from unnest(r.worker_ids) as member(id)
    where member.id <> $2 and ${schema}.worker_is_alive(member.id, r.joined_at)
    union all select $2
  )
  where $2::text is not null`,
);

/** $1 worker. */
export const leaveReleases = statement<never>(
  'leave_releases',
  (schema) => `
  update ${schema}.releases set worker_ids = array_remove(worker_ids, $1) where $1 = any(worker_ids)`,
);

/** Forgets releases that no pool has started for long, and none runs. */
export const pruneReleases = statement<never>(
  'prune_releases',
  (schema) => `
  delete from ${schema}.releases r
  where r.id in (
    select r.id from ${schema}.releases r
    where r.joined_at < clock_timestamp() - interval '90 days' and not ${isRunning(schema, 'r')}
    for update skip locked
  )`,
  { repeatable: true },
);
