import { setImmediate } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, it, jest } from '@jest/globals';
import pg from 'pg';
import {
  InvalidArgumentError,
  InvalidStatusError,
  JobKeyConflictError,
  JobNotFoundError,
  LeaseExpiredError,
  RevisionConflictError,
  WrongOwnerError,
  type AddJobOptions,
  type Job,
  type JobManager,
} from '../../lib/index.js';
import { createTestManager, OTHER, WORKER, type TestManager } from '../support/manager.js';
import { claimAsPool, registerPool } from '../support/pool.claims.js';

let test: TestManager;
let jobs: JobManager;

beforeAll(async () => {
  test = await createTestManager();
  jobs = test.jobs;
});
afterAll(() => test.close());
beforeEach(() =>
  test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_history, jobs.job_queues, jobs.workers, jobs.job_tasks'),
);

async function inTransaction(work: (client: pg.Client) => Promise<void>): Promise<void> {
  const client = new pg.Client(test.url);
  await client.connect();
  try {
    await client.query('begin');
    await work(client);
    await client.query('commit');
  } finally {
    await client.end();
  }
}

const NOBODY = '00000000-0000-7000-8000-000000000000';

async function exhausted(payload: unknown = 1, options: object = {}): Promise<Job> {
  const { id } = await jobs.addJob('x', payload, { maxAttempts: 1, ...options });
  const [job] = await jobs.getJobs(WORKER);
  await jobs.failJobs(WORKER, [{ job: job!, error: 'broken' }], 1);
  return (await jobs.findJob(id))!;
}

describe('permanentlyFailJobs (permanently-fail-jobs)', () => {
  it('exhausts waiting and running jobs with the reason', async () => {
    const [waiting, running] = await jobs.addJobs([
      { task: 'x', payload: 1, priority: 5 },
      { task: 'x', payload: 2 },
    ]);
    const [claimed] = await jobs.getJobs(WORKER);
    expect(claimed!.id).toBe(running!.id);
    const failed = await jobs.permanentlyFailJobs([waiting!.id, running!.id, NOBODY], 'obsolete');
    expect(failed.map(({ status, lastError }) => [status, lastError])).toEqual(
      Array(2).fill(['exhausted', 'obsolete']),
    );
    expect((await jobs.completeJobs(WORKER, [claimed!], 1)).lost).toHaveLength(1);
    expect((await jobs.jobHistory(waiting!.id))[0]).toMatchObject({ status: 'failed', errorMessage: 'obsolete' });
  });
});

describe('cancelJobs', () => {
  it('cancels waiting jobs at once and running ones when their handler ends', async () => {
    const [waiting, running] = await jobs.addJobs([
      { task: 'x', payload: 1, priority: 5 },
      { task: 'x', payload: 2 },
    ]);
    const [claimed] = await jobs.getJobs(WORKER);
    const cancelled = await jobs.cancelJobs([waiting!.id, running!.id], 'order withdrawn');
    expect(new Map(cancelled.map(({ id, status }) => [id, status]))).toEqual(
      new Map([
        [waiting!.id, 'cancelled'],
        [running!.id, 'running'],
      ]),
    );
    await jobs.failJobs(WORKER, [{ job: claimed!, error: 'aborted' }], 1);
    expect(await jobs.findJob(running!.id)).toMatchObject({ status: 'cancelled' });
    expect((await jobs.jobHistory(waiting!.id)).at(-1)).toMatchObject({
      status: 'cancelled',
      errorMessage: 'order withdrawn',
    });
  });
});

describe('rescheduleJobs (reschedule-jobs)', () => {
  it('changes only what is given and counts a revision', async () => {
    const { id, runAt } = await jobs.addJob('x', 1, { priority: 3 });
    expect(await jobs.rescheduleJobs([id], { priority: 9 })).toMatchObject([
      { priority: 9, runAt, maxAttempts: 25, revision: 1 },
    ]);
    const later = new Date(Date.now() + 60_000);
    expect(await jobs.rescheduleJobs([id], { runAt: later, maxAttempts: 3 })).toMatchObject([
      { priority: 9, runAt: later, maxAttempts: 3, revision: 2, status: 'scheduled' },
    ]);
  });

  it('leaves locked jobs alone and reports them', async () => {
    await jobs.addJob('x', 1);
    const [claimed] = await jobs.getJobs(WORKER);
    expect(await jobs.rescheduleJobs([claimed!.id], { priority: 9 })).toMatchObject([
      { status: 'running', priority: 0, revision: claimed!.revision },
    ]);
  });

  it('makes an exhausted job ready again when it gets attempts left', async () => {
    const job = await exhausted();
    expect(await jobs.rescheduleJobs([job.id], { maxAttempts: 2 })).toMatchObject([
      { status: 'available', attempts: 1 },
    ]);
    expect(await jobs.getJobs(WORKER)).toHaveLength(1);
  });

  it('exhausts a job whose attempts are used up by a lower maximum, within the invariant', async () => {
    await jobs.addJob('x', 1, { maxAttempts: 5 });
    const [job] = await jobs.getJobs(WORKER);
    await jobs.failJobs(WORKER, [{ job: job!, error: 'x' }], 1);
    expect(await jobs.rescheduleJobs([job!.id], { maxAttempts: 1 })).toMatchObject([
      { status: 'exhausted', attempts: 1 },
    ]);
  });

  it('refuses nonsense', async () => {
    await expect(jobs.rescheduleJobs(['nope'], {})).rejects.toThrow(InvalidArgumentError);
    await expect(jobs.rescheduleJobs([NOBODY], { maxAttempts: 0 })).rejects.toThrow(InvalidArgumentError);
  });
});

describe('retryJobs', () => {
  it('brings exhausted and cancelled jobs back with their attempts reset', async () => {
    const dead = await exhausted();
    const { id } = await jobs.addJob('y', { keep: 'me' }, { delayMs: 1_000, tags: ['t'] });
    await jobs.cancelJobs([id]);
    const retried = await jobs.retryJobs([dead.id, id, NOBODY]);
    expect(retried.map(({ status, attempts }) => [status, attempts])).toEqual([
      ['available', 0],
      ['available', 0],
    ]);
    const claimed = await jobs.getJobs(WORKER, { batchSize: 9 });
    expect(claimed.map(({ payload }) => payload)).toEqual([1, { keep: 'me' }]);
    await jobs.completeJobs(WORKER, claimed, 1);
    expect((await jobs.jobHistory(id)).map(({ status }) => status)).toEqual(['cancelled', 'completed']);
  });

  it('changes none if a key of theirs is taken', async () => {
    const { id } = await jobs.addJob('x', 1, { jobKey: 'k', delayMs: 1_000 });
    await jobs.cancelJobs([id]);
    await jobs.addJob('x', 2, { jobKey: 'k', delayMs: 1_000 });
    const dead = await exhausted();
    await expect(jobs.retryJobs([dead.id, id])).rejects.toThrow(JobKeyConflictError);
    expect(await jobs.findJob(dead.id)).toMatchObject({ status: 'exhausted' });
  });
});

describe('replayFailedJobs (replay-failed-jobs)', () => {
  it('adds one new job for each failed job of the window, once', async () => {
    const before = new Date(Date.now() - 60_000);
    const old = await exhausted({ n: 1 }, { flags: ['f'], queue: 'q', tags: ['t'] });
    await jobs.addJob('x', 'healthy', { delayMs: 1_000 });
    const [replay, ...others] = await jobs.replayFailedJobs({ from: before, task: 'x', maxAttempts: 2 });
    expect(others).toEqual([]);
    expect(replay).toMatchObject({
      payload: { n: 1 },
      queue: 'q',
      flags: ['f', 'replay'],
      tags: ['t'],
      jobKey: old.id,
      maxAttempts: 2,
      attempts: 0,
    });
    expect(await jobs.replayFailedJobs({ from: before })).toEqual([]);
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER), 1);
    expect(await jobs.replayFailedJobs()).toEqual([]);
  });

  it('gives the new job the old id as its key, and leaves the key of the user with the old job', async () => {
    const old = await exhausted(1, { jobKey: 'of-the-user' });
    expect(await jobs.replayFailedJobs()).toMatchObject([{ jobKey: old.id, flags: ['replay'] }]);
    expect(await jobs.findJob(old.id)).toMatchObject({ jobKey: 'of-the-user', status: 'exhausted' });
    expect(await jobs.retryJobs([old.id])).toMatchObject([{ id: old.id, jobKey: 'of-the-user' }]);
    const again = await jobs.addJob('x', 2, { jobKey: 'of-the-user', jobKeyMode: 'unsafe_dedupe' });
    expect(again).toMatchObject({ id: old.id, created: false });
  });

  it('looks at the window and the task only', async () => {
    await exhausted();
    expect(await jobs.replayFailedJobs({ to: new Date(Date.now() - 60_000) })).toEqual([]);
    expect(await jobs.replayFailedJobs({ task: 'other' })).toEqual([]);
  });
});

describe('forceUnlockJobs (force-unlock-jobs)', () => {
  it('unlocks the jobs of the named workers and exhausts those out of attempts', async () => {
    await jobs.addJobs([
      { task: 'x', payload: 1 },
      { task: 'x', payload: 2, maxAttempts: 1 },
      { task: 'x', payload: 3 },
    ]);
    await jobs.getJobs(WORKER, { batchSize: 2 });
    await jobs.getJobs(OTHER);
    const unlocked = await jobs.forceUnlockJobs([WORKER]);
    expect(
      new Set(unlocked.map(({ payload, status, attempts }) => `${String(payload)} ${status} ${attempts}`)),
    ).toEqual(new Set(['1 available 1', '2 exhausted 1']));
    expect((await jobs.jobHistory(unlocked[0]!.id))[0]).toMatchObject({
      status: 'failed',
      errorMessage: 'force-unlocked',
    });
    expect(await jobs.forceUnlockJobs()).toHaveLength(1);
  });
});

describe('resetLockedJobs (reset-locked-jobs)', () => {
  it('unlocks claims by hand whose lease has passed, and no others', async () => {
    await jobs.addJobs([
      { task: 'x', payload: 1 },
      { task: 'x', payload: 2 },
    ]);
    const [short] = await jobs.getJobs(WORKER, { leaseMs: 60_000 });
    await jobs.getJobs(OTHER);
    expect(await jobs.resetLockedJobs()).toBe(0);
    await passTime(short!.id, 61_000);
    expect(await jobs.resetLockedJobs()).toBe(1);
    expect(await jobs.findJob(short!.id)).toMatchObject({ status: 'available', attempts: 1 });
  });

  it('counts lockTimeoutMs from the last extension', async () => {
    await jobs.addJob('x', 1);
    const [job] = await jobs.getJobs(WORKER);
    await passTime(job!.id, 120_000);
    expect(await jobs.resetLockedJobs({ lockTimeoutMs: 180_000 })).toBe(0);
    expect(await jobs.resetLockedJobs({ lockTimeoutMs: 60_000 })).toBe(1);
  });

  it('frees the jobs of a worker that stopped beating, and counts the crash', async () => {
    await jobs.addJobs([
      { task: 'x', payload: 1 },
      { task: 'x', payload: 2, maxAttempts: 1 },
    ]);
    await registerPool(jobs, WORKER);
    await registerPool(jobs, OTHER);
    const claimed = await claimAsPool(jobs, WORKER, { limit: 2 });
    expect(claimed).toHaveLength(2);
    expect(await jobs.resetLockedJobs()).toBe(0);
    await test.sql(`update jobs.workers set heartbeat_at = heartbeat_at - interval '31 s' where id = $1`, [WORKER]);
    expect(await jobs.resetLockedJobs()).toBe(2);
    expect((await jobs.listJobs()).items.map(({ status, lastError }) => [status, lastError])).toEqual([
      ['exhausted', 'worker died'],
      ['available', 'worker died'],
    ]);
    expect((await jobs.workers()).map(({ id }) => id)).toEqual([OTHER]);
    expect(await jobs.engine.registry.heartbeat(WORKER)).toMatchObject({ expired: true });
    expect(await claimAsPool(jobs, WORKER, { limit: 2 })).toEqual([]);
  });
});

describe('extendLease (extend-lease!)', () => {
  it('renews the claim from the database’s now', async () => {
    await jobs.addJob('x', 1);
    const [job] = await jobs.getJobs(WORKER, { leaseMs: 60_000 });
    await passTime(job!.id, 30_000);
    const end = await jobs.extendLease(WORKER, job!.id);
    expect(Math.abs(end.getTime() - Date.now() - 60_000)).toBeLessThan(5_000);
    expect((await jobs.findJob(job!.id))!.revision).toBe(2);
  });

  it('has an error for each reason to refuse', async () => {
    const { id } = await jobs.addJob('x', 1);
    await expect(jobs.extendLease(WORKER, NOBODY)).rejects.toThrow(JobNotFoundError);
    await expect(jobs.extendLease(WORKER, id)).rejects.toThrow(InvalidStatusError);
    const claimed = await jobs.getJobs(WORKER, { leaseMs: 60_000 });
    await expect(jobs.extendLease(OTHER, id)).rejects.toThrow(WrongOwnerError);
    await passTime(id, 61_000);
    await expect(jobs.extendLease(WORKER, id)).rejects.toThrow(LeaseExpiredError);
    expect((await jobs.completeJobs(WORKER, claimed, 1)).settled).toHaveLength(1); // it was not taken away yet
    await expect(jobs.extendLease(WORKER, id)).rejects.toThrow(InvalidStatusError);
  });
});

describe('revokeLease (revoke-lease!)', () => {
  it('takes the claim away if the record has not changed since', async () => {
    await jobs.addJob('x', 1, { maxAttempts: 1 });
    const [job] = await jobs.getJobs(WORKER);
    await expect(jobs.revokeLease(job!.id, 0)).rejects.toThrow(RevisionConflictError);
    expect(await jobs.revokeLease(job!.id, job!.revision)).toMatchObject({ status: 'available', attempts: 0 });
    expect((await jobs.completeJobs(WORKER, [job!], 1)).lost).toHaveLength(1);
    expect(await jobs.getJobs(OTHER)).toHaveLength(1);
    await expect(jobs.revokeLease(NOBODY, 1)).rejects.toThrow(JobNotFoundError);
  });
});

describe('purgeJobs', () => {
  it('removes ended jobs with their history, and only those old enough', async () => {
    const dead = await exhausted();
    const { id } = await jobs.addJob('x', 1);
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER), 1);
    expect(await jobs.purgeJobs({ status: 'exhausted', olderThanMs: 60_000 })).toBe(0);
    expect(await jobs.purgeJobs({ status: 'exhausted', olderThanMs: 0 })).toBe(1);
    expect(await jobs.findJob(dead.id)).toBeNull();
    expect(await jobs.jobHistory(dead.id)).toEqual([]);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'completed' });
    expect(await jobs.purgeJobs({ status: 'completed', olderThanMs: 0 })).toBe(1);
    await expect(jobs.purgeJobs({ status: 'running', olderThanMs: 0 })).rejects.toThrow(InvalidArgumentError);
  });
});

it('ids in capitals name the same jobs', async () => {
  const parent = await jobs.addJob('x', 1);
  const id = parent.id.toUpperCase();
  const child = await jobs.addJob('y', 1, { dependsOn: [id, parent.id] });
  expect(child).toMatchObject({ status: 'blocked', dependsOn: [parent.id] });
  expect((await jobs.jobGraph(id)).nodes).toHaveLength(2);
  let failing!: Promise<Job[]>;
  await inTransaction(async (client) => {
    await client.query('select from jobs.jobs where id = $1 for update', [parent.id]);
    const tries = jest.spyOn(jobs.engine.database, 'run');
    failing = jobs.permanentlyFailJobs([id]);
    while (tries.mock.results.length < 2) await setImmediate();
    tries.mockRestore();
  });
  expect(await failing).toMatchObject([{ id: parent.id, status: 'exhausted' }]);
  expect(await jobs.waitForJob(id)).toMatchObject({ status: 'exhausted' });
});

describe('a purge', () => {
  it('leaves an exhausted job to which a transaction adds a child, and removes the others', async () => {
    const [held, free] = await jobs.addJobs([
      { task: 'x', payload: 1 },
      { task: 'x', payload: 2 },
    ]);
    await jobs.permanentlyFailJobs([held!.id, free!.id]);
    await inTransaction(async (manager) => {
      await jobs.addJob('y', 1, { manager, dependsOn: [held!.id], onParentFailure: 'wait' });
      expect(await jobs.purgeJobs({ status: 'exhausted', olderThanMs: 0 })).toBe(1);
    });
    expect([await jobs.findJob(free!.id), (await jobs.findJob(held!.id))?.status]).toEqual([null, 'exhausted']);
  });

  it('leaves a completed job until its children know of it', async () => {
    const parent = await jobs.addJob('x', 1);
    const child = await jobs.addJob('y', 1, { dependsOn: [parent.id], priority: 5 });
    const claimed = await jobs.getJobs(WORKER);
    await inTransaction(async (client) => {
      await client.query('select from jobs.jobs where id = $1 for update', [child.id]);
      await jobs.completeJobs(WORKER, claimed, 1);
      expect(await jobs.purgeJobs({ status: 'completed', olderThanMs: 0 })).toBe(0);
    });
    await jobs.engine.promoter.sweepNow();
    expect((await jobs.findJob(child.id))?.status).toBe('available');
    expect(await jobs.purgeJobs({ status: 'completed', olderThanMs: 0 })).toBe(1);
  });
});

describe('garbage', () => {
  it('gcJobHistory (gc-job-history) removes expired records and what only they remembered', async () => {
    const { id } = await jobs.addJob('x', 1);
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER), 1);
    expect(await jobs.gcJobHistory()).toBe(0);
    await test.sql(`update jobs.job_history set expires_at = now() - interval '1 s'`);
    await test.sql(`update jobs.job_bodies set created_at = now() - interval '2 h'`);
    const live = await jobs.addJob('x', 2);
    expect(await jobs.gcJobHistory()).toBe(1);
    expect(await jobs.findJob(id)).toBeNull();
    expect(await jobs.findJob(live.id)).not.toBeNull();
  });

  it('gcJobQueues (gc-job-queues) removes empty unlocked queues', async () => {
    await jobs.addJobs([
      { task: 'x', payload: 1, queue: 'empty' },
      { task: 'x', payload: 2, queue: 'busy' },
    ]);
    const claimed = await jobs.getJobs(WORKER, { batchSize: 2 });
    await jobs.completeJobs(
      WORKER,
      claimed.filter(({ queue }) => queue === 'empty'),
      1,
    );
    expect(await jobs.gcJobQueues()).toBe(1);
    expect((await jobs.listQueues()).map(({ name }) => name)).toEqual(['busy']);
  });

  it('gcTaskIdentifiers (gc-task-identifiers) removes identifiers unused for long and without jobs', async () => {
    await jobs.addJobs([
      { task: 'gone', payload: 1 },
      { task: 'here', payload: 2 },
    ]);
    const [gone] = await jobs.getJobs(WORKER, { batchSize: 2 });
    await jobs.completeJobs(WORKER, [gone!], 1);
    expect(await jobs.gcTaskIdentifiers()).toBe(0);
    expect(await jobs.gcTaskIdentifiers({ keepSinceMs: 0 })).toBe(1);
    expect(await test.sql('select task from jobs.job_tasks')).toEqual([{ task: 'here' }]);
  });
});

describe('looking', () => {
  it('findJob (task) knows live and finished jobs and says null for others', async () => {
    expect(await jobs.findJob(NOBODY)).toBeNull();
    await expect(jobs.findJob('no-uuid')).rejects.toThrow(InvalidArgumentError);
  });

  it('listJobs (list-tasks) filters and pages by a stable cursor', async () => {
    await jobs.addJobs(Array.from({ length: 25 }, (_, n) => ({ task: n % 2 ? 'odd' : 'even', payload: { n } })));
    const seen: unknown[] = [];
    let cursor: string | null = null;
    do {
      const page: Awaited<ReturnType<JobManager['listJobs']>> = await jobs.listJobs(
        { task: 'odd' },
        { limit: 5, cursor },
      );
      seen.push(...page.items.map(({ payload }) => (payload as { n: number }).n));
      cursor = page.cursor;
      await jobs.addJob('odd', { n: 'added meanwhile' });
    } while (cursor);
    expect(seen).toEqual([23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1]);
    expect((await jobs.listJobs({ search: '"n":24' })).items).toHaveLength(1);
    expect((await jobs.listJobs({ status: 'completed' })).items).toEqual([]);
    await expect(jobs.listJobs({}, { cursor: 'nonsense' })).rejects.toThrow(InvalidArgumentError);
    await expect(jobs.listJobs({}, { limit: 0 })).rejects.toThrow(InvalidArgumentError);
  });

  it.each<[string, string, string | null]>([
    ['quotes', 'she said "hi"', null],
    ['backslashes', 'C:\\temp\\new', null],
    ['line breaks and tabs', 'one\ntwo\tthree', null],
    ['wildcards of SQL', '100%_sure', null],
    ['letters beyond ASCII', 'Zoë 🚀 ß', null],
    ['letters that SQL has stored as escapes', 'Zoë 🚀 ß', '"Zo\\u00eb \\ud83d\\uDE80 \\u00DF"'],
    ['slashes that SQL has stored as escapes', 'https://a/ö', '"https:\\/\\/a\\/\\u00f6"'],
  ])('listJobs searches for texts as people write them: %s', async (_what, text, stored) => {
    const { id } = await jobs.addJob('x', { note: `a ${text} b` });
    if (stored) await test.sql(`update jobs.job_bodies set payload = $2 where id = $1`, [id, `{"note":${stored}}`]);
    await jobs.addJob('x', { note: 'something else' });
    const found = await jobs.listJobs({ search: text });
    expect(found.items.map((job) => job.id)).toEqual([id]);
    expect((await jobs.listJobs({ search: `${text} and more` })).items).toEqual([]);
  });

  it('listJobs searches errors, too', async () => {
    const { id } = await jobs.addJob('x', 1);
    await jobs.permanentlyFailJobs([id], 'no "such"\nfile');
    expect((await jobs.listJobs({ search: '"such"\nFILE' })).items.map((job) => job.id)).toEqual([id]);
  });

  it('listHistory pages through finished attempts', async () => {
    await jobs.addJobs(Array.from({ length: 7 }, (_, n) => ({ task: 'x', payload: n })));
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER, { batchSize: 7 }), 1);
    const first = await jobs.listHistory({ task: 'x' }, { limit: 4 });
    const second = await jobs.listHistory({ task: 'x' }, { limit: 4, cursor: first.cursor });
    expect(second.cursor).toBeNull();
    const ids = [...first.items, ...second.items].map(({ jobId }) => jobId);
    expect(new Set(ids).size).toBe(7);
  });

  it('counts jobs by status, task and queue', async () => {
    await exhausted();
    await jobs.addJobs([
      { task: 'y', payload: 1, queue: 'q' },
      { task: 'y', payload: 1, delayMs: 60_000 },
    ]);
    const counts = await jobs.counts();
    expect(counts.byStatus).toEqual({
      available: 1,
      scheduled: 1,
      blocked: 0,
      running: 0,
      snoozed: 0,
      exhausted: 1,
      cancelled: 0,
      completed: 0,
    });
    expect(counts.byTask).toEqual({ x: 1, y: 2 });
    expect(counts.byQueue).toEqual({ q: 1 });
    expect(counts.oldestDueAgeMs).toBeGreaterThanOrEqual(0);
  });

  it('explain says in one sentence why a job is not running', async () => {
    const { id } = await jobs.addJob('x', 1, { delayMs: 60_000 });
    expect(await jobs.explain(id)).toMatchObject({ status: 'scheduled', reason: 'future', until: expect.any(Date) });
    const now = await jobs.addJob('x', 1);
    expect(await jobs.explain(now.id)).toMatchObject({ reason: 'no_worker' });
    await registerPool(jobs, WORKER);
    expect(await jobs.explain(now.id)).toMatchObject({ reason: 'no_handler', message: expect.stringContaining('"x"') });
    await expect(jobs.explain(NOBODY)).rejects.toThrow(JobNotFoundError);
  });

  it('explain names the queue or the flag that no worker takes', async () => {
    const worker = { id: WORKER, label: WORKER, host: 'h', pid: 1, concurrency: 1, leaseMs: 30_000, tasks: ['x'] };
    await jobs.engine.registry.register({ ...worker, queues: ['mail'], forbiddenFlags: ['slow', 'odd'] });
    const explain = async (task: string, options: AddJobOptions) => {
      const { reason, message } = await jobs.explain((await jobs.addJob(task, 1, options)).id);
      return [reason, message];
    };
    expect(await explain('x', { queue: 'other' })).toEqual([
      'no_taker',
      'No live worker that handles task "x" takes jobs from queue "other".',
    ]);
    expect(await explain('x', {})).toEqual([
      'no_taker',
      'No live worker that handles task "x" takes jobs without a queue.',
    ]);
    expect(await explain('x', { queue: 'mail', flags: ['slow', 'fine'] })).toEqual([
      'no_taker',
      'No live worker that handles task "x" takes jobs with the flag "slow" (forbiddenFlags).',
    ]);
    expect(await explain('y', { queue: 'mail' })).toMatchObject(['no_handler', expect.anything()]);
    expect(await explain('x', { queue: 'mail', flags: ['fine'] })).toMatchObject(['ready', expect.anything()]);
    await jobs.engine.registry.register({ ...worker, id: 'takes-it-all', tasks: [], takesAnyTask: true });
    expect(await explain('y', { flags: ['slow'] })).toMatchObject(['ready', expect.anything()]);
    await jobs.engine.registry.leave('takes-it-all');
    expect(await explain('y', { flags: ['slow'] })).toMatchObject(['no_handler', expect.anything()]);
  });

  it('explain tells an attempt that got half-way from one that failed', async () => {
    const [partial, failed] = await jobs.addJobs(['a', 'b'].map((payload) => ({ task: 'x', payload })));
    const claimed = await jobs.getJobs(WORKER, { batchSize: 2 });
    const [first, second] = [partial, failed].map((added) => claimed.find(({ id }) => id === added!.id)!);
    await jobs.reportPartialSuccess(WORKER, first!, { completedSteps: ['a'] }, 1);
    await jobs.failJobs(WORKER, [{ job: second!, error: new Error('no') }], 1);
    expect((await jobs.explain(partial!.id)).message).toMatch(/^Attempt 1 got half-way; the next one is due at/);
    expect((await jobs.explain(failed!.id)).message).toMatch(/^Attempt 1 failed; the next one is due at/);
  });
});

/** Moves a claim into the past by so many ms. */
const passTime = (id: string, ms: number) =>
  test.sql(
    `update jobs.jobs set lease_expires_at = lease_expires_at - $2 * interval '1 ms',
       locked_at = locked_at - $2 * interval '1 ms' where id = $1`,
    [id, ms],
  );
