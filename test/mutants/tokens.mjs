// No rate limit is ever exceeded, and none keeps what it has from those that wait for it.
const SQL = 'lib/storage/migrations/0001_initial';
const TOKENS = `${SQL}/1_tokens.sql`;
const ALGORITHMS = 'test/manager/rate-limit-algorithms.spec.ts';
const JOBS = 'test/manager/rate-limited-jobs.spec.ts';
const LIMITS = 'test/manager/rate-limits.spec.ts';
const CALLS = 'test/manager/take-tokens.spec.ts';
const ERRORS = 'test/worker/rate-limited-errors.spec.ts';

const mutant = (name, file, find, put, checks) => ({ name: `tokens: ${name}`, edits: [{ file, find, put }], checks });

export const TOKENS_OF_LIMITS = [
  mutant(
    'the thirteenth sub-window',
    TOKENS,
    's.counts[1:13 - p.passed::integer]',
    's.counts[1:12 - p.passed::integer] || 0',
    [{ spec: ALGORITHMS, only: 'a sliding window' }],
  ),
  mutant(
    'rounding up what a token costs',
    TOKENS,
    'weight::numeric * interval_us + capacity::numeric - 1::numeric, capacity::numeric)',
    'weight::numeric * interval_us, capacity::numeric)',
    [{ spec: ALGORITHMS, only: 'bucket' }],
  ),
  mutant(
    'counting what jobs of other lanes take of a shared limit',
    `${SQL}/2_claim.sql`,
    'where w.weight > coalesce((select s.tokens from states s where s.key = w.key and s.by_value = w.by_value limit 1), 0)',
    'where false',
    [{ spec: JOBS, only: 'several' }],
  ),
  mutant(
    'the lock of a state',
    TOKENS,
    'then pg_try_advisory_xact_lock(lock_of_tokens(limit_key, value)) else false end',
    'then true else false end',
    [{ spec: JOBS, only: 'claimers|beside each other' }],
  ),
  mutant(
    'refusing to take tokens by an old snapshot',
    TOKENS,
    `raise exception 'taking tokens needs read committed' using errcode = '25004';`,
    'null;',
    [{ spec: CALLS, only: 'is refused at' }],
  ),
  mutant('keeping the newest state until older rows are gone', TOKENS, 'and b.number < o.number', 'and false', [
    { spec: LIMITS, only: 'leaves nothing behind' },
  ]),
  mutant('what was taken before a change of the limit', TOKENS, 'else least(new_burst, s.used)', 'else 0', [
    { spec: LIMITS, only: 'a change of a limit' },
  ]),
  mutant(
    'setting back a state that a clock has put ahead',
    TOKENS,
    'where t.is_ahead\n  ),\n  moved as',
    'where false\n  ),\n  moved as',
    [{ spec: LIMITS, only: 'a clock that was ahead' }],
  ),
  mutant(
    'blocks of a whole limit',
    TOKENS,
    `where b.key = r.key and b.by_value = '' and b.until`,
    'where false and b.until',
    [{ spec: ERRORS, only: 'all values of it' }],
  ),
  mutant(
    'telling a block of a clock that was ahead',
    TOKENS,
    `b.until > present and b.set_at <= present + interval '1 min'\n      order by b.until desc limit 1)\n      union all`,
    'b.until > present\n      order by b.until desc limit 1)\n      union all',
    [{ spec: ERRORS, only: 'clock which was ahead' }],
  ),
];
