import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import knex, { type Knex } from 'knex';
import pg from 'pg';
import postgres from 'postgres';
import { DataSource, type EntityManager } from 'typeorm';
import {
  InvalidArgumentError,
  PayloadNotSerializableError,
  PayloadTooLargeError,
  TransactionOverError,
  UnknownRateLimitError,
  type JobManager,
  type QueryExecutor,
  DependencyCircleError,
  UnknownParentError,
  createJobManager,
  type AddJobOptions,
} from '../../lib/index.js';
import { createTestManager, WORKER, type TestManager, managerWithin } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
let dataSource: DataSource;

beforeAll(async () => {
  test = await createTestManager({ maxPayloadBytes: 1_000 });
  jobs = test.jobs;
  dataSource = await new DataSource({ type: 'postgres', url: test.url }).initialize();
});
afterAll(async () => {
  await dataSource.destroy();
  await test.close();
});
beforeEach(() => test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_history, jobs.job_queues, jobs.rate_limits'));

const count = async (): Promise<number> => (await test.sql('select from jobs.jobs')).length;

/** Knex numbers no parameters: each use of one is a question mark with its own value. */
function rawOfKnex(trx: Knex.Transaction, text: string, values: unknown[]): Promise<unknown> {
  const used: unknown[] = [];
  const marked = text.replaceAll('?', String.raw`\?`).replace(/\$(\d+)/g, (_, number) => {
    used.push(values[Number(number) - 1]);
    return '?';
  });
  return trx.raw(marked, used as Knex.RawBinding[]) as unknown as Promise<unknown>;
}

describe('addJob (add-job)', () => {
  it('returns the job as stored', async () => {
    const runAt = new Date(Date.now() + 60_000);
    const added = await jobs.addJob(
      'report',
      { a: [1, 'ü', null] },
      {
        queue: 'q',
        priority: -3,
        runAt,
        maxAttempts: 7,
        flags: ['f'],
        tags: ['t'],
        groupId: 'g',
        timeoutMs: 9_000,
      },
    );
    expect(added).toMatchObject({
      task: 'report',
      payload: { a: [1, 'ü', null] },
      status: 'scheduled',
      queue: 'q',
      priority: -3,
      runAt,
      maxAttempts: 7,
      flags: ['f'],
      tags: ['t'],
      groupId: 'g',
      timeoutMs: 9_000,
      attempts: 0,
      created: true,
      lockedBy: null,
      jobKey: null,
      revision: 0,
    });
    const { created: _created, ...stored } = added;
    expect(await jobs.findJob(added.id)).toEqual(stored);
  });

  it('refuses one object with task and payload, of which it would lose the payload', async () => {
    const spec = { task: 'x', payload: { to: 'ada@example.org' } };
    const refused: unknown = await jobs.addJob(spec as never, undefined as never).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(InvalidArgumentError);
    expect((refused as Error).message).toContain('addJob(task, payload, options)');
  });

  it('uses the documented defaults', async () => {
    expect(await jobs.addJob('plain', undefined)).toMatchObject({
      payload: null,
      status: 'available',
      priority: 0,
      maxAttempts: 25,
      queue: null,
      flags: [],
      tags: [],
    });
  });

  it('counts a delay by the database clock', async () => {
    const job = await jobs.addJob('later', 1, { delayMs: 5_000 });
    expect(job.runAt.getTime() - job.createdAt.getTime()).toBe(5_000);
    expect(await jobs.getJobs(WORKER)).toEqual([]);
  });

  it('gives ids that sort in the order of the calls', async () => {
    const added = await jobs.addJobs(Array.from({ length: 5_000 }, (_, n) => ({ task: 'n', payload: n })));
    const ids = added.map(({ id }) => id);
    expect(ids.toSorted()).toEqual(ids);
    expect(new Set(ids).size).toBe(5_000);
  });

  it('shares inserts among concurrent callers, each of which gets its own job', async () => {
    const added = await Promise.all(Array.from({ length: 200 }, (_, n) => jobs.addJob('n', { n })));
    expect(added.map(({ payload }) => (payload as { n: number }).n)).toEqual(Array.from({ length: 200 }, (_, n) => n));
    expect(await count()).toBe(200);
  });

  it('refuses one bad job of many concurrent ones without refusing its neighbours', async () => {
    const results = await Promise.allSettled([
      jobs.addJob('good', 1),
      jobs.addJob('bad', 2, { rateLimitKey: 'nobody' }),
      jobs.addJob('good', 3),
    ]);
    expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
    expect(await count()).toBe(2);
  });
});

describe('addJobs (add-jobs)', () => {
  it('adds all or none', async () => {
    const specs = [
      { task: 'a', payload: 1 },
      { task: 'b', payload: 2, rateLimitKey: 'nobody' },
    ];
    await expect(jobs.addJobs(specs)).rejects.toThrow(UnknownRateLimitError);
    await expect(
      jobs.addJobs([
        { task: 'a', payload: 1 },
        { task: 'b', payload: 1n },
      ]),
    ).rejects.toThrow(PayloadNotSerializableError);
    expect(await count()).toBe(0);
    expect(await jobs.addJobs([])).toEqual([]);
  });
});

describe('bad input is refused whole', () => {
  const refused: [string, unknown, string][] = [
    ['a priority that is no integer', { priority: 1.5 }, 'priority'],
    ['a priority out of range', { priority: 2 ** 31 }, 'priority'],
    ['an empty queue', { queue: '' }, 'queue'],
    ['a NUL in a name', { queue: 'a\0b' }, 'queue'],
    ['a lone surrogate in a name', { jobKey: 'a\ud800' }, 'jobKey'],
    ['an invalid date', { runAt: new Date(Number.NaN) }, 'runAt'],
    ['run-at and delay', { runAt: new Date(), delayMs: 1 }, 'runAt or delayMs'],
    ['a negative delay', { delayMs: -1 }, 'delayMs'],
    ['no attempts', { maxAttempts: 0 }, 'maxAttempts'],
    ['an unknown key mode', { jobKey: 'k', jobKeyMode: 'replaced' }, 'jobKeyMode'],
    ['a key mode without a key', { jobKeyMode: 'replace' }, 'jobKey'],
    ['flags that are no list', { flags: 'x' }, 'flags'],
    ['an unknown option', { prioritty: 1 }, 'prioritty'],
    ['a manager that cannot query', { manager: {} }, 'manager'],
  ];
  it.each(refused)('%s', async (_name, options, named) => {
    const call = jobs.addJob('x', 1, options as object);
    await expect(call).rejects.toThrow(InvalidArgumentError);
    await expect(call).rejects.toThrow(named);
    expect(await count()).toBe(0);
  });

  const cyclic: Record<string, unknown> = {};
  cyclic.self = cyclic;
  let deep: unknown = 1;
  for (let depth = 0; depth < 100_000; depth++) deep = [deep];
  const unserialisable: [string, unknown][] = [
    ['BigInt', { a: 1n }],
    ['NaN', { a: Number.NaN }],
    ['Infinity', [Infinity]],
    ['a cycle', cyclic],
    ['a function', () => 1],
    ['a symbol', Symbol('x')],
    ['a Map', { m: new Map([[1, 2]]) }],
    ['depth', deep],
  ];
  it.each(unserialisable)('a payload with %s', async (_name, payload) => {
    await expect(jobs.addJob('x', payload)).rejects.toThrow(PayloadNotSerializableError);
    expect(await count()).toBe(0);
  });

  it('a payload over maxPayloadBytes', async () => {
    expect(await jobs.addJob('x', 'a'.repeat(998))).toMatchObject({ created: true });
    const call = jobs.addJob('x', 'a'.repeat(999));
    await expect(call).rejects.toThrow(PayloadTooLargeError);
    await expect(call).rejects.toMatchObject({ bytes: 1_001, maxBytes: 1_000, code: 'ERR_JOBS_PAYLOAD_TOO_LARGE' });
  });

  it.each([
    ['NUL characters', { text: 'a\0b' }],
    ['lone surrogates', { text: '\ud800 and \udc00' }],
    ['__proto__', JSON.parse('{"__proto__": {"admin": true}}') as unknown],
    ['dates, as JSON writes them', { at: '2026-01-01T00:00:00.000Z' }],
    ['nested emptiness', { a: null, b: {}, c: [] }],
  ])('but %s make an exact round trip', async (_name, payload) => {
    const { id } = await jobs.addJob('x', payload);
    expect((await jobs.getJobs(WORKER))[0]?.payload).toEqual(payload);
    expect((await jobs.findJob(id))?.payload).toEqual(payload);
    expect(({} as { admin?: boolean }).admin).toBeUndefined();
  });

  it('names with SQL metacharacters are stored and matched literally', async () => {
    const name = `'; drop table jobs; -- "$1" %s \\ {a,"b"}`;
    const job = await jobs.addJob(name, name, {
      queue: name,
      jobKey: name,
      flags: [name],
      tags: [name],
      groupId: name,
    });
    expect(job).toMatchObject({ task: name, queue: name, jobKey: name, flags: [name], tags: [name], groupId: name });
    const found = await jobs.listJobs({ task: name, queue: name, flag: name, tag: name, groupId: name, search: name });
    expect(found.items.map(({ id }) => id)).toEqual([job.id]);
    expect(await jobs.getJobs(WORKER, { forbiddenFlags: [name] })).toEqual([]);
    expect(await jobs.getJobs(WORKER, { taskIdentifiers: [name], queues: [name] })).toHaveLength(1);
  });
});

it('an add stores the same on the application’s own connections, which limit no lock wait, as on the library’s', async () => {
  const parent = await jobs.addJob('parent', 1, { delayMs: 60_000 });
  await jobs.registerRateLimit('limit', 5, 60_000);
  const at = new Date(Date.now() + 3_600_000);
  const kinds: AddJobOptions[] = [
    {},
    { priority: 3, maxAttempts: 1, runAt: at },
    { queue: 'q', flags: ['f', 'g,h'], tags: ['a tag'], timeoutMs: 500, groupId: 'group', delayMs: 60_000 },
    { rateLimitKey: 'limit', maxAttempts: 1 },
    { queue: 'q', rateLimitKey: 'limit', dependsOn: [parent.id], onParentFailure: 'wait' },
  ];
  const own = await createJobManager({ connection: test.url });
  const others = await createJobManager({ dataSource });
  const stored = async (manager: JobManager) => {
    const added = [];
    for (const options of kinds) added.push(await manager.addJob('x', { text: 'ä\n"' }, options));
    added.push(...(await manager.addJobs([1, 2].map((payload) => ({ task: 'x', payload })))));
    added.push(await manager.addJob('x', 'y'.repeat(5_000)));
    const rows = await test.sql(
      `select to_jsonb(j) - '{id,updated_at}'::text[] as job, to_jsonb(b) - '{id,created_at}'::text[] as body
       from jobs.jobs j join jobs.job_bodies b using (id) where id = any($1) order by id`,
      [added.map(({ id }) => id)],
    );
    // Times of the database's clock.
    const fixed = ({ run_at, ...rest }: Record<string, unknown>) => ({
      ...rest,
      isAsked: Date.parse(String(run_at)) === at.getTime(),
    });
    return rows.map(({ job, body }) => ({ job: fixed(job), body: fixed(body) }));
  };
  try {
    const rows = await stored(own);
    expect(rows.map(({ body }) => body.isAsked)).toContain(true);
    expect(await stored(others)).toEqual(rows);
  } finally {
    await own.close();
    await others.close();
  }
});

describe('inside the caller’s transaction', () => {
  it('a job is invisible until a TypeORM transaction commits', async () => {
    await dataSource.transaction(async (manager) => {
      await jobs.addJob('x', 1, { manager });
      expect(await jobs.getJobs(WORKER)).toEqual([]);
    });
    expect(await jobs.getJobs(WORKER)).toHaveLength(1);
  });

  it('a job vanishes with a rollback', async () => {
    const failing = dataSource.transaction(async (manager) => {
      await jobs.addJobs(
        [
          { task: 'x', payload: 1 },
          { task: 'y', payload: 1, jobKey: 'k' },
        ],
        { manager },
      );
      throw new Error('no');
    });
    await expect(failing).rejects.toThrow('no');
    expect(await count()).toBe(0);
    expect(await test.sql('select from jobs.job_bodies')).toEqual([]);
  });

  it('works with a QueryRunner, a pg client and anything with query(text, values)', async () => {
    const runner = dataSource.createQueryRunner();
    await runner.startTransaction();
    await jobs.addJob('runner', 1, { manager: runner });
    await runner.commitTransaction();
    await runner.release();

    const client = new pg.Client(test.url);
    await client.connect();
    await client.query('begin');
    await jobs.addJob('client', 1, { manager: client });
    const rows = { query: async (text: string, values?: unknown[]) => (await client.query(text, values)).rows };
    await jobs.addJob('rows', { q: "'" }, { manager: rows, flags: ['a,b'], runAt: new Date(0) });
    await client.query('commit');
    await client.end();

    const claimed = await jobs.getJobs(WORKER, { batchSize: 9 });
    expect(claimed.map(({ task }) => task).toSorted()).toEqual(['client', 'rows', 'runner']);
    expect(claimed.find(({ task }) => task === 'rows')).toMatchObject({ flags: ['a,b'], payload: { q: "'" } });
  });

  it('refuses a transaction that is already over', async () => {
    let leaked: EntityManager | undefined;
    await dataSource.transaction(async (manager) => void (leaked = manager));
    await expect(jobs.addJob('x', 1, { manager: leaked! })).rejects.toThrow(TransactionOverError);

    const client = new pg.Client(test.url);
    await client.connect();
    await client.query('begin');
    await client.query('select 1 / 0').catch(() => undefined);
    await expect(jobs.addJob('x', 1, { manager: client })).rejects.toThrow(TransactionOverError);
    await client.end();
    await expect(jobs.addJob('x', 1, { manager: client })).rejects.toThrow(TransactionOverError);
    expect(await count()).toBe(0);
  });

  it('refuses what is no transaction: every statement would commit by itself', async () => {
    const refused = (manager: QueryExecutor, got: string) =>
      Promise.all(
        [{ manager }, { manager, jobKey: 'k' }].map(async (options) => {
          const error: unknown = await jobs.addJob('x', 1, options).catch((reason: unknown) => reason);
          expect(error).toBeInstanceOf(InvalidArgumentError);
          expect((error as Error).message).toContain(`to be in a transaction, got ${got}.`);
        }),
      );
    const pool = new pg.Pool({ connectionString: test.url });
    await refused(pool, 'a pg Pool');
    await pool.end();
    await refused(dataSource, "TypeORM's DataSource");
    await refused(dataSource.manager, "TypeORM's EntityManager outside of any transaction");
    expect(await count()).toBe(0);
  });

  it('works with the connection of a knex transaction, and with its raw()', async () => {
    const db = knex({ client: 'pg', connection: test.url, pool: { min: 0, max: 1 } });
    const payload = { text: 'a "quoted?" \\ word', list: [1, null] };
    await db.transaction(async (trx) => {
      const manager = (await trx.client.acquireConnection()) as QueryExecutor;
      const parent = await jobs.addJob('x', payload, { manager, tags: ['a', 'b,c'] });
      await jobs.addJob('child', payload, { manager, dependsOn: [parent.id] });
    });
    await db.transaction(async (trx) => {
      const manager = { query: (text: string, values: unknown[] = []) => rawOfKnex(trx, text, values) };
      await jobs.addJobs([{ task: 'y', payload }], { manager });
      await jobs.addJob('keyed', payload, { manager, jobKey: 'k' });
    });
    await expect(
      db.transaction(async (trx) => {
        await jobs.addJob('z', payload, { manager: (await trx.client.acquireConnection()) as QueryExecutor });
        throw new Error('roll back');
      }),
    ).rejects.toThrow('roll back');
    await db.destroy();
    const payloads = (await jobs.listJobs({})).items.map((job) => [job.task, job.payload]);
    expect(Object.fromEntries(payloads)).toEqual({ x: payload, child: payload, y: payload, keyed: payload });
  });

  it('works with postgres.js, which encodes JSON by itself', async () => {
    const sql = postgres(test.url, { max: 1, onnotice: () => undefined });
    const payload = { text: 'a "quoted" \\ word', list: [1, null] };
    const [parent] = await sql.begin(async (tx) => {
      const manager = { query: async (text: string, values: any[] = []) => tx.unsafe(text, values) };
      const added = await jobs.addJobs(
        [
          { task: 'x', payload, tags: ['a', 'b,c'], flags: ['f'] },
          { task: 'y', payload: 'text', delayMs: 60_000 },
        ],
        { manager },
      );
      await jobs.addJob('keyed', payload, { manager, jobKey: 'k' });
      await jobs.addJob('child', payload, { manager, dependsOn: [added[0]!.id] });
      return added;
    });
    await sql.end();
    const payloads = (await jobs.listJobs({})).items.map((job) => [job.task, job.payload]);
    expect(Object.fromEntries(payloads)).toEqual({ x: payload, y: 'text', keyed: payload, child: payload });
    expect(await jobs.findJob(parent!.id)).toMatchObject({ tags: ['a', 'b,c'], flags: ['f'] });
  });

  it('a failed check leaves the caller’s transaction usable', async () => {
    await dataSource.transaction(async (manager) => {
      await expect(jobs.addJob('x', 1, { manager, rateLimitKey: 'nobody' })).rejects.toThrow(UnknownRateLimitError);
      await expect(jobs.addJob('x', 1n, { manager })).rejects.toThrow(PayloadNotSerializableError);
      await jobs.addJob('x', 1, { manager });
    });
    expect(await count()).toBe(1);
  });

  it('an enqueuer in a long transaction does not hold up others of the same queue and task', async () => {
    await dataSource.transaction(async (manager) => {
      await jobs.addJob('x', 1, { manager, queue: 'q' });
      await jobs.addJob('x', 2, { queue: 'q' });
      const [job] = await jobs.getJobs(WORKER);
      expect(job?.payload).toBe(2);
      await jobs.completeJobs(WORKER, [job!], 1);
    });
    expect((await jobs.getJobs(WORKER))[0]?.payload).toBe(1);
  });
});

describe('a call that is refused in a transaction which is committed all the same', () => {
  const plain = (payload: number) => ({ task: 'x', payload });
  const refused = { ...plain(2), rateLimitKey: 'nope' };

  it.each([
    [
      'one job has a key and an unknown rate limit',
      () => [plain(1), { ...refused, jobKey: 'k' }],
      UnknownRateLimitError,
    ],
    [
      'the second job of a key is refused',
      () => [
        { ...plain(1), jobKey: 'k' },
        { ...refused, jobKey: 'k' },
      ],
      UnknownRateLimitError,
    ],
    [
      'the last of more jobs than one statement takes is refused',
      () => [...Array.from({ length: 2_000 }, (_, n) => plain(n)), refused],
      UnknownRateLimitError,
    ],
    [
      'a parent is unknown',
      () => [plain(1), { ...plain(2), dependsOn: ['0190a000-0000-7000-8000-000000000001'] }],
      UnknownParentError,
    ],
  ])('leaves nothing behind: %s', async (_what, specs, failure) => {
    const client = new pg.Client(test.url);
    await client.connect();
    try {
      await client.query('begin');
      await expect(jobs.addJobs(specs(), { manager: client })).rejects.toThrow(failure);
      await jobs.addJob('x', 'after it', { manager: client });
      await client.query('commit');
    } finally {
      await client.end();
    }
    expect(await test.sql('select payload from jobs.job_bodies')).toEqual([{ payload: 'after it' }]);
  });

  it('undoes nothing that stood beside it', async () => {
    const client = new pg.Client(test.url);
    await client.connect();
    try {
      await client.query('begin');
      await client.query('create temporary table orders (n integer)');
      const perCall = () => ({ query: (text: string, values?: unknown[]) => client.query(text, values) });
      const [list] = await Promise.allSettled([
        jobs.addJobs([plain(1), { ...refused, jobKey: 'k' }], { manager: perCall() }),
        ...[0, 1, 2, 3].map((n) => client.query('insert into orders values ($1)', [n])),
        jobs.addJobs([plain(3), { ...plain(4), jobKey: 'other' }], { manager: perCall() }),
      ]);
      expect(list.status).toBe('rejected');
      expect((await client.query('select n from orders order by n')).rows).toEqual([0, 1, 2, 3].map((n) => ({ n })));
      await client.query('commit');
    } finally {
      await client.end();
    }
    expect(await test.sql('select payload from jobs.job_bodies order by id')).toEqual([{ payload: 3 }, { payload: 4 }]);
  });

  it('leaves the jobs as they were that it would have replaced, and ends the transaction where it was half done', async () => {
    const a = await jobs.addJob('x', 'a', { jobKey: 'a' });
    const b = await jobs.addJob('x', 'b', { dependsOn: [a.id] });
    const client = new pg.Client(test.url);
    await client.connect();
    await client.query('begin');
    const closing = jobs.addJob('x', 'a2', { jobKey: 'a', dependsOn: [b.id], manager: client });
    await expect(closing).rejects.toThrow(DependencyCircleError);
    await expect(jobs.addJob('x', 'after it', { manager: client })).rejects.toThrow(TransactionOverError);
    await client.query('commit');
    await client.end();
    expect(await jobs.findJob(a.id)).toMatchObject({ payload: 'a', status: 'available' });
    expect(await count()).toBe(2);
  });
});

describe('several calls at once in one transaction of a pg client', () => {
  let client: pg.Client;
  /** Statements that were sent before the one ahead had been answered: pg 9 refuses them. */
  let overlapping: number;

  beforeEach(async () => {
    client = new pg.Client(test.url);
    await client.connect();
    await client.query('begin');
    overlapping = 0;
    let underWay = 0;
    const query = client.query.bind(client) as (...args: unknown[]) => Promise<unknown>;
    client.query = ((...args: unknown[]) => {
      if (underWay++ > 0) overlapping++;
      return query(...args).finally(() => underWay--);
    }) as never;
  });
  afterEach(() => client.end());

  it('adds take turns, so that the statements of one do not stand among those of another', async () => {
    const parent = await jobs.addJob('parent', 1, { manager: client });
    const added = await Promise.all([
      ...[1, 2, 3].map((n) => jobs.addJob('plain', n, { manager: client })),
      ...[1, 2, 3].map((n) => jobs.addJob('keyed', n, { manager: client, jobKey: 'k' })),
      ...[1, 2, 3].map((n) =>
        jobs.addJob('child', n, { manager: client, dependsOn: [parent.id], jobKey: `c${n % 2}` }),
      ),
      jobs.addJobs(
        [
          { task: 'many', payload: 1 },
          { task: 'many', payload: 2 },
        ],
        { manager: client },
      ),
    ]);
    expect(overlapping).toBe(0);
    // Each is told of what it has added itself, and not of what became of it by the next one.
    expect(added.slice(3, 9).map((job) => (job as { status: string }).status)).toEqual([
      ...Array.from({ length: 3 }, () => 'available'),
      ...Array.from({ length: 3 }, () => 'blocked'),
    ]);
    await client.query('commit');
    const { items } = await jobs.listJobs({ status: 'available' });
    expect(items.map(({ task }) => task).toSorted()).toEqual([
      'keyed',
      'many',
      'many',
      'parent',
      'plain',
      'plain',
      'plain',
    ]);
  });

  it('one that is refused keeps the others from nothing', async () => {
    const [refused, ...others] = await Promise.allSettled([
      jobs.addJob('x', 1, { manager: client, dependsOn: ['0190a000-0000-7000-8000-000000000001'] }),
      jobs.addJob('x', 2, { manager: client }),
      jobs.addJob('x', 3, { manager: client, jobKey: 'other' }),
    ]);
    expect([refused!.status, ...others.map(({ status }) => status)]).toEqual(['rejected', 'fulfilled', 'fulfilled']);
    await client.query('commit');
    expect(await count()).toBe(2);
  });

  it('calls that limit how long they wait leave the transaction’s own limit as it was', async () => {
    await client.query(`set local lock_timeout = '7s'`);
    const within = managerWithin(jobs, client);
    const crons = ['a', 'b', 'c'].map((id) => within.scheduleCron({ id, task: 't', schedule: '0 0 1 1 *' }));
    await Promise.all(crons);
    expect((await client.query('show lock_timeout')).rows).toEqual([{ lock_timeout: '7s' }]);
    await client.query('rollback');
  });
});

/** A pooler that hands each transaction another connection cannot LISTEN: the same database beside it, where there is one. */
function directUrlOf(url: string): string {
  const direct = process.env.MILLRACE_TEST_DIRECT_URL;
  if (direct === undefined) return url;
  return Object.assign(new URL(direct), { pathname: new URL(url).pathname }).href;
}

describe('what an add in a caller’s transaction tells pools', () => {
  let client: pg.Client;
  let listener: pg.Client;
  let heard: string[];
  let toldAll: () => void = () => undefined;
  /** The statements that went over the client. */
  let sent: string[];
  const executor: QueryExecutor = {
    query: (text: string, values?: unknown[]) => {
      sent.push(text);
      return client.query(text, values);
    },
  };
  const channel = (): string => jobs.engine.database.channel;

  beforeEach(async () => {
    [client, listener] = [new pg.Client(test.url), new pg.Client(directUrlOf(test.url))];
    [heard, sent] = [[], []];
    await Promise.all([client.connect(), listener.connect()]);
    listener.on('notification', ({ payload }) => (payload === 'end' ? toldAll() : void heard.push(payload ?? '')));
    await listener.query(`listen ${channel()}`);
    await client.query('begin');
  });
  afterEach(() => Promise.all([client.end(), listener.end()]));

  /** All that was told before this. */
  async function allHeard(): Promise<string[]> {
    const ended = new Promise<void>((resolve) => (toldAll = resolve));
    await test.sql('select pg_notify($1, $2)', [channel(), 'end']);
    await ended;
    return heard;
  }

  const soon = (): Date => new Date(Date.now() + 1_000);
  it.each<[string, AddJobOptions, string[]]>([
    ['of a plain job', {}, ['']],
    ['of one that is due at once after a delay', { delayMs: 1_000 }, ['']],
    ['of a job of another priority', { priority: 7 }, ['{"kind":"jobs","priorities":[7]}']],
    ['of a job in a queue', { queue: 'mail' }, ['{"kind":"lanes","lanes":["mail\\u001f\\u001f"]}']],
    ['of a job for later', { delayMs: 60_000 }, []],
    ['that is to be silent', { notify: false }, []],
  ])('%s goes with its one statement, and is heard with the commit', async (_what, options, news) => {
    await jobs.addJob('x', 1, { ...options, manager: executor });
    // Adds to queues ask once a second which queues are bounded.
    expect(sent.filter((text) => !text.includes('queue_bounds'))).toHaveLength(2);
    await client.query('commit');
    expect(await allHeard()).toEqual(news);
  });

  it('waits for the database’s clock where the job has a time of its own', async () => {
    await jobs.addJob('x', 1, { runAt: soon(), manager: executor });
    expect(sent).toHaveLength(3);
    await client.query('commit');
    expect(await allHeard()).toEqual(['']);
  });

  it('is nothing where the add is refused', async () => {
    const refused = jobs.addJob('x', 1, { rateLimitKey: 'unknown', manager: executor });
    await expect(refused).rejects.toThrow(UnknownRateLimitError);
    await client.query('commit');
    expect(await allHeard()).toEqual([]);
  });

  it('is nothing where the transaction is rolled back', async () => {
    await jobs.addJob('x', 1, { manager: executor });
    await client.query('rollback');
    expect(await allHeard()).toEqual([]);
  });
});
