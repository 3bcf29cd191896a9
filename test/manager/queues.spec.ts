import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createJobManager,
  createWorkerPool,
  type ClaimedJob,
  type JobManager,
  type WorkerPool,
} from '../../lib/index.js';
import { LaneMemory } from '../../lib/manager/lane.memory.js';
import { eventually } from '../support/database.js';
import { createTestManager, OTHER, WORKER, type TestManager } from '../support/manager.js';
import { claimAsPool, registerPool } from '../support/pool.claims.js';

let test: TestManager;
let jobs: JobManager;

beforeAll(async () => {
  test = await createTestManager({ queues: { wide: { concurrency: 3 }, free: { concurrency: Infinity } } });
  jobs = test.jobs;
});
afterAll(() => test.close());
beforeEach(async () => {
  await test.sql(`truncate jobs.jobs, jobs.job_bodies, jobs.job_history, jobs.job_queues, jobs.job_places`);
  await jobs.engine.declarations.declareQueues();
});

const payloads = (claimed: { payload: unknown }[]): unknown[] => claimed.map(({ payload }) => payload);
const add = (queue: string, ...payload: unknown[]) =>
  jobs.addJobs(payload.map((p) => ({ task: 'x', payload: p, queue })));
const claim = (batchSize = 10, worker = WORKER): Promise<ClaimedJob[]> => jobs.getJobs(worker, { batchSize });
const queue = async (name: string) => (await jobs.listQueues()).find((state) => state.name === name);

describe('a queue that is declared nowhere', () => {
  it('runs one job at a time, in order', async () => {
    await add('serial', 1, 2, 3);
    for (const expected of [1, 2, 3]) {
      const claimed = await claim();
      expect(payloads(claimed)).toEqual([expected]);
      expect(await claim(10, OTHER)).toEqual([]);
      await jobs.completeJobs(WORKER, claimed, 1);
    }
    expect(await claim()).toEqual([]);
  });

  it('prefers a more urgent job that came later', async () => {
    await add('serial', 'first', 'second');
    const claimed = await claim();
    await claim();
    await jobs.addJob('x', 'urgent', { queue: 'serial', priority: -1 });
    await jobs.completeJobs(WORKER, claimed, 1);
    expect(payloads(await claim())).toEqual(['urgent']);
  });

  it('lets the next one in after a job at its head that was taken away and waits to run again', async () => {
    await add('serial', 'first', 'second');
    await claim();
    await claim(10, OTHER);
    await jobs.forceUnlockJobs();
    const again = await claim();
    expect(payloads(again)).toEqual(['first']);
    await jobs.completeJobs(WORKER, again, 1);
    expect(payloads(await claim())).toEqual(['second']);
  });

  it('does not stay full of a place whose claim is gone until a sweep comes', async () => {
    await add('serial', 'vanishes', 'next');
    await add('other', 'runs', 'waits');
    const claimed = await claim();
    expect(new Set(payloads(claimed))).toEqual(new Set(['runs', 'vanishes']));
    const [vanished] = claimed.filter(({ payload }) => payload === 'vanishes');
    await test.sql('delete from jobs.jobs where id = $1', [vanished!.id]);
    expect(payloads(await claim())).toEqual(['next']);
    expect(await test.sql('select from jobs.job_places where job_id = $1', [vanished!.id])).toEqual([]);
  });

  it('gives its place to the next look of a pool that found it full, whatever that one remembers', async () => {
    await add('serial', 'vanishes', 'next');
    await registerPool(jobs, 'pool-of-places');
    const memory = new LaneMemory(Infinity);
    const [vanished] = await claimAsPool(jobs, 'pool-of-places', { memory });
    expect(await claimAsPool(jobs, 'pool-of-places', { memory })).toEqual([]);
    await test.sql('update jobs.jobs set locked_by = null, locked_at = null, fence = 0 where id = $1', [vanished!.id]);
    await test.sql(`update jobs.jobs set run_at = run_at + interval '1 hour' where id = $1`, [vanished!.id]);
    memory.noteRunnable(['serial']);
    expect(await claimAsPool(jobs, 'pool-of-places', { memory })).toEqual([]);
    expect(payloads(await claimAsPool(jobs, 'pool-of-places', { memory }))).toEqual(['next']);
  });

  it('is not held back by a job that waits for its retry', async () => {
    await add('serial', 'fails', 'next');
    const [failing] = await claim();
    await jobs.failJobs(WORKER, [{ job: failing!, error: 'x' }], 1);
    expect(payloads(await claim())).toEqual(['next']);
  });

  it('is freed by every way in which a claim can end', async () => {
    const ends: [string, (job: ClaimedJob) => Promise<unknown>][] = [
      ['fail', (job) => jobs.failJobs(WORKER, [{ job, error: 'x' }], 1)],
      ['partial', (job) => jobs.reportPartialSuccess(WORKER, job, {}, 1)],
      ['snooze', (job) => jobs.snoozeJob(WORKER, job, 60_000)],
      ['permanently fail', (job) => jobs.permanentlyFailJobs([job.id])],
      [
        'revoke',
        async (job) => {
          await jobs.revokeLease(job.id, job.revision);
          await jobs.cancelJobs([job.id]);
        },
      ],
      [
        'force unlock',
        async (job) => {
          await jobs.forceUnlockJobs();
          await jobs.cancelJobs([job.id]);
        },
      ],
    ];
    await add('serial', ...ends.map(([name]) => name), 'last');
    for (const [name, end] of ends) {
      const claimed = await claim();
      expect(payloads(claimed)).toEqual([name]);
      await end(claimed[0]!);
    }
    expect(payloads(await claim())).toEqual(['last']);
    expect(await queue('serial')).toMatchObject({ running: 1, lockedBy: WORKER });
  });

  it('goes on when the job that was next in line is cancelled', async () => {
    await add('serial', 1, 2, 3);
    const claimed = await claim();
    await jobs.completeJobs(WORKER, claimed, 1);
    const next = (await jobs.listJobs({ queue: 'serial' })).items.find(({ payload }) => payload === 2);
    await jobs.cancelJobs([next!.id]);
    expect(payloads(await claim())).toEqual([3]);
  });

  it('never runs two jobs at once, however many workers race for it', async () => {
    await add('serial', ...Array.from({ length: 60 }, (_, n) => n));
    const done: unknown[] = [];
    let running = 0;
    const work = async (worker: string): Promise<void> => {
      while (done.length < 60) {
        for (const job of await claim(3, worker)) {
          expect(++running).toBe(1);
          await test.sql('select 1');
          running--;
          done.push(job.payload);
          await jobs.completeJobs(worker, [job], 1);
        }
      }
    };
    await Promise.all([1, 2, 3, 4].map((n) => work(`${WORKER}-${n}`)));
    expect(done).toEqual(Array.from({ length: 60 }, (_, n) => n));
  });
});

describe('a declared queue', () => {
  it('runs up to its concurrency over all workers', async () => {
    await add('wide', 1, 2, 3, 4, 5);
    const first = await claim(2);
    const second = await claim(10, OTHER);
    expect([payloads(first), payloads(second)]).toEqual([[1, 2], [3]]);
    await jobs.completeJobs(WORKER, first, 1);
    expect(payloads(await claim())).toEqual([4, 5]);
  });

  it('has no limit with Infinity', async () => {
    await add('free', ...Array.from({ length: 50 }, (_, n) => n));
    expect(await claim(100)).toHaveLength(50);
    expect(await queue('free')).toMatchObject({ concurrency: Infinity, running: 50, waiting: 0 });
  });

  describe('during a rolling deploy', () => {
    const release = async (concurrency: number): Promise<JobManager> => {
      const manager = await createJobManager({ connection: test.url, queues: { thumbs: { concurrency } } });
      opened.push(manager);
      return manager;
    };
    const run = async (manager: JobManager): Promise<WorkerPool> => {
      const pool = createWorkerPool({ jobs: manager, tasks: { x: () => undefined } });
      await pool.start();
      pools.push(pool);
      return pool;
    };
    const opened: JobManager[] = [];
    const pools: WorkerPool[] = [];
    afterEach(async () => {
      await Promise.all(pools.splice(0).map((pool) => pool.stop()));
      await Promise.all(opened.splice(0).map((manager) => manager.close()));
      await test.sql('truncate jobs.releases');
    });

    it('keeps the limit of the new release, however often processes of the old one start', async () => {
      await run(await release(5));
      await run(await release(10));
      expect(await queue('thumbs')).toMatchObject({ concurrency: 10 });
      await run(await release(5));
      expect(await queue('thumbs')).toMatchObject({ concurrency: 10 });
    });

    it('gets the old limit back when the new release is gone: a rollback', async () => {
      const old = await release(5);
      const pool = await run(await release(10));
      await old.engine.declarations.repeatQueues();
      expect(await queue('thumbs')).toMatchObject({ concurrency: 10 });
      await pool.stop();
      await old.engine.declarations.repeatQueues();
      expect(await queue('thumbs')).toMatchObject({ concurrency: 5 });
    });
  });

  it('stays as declared when a process that does not declare it collects garbage, until a month has passed', async () => {
    const other = await createJobManager({ connection: test.url });
    await other.gcJobQueues();
    expect(await queue('wide')).toMatchObject({ concurrency: 3 });
    await test.sql(`update jobs.job_queues set declared_at = now() - interval '31 days' where name = 'wide'`);
    await jobs.engine.declarations.declareQueues();
    await other.gcJobQueues();
    expect(await queue('wide')).toMatchObject({ concurrency: 3 });
    await test.sql(`update jobs.job_queues set declared_at = now() - interval '31 days' where name = 'wide'`);
    await other.gcJobQueues();
    expect(await queue('wide')).toBeUndefined();
    await other.close();
  });

  it('whose row some transaction holds keeps no process from starting, and the others are declared', async () => {
    const holder = new pg.Client(test.url);
    await holder.connect();
    await holder.query(`begin; select from jobs.job_queues where name = 'free' for update`);
    const queues = { free: { concurrency: 2 }, another: { concurrency: 4 } };
    const other = await createJobManager({ connection: test.url, queues });
    expect(await queue('another')).toMatchObject({ concurrency: 4 });
    expect(await queue('free')).toMatchObject({ concurrency: Infinity });
    await holder.query('commit');
    await holder.end();
    await other.engine.declarations.declareQueues();
    expect(await queue('free')).toMatchObject({ concurrency: 2 });
    await other.close();
  });

  it('keeps what configureQueue has set, whatever processes declare', async () => {
    await jobs.configureQueue('wide', { concurrency: 1 });
    await jobs.engine.declarations.declareQueues();
    await add('wide', 1, 2);
    expect(await claim()).toHaveLength(1);
    await jobs.configureQueue('wide', { concurrency: 2 });
    expect(await claim()).toHaveLength(1);
  });
});

describe('pauseQueue and resumeQueue', () => {
  it('claim nothing from a paused queue and say so', async () => {
    await add('serial', 1, 2);
    await jobs.pauseQueue('serial');
    expect(await claim()).toEqual([]);
    const [job] = (await jobs.listJobs({ queue: 'serial' })).items;
    expect(await jobs.explain(job!.id)).toMatchObject({ status: 'available', reason: 'queue_paused' });
    expect(await queue('serial')).toMatchObject({ paused: true, waiting: 2 });
    await jobs.resumeQueue('serial');
    expect(payloads(await claim())).toEqual([1]);
  });
});

describe('forceUnlockQueues (force-unlock-queues)', () => {
  it('frees places whose claim is over', async () => {
    await add('serial', 1, 2);
    await claim();
    await test.sql(`update jobs.jobs set locked_by = null, locked_at = null where locked_by is not null`);
    expect(await test.sql('select from jobs.job_places')).toHaveLength(1);
    expect(await jobs.forceUnlockQueues(['serial'])).toMatchObject([{ name: 'serial', running: 0, lockedBy: null }]);
    expect(await test.sql('select from jobs.job_places')).toEqual([]);
    expect(payloads(await claim())).toEqual([1]);
  });
});

describe('races', () => {
  it('a claim takes nothing of a queue that an open transaction holds, and waits for nothing', async () => {
    await add('serial', 1);
    await add('wide', 2);
    await jobs.completeJobs(WORKER, await claim(), 1);
    await add('serial', 3);
    await add('wide', 4);
    const holder = new pg.Client(test.url);
    await holder.connect();
    await holder.query('begin');
    await holder.query(`select from jobs.job_queues where name = 'serial' for update`);
    expect(payloads(await claim())).toEqual([4]);
    await holder.query('rollback');
    await holder.end();
    expect(payloads(await claim())).toEqual([3]);
  });

  it('a pause that has committed is followed by no claim, of an unlimited queue too', async () => {
    for (let round = 0; round < 10; round++) {
      await add('free', ...Array.from({ length: 20 }, (_, n) => n));
      const claims = Promise.all([1, 2, 3, 4].map((n) => claim(5, `${WORKER}-${n}`)));
      await jobs.pauseQueue('free');
      const [{ paused_at }] = (await test.sql('select clock_timestamp() as paused_at')) as [{ paused_at: Date }];
      for (const job of (await claims).flat()) expect(job.lockedAt!.getTime()).toBeLessThanOrEqual(paused_at.getTime());
      expect(await claim(100)).toEqual([]);
      await jobs.resumeQueue('free');
      await test.sql('truncate jobs.jobs, jobs.job_bodies');
    }
  });

  it('a limit that appears counts what runs already', async () => {
    await add('free', 1, 2, 3, 4, 5);
    const running = await claim(3);
    await jobs.configureQueue('free', { concurrency: 4 });
    expect(await claim(100)).toHaveLength(1);
    await jobs.completeJobs(WORKER, running, 1);
    expect(await claim(100)).toHaveLength(1);
    expect((await test.sql(`select from jobs.job_places`)).length).toBe(2);
  });

  it('the end of a job that was claimed before its queue had a limit tells of the place that it frees', async () => {
    const other = await createJobManager({ connection: test.url });
    const done: unknown[] = [];
    const pool = createWorkerPool({
      jobs: other,
      tasks: { x: (n) => void done.push(n) },
      options: { pollIntervalMs: 60_000 },
    });
    try {
      await jobs.configureQueue('late', { concurrency: Infinity });
      await add('late', 1);
      const running = await claim();
      await jobs.configureQueue('late', { concurrency: 1 });
      await pool.start();
      let looks = 0;
      const look = other.engine.claims.claimLanes.bind(other.engine.claims);
      other.engine.claims.claimLanes = async (request) => {
        const found = await look(request);
        looks++;
        return found;
      };
      await add('late', 2);
      await eventually(() => looks > 0);
      await jobs.completeJobs(WORKER, running, 1);
      await eventually(() => done.length === 1);
      expect(done).toEqual([2]);
    } finally {
      await pool.stop(0);
      await other.close();
    }
  });

  it('a row in another lane than its own is refused by the schema', async () => {
    const [{ id }] = (await add('odd', 1)) as unknown as [{ id: string }];
    await expect(test.sql(`update jobs.jobs set queue = null where id = $1`, [id])).rejects.toThrow(
      'limited_jobs_lie_in_their_lane',
    );
  });
});
