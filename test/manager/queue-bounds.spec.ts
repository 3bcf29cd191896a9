// How many jobs may wait in a queue: adds beyond it are refused, as a whole.
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { createJobManager, QueueFullError, type JobManager, type JobManagerOptions } from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
const others: JobManager[] = [];

beforeAll(async () => {
  test = await createTestManager();
  jobs = test.jobs;
});
afterAll(() => test.close());
beforeEach(async () => {
  await test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_queues, jobs.job_places, jobs.job_keys');
  await jobs.configureQueue('mail', { maxWaiting: 3 });
});
afterEach(async () => {
  for (const other of others.splice(0)) await other.close();
});

async function another(options: JobManagerOptions = {}): Promise<JobManager> {
  const other = await createJobManager({ connection: test.url, ...options });
  others.push(other);
  return other;
}

/** As if the last count were old: the next add counts again. */
const countAgain = (by: JobManager = jobs): void => by.engine.bounds.forget();

const fill = (n: number, options: object = {}) =>
  jobs.addJobs(Array.from({ length: n }, (_, payload) => ({ task: 'x', payload, queue: 'mail', ...options })));

const waiting = async (): Promise<number> => (await test.sql('select from jobs.jobs')).length;

it('an add to a full queue is refused, with what is known of it', async () => {
  await fill(3);
  await expect(jobs.addJob('x', 4, { queue: 'mail' })).rejects.toMatchObject({
    constructor: QueueFullError,
    code: 'ERR_JOBS_QUEUE_FULL',
    queue: 'mail',
    limit: 3,
    found: 3,
    message:
      'Expected room in queue "mail", got 3 waiting jobs where its maxWaiting is 3. Add later, or raise it (configureQueue).',
  });
  await jobs.addJob('x', 5, { queue: 'other' });
  await jobs.addJob('x', 6);
  expect(await waiting()).toBe(5);
});

it('adds to a full queue are refused although they wait for the count of another one', async () => {
  await jobs.configureQueue('other', { maxWaiting: 100 });
  await fill(3);
  const process = await another();
  const adds = ['other', 'mail', 'mail', 'other', 'mail'].map((queue) => process.addJob('x', 1, { queue }));
  await new Promise(setImmediate);
  adds.push(process.addJob('x', 1, { queue: 'mail' }));
  expect((await Promise.allSettled(adds)).map(({ status }) => status === 'fulfilled')).toEqual([
    true,
    false,
    false,
    true,
    false,
    false,
  ]);
  expect(await waiting()).toBe(5);
});

it('nothing is inserted of a call of which a part would not fit', async () => {
  await expect(fill(4)).rejects.toThrow(QueueFullError);
  await fill(2);
  const mixed = [
    { task: 'x', payload: 1 },
    { task: 'x', payload: 2, queue: 'mail', jobKey: 'k' },
    { task: 'x', payload: 3, queue: 'mail' },
  ];
  await expect(jobs.addJobs(mixed)).rejects.toThrow(QueueFullError);
  expect(await waiting()).toBe(2);
  await fill(1);
});

it('what runs, waits for parents or has failed for good takes no room; what is scheduled does', async () => {
  const parent = await jobs.addJob('p', 0);
  await jobs.addJob('x', 0, { queue: 'mail', dependsOn: [parent.id] });
  await jobs.configureQueue('mail', { concurrency: 2 });
  await fill(2, { priority: -1 });
  expect(await jobs.getJobs(WORKER, { batchSize: 2, queues: ['mail'] })).toHaveLength(2);
  countAgain();
  await fill(3, { delayMs: 60_000, priority: 2_147_483_647 });
  countAgain();
  await expect(fill(1, { priority: 5 })).rejects.toThrow(QueueFullError);
  const [last] = (await jobs.listJobs({ status: 'scheduled' })).items;
  await jobs.permanentlyFailJobs([last!.id]);
  countAgain();
  await fill(1);
});

it('there is room again soon after jobs were taken', async () => {
  await fill(3);
  await expect(fill(1)).rejects.toThrow(QueueFullError);
  expect(await jobs.getJobs(WORKER, { queues: ['mail'] })).toHaveLength(1);
  expect(await eventually(() => fill(1).catch(() => null))).toHaveLength(1);
});

it('a queue like another one by name is counted by itself', async () => {
  for (const name of ['mail ', 'mail!', 'mai', 'mailb']) await jobs.addJob('x', name, { queue: name });
  countAgain();
  await fill(3);
  countAgain();
  await expect(fill(1)).rejects.toThrow(QueueFullError);
});

it('other processes see it with their next count', async () => {
  const other = await another();
  await fill(3);
  await expect(other.addJob('x', 4, { queue: 'mail' })).rejects.toThrow(QueueFullError);
  await jobs.configureQueue('mail', { maxWaiting: Infinity });
  expect(await eventually(() => other.addJob('x', 4, { queue: 'mail' }).catch(() => null))).toMatchObject({
    created: true,
  });
});

it('a process counts at most once a second, and what it adds itself at once', async () => {
  await jobs.configureQueue('mail', { maxWaiting: 50 });
  const { database } = jobs.engine;
  const run = database.run.bind(database) as (...args: unknown[]) => Promise<unknown>;
  let counts = 0;
  database.run = (async (statement: { name: string }, ...rest: unknown[]) => {
    if (statement.name === 'find_queue_bounds') counts++;
    return run(statement, ...rest);
  }) as never;
  const began = performance.now();
  const results = await Promise.allSettled(
    Array.from({ length: 60 }, (_, n) => jobs.addJob('x', n, { queue: n % 2 ? 'mail' : 'other' })),
  );
  const seconds = (performance.now() - began) / 1_000;
  Reflect.deleteProperty(database, 'run');
  expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(60);
  expect(counts).toBeLessThanOrEqual(1 + Math.ceil(seconds) * 10);
  await expect(fill(21)).rejects.toThrow(QueueFullError);
  await fill(20);
});

it('plain adds ask for nothing', async () => {
  const { database } = jobs.engine;
  const run = database.run.bind(database) as (...args: unknown[]) => Promise<unknown>;
  const names: string[] = [];
  database.run = (async (statement: { name: string }, ...rest: unknown[]) => {
    names.push(statement.name);
    return run(statement, ...rest);
  }) as never;
  countAgain();
  await jobs.addJob('x', 1);
  await jobs.addJobs([{ task: 'x', payload: 1 }]);
  Reflect.deleteProperty(database, 'run');
  expect(names.filter((name) => name.includes('bounds'))).toEqual([]);
});

describe('in a caller’s transaction', () => {
  let client: pg.Client;
  beforeEach(async () => {
    client = new pg.Client(test.url);
    await client.connect();
  });
  afterEach(() => client.end());

  it('a refused add leaves it as it was, and it can go on', async () => {
    await fill(3);
    await client.query('begin');
    await jobs.addJob('x', 'kept', { manager: client });
    await expect(jobs.addJob('x', 4, { queue: 'mail', manager: client })).rejects.toThrow(QueueFullError);
    await client.query('commit');
    expect(await waiting()).toBe(4);
  });

  it('jobs are counted on its own connection', async () => {
    const narrow = await another({ connection: { connectionString: test.url, max: 1 } });
    await client.query('begin');
    await Promise.all([1, 2].map((payload) => narrow.addJob('x', payload, { queue: 'mail', manager: client })));
    await client.query('commit');
    expect(await waiting()).toBe(2);
  });

  it.each(['repeatable read', 'serializable'])(
    'at %s, whose snapshot may be old, nothing is counted',
    async (level) => {
      await fill(3);
      countAgain();
      await client.query(`begin isolation level ${level}`);
      expect(await jobs.addJob('x', 4, { queue: 'mail', manager: client })).toMatchObject({ created: true });
      await client.query('commit');
      countAgain();
      await expect(fill(1)).rejects.toThrow(QueueFullError);
    },
  );
});

describe('bounds', () => {
  it('are declared, and configureQueue wins', async () => {
    await test.sql('truncate jobs.job_queues');
    const first = await another({
      queues: { mail: { concurrency: 2, maxWaiting: 5 }, wide: { maxWaiting: Infinity } },
    });
    expect(await first.listQueues()).toMatchObject([
      { name: 'mail', concurrency: 2, maxWaiting: 5 },
      { name: 'wide', concurrency: 1, maxWaiting: Infinity },
    ]);
    await first.configureQueue('mail', { maxWaiting: 9 });
    await another({ queues: { mail: { concurrency: 3, maxWaiting: 6 } } });
    expect((await jobs.listQueues())[0]).toMatchObject({ concurrency: 3, maxWaiting: 9 });
    await first.configureQueue('mail', { concurrency: 4 });
    await another({ queues: { mail: { concurrency: 5, maxWaiting: 7 } } });
    expect((await jobs.listQueues())[0]).toMatchObject({ concurrency: 4, maxWaiting: 9 });
  });

  it('are kept where nothing else is known of the queue', async () => {
    expect(await jobs.gcJobQueues()).toBe(0);
    expect(await jobs.listQueues()).toMatchObject([{ name: 'mail', maxWaiting: 3, concurrency: 1 }]);
  });

  it('leave crontabs alone: a slot is not missed because the queue is full', async () => {
    await fill(3);
    await jobs.scheduleCron({ id: 'c', task: 'x', schedule: '* * * * * *', options: { queue: 'mail' } });
    expect(await eventually(async () => (await jobs.engine.crontabs.fire('c')).fired.length)).toBe(1);
  });

  it.each<[string, object]>([
    ['Expected concurrency, partitions or maxWaiting, got none.', {}],
    ['Expected maxWaiting to be an integer from 1', { maxWaiting: 0 }],
    ['Expected maxWaiting to be an integer from 1', { maxWaiting: '5' }],
    ['Expected maxWaiting to be an integer from 1', { maxWaiting: null }],
  ])('make sense: %s', async (message, options) => {
    await expect(jobs.configureQueue('mail', options)).rejects.toThrow(message);
  });
});

describe('add_job', () => {
  const add = (queue: string | null) => test.sql('select jobs.add_job($1, queue => $2)', ['x', queue]);

  it('refuses a full queue too', async () => {
    for (let n = 0; n < 3; n++) await add('mail');
    await expect(
      test.sql(`select jobs.add_job('x', queue => 'mail') from generate_series(1, 2)`),
    ).rejects.toMatchObject({
      code: '54000',
      message: `Expected room in queue 'mail', got 3 waiting jobs where its bound is 3.`,
    });
    await add('other');
    await add(null);
  });

  it('counts what a statement adds itself', async () => {
    const many = (n: number) => test.sql(`select jobs.add_job('x', queue => 'mail') from generate_series(1, ${n})`);
    await expect(many(4)).rejects.toMatchObject({ code: '54000' });
    expect(await waiting()).toBe(0);
    await many(3);
  });
});
