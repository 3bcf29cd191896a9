import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import {
  type BatchContext,
  type ClaimedJob,
  createWorkerPool,
  type JobEvent,
  JobEvents,
  PermanentFailure,
  type PlainTasks,
  type WorkerOptions,
  type WorkerPool,
} from '../../lib/index.js';
import { JobBuffer } from '../../lib/worker/job.buffer.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let pool: WorkerPool | undefined;
let seen: JobEvent[];
let events: JobEvents;

beforeEach(async () => {
  test = await createTestManager({ retry: { baseDelayMs: 60_000 } });
  seen = [];
  events = new JobEvents();
  events.on('all', (event) => void seen.push(event));
});
afterEach(async () => {
  await pool?.stop(100);
  pool = undefined;
  await test.close();
});

type Jobs = ClaimedJob<number>[];

async function start(tasks: PlainTasks, options: WorkerOptions = {}): Promise<void> {
  pool = createWorkerPool({ jobs: test.jobs, tasks, events, options: { pollIntervalMs: 100, ...options } });
  await pool.start();
}

const add = async (task: string, count: number, options: object = {}): Promise<string[]> => {
  const specs = Array.from({ length: count }, (_, payload) => ({ task, payload, ...options }));
  return (await test.jobs.addJobs(specs)).map(({ id }) => id);
};

const payloads = (jobs: Jobs): number[] => jobs.map(({ payload }) => payload).toSorted((a, b) => a - b);
const statusOf = async (id: string) => (await test.jobs.findJob(id))!.status;
const allEnded = async (ids: string[]): Promise<boolean> => {
  const statuses = await Promise.all(ids.map(statusOf));
  return statuses.every((status) => !['available', 'running'].includes(status));
};

/** A plain job as a claim brings it. */
const waitingJob = (task: string, id: string): ClaimedJob =>
  ({
    id,
    task,
    fence: '1',
    payload: 1,
    priority: 0,
    attempts: 1,
    maxAttempts: 5,
    crashes: 0,
    queue: null,
    rateLimitKey: null,
  }) as any;

/** A handler that stays until it is let go. */
function held() {
  let letGo!: () => void;
  const gate = new Promise<void>((resolve) => (letGo = resolve));
  return { gate, letGo };
}

describe('a batch handler', () => {
  it('gets all waiting jobs in calls of at most `size`', async () => {
    const ids = await add('index', 25);
    const calls: number[][] = [];
    await start({
      index: { batch: { size: 10, waitMs: 300 }, handler: async (jobs: Jobs) => void calls.push(payloads(jobs)) },
    });
    await eventually(() => allEnded(ids));
    expect(calls.map((call) => call.length).toSorted((a, b) => a - b)).toEqual([5, 10, 10]);
    expect(calls.flat().toSorted((a, b) => a - b)).toEqual(Array.from({ length: 25 }, (_, n) => n));
    expect((await test.jobs.counts()).byStatus).toMatchObject({ completed: 25, running: 0 });
  });

  it('takes more jobs than the pool has slots, and one slot for all', async () => {
    const ids = await add('index', 40);
    const { gate, letGo } = held();
    let jobs: Jobs = [];
    const handler = async (batch: Jobs): Promise<void> => {
      jobs = batch;
      await gate;
    };
    await start(
      { index: { batch: { size: 40, waitMs: 60_000 }, handler }, other: () => undefined },
      { concurrency: 2 },
    );
    await eventually(() => jobs.length === 40);
    const [other] = await add('other', 1);
    await eventually(async () => (await statusOf(other!)) === 'completed');
    expect(await Promise.all(ids.map(statusOf))).toEqual(ids.map(() => 'running'));
    letGo();
    await eventually(() => allEnded(ids));
  });

  it('waits `waitMs` for more, and takes no slot meanwhile', async () => {
    const { gate, letGo } = held();
    const calls: Jobs[] = [];
    await start(
      {
        index: { batch: { size: 100, waitMs: 2_000 }, handler: (jobs: Jobs) => void calls.push(jobs) },
        other: async () => gate,
      },
      { concurrency: 1 },
    );
    const first = await add('index', 2);
    await eventually(() => pool!.queue.depth === 2);
    const [other] = await add('other', 1);
    await eventually(() => pool!.activeWorkers === 1);
    letGo();
    await eventually(async () => (await statusOf(other!)) === 'completed');
    expect(calls).toEqual([]);
    const more = await add('index', 1);
    await eventually(() => allEnded([...first, ...more]));
    expect(calls.map((jobs) => jobs.length)).toEqual([3]);
  });

  it.each([
    ['a queue', { queue: 'mail', priority: 10 }],
    ['a rate limit', { rateLimitKey: 'smtp', priority: 10 }],
    ['one attempt', { maxAttempts: 1, priority: 10 }],
  ])('keeps no job of %s with a worse priority waiting while a batch gathers', async (_, options) => {
    await test.jobs.registerRateLimit('smtp', 10, 1_000);
    await start(
      { index: { batch: { size: 100, waitMs: 600_000 }, handler: () => undefined }, other: () => undefined },
      { concurrency: 2 },
    );
    await add('index', 2);
    await eventually(() => pool!.queue.depth === 2);
    const ids = await add('other', 3, options);
    await eventually(() => allEnded(ids));
    expect(pool!.queue.depth).toBe(2);
  });

  it('lets jobs as urgent as it take turns with those of limited tasks while a batch gathers', () => {
    const options = { size: 10, waitMs: 600_000 };
    const buffer = new JobBuffer(null, (task) => (task === 'index' ? options : null));
    const jobsOf = (task: string, count: number): ClaimedJob[] =>
      Array.from({ length: count }, (_, nth) => waitingJob(task, `${task}${nth}`));
    buffer.add(jobsOf('index', 2), { ahead: true });
    buffer.add(jobsOf('limited', 3), { ahead: true });
    buffer.add(jobsOf('plain', 3));
    expect(buffer.headPriority).toBe(0);
    const taken = Array.from({ length: 6 }, () => buffer.take()!.task);
    expect(taken).toEqual(['limited', 'plain', 'limited', 'plain', 'limited', 'plain']);
    expect([buffer.take(), buffer.headPriority, buffer.length]).toEqual([null, null, 2]);
  });

  it('groups jobs by what `by` says', async () => {
    const ids = await add('index', 30);
    const calls: number[][] = [];
    const by = (payload: number): string => String(payload % 3);
    await start({
      index: { batch: { size: 20, waitMs: 200, by }, handler: (jobs: Jobs) => void calls.push(payloads(jobs)) },
    });
    await eventually(() => allEnded(ids));
    for (const call of calls) expect(new Set(call.map((n) => n % 3)).size).toBe(1);
    expect(calls.flat()).toHaveLength(30);
  });

  it('gets jobs of one queue each, as many as its places allow, with by: queue', async () => {
    await test.jobs.configureQueue('a', { concurrency: 5 });
    await test.jobs.configureQueue('b', { concurrency: 3 });
    const ids = [...(await add('index', 10, { queue: 'a' })), ...(await add('index', 6, { queue: 'b' }))];
    const calls: (string | null)[][] = [];
    const handler = (jobs: Jobs): void => void calls.push(jobs.map(({ queue }) => queue));
    await start({ index: { batch: { size: 50, waitMs: 100, by: 'queue' }, handler } }, { concurrency: 1 });
    await eventually(() => allEnded(ids));
    for (const call of calls) {
      expect(new Set(call).size).toBe(1);
      expect(call.length).toBeLessThanOrEqual(call[0] === 'a' ? 5 : 3);
    }
    expect(calls.length).toBeLessThan(8);
  });

  it('runs with what there is where many groups with few jobs each fill the buffer', async () => {
    const ids = await add('index', 300);
    let calls = 0;
    await start({ index: { batch: { size: 10, waitMs: 60_000, by: String }, handler: () => void calls++ } });
    await eventually(() => calls >= 200);
    expect((await test.jobs.counts()).byStatus.completed + (await test.jobs.counts()).byStatus.running).toBeGreaterThan(
      0,
    );
    expect(ids).toHaveLength(300);
  });

  it('decides each job: the last word counts, the others end as the handler does', async () => {
    const ids = await add('index', 6);
    const handler = async (jobs: Jobs, ctx: BatchContext<number>): Promise<void> => {
      const job = (n: number): ClaimedJob<number> => jobs.find(({ payload }) => payload === n)!;
      ctx.complete(job(0), { pages: 3 });
      ctx.fail(job(1), new Error('no such page'));
      ctx.fail(job(2), new PermanentFailure('gone'));
      ctx.snooze(job(3), 60_000);
      ctx.fail(job(4), new Error('only at first'));
      ctx.complete(job(4));
      throw new Error('the index is away');
    };
    await start({ index: { batch: { size: 6, waitMs: 60_000 }, handler } });
    await eventually(() => allEnded(ids));
    const found = await Promise.all(ids.map((id) => test.jobs.findJob(id)));
    expect(found).toMatchObject([
      { status: 'completed' },
      { status: 'scheduled', attempts: 1, lastError: 'no such page' },
      { status: 'exhausted', lastError: 'gone' },
      { status: 'snoozed', attempts: 0 },
      { status: 'completed' },
      { status: 'scheduled', attempts: 1, lastError: 'the index is away' },
    ]);
    expect(await test.jobs.waitForJob(ids[0]!)).toMatchObject({ result: { pages: 3 } });
    const started = seen.filter(({ type }) => type === 'job.started');
    expect(started.map((event) => (event as any).job.id as string).toSorted()).toEqual(ids.toSorted());
  });

  it('may return results: an array in the order of the jobs, a Map by id, or what Promise.allSettled makes', async () => {
    const settled = async (jobs: Jobs) =>
      Promise.allSettled(jobs.map(async ({ payload }) => (payload === 1 ? Promise.reject(new Error('one')) : payload)));
    await start({
      array: {
        batch: { size: 2 },
        handler: (jobs: Jobs) => jobs.map(({ payload }) => (payload === 1 ? new Error('one') : { payload })),
      },
      map: { batch: { size: 2 }, handler: (jobs: Jobs) => new Map(jobs.map(({ id, payload }) => [id, payload])) },
      settled: { batch: { size: 2 }, handler: settled },
      odd: { batch: { size: 2 }, handler: () => [1, 2, 3] },
    });
    const ids = Object.fromEntries(
      await Promise.all(['array', 'map', 'settled', 'odd'].map(async (task) => [task, await add(task, 2)] as const)),
    ) as Record<string, string[]>;
    await eventually(() => allEnded(Object.values(ids).flat()));
    const result = async (id: string) => (await test.jobs.waitForJob(id)).result;
    expect(await result(ids.array![0]!)).toEqual({ payload: 0 });
    expect(await test.jobs.findJob(ids.array![1]!)).toMatchObject({ status: 'scheduled', lastError: 'one' });
    expect(await Promise.all(ids.map!.map(result))).toEqual([0, 1]);
    expect(await result(ids.settled![0]!)).toBe(0);
    expect(await test.jobs.findJob(ids.settled![1]!)).toMatchObject({ status: 'scheduled', lastError: 'one' });
    expect(await Promise.all(ids.odd!.map(statusOf))).toEqual(['completed', 'completed']);
    const problems = seen.filter(({ type }) => type === 'worker.error').map((event) => String((event as any).error));
    expect(problems[0]).toContain('an array of 2 results, a Map of results by job id, or nothing, got an array of 3');
  });
});

describe('a job of a batch', () => {
  /** A batch of so many jobs that stays until it is let go, and its context. */
  async function running(count: number, options: object = {}, specs: object = {}) {
    const { gate, letGo } = held();
    const calls: { jobs: Jobs; ctx: BatchContext<number> }[] = [];
    const handler = async (jobs: Jobs, ctx: BatchContext<number>): Promise<void> => {
      calls.push({ jobs, ctx });
      if (calls.length === 1) await gate;
    };
    const ids = await add('index', count, specs);
    const index = { batch: { size: count, waitMs: 60_000 }, handler, ...options };
    await start({ index }, { leaseMs: 3_000, keepaliveMs: 300 });
    await eventually(() => calls.length === 1);
    return { ids, letGo, calls, ...calls[0]! };
  }

  it('that is cancelled in mid-batch hears of it alone, and the others complete', async () => {
    const { ids, letGo, ctx, jobs } = await running(3);
    await test.jobs.cancelJobs([ids[1]!]);
    await eventually(() => ctx.for({ id: ids[1]! }).signal.aborted);
    expect(jobs.map((job) => ctx.for(job).signal.aborted)).toEqual(jobs.map(({ id }) => id === ids[1]));
    expect(ctx.signal.aborted).toBe(false);
    letGo();
    await eventually(() => allEnded(ids));
    expect(await Promise.all(ids.map(statusOf))).toEqual(['completed', 'cancelled', 'completed']);
  });

  it('that is lost in mid-batch is refused its settle, and the others complete', async () => {
    const { ids, letGo, ctx } = await running(3);
    await test.jobs.permanentlyFailJobs([ids[2]!], 'by hand');
    await eventually(() => ctx.for({ id: ids[2]! }).signal.aborted);
    ctx.complete({ id: ids[2]! });
    letGo();
    await eventually(() => seen.some(({ type, ...event }) => type === 'job.lost' && (event as any).job.id === ids[2]));
    await eventually(() => allEnded(ids.slice(0, 2)));
    expect(await Promise.all(ids.map(statusOf))).toEqual(['completed', 'completed', 'exhausted']);
  });

  it('that is added twice is in one batch once', () => {
    const buffer = new JobBuffer(null, () => ({ size: 2, waitMs: 0 }));
    const claim = (id: string, fence: string): ClaimedJob =>
      ({
        id,
        fence,
        task: 'index',
        payload: 1,
        priority: 0,
        attempts: 1,
        maxAttempts: 5,
        crashes: 0,
        queue: null,
        rateLimitKey: null,
        rateLimits: [],
      }) as any;
    buffer.add([claim('a', '1'), claim('a', '2'), claim('b', '1')]);
    const first = buffer.take()!;
    expect(buffer.batchFor(first)!.map(({ id, fence }) => [id, fence])).toEqual([
      ['a', '2'],
      ['b', '1'],
    ]);
    expect([buffer.length, buffer.take()]).toEqual([0, null]);
  });

  it('does not wait for more because others of its full batch were cancelled or paused before it started', () => {
    const buffer = new JobBuffer(null, () => ({ size: 3, waitMs: 600_000 }));
    buffer.add(['a', 'b', 'c'].map((id) => waitingJob('index', id)));
    expect(buffer.takeJobs(({ id }) => id === 'a').map(({ id }) => id)).toEqual(['a']);
    expect(buffer.batchFor(buffer.take()!)!.map(({ id }) => id)).toEqual(['b', 'c']);
    expect(buffer.length).toBe(0);
  });

  it('that was running when its process died runs alone', () => {
    const buffer = new JobBuffer(null, () => ({ size: 10, waitMs: 0 }));
    const claim = (id: string, crashes: number): ClaimedJob =>
      ({
        id,
        crashes,
        fence: '1',
        task: 'index',
        payload: 1,
        priority: 0,
        attempts: 1,
        maxAttempts: 5,
        queue: null,
        rateLimitKey: null,
        rateLimits: [],
      }) as any;
    buffer.add([claim('a', 0), claim('b', 1), claim('c', 0), claim('d', 1)]);
    const batches = Array.from({ length: 3 }, () => buffer.batchFor(buffer.take()!)!.map(({ id }) => id));
    expect(batches).toEqual([['b'], ['d'], ['a', 'c']]);
    expect(buffer.length).toBe(0);
  });

  it('has its own timeout; a handler that never returns ends with the last of them', async () => {
    const { ids, ctx } = await running(2, { timeoutMs: 300 });
    await eventually(() => allEnded(ids));
    expect(ctx.signal.aborted).toBe(true);
    expect(await Promise.all(ids.map((id) => test.jobs.findJob(id)))).toMatchObject(
      ids.map(() => ({ status: 'scheduled', attempts: 1, lastError: expect.stringContaining('300 ms') })),
    );
    expect(seen.filter(({ type }) => type === 'job.timeout')).toHaveLength(2);
    expect(() => ctx.complete({ id: ids[0]! })).toThrow(expect.objectContaining({ code: 'ERR_JOBS_ATTEMPT_OVER' }));
  });

  it('fails alone where its payload does not validate', async () => {
    const payload = {
      '~standard': {
        version: 1 as const,
        vendor: 'spec',
        validate: (value: unknown) =>
          value === 1 ? { issues: [{ message: 'not one' }] } : { value: (value as number) * 10 },
      },
    };
    const ids = await add('index', 3);
    let handed: number[] = [];
    const handler = (jobs: Jobs): void => void (handed = payloads(jobs));
    await start({ index: { payload, batch: { size: 3, waitMs: 60_000 }, handler } });
    await eventually(() => allEnded(ids));
    expect(handed).toEqual([0, 20]);
    expect(await Promise.all(ids.map(statusOf))).toEqual(['completed', 'exhausted', 'completed']);
  });

  it('has its own progress and log, and no steps', async () => {
    const { ids, letGo, ctx } = await running(2);
    await ctx.for({ id: ids[0]! }).progress(50);
    await ctx.for({ id: ids[1]! }).log('half-way');
    await expect(ctx.for({ id: ids[0]! }).step('a', () => 1)).rejects.toMatchObject({
      code: 'ERR_JOBS_INVALID_ARGUMENT',
      message: expect.stringContaining('no ctx.step in a batch handler'),
    });
    expect(() => ctx.complete({ id: 'of another batch' })).toThrow('Expected a job of the batch');
    expect((await test.jobs.findJob(ids[0]!))!.progress).toBe(50);
    expect((await test.jobs.jobLogs(ids[1]!)).items).toMatchObject([{ message: 'half-way' }]);
    letGo();
    await eventually(() => allEnded(ids));
  });

  it('goes back unstarted when the pool stops before the batch starts', async () => {
    let calls = 0;
    await start({ index: { batch: { size: 10, waitMs: 60_000 }, handler: () => void calls++ } });
    const ids = await add('index', 3);
    await eventually(() => pool!.queue.depth === 3);
    await pool!.stop();
    expect(await Promise.all(ids.map((id) => test.jobs.findJob(id)))).toMatchObject(
      ids.map(() => ({ status: 'available', attempts: 0 })),
    );
    expect(calls).toBe(0);
  });

  it('goes back uncounted when the pool stops in mid-batch and the handler stops with it', async () => {
    let aborted = 0;
    const handler = (_jobs: Jobs, { signal }: BatchContext): Promise<void> =>
      new Promise((_resolve, reject) => {
        aborted = 1;
        signal.addEventListener('abort', () => reject(signal.reason as Error));
      });
    const ids = await add('index', 3);
    await start({ index: { batch: { size: 3, waitMs: 60_000 }, handler } });
    await eventually(() => aborted === 1);
    await pool!.stop(50);
    expect(await Promise.all(ids.map((id) => test.jobs.findJob(id)))).toMatchObject(
      ids.map(() => ({ status: 'available', attempts: 0 })),
    );
  });

  it('keeps what was decided of it when the pool stops and the handler never ends', async () => {
    const { ids, ctx } = await running(3);
    ctx.fail({ id: ids[0]! }, new PermanentFailure('refused'));
    ctx.snooze({ id: ids[1]! }, 60_000);
    await pool!.stop(0);
    expect(await Promise.all(ids.map(statusOf))).toEqual(['exhausted', 'snoozed', 'running']);
    expect(() => ctx.complete({ id: ids[2]! })).not.toThrow();
    expect(seen.filter(({ type }) => type === 'job.settled')).toHaveLength(2);
  });

  it('that waits for others is explained so, and when its time to wait has passed', async () => {
    const { gate, letGo } = held();
    const handler = (): Promise<void> => gate;
    await start({
      patient: { batch: { size: 3, waitMs: 60_000 }, handler },
      hasty: { batch: { size: 3, waitMs: 1 }, handler },
      single: handler,
    });
    const [[gathering], [begun], [single]] = await Promise.all([add('patient', 2), add('hasty', 1), add('single', 1)]);
    await eventually(() => seen.filter(({ type }) => type === 'job.started').length === 2 && pool!.queue.depth === 2);
    const { lockedAt } = (await test.jobs.findJob(gathering!))!;
    const until = new Date(lockedAt!.getTime() + 60_000);
    expect(await test.jobs.explain(gathering!)).toMatchObject({
      status: 'running',
      reason: 'running',
      until,
      message: expect.stringMatching(
        `^It is claimed by ${pool!.workerId} at .+ It waits there for more jobs until ${until.toISOString()} at the latest`,
      ),
    });
    expect(await test.jobs.explain(begun!)).toMatchObject({
      reason: 'running',
      until: null,
      message: expect.stringContaining('Its batch runs, or waits there for a free slot.'),
    });
    expect((await test.jobs.explain(single!)).message).toMatch(/^It is running, claimed by/);
    letGo();
    await eventually(() => allEnded([begun!, single!]));
  });

  it('leaves a gathering batch when it is cancelled', async () => {
    const calls: number[][] = [];
    await start(
      { index: { batch: { size: 3, waitMs: 60_000 }, handler: (jobs: Jobs) => void calls.push(payloads(jobs)) } },
      { leaseMs: 3_000, keepaliveMs: 300 },
    );
    const ids = await add('index', 2);
    await eventually(() => pool!.queue.depth === 2);
    await test.jobs.cancelJobs([ids[0]!]);
    await eventually(async () => (await statusOf(ids[0]!)) === 'cancelled');
    const more = await add('index', 2);
    await eventually(() => allEnded([...ids, ...more]));
    expect(calls).toEqual([[0, 1, 1]]);
  });
});

describe('a cancellation', () => {
  it('is heard while the answer about another one is under way', async () => {
    const { registry } = test.jobs.engine;
    const { gate, letGo } = held();
    const check = registry.check.bind(registry);
    let looks = 0;
    registry.check = async (claims) => {
      const answer = await check(claims);
      if (++looks === 1) await gate;
      return answer;
    };
    await start(
      { index: { batch: { size: 100, waitMs: 600_000 }, handler: () => undefined }, other: () => undefined },
      { leaseMs: 600_000, keepaliveMs: 200_000 },
    );
    const ids = await add('index', 2);
    await eventually(() => pool!.queue.depth === 2);
    await test.jobs.cancelJobs([ids[0]!]);
    await eventually(() => looks === 1);
    await test.jobs.cancelJobs([ids[1]!]);
    // What is told after it has been heard.
    const [other] = await add('other', 1);
    await eventually(async () => (await statusOf(other!)) === 'completed');
    letGo();
    await eventually(() => allEnded(ids));
    expect(await Promise.all(ids.map(statusOf))).toEqual(['cancelled', 'cancelled']);
  });
});

describe('a batch handler elsewhere', () => {
  it('runs by workOnce, with one job', async () => {
    let count = 0;
    await start({ index: { batch: { size: 3 }, handler: (jobs: Jobs) => void (count += jobs.length) } });
    await pool!.stop();
    const ids = await add('index', 2);
    expect(await test.jobs.workOnce()).toMatchObject({ job: { id: ids[0], status: 'completed' } });
    expect(count).toBe(1);
  });

  it('is refused with wrong sizes and groups', () => {
    const make = (batch: unknown) => () =>
      createWorkerPool({ jobs: test.jobs, tasks: { index: { batch, handler: () => undefined } as any } });
    expect(make({})).toThrow('batch.size');
    expect(make({ size: 0 })).toThrow('an integer from 1 to 1000');
    expect(make({ size: 10, waitMs: -1 })).toThrow('batch.waitMs');
    expect(make({ size: 10, by: 'tenant' })).toThrow("one of 'queue', 'partition'");
    expect(make({ size: 10, byy: 'queue' })).toThrow('Unknown option batch.byy; did you mean by?');
  });
});
