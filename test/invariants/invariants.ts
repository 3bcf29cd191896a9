// What must hold whatever has been done to a queue, read from the tables: the judge of all specs in this folder.
import type { TestManager } from '../support/manager.js';

export type Sql = TestManager['sql'];

const WINDOWS = 'a window counts each claim';

/** Rules that hold in every committed state. Each selects what breaks it, as a text. */
const ALWAYS: Record<string, string> = {
  'attempts stay within 0 … max': `
    select id || ' has made ' || attempts || ' of ' || max_attempts from jobs.jobs
    where attempts not between 0 and max_attempts`,

  'a claim is whole: a locked job has all its marks and lies in no waiting line, another one has none': `
    select id || ' ' || to_json(j) from jobs.jobs j
    where case when locked_by is null
      then locked_at is not null or lease_ms is not null or lease_expires_at is not null or place is not null
      else locked_at is null or fence < 1 or attempts < 1 or snoozed or parked is not null
        or (lease_ms is null) <> (lease_expires_at is null)
    end`,

  'a job lies in the lane of its limits, and one that may crash or has one attempt left waits for a slot': `
    select id || ' ' || to_json(j) from jobs.jobs j
    where lane is distinct from jobs.lane_of(queue, partition, limits, slot_only)
      or (locked_by is null and parked is distinct from 'exhausted'
        and slot_only <> (crashes > 0 or attempts >= max_attempts - 1))`,

  'a job that runs in a limited queue has one place, its own': `
    select j.id || ' runs in ' || j.queue || ' with ' || count(p.number) || ' places' from jobs.jobs j
    join jobs.job_queues q on q.name = j.queue
    left join jobs.job_places p on p.queue = j.queue and p.job_id = j.id and p.fence = j.fence
    where j.locked_by is not null and q.limited
    group by j.id having count(p.number) <> 1 or (j.place is not null and min(p.number) <> j.place)
      or max(p.partition) is distinct from j.partition
    union all
    select j.id || ' runs in ' || j.queue || ', which is not registered' from jobs.jobs j
    where j.locked_by is not null and j.queue is not null
      and not exists (select from jobs.job_queues q where q.name = j.queue)`,

  'every place counts': `
    select p.queue || ' counts from ' || q.places_from || ', but ' || p.job_id || ' has place ' || p.number
    from jobs.job_places p join jobs.job_queues q on q.name = p.queue
    join jobs.jobs j on j.id = p.job_id and j.fence = p.fence and j.locked_by is not null
    where p.number < q.places_from`,

  [WINDOWS]: `
    select w.key || ': ' || count(*) || ' claims since its window began, of which it counts ' || w.counts[1]
    from (select distinct on (key) * from jobs.rate_limit_states order by key, number desc) w
    join (
      select b.limits as key, h.started_at from jobs.job_history h join jobs.job_bodies b on b.id = h.job_id
      union all
      select limits, locked_at from jobs.jobs where locked_by is not null
    ) claim on claim.key = w.key and claim.started_at > w.at
    group by w.key, w.counts having count(*) > w.counts[1]`,

  'a live job with a key owns it, or another one has taken it': `
    select j.id || ' has key ' || j.job_key || ', which belongs to ' || coalesce(k.job_id::text, 'no job') from jobs.jobs j
    left join jobs.job_keys k on k.key = j.job_key
    where j.job_key is not null and k.job_id is distinct from j.id
      and j.parked is distinct from 'exhausted' and not exists (
        select from jobs.job_replacements r where r.old_id = j.id
      )`,

  'a key has one job at most that may run': `
    select job_key || ' has ' || count(*) || ' jobs that run or may run' from jobs.jobs
    where job_key is not null and parked is distinct from 'exhausted' and parked is distinct from 'key'
    group by job_key having count(*) > 1`,

  'no job runs beside the one whose key it took': `
    select j.id || ' is ' || coalesce(j.parked, 'ready') || ', though ' || holder.id || ', whose key it took, runs'
    from jobs.jobs holder join jobs.jobs j on j.behind = holder.id
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

/** Rules that hold once nothing is at work: what ended has been told to the jobs that waited for it. */
const AT_REST: Record<string, string> = {
  'every parent that has ended has told its children': `
    select d.child_id || ' was not told of ' || d.parent_id
    from jobs.job_dependencies d
    join jobs.jobs child on child.id = d.child_id
    join jobs.job_bodies body on body.id = d.child_id
    left join jobs.jobs j on j.id = d.parent_id
    where (j.id is null or j.parked = 'exhausted') and (
      body.on_parent_failure is distinct from 'wait' or (j.id is null and (
        select h.status from jobs.job_history h where h.job_id = d.parent_id order by h.fence desc limit 1
      ) = 'completed')
    )`,

  'a job that waited for one that gave way waits for the new one': `
    select d.child_id || ' waits for ' || d.parent_id || ', which gave way to ' || r.new_id
    from jobs.job_dependencies d join jobs.job_replacements r on r.old_id = d.parent_id
    where exists (select from jobs.jobs child where child.id = d.child_id)
      and jobs.heir_of(d.parent_id, d.child_id) <> d.parent_id`,

  'a job counts the parents that it waits for': `
    select j.id || ' waits for ' || j.unmet || ' parents, of which ' || count(d.parent_id) || ' are known'
    from jobs.jobs j left join jobs.job_dependencies d on d.child_id = j.id
    group by j.id having j.unmet <> count(d.parent_id)`,

  'a job waits for its parents, or for those that took their places, and for no others': `
    select d.child_id || ' waits for ' || d.parent_id || ', on which it does not depend'
    from jobs.job_dependencies d join jobs.jobs j on j.id = d.child_id join jobs.job_bodies b on b.id = d.child_id
    where not exists (
      with recursive heirs(id) as (
        select unnest(b.depends_on)
        union
        select r.new_id from heirs h join jobs.job_replacements r on r.old_id = h.id
      )
      select from heirs h where h.id = d.parent_id
    )`,

  'what waits for a parent is known': `
    select d.child_id || ' is gone, but waits for ' || d.parent_id from jobs.job_dependencies d
    where not exists (select from jobs.job_bodies b where b.id = d.child_id)`,

  'no job waits for a key that no job holds': `
    select j.id || ' waits for no job' from jobs.jobs j where j.parked = 'key' and not exists (
      select from jobs.jobs holder where holder.id = j.behind and holder.locked_by is not null
    )`,

  'a key belongs to a live job': `
    select k.key || ' belongs to ' || k.job_id || ', which is gone' from jobs.job_keys k
    where not exists (select from jobs.jobs j where j.id = k.job_id and j.job_key = k.key)`,

  'a place belongs to a claim': `
    select p.queue || ' ' || p.number || ' belongs to ' || p.job_id from jobs.job_places p
    where not exists (select from jobs.jobs j where j.id = p.job_id and j.fence = p.fence and j.locked_by is not null)`,
};

export interface Circumstances {
  /** No pool is at work. */
  atRest?: boolean;
  /** What came first cannot be told from the stored times. */
  clockWentBack?: boolean;
}

/** What is broken now; empty, if all is well. */
export async function violations(sql: Sql, { atRest = true, clockWentBack }: Circumstances = {}): Promise<string[]> {
  const all = Object.entries(atRest ? { ...ALWAYS, ...AT_REST } : ALWAYS);
  const rules = all.filter(([rule]) => !(clockWentBack && rule === WINDOWS));
  const text = rules.map(([, select], index) => `select ${index} as rule, found.what from (${select}) as found(what)`);
  const name = `violations of ${rules.length} rules`;
  const rows = await sql<{ rule: number; what: string }>(text.join(' union all '), [], name);
  return rows.map(({ rule, what }) => `${rules[rule]![0]}: ${what}`);
}

interface Waiting {
  id: string;
  parked: string | null;
  /** Whether the job whose key it took runs. */
  is_behind: boolean;
  /** Parents that live and have not failed for good, and others that it waits for. */
  live: string[];
  ended: number;
  policy: string | null;
}

/**
 * Live jobs that no action would bring to an end: neither a claim (of what is, or becomes, due, past places,
 * pauses and windows, which are looked at there), nor a holder, nor the end of a parent, nor an operator.
 */
export async function stuck(sql: Sql): Promise<string[]> {
  const rows = await sql<Waiting>(
    `
    select j.id, j.parked, exists (select from jobs.jobs h where h.id = j.behind and h.locked_by is not null) as is_behind,
      coalesce(array_agg(p.id::text) filter (where p.id is not null and p.parked is distinct from 'exhausted'), '{}') as live,
      count(d.parent_id) filter (where p.id is null or p.parked = 'exhausted')::integer as ended,
      (select b.on_parent_failure from jobs.job_bodies b where b.id = j.id) as policy
    from jobs.jobs j left join jobs.job_dependencies d on d.child_id = j.id left join jobs.jobs p on p.id = d.parent_id
    group by j.id`,
    [],
    'stuck',
  );
  const ends = new Set(rows.filter(({ parked }) => parked === null || parked === 'exhausted').map(({ id }) => id));
  for (let before = -1; before < ends.size;) {
    before = ends.size;
    for (const { id, parked, is_behind, live, ended, policy } of rows) {
      const byParents =
        live.length + ended > 0 && live.every((parent) => ends.has(parent)) && (!ended || policy === 'wait');
      if (parked === 'key' ? is_behind && (!(live.length + ended) || byParents) : byParents) ends.add(id);
    }
  }
  return rows.filter(({ id }) => !ends.has(id)).map(({ id, parked }) => `${id} waits for ${parked} that will not end`);
}

/** @throws Error that names what is broken */
export async function expectInvariants(sql: Sql, options?: Circumstances): Promise<void> {
  const broken = await violations(sql, options);
  if (options?.atRest !== false) broken.push(...(await stuck(sql)));
  if (broken.length) throw new Error(`Expected every invariant to hold, but:\n${broken.join('\n')}`);
}
