// What it costs to forget: one collection of garbage that finds so many expired jobs, in partitions that it can drop and
// in the default ones, where it deletes rows; while another process adds, claims and settles one job after the other.
//   DATABASE_URL=postgres://… node bench/retention.mjs [jobs] [jobs of each partition that are still live]
import pg from 'pg';
import { createJobManager, JobsMigrator } from '../dist/index.js';

const DAY_MS = 86_400_000;
const DAYS = 5;
const connection = process.env.DATABASE_URL;
const [jobs = 1_000_000, live = 1_000] = process.argv.slice(2).map(Number);

const client = new pg.Client(connection);
await client.connect();
const sql = async (text, values) => (await client.query(text, values)).rows;

async function fill(schema, partitioned) {
  const migrator = new JobsMigrator({ connection, schema });
  await migrator.rollback();
  await migrator.migrate();
  await migrator.close();
  if (partitioned) {
    const make = `select made from ${schema}.make_partition($1, 0, $2::bigint, $3::bigint, 1000000000, now() - $4 * interval '1 day')`;
    for (const table of ['job_bodies', 'job_history']) {
      while ((await sql(make, [table, (DAYS + 3) * DAY_MS, DAY_MS, DAYS + 3])).length);
    }
  }
  await sql(
    `
    with jobs as materialized (
      select n, now() - interval '2 days' - (n * ${DAYS}.0 / $1) * interval '1 day' as at from generate_series(1, $1::integer) n
    ),
    bodies as (
      insert into ${schema}.job_bodies (id, created_at, run_at, priority, max_attempts, task, payload)
      select overlay(overlay(${schema}.first_id_at(at)::text placing '7' from 15) placing lpad(to_hex(n), 12, '0') from 25)::uuid,
        at, at, 0, 5, 'benchmark', json_build_object('n', n, 'text', repeat('x', 200))
      from jobs returning id, created_at
    ),
    kept as (
      insert into ${schema}.jobs (id, run_at, priority, max_attempts, task)
      select id, now() + interval '1 year', 0, 5, 'benchmark' from bodies
      where ('x' || right(id::text, 8))::bit(32)::integer % ($1 / ($2 * ${DAYS})) = 0
    )
    insert into ${schema}.job_history (job_id, fence, started_at, completed_at, expires_at, queue_time_ms, execution_time_ms,
      status, attempt, worker_id)
    select id, 1, created_at, created_at, created_at, 1, 1, 'completed', 1, 'worker-0001' from bodies`,
    [jobs, live],
  );
  await sql(`vacuum analyze ${schema}.jobs, ${schema}.job_bodies, ${schema}.job_history`);
}

const sizeOf = async (schema) =>
  Number(
    (
      await sql(
        `select sum(pg_total_relation_size(oid)) as bytes from pg_class
    where relnamespace = $1::regnamespace and relkind = 'r'`,
        [schema],
      )
    )[0].bytes,
  );
const walSince = async (start) =>
  Number((await sql('select pg_current_wal_lsn() - $1::pg_lsn as bytes', [start]))[0].bytes);
const inMb = (bytes) => `${Math.round(bytes / 2 ** 20)} MB`;

for (const [name, schema, partitioned] of [
  ['dropped', 'retention_dropped', true],
  ['deleted', 'retention_deleted', false],
]) {
  await fill(schema, partitioned);
  const gc = await createJobManager({ connection, schema });
  const others = await createJobManager({ connection, schema });
  const took = { add: [], claim: [], settle: [] };
  let over = false;
  const timed = async (step, work) => {
    const startedAt = performance.now();
    const result = await work();
    took[step].push(performance.now() - startedAt);
    return result;
  };
  const load = (async () => {
    while (!over) {
      await timed('add', () => others.addJob('load', { n: 1 }));
      const claimed = await timed('claim', () => others.getJobs('retention-worker', { taskIdentifiers: ['load'] }));
      await timed('settle', () => others.completeJobs('retention-worker', claimed, 1));
    }
  })();
  await new Promise((resolve) => setTimeout(resolve, 2_000));
  const quiet = Object.fromEntries(
    Object.entries(took).map(([step, all]) => [step, Math.max(...all.splice(0).slice(20))]),
  );
  const before = await sizeOf(schema);
  const [{ lsn }] = await sql('select pg_current_wal_lsn() as lsn');
  const startedAt = performance.now();
  await gc.gcJobHistory();
  const ms = performance.now() - startedAt;
  const wal = await walSince(lsn);
  over = true;
  await load;
  console.log(
    `${jobs} jobs ${name}: ${Math.round(ms)} ms, WAL ${inMb(wal)}, size ${inMb(before)} → ${inMb(await sizeOf(schema))}`,
  );
  for (const [step, all] of Object.entries(took)) {
    console.log(
      `  slowest ${step}: ${Math.max(...all).toFixed(0)} ms, of ${all.length}; before: ${quiet[step].toFixed(0)} ms`,
    );
  }
  const [{ left }] = await sql(`select count(*)::integer as left from ${schema}.job_bodies where task = 'benchmark'`);
  if (left !== live * DAYS) throw new Error(`Expected ${live * DAYS} live jobs, got ${left}.`);
  await gc.close();
  await others.close();
  const migrator = new JobsMigrator({ connection, schema });
  await migrator.rollback();
  await migrator.close();
}
await client.end();
