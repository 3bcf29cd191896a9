// What the core holds itself to beside its worst neighbours: full queues, many lanes, many priorities, open transactions of
// others. Usage: node bars.mjs [--only serial,small] [--rounds 3] [--quick] [--dist ../dist]; docs/storage.md tells what was
// measured. Every case compares within one run; rounds are interleaved.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import pg from 'pg';
import { postgresSettings } from './arena.mjs';
import { Meter } from './meter.mjs';

const { values: given } = parseArgs({
  options: {
    only: { type: 'string' },
    rounds: { type: 'string', default: '3' },
    quick: { type: 'boolean', default: false },
    dist: { type: 'string', default: new URL('../dist', import.meta.url).pathname },
  },
});
const from = (file) => import(pathToFileURL(path.resolve(given.dist, file)).href);
const { startEmbeddedPostgres } = await from('embedded.js');
const { createJobManager, createWorkerPool } = await from('index.js');

const ROUNDS = Number(given.rounds);
const MANY = given.quick ? 100_000 : 1_000_000;
const LANES = given.quick ? 10_000 : 100_000;
const SNAPSHOT_JOBS = given.quick ? 20_000 : 200_000;
const HOLD_MS = given.quick ? 20_000 : 600_000;
const HOUR = 3_600_000;
const POLL_MS = 2_000;

const server = await startEmbeddedPostgres({ settings: postgresSettings });
const admin = new pg.Client(server.url);
await admin.connect();
const openMeter = () => new Meter(server.pid, admin);
let databases = 0;

const pause = (ms) => new Promise((resolve) => void setTimeout(resolve, ms));
const median = (list) => list.toSorted((a, b) => a - b)[list.length >> 1];
const shown = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));

/** An empty database with the library's schema. */
async function open() {
  const name = `bars_${++databases}`;
  await admin.query(`create database ${name}`);
  await admin.query('checkpoint');
  const url = server.url.replace(/[^/]*$/, name);
  const jobs = await createJobManager({ connection: url });
  const sessions = [];
  const session = async () => {
    const client = new pg.Client(url);
    client.on('error', () => undefined);
    await client.connect();
    sessions.push(client);
    return client;
  };
  const sql = await session();
  /** Handlers do nothing; `onJob` hears of each. */
  const work = async (onJob, { concurrency = 10, ...options } = {}) => {
    const pool = createWorkerPool({
      jobs,
      tasks: { noop: (payload) => void onJob(payload), other: (payload) => void onJob(payload) },
      options: { concurrency, pollIntervalMs: POLL_MS, ...options },
    });
    await pool.start();
    return pool;
  };
  const add = async (count, specOf) => {
    for (let n = 0; n < count; n += 1_000) {
      const size = Math.min(1_000, count - n);
      await jobs.addJobs(
        Array.from({ length: size }, (_, i) => ({ task: 'noop', payload: { n: n + i }, ...specOf(n + i) })),
      );
    }
  };
  const close = async () => {
    await Promise.all(sessions.map((client) => client.end()));
    await jobs.close();
    await admin.query(`drop database ${name} with (force)`);
  };
  return { url, jobs, sql, session, add, work, close };
}

async function within(run) {
  const db = await open();
  try {
    return await run(db);
  } finally {
    await db.close();
  }
}

/** Jobs per second until so many have run. */
async function drain({ sql, work }, jobs, options) {
  await sql.query('vacuum analyze');
  let ran = 0;
  let end;
  const ended = new Promise((resolve) => (end = resolve));
  const startedAt = performance.now();
  const pool = await work(() => {
    if (++ran === jobs) end();
  }, options);
  await ended;
  const rate = jobs / ((performance.now() - startedAt) / 1_000);
  await pool.stop();
  if (ran !== jobs) throw new Error(`Expected ${jobs} runs, got ${ran}.`);
  return rate;
}

/** An open transaction with a snapshot, which holds what `text` locks. */
async function stranger({ session }, text = 'select 1') {
  const client = await session();
  await client.query('begin isolation level repeatable read');
  await client.query(text);
  return client;
}

// Each case returns { variant: figure } for one round; bars judge the medians.
const cases = {
  serial: {
    title: 'One serial queue, jobs/s',
    round: async () => ({
      '10 slots': await within(async (db) => {
        await db.add(3_000, () => ({ queue: 'serial' }));
        return drain(db, 3_000);
      }),
      '1 slot': await within(async (db) => {
        await db.add(2_000, () => ({ queue: 'serial' }));
        return drain(db, 2_000, { concurrency: 1 });
      }),
    }),
    bars: [['10 slots', (f) => f['10 slots'] >= 500, '≥ 500']],
  },

  claims: {
    title: 'A claim of 50 jobs in the database, µs a job',
    round: claimsOf50,
    bars: [
      ['5 lanes', (f) => f['10 jobs a lane'] <= 1.5 * f.plain, '≤ 1.5 × plain'],
      ['25 lanes', (f) => f['2 jobs a lane'] <= 1.8 * f.plain, '≤ 1.8 × plain'],
    ],
  },

  small: {
    title: '50 small serial queues beside one queue of n jobs: ms until the last of 250 jobs',
    round: async () => {
      const figures = {};
      for (const beside of [0, 40_000, MANY])
        figures[`beside ${beside}`] = await within((db) => smallQueues(db, beside));
      return figures;
    },
    bars: [
      [`beside ${MANY}`, (f) => f[`beside ${MANY}`] - f['beside 0'] <= 1_000, '≤ 1,000 more than beside none'],
      ['beside 40000', (f) => f['beside 40000'] - f['beside 0'] <= 1_000, '≤ 1,000 more than beside none'],
    ],
  },

  lanes: {
    title: `${LANES} lanes, all but ten blocked`,
    rounds: 1,
    round: () => within(blockedLanes),
    bars: [
      ['due job, worst ms', (f) => f['due job, worst ms'] <= 2 * POLL_MS, `≤ ${2 * POLL_MS}`],
      ['idle, % of a core', (f) => f['idle, % of a core'] < 1, '< 1'],
    ],
  },

  priorities: {
    title: 'An empty claim beside 5,000 priorities with future jobs, ms',
    round: () => within(emptyClaim),
    bars: [['later', (f) => f.later <= 5, '≤ 5']],
  },

  snapshot: {
    title: `${SNAPSHOT_JOBS} jobs under a snapshot held since before them, jobs/s of the last quarter`,
    rounds: 1,
    round: async () => ({
      'serial, none held': await within((db) => lastQuarter(db, () => ({ queue: 'serial' }), false)),
      'serial, held': await within((db) => lastQuarter(db, () => ({ queue: 'serial' }), true)),
      'rate limit, none held': await within((db) => lastQuarter(db, () => ({ rateLimitKey: 'limit' }), false)),
      'rate limit, held': await within((db) => lastQuarter(db, () => ({ rateLimitKey: 'limit' }), true)),
    }),
    bars: [
      ['serial', (f) => f['serial, held'] >= 0.8 * f['serial, none held'], '≥ 0.8'],
      ['rate limit', (f) => f['rate limit, held'] >= 0.8 * f['rate limit, none held'], '≥ 0.8'],
    ],
  },

  rows: {
    title:
      'Beside a transaction that holds one row of a table, jobs/s of a mixed load, as a share of one that holds none',
    rounds: 1,
    round: heldRows,
    bars: [['the least', (f) => Math.min(...Object.values(f)) >= 0.9, '≥ 0.9']],
  },

  long: {
    title: `A transaction that holds a row for ${HOLD_MS / 1_000} s, jobs/s in its last tenth as a share of its first`,
    rounds: 1,
    round: () => within(heldLong),
    bars: [
      ['plain', (f) => f.plain >= 0.95, '≥ 0.95'],
      ['lanes', (f) => f.lanes >= 0.5, '≥ 0.5'],
    ],
  },
};

async function claimsOf50() {
  const shapes = {
    plain: [() => ({})],
    '10 jobs a lane': [(n) => ({ queue: `queue-${Math.floor(n / 10)}` }), 5],
    '2 jobs a lane': [(n) => ({ queue: `queue-${Math.floor(n / 2)}` }), 25],
  };
  const figures = {};
  await within(async ({ jobs, sql }) => {
    const calls = Object.fromEntries(Object.keys(shapes).map((name) => [name, []]));
    // As a pool: what is claimed by hand has a lease of its own, which is indexed.
    const holder = 'holder';
    await sql.query(`insert into jobs.workers (id, label, host, pid, concurrency, lease_ms, tasks, environment)
      values ('${holder}', 'holder', 'host', 1, 10, ${HOUR}, '{noop}', '{}')`);
    for (let queue = 0; queue < 25; queue++) await jobs.configureQueue(`queue-${queue}`, { concurrency: 100 });
    for (let round = 0; round < 120; round++) {
      for (const [name, [specOf, lanes]] of Object.entries(shapes)) {
        await jobs.addJobs(Array.from({ length: 50 }, (_, n) => ({ task: 'noop', payload: { n }, ...specOf(n) })));
        const text =
          name === 'plain'
            ? `select * from jobs.claim_plain_jobs($1, 50, 65536, null, null, null, null, null, '{}', '{}', '{}', null, null)`
            : `select * from jobs.claim_lane_jobs($1, 50, null, null, null, null, null, null, null, '{080000001}', '{0}', '{1}',
                '{${50 / lanes}}', '{}', '{}', '{}', '{}', '{}', null, '{}', '{}', '{}', '{}', '{}', null, null, 200)`;
        await sql.query('begin');
        const startedAt = performance.now();
        const { rows } = await sql.query({ name, text, values: [holder] });
        calls[name].push(performance.now() - startedAt);
        await sql.query('commit');
        if (rows.length < 51) throw new Error(`${name}: expected 50 jobs, got ${rows.length - 1}.`);
        await sql.query('delete from jobs.jobs');
        await sql.query('delete from jobs.job_places');
      }
      if (round % 20 === 0) await sql.query('vacuum jobs.jobs, jobs.job_places, jobs.job_bodies');
    }
    for (const [name, times] of Object.entries(calls)) figures[name] = (Math.min(...times) / 50) * 1_000;
  });
  return figures;
}

async function smallQueues({ jobs, sql, add }, beside) {
  await jobs.configureQueue('big', { concurrency: 1 });
  if (beside) await add(beside, () => ({ queue: 'big' }));
  await add(250, (n) => ({ task: 'other', queue: `small-${n % 50}` }));
  await sql.query('vacuum analyze');
  let small = 0;
  let end;
  const ended = new Promise((resolve) => (end = resolve));
  const startedAt = performance.now();
  // Of the big queue only a few jobs run: each takes half a second.
  const pool = createWorkerPool({
    jobs,
    tasks: { noop: () => pause(500), other: () => void (++small === 250 && end()) },
    options: { concurrency: 10, pollIntervalMs: POLL_MS },
  });
  await pool.start();
  await ended;
  const took = performance.now() - startedAt;
  await pool.stop();
  return took;
}

/** Each lane is a queue whose one place is taken, by hand, for an hour. */
async function blockedLanes({ jobs, sql, add, work }) {
  await add(2 * LANES, (n) => ({ queue: `queue-${n % LANES}` }));
  // As claims by hand would leave it, which would take minutes.
  await sql.query(`insert into jobs.job_queues (name) select distinct queue from jobs.jobs`);
  await sql.query(`
    with heads as (select distinct on (queue) ctid as place from jobs.jobs order by queue, run_at, id),
    claimed as (
      update jobs.jobs j
      set locked_by = 'bars-holder', locked_at = clock_timestamp(), attempts = 1, fence = 1, lease_ms = ${HOUR},
        lease_expires_at = clock_timestamp() + interval '1 hour', place = nextval('jobs.job_place_numbers')
      from heads h where j.ctid = h.place returning j.*
    )
    insert into jobs.job_places (queue, number, job_id, fence) select queue, place, id, fence from claimed`);
  const { rows } = await sql.query('select count(*)::integer as held from jobs.job_places');
  if (rows[0].held !== LANES) throw new Error(`Expected ${LANES} queues to be held, got ${rows[0].held}.`);
  await sql.query('vacuum analyze');
  const starts = new Map();
  const pool = await work(({ n }) => starts.set(n, performance.now()));
  // What a pool learns of the lanes in its first looks is not the state to be measured.
  await pause(given.quick ? 10_000 : 40_000);
  const meter = openMeter();
  const idle = async () => {
    await meter.start();
    const cpu = process.cpuUsage();
    await pause(20_000);
    const { user, system } = process.cpuUsage(cpu);
    const database = (await meter.read()).cpu;
    return { worker: (user + system) / 200_000, database: database / 200_000 };
  };
  const used = await idle();
  const waits = [];
  for (let n = 0; n < 20; n++) {
    const id = `due-${n}`;
    const at = performance.now();
    await jobs.addJob('noop', { n: id }, { queue: `open-${n % 10}` });
    while (!starts.has(id)) await pause(2);
    waits.push(starts.get(id) - at);
    await pause(300);
  }
  await pool.stop();
  return {
    'idle, % of a core': used.worker + used.database,
    'of it the database': used.database,
    'due job, median ms': median(waits),
    'due job, worst ms': Math.max(...waits),
  };
}

/** As a pool claims: the first time it looks at every priority, and then it knows how long none of them has anything. */
async function emptyClaim({ sql, add }) {
  await add(5_000, (n) => ({ priority: n, delayMs: HOUR }));
  await sql.query('vacuum analyze');
  const text = `select * from jobs.claim_plain_jobs('holder', 50, 65536, null, null, null, ${HOUR}, null, '{}', '{}', '{}', $1, $2)`;
  const times = { first: [], later: [] };
  for (let n = 0; n < 50; n++) {
    let quiet = [null, null];
    for (const which of ['first', 'later']) {
      const startedAt = performance.now();
      const { rows } = await sql.query({ name: 'claim', text, values: quiet });
      times[which].push(performance.now() - startedAt);
      if (which === 'first') quiet = JSON.parse(rows.at(-1).claim_plain_jobs).quiet.slice(0, 2);
    }
  }
  return { first: median(times.first), later: median(times.later) };
}

async function lastQuarter(db, specOf, held) {
  const { jobs, add, sql, work } = db;
  await jobs.registerRateLimit('limit', 2_000_000_000, HOUR);
  await add(SNAPSHOT_JOBS, specOf);
  await sql.query('vacuum analyze');
  if (held) await stranger(db);
  let ran = 0;
  let quarterAt = 0;
  let end;
  const ended = new Promise((resolve) => (end = resolve));
  const pool = await work(() => {
    ran++;
    if (ran === Math.floor(SNAPSHOT_JOBS * 0.75)) quarterAt = performance.now();
    if (ran === SNAPSHOT_JOBS) end();
  });
  await ended;
  const rate = (SNAPSHOT_JOBS * 0.25) / ((performance.now() - quarterAt) / 1_000);
  await pool.stop();
  return rate;
}

const mixed = (n) => [{}, { queue: `queue-${n % 20}` }, { rateLimitKey: `limit-${n % 5}` }, {}][n % 4];

/** Of every table that has rows while a mixed load runs, one row is held; the row's own job or lane may wait. */
async function heldRows() {
  const jobs = given.quick ? 4_000 : 12_000;
  const run = (hold) =>
    within(async (db) => {
      for (let n = 0; n < 5; n++) await db.jobs.registerRateLimit(`limit-${n}`, 1_000_000, HOUR);
      for (let n = 0; n < 20; n++) await db.jobs.configureQueue(`queue-${n}`, { concurrency: 5 });
      await db.add(jobs + 2_000, mixed);
      await db.sql.query('vacuum analyze');
      let ran = 0;
      let end;
      const ended = new Promise((resolve) => (end = resolve));
      let startedAt = 0;
      const pool = await db.work(() => {
        ran++;
        if (ran === 1_000) startedAt = -1;
        if (ran >= jobs) end();
      });
      while (startedAt === 0) await pause(1);
      const client = await stranger(db, hold);
      const before = ran;
      startedAt = performance.now();
      // What is held may keep its own jobs: the rest must go on.
      await Promise.race([ended, pause(60_000)]);
      const rate = (ran - before) / ((performance.now() - startedAt) / 1_000);
      await client.query('rollback');
      await pool.stop();
      return rate;
    });
  const tables = [
    'jobs',
    'job_queues',
    'job_places',
    'rate_limits',
    'rate_limit_states',
    'job_bodies',
    'workers',
    'duties',
    'job_tasks',
    'releases',
  ];
  const figures = {};
  for (const table of tables) {
    const lock = `select ctid from jobs.${table} order by ctid limit 1 for update skip locked`;
    const rates = { held: [], none: [] };
    for (let round = 0; round < ROUNDS; round++) {
      rates.none.push(await run('select 1'));
      rates.held.push(await run(lock));
    }
    figures[table] = median(rates.held) / median(rates.none);
  }
  return figures;
}

/** Loads of plain jobs and of lanes by turns, 2 s each, as long as the transaction is open. */
async function heldLong(db) {
  for (let n = 0; n < 20; n++) await db.jobs.configureQueue(`queue-${n}`, { concurrency: 5 });
  await db.add(1_000, () => ({ delayMs: HOUR }));
  const client = await stranger(db, 'select from jobs.jobs limit 1 for update');
  const shapes = { plain: () => ({}), lanes: (n) => ({ queue: `queue-${n % 20}` }) };
  const rates = { plain: [], lanes: [] };
  let ran = 0;
  const pool = await db.work(() => void ran++);
  const startedAt = performance.now();
  while (performance.now() - startedAt < HOLD_MS) {
    for (const [name, specOf] of Object.entries(shapes)) {
      const size = name === 'plain' ? 5_000 : 1_500;
      const target = ran + size;
      const from = performance.now();
      await db.add(size, specOf);
      while (ran < target) await pause(1);
      rates[name].push(size / ((performance.now() - from) / 1_000));
    }
    await pause(given.quick ? 0 : 3_000);
  }
  await client.query('rollback');
  await pool.stop();
  const share = (list) => {
    const tenth = Math.max(1, Math.floor(list.length / 10));
    return median(list.slice(-tenth)) / median(list.slice(1, 1 + tenth));
  };
  return {
    plain: share(rates.plain),
    lanes: share(rates.lanes),
    'plain jobs/s at the end': rates.plain.at(-1),
    'lane jobs/s at the end': rates.lanes.at(-1),
  };
}

const names = given.only ? given.only.split(',') : Object.keys(cases);
const unknown = names.filter((name) => !cases[name]);
if (unknown.length)
  throw new Error(`Expected --only to be some of ${Object.keys(cases).join()}, got ${unknown.join()}.`);
const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
console.log(
  `millrace ${version}, PostgreSQL ${(await admin.query('show server_version')).rows[0].server_version}, medians of ${ROUNDS}`,
);
let missed = 0;
try {
  for (const name of names) {
    const { title, round, rounds = ROUNDS, bars } = cases[name];
    const all = [];
    for (let n = 0; n < rounds; n++) all.push(await round());
    const figures = Object.fromEntries(Object.keys(all[0]).map((key) => [key, median(all.map((one) => one[key]))]));
    console.log(`\n${title}`);
    for (const [key, value] of Object.entries(figures)) {
      const values = all.map((one) => one[key]);
      const spread = values.length > 1 ? ` (${shown(Math.min(...values))}–${shown(Math.max(...values))})` : '';
      console.log(`  ${key}: ${shown(value)}${spread}`);
    }
    for (const [what, isHeld, bar] of bars) {
      const held = isHeld(figures);
      if (!held) missed++;
      console.log(`  ${held ? 'held  ' : 'MISSED'} ${what} ${bar}`);
    }
  }
} finally {
  await admin.end();
  await server.stop();
}
process.exitCode = missed ? 1 : 0;
