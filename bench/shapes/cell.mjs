// One cell: a fresh schema, one shape, one load.
import pg from 'pg';
import { planner } from './functions.mjs';
import { makeJobs } from './jobs.mjs';
import { measure, sizeOf } from './measure.mjs';
import { addAll, batches, claimOnly, drain, idle, statements } from './workload.mjs';

/**
 * `snapshot`: another session holds an old one. `checkpoint`: one between add and drain, so that the work pays for
 * its full-page images. `unpinned`: the planner's default settings. `idleFirst`: the worker was idle on an empty,
 * analysed table before the load came. `running`: so many older jobs are claimed and stay so.
 */
export async function runCell(server, cell) {
  const { shape, bytes, jobs, cursor, maxMs, snapshot, checkpoint, unpinned, idleFirst, running, workers = 1 } = cell;
  const open = [];
  const connect = async (settings = []) => {
    open.push(await connectTo(server, settings));
    return open.at(-1);
  };
  const admin = await connect();
  try {
    await admin.query(`create schema shape; ${shape.ddl}`);
    const settings = unpinned ? [] : planner;
    const adder = await connect(settings);
    const pairs = [];
    for (let i = 0; i < workers; i++) pairs.push([await connect(settings), await connect(settings)]);
    const pids = await Promise.all([adder, ...pairs.flat()].map(backendPid));
    const named = statements(shape, { cursor });
    if (idleFirst) {
      await admin.query('vacuum analyze');
      await idle(...pairs[0], named, { cursor });
    }
    if (running) {
      await addAll(adder, named, batches(shape, makeJobs(running, bytes)));
      await claimOnly(pairs[0][0], named, running);
    }
    if (snapshot) await holdSnapshot(await connect());
    const adds = batches(shape, makeJobs(jobs, bytes, cell.text));

    await admin.query('checkpoint');
    const add = await measure(admin, pids, async () => {
      await addAll(adder, named, adds);
      return jobs;
    });
    if (checkpoint) await admin.query('checkpoint');
    const work = await measure(admin, pids, async () => {
      const drained = await Promise.all(pairs.map((pair) => drain(...pair, named, { cursor, maxMs })));
      return drained.reduce((sum, count) => sum + count, 0);
    });
    if (work.jobs !== jobs && !maxMs) throw new Error(`Expected ${jobs} jobs to be settled, got ${work.jobs}.`);
    return { add, work, liveBytes: await sizeOf(admin, shape.live), keptBytes: await sizeOf(admin, shape.kept) };
  } finally {
    for (const client of open.slice(1)) await client.end();
    await admin.query('drop schema if exists shape cascade');
    await admin.end();
  }
}

/** Whether claim and settle are planned without sorting or reading the whole table: `{ claim, cursor, settle }`. */
export async function planCell(server, { shape, unpinned, analysedEmpty }) {
  const client = await connectTo(server, unpinned ? [] : planner);
  try {
    await client.query(`create schema shape; ${shape.ddl}`);
    if (analysedEmpty) await client.query('vacuum analyze');
    else await addAll(client, statements(shape, {}), batches(shape, makeJobs(100_000, 100)));
    const explain = async (text) => verdict((await client.query(`explain (costs off, generic_plan) ${text}`)).rows);
    return {
      claim: await explain(statements(shape, {}).claim.text),
      cursor: await explain(statements(shape, { cursor: true }).claim.text),
      settle: await explain(shape.settle),
    };
  } finally {
    await client.query('drop schema if exists shape cascade');
    await client.end();
  }
}

function verdict(rows) {
  const plan = rows.map((row) => row['QUERY PLAN']).join('\n');
  const bad = ['Sort', 'Seq Scan'].filter((node) => plan.includes(`${node} `) || plan.includes(`${node}\n`));
  // An index scan without a condition reads the whole table too.
  if (/Index Scan using \S+ on \S+(?: \S+)?\n\s+->/.test(plan)) bad.push('full index scan');
  return bad.join(' + ') || 'index';
}

async function connectTo(server, settings) {
  const client = new pg.Client({
    host: server.host,
    user: 'postgres',
    database: 'postgres',
    options: ['search_path=shape,public', ...settings].map((setting) => `-c ${setting}`).join(' '),
    types: { getTypeParser: () => (text) => text }, // parsing is the client's business, and the same for all
  });
  await client.connect();
  return client;
}

async function backendPid(client) {
  const { rows } = await client.query('select pg_backend_pid() as pid');
  return Number(rows[0].pid);
}

async function holdSnapshot(client) {
  await client.query('begin isolation level repeatable read');
  await client.query('select count(*) from pg_class');
}
