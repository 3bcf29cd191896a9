// The function add_job: jobs from SQL and from triggers, as addJob would have added them.
import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { createWorkerPool, JobsMigrator, type AddJobOptions, type JobManager } from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
const clients: pg.Client[] = [];

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
});
afterEach(async () => {
  await Promise.all(clients.splice(0).map((client) => client.end()));
  await test.close();
});

async function connect(url = test.url): Promise<pg.Client> {
  const client = new pg.Client(url);
  clients.push(client);
  await client.connect();
  return client;
}

/** `call`: the arguments, in SQL. */
async function add(call: string): Promise<string> {
  return (await test.sql<{ id: string }>(`select jobs.add_job(${call}) as id`))[0]!.id;
}

/** All that is stored of a job, but for what differs between any two. */
async function stored(id: string): Promise<object> {
  const [row] = await test.sql<{ body: Record<string, unknown>; live: Record<string, unknown> }>(
    `select to_jsonb(b) as body, to_jsonb(j) as live from jobs.job_bodies b join jobs.jobs j using (id) where id = $1`,
    [id],
  );
  const { created_at, ...body } = row!.body;
  const dueIn = Date.parse(body.run_at as string) - Date.parse(created_at as string);
  const isDue = dueIn < 1_000;
  const same = ({ id: own, run_at: at, ...rest }: Record<string, unknown>) => ({
    ...rest,
    at: isDue ? 'now' : at,
    own: own === id,
  });
  return { body: same(body), live: same(row!.live) };
}

const CASES: [what: string, call: string, payload: unknown, options: AddJobOptions][] = [
  ['a task alone', `'t'`, null, {}],
  ['a payload', `'t', '{"n": 1}'`, { n: 1 }, {}],
  ['a queue and a priority', `'t', '1', queue => 'mail', priority => -3`, 1, { queue: 'mail', priority: -3 }],
  [
    'a time and one attempt',
    `'t', '1', run_at => '2100-01-01Z', max_attempts => 1`,
    1,
    { runAt: new Date('2100-01-01'), maxAttempts: 1 },
  ],
  [
    'a rate limit and a timeout',
    `'t', '1', rate_limit_key => 'limit', timeout_ms => 500`,
    1,
    { rateLimitKey: 'limit', timeoutMs: 500 },
  ],
  [
    'rate limits by value and weight',
    `'t', '1', rate_limits => '[{"key": "other", "weight": 2}, {"key": "limit", "by": "é"}, {"key": "limit"}]'`,
    1,
    { rateLimit: ['limit', { key: 'limit', by: 'é' }, { key: 'other', weight: 2 }] },
  ],
  [
    'one rate limit and a key',
    `'t', '1', rate_limits => '[{"key": "limit", "by": null, "weight": 1}]', job_key => 'sql'`,
    1,
    { rateLimit: 'limit', jobKey: 'ts' },
  ],
  [
    'flags, tags and a group',
    `'t', '1', flags => array['f'], tags => array['a', 'b'], group_id => 'g'`,
    1,
    { flags: ['f'], tags: ['a', 'b'], groupId: 'g' },
  ],
  ['nothing, said in another way', `'t', '1', flags => '{}', tags => null, priority => null`, 1, {}],
  ['a large payload', `'t', to_json(repeat('x', 5000))`, 'x'.repeat(5_000), {}],
  ['a key', `'t', '1', queue => 'mail', job_key => 'sql'`, 1, { queue: 'mail', jobKey: 'ts' }],
  [
    'a key and its mode',
    `'t', '1', job_key => 'sql', job_key_mode => 'preserve_run_at', tags => array['a']`,
    1,
    { jobKey: 'ts', jobKeyMode: 'preserve_run_at', tags: ['a'] },
  ],
];

describe('add_job', () => {
  it.each(CASES)('stores what addJob stores: %s (%s)', async (_what, call, payload, options) => {
    for (const key of ['limit', 'other']) await jobs.registerRateLimit(key, 5, 1_000);
    const id = await add(call);
    const twin = await jobs.addJob('t', payload, options);
    const text = JSON.stringify(await stored(id)).replaceAll('"sql"', '"ts"');
    expect(JSON.parse(text)).toEqual(await stored(twin.id));
    expect(await jobs.findJob(id)).toMatchObject({ payload, status: twin.status });
  });

  it('hands payloads on as they were written', async () => {
    const id = await add(String.raw`'t', '{"b": 1.50, "a": "\u0000", "a": 2}'`);
    const [row] = await test.sql('select payload::text from jobs.job_bodies where id = $1', [id]);
    expect(row).toEqual({ payload: String.raw`{"b": 1.50, "a": "\u0000", "a": 2}` });
    expect((await jobs.getJobs(WORKER))[0]).toMatchObject({ id, payload: { b: 1.5, a: 2 } });
  });

  it('makes ids of version 7, in the order of the calls', async () => {
    const rows = await test.sql<{ id: string }>(`select jobs.add_job('t') as id from generate_series(1, 200)`);
    const ids = rows.map(({ id }) => id);
    expect(ids.every((id) => /^[\da-f]{8}-[\da-f]{4}-7[\da-f]{3}-[89ab][\da-f]{3}-[\da-f]{12}$/.test(id))).toBe(true);
    expect(ids.toSorted()).toEqual(ids);
    const at = parseInt(ids[0]!.replaceAll('-', '').slice(0, 12), 16);
    expect(Math.abs(at - (await jobs.findJob(ids[0]!))!.createdAt.getTime())).toBeLessThan(1_000);
  });

  it('treats jobs under the same key as addJob does', async () => {
    const first = await add(`'t', '1', job_key => 'k'`);
    expect(await add(`'t', '2', job_key => 'k', job_key_mode => 'unsafe_dedupe'`)).toBe(first);
    expect(await add(`'t', '3', job_key => 'k', job_key_mode => 'preserve_run_at'`)).toBe(first);
    expect(await jobs.findJob(first)).toMatchObject({ payload: 3 });
    const second = await add(`'t', '4', job_key => 'k'`);
    expect(await jobs.findJob(first)).toBeNull();
    await jobs.getJobs(WORKER);
    const third = await add(`'t', '5', job_key => 'k'`);
    expect(await jobs.findJob(third)).toMatchObject({ status: 'blocked', payload: 5 });
    expect(await jobs.findJob(second)).toMatchObject({ status: 'running', jobKey: null });
  });

  it('wakes an idle pool with the commit: for plain jobs, other priorities, queues, and children of what it replaced', async () => {
    const old = await jobs.addJob('parent', 0, { jobKey: 'k', delayMs: 3_600_000 });
    await jobs.addJob('t', 'child', { dependsOn: [old.id] });
    const ran: unknown[] = [];
    const run = (payload: unknown): void => void ran.push(payload);
    const pool = await createWorkerPool({
      jobs,
      tasks: { t: run, parent: run },
      options: { pollIntervalMs: 3_600_000, refetchDelayMs: 3_600_000 },
    }).start();
    for (const call of [
      `'t', '1'`,
      `'t', '2', priority => 7`,
      `'t', '3', queue => 'q"'`,
      `'parent', '4', job_key => 'k'`,
    ]) {
      const client = await connect();
      await client.query('begin');
      await client.query(`select jobs.add_job(${call})`);
      await client.query('commit');
      await eventually(() => ran.length === Number(/'(\d)'/.exec(call)![1]));
    }
    await eventually(() => ran.length === 5);
    expect(ran).toEqual([1, 2, 3, 4, 'child']);
    await pool.stop();
  });

  const wrong: [call: string, message: string, hint: RegExp][] = [
    [`null`, `Expected task to be 1 to 1,000 bytes long, got NULL.`, /as its handler does/],
    [`''`, `Expected task to be 1 to 1,000 bytes long, got ''.`, /as its handler does/],
    [
      `'t', queue => ''`,
      `Expected queue to be 1 to 1,000 bytes long, without control characters, got ''.`,
      /Leave it out/,
    ],
    [
      `'t', queue => E'a\\x1fb'`,
      `Expected queue to be 1 to 1,000 bytes long, without control characters, got 'a\x1fb'.`,
      /Leave/,
    ],
    [`'t', queue => repeat('é', 501)`, `got '${'é'.repeat(59)}.`, /Leave it out/],
    [`'t', rate_limit_key => 'x'`, `Expected rate_limit_key to be registered, got 'x'.`, /registerRateLimit/],
    [
      `'t', rate_limits => '[{"key": "x", "by": "a"}]'`,
      `Expected rate_limits to be registered, got 'x'.`,
      /registerRateLimit/,
    ],
    [
      `'t', rate_limits => '[{"key": "five", "weight": 6}]'`,
      `a weight of at most 5 for the rate limit 'five', got '6'.`,
      /Ask for less/,
    ],
    [
      `'t', rate_limit_key => 'five', rate_limits => '[]'`,
      `Expected rate_limit_key or rate_limits, not both`,
      /one of them/,
    ],
    ...[
      `{"key": "five"}`,
      `[]`,
      `["five"]`,
      `[{"by": "a"}]`,
      `[{"key": 5}]`,
      `[{"key": ""}]`,
      `[{"key": "five", "weight": 0}]`,
      `[{"key": "five", "weight": 1.5}]`,
      `[{"key": "five", "by": ""}]`,
      `[{"key": "five", "by": "a\\u001d"}]`,
      `[{"key": "five", "wieght": 1}]`,
      `[{"key": "five"}, {"key": "five", "weight": 2}]`,
      `[{"key": "a"}, {"key": "b"}, {"key": "c"}, {"key": "d"}]`,
    ].map((limits): [string, string, RegExp] => [
      `'t', rate_limits => '${limits}'`,
      `Expected rate_limits to be an array of 1 to 3 objects { key, by, weight }, each limit once`,
      /"weight": 2/,
    ]),
    [`'t', run_at => 'infinity'`, `Expected run_at to lie between the years 1 and 9999, got 'infinity'.`, /due now/],
    [`'t', max_attempts => 0`, `Expected max_attempts to be an integer from 1 to 32767, got '0'.`, /25/],
    [`'t', max_attempts => 32768`, `got '32768'.`, /25/],
    [`'t', timeout_ms => 0`, `Expected timeout_ms to be at least 1, got '0'.`, /timeout of the task/],
    [`'t', job_key => ''`, `Expected job_key to be 1 to 2,000 bytes long, got ''.`, /without a key/],
    [`'t', job_key_mode => 'replace'`, `Expected job_key beside job_key_mode, got NULL.`, /job_key_mode out/],
    [
      `'t', job_key => 'k', job_key_mode => 'x'`,
      `to be replace, preserve_run_at or unsafe_dedupe, got 'x'.`,
      /replace/,
    ],
    [`'t', group_id => ''`, `Expected group_id to be 1 to 1,000 bytes long, got ''.`, /own group/],
    [
      `'t', flags => array['a', null]`,
      `Expected flags to hold names of 1 to 1,000 bytes, got '{a,NULL}'.`,
      /array of texts/,
    ],
    [`'t', tags => array['']`, `Expected tags to hold names of 1 to 1,000 bytes, got '{""}'.`, /array of texts/],
  ];

  it('refuses wrong arguments with what it expected and what to do, and adds nothing', async () => {
    await jobs.registerRateLimit('five', 5, 1_000);
    for (const [call, message, hint] of wrong) {
      const error = await add(call).catch((reason: unknown) => reason as pg.DatabaseError);
      expect(error).toMatchObject({ code: '22023', hint: expect.stringMatching(hint) });
      expect((error as Error).message).toContain(message);
    }
    expect(await test.sql('select from jobs.job_bodies')).toEqual([]);
  });

  it('takes nothing of its caller’s in the place of what it calls', async () => {
    const client = await connect();
    await client.query(`create temp table jobs (id uuid); create temp table job_bodies (id uuid);
      create temp table rate_limits (key text); create schema mine; set search_path = mine, pg_temp;
      create function mine.lane_of(text, text, text, boolean) returns text language sql as $$ select 'mine' $$;
      create function mine.new_job_id() returns uuid language sql as $$ select null::uuid $$`);
    const { rows } = await client.query<{ id: string }>(`select jobs.add_job('t', '1', queue => 'q') as id`);
    expect(await jobs.findJob(rows[0]!.id)).toMatchObject({ task: 't', queue: 'q', status: 'available' });
  });
});

describe('a trigger that adds jobs', () => {
  beforeEach(async () => {
    await test.sql(`create table orders (id int primary key, total numeric)`);
    await test.sql(`create function order_placed() returns trigger language plpgsql as $$
      begin
        perform jobs.add_job('ship-order', to_json(new), queue => 'orders', job_key => 'order-' || new.id);
        return null;
      end $$`);
    await test.sql(`create trigger order_placed after insert or update on orders
      for each row execute function order_placed()`);
  });

  it('adds with the rows, one for each key', async () => {
    await test.sql(`insert into orders values (1, 9.50), (2, 3)`);
    await test.sql(`update orders set total = 10 where id = 1`);
    const { items } = await jobs.listJobs({ task: 'ship-order' });
    expect(items.map(({ payload }) => payload)).toEqual([
      { id: 1, total: 10 },
      { id: 2, total: 3 },
    ]);
    expect(items.every(({ queue }) => queue === 'orders')).toBe(true);
  });

  it('adds nothing where the transaction rolls back, and fails the statement where an argument is wrong', async () => {
    const client = await connect();
    await client.query('begin');
    await client.query('insert into orders values (1, 1)');
    await client.query('rollback');
    expect(await test.sql('select from jobs.jobs')).toEqual([]);
    await test.sql(`create or replace function order_placed() returns trigger language plpgsql as $$
      begin
        perform jobs.add_job('ship-order', to_json(new), max_attempts => 0);
        return null;
      end $$`);
    await expect(test.sql('insert into orders values (2, 2)')).rejects.toThrow('Expected max_attempts');
    expect(await test.sql('select from orders')).toEqual([]);
  });
});

describe('roles', () => {
  const role = `sql_adder_${randomBytes(4).toString('hex')}`;
  let url: string;

  beforeEach(async () => {
    await test.sql(`create role ${role} login password 'secret'`);
    const place = new URL(test.url);
    [place.username, place.password] = [role, 'secret'];
    url = place.href;
  });
  afterEach(async () => {
    await Promise.all(clients.splice(0).map((client) => client.end()));
    await test.sql(`drop owned by ${role}; drop role ${role}`);
  });

  it('an enqueue role calls it, with a key too; a role without rights does not', async () => {
    const client = await connect(url);
    await expect(client.query(`select jobs.add_job('t')`)).rejects.toMatchObject({ code: '42501' });
    const migrator = new JobsMigrator({ connection: test.url });
    await migrator.grant('enqueue', role);
    await migrator.close();
    const { rows } = await client.query<{ id: string }>(
      `select jobs.add_job('t', '1') as id union all select jobs.add_job('t', '2', job_key => 'k')
       union all select jobs.add_job('t', '3', job_key => 'k')`,
    );
    expect(await Promise.all(rows.map(async ({ id }) => (await jobs.findJob(id))?.payload))).toEqual([1, undefined, 3]);
  });
});
