// What others may do now that a job has ended: those behind its key, its children. The statements themselves are functions
// of migrations/0001_initial/4_ends.sql. Each finds a state, so it does no harm to repeat one.
import { statement } from '../database.js';
import { inCall } from '../statement.js';
import type { PairRow } from './dependencies.js';

/** Jobs that wait for a key behind what no longer runs, of a slice of those that wait for one. $1 where the slice begins. */
export const findPassedOver = statement<{ waiters: string[]; next_job: string | null }>(
  'find_passed_over',
  (schema) => `select to_json(waiters) as waiters, next_job from ${schema}.find_passed_over($1::uuid)`,
  { limited: true },
);

/** $1 holders that have ended or were given back, or null and $2 waiters, $3 retention in ms. `ended`: a holder that gave way. */
export const freeSuccessors = statement<{ id: string; lane: string | null; ended: boolean }>(
  'free_successors',
  (schema) => `select * from ${schema}.free_successors($1::uuid[], $2::uuid[], $3::bigint)`,
  { limited: true },
);

/** Forgets the owners of keys, where the owner is gone. $1 keys. */
export const freeKeys = statement('free_keys', (schema) => `select ${schema}.free_keys($1::text[])`, { limited: true });

/** The same for a slice of all keys. $1 where it begins. Returns where the next one does; null: at the start. */
export const freeStaleKeys = statement<{ next_key: string | null }>(
  'free_stale_keys',
  (schema) => `select ${schema}.free_stale_keys($1::text) as next_key`,
  { limited: true },
);

export interface ToldRow {
  id: string;
  /** `held`: an open transaction holds the child, and nothing was changed. */
  became: 'released' | 'cancelled' | 'waiting' | 'held';
  lane: string | null;
}

/** Tells children that these parents have ended, or were replaced. $1 parents, $2 retention in ms. */
export const tellChildren = statement<ToldRow>(
  'tell_children',
  (schema) => `select * from ${schema}.tell_children($1::uuid[], $2::bigint)`,
  { limited: true },
);

/** The same to these children alone. $3 children. */
export const tellTheseChildren = statement<ToldRow>(
  'tell_these_children',
  (schema) => `select * from ${schema}.tell_children($1::uuid[], $2::bigint, $3::uuid[])`,
  {
    limited: true,
    withinText: (schema) => `
  select count(*) as told
  from ${schema}.tell_children(case when ${inCall(4)} then $1::uuid[] else '{}' end, $2::bigint, $3::uuid[])
  having ${inCall(4)}`,
  },
);

/** Parents that have ended without their children being told, of a slice. $1 where the slice begins. */
export const findUntold = statement<{ parents: string[]; next_parent: string | null }>(
  'find_untold',
  (schema) => `select to_json(parents) as parents, next_parent from ${schema}.find_untold($1::uuid)`,
  { limited: true },
);

/** Pairs among which circles lie, if jobs wait for each other in one. */
export const findCircles = statement<PairRow>(
  'find_circles',
  (schema) => `select child_id, parent_id from ${schema}.circle_pairs(null)`,
  { limited: true },
);

/** Places of claims that are over, of a slice. $1, $2 where the slice begins. */
export const freePlaces = statement<{ queues: string[] | null; next_queue: string | null; next_number: string | null }>(
  'free_places',
  (schema) => `select to_json(queues) as queues, next_queue, next_number from ${schema}.free_places($1, $2)`,
  { limited: true },
);
