// What must hold whatever has been done to a queue, read from the tables: the judge of all specs in this folder.
import type { TestManager } from '../support/manager.js';

export type Sql = TestManager['sql'];

/** Rules that hold in every committed state. Each selects what breaks it, as a text. */
const ALWAYS: Record<string, string> = {
  'attempts stay within 0 … max': `
    select id || ' has made ' || attempts || ' of ' || max_attempts from jobs.jobs
    where attempts not between 0 and max_attempts`,

  'a claim is whole: a locked job has all its marks and lies in no waiting line, another one has none': `
    select id || ' ' || to_json(j) from jobs.jobs j
    where case when locked_by is null
      then locked_at is not null or lease_ms is not null or lease_expires_at is not null
      else locked_at is null or fence < 1 or attempts < 1 or snoozed or parked is not null
        or (lease_ms is null) <> (lease_expires_at is null)
    end`,

  'a queue counts its running jobs': `
    select q.name || ' counts ' || q.running || ', but ' || count(j.id) || ' run'
    from jobs.job_queues q left join jobs.jobs j on j.queue = q.name and j.locked_by is not null
    group by q.name, q.running having q.running <> count(j.id)
    union all
    select j.id || ' runs in ' || j.queue || ', which nobody knows' from jobs.jobs j
    where j.locked_by is not null and j.queue is not null
      and not exists (select from jobs.job_queues q where q.name = j.queue)`,

  'an idle queue names no holder': `
    select name || ' names ' || locked_by from jobs.job_queues where running = 0 and locked_by is not null`,

  'tokens stay within 0 … capacity': `
    select key || ' has ' || available || ' of ' || capacity from jobs.rate_limits
    where available not between 0 and capacity`,

  'a window has no more claims than tokens': `
    select r.key || ': ' || count(*) || ' claims since its window began, capacity ' || r.capacity
    from jobs.rate_limits r
    join (
      select b.rate_limit_key as key, h.started_at from jobs.job_history h join jobs.job_bodies b on b.id = h.job_id
      union all
      select rate_limit_key, locked_at from jobs.jobs where locked_by is not null
    ) claim on claim.key = r.key and claim.started_at > r.window_started_at
    group by r.key, r.capacity having count(*) > r.capacity`,

  'a job key belongs to one live job': `
    select job_key || ' has ' || count(*) from jobs.jobs where job_key is not null group by job_key having count(*) > 1`,

  'nobody runs beside the job whose key it took': `
    select j.id || ' is not behind ' || holder.id || ', which runs and gave way to it'
    from jobs.jobs holder join jobs.jobs j on j.id = holder.superseded_by
    where holder.locked_by is not null and j.parked is distinct from 'key' and j.parked is distinct from 'exhausted'`,

  'every attempt has one record': `
    select job_id || ' has ' || count(*) || ' records of attempt ' || fence from jobs.job_history
    group by job_id, fence having count(*) > 1
    union all
    select h.job_id || ' has a record of attempt ' || h.fence || ', but is at ' || j.fence
    from jobs.job_history h join jobs.jobs j on j.id = h.job_id
    where h.fence > j.fence or (h.fence = j.fence and j.locked_by is not null)`,

  'nothing is lost: what lives is known, and what has ended has a record': `
    select j.id || ' has no body' from jobs.jobs j where not exists (select from jobs.job_bodies b where b.id = j.id)
    union all
    select b.id || ' is neither live nor recorded' from jobs.job_bodies b
    where not exists (select from jobs.jobs j where j.id = b.id)
      and not exists (select from jobs.job_history h where h.job_id = b.id)
    union all
    select j.id || ' lives after it has ended: ' || last.status from jobs.jobs j cross join lateral (
      select status, fence from jobs.job_history h where h.job_id = j.id order by fence desc limit 1
    ) last where last.status = 'completed'`,

  'a job waits for no more parents than it knows': `
    select j.id || ' waits for ' || j.unmet || ' parents, of which ' || count(d.parent_id) || ' are known'
    from jobs.jobs j left join jobs.job_dependencies d on d.child_id = j.id
    group by j.id having j.unmet > count(d.parent_id)
    union all
    select id || ' waits for parents, and for none' from jobs.jobs where parked = 'parents' and unmet = 0
    union all
    select id || ' may run before its parents have ended' from jobs.jobs
    where unmet > 0 and parked is distinct from 'parents' and parked is distinct from 'key'
      and parked is distinct from 'exhausted'`,
};

/** Rules that hold once nobody is at work: whoever ended something has told those that waited for it. */
const AT_REST: Record<string, string> = {
  'every parent that has ended has told its children': `
    select d.child_id || ' was not told of ' || d.parent_id
    from jobs.job_dependencies d
    join jobs.jobs child on child.id = d.child_id
    join jobs.job_bodies body on body.id = d.child_id
    left join jobs.jobs j on j.id = d.parent_id
    where (j.id is null or j.parked = 'exhausted') and body.on_parent_failure is distinct from 'wait'`,

  'nobody waits for a key that nobody holds': `
    select j.id || ' waits for nobody' from jobs.jobs j where j.parked = 'key' and not exists (
      select from jobs.jobs holder where holder.superseded_by = j.id and holder.locked_by is not null
    )`,

  'a line whose queue has a place moves, or is marked for the sweep': `
    select j.id || ' waits in ' || j.queue from jobs.jobs j join jobs.job_queues q on q.name = j.queue
    where j.parked = 'queue' and q.parked_at is null`,

  'who waits for tokens is marked for the next window': `
    select j.id || ' waits for ' || j.rate_limit_key from jobs.jobs j join jobs.rate_limits r on r.key = j.rate_limit_key
    where j.parked = 'tokens' and r.parked_at is null`,
};

/** What is broken now; empty, if all is well. `atRest`: nobody is at work. */
export async function violations(sql: Sql, { atRest = true } = {}): Promise<string[]> {
  const rules = Object.entries(atRest ? { ...ALWAYS, ...AT_REST } : ALWAYS);
  const text = rules.map(([, select], index) => `select ${index} as rule, found.what from (${select}) as found(what)`);
  const rows = await sql<{ rule: number; what: string }>(text.join(' union all '));
  return rows.map(({ rule, what }) => `${rules[rule]![0]}: ${what}`);
}

/** @throws Error that names what is broken */
export async function expectInvariants(sql: Sql, options?: { atRest?: boolean }): Promise<void> {
  const broken = await violations(sql, options);
  if (broken.length) throw new Error(`Expected every invariant to hold, but:\n${broken.join('\n')}`);
}
