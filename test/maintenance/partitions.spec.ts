// Retention by partitions: what is made, what is dropped, what survives, and what waits for what. Time is moved by
// giving jobs the ids of other days and by collecting at another moment.
import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createJobManager,
  createWorkerPool,
  JobEvents,
  type JobManager,
  JobManager as JobManagerClass,
  type JobManagerOptions,
  JobsMigrator,
  JobsModule,
} from '../../lib/index.js';
import { applicationsOnOneDatabase } from '../support/app.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager, WORKER } from '../support/manager.js';

const HOUR = 3_600_000;
const DAY = 24 * HOUR;

let test: TestManager;
let jobs: JobManager;

const open = async (options: JobManagerOptions = {}): Promise<void> => {
  test = await createTestManager(options);
  jobs = test.jobs;
};
beforeEach(() => open());
afterEach(() => test.close());

const daysFromNow = (days: number): Date => new Date(Date.now() + days * DAY);

/** Names of partitions, the default left out. */
const partitionsOf = async (table: string): Promise<string[]> =>
  (await test.sql(`select name from jobs.partitions_of($1) where ends_at is not null`, [table])).map(
    ({ name }) => name as string,
  );

/** Where the rows of a table are. */
const placesOf = async (table: string): Promise<string[]> =>
  (await test.sql(`select distinct tableoid::regclass::text as place from jobs.${table}`)).map(({ place }) =>
    (place as string).replace('jobs.', ''),
  );

/** Partitions of bodies, one for each day, from so many days ago to tomorrow. */
async function partitionsOfTheLast(days: number): Promise<void> {
  for (let made = 1; made;) {
    made = (
      await test.sql(
        `select made from jobs.make_partition('job_bodies', 0, $1, $2, 1e9::bigint, now() - $3 * interval '1 ms')`,
        [(days + 1) * DAY, DAY, days * DAY],
      )
    ).length;
  }
}

/** Gives all jobs, or those of one task, the ids that they would have had so many days ago. */
async function moveIds(days: number, task = '%'): Promise<void> {
  const moved = (column: string): string =>
    `(left(jobs.first_id_at(jobs.time_of_id(${column}) - $1 * interval '1 ms')::text, 13) || substr(${column}::text, 14))::uuid`;
  const ids = (await test.sql(`select id from jobs.job_bodies where task like $1`, [task])).map(({ id }) => id);
  for (const [table, column] of [
    ['jobs', 'id'],
    ['job_history', 'job_id'],
    ['job_steps', 'job_id'],
    ['job_logs', 'job_id'],
  ]) {
    const set = `update jobs.${table} set ${column} = ${moved(column!)} where ${column} = any($2::uuid[])`;
    await test.sql(set, [days * DAY, ids]);
  }
  await test.sql(
    `update jobs.settle_receipts set job_ids = array(
       select case when id = any($2::uuid[]) then ${moved('id')} else id end from unnest(job_ids) as id)`,
    [days * DAY, ids],
  );
  await test.sql(
    `update jobs.job_bodies set id = ${moved('id')}, created_at = created_at - $1 * interval '1 ms'
     where id = any($2::uuid[])`,
    [days * DAY, ids],
  );
}

const idsOf = async (task: string): Promise<string[]> =>
  (await test.sql(`select id from jobs.job_bodies where task = $1 order by id`, [task])).map(({ id }) => id as string);
const idOf = async (task: string): Promise<string> => (await idsOf(task))[0]!;

const complete = async (task: string): Promise<void> => {
  await jobs.addJob(task, 1);
  await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER, { taskIdentifiers: [task] }), 1);
};

/** A transaction that has added a job and goes on. */
async function openTransaction(): Promise<{ end: () => Promise<void> }> {
  const client = new pg.Client(test.url);
  await client.connect();
  await client.query('begin');
  await jobs.addJob('in a long transaction', 1, { manager: client });
  return {
    end: async () => {
      await client.query('commit');
      await client.end();
    },
  };
}

const waitsForALock = async (statement: string): Promise<number> =>
  (
    await test.sql(
      `select pid from pg_stat_activity where wait_event_type = 'Lock' and query like $1 and datname = current_database()`,
      [`%${statement}%`],
    )
  )[0]?.pid as number;

describe('partitions', () => {
  it('are made ahead: when their time has come, new rows are in them and the defaults stay empty', async () => {
    await jobs.engine.retention.collect(daysFromNow(-1));
    await complete('x');
    const partitions = [...(await partitionsOf('job_bodies')), ...(await partitionsOf('job_history'))];
    expect([...(await placesOf('job_bodies')), ...(await placesOf('job_history'))]).toEqual([
      expect.stringMatching(/^job_bodies_\d{8}_\d\d$/),
      expect.stringMatching(/^job_history_\d{8}_\d\d$/),
    ]);
    await jobs.gcJobHistory();
    expect(await partitionsOf('job_bodies')).toEqual(expect.arrayContaining([partitions[0]]));
    expect(await jobs.findJob(await idOf('x'))).toMatchObject({ status: 'completed' });
  });

  it.each([
    ['all', 30],
    ['all', 365],
    ['all', 0.01],
    ['none', 30],
  ] as const)('are few, however long it goes on (keep: %s, %d days)', async (keep, days) => {
    const manager = await createJobManager({ connection: test.url, history: { keep, retentionMs: days * DAY } });
    const step = Math.max(1, days / 30);
    let [bodies, history] = [0, 0];
    for (let night = 0; night < 100; night++) {
      await manager.engine.retention.collect(daysFromNow(night * step));
      bodies = Math.max(bodies, (await partitionsOf('job_bodies')).length);
      history = Math.max(history, (await partitionsOf('job_history')).length);
    }
    await manager.close();
    expect(bodies).toBeLessThanOrEqual(6);
    expect(history).toBeLessThanOrEqual(10);
    expect(history).toBeGreaterThan(1);
  });

  it('adjoin without a gap or a narrow one, however often they are made and whatever the retention becomes', async () => {
    const managers = await Promise.all(
      [30, 7, 90].map((days) => createJobManager({ connection: test.url, history: { retentionMs: days * DAY } })),
    );
    for (const at of [0, 0.01, 0.05, 0.1, 1, 2, 2.5, 9]) {
      for (const manager of managers) await manager.engine.retention.makePartitions(daysFromNow(at));
    }
    await Promise.all(managers.map((manager) => manager.close()));
    const rows = await test.sql(`
      select starts_at, ends_at - starts_at >= interval '1 day' as wide,
        lag(ends_at) over (order by starts_at) <= starts_at as apart
      from jobs.partitions_of('job_bodies') where ends_at is not null`);
    expect(rows.length).toBeGreaterThan(1);
    expect(rows.map(({ wide, apart }) => [wide as boolean, apart !== false])).toEqual(rows.map(() => [true, true]));
  });

  it('that come late make no call fail: rows go to the defaults and expire there', async () => {
    await complete('x');
    const { id } = await jobs.addJob('cancelled', 1);
    await jobs.cancelJobs([id]);
    expect(await placesOf('job_bodies')).toEqual(['job_bodies_default']);
    await test.sql(`update jobs.job_bodies set created_at = now() - interval '2 h'`);
    await test.sql(`update jobs.job_history set expires_at = now() - interval '1 s'`);
    expect(await jobs.gcJobHistory()).toBe(2);
    expect([await placesOf('job_bodies'), await placesOf('job_history')]).toEqual([[], []]);
    expect(await partitionsOf('job_bodies')).not.toEqual([]);
  });

  it('are as few as ever after a pause of two years, or once a clock was two years ahead', async () => {
    const count = async (): Promise<number> =>
      (await partitionsOf('job_bodies')).length + (await partitionsOf('job_history')).length;
    await jobs.gcJobHistory();
    const usual = await count();
    await jobs.engine.retention.collect(daysFromNow(730));
    expect(await count()).toBeLessThanOrEqual(2 * usual);
    await jobs.engine.retention.collect();
    await jobs.gcJobHistory();
    expect(await count()).toBeLessThanOrEqual(3 * usual);
    await complete('after that');
    expect(await jobs.jobHistory(await idOf('after that'))).toMatchObject([{ status: 'completed' }]);
  });

  it('take along what clocks that are ahead have put into the default', async () => {
    await jobs.addJob('early bird', 1);
    await moveIds(-0.5);
    const id = await idOf('early bird');
    await jobs.gcJobHistory();
    expect(await placesOf('job_bodies')).toEqual([(await partitionsOf('job_bodies'))[0]]);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'available' });
    expect(await jobs.getJobs(WORKER)).toMatchObject([{ id, payload: 1 }]);
  });

  it('are not made while the default is too large to be read under a lock', async () => {
    await jobs.addJobs(Array.from({ length: 200 }, (_, n) => ({ task: 'x', payload: n })));
    const made = await test.sql(`select * from jobs.make_partition('job_bodies', 0, $1, $1, 8192, null)`, [DAY]);
    expect(made).toEqual([{ made: null, hindrance: expect.stringMatching(/^job_bodies_default holds \d+ kB/) }]);
    expect(await partitionsOf('job_bodies')).toEqual([]);
  });

  it('are analysed, with their parents, once some were made or dropped', async () => {
    const analysed = async (): Promise<string[]> =>
      (
        await test.sql(`select relname from pg_stat_user_tables
        where schemaname = 'jobs' and last_analyze is not null order by 1`)
      ).map(({ relname }) => relname as string);
    expect(await analysed()).toEqual([]);
    await jobs.gcJobHistory();
    const partitions = [...(await partitionsOf('job_bodies')), ...(await partitionsOf('job_history'))];
    await eventually(async () => {
      expect(await analysed()).toEqual(expect.arrayContaining(['job_bodies', 'job_history', ...partitions]));
      return true;
    });
  });

  it('have the owner, the indexes and the constraints of their parents', async () => {
    await jobs.gcJobHistory();
    const [row] = await test.sql(`
      select count(distinct c.relowner)::integer as owners, count(distinct (
        select count(*) from pg_index i where i.indrelid = c.oid
      ))::integer as numbers_of_indexes, count(distinct (
        select count(*) from pg_constraint k where k.conrelid = c.oid and k.contype in ('p', 'c')
      ))::integer as numbers_of_constraints
      from pg_class c where c.oid = 'jobs.job_bodies'::regclass
        or c.oid in (select inhrelid from pg_inherits where inhparent = 'jobs.job_bodies'::regclass)`);
    expect(row).toEqual({ owners: 1, numbers_of_indexes: 1, numbers_of_constraints: 1 });
  });
});

describe('bodies', () => {
  it('go with their partition; what is live, remembered or just completed moves, with what it has written', async () => {
    await complete('in the history');
    await complete('forgotten');
    await test.sql(
      `delete from jobs.job_history h using jobs.job_bodies b where b.id = h.job_id and b.task = 'forgotten'`,
    );
    await jobs.addJob('live', { text: 'payload' }, { delayMs: DAY, groupId: 'g' });
    const terse = await createJobManager({ connection: test.url, history: { keep: 'none' } });
    await terse.addJob('receipt', 1);
    await terse.completeJobs(WORKER, await terse.getJobs(WORKER, { taskIdentifiers: ['receipt'] }), 1);
    await terse.close();
    await test.sql(`insert into jobs.job_steps select id, 'step', 1, 1, '1' from jobs.job_bodies`);
    await test.sql(`insert into jobs.job_logs (job_id, fence, message) select id, 1, 'said' from jobs.job_bodies`);
    await partitionsOfTheLast(10);
    await moveIds(8);
    const tasks = ['in the history', 'live', 'receipt'];
    const [remembered, live, receipt] = await Promise.all(tasks.map(idOf));
    const forgotten = await idOf('forgotten');
    expect(await placesOf('job_bodies')).toEqual([expect.stringMatching(/_\d{8}_/)]);
    const before = (await partitionsOf('job_bodies')).length;
    await jobs.gcJobHistory();
    expect((await partitionsOf('job_bodies')).length).toBeLessThan(before);
    expect(await placesOf('job_bodies')).toEqual(['job_bodies_default']);
    expect(await jobs.findJob(forgotten)).toBeNull();
    expect(await jobs.findJob(live!)).toMatchObject({
      status: 'scheduled',
      payload: { text: 'payload' },
      groupId: 'g',
    });
    expect(await jobs.findJob(receipt!)).toMatchObject({ status: 'completed' });
    expect(await jobs.jobHistory(remembered!)).toMatchObject([{ task: 'in the history', status: 'completed' }]);
    const left = await test.sql(`select job_id from jobs.job_steps union all select job_id from jobs.job_logs`);
    expect(new Set(left.map(({ job_id }) => job_id as string))).toEqual(new Set([remembered, live, receipt]));
    await jobs.rescheduleJobs([live!], { runAt: new Date() });
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER), 1);
    expect(await jobs.findJob(live!)).toMatchObject({ status: 'completed' });
  });

  it('of jobs that the history remembers stay, however many records others have', async () => {
    await jobs.addJobs(Array.from({ length: 20 }, () => ({ task: 'remembered', payload: 1 })));
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER, { batchSize: 20 }), 1);
    await partitionsOfTheLast(10);
    await moveIds(8);
    const ids = await idsOf('remembered');
    // As many as a snooze every two minutes leaves in four weeks: more than may be asked for of a partition.
    await test.sql(
      `insert into jobs.job_history (job_id, fence, expires_at, status, attempt)
       select $1, -n, clock_timestamp() + interval '60 days', 'snoozed', 1 from generate_series(1, 20001) n`,
      [ids[0]],
    );
    await test.sql(`insert into jobs.job_logs (job_id, fence, message) select id, 1, 'said' from jobs.job_bodies`);
    await test.sql('analyze jobs.job_history');
    const before = (await partitionsOf('job_bodies')).length;
    await jobs.gcJobHistory();
    expect((await partitionsOf('job_bodies')).length).toBeLessThan(before);
    expect(await idsOf('remembered')).toEqual(ids);
    expect(await test.sql('select distinct job_id from jobs.job_logs')).toHaveLength(20);
    expect(await jobs.jobHistory(ids[19]!)).toMatchObject([{ task: 'remembered', status: 'completed' }]);
  });

  it('of jobs that have just ended without a record stay, however many receipts others have', async () => {
    await test.close();
    await open({ history: { keep: 'none' } });
    await jobs.addJobs(Array.from({ length: 20 }, () => ({ task: 'ended', payload: 1 })));
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER, { batchSize: 20 }), 1);
    await partitionsOfTheLast(10);
    await moveIds(8);
    const ids = await idsOf('ended');
    await test.sql(
      `
      with all_ended as (delete from jobs.settle_receipts returning job_ids, fences)
      insert into jobs.settle_receipts (job_ids, fences)
      select array[$1::uuid], array[1] from generate_series(1, 20001) union all select job_ids, fences from all_ended`,
      [ids[0]],
    );
    await test.sql('analyze jobs.settle_receipts');
    const before = (await partitionsOf('job_bodies')).length;
    await jobs.gcJobHistory();
    expect((await partitionsOf('job_bodies')).length).toBeLessThan(before);
    expect(await idsOf('ended')).toEqual(ids);
  });

  it('stay in their partition where too many of its jobs are still asked for', async () => {
    await test.close();
    await open({ history: { keep: 'none' } });
    await complete('done');
    await jobs.addJobs(Array.from({ length: 20 }, () => ({ task: 'live', payload: 1, delayMs: DAY })));
    await partitionsOfTheLast(3);
    await moveIds(2);
    await test.sql('delete from jobs.settle_receipts');
    const [partition] = await test.sql(
      'select name, droppable from jobs.old_body_partitions(19, null) where not droppable',
    );
    expect(partition).toMatchObject({ droppable: false });
    expect(await test.sql('select jobs.drop_body_partition($1, 19, null) as moved', [partition!.name])).toEqual([
      { moved: null },
    ]);
    expect(await idsOf('live')).toHaveLength(20);
    expect(await test.sql('select jobs.drop_body_partition($1, 20, null) as moved', [partition!.name])).toEqual([
      { moved: 20 },
    ]);
    expect([(await idsOf('live')).length, await idsOf('done')]).toEqual([20, []]);
  });

  it('go one by one from a partition that cannot be dropped, where not all jobs leave records', async () => {
    await test.close();
    await open({ history: { keep: 'failures' } });
    await complete('done');
    await partitionsOfTheLast(3);
    await moveIds(2);
    await test.sql('delete from jobs.settle_receipts');
    await test.sql(`
      with made as (
        insert into jobs.job_bodies (id, run_at, priority, max_attempts, task, payload)
        select (left(b.id::text, 13) || '-7fff-9000-' || lpad(to_hex(n), 12, '0'))::uuid, now(), 0, 1, 'live', '1'
        from jobs.job_bodies b, generate_series(1, 20001) n returning *
      )
      insert into jobs.jobs (id, run_at, priority, max_attempts, task) select id, run_at, 0, 1, task from made`);
    const before = await placesOf('job_bodies');
    await jobs.gcJobHistory();
    expect(await placesOf('job_bodies')).toEqual(before);
    expect(before).toEqual([expect.stringMatching(/_\d{8}_/)]);
    expect([await idsOf('done'), (await idsOf('live')).length]).toEqual([[], 20_001]);
    await test.sql('delete from jobs.jobs where id = (select max(id::text)::uuid from jobs.jobs)');
    await jobs.gcJobHistory();
    expect([await placesOf('job_bodies'), (await idsOf('live')).length]).toEqual([['job_bodies_default'], 20_000]);
  });

  it('with ids far in the past or the future are found, run and expire', async () => {
    await jobs.gcJobHistory();
    for (const [task, days] of [
      ['past', 20_000],
      ['last year', 365],
      ['future', -40_000],
    ] as const) {
      await complete(task);
      await jobs.addJob(`live ${task}`, 1);
      await moveIds(days, `%${task}`);
      await test.sql(`update jobs.job_bodies set created_at = now() - interval '2 h'`);
    }
    expect(await placesOf('job_bodies')).toEqual(['job_bodies_default']);
    await jobs.gcJobHistory();
    expect(await jobs.findJob(await idOf('future'))).toMatchObject({ status: 'completed' });
    await test.sql(`update jobs.job_history set expires_at = now()`);
    await jobs.gcJobHistory();
    for (const task of ['past', 'last year', 'future']) expect(await idsOf(task)).toEqual([]);
    expect((await jobs.getJobs(WORKER, { batchSize: 10 })).map(({ task }) => task).toSorted()).toEqual([
      'live future',
      'live last year',
      'live past',
    ]);
  });
});

describe('the history', () => {
  /** A partition of records that expire in two days to seven. */
  beforeEach(() => test.jobs.engine.retention.makePartitions(daysFromNow(-30)));

  it('goes with its partition, and with it bodies of cancelled jobs, which would count as completed', async () => {
    await complete('completed');
    const { id: cancelled } = await jobs.addJob('cancelled', 1);
    const { id: again } = await jobs.addJob('cancelled and retried', 1);
    await jobs.cancelJobs([cancelled, again]);
    await test.sql(`update jobs.job_bodies set created_at = created_at - interval '30 days'`);
    await test.sql(`update jobs.job_history set expires_at = now() + interval '12 hours'`);
    await jobs.retryJobs([again]);
    expect(await placesOf('job_history')).toEqual([(await partitionsOf('job_history'))[0]]);
    await jobs.gcJobHistory();
    expect(await jobs.findJob(cancelled)).toMatchObject({ status: 'cancelled' });
    await jobs.engine.retention.collect(daysFromNow(10));
    expect(await placesOf('job_history')).toEqual([]);
    expect(await jobs.findJob(cancelled)).toBeNull();
    expect(await jobs.findJob(again)).toMatchObject({ status: 'available' });
    const completed = await idsOf('completed');
    for (const id of completed) expect(await jobs.findJob(id)).toMatchObject({ status: 'completed' });
  });

  it('keeps records with a longer time of their own', async () => {
    await complete('short');
    await test.sql(`update jobs.job_history set expires_at = now() + interval '12 hours'`);
    await complete('long');
    await jobs.engine.retention.collect(daysFromNow(10));
    expect((await jobs.listHistory()).items.map(({ task }) => task)).toEqual(['long']);
    await jobs.gcJobHistory();
    expect((await jobs.listHistory()).items.map(({ task }) => task)).toEqual(['long']);
  });
});

describe('many at once', () => {
  it('processes that collect at the same moment neither fail nor do anything twice', async () => {
    await partitionsOfTheLast(10);
    await complete('kept');
    await moveIds(8);
    const managers = await Promise.all(Array.from({ length: 5 }, () => createJobManager({ connection: test.url })));
    await Promise.all(managers.map((manager) => manager.gcJobHistory()));
    await managers[0]!.gcJobHistory();
    const alone = await partitionsOf('job_bodies');
    await managers[1]!.gcJobHistory();
    await Promise.all(managers.map((manager) => manager.close()));
    expect(await partitionsOf('job_bodies')).toEqual(alone);
    expect(await test.sql(`select from jobs.old_body_partitions(20000, null)`)).toEqual([]);
    expect(await idsOf('kept')).toHaveLength(1);
    expect(await jobs.findJob(await idOf('kept'))).toMatchObject({ status: 'completed' });
  });

  it('a long transaction delays a drop, and no other work meanwhile', async () => {
    await partitionsOfTheLast(10);
    const before = await partitionsOf('job_bodies');
    const { end } = await openTransaction();
    const collection = jobs.gcJobHistory();
    await eventually(() => waitsForALock('drop_body_partition'));
    for (let round = 0; round < 20; round++) await complete('beside it');
    expect(await partitionsOf('job_bodies')).toEqual(expect.arrayContaining(before));
    await end();
    await collection;
    expect(await partitionsOf('job_bodies')).not.toEqual(expect.arrayContaining([before[0]]));
    expect(await idsOf('in a long transaction')).toHaveLength(1);
    expect(await idsOf('beside it')).toHaveLength(20);
  });

  it.each(['make_partition', 'drop_body_partition'])(
    'a process that dies in %s leaves nothing half-done',
    async (step) => {
      await partitionsOfTheLast(5);
      await jobs.addJob('live', 1);
      await moveIds(3);
      const id = await idOf('live');
      const reader = new pg.Client(test.url);
      await reader.connect();
      // Any reader holds up both, because they lock the default.
      await reader.query('begin; select from jobs.job_bodies');
      const mortal = await createJobManager({ connection: test.url });
      const before = await partitionsOf('job_bodies');
      const death =
        step === 'make_partition' ? mortal.retention.makePartitions(daysFromNow(20)) : mortal.gcJobHistory();
      const outcome = death.catch((error: unknown) => error);
      await eventually(async () => {
        const pid = await waitsForALock(step);
        if (!pid) return false;
        return (await test.sql('select pg_terminate_backend($1) as done', [pid]))[0]!.done as boolean;
      });
      expect(await outcome).toBeInstanceOf(Error);
      expect(await partitionsOf('job_bodies')).toEqual(before);
      const strays = await test.sql(`select relname from pg_class
      where relname like 'job\\_bodies\\_2%' and relkind = 'r' and not relispartition`);
      expect(strays).toEqual([]);
      await reader.query('commit');
      await reader.end();
      await mortal.close();
      await jobs.gcJobHistory();
      await jobs.engine.retention.makePartitions(daysFromNow(20));
      expect(await placesOf('job_bodies')).toEqual(['job_bodies_default']);
      expect(await jobs.findJob(id)).toMatchObject({ status: 'available' });
    },
  );

  it('jobs are found and their history too at every moment of a move', async () => {
    await partitionsOfTheLast(10);
    await complete('moved');
    await jobs.addJob('moved', 2);
    await moveIds(9);
    const ids = await idsOf('moved');
    let over = false;
    const collection = jobs.gcJobHistory().finally(() => (over = true));
    const missing: unknown[] = [];
    let looks = 0;
    while (!over) {
      const found = await Promise.all(ids.map((id) => jobs.findJob(id)));
      const records = (await Promise.all(ids.map((id) => jobs.jobHistory(id)))).flat();
      if (found.includes(null) || records.length !== 1 || records[0]!.task !== 'moved') missing.push([found, records]);
      looks++;
    }
    await collection;
    expect(looks).toBeGreaterThan(1);
    expect(missing).toEqual([]);
    expect(await placesOf('job_bodies')).toEqual(['job_bodies_default']);
  });

  it('jobs are added, claimed and settled while partitions come and go, and none is lost', async () => {
    const events = new JobEvents();
    const errors: unknown[] = [];
    const ran = new Map<number, number>();
    for (const type of ['worker.error', 'job.lost', 'job.failed'] as const) {
      events.on(type, (event) => errors.push(event));
    }
    const pool = createWorkerPool({
      jobs,
      events,
      tasks: { x: (n) => void ran.set(n as number, (ran.get(n as number) ?? 0) + 1) },
      options: { concurrency: 20 },
    });
    await pool.start();
    const total = 6_000;
    let over = false;
    const adding = (async () => {
      for (let n = 0; n < total; n += 20) {
        await jobs.addJobs(Array.from({ length: 20 }, (_, k) => ({ task: 'x', payload: n + k })));
      }
    })();
    const maintainer = await createJobManager({ connection: test.url });
    let nights = 0;
    const maintaining = (async () => {
      // Each night makes and drops some. No job of this spec is in what is dropped, or all of its jobs would move.
      while (!over) await maintainer.retention.collect(daysFromNow(-400 + nights++));
    })();
    await adding;
    await eventually(() => ran.size === total, { timeoutMs: 60_000 });
    over = true;
    await maintaining;
    await pool.stop();
    await maintainer.close();
    expect(nights).toBeGreaterThan(3);
    expect(errors).toEqual([]);
    expect([...ran.values()].every((times) => times === 1)).toBe(true);
    expect(await test.sql('select from jobs.jobs')).toEqual([]);
    expect(await test.sql('select from jobs.job_history')).toHaveLength(total);
    expect(await test.sql('select from jobs.job_bodies')).toHaveLength(total);
  }, 90_000);
});

describe('a role that may not create tables', () => {
  it('deletes rows, from partitions that another role has made too, and says so once, at the debug level', async () => {
    const said: string[] = [];
    const role = `partitions_${randomBytes(4).toString('hex')}`;
    const migrator = new JobsMigrator({ connection: test.url });
    await test.sql(`create role ${role} login`);
    await migrator.grant('worker', role);
    const url = new URL(test.url);
    url.username = role;
    const applications = await applicationsOnOneDatabase();
    const application = await applications.start({
      imports: [JobsModule.forRoot({ connection: url.href, worker: { autoStart: false } })],
    });
    const weak = application.get(JobManagerClass);
    await jobs.engine.retention.makePartitions(daysFromNow(-40));
    await partitionsOfTheLast(10);
    for (const task of ['old', 'older']) await complete(task);
    await test.sql(`update jobs.job_history set expires_at = now() - interval '7 days'`);
    await complete('kept');
    await moveIds(9, 'old');
    await moveIds(400, 'older');
    const places = [...(await placesOf('job_bodies')), ...(await placesOf('job_history'))].toSorted();
    expect(places).toEqual([
      ...[1, 2].map(() => expect.stringMatching(/^job_bodies_\d{8}_/)),
      'job_bodies_default',
      expect.stringMatching(/^job_history_\d{8}_/),
      'job_history_default',
    ]);
    expect(await weak.gcJobHistory()).toBe(2);
    expect(await weak.gcJobHistory()).toBe(0);
    expect([await idsOf('old'), await idsOf('older'), (await idsOf('kept')).length]).toEqual([[], [], 1]);
    said.push(...applications.logger.of('debug').filter((line) => line.includes('partitions')));
    await applications.close();
    await applications.drop();
    await migrator.close();
    await test.sql(`drop owned by ${role}`);
    await test.sql(`drop role ${role}`);
    expect(said).toEqual([expect.stringMatching(/^This role may not make or drop partitions/)]);
  });
});
