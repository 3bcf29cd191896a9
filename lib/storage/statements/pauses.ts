// Pauses: what claims leave alone until it is resumed, or until a time. Those of queues are in the queues' own rows.
import { statement } from '../database.js';
import { ms } from './job-columns.js';

/**
 * $1 kind ('queue', or one of job_pauses), $2 name, $3 partition, $4 until or null, $5 reason, $6 by. Returns the pause; no
 * row where `until` has passed.
 */
const pausing = (schema: string): string => `
  select $1::text as kind, $2::text as name, $3::text as partition, ${ms('since')} as since, ${ms('$4::timestamptz')} as until,
    $5::text as reason, $6::text as paused_by
  from ${schema}.pause_target($1::text, $2::text, $3::text, $4::timestamptz, $5::text, $6::text)`;

export const pauseTarget = statement<PauseRow>('pause_target', pausing, { repeatable: true, limited: true });

/** The same of a queue, whose pause is in its own row: a worker's role may write that. */
export const pauseQueue = statement<PauseRow>('pause_queue', pausing, { repeatable: true, limited: true });

/** $1 kind, $2 name, $3 partition. Returns the pause that it has ended. */
const resuming = (schema: string): string => `
  select $1::text as kind, $2::text as name, $3::text as partition, ${ms('since')} as since, ${ms('until')} as until, reason,
    paused_by
  from ${schema}.resume_target($1::text, $2::text, $3::text)`;

export const resumeTarget = statement<PauseRow>('resume_target', resuming, { repeatable: true, limited: true });

/** The same of a queue. */
export const resumeQueue = statement<PauseRow>('resume_queue', resuming, { repeatable: true, limited: true });

/** Transactions that claim now. $1 those known to do so, or null: all. */
export const claimsUnderWay = statement<{ claims: string[] }>(
  'claims_under_way',
  (schema) => `select to_json(${schema}.claims_under_way($1::text[])) as claims`,
  { repeatable: true, patient: true },
);

export interface PauseRow {
  kind: 'all' | 'instance' | 'partition' | 'queue' | 'task' | 'worker';
  name: string;
  partition: string;
  since: number | null;
  until: number | null;
  reason: string | null;
  paused_by: string | null;
}

/** Those in force, the oldest first. */
export const listPauses = statement<PauseRow>(
  'list_pauses',
  (schema) => `
  select kind, name, partition, ${ms('since')} as since, ${ms('until')} as until, reason, paused_by
  from ${schema}.pauses_in_force()`,
  { repeatable: true, patient: true },
);

/**
 * What a pool must know of pauses: those of tasks, of everything, of its instance and of itself, and the database's time in ms,
 * from before they were read. $1 incarnation. Indexes: job_pauses_of_claims, workers_pkey.
 */
export const findPauses = statement<{ present: number; pauses: [kind: string, name: string, until: number | null][] }>(
  'find_pauses',
  (schema) => `
  select ${ms('c.present')} as present, (
    select coalesce(json_agg(json_build_array(p.kind, p.name, ${ms('p.until')}) order by p.kind, p.name), '[]')
    from ${schema}.job_pauses p left join ${schema}.workers w on w.id = $1
    where p.kind <> 'partition' and ${schema}.is_in_force(true, p.until, c.present) and case p.kind
      when 'instance' then p.name = w.instance
      when 'worker' then p.name = w.label
      else true
    end
  ) as pauses
  from (select clock_timestamp() as present offset 0) c`,
  { repeatable: true },
);
