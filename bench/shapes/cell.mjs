// One cell: a fresh schema, one shape, one load.
import pg from 'pg';
import { makeJobs } from './jobs.mjs';
import { measure, sizeOf } from './measure.mjs';
import { addAll, batches, drain, statements } from './workload.mjs';

const raw = { getTypeParser: () => (text) => text };

export async function runCell(server, { shape, bytes, jobs: count, snapshot = false, cursor = snapshot, coldPages }) {
  const open = [];
  const connect = async () => {
    const client = new pg.Client({ ...connection(server), types: raw });
    await client.connect();
    open.push(client);
    return client;
  };
  const admin = await connect();
  try {
    await admin.query(`create schema shape; ${shape.ddl}`);
    const clients = { adder: await connect(), claimer: await connect(), settler: await connect() };
    const pids = await Promise.all(Object.values(clients).map(backendPid));
    if (snapshot) await holdSnapshot(await connect());
    await admin.query('checkpoint');

    const adds = batches(shape, makeJobs(count, bytes));
    const named = statements(shape, { cursor });
    const add = await measure(admin, pids, count, () => addAll(clients.adder, named, adds));
    if (coldPages) await admin.query('checkpoint');
    let settled = 0;
    const work = await measure(admin, pids, count, async () => {
      settled = await drain(clients.claimer, clients.settler, named, { cursor });
    });
    if (settled !== count) throw new Error(`Expected ${count} jobs to be settled, got ${settled}.`);
    const size = { live: await sizeOf(admin, shape.live), kept: await sizeOf(admin, shape.kept) };
    const vacuum = await measure(admin, [await backendPid(admin)], count, () => vacuumAll(admin, shape.live));
    return { add, work, vacuum, size };
  } finally {
    for (const client of open.slice(1)) await client.end();
    await admin.query('drop schema shape cascade');
    await admin.end();
  }
}

/** How the statements of a shape are planned on a loaded table that nobody has analysed: one text for each. */
export async function explainCell(server, shape, count) {
  const client = new pg.Client({ ...connection(server), types: raw });
  await client.connect();
  const plans = {};
  try {
    await client.query(`create schema shape; ${shape.ddl}; set plan_cache_mode = force_generic_plan`);
    for (const cursor of [false, true]) {
      const named = statements(shape, { cursor });
      if (!cursor) await addAll(client, named, batches(shape, makeJobs(count, 100)));
      await client.query('deallocate all');
      const { rows } = await client.query(`explain (costs off, generic_plan) ${named.claim.text}`);
      plans[cursor ? 'claim behind the cursor' : 'claim'] = planText(rows);
      const settle = await client.query(`explain (costs off, generic_plan) ${named.settle.text}`);
      plans.settle = planText(settle.rows);
    }
    return plans;
  } finally {
    await client.query('drop schema shape cascade');
    await client.end();
  }
}

const planText = (rows) => rows.map((row) => row['QUERY PLAN']).join('\n');

// A plan made while a table was empty outlives its filling: without these, shapes fall into that trap by chance.
const planner = ['enable_seqscan=off', 'enable_sort=off'];

const connection = (server) => ({
  host: server.host,
  user: 'postgres',
  database: 'postgres',
  options: ['search_path=shape,public', ...planner].map((setting) => `-c ${setting}`).join(' '),
});

async function backendPid(client) {
  const { rows } = await client.query('select pg_backend_pid() as pid');
  return Number(rows[0].pid);
}

async function holdSnapshot(client) {
  await client.query('begin isolation level repeatable read');
  await client.query('select count(*) from pg_class');
}

async function vacuumAll(client, tables) {
  for (const table of tables) await client.query(`vacuum ${table}`);
}
