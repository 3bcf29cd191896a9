// Millrace with default options: full history, LISTEN, leases, fences.
import { pathToFileURL } from 'node:url';
import pg from 'pg';
import { watchWith } from './watch.mjs';

const DAY_MS = 24 * 60 * 60 * 1_000;

/** `dist`: of an earlier release's checkout. */
const load = ({ dist }) => import(dist ? pathToFileURL(`${dist}/index.js`).href : '../../dist/index.js');

const open = async (url, { without, dist, ...settings }) =>
  (await load({ dist })).createJobManager({
    connection: url,
    ...settings,
    ...(without === 'prepared statements' && { preparedStatements: false }),
  });

export async function install(url, settings) {
  const jobs = await open(url, settings);
  // As maintenance has left them by the second day.
  // Earlier releases have no engine.
  await (jobs.engine ?? jobs).retention.makePartitions(new Date(Date.now() - DAY_MS));
  await jobs.close();
  if (settings.without === 'pinned plans') await unpinPlans(url);
}

export async function produce(url, settings) {
  const jobs = await open(url, settings);
  const pool = new pg.Pool({ connectionString: url });
  const close = async () => {
    await pool.end();
    await jobs.close();
  };
  const specOf = (payload, { runAt, queueOf, limitOf } = {}) => ({
    task: 'noop',
    payload,
    runAt,
    queue: queueOf?.(payload),
    rateLimitKey: limitOf?.(payload),
  });
  const add = (payload) => jobs.addJob('noop', payload);
  const addMany = (payloads, options) => jobs.addJobs(payloads.map((payload) => specOf(payload, options)));
  const lesser = {
    'gathered adds': { add: (payload) => jobs.addJobs([specOf(payload)]) },
    // A connection of the caller's: each insert, not gathered either, carries its own notification.
    'NOTIFY after commits': { add: (payload) => jobs.addJob('noop', payload, { manager: pool }) },
    // Two priorities by turns.
    'inserts of alike jobs': {
      addMany: (payloads) => jobs.addJobs(payloads.map((payload, n) => ({ ...specOf(payload), priority: n % 2 }))),
    },
  };
  return { add, addMany, close, ...lesser[settings.without] };
}

export async function work(url, settings, concurrency, handler) {
  const jobs = await open(url, settings);
  const options = { concurrency, ...(settings.without === 'batched claims' && { queueSize: 1 }) };
  if (settings.without) weaken(jobs, settings.without);
  const { createWorkerPool } = await load(settings);
  const pool = createWorkerPool({ jobs, tasks: { noop: handler }, options });
  await pool.start();
  const stop = async () => {
    await pool.stop();
    await jobs.close();
  };
  return { stop };
}

/** Takes one technique away from claims and settles. */
function weaken({ engine: { claims, settlement } }, technique) {
  const claim = claims.claimPlain.bind(claims);
  const settle = settlement.settle.bind(settlement);
  if (technique === 'the claim cursor') claims.claimPlain = (request) => claim({ ...request, cursor: [] });
  if (technique === 'gathered settles') {
    settlement.settle = async (claimer, requests) => {
      const answers = await Promise.all(requests.map((request) => settle(claimer, [request])));
      return { results: answers.flatMap(({ results }) => results), late: null };
    };
  }
}

/** Leaves the functions their search path alone: their statements are planned by the statistics at hand. */
async function unpinPlans(url) {
  const client = new pg.Client(url);
  await client.connect();
  const { rows } = await client.query(`
    select p.oid::regprocedure as signature, split_part(setting, '=', 1) as name
    from pg_proc p cross join unnest(p.proconfig) as setting
    where p.pronamespace = 'jobs'::regnamespace and setting not like 'search_path=%'`);
  for (const { signature, name } of rows) await client.query(`alter function ${signature} reset ${name}`);
  await client.end();
}

/** Jobs of named queues and rate limits are left out: a measure that uses them holds those. */
export const watch = (url) =>
  watchWith(url, 'from jobs.jobs where parked is null and queue is null and limits is null and run_at <= now()');

/** One job in four hours for each key. */
export async function registerLimits(url, count) {
  const jobs = await open(url, {});
  for (let n = 0; n < count; n++) await jobs.registerRateLimit(`limit-${n}`, 1, '4 hours');
  await jobs.close();
}

/** Claims what queues and limits let through by hand, for four hours; the others line up behind it. */
export async function holdHeads(url) {
  const jobs = await open(url, {});
  let held = 0;
  for (let claimed = -1; claimed !== 0; held += claimed) {
    claimed = (await jobs.getJobs('bench-holder', { batchSize: 5_000 })).length;
  }
  await jobs.close();
  return held;
}
