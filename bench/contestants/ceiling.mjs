// The least that a queue of this kind can do: one table, claim by update, batched delete, no history, no lease. Ten
// slots take from a local buffer; the next claim is under way before the buffer is empty.
import { EventEmitter, once } from 'node:events';
import pg from 'pg';
import { watchWith } from './watch.mjs';

const BATCH = 500;

export async function install(url) {
  const client = new pg.Client(url);
  await client.connect();
  await client.query(`
    create schema ceiling;
    create table ceiling.jobs (
      id bigint generated always as identity primary key, task text not null, payload json not null,
      run_at timestamptz not null default now(), attempts integer not null default 0, locked_at timestamptz
    );
    create index on ceiling.jobs (run_at, id) where locked_at is null;
  `);
  await client.end();
}

export const watch = (url) => watchWith(url, 'from ceiling.jobs where run_at <= now()');

/** Adds share inserts: while one is under way the next ones gather. NOTIFY follows the commits, and is shared too. */
export async function produce(url) {
  const pool = new pg.Pool({ connectionString: url, max: 4 });
  const insert = async (payloads, runAt) => {
    await pool.query({
      name: 'add',
      text: `insert into ceiling.jobs (task, payload, run_at)
        select 'noop', payload, coalesce($2, now()) from json_array_elements($1::json) payload`,
      values: [JSON.stringify(payloads), runAt],
    });
    void announce();
  };
  const announce = gather(() => pool.query('notify ceiling'));
  const add = gather((payloads) => insert(payloads));
  const close = async () => {
    await announce(); // follows all earlier ones
    await pool.end();
  };
  return { add, addMany: (payloads, { runAt } = {}) => insert(payloads, runAt), close };
}

/** Calls `flush` with all that was given while the last call of it was under way. */
function gather(flush) {
  let waiting = [];
  let busy = false;
  const run = async () => {
    busy = true;
    while (waiting.length) {
      const batch = waiting;
      waiting = [];
      const done = flush(batch.map(({ item }) => item));
      await done.then(
        () => batch.forEach(({ resolve }) => resolve()),
        (error) => batch.forEach(({ reject }) => reject(error)),
      );
    }
    busy = false;
  };
  return (item) =>
    new Promise((resolve, reject) => {
      waiting.push({ item, resolve, reject });
      if (!busy) void run();
    });
}

export async function work(url, _settings, concurrency, handler) {
  const pool = new pg.Pool({ connectionString: url, max: 4 });
  const listener = new pg.Client(url);
  await listener.connect();
  await listener.query('listen ceiling');
  const news = new EventEmitter();
  let unread = false;
  const wake = () => {
    unread = true;
    news.emit('wake');
  };
  listener.on('notification', wake);
  const settleLater = gather((ids) => settleAll(pool, ids));
  let lastSettle;
  const settle = (id) => void (lastSettle = settleLater(id)); // resolves after all earlier ones
  const claimNext = () => {
    unread = false; // what is announced from here on, this claim may not see
    return claim(pool);
  };
  const poll = () => undefined;
  let stopping = false;
  const loop = (async () => {
    for (let next = claimNext(); !stopping;) {
      const buffer = (await next).rows.reverse();
      if (buffer.length === 0 && !unread) await once(news, 'wake', { signal: AbortSignal.timeout(2_000) }).catch(poll);
      next = claimNext();
      await Promise.all(Array.from({ length: concurrency }, () => slot(buffer, handler, settle)));
    }
  })();
  const stop = async () => {
    stopping = true;
    wake();
    await loop;
    await lastSettle;
    await listener.end();
    await pool.end();
  };
  return { stop };
}

const claim = (pool) =>
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

const settleAll = (pool, ids) =>
  pool.query({ name: 'settle', text: 'delete from ceiling.jobs where id = any($1::bigint[])', values: [ids] });

/** A slot takes the next job without waiting for the last one's settle. */
async function slot(buffer, handler, settle) {
  for (let job = buffer.pop(); job; job = buffer.pop()) {
    await handler(job.payload);
    settle(job.id);
  }
}
