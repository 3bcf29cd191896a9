// BullMQ with its defaults, which keep every finished job; on Redis, or on the PostgreSQL backend of version 6.
import { createPostgresBackend, createRedisBackend, withBackend } from 'bullmq';

const QUEUE = 'noop';
const classes = (settings) => withBackend(settings.postgres ? createPostgresBackend : createRedisBackend);
const connectionOf = (url, settings) =>
  settings.postgres ? { connectionString: url, migrate: true } : { url, maxRetriesPerRequest: null };

const openQueue = (url, settings) => {
  const { Queue } = classes(settings);
  return new Queue(QUEUE, { connection: connectionOf(url, settings) });
};

export async function install(url, settings) {
  const queue = openQueue(url, settings);
  await queue.waitUntilReady();
  if (!settings.postgres) await queue.obliterate({ force: true });
  await queue.close();
}

export async function produce(url, settings) {
  const queue = openQueue(url, settings);
  await queue.waitUntilReady();
  return {
    add: (payload) => queue.add(QUEUE, payload),
    addMany: (payloads, { runAt } = {}) => {
      const opts = runAt && { delay: runAt.getTime() - Date.now() };
      return queue.addBulk(payloads.map((data) => ({ name: QUEUE, data, opts })));
    },
    close: () => queue.close(),
  };
}

export async function work(url, settings, concurrency, handler) {
  const { Worker } = classes(settings);
  const connection = connectionOf(url, settings);
  const worker = new Worker(QUEUE, (job) => handler(job.data), { connection, concurrency });
  worker.on('error', (error) => console.error(error));
  await worker.waitUntilReady();
  return { stop: () => worker.close() };
}

export async function watch(url, settings) {
  const queue = openQueue(url, settings);
  const count = () => queue.getJobCountByTypes('waiting', 'prioritized', 'active');
  return { count, unfinished: async () => (await count()) > 0, close: () => queue.close() };
}
