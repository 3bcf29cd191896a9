-- Tokens of rate limits: how many a limit has, what taking some makes of it, and when there are enough. The small functions are
-- read into the statements that call them.
--
-- A state is what was taken of a limit, for one value of `by` ('': of all). What it says depends on the limit's algorithm:
--   fixed: `at` is the start of a window, `counts` what was taken in it;
--   sliding: `at` is the start of the present sub-window, a twelfth of the interval long, `counts` what was taken in it and in the
--     12 whole ones before it, so any stretch as long as the interval is covered;
--   bucket, smooth: `at` is when all tokens are back (GCRA): each token taken puts it off by interval / capacity.
-- Microseconds are whole numbers, and divisions of them are rounded so that no limit is exceeded.
-- take_tokens, and the adds that ask refused_limits, run with the rights of the tables' owner. So in these, and in what they call, functions of any type are qualified, and
-- operators have the very types that PostgreSQL has them for: nothing a caller has made fits better.

-- The rate limits of a job, as its column `limits` names them: one, or several, sorted, with \x1e between them. Each is a key, or
-- key \x1d value \x1d weight.
create function limits_of(limits text) returns table (key text, by_value text, weight integer)
language sql immutable
as $$
  select split_part(l, E'\x1d', 1), split_part(l, E'\x1d', 2), coalesce(nullif(split_part(l, E'\x1d', 3), '')::integer, 1)
  from string_to_table(limits, E'\x1e') l
$$;

-- The state of a limit at a time; no row where none is registered. `room`: the tokens left; `tokens`: the same, but none while it
-- is blocked. `is_ahead`: a clock that was ahead has left a time that no clock would have: it counts as now, and must be stored
-- so, else it would never end. Windows are fixed, so however late the first claim of one comes, it starts a whole number of
-- intervals after the first. Indexes: rate_limits_pkey, rate_limit_states_pkey, rate_limit_blocks_pkey.
create function tokens_of(limit_key text, value text, present timestamptz)
returns table (
  key text, by_value text, number bigint, tokens integer, room integer, at timestamptz, counts integer[], is_ahead boolean,
  blocked_until timestamptz, algorithm text, capacity integer, burst integer, interval_us numeric, width_us bigint
)
language sql stable
as $$
  select r.key, value, coalesce(s.number, 0), case when b.until is null then t.room else 0 end, t.room, t.at, t.counts,
    t.is_ahead, b.until, r.algorithm, r.capacity, r.burst, i.us, i.width_us
  from rate_limits r
  left join lateral (
    select s.* from rate_limit_states s where s.key = r.key and s.by_value = value order by s.number desc limit 1
  ) s on true
  cross join lateral (
    -- Blocks of the whole limit, and of the value; one that was set in the future, by such a clock, does not count.
    select pg_catalog.max(b.until) as until from (
      (select b.until from rate_limit_blocks b
      where b.key = r.key and b.by_value = '' and b.until > present and b.set_at <= present + interval '1 min'
      order by b.until desc limit 1)
      union all
      (select b.until from rate_limit_blocks b
      where value <> '' and b.key = r.key and b.by_value = value and b.until > present
        and b.set_at <= present + interval '1 min'
      order by b.until desc limit 1)
    ) b
  ) b
  cross join lateral (
    select (r.interval_ms * 1000)::numeric as us, r.capacity::numeric as capacity, r.burst::numeric as burst,
      case r.algorithm when 'sliding' then (r.interval_ms * 1000 + 11) / 12 else r.interval_ms * 1000 end as width_us,
      r.algorithm in ('bucket', 'smooth') as drips,
      least(present, coalesce(s.at, case r.algorithm when 'fixed' then r.window_started_at else present end)) as started_at
    offset 0
  ) i
  cross join lateral (
    -- How many windows have begun since, or for how long the bucket is not full.
    select case when not i.drips
        then pg_catalog.div(extract(epoch from present - i.started_at) * 1000000::numeric, i.width_us::numeric)::bigint end as passed,
      case when i.drips then least(greatest(0::numeric, extract(epoch from s.at - present) * 1000000::numeric),
        pg_catalog.div(i.burst * i.us + i.capacity - 1::numeric, i.capacity)) end as debt_us
    offset 0
  ) p
  cross join lateral (
    select case
        when i.drips then present + coalesce(p.debt_us, 0)::float8 * interval '1 microsecond'
        else i.started_at + (p.passed * i.width_us)::float8 * interval '1 microsecond'
      end as at,
      case r.algorithm
        when 'fixed' then case when s.number is not null and p.passed = 0 then s.counts else '{0}' end
        when 'sliding' then case
            when s.number is null or p.passed >= 13 then pg_catalog.array_fill(0, array[13])
            when p.passed = 0 then s.counts
            else pg_catalog.array_cat(pg_catalog.array_fill(0, array[p.passed::integer]), s.counts[1:13 - p.passed::integer])
          end
        else '{}'
      end as counts
    offset 0
  ) c
  cross join lateral (
    select c.at, c.counts,
      greatest(0, case
          when i.drips then pg_catalog.div(i.burst * i.us - coalesce(p.debt_us, 0::numeric) * i.capacity, i.us)::integer
          when r.algorithm = 'fixed' then r.capacity - c.counts[1]
          else r.capacity - (select pg_catalog.sum(n) from pg_catalog.unnest(c.counts) n)::integer
        end) as room,
      coalesce(case when i.drips then s.at > c.at else s.at > present end, false) as is_ahead
    offset 0
  ) t
  where r.key = limit_key limit 1
$$;

-- A state of which `weight` tokens more were taken. `full_at`: when it says nothing any more.
create function state_after(
  algorithm text, at timestamptz, counts integer[], capacity integer, interval_us numeric, width_us bigint, weight bigint
) returns table (at timestamptz, counts integer[], full_at timestamptz)
language sql immutable
as $$
  select n.at, n.counts, n.at
    + (case algorithm when 'fixed' then width_us when 'sliding' then 13 * width_us else 0 end)::float8 * interval '1 microsecond'
  from (
    select case
        when algorithm in ('bucket', 'smooth')
          then at + pg_catalog.div(weight::numeric * interval_us + capacity::numeric - 1::numeric, capacity::numeric)::float8
            * interval '1 microsecond'
        else at
      end as at,
      case
        when algorithm in ('bucket', 'smooth') then counts
        else pg_catalog.array_cat(array[(counts[1] + weight)::integer], counts[2:13])
      end as counts
  ) n
$$;

-- When a state will have so many tokens, if none are taken until then; null: never, because it has never so many at once.
create function enough_at(
  algorithm text, at timestamptz, counts integer[], room integer, capacity integer, burst integer, interval_us numeric,
  width_us bigint, blocked_until timestamptz, weight integer, present timestamptz
) returns timestamptz
language sql immutable
as $$
  select case when weight <= burst then greatest(blocked_until, case
      when room >= weight then present
      when algorithm = 'fixed' then at + width_us::float8 * interval '1 microsecond'
      when algorithm = 'sliding' then at + (width_us * (
        select pg_catalog.min(n) from pg_catalog.generate_series(1, 13) n
        where capacity - coalesce((select pg_catalog.sum(c) from pg_catalog.unnest(counts[1:13 - n]) c), 0)::integer >= weight
      ))::float8 * interval '1 microsecond'
      else at - pg_catalog.div((burst - weight)::numeric * interval_us, capacity::numeric)::float8 * interval '1 microsecond'
    end) end
$$;

-- What a job with these limits finds: for how many like it there are tokens, and when there are some. Limits that are not
-- registered give none. Not read into the look that calls it: that would have to be planned, and begun, for lanes without limits
-- too. Runs within claims, with their planner settings.
create function tokens_for(limits text, present timestamptz)
returns table (jobs integer, until timestamptz, is_ahead boolean)
language plpgsql stable rows 1
as $$
#variable_conflict use_column
begin
  return query
    select min(coalesce(t.tokens, 0) / l.weight),
      case when bool_and(coalesce(t.tokens >= l.weight or l.weight <= t.burst, false))
        then max(enough_at(t.algorithm, t.at, t.counts, t.room, t.capacity, t.burst, t.interval_us, t.width_us, t.blocked_until,
          l.weight, present)) filter (where coalesce(t.tokens, 0) < l.weight) end,
      coalesce(bool_or(t.is_ahead), false)
    from limits_of(limits) l left join lateral tokens_of(l.key, l.by_value, present) t on true;
end $$;

create function lock_of_limit(limit_key text) returns bigint
language sql stable
as $$ select pg_catalog.hashtextextended('millrace:limit:' || pg_catalog.current_schema()::text || E'\x1d' || limit_key, 0) $$;

create function lock_of_tokens(limit_key text, value text) returns bigint
language sql stable
as $$
  select pg_catalog.hashtextextended('millrace:tokens:' || pg_catalog.current_schema()::text || E'\x1d' || limit_key || E'\x1d' || value, 0)
$$;

-- Keeps the state of a limit from others until the transaction ends, unless they keep it: then false, at once. What takes tokens
-- shares the limit with others that do, for other values, but not with a change of the limit. By advisory locks: the first claim
-- for a value has no row to lock, and rows that strangers hold keep no limit from being claimed.
create function try_tokens(limit_key text, value text) returns boolean
language sql volatile
as $$
  select case when pg_try_advisory_xact_lock_shared(lock_of_limit(limit_key))
    then pg_try_advisory_xact_lock(lock_of_tokens(limit_key, value)) else false end
$$;

-- Starts what lies in the future now, with what was taken. States that others hold are left. Returns how many.
create function set_back_states(limit_keys text[], by_values text[]) returns integer
language plpgsql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  held_keys text[];
  held_values text[];
  moved integer;
begin
  select array_agg(n.key), array_agg(n.by_value) into held_keys, held_values
  from (select distinct n.key, n.by_value from unnest(limit_keys, by_values) n(key, by_value) order by 1, 2) n
  where try_tokens(n.key, n.by_value);
  with ahead as materialized (
    select t.* from unnest(held_keys, held_values) n(key, by_value)
    cross join lateral tokens_of(n.key, n.by_value, clock_timestamp()) t where t.is_ahead
  ),
  moved as (
    insert into rate_limit_states (key, by_value, number, at, counts, full_at)
    select a.key, a.by_value, a.number + 1, s.at, s.counts, s.full_at from ahead a
    cross join lateral state_after(a.algorithm, a.at, a.counts, a.capacity, a.interval_us, a.width_us, 0) s
  ),
  gone as (
    delete from rate_limit_states s where s.ctid = any(array(
      select o.ctid from ahead a cross join lateral (
        select o.ctid from rate_limit_states o where o.key = a.key and o.by_value = a.by_value and o.number = a.number
        limit 1 for update skip locked
      ) o
    ))
  )
  select count(*) into moved from ahead;
  return moved;
end $$;

-- For explanations: each limit of a job as it is now.
create function limits_now(limits text)
returns table (
  key text, by_value text, weight integer, known boolean, tokens integer, burst integer, blocked_until timestamptz,
  enough_at timestamptz
)
language sql stable
set search_path from current
as $$
  select l.key, l.by_value, l.weight, t.key is not null, t.tokens, t.burst, t.blocked_until,
    enough_at(t.algorithm, t.at, t.counts, t.room, t.capacity, t.burst, t.interval_us, t.width_us, t.blocked_until, l.weight,
      p.present)
  from (select clock_timestamp() as present offset 0) p
  cross join limits_of(limits) l left join lateral tokens_of(l.key, l.by_value, p.present) t on true
$$;

-- Rate limits by key, behind one, with what is left for jobs that name no value. Index: rate_limits_pkey.
create function list_rate_limits(most integer, behind text)
returns table (
  key text, algorithm text, capacity integer, interval_ms bigint, burst integer, available integer, refilled_at timestamptz,
  blocked_until timestamptz
)
language sql stable
set search_path from current
as $$
  select r.key, r.algorithm, r.capacity, r.interval_ms, r.burst, t.tokens,
    case when r.algorithm in ('bucket', 'smooth') then p.present else t.at end, t.blocked_until
  from (select clock_timestamp() as present offset 0) p
  cross join lateral (
    select r.* from rate_limits r where behind is null or r.key > behind order by r.key limit most
  ) r
  cross join lateral tokens_of(r.key, '', p.present) t
  order by r.key
$$;

-- Values of `by` of which something is taken or blocked, in order, behind one. Indexes: rate_limit_states_pkey, rate_limit_blocks_pkey.
create function list_values_of_limit(limit_key text, most integer, behind text)
returns table (by_value text, available integer, enough_at timestamptz, blocked_until timestamptz)
language sql stable
set search_path from current
as $$
  select v.by_value, t.tokens,
    enough_at(t.algorithm, t.at, t.counts, t.room, t.capacity, t.burst, t.interval_us, t.width_us, t.blocked_until, 1, p.present),
    t.blocked_until
  from (select clock_timestamp() as present offset 0) p
  cross join lateral (
    (select distinct s.by_value from rate_limit_states s
    where s.key = limit_key and s.by_value > coalesce(behind, '') order by s.by_value limit most)
    union
    (select distinct b.by_value from rate_limit_blocks b
    where b.key = limit_key and b.by_value > coalesce(behind, '') and b.until > p.present order by b.by_value limit most)
    order by by_value limit most
  ) v
  cross join lateral tokens_of(limit_key, v.by_value, p.present) t
  order by v.by_value
$$;

-- What keeps a job with these limits from ever running: keys that are not registered, and key \x1d weight \x1d most where more
-- tokens are asked for than the limit ever has at once. Index: rate_limits_pkey.
create function refused_limits(limits text) returns setof text
language sql stable
set search_path from current
as $$
  select case when r.key is null then l.key else l.key || E'\x1d' || l.weight::text || E'\x1d' || r.burst::text end
  from limits_of(limits) l left join rate_limits r on r.key = l.key
  where r.key is null or r.burst < l.weight
$$;

-- Takes tokens outside of claims: waits for the state, for as long as the caller's lock_timeout says where it is patient, looks
-- in a statement that is younger than the lock, and takes all or none. `until`: when there are enough; null: never.
-- Runs with the rights of the tables' owner: a role that only enqueues takes tokens, but sets none back.
create function take_tokens(limit_key text, value text, weight integer, patient boolean)
returns table (known boolean, burst integer, is_taken boolean, retry_in_ms float8)
language plpgsql
security definer
set search_path from current
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  present timestamptz;
  found_state record;
begin
  -- A transaction that keeps one snapshot cannot see what was taken since, and the limit would be exceeded.
  if pg_catalog.current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'taking tokens needs read committed' using errcode = '25004';
  end if;
  -- Fewer than one would give some back.
  if (weight >= 1) is not true or (value = '' or pg_catalog.octet_length(value) <= 600 and value !~ '[\u0001-\u001f]') is not true then
    raise exception 'Expected one token or more, for a value of at most 600 bytes without control characters.'
      using errcode = 'invalid_parameter_value';
  end if;
  if not patient then
    perform pg_catalog.set_config('lock_timeout'::text, '100ms'::text, true);
  end if;
  perform pg_catalog.pg_advisory_xact_lock_shared(lock_of_limit(limit_key));
  perform pg_catalog.pg_advisory_xact_lock(lock_of_tokens(limit_key, value));
  present := pg_catalog.clock_timestamp();
  select t.* into found_state from tokens_of(limit_key, value, present) t;
  if not found then
    return query select false, null::integer, false, null::float8;
    return;
  end if;
  if found_state.tokens >= weight or found_state.is_ahead then
    insert into rate_limit_states (key, by_value, number, at, counts, full_at)
    select limit_key, value, found_state.number + 1, s.at, s.counts, s.full_at
    from state_after(found_state.algorithm, found_state.at, found_state.counts, found_state.capacity, found_state.interval_us,
      found_state.width_us, (case when found_state.tokens >= weight then weight else 0 end)::bigint) s;
    delete from rate_limit_states s where s.ctid = any(array(
      select o.ctid from rate_limit_states o
      where o.key = limit_key and o.by_value = value and o.number = found_state.number limit 1 for update skip locked
    ));
  end if;
  return query
    select true, found_state.burst, found_state.tokens >= weight,
      case when found_state.tokens < weight then pg_catalog.ceil(1000::numeric * extract(epoch from enough_at(found_state.algorithm,
        found_state.at, found_state.counts, found_state.room, found_state.capacity, found_state.burst, found_state.interval_us,
        found_state.width_us, found_state.blocked_until, weight, present) - present))::float8
      else 0 end;
end $$;

revoke all on function take_tokens(text, text, integer, boolean) from public;

-- Registers or changes a rate limit; waits for claims under way. What was taken stays taken. In a fixed window the tokens left
-- are clamped to a smaller capacity, and a larger one adds the difference. By another algorithm, or a sliding window of another
-- length, it counts as taken now. Indexes: the primary keys.
create function put_rate_limit(
  limit_key text, new_algorithm text, new_capacity integer, new_interval_ms bigint, new_burst integer
)
returns table (
  key text, algorithm text, capacity integer, interval_ms bigint, burst integer, available integer, refilled_at timestamptz,
  blocked_until timestamptz
)
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
#variable_conflict use_column
declare
  present timestamptz;
  was record;
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'a change of a rate limit needs read committed' using errcode = '25004';
  end if;
  perform pg_advisory_xact_lock(lock_of_limit(limit_key));
  insert into rate_limits (key, algorithm, capacity, interval_ms, burst, window_started_at)
  values (limit_key, new_algorithm, new_capacity, new_interval_ms, new_burst, clock_timestamp())
  on conflict (key) do nothing;
  select r.* into was from rate_limits r where r.key = limit_key for no key update;
  present := clock_timestamp();
  if (was.algorithm, was.capacity, was.interval_ms, was.burst)
    is distinct from (new_algorithm, new_capacity, new_interval_ms, new_burst) then
    with states as materialized (
      select t.*, t.burst - t.room as used
      from (select distinct s.by_value from rate_limit_states s where s.key = limit_key) s
      cross join lateral tokens_of(limit_key, s.by_value, present) t
    ),
    -- As they would be if nothing had been taken by the new algorithm, and what is to be taken.
    next_states as (
      select s.by_value, s.number, case when stays then s.at else present end as at,
        case
          when new_algorithm = 'fixed' then '{0}'
          when new_algorithm = 'sliding' then case when stays then s.counts else array_fill(0, array[13]) end
          else '{}'
        end as counts,
        case
          when new_algorithm = 'fixed' and stays
            then new_capacity - least(new_capacity, s.room + greatest(0, new_capacity - s.capacity))
          when stays then 0
          else least(new_burst, s.used)
        end as used
      from states s
      cross join lateral (
        select new_algorithm = s.algorithm and (new_algorithm = 'fixed' or new_algorithm = 'sliding' and new_interval_ms = was.interval_ms)
          as stays
      ) o
    ),
    changed as (
      update rate_limits r
      set algorithm = new_algorithm, capacity = new_capacity, interval_ms = new_interval_ms, burst = new_burst
      where r.key = limit_key
    )
    insert into rate_limit_states (key, by_value, number, at, counts, full_at)
    select limit_key, s.by_value, s.number + 1, n.at, n.counts, n.full_at
    from next_states s
    cross join lateral (
      select new_interval_ms * 1000::numeric as us,
        case new_algorithm when 'sliding' then (new_interval_ms * 1000 + 11) / 12 else new_interval_ms * 1000 end as width_us
    ) i
    cross join lateral state_after(new_algorithm, s.at, s.counts, new_capacity, i.us, i.width_us, s.used) n;
    delete from rate_limit_states o where o.ctid = any(array(
      select o.ctid from rate_limit_states o
      where o.key = limit_key and exists (
        select from rate_limit_states n where n.key = o.key and n.by_value = o.by_value and n.number > o.number
      ) for update skip locked
    ));
  end if;
  perform set_back_states(array[limit_key], array['']);
  return query
    select limit_key, new_algorithm, new_capacity, new_interval_ms, new_burst, t.tokens,
      case when new_algorithm in ('bucket', 'smooth') then present else t.at end, t.blocked_until
    from tokens_of(limit_key, '', clock_timestamp()) t;
end $$;

-- Forgets states that say nothing any more, and blocks that are over, at most 1,000 of each; sets back what lies in the future.
-- Claims need none of it: this is for people who look, and for the room that states take. Returns how many states were forgotten.
-- Rows that others hold are left. Indexes: rate_limit_states_full, rate_limit_states_pkey, rate_limit_blocks_over.
create function refill_rate_limits() returns integer
language plpgsql
set search_path from current
set lock_timeout = '100ms'
set enable_seqscan = off
as $$
declare
  present timestamptz := clock_timestamp();
  refilled integer;
begin
  perform set_back_states(array_agg(a.key), array_agg(a.by_value))
  from (
    select t.key, t.by_value
    from (
      select r.key, '' as by_value from rate_limits r
      union
      (select s.key, s.by_value from rate_limit_states s order by s.full_at desc limit 100)
    ) s
    cross join lateral tokens_of(s.key, s.by_value, present) t where t.is_ahead
  ) a
  having count(*) > 0;
  -- The newest row goes last: what lies before it would count again.
  with full_ones as materialized (
    select s.key, s.by_value, s.number from rate_limit_states s where s.full_at <= present order by s.full_at limit 1000
  ),
  forgotten as (
    delete from rate_limit_states s where s.ctid = any(array(
      select o.ctid from full_ones f cross join lateral (
        select o.ctid from rate_limit_states o where o.key = f.key and o.by_value = f.by_value and o.number = f.number
          and not exists (
            select from rate_limit_states b where b.key = o.key and b.by_value = o.by_value and b.number < o.number
          )
        limit 1 for update skip locked
      ) o
    )) returning 1
  ),
  passed as (
    delete from rate_limit_states s where s.ctid = any(array(
      select o.ctid from full_ones f cross join lateral (
        select o.ctid from rate_limit_states o where o.key = f.key and o.by_value = f.by_value and o.number < f.number
        for update skip locked
      ) o
    ))
  ),
  over as (
    delete from rate_limit_blocks b where b.ctid = any(array(
      select o.ctid from rate_limit_blocks o where o.until <= present order by o.until limit 1000 for update skip locked
    ))
  )
  select count(*) into refilled from forgotten;
  return refilled;
end $$;
