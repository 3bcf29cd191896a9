// What the database itself has seen during a chaos run, and whether it fits the promises.
import { DOOMED } from './load.mjs';

export const LIMIT = { capacity: 20, intervalMs: 1_000 };

/** Tables of the application, and a trigger that sees every claim of a rate-limited job. */
export const prepare = (admin) =>
  admin.query(`
  create table app.effects (job_id uuid not null, kind text not null, worker text not null, fence bigint not null,
    detail text, at timestamptz not null default clock_timestamp());
  create index on app.effects (job_id);
  create table app.orders (id uuid primary key);
  create table app.broken (promise text not null, job_id uuid not null, worker text not null,
    at timestamptz not null default clock_timestamp());
  create table app.claims (job_id uuid not null, fence bigint not null, window_started_at timestamptz not null,
    at timestamptz not null default clock_timestamp());
  create table app.pauses (began_at timestamptz not null default clock_timestamp(), ended_at timestamptz);
  create table app.pausable_claims (job_id uuid not null, began_at timestamptz not null default now(),
    at timestamptz not null default clock_timestamp());
  create table app.windows (key text not null, job_id uuid not null, begins_at timestamptz not null, until timestamptz not null);
  alter table app.pauses owner to app;
  alter table app.effects owner to app;
  alter table app.orders owner to app;
  alter table app.broken owner to app;
  create function app.see_claim() returns trigger language plpgsql security definer as $$
  begin
    insert into app.claims (job_id, fence, window_started_at)
    select new.id, new.fence, at from jobs.rate_limit_states where key = new.limits
    order by number desc limit 1;
    return null;
  end $$;
  create trigger see_claim after update on jobs.jobs for each row
    when (new.limits is not null and new.fence > old.fence) execute function app.see_claim();
  create function app.see_pausable() returns trigger language plpgsql security definer as $$
  begin
    insert into app.pausable_claims (job_id) values (new.id);
    return null;
  end $$;
  create trigger see_pausable after update on jobs.jobs for each row
    when (new.task = 'pausable' and old.locked_by is null and new.locked_by is not null) execute function app.see_pausable();
  create function app.see_window() returns trigger language plpgsql security definer as $$
  begin
    insert into app.windows values (new.key, new.job_id, new.begins_at, new.until);
    return null;
  end $$;
  create trigger see_window after insert or update on jobs.job_windows for each row
    when (new.until > new.begins_at) execute function app.see_window();`);

/** Live jobs that may still run, with their tasks; those that are exhausted have come to their end. */
export const unfinished = (admin) =>
  admin
    .query(
      `select task, count(*)::integer as count, count(locked_by)::integer as running from jobs.jobs
       where parked is distinct from 'exhausted' and task <> 'tick' group by task order by task`,
    )
    .then(({ rows }) => rows);

/** A number that changes whenever a job of the load is claimed or runs. */
export const activity = (admin) =>
  admin
    .query(
      `select (select count(*) from app.effects where kind <> 'tick')
         + (select coalesce(sum(fence), 0) from jobs.jobs where task <> 'tick') as happened`,
    )
    .then(({ rows }) => rows[0].happened);

/** Looks for broken promises; returns figures for the summary. `breakPromise(promise, what)` is told of each. */
export async function examine(admin, load, breakPromise) {
  const query = (text, ...values) => admin.query(text, values).then(({ rows }) => rows);
  const expect = (promise, rows, tell) => {
    for (const row of rows.slice(0, 5)) breakPromise(promise, tell(row));
    if (rows.length > 5) breakPromise(promise, `and ${rows.length - 5} more`);
  };

  const acknowledged = [...load.acknowledged];
  const owed = acknowledged.filter(([, task]) => !DOOMED.includes(task)).map(([id]) => id);
  const lost = await query(
    `select id from unnest($1::uuid[]) owed (id) where not exists (select from app.effects e where e.job_id = owed.id)`,
    owed,
  );
  expect('nothing acknowledged is lost', lost, ({ id }) => `${load.acknowledged.get(id)} ${id} never ran`);
  const doomed = acknowledged.filter(([, task]) => DOOMED.includes(task)).map(([id]) => id);
  const undead = await query(
    `select id from unnest($1::uuid[]) doomed (id)
     where not exists (select from jobs.jobs j where j.id = doomed.id and j.parked = 'exhausted')`,
    doomed,
  );
  expect('poison ends exhausted', undead, ({ id }) => `${load.acknowledged.get(id)} ${id} is not exhausted`);
  const keyed = await query(
    `select distinct split_part(detail, ' ', 2)::integer as version from app.effects where kind = 'keyed'`,
  );
  const outdated = neverRan(load.keyedCalls, new Set(keyed.map(({ version }) => version)));
  expect('nothing acknowledged is lost', outdated, (call) => `no version of ${JSON.stringify(call)}, or after it, ran`);

  const twice = await query(
    `select job_id, count(*) from app.effects where kind in ('transactional', 'batched-transactional')
     group by job_id having count(*) > 1`,
  );
  expect('transactional effects happen once', twice, ({ job_id, count }) => `${job_id} has ${count} effects`);
  const slots = await query(
    `select detail, count(distinct job_id) from app.effects where kind = 'tick' group by detail
     having count(distinct job_id) > 1`,
  );
  expect('cron slots fire once', slots, ({ detail, count }) => `${count} jobs at ${detail}`);
  const windows = await query(
    `select window_started_at, count(*), count(*) > $1 as exceeded, window_started_at - lag(window_started_at)
       over (order by window_started_at) < $2 * interval '1 ms' as overlaps
     from app.claims group by window_started_at`,
    LIMIT.capacity,
    LIMIT.intervalMs,
  );
  expect(
    'rate limits are never exceeded',
    windows.filter(({ exceeded, overlaps }) => exceeded || overlaps),
    ({ window_started_at, count }) => `${count} claims from ${window_started_at.toISOString()} on`,
  );
  const paused = await query(
    `select c.job_id, c.at from app.pausable_claims c join app.pauses p on c.began_at > p.began_at and c.at < p.ended_at`,
  );
  expect('no claim ignores a pause', paused, ({ job_id, at }) => `${job_id} was claimed at ${at.toISOString()}`);
  const shared = await query(
    `select a.key, a.job_id, b.job_id as other from app.windows a
     join app.windows b on a.key = b.key and a.job_id < b.job_id
       and tstzrange(a.begins_at, a.until) && tstzrange(b.begins_at, b.until)`,
  );
  expect('a window has one job', shared, ({ key, job_id, other }) => `${key} has ${job_id} and ${other}`);
  for (const { promise, job_id, worker } of await query('select * from app.broken')) {
    breakPromise(promise, `${job_id} on ${worker}`);
  }

  const left = await query(`select id, task, locked_by from jobs.jobs where locked_by is not null and task <> 'tick'`);
  expect('nothing stays locked', left, ({ id, task, locked_by }) => `${task} ${id} is locked by ${locked_by}`);
  const places = await query(
    `select p.queue, p.number, p.job_id from jobs.job_places p
     where not exists (select from jobs.jobs j where j.id = p.job_id and j.fence = p.fence and j.locked_by is not null)`,
  );
  expect(
    'places belong to claims',
    places,
    ({ queue, number, job_id }) => `place ${number} of queue ${queue} belongs to ${job_id}, which does not run`,
  );
  const waiting = await query(
    `select task, id, lane, parked, locked_by, behind, unmet, attempts, crashes, fence, priority, run_at, updated_at
     from jobs.jobs where parked is distinct from 'exhausted' and task <> 'tick' order by id`,
  );
  expect('everything comes to its end', waiting, (row) => `still waits: ${JSON.stringify(row)}`);

  const [figures] = await query(
    `select count(*)::integer as effects, count(*)::integer - count(distinct (job_id, kind))::integer as duplicates,
       count(*) filter (where kind = 'tick')::integer as ticks from app.effects`,
  );
  const [{ rescued }] = await query(
    `select count(*)::integer as rescued from jobs.job_history where error_message = 'worker died'`,
  );
  return { ...figures, rescued, lost: lost.length, windows: windows.length };
}

/**
 * Acknowledged calls of which nothing ran: neither their own version, nor one whose call may have come after them and so
 * replaced it. Of calls that overlap, either may come last; one whose end is not known may come at any time.
 */
function neverRan(calls, ran) {
  const done = calls.filter(({ version }) => ran.has(version));
  const mayFollow = (call, other) => other.jobKey === call.jobKey && (other.until ?? Infinity) > call.from;
  return calls.filter((call) => call.until !== null && !done.some((other) => mayFollow(call, other)));
}
