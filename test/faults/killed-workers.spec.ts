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

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
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

const ended = async (count: number): Promise<boolean> => {
  const { byStatus } = await jobs.counts();
  return byStatus.completed + byStatus.exhausted === count;
};

describe('killed workers', () => {
  it('transactional effects happen exactly once while workers are killed again and again', async () => {
    await test.sql('create table effects (n int not null, worker text not null)');
    const count = 400;
    await jobs.addJobs(Array.from({ length: count }, (_, n) => ({ task: 'effect', payload: n, maxAttempts: 1_000 })));
    // It is the spec that kills the workers: no job is to be blamed.
    const innocent = { maxCrashes: 1_000 };
    await Promise.all([start(innocent), start(innocent)]);
    let kills = 0;
    await eventually(async () => {
      if (await ended(count)) return true;
      await workers.shift()!.end('SIGKILL');
      kills++;
      await start(innocent);
      return false;
    }, PATIENCE);
    const effects = await test.sql<{ n: number }>('select n from effects order by n');
    expect(effects.map(({ n }) => n)).toEqual(Array.from({ length: count }, (_, n) => n));
    expect(kills).toBeGreaterThan(0);
    expect((await jobs.counts()).byStatus).toMatchObject({ completed: count, running: 0 });
  }, 70_000);

  it('a dead worker’s jobs run again elsewhere, and their history says that it died', async () => {
    const first = await start();
    const { id } = await jobs.addJob('hang', 1);
    await eventually(async () => (await jobs.findJob(id))?.status === 'running');
    const { lockedBy } = (await jobs.findJob(id))!;
    await first.end('SIGKILL');
    await start();
    await eventually(async () => {
      const job = await jobs.findJob(id);
      return job?.status === 'running' && job.lockedBy !== lockedBy;
    }, PATIENCE);
    expect(await jobs.jobHistory(id)).toMatchObject([
      { status: 'failed', errorMessage: 'worker died', workerId: lockedBy, attempt: 1 },
      { status: 'started', attempt: 2 },
    ]);
  }, 70_000);

  it('a job that kills its process is quarantined, and its neighbours are not', async () => {
    const neighbours = Array.from({ length: 6 }, (_, n) => ({ task: 'neighbour', payload: n }));
    await jobs.addJobs([{ task: 'poison', payload: 1 }, ...neighbours]);
    await eventually(async () => {
      if (!workers.some(({ alive }) => alive)) await start({ concurrency: 10 });
      return ended(7);
    }, PATIENCE);
    const { byStatus, byTask } = await jobs.counts();
    expect([byStatus.exhausted, byStatus.completed, byTask]).toEqual([1, 6, { poison: 1 }]);
    const [poison] = (await jobs.listJobs({ status: 'exhausted' })).items;
    expect(poison).toMatchObject({ task: 'poison', lastError: 'worker died' });
    expect((await jobs.jobHistory(poison!.id)).map(({ errorMessage }) => errorMessage)).toEqual(
      Array(3).fill('worker died'),
    );
  }, 70_000);

  it('a handler that calls process.exit is like any other crash', async () => {
    await jobs.addJob('exit', 1, { maxAttempts: 2 });
    await eventually(async () => {
      if (!workers.some(({ alive }) => alive)) await start();
      return ended(1);
    }, PATIENCE);
    expect((await jobs.listJobs()).items).toMatchObject([
      { status: 'exhausted', attempts: 2, lastError: 'worker died' },
    ]);
  }, 70_000);

  it('a frozen worker is fenced off: its jobs run elsewhere, and it goes on as a new one when it is resumed', async () => {
    const frozen = await start();
    const { id } = await jobs.addJob('hang', 1);
    await eventually(async () => (await jobs.findJob(id))?.status === 'running');
    const { lockedBy } = (await jobs.findJob(id))!;
    frozen.signal('SIGSTOP');
    await start();
    await eventually(async () => {
      const job = await jobs.findJob(id);
      return job?.status === 'running' && job.lockedBy !== lockedBy;
    }, PATIENCE);
    frozen.signal('SIGCONT');
    await eventually(async () => (await jobs.workers()).length === 2, PATIENCE);
    expect((await jobs.findJob(id))!.lockedBy).not.toBe(lockedBy);
  }, 70_000);

  it('a worker that is asked to end gives its jobs back at once, attempts uncounted', async () => {
    const worker = await start();
    const { id } = await jobs.addJob('neighbour', 1);
    await eventually(async () => (await jobs.findJob(id))?.status === 'running');
    await worker.end('SIGTERM');
    // It may have been running, or only claimed.
    expect(await jobs.findJob(id)).toMatchObject(
      (await jobs.jobHistory(id)).length ? { status: 'completed', attempts: 1 } : { status: 'available', attempts: 0 },
    );
    expect(await jobs.workers()).toEqual([]);
  }, 70_000);
});
