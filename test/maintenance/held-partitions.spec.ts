// A nightly dump, or another transaction that reads jobs for an hour, while the garbage is collected.
import { afterEach, beforeEach, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createCollectingEvents,
  type CollectingJobEvents,
  type JobManager,
  PartitionsHeldError,
} from '../../lib/index.js';
import { Maintenance } from '../../lib/worker/maintenance.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager, WORKER } from '../support/manager.js';

const DAY = 86_400_000;
const LIMIT = 60_000;

let test: TestManager;
let jobs: JobManager;
let dump: pg.Client;
let events: CollectingJobEvents;
let duties: Maintenance;

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  events = createCollectingEvents();
  duties = new Maintenance(jobs, events, 20);
  dump = new pg.Client({ connectionString: test.url, application_name: 'nightly dump' });
  await dump.connect();
  // Partitions whose time is over, with an expired record and its job's body.
  await jobs.engine.retention.makePartitions(new Date(Date.now() - 60 * DAY));
  await jobs.addJob('expired', 1);
  await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER), 1);
  await test.sql(`update jobs.job_history set expires_at = now() - interval '29 days'`);
  const id = `(left(jobs.first_id_at(now() - interval '59 days')::text, 13) || substr(id::text, 14))::uuid`;
  await test.sql(`with moved as (update jobs.job_bodies set id = ${id}, created_at = now() - interval '59 days' returning id)
    update jobs.job_history set job_id = (select id from moved)`);
});
afterEach(async () => {
  await duties.stop();
  await dump.end();
  await test.close();
});

/** As pg_dump does: a lock on each table, partitions included, in one transaction. */
const beginDump = async (): Promise<void> => {
  await dump.query('begin isolation level repeatable read');
  await dump.query('lock table jobs.job_bodies, jobs.job_history in access share mode');
};

const overdue = async (): Promise<number> =>
  (
    await test.sql(`
    select from jobs.partitions_of('job_history') where ends_at <= now()
    union all select from jobs.old_body_partitions(20000, null) where droppable`)
  ).length;
const rows = async (): Promise<unknown> =>
  (
    await test.sql(`select (select count(*)::int from jobs.job_history) as records,
      (select count(*)::int from jobs.job_bodies) as bodies`)
  )[0];

it(
  'keeps no expired row: they are deleted one by one',
  async () => {
    expect(await overdue()).toBeGreaterThan(1);
    expect(await rows()).toEqual({ records: 1, bodies: 1 });
    await beginDump();
    expect(await jobs.gcJobHistory()).toBe(1);
    expect(await overdue()).toBeGreaterThan(1);
    expect(await rows()).toEqual({ records: 0, bodies: 0 });
    expect(jobs.engine.retention.held).toEqual(
      expect.arrayContaining(['expired ones of job_history', expect.stringMatching(/^job_bodies_\d{8}_\d\d$/)]),
    );
  },
  LIMIT,
);

it(
  'delays the dropping of partitions until it has ended: the duty tries again by itself',
  async () => {
    await beginDump();
    await duties.collectGarbage();
    expect(await overdue()).toBeGreaterThan(1);
    await dump.query('commit');
    await eventually(async () => (await overdue()) === 0, { timeoutMs: LIMIT });
    await eventually(() => jobs.engine.retention.held.length === 0);
    expect(events.ofType('worker.error').filter(({ error }) => !(error instanceof PartitionsHeldError))).toEqual([]);
  },
  LIMIT,
);

it(
  'is named by one warning when it has lasted for long',
  async () => {
    await beginDump();
    await duties.collectGarbage();
    const [warning] = await eventually(
      () => {
        const found = events.ofType('worker.error');
        return found.length > 0 && found;
      },
      { timeoutMs: LIMIT },
    );
    expect(warning).toMatchObject({ context: 'collecting garbage', workerId: null });
    expect(warning!.error).toBeInstanceOf(PartitionsHeldError);
    expect(warning!.error).toMatchObject({
      code: 'ERR_JOBS_PARTITIONS_HELD',
      partitions: expect.arrayContaining(['expired ones of job_history']),
      holders: expect.arrayContaining([expect.stringMatching(/^pid \d+ \(nightly dump, since \d{4}-.* UTC\)$/)]),
    });
  },
  LIMIT,
);
