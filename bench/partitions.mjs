// What partitions cost the hot statements: CPU of the database's process for each job of add, claim and settle, with the
// default partitions alone and with more of them. Variants take turns, round by round; medians count.
//   DATABASE_URL=postgres://… node bench/partitions.mjs [rounds] [batch size …]
// The server runs on this machine: its CPU is read from /proc. The schemas it makes are removed again.
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import pg from 'pg';
import { JobsMigrator } from '../dist/index.js';
import { addAlikeJobs } from '../dist/storage/statements/add-jobs.js';
import { claimPlainJobs } from '../dist/storage/statements/claim-jobs.js';
import { completeJobs } from '../dist/storage/statements/settle-jobs.js';

const DAY_MS = 86_400_000;
const RETENTION_MS = 30 * DAY_MS;
const JOBS_A_ROUND = 2_000;
const MOST_KIB = 65_536;
const WORKER = 'partitions-worker';
const VARIANTS = { 'default only': 0, '4 more': 4, '10 more': 10 };

const connection = process.env.DATABASE_URL;
const [rounds = 15, ...sizes] = process.argv.slice(2).map(Number);

/** The processor time that a backend has had, in ms. */
const cpuMs = (pid) => Number(readFileSync(`/proc/${pid}/schedstat`, 'utf8').split(' ')[0]) / 1e6;

let ids = 0;
/** A UUID of version 7 from now. */
function newId() {
  const time = Date.now().toString(16).padStart(12, '0');
  const order = (ids++ & 0xfff).toString(16).padStart(3, '0');
  const rest = randomBytes(8).toString('hex');
  return `${time.slice(0, 8)}-${time.slice(8)}-7${order}-8${rest.slice(0, 3)}-${rest.slice(3, 15)}`;
}

async function setUp(name, partitions) {
  const schema = `partitions_${partitions}`;
  const migrator = new JobsMigrator({ connection, schema });
  await migrator.rollback();
  await migrator.migrate();
  const client = new pg.Client({ connectionString: connection });
  await client.connect();
  const make = `select made from ${schema}.make_partition($1, $2::bigint, $3::bigint, $4::bigint, 1000000000, now() - interval '1 day')`;
  for (const [parent, ahead] of [
    ['job_bodies', 0],
    ['job_history', RETENTION_MS],
  ]) {
    for (let made = 0; made < partitions; made++) await client.query(make, [parent, ahead, 100 * DAY_MS, DAY_MS]);
  }
  await client.query(
    `insert into ${schema}.workers (id, label, host, pid, concurrency, lease_ms, tasks, environment)
    values ($1, $1, 'h', 1, 1, 3600000, '{t}', '{}')`,
    [WORKER],
  );
  await client.query('set client_min_messages = error');
  const { rows } = await client.query('select pg_backend_pid() as pid');
  return { name, schema, client, migrator, pid: rows[0].pid, cost: { add: [], claim: [], settle: [] } };
}

async function round({ schema, client, pid, cost }, size, count) {
  const measure = async (step, work) => {
    const before = cpuMs(pid);
    await work();
    cost[step].push(((cpuMs(pid) - before) * 1_000) / count);
  };
  const claims = [];
  await measure('add', async () => {
    for (let added = 0; added < count; added += size) {
      const batch = Array.from({ length: size }, newId);
      const payloads = batch.map((_, n) => JSON.stringify({ n, text: 'x'.repeat(80) })).join('\n');
      await client.query({
        name: 'add',
        text: addAlikeJobs.text(schema),
        values: [`{${batch.join()}}`, payloads, 't', 0, 5, null, null, null],
      });
    }
  });
  await measure('claim', async () => {
    for (let claimed = 0; claimed < count; claimed += size) {
      const { rows } = await client.query({
        name: 'claim',
        text: claimPlainJobs.text(schema),
        values: [WORKER, size, MOST_KIB, ['t'], null, null, null, null, [], [], [], null, null],
      });
      claims.push(rows.slice(1).map(({ job }) => JSON.parse(job)));
    }
  });
  await measure('settle', async () => {
    for (const batch of claims) {
      await client.query({
        name: 'settle',
        text: completeJobs.text(schema),
        values: [
          null,
          WORKER,
          batch.map(([id]) => id),
          batch.map(([, fence]) => fence),
          batch.map(() => 1),
          batch.map(() => null),
          true,
          RETENTION_MS,
          null,
          false,
          false,
        ],
      });
    }
  });
  if (claims.flat().length !== count) throw new Error(`Expected ${count} claims, got ${claims.flat().length}.`);
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

for (const size of sizes.length ? sizes : [1, 50, 500]) {
  const variants = [];
  for (const [name, partitions] of Object.entries(VARIANTS)) variants.push(await setUp(name, partitions));
  const count = size === 1 ? JOBS_A_ROUND / 10 : JOBS_A_ROUND;
  for (const variant of variants) await round(variant, size, count);
  for (const { cost } of variants) for (const step of Object.keys(cost)) cost[step] = [];
  for (let turn = 0; turn < rounds; turn++) {
    for (const variant of turn % 2 ? variants.toReversed() : variants) {
      await variant.client.query(`vacuum ${variant.schema}.jobs`);
      await round(variant, size, count);
    }
  }
  for (const { name, cost } of variants) {
    const steps = Object.entries(cost).map(([step, values]) => `${step} ${median(values).toFixed(1)} µs`);
    console.log(`batches of ${size}, ${name}: ${steps.join(', ')}`);
  }
  for (const { client, migrator } of variants) {
    await client.end();
    await migrator.rollback();
    await migrator.close();
  }
}
