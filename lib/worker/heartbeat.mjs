// A pool's heartbeat, on a thread and a connection of its own: a handler that keeps the main loop busy does not cost the
// pool its lease. It renews only while that loop has moved within the last minute, so an endless loop does.
import process from 'node:process';
import { parentPort, workerData } from 'node:worker_threads';

const { config, query, keepaliveMs, patienceMs, shared } = workerData;
/** [0]: when the main loop moved last, [1]: when the last lease that was granted had been asked for. */
const clock = new BigInt64Array(shared);
const FIRST_RETRY_MS = 250;

let client = null;
let failures = 0;
let timer = null;
let stopped = false;

const now = () => process.hrtime.bigint() / 1_000_000n;

async function connect() {
  // Not at the thread's start, when the pool has better uses for the processor; a first beat is seconds away.
  const { default: pg } = await import('pg');
  const fresh = new pg.Client(config);
  fresh.on('error', () => drop(fresh));
  await fresh.connect();
  client = fresh;
}

function drop(broken) {
  if (client === broken) client = null;
  broken.end().catch(() => undefined);
}

async function renew() {
  if (now() - Atomics.load(clock, 0) > BigInt(patienceMs)) return;
  if (!client) await connect();
  const sentAt = now();
  const { rows } = await client.query(query);
  if (rows.length) Atomics.store(clock, 1, sentAt);
  const [row] = rows;
  parentPort.postMessage({
    expired: !row,
    cancelRequested: row?.cancel_requested ?? [],
    needsRescue: row?.needs_rescue ?? false,
    hasRateLimits: row?.has_rate_limits ?? true,
    newerSchema: row?.newer_schema ?? null,
  });
}

async function beat() {
  try {
    await renew();
    failures = 0;
    schedule(keepaliveMs);
  } catch (error) {
    if (client) drop(client);
    parentPort.postMessage({ failure: String(error?.message ?? error) });
    schedule(Math.min(keepaliveMs, FIRST_RETRY_MS * 2 ** Math.min(failures++, 10)));
  }
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
