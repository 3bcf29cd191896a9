import type { Socket } from 'node:net';
import { inspect } from 'node:util';
import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import pg from 'pg';
import { DataSource } from 'typeorm';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  DatabaseUnavailableError,
  type CollectingJobEvents,
  type JobManager,
  type JobManagerOptions,
  JobsMigrator,
  OutcomesUnwrittenError,
  type WorkerPool,
  type WorkerPoolOptions,
} from '../../lib/index.js';
import { createTestDatabase, eventually, type TestDatabase } from '../support/database.js';
import { migratedTemplate } from '../support/template.js';
import { TcpProxy } from '../support/tcp.proxy.js';

const PATIENCE = { timeoutMs: 60_000 };
const LIMIT = 90_000;
/** The shortest times there are, so that no test waits for long. */
const IMPATIENT = { query_timeout: 1_000, connectionTimeoutMillis: 1_000 };

let database: TestDatabase;
let proxy: TcpProxy;
let jobs: JobManager;
/** Looks at the tables past the proxy. */
let witness: JobManager;
let events: CollectingJobEvents;
let runs: Map<string, number>;
const pools: WorkerPool[] = [];
const managers: JobManager[] = [];

beforeEach(async () => {
  database = await createTestDatabase(await migratedTemplate());
  proxy = await TcpProxy.before(database.url);
  witness = await connectTo(database.url);
  jobs = await connectTo(proxy.url);
  events = createCollectingEvents();
  runs = new Map();
});
afterEach(async () => {
  proxy.heal();
  await Promise.all(pools.splice(0).map((pool) => pool.stop(0)));
  await Promise.all(managers.splice(0).map((manager) => manager.close()));
  await proxy.close();
  await database.drop();
});

async function connectTo(url: string, options: JobManagerOptions = {}): Promise<JobManager> {
  const manager = await createJobManager({ connection: url, retry: { baseDelayMs: 1, jitter: 0 }, ...options });
  managers.push(manager);
  return manager;
}

/** Counts the runs of each job. */
const counting = (_payload: unknown, { job }: { job: { id: string } }): void => {
  runs.set(job.id, (runs.get(job.id) ?? 0) + 1);
};

function poolOf(tasks: WorkerPoolOptions['tasks'], options: WorkerPoolOptions['options'] = {}, on = jobs): WorkerPool {
  const pool = createWorkerPool({ jobs: on, tasks, events, options: { pollIntervalMs: 100, ...options } });
  pools.push(pool);
  return pool;
}

const statusOf = async (id: string): Promise<string | undefined> => (await witness.findJob(id))?.status;
const allCompleted = async (ids: string[]): Promise<boolean> =>
  (await Promise.all(ids.map(statusOf))).every((status) => status === 'completed');

/** Adds jobs one after the other until `done`; returns the ids of those that were acknowledged. */
async function addUntil(done: () => boolean): Promise<{ acknowledged: string[]; refused: number }> {
  const acknowledged: string[] = [];
  let refused = 0;
  for (let n = 0; !done(); n++) {
    const added = await jobs.addJob('count', n).catch((error: unknown) => {
      expect(error).toBeInstanceOf(DatabaseUnavailableError);
      return null;
    });
    if (added) acknowledged.push(added.id);
    else refused++;
  }
  return { acknowledged, refused };
}

/** Does harm every now and then, and looks that the pool gets on with its work after each time. */
async function harmRepeatedly(times: number, harm: () => unknown): Promise<string[]> {
  let done = false;
  const adding = addUntil(() => done);
  for (let time = 0; time < times; time++) {
    const before = runs.size;
    await eventually(() => runs.size > before + 5, PATIENCE);
    await harm();
  }
  done = true;
  return (await adding).acknowledged;
}

describe('connections that break', () => {
  it(
    'under load: every acknowledged job runs, and no outcome is lost',
    async () => {
      await poolOf({ count: counting }).start();
      const ids = await harmRepeatedly(8, () => proxy.cut());
      await eventually(() => allCompleted(ids), PATIENCE);
      expect(ids.filter((id) => !runs.has(id))).toEqual([]);
      expect(events.ofType('job.lost')).toEqual([]);
    },
    LIMIT,
  );

  it(
    'by the server’s hand (pg_terminate_backend) are replaced',
    async () => {
      await poolOf({ count: counting }).start();
      const terminate = `select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid()`;
      const ids = await harmRepeatedly(5, () => database.pool.query(terminate));
      await eventually(() => allCompleted(ids), PATIENCE);
      expect(ids.filter((id) => !runs.has(id))).toEqual([]);
    },
    LIMIT,
  );

  it('are given a minute for statements that take milliseconds, and an hour for the others', async () => {
    const query = jest.spyOn(pg.Client.prototype, 'query');
    const patienceFor = (name: string): unknown =>
      query.mock.calls
        .map(([config]) => config as unknown as { name?: string; query_timeout?: number })
        .find((config) => config.name?.startsWith(name))?.query_timeout;
    try {
      await jobs.addJob('count', 1);
      await jobs.gcJobHistory();
      expect(query.mock.calls.length).toBeGreaterThan(1);
      expect([patienceFor('millrace_add_alike_jobs'), patienceFor('millrace_prune_receipts')]).toEqual([
        60_000, 3_600_000,
      ]);
    } finally {
      query.mockRestore();
    }
  });

  it(
    'in the moment in which they are opened do not end the process',
    async () => {
      proxy.cut();
      proxy.killAtBirth(2);
      await expect(jobs.counts()).resolves.toMatchObject({ byTask: {} });
      expect(proxy.killedThem).toBe(true);
      const dataSource = await new DataSource({ type: 'postgres', url: proxy.url }).initialize();
      const shared = await createJobManager({ dataSource });
      proxy.cut();
      proxy.killAtBirth(2);
      await expect(shared.counts()).resolves.toMatchObject({ byTask: {} });
      expect(proxy.killedThem).toBe(true);
      await shared.close();
      await dataSource.destroy();
    },
    LIMIT,
  );

  it(
    'half closed are given up and replaced',
    async () => {
      await poolOf({ count: counting }).start();
      const ids = await harmRepeatedly(3, () => proxy.halfClose());
      await eventually(() => allCompleted(ids), PATIENCE);
      expect(ids.filter((id) => !runs.has(id))).toEqual([]);
    },
    LIMIT,
  );

  it(
    'that swallow everything are noticed by the statements that get no answer',
    async () => {
      jobs = await connectTo(proxy.url, { connection: { connectionString: proxy.url, ...IMPATIENT } });
      await poolOf({ count: counting }).start();
      const ids = await harmRepeatedly(2, () => {
        proxy.swallow();
        proxy.heal();
      });
      await eventually(() => allCompleted(ids), PATIENCE);
      expect(ids.filter((id) => !runs.has(id))).toEqual([]);
    },
    LIMIT,
  );
});

describe('a pool on the application’s own DataSource', () => {
  it(
    'survives connections that are cut, its transactional tasks included',
    async () => {
      await database.pool.query('create table effects (n integer not null)');
      const dataSource = await new DataSource({ type: 'postgres', url: proxy.url, poolSize: 6 }).initialize();
      try {
        jobs = await createJobManager({ dataSource, retry: { baseDelayMs: 1, jitter: 0 } });
        const handler = async (n: unknown, { manager }: any): Promise<void> => {
          await manager.query('insert into effects values ($1)', [n]);
        };
        const pool = poolOf({ count: counting, effect: { handler, transactional: true } }, { concurrency: 3 });
        await pool.start();
        const specs = Array.from({ length: 200 }, (_, n) => ({ task: 'effect', payload: n, maxAttempts: 1_000 }));
        const effects = (await witness.addJobs(specs)).map(({ id }) => id);
        const ids = await harmRepeatedly(5, () => proxy.cut());
        await eventually(() => allCompleted([...ids, ...effects]), PATIENCE);
        const { rows } = await database.pool.query<{ n: number }>('select n from effects order by n');
        expect(rows.map(({ n }) => n)).toEqual(specs.map(({ payload }) => payload));
        await pool.stop();
      } finally {
        await jobs.close();
        await dataSource.destroy();
      }
    },
    LIMIT,
  );
});

describe('answers that are lost after the commit', () => {
  it.each([
    ['a plain one', 'millrace_add_alike_jobs', {}],
    ['one with a tag', 'millrace_add_jobs', { options: { tags: ['a'] } }],
    ['one with a key', 'millrace_add_keyed_jobs', { options: { jobKey: 'k' } }],
  ])('an add (%s) is repeated, and adds one job', async (_kind, statement, { options = {} }: { options?: object }) => {
    proxy.loseAnswerTo(statement);
    const { id } = await jobs.addJob('count', 1, options);
    expect(proxy.lostThem).toBe(true);
    expect((await witness.listJobs()).items.map((job) => job.id)).toEqual([id]);
  });

  it('a batch with parents is repeated as a whole', async () => {
    const parent = await witness.addJob('count', 0);
    proxy.loseAnswerTo('commit\0');
    const added = await jobs.addJobs([
      { task: 'count', payload: 1, dependsOn: [parent.id] },
      { task: 'count', payload: 2 },
    ]);
    expect(proxy.lostThem).toBe(true);
    expect((await witness.listJobs()).items.map(({ id }) => id).toSorted()).toEqual(
      [parent.id, ...added.map(({ id }) => id)].toSorted(),
    );
  });

  it(
    'an add that never gets an answer says that it is in doubt',
    async () => {
      proxy.loseAnswerTo('millrace_add_alike_jobs', 100);
      proxy.loseAnswerTo('millrace_add_jobs', 100);
      const failure = await jobs.addJob('count', 1).catch((error: unknown) => error);
      expect(failure).toBeInstanceOf(DatabaseUnavailableError);
      expect(failure).toMatchObject({ inDoubt: true });
      expect((failure as Error).message).toMatch(/it is unknown whether/);
      expect((await witness.counts()).byStatus.available).toBe(1);
    },
    LIMIT,
  );

  it('a new job under a key is added although it cannot be read back', async () => {
    proxy.neverCarry('find_jobs');
    const added = await jobs.addJob('t', 1, { jobKey: 'k' });
    expect(added).toMatchObject({ task: 't', payload: 1, jobKey: 'k', created: true });
    expect(await witness.findJob(added.id)).toMatchObject({ jobKey: 'k' });
  });

  it(
    'a change of a job by its key that cannot be read back is in doubt',
    async () => {
      await witness.addJob('t', 1, { jobKey: 'k', delayMs: 60_000 });
      proxy.refuseAt('find_jobs');
      const changing = jobs.addJob('t', 2, { jobKey: 'k', jobKeyMode: 'preserve_run_at' });
      await expect(changing).rejects.toMatchObject({ code: 'ERR_JOBS_DATABASE_UNAVAILABLE', inDoubt: true });
      expect((await witness.listJobs({})).items).toMatchObject([{ payload: 2 }]);
    },
    LIMIT,
  );

  it('an add that cannot be sent is certainly not done', async () => {
    await jobs.addJob('count', 1);
    proxy.refuse();
    await jobs.addJob('count', 2).catch(() => undefined); // on the connection that was cut
    const failure = await jobs.addJob('count', 3).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(DatabaseUnavailableError);
    expect(failure).toMatchObject({ inDoubt: false });
    expect((await witness.counts()).byStatus.available).toBe(1);
  });

  it('is nothing repeated in a caller’s transaction', async () => {
    const client = new pg.Client(proxy.url);
    client.on('error', () => undefined);
    await client.connect();
    await client.query('begin');
    proxy.loseAnswerTo('millrace_add_alike_and_tell');
    await expect(jobs.addJob('count', 1, { manager: client })).rejects.toBeInstanceOf(DatabaseUnavailableError);
    expect(proxy.lostThem).toBe(true);
    expect((await witness.counts()).byStatus.available).toBe(0);
  });

  it(
    'a claim’s jobs are found and run, though their pool lives on and its lease with it',
    async () => {
      const { id } = await witness.addJob('count', 1);
      proxy.loseAnswerTo('millrace_claim_');
      await poolOf({ count: counting }, { leaseMs: 600_000 }).start();
      await eventually(() => allCompleted([id]), PATIENCE);
      expect(proxy.lostThem).toBe(true);
      // The claim whose answer was lost is no attempt.
      expect(await witness.jobHistory(id)).toMatchObject([{ status: 'completed', attempt: 1 }]);
    },
    LIMIT,
  );

  it(
    'jobs that run are not taken for lost by it',
    async () => {
      let letGo!: () => void;
      const gate = new Promise<void>((resolve) => (letGo = resolve));
      const held = await witness.addJob('hold', 1);
      const pool = poolOf({ count: counting, hold: () => gate }, { concurrency: 2 });
      await pool.start();
      await eventually(() => pool.activeWorkers === 1);
      const { id } = await witness.addJob('count', 1, { runAt: new Date(Date.now() + 300) });
      proxy.loseAnswerTo('millrace_claim_');
      await eventually(() => allCompleted([id]), PATIENCE);
      letGo();
      await eventually(() => allCompleted([held.id]), PATIENCE);
      expect(events.ofType('job.lost')).toEqual([]);
      expect((await witness.jobHistory(held.id)).length).toBe(1);
    },
    LIMIT,
  );

  it(
    'jobs that a stopping pool could not give back run elsewhere, when its lease has ended',
    async () => {
      let letGo!: () => void;
      const gate = new Promise<void>((resolve) => (letGo = resolve));
      await witness.addJobs([1, 2, 3].map((n) => ({ task: 'hold', payload: n })));
      const pool = poolOf({ hold: () => gate }, { concurrency: 1, leaseMs: 1_000, keepaliveMs: 250 });
      await pool.start();
      await eventually(() => pool.activeWorkers === 1 && pool.queue.depth === 2);
      for (const statement of ['millrace_end_attempts', 'millrace_release_unknown']) proxy.neverCarry(statement);
      letGo();
      await pool.stop(1_000);
      proxy.heal();
      const other = poolOf({ hold: counting }, { leaseMs: 1_000, keepaliveMs: 250 }, witness);
      await other.start();
      await eventually(async () => (await witness.counts()).byStatus.completed === 3, PATIENCE);
      expect(runs.size).toBe(2);
      expect(events.ofType('pool.stop')).toHaveLength(1);
    },
    LIMIT,
  );

  it(
    'a settle is resolved truly: the job has run once, and nothing is reported as lost',
    async () => {
      await poolOf({ count: counting, fail: () => Promise.reject(new Error('no')) }).start();
      for (const [task, statement] of [
        ['count', 'millrace_complete_jobs'],
        ['fail', 'millrace_end_attempts'],
      ] as const) {
        proxy.loseAnswerTo(statement);
        const { id } = await witness.addJob(task, 1, { maxAttempts: 1 });
        await eventually(() => events.ofType('job.settled').some(({ job }) => job.id === id), PATIENCE);
        expect(proxy.lostThem).toBe(true);
        expect((await witness.jobHistory(id)).length).toBe(1);
      }
      expect(events.ofType('job.settled').map(({ outcome }) => outcome)).toEqual(['completed', 'exhausted']);
      expect(runs.size).toBe(1);
    },
    LIMIT,
  );

  it('settles by hand are resolved too', async () => {
    await witness.addJob('count', 1);
    const claimed = await witness.getJobs('worker-by-hand', { batchSize: 1 });
    proxy.loseAnswerTo('millrace_complete_jobs');
    expect(await jobs.completeJobs('worker-by-hand', claimed, 5)).toEqual({ settled: claimed, lost: [] });
    expect(proxy.lostThem).toBe(true);
  });

  it(
    'the commit of a transactional task is found out about: its effect is there once',
    async () => {
      await database.pool.query('create table effects (n integer not null)');
      const handler = async (n: unknown, { manager }: any): Promise<void> => {
        await manager.query('insert into effects values ($1)', [n]);
      };
      await poolOf({ effect: { handler, transactional: true } }, { concurrency: 2 }).start();
      proxy.loseAnswerTo('COMMIT');
      const ids = (await witness.addJobs([1, 2, 3].map((n) => ({ task: 'effect', payload: n })))).map(({ id }) => id);
      await eventually(() => allCompleted(ids), PATIENCE);
      expect(events.ofType('job.lost')).toEqual([]);
      expect(proxy.lostThem).toBe(true);
      expect((await database.pool.query('select n from effects order by n')).rows).toEqual([
        { n: 1 },
        { n: 2 },
        { n: 3 },
      ]);
    },
    LIMIT,
  );
});

describe('the circuit', () => {
  it(
    'opens while outcomes cannot be written, starts nothing, and closes by itself',
    async () => {
      const gates: (() => void)[] = [];
      const handler = async (payload: unknown, context: { job: { id: string } }): Promise<void> => {
        counting(payload, context);
        await new Promise<void>((resolve) => gates.push(resolve));
      };
      const pool = poolOf({ hold: handler }, { concurrency: 3 });
      const ids = (await witness.addJobs([1, 2, 3, 4, 5, 6].map((n) => ({ task: 'hold', payload: n })))).map(
        ({ id }) => id,
      );
      await pool.start();
      await eventually(() => gates.length === 3 && pool.queue.depth === 3);
      proxy.refuse();
      gates.shift()!();
      await eventually(() => pool.circuit !== 'closed', PATIENCE);
      const started = runs.size;
      gates.splice(0).forEach((letGo) => letGo());
      await eventually(() => pool.activeWorkers === 0 && pool.stats().unwritten === started);
      expect(runs.size).toBe(started);
      expect(events.ofType('circuit.open')).toHaveLength(1);
      proxy.heal();
      await eventually(() => {
        gates.splice(0).forEach((letGo) => letGo());
        return pool.circuit === 'closed' && pool.stats().completed === 6;
      }, PATIENCE);
      expect(await allCompleted(ids)).toBe(true);
      expect([...runs.values()]).toEqual([1, 1, 1, 1, 1, 1]);
      expect(events.ofType('circuit.closed')).toHaveLength(1);
    },
    LIMIT,
  );
});

describe('stopping while the database is away', () => {
  it.each([
    ['refuses', () => proxy.refuse()],
    ['swallows everything', () => proxy.swallow()],
  ])(
    'ends, though it %s, and says which outcomes are unwritten',
    async (_how, harm) => {
      jobs = await connectTo(proxy.url, {
        connection: { connectionString: proxy.url, connectionTimeoutMillis: 1_000 },
      });
      let letGo!: () => void;
      const gate = new Promise<void>((resolve) => (letGo = resolve));
      const pool = poolOf({ hold: () => gate }, { leaseMs: 1_000, keepaliveMs: 250 });
      await pool.start();
      const { id } = await witness.addJob('hold', 1);
      await eventually(() => pool.activeWorkers === 1);
      harm();
      letGo();
      await eventually(() => pool.stats().unwritten === 1);
      await pool.stop(500);
      expect(pool.state).toBe('terminated');
      const told = events.ofType('worker.error').map(({ error }) => error);
      expect(told.find((error) => error instanceof OutcomesUnwrittenError)).toMatchObject({ jobIds: [id] });
      await jobs.close();
      await eventually(() => proxy.connections === 0);
      // Its lease ends without it.
      await poolOf({ hold: counting }, { leaseMs: 1_000, keepaliveMs: 250 }, witness).start();
      await eventually(() => allCompleted([id]), PATIENCE);
    },
    LIMIT,
  );
});

it('a manager that closes cuts the idle connections whose database says nothing: they would keep the process', async () => {
  await Promise.all([1, 2, 3].map(() => jobs.counts()));
  const { database: own } = jobs.engine as unknown as {
    database: { pool: { _clients: { connection: { stream: Socket } }[] } };
  };
  const streams = own.pool._clients.map(({ connection }) => connection.stream);
  expect(streams.length).toBeGreaterThan(0);
  proxy.swallow({ goodbyes: true });
  await jobs.close();
  expect(streams.map(({ destroyed }) => destroyed)).toEqual(streams.map(() => true));
});

describe('starting while the database is away', () => {
  it('fails at once, and says how to wait', async () => {
    proxy.refuse();
    const failure = await createJobManager({ connection: proxy.url }).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(DatabaseUnavailableError);
    expect((failure as Error).message).toMatch(/waitForDatabaseMs/);
  });

  it(
    'waits for it if told so',
    async () => {
      proxy.refuse();
      let attempts = 0;
      const starting = connectTo(proxy.url, { waitForDatabaseMs: 60_000 });
      const migrator = new JobsMigrator({ connection: proxy.url, schema: 'later', waitForDatabaseMs: 60_000 });
      const migrating = migrator.migrate();
      // Both have tried and failed before it comes.
      await eventually(() => ++attempts > 30);
      proxy.heal();
      await expect((await starting).addJob('count', 1)).resolves.toMatchObject({ status: 'available' });
      await migrating;
      expect(await migrator.version()).toBeGreaterThan(0);
      await migrator.close();
    },
    LIMIT,
  );

  it(
    'gives up when it was told to, even if nothing ever answers',
    async () => {
      proxy.swallow();
      const failure = await createJobManager({ connection: proxy.url, waitForDatabaseMs: 300 }).catch(
        (error: unknown) => error,
      );
      expect(failure).toBeInstanceOf(DatabaseUnavailableError);
      expect((failure as Error).message).toMatch(/waited for 300 ms/);
    },
    20_000, // sooner than a connection that is not answered gives up by itself
  );

  it(
    'names an unknown host, and no password',
    async () => {
      const connection = 'postgres://ada:hunter2@nowhere.invalid/jobs';
      const failure = await createJobManager({ connection }).catch((error: unknown) => error);
      expect(failure).toBeInstanceOf(DatabaseUnavailableError);
      expect((failure as Error).message).toContain('nowhere.invalid');
      expect(inspect(failure, { depth: 5 })).not.toContain('hunter2');
    },
    LIMIT,
  );

  it('refuses a wait that is none', () => {
    expect(() => new JobsMigrator({ connection: proxy.url, waitForDatabaseMs: -1 })).toThrow(/waitForDatabaseMs/);
  });
});
