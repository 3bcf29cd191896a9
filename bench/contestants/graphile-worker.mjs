// graphile-worker: with its defaults, and with what its documentation offers for throughput (a local queue and batched
// completion). It keeps no history; a finished job's row is deleted.
import { Logger, makeWorkerUtils, run } from 'graphile-worker';
import pg from 'pg';
import { watchWith } from './watch.mjs';

const logger = new Logger(() => () => undefined);
const tuned = { worker: { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 } };

export async function install(url) {
  const utils = await makeWorkerUtils({ connectionString: url, logger });
  await utils.migrate();
  await utils.release();
}

export async function produce(url) {
  const utils = await makeWorkerUtils({ connectionString: url, logger });
  return {
    add: (payload) => utils.addJob('noop', payload),
    addMany: (payloads, { runAt, queueOf } = {}) =>
      utils.addJobs(payloads.map((payload) => ({ identifier: 'noop', payload, runAt, queueName: queueOf?.(payload) }))),
    close: () => utils.release(),
  };
}

export async function work(url, settings, concurrency, handler) {
  const runner = await run({
    connectionString: url,
    concurrency,
    logger,
    noHandleSignals: true,
    parsedCronItems: [],
    taskList: { noop: handler },
    ...(settings.tuned && { preset: tuned }),
  });
  return { stop: () => runner.stop() };
}

/** Jobs of named queues are left out: a measure that uses them holds those queues. */
export const watch = (url) =>
  watchWith(url, 'from graphile_worker._private_jobs where run_at <= now() and job_queue_id is null');

/** As if one more worker ran the head of every queue. */
export async function holdHeads(url) {
  const client = new pg.Client(url);
  await client.connect();
  const { rowCount } = await client.query(
    `update graphile_worker._private_job_queues set locked_at = now(), locked_by = 'bench-holder'`,
  );
  await client.end();
  return rowCount;
}
