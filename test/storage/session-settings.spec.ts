// Settings that every user may change, as databases, roles and sessions have them: none of them changes what the library
// stores, reads or decides.
import { afterEach, describe, expect, it } from '@jest/globals';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  type JobContext,
  type JobManager,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { WORKER } from '../support/manager.js';
import { createSetDatabase, LEVELS, type Level, type Settings } from '../support/settings.js';

/** Each of these alone has broken something, or would break SQL that is less careful. */
const GROUPS: [name: string, Settings][] = [
  [
    'how text is read',
    {
      standard_conforming_strings: 'off',
      escape_string_warning: 'on',
      backslash_quote: 'off',
      quote_all_identifiers: 'on',
      bytea_output: 'escape',
      client_encoding: 'LATIN1',
      array_nulls: 'off',
      transform_null_equals: 'on',
      search_path: 'pg_temp',
      xmlbinary: 'hex',
      lc_time: 'C',
      lc_numeric: 'C',
    },
  ],
  [
    'how times and numbers are written',
    {
      datestyle: 'SQL, DMY',
      intervalstyle: 'sql_standard',
      timezone: 'Asia/Kolkata',
      timezone_abbreviations: 'Default',
      extra_float_digits: '-15',
    },
  ],
  [
    'other styles of times and numbers',
    { datestyle: 'Postgres, MDY', intervalstyle: 'iso_8601', timezone: '<-03>+03', extra_float_digits: '0' },
  ],
  [
    'how long is waited, and what an error ends',
    {
      lock_timeout: '50ms',
      statement_timeout: '10s',
      idle_in_transaction_session_timeout: '5s',
      exit_on_error: 'on',
      default_transaction_deferrable: 'on',
      default_transaction_isolation: 'serializable',
      client_min_messages: 'debug1',
      row_security: 'off',
      synchronous_commit: 'off',
    },
  ],
  [
    'how statements are planned',
    {
      enable_indexscan: 'off',
      enable_indexonlyscan: 'off',
      enable_bitmapscan: 'off',
      enable_nestloop: 'off',
      enable_material: 'off',
      enable_partition_pruning: 'off',
      plan_cache_mode: 'force_custom_plan',
      work_mem: '64kB',
      jit_above_cost: '0',
      random_page_cost: '1000',
      from_collapse_limit: '1',
      join_collapse_limit: '1',
      geqo: 'off',
      constraint_exclusion: 'off',
      check_function_bodies: 'off',
      default_toast_compression: 'pglz',
      default_tablespace: 'pg_default',
    },
  ],
];

const PAYLOAD = { text: `O'Reilly \\ "quoted" \\u0041 € NULL`, none: null, list: [null, 'NULL', 0.1 + 0.2], big: 1e21 };
/** A microsecond more would be lost in fifteen digits. */
const RUN_AT = new Date('2026-01-02T03:04:05.678Z');
const closing: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const close of closing.splice(0).toReversed()) await close();
});

async function open(
  level: Level,
  settings: Settings,
): Promise<{ jobs: JobManager; sql: (text: string) => Promise<any> }> {
  const database = await createSetDatabase(level, settings);
  closing.push(() => database.drop());
  const jobs = await createJobManager({
    connection: database.url,
    retry: { baseDelayMs: 1, jitter: 0 },
    queues: { serial: { concurrency: 1 } },
  });
  closing.push(() => jobs.close());
  return { jobs, sql: database.sql };
}

/** Migrates, adds, claims and runs through a pool, settles, retries, fires a crontab, reads back and collects garbage. */
async function round(jobs: JobManager, sql: (text: string) => Promise<any>): Promise<unknown[]> {
  const events = createCollectingEvents();
  const handlers = {
    echo: (payload: unknown, ctx: JobContext) => ctx.step('a step', () => payload),
    flaky: (payload: unknown, ctx: JobContext) => {
      if (ctx.attempt === 1) throw new Error(`first \\ 'try'`);
      return payload;
    },
    inside: {
      transactional: true,
      handler: async (payload: unknown, ctx: JobContext) => {
        await ctx.jobs.addJob('echo', payload, { tags: ['from inside'] });
        return payload;
      },
    },
    tick: () => undefined,
  };
  const pool = createWorkerPool({ jobs, tasks: handlers, events, options: { pollIntervalMs: 50, keepaliveMs: 200 } });
  closing.push(() => pool.stop(0));
  await pool.start();
  await jobs.registerRateLimit('limit', 100, '1 day 02:00:00');
  await jobs.scheduleCron({ id: 'each second', task: 'tick', schedule: '* * * * * *' });
  const first = await jobs.addJob('echo', PAYLOAD, { runAt: RUN_AT, flags: ['a flag', 'NULL'], tags: [`it's \\ "x"`] });
  expect(first.runAt).toEqual(RUN_AT);
  const added = await jobs.addJobs([
    { task: 'echo', payload: PAYLOAD, queue: `queue \\ 'x'` },
    { task: 'echo', payload: PAYLOAD, queue: 'serial', rateLimitKey: 'limit' },
    { task: 'flaky', payload: PAYLOAD },
    { task: 'inside', payload: PAYLOAD },
    { task: 'echo', payload: PAYLOAD, dependsOn: [first.id] },
    { task: 'echo', payload: PAYLOAD, jobKey: `key \\ 'x'`, runAt: RUN_AT },
  ]);
  const ids = [first.id, ...added.map(({ id }) => id)];
  const results = await Promise.all(ids.map((id) => jobs.waitForJob(id, { timeoutMs: 20_000 })));
  expect(results.map(({ status, result }) => [status, result])).toEqual(ids.map(() => ['completed', PAYLOAD]));
  expect(await jobs.findJob(first.id)).toMatchObject({
    payload: PAYLOAD,
    flags: ['a flag', 'NULL'],
    tags: [`it's \\ "x"`],
  });
  const later = await jobs.addJob('echo', 1, { runAt: new Date('2031-02-03T04:05:06.789Z') });
  expect((await jobs.findJob(later.id))?.runAt).toEqual(later.runAt);
  await jobs.cancelJobs([later.id], `no \\ 'need'`);
  await jobs.retryJobs([later.id]);
  expect((await jobs.counts()).byStatus.completed).toBeGreaterThanOrEqual(ids.length);
  const pages = [await jobs.listHistory({}, { limit: 3 })];
  while (pages.at(-1)!.cursor) pages.push(await jobs.listHistory({}, { limit: 3, cursor: pages.at(-1)!.cursor! }));
  const seen = pages.flatMap(({ items }) =>
    items.map(({ jobId, status, completedAt }) => `${jobId} ${status} ${completedAt?.toISOString()}`),
  );
  expect(new Set(seen).size).toBe(seen.length);
  for (const id of ids) expect(seen.join()).toContain(id);
  expect(Math.abs((await jobs.workers())[0]!.heartbeatAt.getTime() - Date.now())).toBeLessThan(60_000);
  await eventually(() => events.ofType('cron.fired').length > 0);
  await jobs.unscheduleCron('each second');
  await jobs.addJob('by hand', 1);
  await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER, { taskIdentifiers: ['by hand'] }), 1);
  await jobs.gcJobQueues();
  await jobs.gcTaskIdentifiers();
  await pool.stop();
  await sql(`update jobs.job_history set expires_at = now() - interval '1 hour'`);
  expect(await jobs.gcJobHistory()).toBeGreaterThanOrEqual(ids.length);
  expect((await sql(`select from jobs.partitions_of('job_bodies') where ends_at is not null`)).length).toBeGreaterThan(
    0,
  );
  return [...events.ofType('worker.error'), ...events.ofType('job.lost')];
}

describe.each(LEVELS)('settings of the %s', (level) => {
  it.each(GROUPS)(
    'do no harm: %s',
    async (_name, settings) => {
      const { jobs, sql } = await open(level, settings);
      expect(await round(jobs, sql)).toEqual([]);
    },
    60_000,
  );
});

it('positions of claims keep their microseconds where floats are written with fifteen digits', async () => {
  const { jobs, sql } = await open('role', { extra_float_digits: '0' });
  await jobs.addJobs(Array.from({ length: 20 }, (_, n) => ({ task: 'x', payload: n })));
  await sql(`update jobs.jobs j set run_at = '2026-01-01 00:00:00.123450Z'::timestamptz + n.n * interval '1 microsecond'
    from (select id, row_number() over (order by id) as n from jobs.jobs) n where n.id = j.id`);
  const ran: unknown[] = [];
  const tasks = { x: (n: unknown) => void ran.push(n) };
  const pool = createWorkerPool({ jobs, tasks, options: { concurrency: 1, pollIntervalMs: 50, queueSize: 4 } });
  closing.push(() => pool.stop(0));
  await pool.start();
  await eventually(() => ran.length === 20);
  expect(ran).toEqual(Array.from({ length: 20 }, (_, n) => n));
});

it('a session is known by what it began with, however many there are', async () => {
  const { jobs, sql } = await open('database', { array_nulls: 'off' });
  const held = await Promise.all(
    [1, 2, 3, 4, 5].map((n) =>
      jobs.addJobs([
        { task: 'x', payload: n },
        { task: 'y', payload: n, queue: 'q' },
      ]),
    ),
  );
  expect(held.flat()).toHaveLength(10);
  expect(await sql('select count(*)::integer as jobs from jobs.jobs')).toEqual([{ jobs: 10 }]);
});
