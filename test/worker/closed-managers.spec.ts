import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createCollectingEvents,
  createWorkerPool,
  type CollectingJobEvents,
  JobQueue,
  OutcomesUnwrittenError,
  type PlainTask,
  type StandardSchema,
  StoppedError,
  type WorkerOptions,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let events: CollectingJobEvents;
let finish: ((result?: unknown) => void)[];

beforeEach(async () => {
  test = await createTestManager();
  events = createCollectingEvents();
  finish = [];
});
afterEach(() => test.close());

const untilFinished = (): Promise<unknown> => new Promise((resolve) => finish.push(resolve));

async function start(tasks: Record<string, PlainTask>, options: WorkerOptions = {}) {
  const { jobs } = test;
  const pool = createWorkerPool({ jobs, tasks, events, options: { pollIntervalMs: 20, keepaliveMs: 200, ...options } });
  return pool.start();
}

/** What an application does that destroys its DataSource under a pool. */
const closeConnections = () => test.jobs['database'].close();

const statusOf = async (id: string) => (await test.sql('select locked_by from jobs.jobs where id = $1', [id]))[0];

const errors = (): unknown[] => events.ofType('worker.error').map(({ error }) => error);

describe('closing a JobManager', () => {
  it('stops its pools first: running jobs end and are settled', async () => {
    const pool = await start({ t: untilFinished });
    const { id } = await test.jobs.addJob('t', 1);
    await eventually(() => finish.length);
    const closed = test.jobs.close();
    finish[0]!();
    await closed;
    expect(pool.state).toBe('terminated');
    expect(await statusOf(id)).toBeUndefined();
    expect(errors()).toEqual([]);
  });

  it('ends a pool whose connections are closed under it, which says so once', async () => {
    const pool = await start({ t: untilFinished }, { gracefulShutdownTimeoutMs: 50 });
    await closeConnections();
    await pool.join();
    expect(errors()).toEqual([expect.any(StoppedError)]);
    expect(pool.stats().unwritten).toBe(0);
  });

  it('gives up outcomes that cannot be written any more, and names their jobs', async () => {
    const pool = await start({ t: untilFinished });
    const { id } = await test.jobs.addJob('t', 1);
    await eventually(() => finish.length);
    await closeConnections();
    finish[0]!();
    await pool.join();
    const unwritten = errors().filter((error) => error instanceof OutcomesUnwrittenError);
    expect(unwritten).toMatchObject([{ jobIds: [id] }]);
    expect(pool.stats().unwritten).toBe(0);
  });

  it('gives up an outcome that waits for an open transaction', async () => {
    const pool = await start({ t: untilFinished });
    const { id } = await test.jobs.addJob('t', 1);
    await eventually(() => finish.length);
    const stranger = new pg.Client(test.url);
    await stranger.connect();
    await stranger.query('begin');
    await stranger.query('select from jobs.jobs for update');
    finish[0]!();
    await eventually(() => pool.activeWorkers === 0);
    await closeConnections();
    await pool.join();
    await eventually(() => errors().some((error) => error instanceof OutcomesUnwrittenError));
    await stranger.end();
    expect(await statusOf(id)).toBeDefined();
  });

  it('waits for adds under way: plain ones, those with a key, and lists', async () => {
    const { jobs } = test;
    const adds = [
      ...Array.from({ length: 20 }, (_, n) => jobs.addJob('x', n)),
      ...Array.from({ length: 20 }, (_, n) => jobs.addJob('x', n, { jobKey: `key-${n}` })),
      jobs.addJobs(Array.from({ length: 3_000 }, (_, n) => ({ task: 'x', payload: n }))),
    ];
    await Promise.resolve();
    await jobs.close();
    const ended = await Promise.allSettled(adds);
    expect(ended.filter(({ status }) => status === 'rejected')).toEqual([]);
    expect(await test.sql('select count(*)::int as jobs from jobs.jobs')).toEqual([{ jobs: 3_040 }]);
  });

  it('waits for adds whose payloads are still being checked', async () => {
    const { jobs } = test;
    const slow: StandardSchema = {
      '~standard': {
        version: 1,
        vendor: 'test',
        validate: async (value: unknown) => {
          await new Promise((resolve) => setTimeout(resolve, 50));
          return { value };
        },
      },
    };
    createWorkerPool({ jobs, tasks: { x: { payload: slow, handler: () => undefined } } });
    const adds = [jobs.addJob('x', 1), jobs.addJob('x', 2, { jobKey: 'k' }), jobs.addJobs([{ task: 'x', payload: 3 }])];
    await jobs.close();
    expect((await Promise.allSettled(adds)).map(({ status }) => status)).toEqual(Array(3).fill('fulfilled'));
  });

  it('ends a queue without a pool', async () => {
    const queue = new JobQueue({ jobs: test.jobs, workerId: 'queue-of-a-closed-manager', pollIntervalMs: 20 }).start();
    await closeConnections();
    expect(await queue.takeJob(Infinity)).toBeNull();
    expect(queue.running).toBe(false);
  });
});

describe('a handler that outlives the stop of its pool', () => {
  it('is settled all the same while its lease holds', async () => {
    const pool = await start({ t: untilFinished });
    const { id } = await test.jobs.addJob('t', 1);
    await eventually(() => finish.length);
    await pool.stop(0);
    finish[0]!('late');
    expect(await test.jobs.waitForJob(id)).toMatchObject({ status: 'completed', result: 'late' });
  });

  it('tries once to write its outcome, and says that it could not', async () => {
    const pool = await start({ t: untilFinished });
    const { id } = await test.jobs.addJob('t', 1);
    await eventually(() => finish.length);
    await pool.stop(0);
    await test.jobs.close();
    finish[0]!();
    await eventually(() => errors().length);
    expect(errors()).toMatchObject([{ code: 'ERR_JOBS_OUTCOMES_UNWRITTEN', jobIds: [id] }]);
    expect(pool.stats().unwritten).toBe(0);
    expect(pool.circuit).toBe('closed');
  });
});
