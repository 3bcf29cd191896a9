// A peer that keeps a connection open and says nothing: nothing but a limit to how long an answer may take tells of it. Here a
// minute is two seconds long.
import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import pg from 'pg';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  DatabaseUnavailableError,
  JobKeyConflictError,
  type JobManager,
  type QueryExecutor,
  type WorkerPool,
} from '../../lib/index.js';
import { Database, statement } from '../../lib/storage/database.js';
import { PoolQueue } from '../../lib/storage/pool.queue.js';
import { TransactionSource } from '../../lib/storage/transaction.source.js';
import { createTestDatabase, eventually, type TestDatabase } from '../support/database.js';
import { TcpProxy } from '../support/tcp.proxy.js';
import { STATEMENTS } from './locks.js';

const PATIENCE = { timeoutMs: 60_000 };
const LIMIT = 90_000;
const MINUTE_MS = 60_000;
const HOUR_MS = 3_600_000;
const SHORT_MS = 2_000;
/** A message of its own; transactions begin as read committed. */
const COMMIT = 'commit\0';

type Asked = { text: string; name?: string; query_timeout?: number };
type Query = (this: pg.Client, ...args: unknown[]) => unknown;

let database: TestDatabase;
let proxy: TcpProxy;
let jobs: JobManager;
/** Looks at the tables past the proxy. */
let witness: JobManager;
let query: jest.SpiedFunction<Query>;
const pools: WorkerPool[] = [];

beforeEach(async () => {
  query = jest.spyOn(pg.Client.prototype as unknown as { query: Query }, 'query');
  const original = query.getMockImplementation()!;
  query.mockImplementation(function (this: pg.Client, asked, ...rest) {
    const isShort = (asked as Asked).query_timeout === MINUTE_MS;
    return original.call(this, isShort ? { ...(asked as Asked), query_timeout: SHORT_MS } : asked, ...rest);
  });
  database = await createTestDatabase();
  proxy = await TcpProxy.before(database.url);
  witness = await createJobManager({ connection: database.url });
  jobs = await createJobManager({
    connection: { connectionString: proxy.url, max: 3 },
    retry: { baseDelayMs: 1, jitter: 0 },
  });
});
afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.stop(0)));
  await Promise.all([jobs.close(), witness.close()]);
  await proxy.close();
  await database.drop();
  query.mockRestore();
});

/** What pg was asked, by the names of the statements. */
const timesAsked = (name: string): number =>
  query.mock.calls.filter(([asked]) => (asked as Asked).name?.startsWith(`millrace_${name}_`)).length;

async function startPool(runs = new Set<unknown>(), gate = Promise.resolve()): Promise<WorkerPool> {
  const handler = async (payload: unknown): Promise<void> => {
    runs.add(payload);
    await gate;
  };
  const options = { concurrency: 3, pollIntervalMs: 100, listen: false };
  const pool = createWorkerPool({ jobs, tasks: { t: handler }, events: createCollectingEvents(), options });
  pools.push(pool);
  await pool.start();
  return pool;
}

/** More than a pool has connections: each is used, and the silent one would not answer. */
const askAll = (): Promise<unknown> => Promise.all([1, 2, 3, 4].map(() => jobs.counts()));

describe('a pool', () => {
  it.each(['complete_jobs', 'free_successors', 'free_keys', 'tell_children'])(
    'goes on after one of its connections falls silent at %s',
    async (name) => {
      const runs = new Set<unknown>();
      let letGo!: () => void;
      await startPool(runs, new Promise((resolve) => (letGo = resolve)));
      const parent = await witness.addJob('t', 'parent', { jobKey: 'k', queue: 'q' });
      await eventually(() => runs.has('parent'));
      await witness.addJob('t', 'child', { dependsOn: [parent.id] });
      await witness.addJob('t', 'next', { jobKey: 'k' });
      proxy.silenceAt(`millrace_${name}_`);
      letGo();
      await eventually(() => proxy.lostThem, PATIENCE);
      await witness.addJob('t', 'late', { jobKey: 'late' });
      await eventually(() => ['child', 'next', 'late'].every((payload) => runs.has(payload)), PATIENCE);
      await eventually(async () => (await witness.counts()).byStatus.completed === 4, PATIENCE);
      await expect(askAll()).resolves.toHaveLength(4);
    },
    LIMIT,
  );

  it.each(['take_duty', 'find_passed_over', 'free_places'])(
    'sweeps again after its connection fell silent at %s',
    async (name) => {
      await startPool();
      proxy.silenceAt(`millrace_${name}_`);
      await eventually(() => proxy.lostThem, PATIENCE);
      const before = timesAsked('free_places');
      await eventually(() => timesAsked('free_places') > before, PATIENCE);
      expect(proxy.lostThem).toBe(true);
    },
    LIMIT,
  );
});

describe('calls', () => {
  it.each<[string, string, () => Promise<unknown>]>([
    ['an add with a key', 'millrace_add_keyed_jobs_', () => jobs.addJob('t', 1, { jobKey: 'k' })],
    ['the job of an add with a key', 'millrace_find_jobs_', () => jobs.addJob('t', 1, { jobKey: 'k' })],
    ['the beginning of a batch', 'begin', () => addTwo()],
    ['a batch', 'millrace_add_keyed_jobs_', () => addTwo()],
    ['the commit of a batch', COMMIT, () => addTwo()],
  ])(
    'repeat an add whose connection falls silent at %s, and add each job once',
    async (_what, text, add) => {
      await askAll();
      proxy.silenceAt(text);
      const added = await add().catch((error: unknown) => error);
      expect(proxy.lostThem).toBe(true);
      // What was never sent may be refused, and is not done.
      const refusal = added instanceof Error ? added : null;
      expect([null, expect.objectContaining({ code: 'ERR_JOBS_DATABASE_UNAVAILABLE', inDoubt: false })]).toContainEqual(
        refusal,
      );
      const { items } = await witness.listJobs();
      expect(items).toHaveLength(added instanceof Error ? 0 : [added].flat().length);
      await askAll();
    },
    LIMIT,
  );

  const addTwo = (): Promise<unknown> =>
    jobs.addJobs([
      { task: 't', payload: 1 },
      { task: 't', payload: 2, jobKey: 'k' },
    ]);

  it(
    'of operators are in doubt where a commit has no answer',
    async () => {
      const id = await cancelled();
      await askAll();
      proxy.silenceAt(COMMIT);
      const failure = await jobs.retryJobs([id]).catch((error: unknown) => error);
      expect(failure).toBeInstanceOf(DatabaseUnavailableError);
      expect(failure).toMatchObject({ inDoubt: true });
      expect(await witness.findJob(id)).toMatchObject({ status: 'available' });
      await askAll();
    },
    LIMIT,
  );

  it(
    'of operators fail at a statement that has no answer',
    async () => {
      const id = await cancelled();
      await askAll();
      proxy.silenceAt('millrace_find_retryable_');
      await expect(jobs.retryJobs([id])).rejects.toBeInstanceOf(DatabaseUnavailableError);
      expect(await witness.findJob(id)).toMatchObject({ status: 'cancelled' });
      await askAll();
    },
    LIMIT,
  );

  it(
    'that are refused say so, though their rollback has no answer; its connection is not used again',
    async () => {
      const id = await cancelled({ jobKey: 'k' });
      await witness.addJob('t', 2, { jobKey: 'k' });
      await askAll();
      proxy.silenceAt('rollback');
      await expect(jobs.retryJobs([id])).rejects.toBeInstanceOf(JobKeyConflictError);
      expect(proxy.lostThem).toBe(true);
      await askAll();
    },
    LIMIT,
  );

  async function cancelled(options = {}): Promise<string> {
    const { id } = await witness.addJob('t', 1, options);
    await witness.cancelJobs([id]);
    return id;
  }
});

describe('a start', () => {
  it(
    'fails at a question that has no answer',
    async () => {
      proxy.silenceAt('pg_backend_pid() as pid');
      await expect(createJobManager({ connection: proxy.url })).rejects.toBeInstanceOf(DatabaseUnavailableError);
      expect(proxy.lostThem).toBe(true);
    },
    LIMIT,
  );
});

describe('a connection of a pool of the application, which sets no limit', () => {
  it('is given up whose opening has no answer, so that others can be opened in its place', async () => {
    const theirs = new pg.Pool({ connectionString: proxy.url, max: 1 });
    const queue = new PoolQueue(theirs, SHORT_MS / 2);
    proxy.swallow();
    await expect(queue.connect()).rejects.toThrow('Connection terminated');
    proxy.heal();
    const client = await queue.connect();
    expect((await client.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
    client.release();
    await theirs.end();
  });
});

describe('the DataSource of transactional tasks', () => {
  let own: Database;
  beforeEach(() => {
    own = Database.fromConnection(proxy.url, { schema: 'jobs', preparedStatements: true });
  });
  afterEach(() => own.close());

  it.each(['SELECT version()', 'current_schema'])(
    'is given up that falls silent at %s while it is opened, and opened again',
    async (text) => {
      const source = new TransactionSource(own, SHORT_MS);
      const before = proxy.connections;
      proxy.silenceAt(text);
      await expect(source.prepare(1)).rejects.toBeInstanceOf(DatabaseUnavailableError);
      expect(proxy.lostThem).toBe(true);
      await eventually(() => proxy.connections === before);
      await source.prepare(1);
      await source.close();
    },
    LIMIT,
  );

  it('does not keep up a close while it is opened', async () => {
    const source = new TransactionSource(own);
    const before = proxy.connections;
    proxy.silenceAt('SELECT version()');
    const opening = source.prepare(1).catch((error: unknown) => error);
    await eventually(() => proxy.lostThem);
    await source.close();
    expect(await opening).toBeInstanceOf(DatabaseUnavailableError);
    await eventually(() => proxy.connections === before);
  });
});

describe('every message', () => {
  let own: Database;
  let asked: Asked[];

  beforeEach(() => {
    own = Database.fromConnection(database.url, { schema: 'jobs', preparedStatements: true });
    asked = [];
    query.mockImplementation(function (config) {
      asked.push(typeof config === 'string' ? { text: config } : (config as Asked));
      return Promise.resolve({ rows: [{ state: 'fit', limit: '100ms' }] });
    });
  });
  afterEach(async () => {
    await own.close();
    query.mockReset();
    query.mockRestore();
    query = jest.spyOn(pg.Client.prototype as unknown as { query: Query }, 'query');
  });

  const limits = (): (number | undefined)[] => asked.map(({ query_timeout }) => query_timeout);

  it('on a connection of the library’s has a minute for its answer, and one of a statement that says why an hour', async () => {
    const fresh = statement('fresh', () => 'select 1');
    for (const each of [...STATEMENTS, fresh]) {
      asked = [];
      await own.run(each, []);
      const { query_timeout } = asked.at(-1)!;
      expect([each.name, query_timeout]).toEqual([each.name, each.slow ? HOUR_MS : MINUTE_MS]);
      expect(each.slow ?? 'a minute').toMatch(/\w{3}/);
      expect(limits().slice(0, -1)).toEqual(
        limits()
          .slice(0, -1)
          .map(() => MINUTE_MS),
      );
      asked = [];
      await own.transaction((executor) => own.run(each, [], executor));
      expect([each.name, limits().includes(HOUR_MS)]).toEqual([each.name, each.slow !== undefined]);
      expect(limits().filter((limit) => limit !== MINUTE_MS && limit !== HOUR_MS)).toEqual([]);
    }
  });

  it('of a transaction has one, texts by themselves, its beginning and its end included', async () => {
    await own.transaction((executor) => executor.query('select 1', []));
    await own.transaction(() => Promise.reject(new Error('no'))).catch(() => undefined);
    expect(asked.map(({ text }) => text.split(/[ ;]/)[0])).toEqual(
      expect.arrayContaining(['begin', 'select', 'commit', 'rollback']),
    );
    expect(limits()).toEqual(limits().map(() => MINUTE_MS));
    // Migrations may take as long as they like, between the two.
    asked = [];
    await own.patientTransaction((executor) => executor.query('select 1', []));
    expect(limits()).toEqual([MINUTE_MS, undefined, MINUTE_MS]);
  });

  it('on a caller’s connection has none, and on one for which the application has set one, the application’s', async () => {
    const client = new pg.Client(database.url);
    for (const each of STATEMENTS) await own.run(each, [], client as unknown as QueryExecutor);
    const theirs = Database.fromConnection(
      { connectionString: database.url, query_timeout: 5_000 },
      { schema: 'jobs', preparedStatements: true },
    );
    for (const each of STATEMENTS) await theirs.run(each, []);
    await theirs.transaction((executor) => executor.query('select 1', []));
    await theirs.close();
    expect(limits().filter((limit) => limit !== undefined)).toEqual([]);
  });
});
