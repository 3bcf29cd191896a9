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
 * What a pool must know of pauses: those of tasks, of everything, of its instance and of itself, and of the queues and partitions
 * of jobs that it holds, and the database's time in ms, from before they were read. $1 incarnation, $2 queues, $3 partitions of
 * these or nulls. Indexes: job_pauses_of_claims, workers_pkey, job_queues_pkey, job_pauses_pkey.
 */
export const findPauses = statement<{
  present: number;
  pauses: [kind: string, name: string, partition: string, until: number | null][];
}>(
  'find_pauses',
  (schema) => `
  select ${ms('c.present')} as present, (
    select coalesce(json_agg(json_build_array(p.kind, p.name, p.partition, ${ms('p.until')}) order by p.kind, p.name, p.partition), '[]')
    from (
      select p.kind, p.name, '' as partition, p.until from ${schema}.job_pauses p left join ${schema}.workers w on w.id = $1
      where p.kind <> 'partition' and case p.kind
        when 'instance' then p.name = w.instance
        when 'worker' then p.name = w.label
        else true
      end
      union all
      select 'queue', q.name, '', q.paused_until from (select distinct h.queue from unnest($2::text[]) as h(queue)) h
      cross join lateral (select * from ${schema}.job_queues q where q.name = h.queue limit 1) q
      where q.paused
      union all
      select p.kind, p.name, p.partition, p.until from unnest($2::text[], $3::text[]) as h(queue, partition)
      cross join lateral (
        select * from ${schema}.job_pauses p
        where p.kind = 'partition' and p.name = h.queue and p.partition = h.partition limit 1
      ) p
    ) p
    where ${schema}.is_in_force(true, p.until, c.present)
  ) as pauses
  from (select clock_timestamp() as present offset 0) c`,
  { repeatable: true },
);
