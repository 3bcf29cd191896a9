// What waiting for jobs asks again and again: which have ended. Bodies are read by their index alone, so that large
// payloads cost nothing until a job has ended.
import { statement } from '../database.js';

export interface WaitedRow {
  id: string;
  ended: boolean;
}

/** $1 ids. Returns nothing for jobs that do not exist. Indexes: job_bodies_pkey, jobs_pkey. */
export const findEnded = statement<WaitedRow>(
  'find_ended',
  (schema) => `
  select b.id, j.id is null or (j.parked = 'exhausted' and j.locked_by is null) as ended
  from ${schema}.job_bodies b left join ${schema}.jobs j on j.id = b.id
  where b.id = any($1::uuid[])`,
  { repeatable: true },
);
