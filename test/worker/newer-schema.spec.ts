import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  JobsMigrator,
  SchemaTooNewError,
  type CollectingJobEvents,
  type JobManager,
  type PlainTask,
  type WorkerPool,
} from '../../lib/index.js';
import { Maintenance } from '../../lib/worker/maintenance.js';
import { SCHEMA_VERSION } from '../../lib/storage/schema.version.js';
import { eventually } from '../support/database.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;
let events: CollectingJobEvents;
const closing: (() => Promise<unknown>)[] = [];

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  events = createCollectingEvents();
});
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
  await test.close();
});

function makePool(tasks: Record<string, PlainTask>, manager = jobs): WorkerPool {
  const pool = createWorkerPool({ jobs: manager, tasks, events, options: { keepaliveMs: 100, pollIntervalMs: 50 } });
  closing.push(() => pool.forceStop());
  return pool;
}

/** What a newer release leaves behind; `compatibleFrom`: the oldest version that it works beside. */
const migrateToNext = (compatibleFrom: number | null): Promise<unknown> =>
  test.sql(`insert into jobs.migrations (version, name, compatible_from) values ($1, 'future', $2)`, [
    SCHEMA_VERSION + 1,
    compatibleFrom,
  ]);

const status = async (id: string): Promise<string | undefined> => (await jobs.findJob(id))?.status;

/** A connection that no thread can have. */
async function withoutThread(): Promise<JobManager> {
  const { hostname, port, pathname, username, password } = new URL(test.url);
  const settings = { host: hostname, port: Number(port), database: pathname.slice(1), user: username };
  const manager = await createJobManager({ connection: { ...settings, password: () => password } });
  closing.push(() => manager.close());
  return manager;
}

describe('a pool under whose feet a newer release migrates the schema', () => {
  it.each([
    ['by its thread', () => Promise.resolve(jobs)],
    ['by its main loop', withoutThread],
  ])('notices (heartbeat %s), claims no more, lets what runs settle, says so and ends', async (_, manager) => {
    let finish!: () => void;
    const finished = new Promise<void>((resolve) => (finish = resolve));
    const pool = makePool({ slow: () => finished, quick: () => undefined }, await manager());
    await pool.start();
    const { id: running } = await jobs.addJob('slow', 1);
    await eventually(async () => (await status(running)) === 'running');

    await migrateToNext(null);
    await eventually(() => events.ofType('worker.error').some(({ error }) => error instanceof SchemaTooNewError));
    const { id: waiting } = await jobs.addJob('quick', 2);
    await expect(pool.queue.takeJob(60_000)).resolves.toBeNull();
    expect(pool.running).toBe(true);
    finish();
    await pool.join();
    expect([await status(running), await status(waiting)]).toEqual(['completed', 'available']);
    expect(events.ofType('worker.error').filter(({ error }) => error instanceof SchemaTooNewError)).toHaveLength(1);
    expect(await jobs.workers()).toEqual([]);
  });

  it('has a manager that claims nothing by hand either, and maintenance that rests', async () => {
    const pool = makePool({});
    await pool.start();
    await jobs.addJob('x', 1);
    await test.sql(`insert into jobs.job_history (job_id, fence, attempt, status, expires_at)
      values (gen_random_uuid(), 1, 1, 'completed', now() - interval '1 day')`);
    await migrateToNext(SCHEMA_VERSION + 1);
    await pool.join();
    await expect(jobs.getJobs(WORKER)).rejects.toThrow(SchemaTooNewError);
    await new Maintenance(jobs, events).collectGarbage();
    expect(await test.sql('select from jobs.job_history')).toHaveLength(1);
  });

  it('goes on where that release has only added something', async () => {
    const pool = makePool({ x: () => undefined });
    await pool.start();
    await migrateToNext(SCHEMA_VERSION);
    const beats = async (): Promise<number> => (await jobs.workers())[0]!.heartbeatAt.getTime();
    for (const _ of [1, 2]) {
      const last = await beats();
      await eventually(async () => (await beats()) > last);
    }
    const { id } = await jobs.addJob('x', 1);
    await eventually(async () => (await status(id)) === 'completed');
    expect(events.ofType('worker.error')).toEqual([]);
  });
});

describe('a process that starts beside a newer schema', () => {
  it('is refused, though its manager is older than the migration', async () => {
    await migrateToNext(null);
    const pool = makePool({});
    await expect(pool.start()).rejects.toThrow(SchemaTooNewError);
    expect(pool.state).toBe('terminated');
  });

  it.each([true, false])('starts where that release has only added something (migrate: %s)', async (migrate) => {
    await migrateToNext(SCHEMA_VERSION);
    const late = await createJobManager({ connection: test.url, migrate });
    closing.push(() => late.close());
    await late.addJob('x', 1);
    expect(await late.getJobs(WORKER)).toHaveLength(1);
  });

  it('is told both versions', async () => {
    await migrateToNext(null);
    const message = `version ${SCHEMA_VERSION} or one that is compatible with it, got ${SCHEMA_VERSION + 1}`;
    await expect(createJobManager({ connection: test.url })).rejects.toThrow(message);
  });

  it('cannot remove what it does not know', async () => {
    await migrateToNext(SCHEMA_VERSION);
    const migrator = new JobsMigrator({ connection: test.url });
    closing.push(() => migrator.close());
    await expect(migrator.rollback()).rejects.toThrow(SchemaTooNewError);
    expect(await migrator.version()).toBe(SCHEMA_VERSION + 1);
  });
});
