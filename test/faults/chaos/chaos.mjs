// The chaos run: real worker processes and a real PostgreSQL under faults that a seed chooses, while jobs are added.
// Usage: npm run chaos -- [--seconds 60] [--seed <number>] [--workers 3] [--only <part of a fault's name>] [--strangers]
//   [--quiet]. With --strangers, transactions of others hold random rows meanwhile, for up to 20 s each.
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import pg from 'pg';
import { createJobManager } from '../../../dist/index.js';
import { Cluster } from './cluster.mjs';
import { DATABASE_FAULTS, healDatabase, PROCESS_FAULTS, STRANGERS } from './faults.mjs';
import { Fleet } from './fleet.mjs';
import { Load } from './load.mjs';
import { Proxy } from './proxy.mjs';
import { randomFrom } from './random.mjs';
import { Rescues } from './rescues.mjs';
import { activity, examine, LIMIT, prepare, unfinished } from './witness.mjs';

const { values: given } = parseArgs({
  options: {
    seconds: { type: 'string', default: '60' },
    seed: { type: 'string' },
    workers: { type: 'string', default: '3' },
    only: { type: 'string', default: '' },
    strangers: { type: 'boolean', default: false },
    quiet: { type: 'boolean', default: false },
  },
});
const number = (name, text) => {
  if (!/^\d+$/.test(text)) throw new Error(`Expected --${name} to be a whole number, got "${text}".`);
  return Number(text);
};
const seconds = number('seconds', given.seconds);
const seed = given.seed === undefined ? Math.floor(Math.random() * 2 ** 32) : number('seed', given.seed);
const workers = number('workers', given.workers);

/** Short, so that much happens in a minute; no process is blamed for the deaths that this program causes. */
const LEASE_MS = 5_000;
const WORKER_OPTIONS = { concurrency: 8, queueSize: 40, leaseMs: LEASE_MS, maxCrashes: 1_000, pollIntervalMs: 500 };
/** What the reset of overdue locks may add to the lease, and what two busy cores may add to both. */
const RESCUE_MS = LEASE_MS + 10_000;
/** Everything has come to a standstill when nothing at all has happened for so long. */
const STANDSTILL_MS = 30_000;
const STOP_MS = 30_000;

const startedAt = performance.now();
const say = (text) => {
  if (!given.quiet) console.log(`${((performance.now() - startedAt) / 1_000).toFixed(1).padStart(6)} s  ${text}`);
};
const broken = new Map();
const breakPromise = (promise, what) => {
  broken.set(promise, [...(broken.get(promise) ?? []), what]);
  say(`BROKEN: ${promise}: ${what}`);
};
process.on('unhandledRejection', (error) => breakPromise('no rejection goes unhandled', error?.stack ?? error));

console.log(`seed ${seed}, ${seconds} s, ${workers} workers`);
const cluster = new Cluster();
const proxy = new Proxy();
let fleet;
try {
  await cluster.start();
  const port = await proxy.listen();
  proxy.target = cluster.port;
  const url = `postgres://app@127.0.0.1:${port}/postgres`;
  const connection = { connectionString: url, connectionTimeoutMillis: 3_000, query_timeout: 5_000 };
  const jobs = await createJobManager({ connection, schema: 'jobs', migrate: true });
  // As maintenance has left them by the second day.
  await jobs.engine.retention.makePartitions(new Date(Date.now() - 86_400_000));
  await cluster.withAdmin(prepare);
  await jobs.registerRateLimit('calls', LIMIT.capacity, LIMIT.intervalMs);
  await jobs.configureQueue('in-partitions', { concurrency: Infinity, partitions: { concurrency: 1 } });
  const pool = new pg.Pool({ ...connection, max: 5 });
  pool.on('error', () => undefined);
  pool.on('connect', (client) => client.on('error', () => undefined));
  fleet = new Fleet(url, workers, WORKER_OPTIONS);
  await fleet.start();
  const load = new Load(jobs, pool, randomFrom(seed + 1));
  load.start();
  say('workers and enqueuers run');

  let inTrouble = false;
  let strangers = 0;
  const rescues = new Rescues(fleet, cluster, () => !inTrouble && strangers === 0);
  rescues.start();
  const parts = { cluster, proxy, fleet, rescues, breakPromise, leaseMs: LEASE_MS };
  const injected = new Map();
  const until = performance.now() + seconds * 1_000;
  /** One fault after the other; two lanes run side by side, so that faults meet. */
  async function lane(name, all, laneSeed, around) {
    const random = randomFrom(laneSeed);
    const faults = all.filter((fault) => fault.name.includes(given.only));
    while (faults.length > 0 && performance.now() < until) {
      const fault = random.weighted(faults);
      const own = randomFrom(Math.floor(random.next() * 2 ** 32));
      await sleep(own.between(300, 2_500));
      if (performance.now() >= until) return;
      say(`${name}: ${fault.name}`);
      const outcome = await around(() => fault.inject({ ...parts, random: own }));
      if (outcome === false) continue;
      const kind = outcome ?? fault.name;
      injected.set(kind, (injected.get(kind) ?? 0) + 1);
    }
  }
  const besides = async (inject) => {
    strangers++;
    try {
      return await inject();
    } catch {
      // The server went away under it.
      return false;
    } finally {
      strangers--;
    }
  };
  await Promise.all([
    ...(given.strangers ? [4, 5, 6].map((own) => lane('strangers', STRANGERS, seed + own, besides)) : []),
    lane('processes', PROCESS_FAULTS, seed + 2, (inject) => inject()),
    lane('database', DATABASE_FAULTS, seed + 3, async (inject) => {
      inTrouble = true;
      try {
        return await inject();
      } finally {
        await healDatabase(parts);
        inTrouble = false;
      }
    }),
  ]);

  await load.stop();
  say('no more faults, no more jobs: waiting for the end of those that are there');
  await cluster.withAdmin(async (admin) => {
    let lastActivity;
    let lastChange = performance.now();
    while ((await unfinished(admin)).length > 0 && performance.now() - lastChange < STANDSTILL_MS) {
      const now = await activity(admin);
      if (now !== lastActivity) lastChange = performance.now();
      lastActivity = now;
      await sleep(200);
    }
  });
  await rescues.stop();
  const stops = await fleet.stop(STOP_MS);
  if (stops.includes(undefined)) breakPromise('a deploy loses nothing', 'a worker did not end when asked to');
  const figures = await cluster.withAdmin((admin) => examine(admin, load, breakPromise));
  for (const what of fleet.unexpected) breakPromise('no worker ends by itself', what);
  if (rescues.longestMs > RESCUE_MS) {
    breakPromise('a dead worker’s jobs run again', `some stayed locked for ${Math.round(rescues.longestMs)} ms`);
  }
  await jobs.close();
  await pool.end();
  report(figures, load, rescues, injected);
} finally {
  await fleet?.stop(0);
  await cluster.stop();
  await proxy.close();
}
process.exitCode = broken.size > 0 ? 1 : 0;

function report(figures, load, rescues, injected) {
  const rows = [
    ['jobs acknowledged', load.acknowledged.size],
    ['versions of keyed jobs acknowledged', load.keyedCalls.filter(({ until }) => until !== null).length],
    ['calls that ended in an error', load.unknown],
    ['transactions rolled back', load.rolledBack],
    ['pauses of a task', load.pauses],
    ['effects', figures.effects],
    ['duplicates (plain tasks may have them)', figures.duplicates],
    ['lost', figures.lost],
    ['attempts that ended with their worker', figures.rescued],
    ['outcomes that came too late', fleet.lostClaims],
    ['longest rescue', `${(rescues.longestMs / 1_000).toFixed(1)} s (lease ${LEASE_MS / 1_000} s)`],
    ['cron jobs', figures.ticks],
    ['windows of the rate limit', figures.windows],
    ['worker processes', fleet.started],
  ];
  console.log(`\nseed ${seed}, ${seconds} s, ${Math.round((performance.now() - startedAt) / 1_000)} s in all`);
  for (const [name, value] of rows) console.log(`  ${name.padEnd(42)} ${value}`);
  console.log('faults');
  const kinds = [...injected].toSorted(([a], [b]) => a.localeCompare(b));
  for (const [kind, count] of kinds) console.log(`  ${kind.padEnd(42)} ${count}`);
  if (broken.size === 0) return console.log('every promise was kept');
  console.log('BROKEN PROMISES');
  for (const [promise, cases] of broken) console.log(`  ${promise}\n    ${cases.slice(0, 8).join('\n    ')}`);
}
