// Calls that are under way when their caller ends the transaction that they were made in.
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { DataSource } from 'typeorm';
import {
  defineTask,
  TransactionOverError,
  UnknownRateLimitError,
  type JobManager,
  type QueryExecutor,
} from '../../lib/index.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
let dataSource: DataSource;

beforeAll(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  dataSource = await new DataSource({ type: 'postgres', url: test.url, extra: { max: 1 } }).initialize();
});
afterAll(async () => {
  await dataSource.destroy();
  await test.close();
});
beforeEach(() => test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_keys, jobs.job_dependencies'));

const stored = async (): Promise<number> => (await test.sql('select from jobs.job_bodies')).length;
const several = [
  { task: 'x', payload: 1 },
  { task: 'x', payload: 2, jobKey: 'a' },
  { task: 'x', payload: 3, jobKey: 'b' },
  { task: 'x', payload: 4, jobKey: 'b' },
];
const tooMany = Array.from({ length: 4_001 }, (_, n) => ({ task: 'x', payload: n }));
const refusedByLimit = { rateLimitKey: 'unknown' };

type Calls = (manager: QueryExecutor, parent: string) => Promise<unknown>[];
const calls: [string, Calls][] = [
  ['many of several kinds', (manager) => [jobs.addJobs(several, { manager })]],
  ['more than one statement takes', (manager) => [jobs.addJobs(tooMany, { manager })]],
  [
    'children',
    (manager, parent) => [jobs.addJob('x', 1, { manager, dependsOn: [parent] }), jobs.addJob('x', 1, { manager })],
  ],
  [
    'single ones',
    (manager) => [1, 2, 3].map((n) => jobs.addJob('x', n, { manager, ...(n > 1 && { jobKey: `${n}` }) })),
  ],
];

describe.each(calls)('calls of %s leave nothing behind a rollback', (_what, make) => {
  /** All that was asked for has been answered, whatever was told. */
  async function rolledBack(transaction: (work: (manager: QueryExecutor) => Promise<void>) => Promise<void>) {
    const { id } = await jobs.addJob('parent', 1);
    let all: Promise<unknown>[] = [];
    await transaction(async (manager) => {
      all = [jobs.addJob('x', 0, { manager, ...refusedByLimit }), ...make(manager, id)];
      for (const call of all) call.catch(() => undefined);
      await Promise.all(all);
    });
    const told = await Promise.allSettled(all);
    expect(told[0]).toMatchObject({ reason: expect.any(UnknownRateLimitError) });
    const reasons = told.slice(1).flatMap((one) => (one.status === 'rejected' ? [one.reason as unknown] : []));
    expect(reasons.filter((reason) => !(reason instanceof TransactionOverError))).toEqual([]);
    expect(await stored()).toBe(1);
  }

  it('of a pg client', async () => {
    const client = new pg.Client(test.url);
    await client.connect();
    await rolledBack(async (work) => {
      await client.query('begin');
      await expect(work(client)).rejects.toThrow(UnknownRateLimitError);
      await client.query('rollback');
    });
    await client.end();
  });

  it('of TypeORM', async () => {
    await rolledBack((work) => expect(dataSource.transaction(work)).rejects.toThrow(UnknownRateLimitError));
  });

  it('of anything that has a query function', async () => {
    const client = new pg.Client(test.url);
    await client.connect();
    await rolledBack(async (work) => {
      await client.query('begin');
      const failed = work({ query: (text: string, values?: unknown[]) => client.query(text, values) });
      await expect(failed).rejects.toThrow(UnknownRateLimitError);
      await client.query('rollback');
    });
    await client.end();
  });
});

describe('on a pg client', () => {
  let client: pg.Client;

  beforeEach(async () => {
    client = new pg.Client(test.url);
    await client.connect();
    await client.query('begin');
  });
  afterEach(() => client.end());

  it('what is left of a call neither joins nor disturbs the next transaction', async () => {
    const adding = jobs.addJobs(several, { manager: client });
    adding.catch(() => undefined);
    await client.query('rollback');
    await client.query('begin');
    await expect(adding).rejects.toThrow(TransactionOverError);
    await client.query('create temporary table mine ()');
    await client.query('commit');
    expect(await stored()).toBe(0);
  });

  it('a call in a savepoint that is rolled back is refused', async () => {
    await jobs.addJob('x', 'before', { manager: client });
    await client.query('savepoint mine');
    const adding = jobs.addJobs(several, { manager: client });
    adding.catch(() => undefined);
    await client.query('rollback to mine');
    await expect(adding).rejects.toThrow(TransactionOverError);
    await jobs.addJob('x', 'after', { manager: client });
    await client.query('commit');
    expect(await stored()).toBe(2);
  });

  it('a call in a savepoint that is released goes with the transaction', async () => {
    await client.query('savepoint mine');
    const adding = jobs.addJobs(several, { manager: client });
    await client.query('release mine');
    await adding;
    await client.query('commit');
    expect((await jobs.listJobs({ status: 'available' })).items).toHaveLength(3);
  });

  it('is refused where the client is in no transaction, and nothing is added', async () => {
    await client.query('rollback');
    await expect(jobs.addJob('x', 1, { manager: client })).rejects.toThrow(TransactionOverError);
    await expect(jobs.addJob('x', 1, { manager: client, jobKey: 'k' })).rejects.toThrow(TransactionOverError);
    await expect(jobs.addJobs(several, { manager: client })).rejects.toThrow(TransactionOverError);
    expect(await stored()).toBe(0);
  });

  it('calls through several executors on one connection know their transaction', async () => {
    const executor = (): QueryExecutor => ({ query: (text: string, values?: unknown[]) => client.query(text, values) });
    await Promise.all(
      Array.from({ length: 50 }, (_, n) => jobs.addJob('x', n, { manager: executor(), jobKey: `${n}` })),
    );
    await client.query('commit');
    expect(await stored()).toBe(50);
  });

  it('in one that was begun as read only, the refusal names that too', async () => {
    await client.query('rollback');
    await client.query('begin read only');
    await expect(jobs.addJob('x', 1, { manager: client })).rejects.toThrow(
      'a transaction of yours was begun as read only',
    );
    await client.query('rollback');
    expect(await stored()).toBe(0);
  });

  it('a refused call leaves nothing on its way when it rejects', async () => {
    let underWay = 0;
    const query = client.query.bind(client) as (...args: unknown[]) => Promise<unknown>;
    client.query = ((...args: unknown[]) => {
      underWay++;
      return query(...args).finally(() => underWay--);
    }) as never;
    await expect(jobs.addJob('x', 1n, { manager: client })).rejects.toThrow('BigInt');
    expect(underWay).toBe(0);
  });

  /** A task whose payloads are being checked until it is told to go on: its calls are under way so long. */
  function checkedLater() {
    let goOn: () => void = () => undefined;
    const checked = new Promise<void>((resolve) => (goOn = resolve));
    const validate = async (value: unknown) => {
      await checked;
      return { value };
    };
    const task = defineTask('checked', { '~standard': { version: 1 as const, vendor: 'spec', validate } });
    const add = (): Promise<unknown> => {
      const adding = jobs.addJob(task, 1, { manager: client });
      adding.catch(() => undefined);
      return adding;
    };
    return { add, goOn };
  }

  it.each(['rollback', 'commit'])(
    'a call that %s has left behind refuses none of the next transaction',
    async (end) => {
      const { add, goOn } = checkedLater();
      const left = add();
      await client.query(end);
      await client.query('begin');
      await jobs.addJob('x', 'next', { manager: client });
      await client.query('commit');
      goOn();
      await expect(left).rejects.toThrow(TransactionOverError);
      expect(await stored()).toBe(1);
    },
  );

  it('calls that a savepoint has left behind refuse none of the transaction around it', async () => {
    await client.query('savepoint mine');
    const all = Array.from({ length: 50 }, (_, n) =>
      jobs.addJob('x', n, { manager: client, ...(n ? {} : refusedByLimit) }),
    );
    await expect(Promise.all(all)).rejects.toThrow(UnknownRateLimitError);
    await client.query('rollback to mine');
    await jobs.addJob('x', 'instead', { manager: client });
    await client.query('commit');
    await Promise.allSettled(all);
    expect(await stored()).toBe(1);
  });

  it('a call in a savepoint that is rolled back is refused while one from before it is under way', async () => {
    const { add, goOn } = checkedLater();
    const around = add();
    await client.query('savepoint mine');
    const inside = add();
    await client.query('rollback to mine');
    goOn();
    await expect(inside).rejects.toThrow(TransactionOverError);
    await around;
    await client.query('commit');
    expect(await stored()).toBe(1);
  });

  it('two thousand calls, each through an executor of its own, are all in their transaction', async () => {
    const executor = (): QueryExecutor => ({ query: (text: string, values?: unknown[]) => client.query(text, values) });
    await Promise.all(Array.from({ length: 2_000 }, (_, n) => jobs.addJob('x', n, { manager: executor() })));
    await client.query('commit');
    expect(await stored()).toBe(2_000);
  });

  it('marks of calls that have ended do not pile up, and those that another copy of the library has set stay', async () => {
    await client.query(`set local millrace.calls = 'another'`);
    for (let n = 0; n < 1_000; n++) await jobs.addJob('x', n, { manager: client });
    const { rows } = await client.query(`select current_setting('millrace.calls') as marks`);
    const marks = (rows[0].marks as string).split(' ');
    expect(marks).toContain('another');
    expect(marks.length).toBeLessThan(1_000);
    await client.query('commit');
    expect(await stored()).toBe(1_000);
  });

  it('calls of more turns than are told apart by name keep their marks', async () => {
    const { add, goOn } = checkedLater();
    const all: Promise<unknown>[] = [];
    for (let turn = 0; turn < 250; turn++) {
      all.push(add());
      await client.query('select');
    }
    goOn();
    await Promise.all(all);
    await client.query('commit');
    expect(await stored()).toBe(250);
  });
});
