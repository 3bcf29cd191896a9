// A server that is there, but refuses: limits, timeouts, conflicts, a standby; and one that crashes.
import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import pg from 'pg';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  DatabaseUnavailableError,
  type CollectingJobEvents,
  type JobManager,
  type WorkerPool,
  type WorkerPoolOptions,
} from '../../lib/index.js';
import { JobLogger } from '../../lib/monitoring/job.logger.js';
import { createTestDatabase, eventually, type TestDatabase } from '../support/database.js';
import { OwnServer } from '../support/own.server.js';
import { WorkerProcess } from '../support/workers.js';

const PATIENCE = { timeoutMs: 60_000 };
const LIMIT = 90_000;

let events: CollectingJobEvents;
const pools: WorkerPool[] = [];
const managers: JobManager[] = [];

const connectTo = async (url: string): Promise<JobManager> => {
  const manager = await createJobManager({ connection: url, retry: { baseDelayMs: 1, jitter: 0 } });
  managers.push(manager);
  return manager;
};

function poolOf(jobs: JobManager, tasks: WorkerPoolOptions['tasks'], options: WorkerPoolOptions['options'] = {}) {
  const pool = createWorkerPool({ jobs, tasks, events, options: { pollIntervalMs: 100, ...options } });
  pools.push(pool);
  return pool;
}

beforeEach(() => {
  events = createCollectingEvents();
});
afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.stop(0)));
  await Promise.all(managers.splice(0).map((manager) => manager.close()));
});

describe('a server that refuses', () => {
  let database: TestDatabase;
  let role: string;
  let jobs: JobManager;
  const sql = (text: string) => database.pool.query(text);
  const terminateAll = () =>
    sql(`select pg_terminate_backend(pid) from pg_stat_activity where usename = '${role}' and pid <> pg_backend_pid()`);

  beforeEach(async () => {
    database = await createTestDatabase();
    role = `r_${new URL(database.url).pathname.slice(1)}`;
    // Superusers are exempt from limits.
    await sql(
      `create role ${role} login; grant create on database ${new URL(database.url).pathname.slice(1)} to ${role}`,
    );
    const url = new URL(database.url);
    url.username = role;
    jobs = await connectTo(url.href);
  });
  afterEach(async () => {
    await Promise.all(pools.splice(0).map((pool) => pool.stop(0)));
    await Promise.all(managers.splice(0).map((manager) => manager.close()));
    await sql(`drop owned by ${role}; drop role ${role}`);
    await database.drop();
  });

  /** Runs a pool, brings on the trouble, and repairs it once the pool has met it. */
  async function survive(harm: string, repair: string, meets: RegExp): Promise<void> {
    const done: unknown[] = [];
    await poolOf(jobs, { count: (n) => void done.push(n) }).start();
    await jobs.addJob('count', 1);
    await eventually(() => done.length === 1);
    await sql(harm);
    await terminateAll();
    const met = () => events.ofType('worker.error').some(({ error }) => meets.test(String((error as Error).message)));
    await eventually(met, PATIENCE);
    await sql(repair);
    await eventually(
      () =>
        jobs.addJob('count', 2).then(
          () => true,
          () => false,
        ),
      PATIENCE,
    );
    await eventually(() => done.includes(2), PATIENCE);
    await eventually(async () => (await jobs.counts()).byStatus.completed === done.length, PATIENCE);
  }

  it(
    'connections (too many for the role) is asked again until there are some',
    async () => {
      await survive(
        `alter role ${role} connection limit 0`,
        `alter role ${role} connection limit -1`,
        /too many connections/,
      );
      expect(events.ofType('database.lost').length).toBeGreaterThan(0);
    },
    LIMIT,
  );

  it(
    'long statements (statement_timeout) is asked again',
    async () => {
      await survive(
        `alter role ${role} set statement_timeout = '1ms';
       create function ${role}_slow() returns trigger language plpgsql as 'begin perform pg_sleep(1); return new; end';
       create trigger slow before insert or update or delete on jobs.jobs for each statement execute function ${role}_slow()`,
        `alter role ${role} reset statement_timeout; drop trigger slow on jobs.jobs; drop function ${role}_slow()`,
        /statement timeout/,
      );
      expect(events.ofType('job.lost')).toEqual([]);
    },
    LIMIT,
  );

  it(
    'writes (a standby, a demoted primary) is a database that is away, and is asked again',
    async () => {
      await survive(
        `alter role ${role} set default_transaction_read_only = on`,
        `alter role ${role} reset default_transaction_read_only`,
        /takes no writes/,
      );
      expect(events.ofType('job.lost')).toEqual([]);
    },
    LIMIT,
  );

  it('an add in a read-only session is refused by a typed error, and not in doubt', async () => {
    await sql(`alter role ${role} set default_transaction_read_only = on`);
    await terminateAll();
    const refusal = await eventually(async () => {
      const error: unknown = await jobs.addJob('count', 1).catch((reason: unknown) => reason);
      return (
        error instanceof DatabaseUnavailableError && /takes no writes/.test(error.message) && !error.inDoubt && error
      );
    });
    expect(refusal).toMatchObject({ code: 'ERR_JOBS_DATABASE_UNAVAILABLE', inDoubt: false });
  });

  it.each(['40001', '40P01'])(
    'by a conflict (%s) is asked again at once, for adds alone and in batches',
    async (state) => {
      await sql(`create sequence public.tries; grant usage on sequence public.tries to ${role};
      create function conflict() returns trigger language plpgsql as $$ begin
        if nextval('public.tries') <= 2 then raise exception 'conflict' using errcode = '${state}'; end if;
        return null;
      end $$;
      create trigger conflict after insert on jobs.job_bodies for each statement execute function conflict()`);
      const tries = async () => Number((await sql('select last_value from public.tries')).rows[0].last_value);
      await jobs.addJob('count', 1);
      expect(await tries()).toBe(3);
      await sql(`select setval('public.tries', 1, false)`);
      await jobs.addJobs([
        { task: 'count', payload: 2, jobKey: 'a' },
        { task: 'count', payload: 3 },
      ]);
      expect((await jobs.counts()).byStatus.available).toBe(3);
      expect(await tries()).toBe(4);
    },
    LIMIT,
  );

  it(
    'settles of many at once, for lack of time, gets them in smaller batches',
    async () => {
      await sql(`create function too_many() returns trigger language plpgsql as $$ begin
        if (select count(*) from gone) > 3 then raise exception 'too many' using errcode = '57014'; end if;
        return null;
      end $$;
      create trigger too_many after delete on jobs.jobs referencing old table as gone
        for each statement execute function too_many()`);
      // What fails is settled by a statement of its own, which goes through while the other one does not.
      const specs = Array.from({ length: 20 }, (_, n) => ({
        task: n % 4 ? 'count' : 'fail',
        payload: n,
        maxAttempts: 1,
      }));
      await jobs.addJobs(specs);
      const fail = (): void => {
        throw new Error('no');
      };
      await poolOf(jobs, { count: () => undefined, fail }, { concurrency: 20 }).start();
      await eventually(() => events.ofType('job.settled').length === 20, PATIENCE);
      expect((await jobs.counts()).byStatus).toMatchObject({ completed: 15, exhausted: 5 });
      expect(events.ofType('worker.error').some(({ context }) => context === 'settling outcomes')).toBe(true);
      expect(events.ofType('job.lost')).toEqual([]);
      expect(events.ofType('job.settled')).toHaveLength(20);
    },
    LIMIT,
  );

  it(
    'says so in the log once, and once that it is over, without a secret',
    async () => {
      const lines: string[] = [];
      const line = (level: string) => (message: string) => void lines.push(`${level} ${message}`);
      new JobLogger({ error: line('error'), warn: line('warn'), log: line('log'), debug: () => undefined }).subscribe(
        events,
      );
      await survive(
        `alter role ${role} connection limit 0`,
        `alter role ${role} connection limit -1`,
        /too many connections/,
      );
      await eventually(() => lines.some((text) => text.includes('again after')), PATIENCE);
      expect(lines.filter((text) => text.startsWith('error'))).toHaveLength(1);
      expect(lines.filter((text) => text.includes('again after'))).toHaveLength(1);
      expect(lines.join()).not.toContain('postgres:');
    },
    LIMIT,
  );

  it(
    'a heartbeat’s thread that dies is replaced, and the lease holds',
    async () => {
      const pool = poolOf(jobs, { count: () => undefined }, { keepaliveMs: 100, leaseMs: 1_000 });
      await pool.start();
      type Thread = { worker: { terminate(): Promise<unknown> } };
      const { heartbeat } = (pool as unknown as { engine: { heartbeat: { thread: Thread | null } } }).engine;
      const first = heartbeat.thread!;
      await first.worker.terminate();
      await eventually(() => heartbeat.thread && heartbeat.thread !== first, PATIENCE);
      const beatAt = async () => (await jobs.workers())[0]!.heartbeatAt.getTime();
      const before = await beatAt();
      await eventually(async () => (await beatAt()) > before + 1_500, PATIENCE);
      expect(events.ofType('worker.error').map(({ error }) => String(error))).toEqual([
        'Error: The thread of the heartbeat has ended.',
      ]);
    },
    LIMIT,
  );
});

describe('the log', () => {
  it('does not repeat itself while the database stays away, however long', () => {
    const errors: string[] = [];
    const warnings: string[] = [];
    const nothing = (): void => undefined;
    const sink = { error: (text: string) => errors.push(text), warn: (text: string) => warnings.push(text) };
    new JobLogger({ ...sink, log: nothing, debug: nothing } as never).subscribe(events);
    const error = new DatabaseUnavailableError('gone');
    const clock = jest.spyOn(Date, 'now');
    try {
      events.emit('database.lost', 'worker-1', { error });
      clock.mockReturnValue(Date.now() + 3_600_000);
      events.emit('worker.error', 'worker-1', { error, context: 'claiming jobs' });
      expect(errors).toHaveLength(1);
      events.emit('database.back', 'worker-1', { downMs: 3_600_000, failures: 9 });
      expect(warnings).toEqual([
        'The database answers worker worker-1 again after 3600.0 s; 9 statements failed meanwhile',
      ]);
      events.emit('worker.error', 'worker-1', { error, context: 'claiming jobs' });
      expect(errors).toHaveLength(2);
    } finally {
      clock.mockRestore();
    }
  });
});

describe('a server that crashes under load and comes back', () => {
  let server: OwnServer;
  let worker: WorkerProcess | null = null;
  beforeEach(async () => {
    server = await OwnServer.start();
  }, LIMIT);
  afterEach(async () => {
    await worker?.end();
    await Promise.all(pools.splice(0).map((pool) => pool.stop(0)));
    await Promise.all(managers.splice(0).map((manager) => manager.close()));
    await server.remove();
  }, LIMIT);

  it('finds all acknowledged jobs run, each transactional effect once, and the worker’s process alive', async () => {
    const jobs = await connectTo(server.url);
    const query = async (text: string): Promise<Record<string, unknown>[]> => {
      const client = new pg.Client(server.url);
      client.on('error', () => undefined);
      await client.connect();
      try {
        return (await client.query<Record<string, unknown>>(text)).rows;
      } finally {
        await client.end();
      }
    };
    await query('create table effects (n integer not null, worker text not null)');
    worker = await WorkerProcess.start(server.url, { pollIntervalMs: 100, leaseMs: 5_000, keepaliveMs: 500 });
    const acknowledged: number[] = [];
    const doubtful: number[] = [];
    let done = false;
    const adding = (async () => {
      for (let n = 0; !done; n++) {
        const options = { maxAttempts: 1_000 };
        await jobs.addJob('effect', n, options).then(
          () => acknowledged.push(n),
          (error: unknown) => {
            expect(error).toBeInstanceOf(DatabaseUnavailableError);
            doubtful.push(n);
          },
        );
      }
    })();
    for (let crash = 1; crash <= 2; crash++) {
      await eventually(
        async () => Number((await query('select count(*) as n from effects'))[0]!.n) >= crash * 40,
        PATIENCE,
      );
      await server.crash();
      await server.startAgain();
    }
    await eventually(async () => Number((await query('select count(*) as n from effects'))[0]!.n) >= 120, PATIENCE);
    done = true;
    await adding;
    const effects = async () => (await query('select n from effects order by n')).map(({ n }) => n as number);
    await eventually(async () => {
      const seen = new Set(await effects());
      return acknowledged.every((n) => seen.has(n));
    }, PATIENCE);
    const seen = await effects();
    expect(seen.length).toBe(new Set(seen).size);
    const known = new Set([...acknowledged, ...doubtful]);
    expect(seen.filter((n) => !known.has(n))).toEqual([]);
    expect(worker.alive).toBe(true);
    await eventually(async () => {
      const { byStatus } = await jobs.counts();
      return byStatus.running === 0 && byStatus.available === 0;
    }, PATIENCE);
  }, 180_000);
});
