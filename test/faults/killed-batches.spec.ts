// Batch handlers in processes that are killed, or asked to end, in mid-batch.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import type { JobManager, WorkerOptions } from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';
import { WorkerProcess } from '../support/workers.js';

let test: TestManager;
let jobs: JobManager;
const workers: WorkerProcess[] = [];
const PATIENCE = { timeoutMs: 60_000 };
/** The shortest leases there are, so that no test waits for long. */
const IMPATIENT: WorkerOptions = { leaseMs: 1_000, keepaliveMs: 250, pollIntervalMs: 100 };

/** One call of the handler, as it told the database. */
interface Call {
  worker: string;
  jobs: string[];
  crashes: number[];
  ended: boolean;
}

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  await test.sql(`create table calls (
    id bigint generated always as identity, worker text not null, jobs uuid[] not null, crashes integer[] not null,
    began_at timestamptz not null default clock_timestamp(), ended_at timestamptz)`);
});
afterEach(async () => {
  await Promise.all(workers.splice(0).map((worker) => worker.end()));
  await test.close();
});

async function start(options: WorkerOptions = {}): Promise<WorkerProcess> {
  const worker = await WorkerProcess.start(test.url, { ...IMPATIENT, ...options });
  workers.push(worker);
  return worker;
}

/** Jobs of one batch, and what each asks the handler for. */
const add = async (...asks: string[]): Promise<string[]> =>
  (await jobs.addJobs(asks.map((payload) => ({ task: 'batch', payload, maxAttempts: 10 })))).map(({ id }) => id);

const calls = (): Promise<Call[]> =>
  test.sql<Call & Record<string, unknown>>(
    'select worker, jobs, crashes, ended_at is not null as ended from calls order by id',
  );

/** Until a handler has all these jobs, and has decided what it is asked to decide at once. */
const running = (count: number): Promise<unknown> =>
  eventually(async () => {
    const [row] = await test.sql<{ count: number }>(
      `select coalesce(max(cardinality(jobs)), 0) as count from calls where began_at < clock_timestamp() - interval '200 ms'`,
    );
    return row!.count === count;
  }, PATIENCE);

const statusOf = async (id: string) => (await jobs.findJob(id))?.status;
const standing = async (ids: string[]): Promise<unknown[]> =>
  Promise.all(
    ids.map(async (id) => {
      const { status, attempts } = (await jobs.findJob(id))!;
      return [status, attempts];
    }),
  );
const crashesOf = async (ids: string[]): Promise<number[]> =>
  (await test.sql<{ crashes: number }>('select crashes from jobs.jobs where id = any($1) order by id', [ids])).map(
    ({ crashes }) => crashes,
  );
const noneRuns = async (): Promise<boolean> => (await jobs.counts()).byStatus.running === 0;

describe('a batch whose process is killed', () => {
  it('comes back whole: each job has lost one attempt, one crash counts for each, nothing that was decided stands', async () => {
    const ids = await add('', 'fail', 'snooze', '', 'hang');
    const worker = await start();
    await running(5);
    await worker.end('SIGKILL');
    // Rescues them, and takes none of them.
    await start({ taskIdentifiers: ['neighbour'] });
    await eventually(noneRuns, PATIENCE);
    expect(await standing(ids)).toEqual(ids.map(() => ['available', 1]));
    expect(await crashesOf(ids)).toEqual([1, 1, 1, 1, 1]);
    for (const id of ids)
      expect(await jobs.jobHistory(id)).toMatchObject([{ status: 'failed', errorMessage: 'worker died', attempt: 1 }]);
  }, 70_000);

  it('runs again job by job, each exactly once more', async () => {
    const ids = await add('', 'fail', 'snooze', '');
    const hanging = await add('hang');
    const worker = await start();
    await running(5);
    await worker.end('SIGKILL');
    await jobs.cancelJobs(hanging);
    await start();
    const expected = ['completed', 'exhausted', 'snoozed', 'completed'];
    await eventually(async () => (await Promise.all(ids.map(statusOf))).join() === expected.join(), PATIENCE);
    const [first, ...others] = await calls();
    expect([first!.jobs.toSorted(), first!.ended]).toEqual([[...ids, ...hanging].toSorted(), false]);
    expect(others.every((call) => call.ended && call.jobs.length === 1 && call.crashes[0] === 1)).toBe(true);
    expect(others.flatMap((call) => call.jobs).toSorted()).toEqual(ids.toSorted());
    // An attempt that ends, in whatever way, has not crashed.
    expect(await crashesOf(ids)).toEqual([0, 0]);
  }, 70_000);

  it('by one of its jobs again and again loses that job alone, and suspects run one at a time', async () => {
    const innocent = await add(...Array<string>(6).fill(''));
    const guilty = await add('crash', 'crash');
    await eventually(async () => {
      if (!workers.some(({ alive }) => alive)) await start({ concurrency: 10 });
      const statuses = await Promise.all([...innocent, ...guilty].map(statusOf));
      return statuses.every((status) => status === 'completed' || status === 'exhausted');
    }, PATIENCE);
    expect(await Promise.all(innocent.map(statusOf))).toEqual(innocent.map(() => 'completed'));
    for (const id of guilty) {
      expect(await jobs.findJob(id)).toMatchObject({ status: 'exhausted', lastError: 'worker died' });
      // Besides, it may have been in the process of the other when that struck.
      const { length } = (await jobs.jobHistory(id)).filter(({ errorMessage }) => errorMessage === 'worker died');
      expect(length).toBeGreaterThanOrEqual(3);
    }
    const all = await calls();
    expect(Math.max(...all.map((call) => call.jobs.length))).toBeGreaterThan(1);
    expect(all.filter((call) => call.jobs.length > 1 && call.crashes.some((crashes) => crashes > 0))).toEqual([]);
    // A suspect that crashes leaves a call without an end; no process has two of them.
    const suspects = all.filter(({ crashes, ended }) => !ended && crashes[0]! >= 2).map(({ worker }) => worker);
    expect(new Set(suspects).size).toBe(suspects.length);
  }, 70_000);

  it('again and again has written what its transactions wrote exactly once', async () => {
    await test.sql('create table effects (n int not null, worker text not null)');
    const count = 200;
    const specs = Array.from({ length: count }, (_, payload) => ({
      task: 'batch of effects',
      payload,
      maxAttempts: 1_000,
    }));
    await jobs.addJobs(specs);
    // It is the spec that kills the workers: no job is to be blamed.
    const innocent = { maxCrashes: 1_000 };
    await Promise.all([start(innocent), start(innocent)]);
    let kills = 0;
    await eventually(async () => {
      if ((await jobs.counts()).byStatus.completed === count) return true;
      await workers.shift()!.end('SIGKILL');
      kills++;
      await start(innocent);
      return false;
    }, PATIENCE);
    const effects = await test.sql<{ n: number }>('select n from effects order by n');
    expect(effects.map(({ n }) => n)).toEqual(Array.from({ length: count }, (_, n) => n));
    expect(kills).toBeGreaterThan(0);
  }, 70_000);
});

describe('a batch whose process is asked to end', () => {
  const DECIDED = [
    ['exhausted', 1],
    ['snoozed', 0],
  ];

  it('ends first where its handler does in time', async () => {
    const ids = await add('fail', 'snooze', '', 'end');
    const worker = await start();
    await running(4);
    await worker.end('SIGTERM');
    expect(await standing(ids)).toEqual([...DECIDED, ['completed', 1], ['completed', 1]]);
    expect(await jobs.workers()).toEqual([]);
  }, 70_000);

  it('is handed back uncounted where its handler stops with the pool, but for what was decided', async () => {
    const ids = await add('fail', 'snooze', '', 'stop');
    const worker = await start({ gracefulShutdownTimeoutMs: 200 });
    await running(4);
    await worker.end('SIGTERM');
    expect(await standing(ids)).toEqual([...DECIDED, ['available', 0], ['available', 0]]);
    expect(await jobs.workers()).toEqual([]);
  }, 70_000);

  it('keeps what was decided where its handler never ends, and the rest goes back uncounted with the lease', async () => {
    const ids = await add('fail', 'snooze', '', 'hang');
    const worker = await start({ gracefulShutdownTimeoutMs: 200 });
    await running(4);
    await worker.end('SIGTERM');
    expect(await standing(ids)).toEqual([...DECIDED, ['running', 1], ['running', 1]]);
    await start({ taskIdentifiers: ['neighbour'] });
    await eventually(noneRuns, PATIENCE);
    expect(await standing(ids)).toEqual([...DECIDED, ['available', 0], ['available', 0]]);
    expect(await crashesOf(ids.slice(2))).toEqual([0, 0]);
  }, 70_000);
});
