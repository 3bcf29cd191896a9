// The least that a queue of this kind can do: one table, claim by update, batched delete, no history. Ten slots take
// from a local buffer; the next claim is under way before the buffer is empty.
import pg from 'pg';

const [url, count] = process.argv.slice(2);
const total = Number(count);
const pool = new pg.Pool({ connectionString: url, max: 4 });
const BATCH = 500;

await pool.query(`
  drop schema if exists ceiling cascade;
  create schema ceiling;
  create table ceiling.jobs (
    id bigint generated always as identity primary key, task text not null, payload json not null,
    run_at timestamptz not null default now(), attempts integer not null default 0, locked_at timestamptz
  );
  create index on ceiling.jobs (run_at, id) where locked_at is null;
`);
for (let loaded = 0; loaded < total; loaded += 1_000) {
  await pool.query(
    `insert into ceiling.jobs (task, payload) select 'noop', json_build_object('n', n, 'text', repeat('x', 180))
     from generate_series($1::int, $2::int) n`,
    [loaded, loaded + 999],
  );
}
await pool.query('analyze ceiling.jobs');

const claim = () =>
  pool.query({
    name: 'claim',
    text: `with due as materialized (
        select id from ceiling.jobs where locked_at is null and run_at <= now()
        order by run_at, id limit $1 for update skip locked
      )
      update ceiling.jobs j set locked_at = now(), attempts = attempts + 1 from due
      where j.id = due.id returning j.id, j.task, j.payload, j.attempts`,
    values: [BATCH],
  });
const settle = (ids) =>
  pool.query({ name: 'settle', text: 'delete from ceiling.jobs where id = any($1::bigint[])', values: [ids] });

const handler = async () => undefined;
let finished = [];
let settling = Promise.resolve();
let isSettling = false;
let settled = 0;

async function drainFinished() {
  while (finished.length) {
    const ids = finished;
    finished = [];
    await settle(ids);
    settled += ids.length;
  }
  isSettling = false;
}

async function slot(buffer) {
  for (let job = buffer.pop(); job; job = buffer.pop()) {
    await handler(job.payload);
    finished.push(job.id);
    if (!isSettling) {
      isSettling = true;
      settling = drainFinished();
    }
  }
}

const startedAt = performance.now();
let next = claim();
while (settled < total) {
  const buffer = (await next).rows.reverse();
  next = claim();
  await Promise.all(Array.from({ length: 10 }, () => slot(buffer)));
  if (!buffer.length) await settling;
}
const seconds = (performance.now() - startedAt) / 1_000;
await next;
await pool.end();
console.log(JSON.stringify({ seconds }));
