// A process of its own for one contestant: a loader and producer, or a worker. It does what the driver calls for over
// IPC, and counts what its handler was given: a job that did not run, or ran twice, shows.
import { entryOf, load } from './contestants/index.mjs';

const [name, url] = process.argv.slice(2);
const contestant = await load(name);
const { settings } = entryOf(name);
const text = 'x'.repeat(180);
const now = () => Number(process.hrtime.bigint() / 1_000n); // µs since boot: one clock for all processes
const seen = { calls: 0, sum: 0, latencies: [], starts: [] };
/** `notes`: remember which jobs started. `hangs`: never end one. */
const duty = { notes: false, hangs: false };
let producer;
let worker;
let watcher;

async function handler(payload) {
  seen.calls++;
  seen.sum += payload.n;
  if (payload.at) seen.latencies.push(now() - payload.at);
  if (duty.notes) seen.starts.push(payload.n);
  if (duty.hangs) await pause(3_600_000);
}

const pause = (ms) => new Promise((resolve) => void setTimeout(resolve, ms));
const openProducer = async () => (producer ??= await contestant.produce(url, settings));
const openWatcher = async () => (watcher ??= await contestant.watch(url, settings));

const methods = {
  install: () => contestant.install(url, settings),

  /** Adds jobs `from` … `from + count - 1`, 1,000 in a call. */
  async load({ count, from = 0, delayMs, queues, limits }) {
    const { addMany } = await openProducer();
    const options = {
      ...(delayMs && { runAt: new Date(Date.now() + delayMs) }),
      ...(queues && { queueOf: ({ n }) => `queue-${n % queues}` }),
      ...(limits && { limitOf: ({ n }) => `limit-${n % limits}` }),
    };
    for (let n = from; n < from + count; n += 1_000) {
      const length = Math.min(1_000, from + count - n);
      await addMany(
        Array.from({ length }, (_, i) => ({ n: n + i, text })),
        options,
      );
    }
  },

  now,

  holdQueues: () => contestant.holdHeads(url),

  registerLimits: ({ count }) => contestant.registerLimits(url, count),

  useUpLimits: () => contestant.holdHeads(url),

  /** `clients` callers add for so long, each `perCall` jobs at a time. */
  async addFor({ seconds, clients, perCall }) {
    const { add, addMany } = await openProducer();
    const cpu = process.cpuUsage();
    const startedAt = performance.now();
    const until = startedAt + seconds * 1_000;
    let added = 0;
    const client = async () => {
      while (performance.now() < until) {
        const payloads = Array.from({ length: perCall }, (_, i) => ({ n: added + i, text }));
        added += perCall;
        await (perCall === 1 ? add(payloads[0]) : addMany(payloads));
      }
    };
    await Promise.all(Array.from({ length: clients }, client));
    return { added, seconds: (performance.now() - startedAt) / 1_000, cpu: micros(cpu) };
  },

  /** One job after the other, with pauses in which the worker goes idle. */
  async addSingly({ count, from, pauseMs }) {
    const { add } = await openProducer();
    for (let n = from; n < from + count; n++) {
      await add({ n, text, at: now() });
      await pause(pauseMs * (0.5 + Math.random()));
    }
  },

  /** Single adds at a steady pace, whether or not the earlier ones have been answered. */
  async addAtRate({ rate, seconds, from }) {
    const { add } = await openProducer();
    const total = rate * seconds;
    const startedAt = performance.now();
    const pending = [];
    while (pending.length < total) {
      const due = Math.min(total, ((performance.now() - startedAt) * rate) / 1_000);
      for (let n = pending.length; n < due; n++) pending.push(add({ n: from + n, text, at: now() }));
      await pause(2);
    }
    await Promise.all(pending);
    return { added: total, seconds: (performance.now() - startedAt) / 1_000 };
  },

  unfinished: async () => (await openWatcher()).unfinished(),

  count: async () => (await openWatcher()).count(),

  /** From here on the driver is told, every few milliseconds, how many jobs the handler was given. */
  async work({ concurrency, ...duties }) {
    Object.assign(duty, duties);
    worker = await contestant.work(url, settings, concurrency, handler);
    let told = 0;
    setInterval(() => {
      if (told !== seen.calls) process.send({ calls: (told = seen.calls) });
    }, 5).unref();
  },

  /** CPU in µs and the highest memory in MB, of this process so far; and what its handler saw. */
  usage: () => ({ ...seen, cpu: micros(), rss: process.resourceUsage().maxRSS / 1024 }),

  async end() {
    await worker?.stop();
    await producer?.close();
    await watcher?.close();
  },
};

function micros(since) {
  const { user, system } = process.cpuUsage(since);
  return user + system;
}

async function answer({ id, method, params }) {
  try {
    process.send({ id, result: await methods[method](params) });
    if (method === 'end') process.disconnect();
  } catch (error) {
    process.send({ id, error: error.stack ?? String(error) });
  }
}

process.on('message', (message) => void answer(message));
process.on('disconnect', () => process.exit());
process.send({ ready: true });
