// A worker process of the chaos run. Handlers leave effects in a table, the witness of what has happened.
import './skew.mjs';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import {
  createJobManager,
  createWorkerPool,
  JobEvents,
  partialSuccess,
  PermanentFailure,
  snooze,
} from '../../../dist/index.js';

const { DATABASE_URL, WORKER_ID, WORKER_OPTIONS, GRACE_MS } = process.env;
const tell = (message) => process.connected && process.send(message);
const events = new JobEvents();
events.on('job.lost', () => tell({ lost: 1 }));

/** The handlers' own connections, through the same unreliable network. */
const pool = new pg.Pool({
  connectionString: DATABASE_URL,
  max: 5,
  query_timeout: 3_000,
  connectionTimeoutMillis: 3_000,
});
pool.on('error', () => undefined);
const clients = new Set();
pool.on('connect', (client) => {
  clients.add(client);
  client.on('error', () => undefined);
});

const EFFECT = 'insert into app.effects (job_id, kind, worker, fence, detail) values ($1, $2, $3, $4, $5)';
const effectOf = ({ job, workerId, fence }, detail = null) => [job.id, job.task, workerId, fence, detail];
const effect = (ctx, detail) => pool.query(EFFECT, effectOf(ctx, detail));
const broken = (promise, ctx) =>
  pool.query('insert into app.broken (promise, job_id, worker) values ($1, $2, $3)', [
    promise,
    ctx.job.id,
    ctx.workerId,
  ]);

/** Within a transaction that holds the job: another holder of a job of the line, or partition, at this moment breaks the promise. */
async function alone(ctx, place, promise) {
  const client = await pool.connect();
  let failure;
  try {
    await client.query('begin');
    await ctx.assertOwned(client);
    const { rows } = await client.query('select pg_try_advisory_xact_lock(hashtext($1)) as alone', [place]);
    if (!rows[0].alone) await broken(promise, ctx);
    await sleep(5);
    await client.query(EFFECT, effectOf(ctx));
    await client.query('commit');
  } catch (error) {
    failure = error;
    throw error;
  } finally {
    client.release(failure);
  }
}

const first = (ctx) => ctx.attempt === 1;
const cyclic = () => {
  const error = new Error('goes round in circles');
  error.cause = error;
  return error;
};

const tasks = {
  plain: async (_, ctx) => void (await effect(ctx)),
  slow: async (_, ctx) => {
    await sleep(1_500);
    await effect(ctx);
  },
  failing: async ({ times }, ctx) => {
    if (ctx.attempt <= times) throw new Error(`attempt ${ctx.attempt} fails`);
    await effect(ctx);
  },
  snoozing: async (_, ctx) => {
    if (ctx.job.createdAt.getTime() === ctx.job.runAt.getTime()) return snooze(300);
    await effect(ctx);
  },
  partial: async (_, ctx) => {
    if (!ctx.previous) return partialSuccess({ completedSteps: ['half'], results: { half: 1 } });
    await effect(ctx);
  },
  steps: async (_, ctx) => {
    await ctx.step('one', () => pool.query(EFFECT, [ctx.job.id, 'step', ctx.workerId, ctx.fence, 'one']).then(() => 1));
    await ctx.step('two', () => sleep(20));
    await effect(ctx);
  },
  transactional: {
    transactional: true,
    handler: async (_, ctx) => {
      await ctx.manager.query(EFFECT, effectOf(ctx));
      await ctx.manager.query('select pg_sleep($1)', [Math.random() / 20]);
    },
  },
  'in-line': (_, ctx) => alone(ctx, ctx.job.queue, 'serial queues run one at a time'),
  'in-partition': (_, ctx) => alone(ctx, `partition ${ctx.job.partition}`, 'partitions run as many as they may'),
  /** One of the batch fails at first, another is put off: what becomes of each is its own. */
  batched: {
    batch: { size: 10, waitMs: 50 },
    handler: async (batch, ctx) => {
      const first = batch.filter(({ attempts }) => attempts === 1);
      if (first.length > 2) ctx.fail(first[0], new Error('the first fails at first'));
      if (first.length > 3) ctx.snooze(first[1], 50);
      const done = batch.filter(
        (job) => !(first.length > 2 && job === first[0]) && !(first.length > 3 && job === first[1]),
      );
      await Promise.all(done.map((job) => effect(ctx.for(job))));
    },
  },
  'batched-transactional': {
    batch: { size: 5, waitMs: 50 },
    transactional: true,
    handler: async (batch, ctx) => {
      for (const job of batch) await ctx.manager.query(EFFECT, effectOf(ctx.for(job)));
      await ctx.manager.query('select pg_sleep($1)', [Math.random() / 20]);
    },
  },
  pausable: async (_, ctx) => void (await effect(ctx)),
  throttled: async (_, ctx) => void (await effect(ctx)),
  limited: async (_, ctx) => void (await effect(ctx)),
  keyed: async ({ jobKey, version }, ctx) => void (await effect(ctx, `${jobKey} ${version}`)),
  child: async ({ parents }, ctx) => {
    const { rows } = await pool.query(
      'select count(distinct job_id)::int as n from app.effects where job_id = any($1)',
      [parents],
    );
    if (rows[0].n < parents.length) await broken('children wait for their parents', ctx);
    await effect(ctx);
  },
  tick: { cron: '*/2 * * * * *', handler: async (_, ctx) => void (await effect(ctx, ctx.job.runAt.toISOString())) },
  never: async (_, ctx) => void (await broken('what was rolled back never runs', ctx)),
  early: async ({ notBefore }, ctx) => {
    const { rows } = await pool.query('select clock_timestamp() < $1::timestamptz as early', [notBefore]);
    if (rows[0].early) await broken('nothing runs before its time', ctx);
    await effect(ctx);
  },
  // Handlers that misbehave at first.
  'throws-text': async (_, ctx) => {
    if (first(ctx)) throw 'not an error'; // oxlint-disable-line no-throw-literal
    await effect(ctx);
  },
  'throws-cycle': async (_, ctx) => {
    if (first(ctx)) throw cyclic();
    await effect(ctx);
  },
  'never-ends': {
    timeoutMs: 1_000,
    handler: async (_, ctx) => {
      if (first(ctx)) await new Promise(() => undefined);
      await effect(ctx);
    },
  },
  'ends-late': {
    timeoutMs: 1_000,
    handler: async (_, ctx) => {
      if (first(ctx)) {
        await sleep(1_500);
        throw new Error('too late to matter');
      }
      await effect(ctx);
    },
  },
  'huge-result': async (_, ctx) => {
    await effect(ctx);
    return 'x'.repeat(3_000_000);
  },
  'odd-result': async (_, ctx) => {
    await effect(ctx);
    return { big: 1n };
  },
  blocks: async (_, ctx) => {
    const until = performance.now() + 6_000;
    while (performance.now() < until);
    await effect(ctx);
  },
  exits: () => process.exit(7),
  'fails-for-good': () => {
    throw new PermanentFailure('on purpose');
  },
};

const jobs = await createJobManager({
  connection: { connectionString: DATABASE_URL, connectionTimeoutMillis: 3_000, query_timeout: 5_000 },
  schema: 'jobs',
  retry: { baseDelayMs: 20, maxDelayMs: 500, maxAttempts: 1_000 },
});
const options = { timeoutMs: 30_000, ...JSON.parse(WORKER_OPTIONS ?? '{}') };
const workers = createWorkerPool({ jobs, tasks, events, options, workerId: WORKER_ID });
await workers.start();

async function stop() {
  tell({ stopping: 'its worker pool' });
  await workers.stop(Number(GRACE_MS));
  tell({ stopping: 'its manager' });
  await jobs.close();
  tell({ stopping: 'the connections of its handlers' });
  await pool.end();
  // pg's pool forgets connections before they have closed; a silent one would keep the process.
  for (const { connection } of clients) connection.stream.destroy();
  tell({ stopping: 'what its handlers left behind' });
  process.disconnect?.();
}
process.on('SIGTERM', () => void stop());
tell({ ready: true });
