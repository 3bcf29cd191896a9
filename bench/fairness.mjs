// Whether tenants get their share: many partitions of one queue beside a noisy one. Usage: node fairness.mjs [--only
// ahead,turns] [--quick] [--seconds 60]; docs/benchmarks.md tells what was measured. Figures of a case are compared within
// one run. Results go to fairness.json, those of --quick to the terminal only. Exit code 1: a bar was missed.
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Hands, Stage, fill, jainIndex, median, pause, quantile, settle, work } from './stage.mjs';

const { values: given } = parseArgs({
  options: {
    only: { type: 'string' },
    quick: { type: 'boolean', default: false },
    seconds: { type: 'string' },
  },
});
const MANY = given.quick ? 100_000 : 1_000_000;
const TENANTS = given.quick ? 1_000 : 10_000;
const STRICT_S = Number(given.seconds ?? (given.quick ? 10 : 60));
const WAITS = given.quick ? 400 : 1_200;
const SNAPSHOT_JOBS = given.quick ? 5_000 : 20_000;
/** Of the noisy tenant, in `waits`: more than run meanwhile. */
const BEHIND = 100_000;
const SMALL = 50;
const ROUNDS = 3;
const HANDLER_MS = 20;

const stage = await Stage.start();

/** One partition of nine tenths of the jobs first, then the same number of each of the others. */
const noisyFirst = `case when n < ${MANY * 0.9} then 'noisy' else 'tenant-' || lpad((n % ${TENANTS - 1})::text, 5, '0') end`;
const LIMITS = { concurrency: 200, partitions: { concurrency: 5 } };
const UNLIMITED = { concurrency: Infinity };

const cases = {
  ahead: {
    title: `The jobs of ${SMALL} tenants, one each, behind those of a noisy one; pool of 10, handlers of ${HANDLER_MS} ms`,
    async run() {
      const rows = [];
      for (const [limit, partitions] of Object.entries({ '1 at once': { concurrency: 1 }, 'no limit': {} })) {
        for (const count of [0, 40_000, MANY]) {
          const figures = await stage.within((db) => smallOnesBehind(db, count, { concurrency: Infinity, partitions }));
          rows.push({ 'of a tenant': limit, 'jobs ahead': count, ...figures });
        }
      }
      return rows;
    },
    bars: (rows) =>
      rows.map((row) => [
        `last, ${row['jobs ahead'].toLocaleString('en')} ahead, ${row['of a tenant']}`,
        row['last, ms'],
        '≤',
        1_200,
      ]),
  },

  turns: {
    title: `Jain's index of ${TENANTS.toLocaleString('en')} tenants after ${ROUNDS} jobs for each; ${MANY.toLocaleString('en')} waiting, nine tenths of one tenant and first`,
    async run() {
      const rows = [];
      const loaded = await stage.prepare(async ({ sql }) => {
        await fill(sql, MANY, { queue: 'shared', partition: noisyFirst });
        await settle(sql);
      });
      const shapes = [
        [10, UNLIMITED],
        [100, UNLIMITED],
        [500, UNLIMITED],
        [100, LIMITS],
      ];
      for (const [size, limits] of shapes) {
        const figures = await stage.within((db) => turnsOf(db, size, limits), loaded);
        rows.push({ 'jobs a claim': size, limits: limits === LIMITS ? '5 of 200' : 'none', ...figures });
      }
      await stage.drop(loaded);
      return rows;
    },
    bars: (rows) =>
      rows.flatMap((row) => {
        const what = `claims of ${row['jobs a claim']}, limits ${row.limits}`;
        return [
          [`Jain's index, ${what}`, row["Jain's index"], '≥', 0.999],
          [`tenants served by the first ${TENANTS}, ${what}`, row['served by one each'], '≥', TENANTS],
        ];
      }),
  },

  waits: {
    title:
      'From the add to the start of the jobs of 20 small tenants, 50 a second; pool of 10; noisy handlers of 20 ms',
    async run() {
      const shapes = {
        idle: [0, {}],
        'beside a noisy one': [BEHIND, {}],
        'beside a noisy one, 5 at once': [BEHIND, { concurrency: 5 }],
      };
      const waits = Object.fromEntries(Object.keys(shapes).map((name) => [name, []]));
      for (let round = 0; round < 2; round++) {
        for (const [name, [count, partitions]] of Object.entries(shapes))
          waits[name].push(...(await stage.within((db) => waitsOf(db, count, partitions))));
      }
      return Object.entries(waits).map(([name, list]) => ({
        small: name,
        jobs: list.length,
        'p50, ms': median(list),
        'p99, ms': quantile(list, 0.99),
        'longest, ms': Math.max(...list),
      }));
    },
    bars: ([idle, ...beside]) =>
      beside.map((row) => [`p99 ${row.small} / idle`, row['p99, ms'] / idle['p99, ms'], '≤', 2]),
  },

  weights: {
    title: 'Jobs of three tenants of weights 1, 2 and 4, of 10,000 served',
    async run() {
      const rows = [];
      for (const size of [10, 100, 500]) rows.push(await stage.within((db) => weightsByHand(db, size)));
      rows.push(await stage.within((db) => weightsInPool(db, Infinity)));
      rows.push(await stage.within((db) => weightsInPool(db, 4)));
      return rows;
    },
    bars: (rows) => rows.map((row) => [`furthest from its weight, ${row.by}`, row['furthest off, %'], '≤', 2]),
  },

  cpu: {
    title: `Database CPU of claims of 100 jobs; ${MANY.toLocaleString('en')} waiting, of ${TENANTS.toLocaleString('en')} tenants, nine tenths of one`,
    run: cpuOfClaims,
    bars: ([plain, partitioned, limited]) => [
      ['partitions / plain', partitioned['µs a job'] / plain['µs a job'], '≤', 1.25],
      ['partitions with limits / plain', limited['µs a job'] / plain['µs a job'], '≤', 2.5],
    ],
  },

  strict: {
    title: `Handlers at once under kill -9 and SIGSTOP of four worker processes, ${STRICT_S} s; a failover is not part of it`,
    run: async () => [await stage.within(strict)],
    bars: ([row]) => [
      ['most of a partition at once', row['of a partition'], '≤', 2],
      ['most of the queue at once', row['of the queue'], '≤', 20],
      ['places left taken', row['places left'], '≤', 0],
    ],
  },

  snapshot: {
    title: `${SNAPSHOT_JOBS.toLocaleString('en')} jobs of 100 tenants, at most 5 at once of each, beside a snapshot held since before them`,
    async run() {
      const rates = { none: [], held: [] };
      for (let round = 0; round < ROUNDS; round++) {
        for (const name of Object.keys(rates))
          rates[name].push(await stage.within((db) => rateOf(db, name === 'held')));
      }
      return Object.entries(rates).map(([name, list]) => ({
        snapshot: name,
        'jobs/s of the last quarter': median(list),
        least: Math.min(...list),
        most: Math.max(...list),
      }));
    },
    bars: ([none, held]) => [
      ['held / none', held['jobs/s of the last quarter'] / none['jobs/s of the last quarter'], '≥', 0.8],
    ],
  },
};

async function smallOnesBehind({ jobs, sql }, count, options) {
  await jobs.configureQueue('shared', options);
  if (count) await fill(sql, count, { queue: 'shared', partition: `'noisy'` });
  await fill(sql, SMALL, { queue: 'shared', partition: `'small-' || lpad(n::text, 2, '0')` });
  await settle(sql);
  const times = [];
  let noisy = 0;
  let end;
  const ended = new Promise((resolve) => (end = resolve));
  const startedAt = performance.now();
  const pool = await work(jobs, async ({ tenant }) => {
    if (tenant === 'noisy') noisy++;
    else if (times.push(performance.now() - startedAt) === SMALL) end();
    await pause(HANDLER_MS);
  });
  await ended;
  const served = noisy;
  const from = performance.now();
  if (count) await pause(3_000);
  const rate = (noisy - served) / ((performance.now() - from) / 1_000);
  await pool.stop();
  return {
    'first, ms': times[0],
    'last, ms': times.at(-1),
    'noisy ones before the last': served,
    'noisy jobs/s after': rate,
  };
}

async function turnsOf(db, size, limits) {
  await db.jobs.configureQueue('shared', limits);
  const hands = await Hands.of(db);
  const served = new Map();
  let inOneRound;
  let count = 0;
  let cpu = 0;
  const claimMs = [];
  while (count < ROUNDS * TENANTS) {
    await stage.meter.start();
    const startedAt = performance.now();
    const claimed = await hands.claimLanes(Math.min(size, ROUNDS * TENANTS - count));
    claimMs.push(performance.now() - startedAt);
    cpu += (await stage.meter.read()).cpu;
    if (!claimed.length) throw new Error(`Expected a claim to bring jobs, got none after ${count}.`);
    for (const { partition } of claimed) {
      served.set(partition, (served.get(partition) ?? 0) + 1);
      if (++count === TENANTS) inOneRound = served.size;
    }
    await hands.complete(claimed);
  }
  const shares = Array.from({ length: TENANTS }, (_, n) => [...served.values()][n] ?? 0);
  return {
    "Jain's index": jainIndex(shares),
    'served by one each': inOneRound,
    'of the noisy one': served.get('noisy') ?? 0,
    'most of a tenant': Math.max(...shares),
    'database CPU, µs a job': cpu / count,
    'claim p50, ms': median(claimMs),
    'p99, ms': quantile(claimMs, 0.99),
  };
}

async function waitsOf({ jobs, sql }, count, partitions) {
  await jobs.configureQueue('shared', { concurrency: Infinity, partitions });
  if (count) await fill(sql, count, { queue: 'shared', partition: `'noisy'` });
  await settle(sql);
  const waits = [];
  const pool = await work(jobs, async ({ tenant, at }) => {
    if (tenant === 'noisy') await pause(HANDLER_MS);
    else waits.push(performance.now() - at);
  });
  await pause(2_000);
  const measured = WAITS / 2;
  for (let n = 0; n < measured; n++) {
    const tenant = `small-${n % 20}`;
    void jobs.addJob('serve', { tenant, at: performance.now() }, { queue: 'shared', partition: tenant });
    await pause(-Math.log(1 - Math.random()) * 20);
  }
  while (waits.length < measured) await pause(5);
  await pool.stop();
  return waits;
}

const WEIGHTS = { one: 1, two: 2, four: 4 };

async function setWeights({ jobs, sql }, concurrency) {
  await jobs.configureQueue('shared', { concurrency });
  for (const [tenant, weight] of Object.entries(WEIGHTS)) await jobs.configurePartition('shared', tenant, { weight });
  await fill(sql, 30_000, { queue: 'shared', partition: `(array['one', 'two', 'four'])[1 + n % 3]` });
  await settle(sql);
}

function weighed(by, served) {
  const total = Object.values(served).reduce((sum, x) => sum + x, 0);
  const off = Object.entries(WEIGHTS).map(([tenant, weight]) => Math.abs(served[tenant] / ((total * weight) / 7) - 1));
  return { by, ...served, 'furthest off, %': Math.max(...off) * 100 };
}

async function weightsByHand(db, size) {
  await setWeights(db, Infinity);
  const hands = await Hands.of(db);
  const served = { one: 0, two: 0, four: 0 };
  for (let count = 0; count < 10_000;) {
    const claimed = await hands.claimLanes(Math.min(size, 10_000 - count));
    for (const { partition } of claimed) served[partition]++;
    count += claimed.length;
    await hands.complete(claimed);
  }
  return weighed(`claims of ${size}`, served);
}

async function weightsInPool(db, concurrency) {
  await setWeights(db, concurrency);
  const served = { one: 0, two: 0, four: 0 };
  let count = 0;
  let end;
  const ended = new Promise((resolve) => (end = resolve));
  const pool = await work(db.jobs, ({ tenant }, { job }) => {
    if (++count > 10_000) return;
    served[job.partition ?? tenant]++;
    if (count === 10_000) end();
  });
  await ended;
  await pool.stop();
  return weighed(
    concurrency === Infinity ? 'a pool of 10' : `a pool of 10, ${concurrency} of the queue at once`,
    served,
  );
}

/** Variants take turns: one claim of each after the other. What is between claims is not metered. */
async function cpuOfClaims() {
  const shapes = { plain: null, partitions: UNLIMITED, 'partitions, at most 5 at once, 200 of the queue': LIMITS };
  const claims = given.quick ? 60 : 300;
  const variants = [];
  const open = async (left) => {
    if (!left.length) return measure();
    const [[name, limits], ...others] = left;
    return stage.within(async (db) => {
      if (limits) await db.jobs.configureQueue('shared', limits);
      await fill(db.sql, MANY, limits ? { queue: 'shared', partition: noisyFirst } : {});
      await settle(db.sql);
      const hands = await Hands.of(db);
      variants.push({
        name,
        hands,
        claim: (n) => (limits ? hands.claimLanes(n) : hands.claimPlain(n)),
        costs: [],
        jobs: 0,
      });
      return open(others);
    });
  };
  const measure = async () => {
    for (let n = -10; n < claims; n++) {
      for (const variant of variants) {
        await stage.meter.start();
        const claimed = await variant.claim(100);
        const { cpu } = await stage.meter.read();
        if (n >= 0 && claimed.length) variant.costs.push(cpu / claimed.length);
        if (n >= 0) variant.jobs += claimed.length;
        await variant.hands.complete(claimed);
      }
    }
    return variants.map(({ name, costs, jobs }) => ({
      claims: name,
      jobs,
      'µs a job': median(costs),
      mean: costs.reduce((a, b) => a + b) / costs.length,
      least: Math.min(...costs),
    }));
  };
  return open(Object.entries(shapes));
}

/** Long enough for leases to run out, or short enough for them not to. */
const STOP_MS = [200, 400, 800, 3_500];

async function strict({ url, jobs, sql }) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'millrace-fairness-'));
  const file = path.join(folder, 'handlers');
  await jobs.configureQueue('shared', { concurrency: 20, partitions: { concurrency: 2 } });
  const ends = new Map();
  const workers = new Set();
  const start = async () => {
    const child = fork(fileURLToPath(new URL('audited.mjs', import.meta.url)), [url, file]);
    child.once('exit', () => ends.has(child.pid) || ends.set(child.pid, Date.now()));
    const ended = once(child, 'exit').then(([code]) =>
      Promise.reject(new Error(`Expected a worker to start, it ended (${code}).`)),
    );
    ended.catch(() => undefined);
    await Promise.race([once(child, 'message'), ended]);
    workers.add(child);
  };
  const end = async (child, signal) => {
    workers.delete(child);
    const exited = once(child, 'exit');
    ends.set(child.pid, signal === 'SIGKILL' ? Date.now() : Infinity);
    child.kill(signal);
    await exited;
  };
  await Promise.all(Array.from({ length: 4 }, start));
  let added = 0;
  let kills = 0;
  let stops = 0;
  let isOver = false;
  const adding = (async () => {
    while (!isOver) {
      const specs = Array.from({ length: 200 }, (_, n) => ({
        task: 'serve',
        payload: {},
        queue: 'shared',
        partition: n % 2 ? 'noisy' : `tenant-${n % 40}`,
      }));
      await jobs.addJobs(specs);
      added += specs.length;
      await pause(150);
    }
  })();
  const until = performance.now() + STRICT_S * 1_000;
  while (performance.now() < until) {
    await pause(100 + Math.random() * 300);
    const child = [...workers][Math.floor(Math.random() * workers.size)];
    if (Math.random() < 0.5) {
      kills++;
      await end(child, 'SIGKILL');
      await start();
    } else {
      stops++;
      child.kill('SIGSTOP');
      await pause(STOP_MS[Math.floor(Math.random() * STOP_MS.length)]);
      child.kill('SIGCONT');
    }
  }
  isOver = true;
  await adding;
  await sql.query(`delete from jobs.jobs where locked_by is null`);
  const placesLeft = async () => (await sql.query('select count(*)::integer as n from jobs.job_places')).rows[0].n;
  for (const giveUpAt = performance.now() + 20_000; (await placesLeft()) > 0 && performance.now() < giveUpAt;)
    await pause(200);
  const left = await placesLeft();
  await Promise.all([...workers].map((child) => end(child, 'SIGTERM')));
  const { rows: died } = await sql.query(
    `select job_id, fence, date_part('epoch', completed_at) * 1000 as at from jobs.job_history where error_message = 'worker died'`,
  );
  const diedAt = new Map(died.map(({ job_id: id, fence, at }) => [`${id} ${fence}`, at]));
  const { runs, most, inPartition } = audit(readFileSync(file, 'utf8'), { ends, diedAt });
  rmSync(folder, { recursive: true });
  return {
    'kill -9': kills,
    stops,
    added,
    runs,
    'worker died': died.length,
    'of a partition': inPartition,
    'of the queue': most,
    'places left': left,
  };
}

/** A handler counts until it ends, its process is killed, or its claim is taken from it: then it is fenced out. */
function audit(text, { ends, diedAt }) {
  const runs = new Map();
  for (const line of text.split('\n').filter(Boolean)) {
    const [what, at, pid, id, fence, partition] = JSON.parse(line);
    const claim = `${id} ${fence}`;
    if (what === 'begin')
      runs.set(claim, {
        from: at,
        upto: Math.min(ends.get(pid) ?? Infinity, diedAt.get(claim) ?? Infinity),
        partition,
      });
    else runs.get(claim).upto = Math.min(runs.get(claim).upto, at);
  }
  const steps = [...runs.values()].flatMap(({ from, upto, partition }) =>
    from >= upto
      ? []
      : [
          [from, 1, partition],
          [upto, -1, partition],
        ],
  );
  steps.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const now = new Map();
  let [running, most, inPartition] = [0, 0, 0];
  for (const [, by, partition] of steps) {
    running += by;
    now.set(partition, (now.get(partition) ?? 0) + by);
    most = Math.max(most, running);
    inPartition = Math.max(inPartition, now.get(partition));
  }
  return { runs: runs.size, most, inPartition };
}

async function rateOf({ url, jobs, sql }, isHeld) {
  await jobs.configureQueue('shared', { concurrency: Infinity, partitions: { concurrency: 5 } });
  await fill(sql, SNAPSHOT_JOBS, { queue: 'shared', partition: `'tenant-' || n % 100` });
  await settle(sql);
  const other = isHeld && (await stage.hold(url));
  let ran = 0;
  let quarterAt = 0;
  let end;
  const ended = new Promise((resolve) => (end = resolve));
  const pool = await work(jobs, () => {
    ran++;
    if (ran === Math.floor(SNAPSHOT_JOBS * 0.75)) quarterAt = performance.now();
    if (ran === SNAPSHOT_JOBS) end();
  });
  await ended;
  const rate = (SNAPSHOT_JOBS * 0.25) / ((performance.now() - quarterAt) / 1_000);
  await pool.stop();
  if (other) await other.end();
  return rate;
}

const shown = (value) => {
  if (typeof value !== 'number' || Number.isInteger(value)) return value.toLocaleString('en');
  if (value > 0.99 && value < 1) return value.toFixed(5);
  return value >= 100 ? Math.round(value).toLocaleString('en') : value.toFixed(value >= 10 ? 1 : 2);
};

/** As Markdown; prettier aligns it in the docs. */
function printTable(rows) {
  const columns = [...new Set(rows.flatMap(Object.keys))];
  const lines = [columns, ...rows.map((row) => columns.map((name) => shown(row[name] ?? '–')))];
  const widths = columns.map((_, n) => Math.max(...lines.map((line) => line[n].length)));
  const isNumber = columns.map((name) => rows.every((row) => typeof (row[name] ?? 0) === 'number'));
  const print = (line) =>
    console.log(
      `| ${line.map((cell, n) => (isNumber[n] ? cell.padStart(widths[n]) : cell.padEnd(widths[n]))).join(' | ')} |`,
    );
  print(lines[0]);
  print(widths.map((width, n) => (isNumber[n] ? `${'-'.repeat(width - 1)}:` : '-'.repeat(width))));
  lines.slice(1).forEach(print);
}

/** Beside the last results of the other cases. */
function save(name, result) {
  const file = new URL('fairness.json', import.meta.url);
  const results = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {};
  const all = Object.fromEntries(Object.keys(cases).map((one) => [one, one === name ? result : results[one]]));
  writeFileSync(file, `${JSON.stringify(all, null, 2)}\n`);
}

const names = given.only ? given.only.split(',') : Object.keys(cases);
let missed = 0;
try {
  const unknown = names.filter((name) => !cases[name]);
  if (unknown.length)
    throw new Error(`Expected --only to be some of ${Object.keys(cases).join()}, got ${unknown.join()}.`);
  const run = {
    command: ['node bench/fairness.mjs', ...process.argv.slice(2)].join(' '),
    at: new Date().toISOString().slice(0, 10),
    cpu: os.cpus()[0].model,
    cores: os.cpus().length,
    load: os.loadavg().map((load) => Number(load.toFixed(2))),
    node: process.version,
    postgres: stage.version,
  };
  console.log(
    `${run.at}, \`${run.command}\`: ${run.cores} cores, ${run.cpu}; load average ${run.load.join(', ')}. Node ${run.node}, PostgreSQL ${run.postgres}.`,
  );
  for (const name of names) {
    const { title, bars } = cases[name];
    const startedAt = performance.now();
    const rows = await cases[name].run();
    const judged = bars(rows).map(([what, value, relation, bar]) => ({
      what,
      value,
      bar: `${relation} ${bar}`,
      held: relation === '≤' ? value <= bar : value >= bar,
    }));
    console.log(`\n${name}: ${title} (${Math.round((performance.now() - startedAt) / 1_000)} s)\n`);
    printTable(rows);
    console.log();
    for (const { what, value, bar, held } of judged)
      console.log(`  ${held ? 'held  ' : 'MISSED'} ${what}: ${shown(value)} (${bar})`);
    missed += judged.filter(({ held }) => !held).length;
    if (!given.quick) save(name, { title, rows, bars: judged, run });
  }
} finally {
  await stage.stop();
}
process.exitCode = missed ? 1 : 0;
