// A pool's heartbeat, on a thread and a connection of its own: a handler that keeps the main loop busy does not cost the
// pool its lease. It renews only while that loop has moved within the last minute, so an endless loop does.
import process from 'node:process';
import { parentPort, workerData } from 'node:worker_threads';

const { config, query, surroundings, keepaliveMs, patienceMs, shared } = workerData;
/** [0]: when the main loop moved last, [1]: when the last lease that was granted had been asked for, [2]: the same by the wall. */
const clock = new BigInt64Array(shared);
const FIRST_RETRY_MS = 250;
/** A connection that swallows a beat must be given up early enough for another beat within the lease. */
const ANSWER_MS = Math.max(1_000, keepaliveMs);
const END_MS = 1_000;

let client = null;
/** Whether the session can do as it is. */
let isFit = true;
let failures = 0;
let timer = null;
let stopped = false;

const now = () => process.hrtime.bigint() / 1_000_000n;

async function connect() {
  // Not at the thread's start, when the pool has better uses for the processor; a first beat is seconds away.
  const { default: pg } = await import('pg');
  const fresh = new pg.Client({ ...config, connectionTimeoutMillis: ANSWER_MS });
  fresh.on('error', () => drop(fresh));
  try {
    await fresh.connect();
    const [answer] = await ask(fresh, { text: surroundings.ask });
    isFit = answer.state === 'fit';
  } catch (error) {
    drop(fresh);
    throw error;
  }
  client = fresh;
}

function drop(broken) {
  if (client === broken) client = null;
  // A server that does not answer does not close the connection either.
  const timer = setTimeout(() => broken.connection.stream.destroy(), END_MS);
  void broken
    .end()
    .catch(() => undefined)
    .then(() => clearTimeout(timer));
}

async function ask(session, asked) {
  return (await session.query({ ...asked, query_timeout: ANSWER_MS })).rows;
}

/** Whether it is to be tried again soon: another transaction holds the row. */
async function renew() {
  if (now() - Atomics.load(clock, 0) > BigInt(patienceMs)) return false;
  if (!client) await connect();
  const sentAt = now();
  const sentWallAt = BigInt(Date.now());
  if (!isFit) await ask(client, { text: surroundings.begin });
  const [row] = await ask(client, query);
  if (!isFit) await ask(client, { text: surroundings.commit });
  const held = row?.held ?? false;
  if (row && !held) {
    Atomics.store(clock, 1, sentAt);
    Atomics.store(clock, 2, sentWallAt);
  }
  parentPort.postMessage({
    expired: !row,
    held,
    needsRescue: row?.needs_rescue ?? false,
    newerSchema: row?.newer_schema ?? null,
    hasPauses: row?.has_pauses ?? false,
  });
  return held;
}

async function beat() {
  try {
    const held = await renew();
    if (!held) failures = 0;
    schedule(held ? retryMs() : keepaliveMs);
  } catch (error) {
    if (client) drop(client);
    const { message, code } = error?.errors?.[0] ?? error ?? {};
    parentPort.postMessage({ failure: String(message || code || error), code });
    schedule(retryMs());
  }
}

function retryMs() {
  const ceiling = Math.min(keepaliveMs, FIRST_RETRY_MS * 2 ** Math.min(failures++, 10));
  return ceiling * (0.5 + Math.random() / 2);
}

function schedule(ms) {
  if (!stopped) timer = setTimeout(() => void beat(), ms);
}

async function stop() {
  stopped = true;
  clearTimeout(timer);
  await client?.end().catch(() => undefined);
  parentPort.close();
}

parentPort.on('message', () => void stop());

schedule(keepaliveMs);
