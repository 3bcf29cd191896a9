// pg-boss: with its defaults (each of the ten workers polls for one job every two seconds), and tuned: batches, fetched
// again at once while they come back full, and notifications. It keeps finished rows for a week. A batch is settled as
// one: unlike the others, a failure in it would fail all its jobs.
import { PgBoss } from 'pg-boss';
import { watchWith } from './watch.mjs';

const QUEUE = 'noop';
// Measured: more pollers than two gain nothing here, batches beyond 500 neither.
const tuned = { localConcurrency: 2, batchSize: 500, burstWhenBatchFull: true };

// Adds that cannot keep up wait for a connection: ten seconds, its default, would fail them.
const adding = { migrate: false, supervise: false, schedule: false, connectionTimeoutMillis: 600_000 };

export async function install(url, settings) {
  const boss = new PgBoss({ connectionString: url });
  await boss.start();
  await boss.createQueue(QUEUE, { notify: settings.tuned === true });
  await boss.stop();
}

export async function produce(url) {
  const boss = new PgBoss({ connectionString: url, ...adding });
  await boss.start();
  return {
    add: (payload) => boss.send(QUEUE, payload),
    addMany: (payloads, { runAt } = {}) =>
      boss.insert(
        QUEUE,
        payloads.map((data) => ({ data, startAfter: runAt })),
      ),
    close: () => boss.stop({ graceful: false }),
  };
}

export async function work(url, settings, concurrency, handler) {
  const boss = new PgBoss({ connectionString: url, useListenNotify: settings.tuned === true });
  boss.on('error', (error) => console.error(error));
  await boss.start();
  const options = settings.tuned ? tuned : { localConcurrency: concurrency };
  await boss.work(QUEUE, options, (jobs) => runBatch(jobs, concurrency / options.localConcurrency, handler));
  return { stop: () => boss.stop() };
}

/** No more of the batch run at once than the other contestants run. */
async function runBatch(jobs, lanes, handler) {
  const left = jobs.toReversed();
  const lane = async () => {
    for (let job = left.pop(); job; job = left.pop()) await handler(job.data);
  };
  await Promise.all(Array.from({ length: lanes }, lane));
}

export const watch = (url) =>
  watchWith(url, `from pgboss.job where name = '${QUEUE}' and state < 'completed' and start_after <= now()`);
