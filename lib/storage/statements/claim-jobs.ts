// Claiming: takes due jobs in order (priority, run-at, id), within the limits of their queues and rate limits.
import { statement } from '../database.js';
import { liveJobColumns, ms, type ClaimedRow } from './job-columns.js';

/**
 * What became of a job that the claim came across. `queue`, `tokens`: its queue is full or its rate limit used up, and
 * it was parked out of the claims' way. `unknown_queue`: the queue must be registered first. `later`: it needs a free
 * slot, and jobs ahead of it got them all; nothing was changed.
 */
export type Verdict = 'claimed' | 'queue' | 'tokens' | 'unknown_queue' | 'later';

export interface CandidateRow extends ClaimedRow {
  verdict: Verdict;
  slot_only: boolean;
  candidate_id: string;
  candidate_priority: number;
  candidate_run_at: string;
  candidate_queue: string | null;
  /** For `tokens`: milliseconds until the window ends. */
  refill_in_ms: number | null;
  /** The job was parked although its queue has a free place: another one should get it. */
  promote: boolean;
}

/** A pool that was taken for dead claims nothing: nobody would ever rescue it. Claims by hand have their own lease. */
const entitled = `($7::bigint is not null or exists (select from holder))`;

/** What this worker may run. */
const wanted = `($4::text[] is null or j.task = any($4))
        and ($5::text[] is null or j.flags is null or not j.flags && $5)`;

interface Lane {
  name: string;
  /** Must stand in the text literally: the planner matches it with the predicate of the lane's partial index. */
  predicate: string;
  limit: string;
}

const PLAIN: Lane = { name: 'plain', predicate: 'not j.slot_only', limit: '$2' };
const SLOTS: Lane = { name: 'slots', predicate: 'j.slot_only', limit: '$3' };

/** Priorities that the cursor does not know: in each gap between known ones, hop from one to the next. */
const unknownPriorities = (schema: string, lane: Lane): string => `
  ${lane.name}_gaps as (
    select found.priority, gap.upper_bound
    from unnest($12::boolean[], $13::bigint[], $14::bigint[]) as gap(slot_only, lower_bound, upper_bound)
    cross join lateral (
      select j.priority from ${schema}.jobs j
      where j.parked is null and ${lane.predicate}
        and j.priority > gap.lower_bound and j.priority < gap.upper_bound
      order by j.priority limit 1
    ) found
    where ${lane === SLOTS ? '' : 'not '}gap.slot_only and ${lane.limit}::integer > 0 and ${entitled}
    union all
    select found.priority, gap.upper_bound
    from ${lane.name}_gaps gap
    cross join lateral (
      select j.priority from ${schema}.jobs j
      where j.parked is null and ${lane.predicate}
        and j.priority > gap.priority and j.priority < gap.upper_bound
      order by j.priority limit 1
    ) found
  )`;

/**
 * Reads one lane: for each priority, best first, an ordered scan of the lane's partial index from the cursor's
 * position to now. Nested loops and limits only: no statistics can make this sort the backlog.
 */
const scan = (schema: string, lane: Lane): string => `
  ${lane.name}_starts as materialized (
    select priority, run_at, id
    from unnest($8::boolean[], $9::integer[], $10::timestamptz[], $11::uuid[]) as known(slot_only, priority, run_at, id)
    where ${lane === SLOTS ? '' : 'not '}slot_only and ${entitled}
    union all
    select priority, '-infinity', '00000000-0000-0000-0000-000000000000' from ${lane.name}_gaps
    order by priority
  ),
  ${lane.name} as materialized (
    select due.* from ${lane.name}_starts start
    cross join lateral (
      select j.id, j.priority, j.run_at, j.slot_only, j.queue, j.rate_limit_key
      from ${schema}.jobs j
      where j.parked is null and ${lane.predicate} and j.locked_by is null
        and j.priority = start.priority and (j.run_at, j.id) > (start.run_at, start.id) and j.run_at <= now()
        and ${wanted}
        and ($6::text is null or j.queue = $6)
      order by j.run_at, j.id
      limit ${lane.limit}
      for update skip locked
    ) due
    ${lane === SLOTS ? 'where $15::integer is null or start.priority <= $15' : ''}
    limit ${lane.limit}
  )`;

/**
 * $1 worker, $2 most jobs, $3 how many of the first may be jobs for free slots, $4 tasks or null, $5 forbidden flags or null, $6 queue or
 * null, $7 lease in ms or null, $8–$11 the cursor (lane, priority, run-at, id), $12–$14 the gaps between its priorities
 * (lane, lower, upper), $15 the worst priority that may take a free slot, or null.
 *
 * Indexes: jobs_ready and jobs_ready_for_slots for the scans, the primary keys of jobs, job_bodies, job_queues and
 * rate_limits, and jobs_of_queue, for all else. Rows of job_queues, then of rate_limits, are locked in the order of their names by
 * everyone, so claims and settles cannot deadlock. Their locks also bring back the latest version of each row, so
 * limits hold against claims that committed after this statement's snapshot was taken.
 */
export const claimJobs = statement<CandidateRow>(
  'claim_jobs',
  (schema) => `
  with recursive holder as materialized (
    select from ${schema}.workers where id = $1 and stopped_at is null for share
  ),
  ${unknownPriorities(schema, PLAIN)},
  ${unknownPriorities(schema, SLOTS)},
  ${scan(schema, PLAIN)},
  ${scan(schema, SLOTS)},
  candidates as materialized (
    select *, row_number() over (order by priority, run_at, id) as rank
    from (select * from plain union all select * from slots) found
  ),
  in_turn as materialized (
    select *, rank > case when slot_only then least($2::integer, $3::integer) else $2::integer end as later
    from candidates
  ),
  locked_queues as materialized (
    select q.name, case when q.paused then 0 else greatest(0, coalesce(q.concurrency, 2147483647) - q.running) end as free
    from ${schema}.job_queues q
    where q.name in (select queue from in_turn where queue is not null and not later)
    order by q.name for update
  ),
  -- Whose turn it is, whoever may be looking at it: a claim that runs beside this one has locked the jobs it came
  -- across, so the first that this one found need not be the first in line.
  heads as materialized (
    select q.name, head.id
    from locked_queues q cross join lateral (
      select j.id from ${schema}.jobs j
      where j.queue = q.name and (j.parked is null or j.parked = 'queue') and j.locked_by is null
        and j.run_at <= now() and ${wanted}
      order by j.priority, j.run_at, j.id
      limit q.free
    ) head
  ),
  queued as materialized (
    select c.*, q.name as known_queue, q.free, c.queue is null or h.id is not null as admitted
    from in_turn c
    left join locked_queues q on q.name = c.queue
    left join heads h on h.id = c.id
  ),
  locked_limits as materialized (
    select r.* from ${schema}.rate_limits r
    where r.key in (select rate_limit_key from queued where admitted and not later)
    order by r.key for update
  ),
  windows as materialized (
    select key, capacity, interval_ms, at, clock.started_at,
      case when clock.started_at > window_started_at then capacity else available end as tokens,
      ${ms("(clock.started_at + interval_ms * interval '1 ms') - at")} as refill_in_ms
    from (select *, clock_timestamp() as at from locked_limits) locked_limit
    cross join lateral (
      -- Windows are fixed: however late the first claim of one comes, it starts a whole number of intervals on.
      select window_started_at + greatest(0, floor(extract(epoch from at - window_started_at) * 1000 / interval_ms))
        * interval_ms * interval '1 ms' as started_at
    ) clock
  ),
  verdicts as materialized (
    select c.*, w.refill_in_ms, case
      when c.later then 'later'
      when c.queue is not null and c.known_queue is null then 'unknown_queue'
      when not c.admitted then 'queue'
      when c.rate_limit_key is null then 'claimed'
      when row_number() over (
        partition by c.rate_limit_key, c.admitted and not c.later order by c.priority, c.run_at, c.id
      ) <= coalesce(w.tokens, 0) then 'claimed'
      else 'tokens'
    end as verdict
    from queued c left join windows w on w.key = c.rate_limit_key
  ),
  claimed as (
    update ${schema}.jobs j
    set locked_by = $1, locked_at = now(), attempts = j.attempts + 1, fence = j.fence + 1, revision = j.revision + 1,
      snoozed = false, lease_ms = $7::bigint, lease_expires_at = now() + $7::bigint * interval '1 ms'
    from verdicts v
    where v.verdict = 'claimed' and j.id = v.id
    returning j.*
  ),
  parked as (
    update ${schema}.jobs j set parked = v.verdict
    from verdicts v
    where v.verdict in ('queue', 'tokens') and j.id = v.id
  ),
  counted as (
    update ${schema}.job_queues q
    set running = q.running + taken.claims, last_used_at = now(),
      locked_by = case when taken.claims > 0 then $1 else q.locked_by end,
      parked_at = case when taken.refusals > 0 then clock_timestamp() else q.parked_at end
    from (
      select queue, count(*) filter (where verdict = 'claimed') as claims,
        count(*) filter (where verdict in ('queue', 'tokens')) as refusals
      from verdicts where known_queue is not null and not later group by queue
    ) taken
    where q.name = taken.queue
  ),
  spent as (
    update ${schema}.rate_limits r
    set available = w.tokens - taken.claims, window_started_at = w.started_at,
      parked_at = case when taken.refusals > 0 then w.at else r.parked_at end
    from windows w join (
      select rate_limit_key, count(*) filter (where verdict = 'claimed') as claims,
        count(*) filter (where verdict = 'tokens') as refusals
      from verdicts where rate_limit_key is not null group by rate_limit_key
    ) taken on taken.rate_limit_key = w.key
    where r.key = w.key
  )
  select v.verdict, v.slot_only, v.id as candidate_id, v.priority as candidate_priority,
    v.run_at::text as candidate_run_at, v.queue as candidate_queue, v.refill_in_ms,
    v.verdict in ('queue', 'tokens') and v.free > count(*) filter (where v.verdict = 'claimed')
      over (partition by v.queue) as promote,
    ${liveJobColumns}, j.fence, j.previous, j.crashes
  from verdicts v
  left join claimed j on j.id = v.id
  left join ${schema}.job_bodies b on b.id = j.id
  order by v.priority, v.run_at, v.id`,
);
