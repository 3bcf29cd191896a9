// Calls and heartbeats beside open transactions of strangers: nothing waits for them for long, and what is decided under a
// lock is decided by what is then.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createJobManager,
  createWorkerPool,
  JobEvents,
  JobHeldError,
  type JobManager,
  type QueryExecutor,
  RowsHeldError,
  UnknownParentError,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, WORKER, type TestManager, managerWithin } from '../support/manager.js';
import { registerPool } from '../support/pool.claims.js';

let test: TestManager;
let jobs: JobManager;
let stranger: pg.Client;
let client: pg.Client;

interface Scene {
  test: TestManager;
  stranger: pg.Client;
  client: pg.Client;
}

async function openScene(): Promise<Scene> {
  const opened = await createTestManager({ retry: { baseDelayMs: 1, jitter: 0 } });
  const clients = [new pg.Client(opened.url), new pg.Client(opened.url)] as const;
  await Promise.all(clients.map((one) => one.connect()));
  return { test: opened, stranger: clients[0], client: clients[1] };
}

async function closeScene(scene: Scene): Promise<void> {
  await Promise.all([scene.stranger.end(), scene.client.end()]);
  await scene.test.close();
}

/** For a test that waits for long, and so runs beside the others. */
const inOwnScene = (body: (scene: Scene & { jobs: JobManager }) => Promise<void>) => async (): Promise<void> => {
  const scene = await openScene();
  try {
    await body({ ...scene, jobs: scene.test.jobs });
  } finally {
    await closeScene(scene);
  }
};

beforeEach(async () => {
  ({ test, stranger, client } = await openScene());
  jobs = test.jobs;
});
afterEach(() => closeScene({ test, stranger, client }));

async function hold(rows: string, values: unknown[] = [], holder = stranger): Promise<void> {
  await holder.query('begin');
  await holder.query(`select from jobs.${rows} for update`, values);
}

/** A connection with a transaction, on which something happens before the n-th statement. */
function interrupted(on: pg.Client, at: number, happens: () => Promise<unknown>): QueryExecutor {
  let count = 0;
  return {
    query: async (text: string, values?: unknown[]) => {
      if (++count === at) await happens();
      return (await on.query(text, values)).rows;
    },
  };
}

const complete = async ({ jobs }: TestManager) =>
  jobs.completeJobs(WORKER, await jobs.getJobs(WORKER, { batchSize: 10 }), 1);
/** Long ago, so that retention takes what nothing needs. */
const age = ({ sql }: TestManager) =>
  sql(`
    with bodies as (update jobs.job_bodies set created_at = created_at - interval '2 days'),
    receipts as (delete from jobs.settle_receipts)
    delete from jobs.job_history`);

describe('a heartbeat', () => {
  it('is not renewed, and does not wait, while a transaction holds its row', async () => {
    await registerPool(jobs, WORKER, 30_000);
    await hold('workers');
    expect(await jobs.engine.registry.heartbeat(WORKER)).toMatchObject({ expired: false, held: true });
    await stranger.query('rollback');
    expect(await jobs.engine.registry.heartbeat(WORKER)).toMatchObject({ expired: false, held: false });
  });

  it('that is held for longer than the lease lets the pool begin again, and leaves no session waiting', async () => {
    const pool = createWorkerPool({
      jobs,
      tasks: { t: () => undefined },
      options: { leaseMs: 1_500, keepaliveMs: 200 },
    });
    await pool.start();
    await hold('workers');
    await eventually(async () => (await test.sql('select from jobs.workers where stopped_at is null')).length === 2);
    const { id } = await jobs.addJob('t', 1);
    expect(await jobs.waitForJob(id, { timeoutMs: 10_000 })).toMatchObject({ status: 'completed' });
    expect(
      await test.sql(
        `select query from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`,
      ),
    ).toEqual([]);
    await stranger.query('rollback');
    await pool.stop();
  });
});

describe('a call that needs what a transaction holds', () => {
  it('fails by a typed error, within a caller’s transaction at once', async () => {
    await jobs.registerRateLimit('l', 1, 1_000);
    await jobs.configureQueue('q', { concurrency: 2 });
    await hold('rate_limits');
    await stranger.query('select from jobs.job_queues for update');
    const calls: ((bound: JobManager) => Promise<unknown>)[] = [
      (bound) => bound.pauseQueue('q'),
      (bound) => bound.configureQueue('q', { concurrency: 3 }),
      (bound) => bound.registerRateLimit('l', 2, 1_000),
    ];
    for (const call of calls) {
      await client.query('begin');
      await expect(call(managerWithin(jobs, client))).rejects.toThrow(RowsHeldError);
      await client.query('rollback');
    }
  });

  it('waits for it on no connection: adds with a held key, however many, keep no other add from it', async () => {
    const few = await createJobManager({ connection: { connectionString: test.url, max: 2 }, migrate: false });
    await few.addJob('t', 1, { jobKey: 'held' });
    await hold('job_keys');
    const adds = Promise.all([1, 2, 3, 4].map((n) => few.addJob('t', n, { jobKey: 'held' })));
    await few.addJob('t', 1);
    await stranger.query('rollback');
    expect(await adds).toHaveLength(4);
    await few.close();
  });

  it('leaves the lock_timeout of a caller’s transaction as it was', async () => {
    await client.query(`begin; set local lock_timeout = '7s'`);
    await managerWithin(jobs, client).retryJobs([(await jobs.addJob('t', 1)).id]);
    expect((await client.query('show lock_timeout')).rows).toEqual([{ lock_timeout: '7s' }]);
    await client.query('rollback');
  });

  it('retries no job of several while one is held, and all once it is free', async () => {
    const ids = (await jobs.addJobs([1, 2].map((payload) => ({ task: 't', payload })))).map(({ id }) => id);
    await jobs.permanentlyFailJobs(ids);
    await hold('jobs where id = $1', [ids[0]]);
    const retry = jobs.retryJobs(ids);
    await eventually(
      async () =>
        (await test.sql(`select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`))
          .length,
    );
    await stranger.query('rollback');
    expect((await retry).map(({ status }) => status)).toEqual(['available', 'available']);
  });

  it('does not reschedule a job whose body is held, and reschedules the others', async () => {
    const ids = (await jobs.addJobs([1, 2].map((payload) => ({ task: 't', payload })))).map(({ id }) => id);
    await hold('job_bodies where id = $1', [ids[0]]);
    const changed = jobs.rescheduleJobs(ids, { priority: 7 });
    await eventually(async () => (await jobs.findJob(ids[1]!))?.priority === 7);
    expect((await jobs.findJob(ids[0]!))?.priority).toBe(0);
    await stranger.query('rollback');
    expect((await changed).map(({ priority }) => priority)).toEqual([7, 7]);
  });

  it.concurrent(
    'does not wait in ctx.assertOwned for longer than some seconds',
    inOwnScene(async ({ jobs, stranger, client }) => {
      await jobs.addJob('t', 1);
      const [job] = await jobs.getJobs(WORKER);
      await hold('jobs', [], stranger);
      await client.query('begin');
      await expect(jobs.engine.attempts.assertOwned({ job: job!, workerId: WORKER }, client)).rejects.toThrow(
        JobHeldError,
      );
      await client.query('rollback');
    }),
  );
});

describe('the body of a parent', () => {
  it.concurrent(
    'stays while a child is being added, and after that',
    inOwnScene(async ({ test, jobs, client }) => {
      const parent = await jobs.addJob('t', 1);
      await complete(test);
      await age(test);
      await client.query('begin');
      const child = await jobs.addJob('t', 2, { dependsOn: [parent.id], manager: client });
      await jobs.gcJobHistory();
      await client.query('commit');
      expect(await jobs.findJob(parent.id)).toMatchObject({ status: 'completed' });
      expect(await jobs.findJob(child.id)).toMatchObject({ status: 'available' });
    }),
  );

  it.concurrent(
    'that goes while the child is being added makes the parent unknown: the child is not told that it failed',
    inOwnScene(async ({ test, jobs, client }) => {
      const parent = await jobs.addJob('t', 1);
      await complete(test);
      await age(test);
      // After the first look at the parents.
      const manager = interrupted(client, 2, () => jobs.gcJobHistory());
      await client.query('begin');
      await expect(jobs.addJob('t', 2, { dependsOn: [parent.id], manager })).rejects.toThrow(UnknownParentError);
      await client.query('rollback');
    }),
  );

  it.concurrent(
    'is not forgotten by a collection that looked before the job came back',
    inOwnScene(async ({ test, jobs, client }) => {
      const { id } = await jobs.addJob('t', 1);
      await jobs.cancelJobs([id]);
      await test.sql(`update jobs.job_bodies set created_at = created_at - interval '2 days'`);
      await test.sql(`update jobs.job_history set expires_at = now() - interval '1 day'`);
      await client.query('begin');
      await managerWithin(jobs, client).retryJobs([id]);
      await jobs.gcJobHistory();
      await client.query('commit');
      expect(await jobs.getJobs(WORKER)).toMatchObject([{ id, payload: 1 }]);
    }),
  );
});

describe('a sweep', () => {
  it('goes on where the last one has stopped, whichever process that was', async () => {
    const { id } = await jobs.addJob('t', 1);
    await test.sql(`insert into jobs.job_keys select 'a' || n, $1 from generate_series(1, 2000) n`, [id]);
    await test.sql(`insert into jobs.job_keys values ('z', gen_random_uuid())`);
    const stale = () => test.sql(`select from jobs.job_keys where key = 'z'`);
    await jobs.engine.promoter.sweepNow();
    expect(await stale()).toHaveLength(1);
    const other = await createJobManager({ connection: test.url });
    await other.engine.promoter.sweepNow();
    await other.close();
    expect(await stale()).toEqual([]);
  });
});

describe('a table that a transaction has locked as a whole', () => {
  it.concurrent(
    'keeps a claim by hand from nothing that it has claimed already, and is a typed error where that is nothing',
    inOwnScene(async ({ jobs, stranger }) => {
      await jobs.addJob('t', 'plain', { priority: -1 });
      await jobs.addJob('t', 'limited', { queue: 'q' });
      await stranger.query('begin');
      await stranger.query('lock table jobs.job_queues in access exclusive mode');
      const claimed = await jobs.getJobs(WORKER, { batchSize: 10 });
      expect(claimed.map(({ payload }) => payload)).toEqual(['plain']);
      await expect(jobs.getJobs(WORKER, { batchSize: 10 })).rejects.toThrow(RowsHeldError);
      await stranger.query('rollback');
      expect((await jobs.getJobs(WORKER)).map(({ payload }) => payload)).toEqual(['limited']);
    }),
  );

  it('fails a claim by hand in a transaction that waits no longer, and that the lock has ended, whatever it has claimed already', async () => {
    await jobs.addJob('t', 'plain', { priority: -1 });
    await jobs.addJob('t', 'limited', { queue: 'q' });
    await stranger.query('begin');
    await stranger.query('lock table jobs.job_queues in access exclusive mode');
    await client.query(`begin; set local lock_timeout = '200ms'`);
    await expect(managerWithin(jobs, client).getJobs(WORKER, { batchSize: 10 })).rejects.toThrow(RowsHeldError);
    await client.query('rollback');
    await stranger.query('rollback');
    expect((await jobs.getJobs(WORKER, { batchSize: 10 })).map(({ payload }) => payload)).toEqual(['plain', 'limited']);
  });

  it('delays the end of a claimed job that cannot be read, and holds it no longer', async () => {
    const { id } = await jobs.addJob('t', 'unreadable');
    await jobs.addJob('t', 'readable');
    await test.sql('delete from jobs.job_bodies where id = $1', [id]);
    await stranger.query('begin');
    await stranger.query('lock table jobs.job_history in access exclusive mode');
    expect((await jobs.getJobs(WORKER, { batchSize: 2 })).map(({ payload }) => payload)).toEqual(['readable']);
    await stranger.query('rollback');
    await eventually(
      async () => !(await test.sql('select from jobs.jobs where id = $1 and locked_by is not null', [id])).length,
    );
  });

  it.each(['job_queues', 'job_places', 'rate_limits'])('holds up no plain jobs (%s)', async (table) => {
    await jobs.registerRateLimit('limit', 10, 60_000);
    const ran: unknown[] = [];
    const errors: unknown[] = [];
    const events = new JobEvents();
    events.on('worker.error', ({ error }) => errors.push(error));
    const pool = createWorkerPool({
      jobs,
      events,
      tasks: { t: (payload) => void ran.push(payload) },
      options: { pollIntervalMs: 100 },
    });
    await pool.start();
    try {
      await jobs.addJob('t', 'limited', { queue: 'q', rateLimitKey: 'limit', delayMs: 500 });
      await stranger.query('begin');
      await stranger.query(`lock table jobs.${table} in access exclusive mode`);
      for (let n = 0; n < 20; n++) {
        await jobs.addJob('t', n);
        await eventually(() => ran.length === n + 1);
      }
      expect(ran).not.toContain('limited');
      await stranger.query('rollback');
      await eventually(() => ran.includes('limited'));
      expect(errors).toEqual([]);
    } finally {
      await stranger.query('rollback');
      await pool.stop(0);
    }
  });
});
