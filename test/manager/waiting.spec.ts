import { getEventListeners } from 'node:events';
import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  JobNotFoundError,
  NoHandlersError,
  partialSuccess,
  PermanentFailure,
  SchemaOutdatedError,
  snooze,
  StoppedError,
  WaitTimeoutError,
  type JobManager,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;

beforeEach(async () => {
  test = await createTestManager({ retry: { baseDelayMs: 0, jitter: 0 } });
  jobs = test.jobs;
});
afterEach(() => test.close());

const finish = async (): Promise<void> => void (await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER), 1));

describe('waitForJob', () => {
  it('resolves when the job has completed, with its result', async () => {
    const pool = createWorkerPool({ jobs, tasks: { double: (n: number) => n * 2 } });
    const { id } = await jobs.addJob('double', 21);
    const waiting = jobs.waitForJob(id);
    await pool.start();
    expect(await waiting).toMatchObject({ status: 'completed', result: 42, error: null, job: { id } });
    await pool.stop();
  });

  it('resolves for jobs that another process settles', async () => {
    const other = await createJobManager({ connection: test.url });
    const { id } = await jobs.addJob('t', 1);
    const waiting = jobs.waitForJob(id);
    await other.completeJobs(WORKER, await other.getJobs(WORKER), 1);
    expect(await waiting).toMatchObject({ status: 'completed', result: null });
    await other.close();
  });

  it('resolves at once for what has ended already', async () => {
    const { id } = await jobs.addJob('t', 1);
    await finish();
    expect(await jobs.waitForJob(id)).toMatchObject({ status: 'completed' });
  });

  it('resolves for exhausted and cancelled jobs, with the reason', async () => {
    const [exhausted, cancelled] = await jobs.addJobs([
      { task: 't', payload: 1 },
      { task: 't', payload: 2 },
    ]);
    const waiting = Promise.all([exhausted!, cancelled!].map(({ id }) => jobs.waitForJob(id)));
    await jobs.permanentlyFailJobs([exhausted!.id], 'broken');
    await jobs.cancelJobs([cancelled!.id], 'not wanted');
    expect(await waiting).toMatchObject([
      { status: 'exhausted', result: null, error: 'broken' },
      { status: 'cancelled', result: null, error: 'not wanted' },
    ]);
  });

  it('knows a completed job without history for an hour', async () => {
    const plain = await createJobManager({ connection: test.url, schema: 'plain', history: { keep: 'none' } });
    const { id } = await plain.addJob('t', 1);
    await plain.completeJobs(WORKER, await plain.getJobs(WORKER), 1);
    await plain.gcJobHistory();
    expect(await plain.waitForJob(id)).toMatchObject({ status: 'completed', result: null });
    await plain.close();
  });

  it('rejects when its time is up, and leaves the job alone', async () => {
    const { id } = await jobs.addJob('t', 1);
    await expect(jobs.waitForJob(id, { timeoutMs: 5 })).rejects.toThrow(WaitTimeoutError);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'available' });
  });

  it('rejects with the signal’s reason, also one that has aborted already', async () => {
    const { id } = await jobs.addJob('t', 1);
    const controller = new AbortController();
    const waiting = jobs.waitForJob(id, { signal: controller.signal });
    controller.abort(new Error('bored'));
    await expect(waiting).rejects.toThrow('bored');
    await expect(jobs.waitForJob(id, { signal: controller.signal })).rejects.toThrow('bored');
  });

  it('rejects for unknown jobs', async () => {
    await expect(jobs.waitForJob('01900000-0000-7000-8000-000000000000')).rejects.toThrow(JobNotFoundError);
  });

  it('rejects when the manager is closed', async () => {
    const other = await createJobManager({ connection: test.url });
    const { id } = await other.addJob('t', 1);
    const outcome = other.waitForJob(id).catch((error: unknown) => error);
    await other.close();
    expect(await outcome).toBeInstanceOf(StoppedError);
  });

  it('refuses to wait on a manager that was closed', async () => {
    const other = await createJobManager({ connection: test.url });
    const { id } = await other.addJob('t', 1);
    await other.close();
    await expect(other.waitForJob(id)).rejects.toThrow(StoppedError);
  });

  it('rejects when the database refuses the question, instead of asking for ever', async () => {
    const other = await createJobManager({ connection: test.url, schema: 'dropped' });
    const { id } = await other.addJob('t', 1);
    await test.sql('drop schema dropped cascade');
    await expect(other.waitForJob(id)).rejects.toThrow(SchemaOutdatedError);
    await other.close();
  });

  it('resolves for one job after the other, each begun in the turn in which the last one ended', async () => {
    const added = await jobs.addJobs(Array.from({ length: 20 }, (_, n) => ({ task: 't', payload: n })));
    const all = (async () => {
      for (const { id } of added) await jobs.waitForJob(id, { timeoutMs: 20_000 });
    })();
    for (let n = 0; n < added.length; n++) await finish();
    await expect(all).resolves.toBeUndefined();
  });

  it('forgets no call that waits beside jobs that end one after the other', async () => {
    const [slow, ...quick] = await jobs.addJobs([1, 2, 3, 4].map((n) => ({ task: 't', payload: n, priority: -n })));
    const beside = jobs.waitForJob(slow!.id, { timeoutMs: 20_000 });
    for (let n = 0; n < quick.length; n++) {
      await finish();
      await jobs.waitForJob(quick.at(-1 - n)!.id, { timeoutMs: 20_000 });
    }
    await finish();
    expect(await beside).toMatchObject({ status: 'completed' });
  });

  it('reads a payload once, when its job has ended', async () => {
    const read = jest.spyOn(jobs.engine.database, 'run');
    const { id } = await jobs.addJob('t', { text: 'x'.repeat(500_000) });
    const waiting = jobs.waitForJob(id);
    const looks = (name: string): number => read.mock.calls.filter(([{ name: ran }]) => ran === name).length;
    await eventually(() => looks('find_ended') >= 4);
    expect(looks('find_results')).toBe(0);
    await finish();
    await waiting;
    expect(looks('find_results')).toBe(1);
  });

  it('listens once to a signal that a hundred waits share, and no longer than they wait', async () => {
    const warnings: string[] = [];
    const onWarning = ({ name }: Error): void => void warnings.push(name);
    process.on('warning', onWarning);
    const { signal } = new AbortController();
    const added = await jobs.addJobs(Array.from({ length: 100 }, (_, n) => ({ task: 't', payload: n })));
    const waiting = Promise.all(added.map(({ id }) => jobs.waitForJob(id, { signal })));
    expect(getEventListeners(signal, 'abort')).toHaveLength(1);
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER, { batchSize: 100 }), 1);
    await waiting;
    expect(getEventListeners(signal, 'abort')).toEqual([]);
    process.off('warning', onWarning);
    expect(warnings).toEqual([]);
  });

  it('waits for many jobs at once with few queries', async () => {
    const added = await jobs.addJobs(Array.from({ length: 200 }, (_, n) => ({ task: 't', payload: n })));
    const waiting = Promise.all(added.map(({ id }) => jobs.waitForJob(id)));
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER, { batchSize: 200 }), 1);
    expect((await waiting).every(({ status }) => status === 'completed')).toBe(true);
  });
});

describe('workOnce (work-once)', () => {
  it('returns null where there is nothing to do', async () => {
    createWorkerPool({ jobs, tasks: { t: () => 1 } });
    expect(await jobs.workOnce()).toBeNull();
  });

  it('runs one due job and returns it, done', async () => {
    const events = createCollectingEvents();
    createWorkerPool({ jobs, events, tasks: { t: (n: number) => n + 1 } });
    const [first] = await jobs.addJobs([1, 2].map((payload) => ({ task: 't', payload })));
    expect(await jobs.workOnce()).toEqual({ job: expect.objectContaining({ id: first!.id, status: 'completed' }) });
    expect((await jobs.jobHistory(first!.id)).map(({ result }) => result)).toEqual([2]);
    expect(events.events().map(({ type }) => type)).toEqual(['job.started', 'job.completed', 'job.settled']);
    expect(await jobs.counts()).toMatchObject({ byStatus: { available: 1, completed: 1 } });
  });

  it('returns the error with the failed job, and never throws it', async () => {
    createWorkerPool({
      jobs,
      tasks: {
        t: () => {
          throw new PermanentFailure('no use');
        },
      },
    });
    await jobs.addJob('t', 1);
    const done = await jobs.workOnce();
    expect(done).toMatchObject({ job: { status: 'exhausted', lastError: 'no use' } });
    expect(done?.error).toBeInstanceOf(PermanentFailure);
  });

  it('takes queues in the given order, and leaves others alone', async () => {
    const ran: string[] = [];
    createWorkerPool({ jobs, tasks: { t: (name: string) => void ran.push(name) } });
    await jobs.addJobs([
      { task: 't', payload: 'b', queue: 'b', priority: -9 },
      { task: 't', payload: 'a', queue: 'a' },
      { task: 't', payload: 'other', queue: 'c' },
      { task: 't', payload: 'none' },
    ]);
    while (await jobs.workOnce({ queues: ['a', 'b'] }));
    expect(ran).toEqual(['a', 'b']);
  });

  it('leaves tasks without a handler here to others', async () => {
    createWorkerPool({ jobs, tasks: { here: () => 1 } });
    await jobs.addJob('elsewhere', 1);
    expect(await jobs.workOnce()).toBeNull();
  });

  it('settles snoozes and partial successes, too', async () => {
    const answers = [snooze(0), partialSuccess({ completedSteps: ['a'] }), 'done'];
    createWorkerPool({ jobs, tasks: { t: () => answers.shift() } });
    const { id } = await jobs.addJob('t', 1);
    const statuses: unknown[] = [];
    for (let done = await jobs.workOnce(); done; done = await jobs.workOnce()) statuses.push(done.job.status);
    expect(statuses.at(-1)).toBe('completed');
    expect((await jobs.jobHistory(id)).map(({ status }) => status)).toEqual([
      'snoozed',
      'partial_success',
      'completed',
    ]);
  });

  it('runs each job once when many work at the same time', async () => {
    const ran: number[] = [];
    createWorkerPool({ jobs, tasks: { t: (n: number) => void ran.push(n) } });
    await jobs.addJobs(Array.from({ length: 20 }, (_, n) => ({ task: 't', payload: n })));
    await Promise.all(
      Array.from({ length: 4 }, async () => {
        while (await jobs.workOnce());
      }),
    );
    expect(ran.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, n) => n));
  });

  it('needs handlers', async () => {
    await expect(jobs.workOnce()).rejects.toThrow(NoHandlersError);
  });
});
