// Names are refused before they get to an index that is too small for them, or into a lane that they would break apart.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { createJobManager, createWorkerPool, InvalidArgumentError, JobQueue, JobsModule } from '../../lib/index.js';
import { NestFactory } from '@nestjs/core';
import { createJobsTesting } from '../../lib/testing.js';
import { createTestManager, type TestManager, WORKER } from '../support/manager.js';

let manager: TestManager;
beforeAll(async () => (manager = await createTestManager()));
afterAll(() => manager.close());

/** Characters that do not compress: PostgreSQL measures what an index entry takes. */
const letters = (bytes: number): string =>
  Array.from({ length: Math.floor(bytes / 3) }, (_, index) =>
    String.fromCharCode(0x4e00 + ((index * 7_919) % 20_000)),
  ).join('') + 'x'.repeat(bytes % 3);

const WRONG_LANE_NAMES = ['', letters(1_001), 'a\0b', 'a\u0001b', 'a\tb', 'a\nb', 'a\u001fb', 'a\ud800b'];
const LANE_NAMES = ['q', letters(1_000), ' ', '\u0020\u007f\u0085', '\ufeff😀', `'"\\%`];

const refused = (problem: string) =>
  expect.objectContaining({
    code: expect.stringMatching(/^ERR_JOBS_INVALID_(ARGUMENT|OPTIONS)$/),
    problems: [expect.stringMatching(problem)],
  });
const A_LANE_NAME = 'of 1 to 1000 bytes of UTF-8 without control characters and lone surrogates, got ';

/** Every call that takes the name of a queue, or the key of a rate limit. */
const LANE_CALLS: Record<string, (name: string) => unknown> = {
  'addJob, as its queue': (queue) => manager.jobs.addJob('x', 1, { queue }),
  'addJob, as its rate limit': (rateLimitKey) => manager.jobs.addJob('x', 1, { rateLimitKey }),
  'addJobs, as a queue': (queue) => manager.jobs.addJobs([{ task: 'x', payload: 1, queue }]),
  'addJobs, as a rate limit': (rateLimitKey) => manager.jobs.addJobs([{ task: 'x', payload: 1, rateLimitKey }]),
  'scheduleCron, as its queue': (queue) =>
    manager.jobs.scheduleCron({ id: 'c', task: 'x', schedule: '0 0 * * *', options: { queue } }),
  'scheduleCron, as its rate limit': (rateLimitKey) =>
    manager.jobs.scheduleCron({ id: 'c', task: 'x', schedule: '0 0 * * *', options: { rateLimitKey } }),
  getJobs: (name) => manager.jobs.getJobs(WORKER, { queues: [name] }),
  workOnce: (name) => manager.jobs.workOnce({ queues: [name] }),
  listJobs: (queue) => manager.jobs.listJobs({ queue }),
  pauseQueue: (name) => manager.jobs.pauseQueue(name),
  resumeQueue: (name) => manager.jobs.resumeQueue(name),
  'pause, as a queue': (queue) => manager.jobs.pause({ queue }, { reason: 'why', by: 'who' }),
  'pause, as the queue of a partition': (queue) =>
    manager.jobs.pause({ partition: { queue, partition: 'p' } }, { reason: 'why', by: 'who' }),
  'resume, as a queue': (queue) => manager.jobs.resume({ queue }),
  configureQueue: (name) => manager.jobs.configureQueue(name, { concurrency: 2 }),
  forceUnlockQueues: (name) => manager.jobs.forceUnlockQueues([name]),
  registerRateLimit: (key) => manager.jobs.registerRateLimit(key, 1, 1_000),
  'createJobManager, among its queues': (name) =>
    createJobManager({ connection: manager.url, queues: { [name]: { concurrency: 2 } } }),
  'the module, among its queues': (name) =>
    startModule(JobsModule.forRoot({ connection: manager.url, queues: { [name]: { concurrency: 2 } } })),
  'the module, among the queues of its worker': (name) =>
    startModule(JobsModule.forRoot({ connection: manager.url, worker: { queues: [name] } })),
  'createWorkerPool, among its queues': (name) =>
    createWorkerPool({ jobs: manager.jobs, tasks: {}, options: { queues: [name] } }),
  'createWorkerPool, as the queue of a task': (queue) =>
    createWorkerPool({ jobs: manager.jobs, tasks: { x: { handler: () => 1, queue } } }),
  'createWorkerPool, as the rate limit of a task': (rateLimitKey) =>
    createWorkerPool({ jobs: manager.jobs, tasks: { x: { handler: () => 1, rateLimitKey } } }),
  'a JobQueue': (name) => new JobQueue({ jobs: manager.jobs, workerId: WORKER, queues: [name] }),
  'the testing kit': async (name) => {
    const testing = createJobsTesting({ jobs: manager.jobs });
    try {
      await testing.drain({ queues: [name] });
    } finally {
      await testing.close();
    }
  },
};

async function startModule(module: ReturnType<typeof JobsModule.forRoot>): Promise<void> {
  await (await NestFactory.createApplicationContext(module, { logger: false, abortOnError: false })).close();
}

describe('a name with control characters, or too long for an index', () => {
  it.each(Object.keys(LANE_CALLS))('is refused by %s', async (call) => {
    for (const name of WRONG_LANE_NAMES) {
      const failure = await Promise.resolve(name)
        .then(LANE_CALLS[call])
        .then(
          () => `nothing wrong with ${JSON.stringify(name)}`,
          (error: unknown) => error,
        );
      expect(failure).toEqual(refused(A_LANE_NAME));
    }
  });
});

describe('any other name', () => {
  it.each(LANE_NAMES)('is that of a queue, beside that of a rate limit (%j)', async (name) => {
    const { jobs } = manager;
    await jobs.registerRateLimit(name, 5, 60_000);
    await jobs.configureQueue(name, { concurrency: 2 });
    const { id } = await jobs.addJob('x', 1, { queue: name, rateLimitKey: name });
    expect((await jobs.listJobs({ queue: name })).items).toMatchObject([{ id, queue: name, rateLimitKey: name }]);
    const claimed = await jobs.getJobs(WORKER, { queues: [name] });
    expect(claimed).toMatchObject([{ id, queue: name, rateLimitKey: name }]);
    await jobs.completeJobs(WORKER, claimed, 1);
  });
});

describe('a job key', () => {
  it('has up to 2,000 bytes', async () => {
    for (const jobKey of ['\t', letters(2_000)]) {
      expect(await manager.jobs.addJob('x', 1, { jobKey })).toMatchObject({ jobKey, created: true });
    }
    for (const jobKey of ['', letters(2_001), 'a\0b']) {
      const problem =
        /Expected jobKey to be a string of 1 to 2000 bytes of UTF-8 without NUL and lone surrogates, got /;
      await expect(manager.jobs.addJob('x', 1, { jobKey })).rejects.toMatchObject({
        problems: [expect.stringMatching(problem)],
      });
    }
  });
});

describe('names of tasks, groups and crontabs', () => {
  it('are counted in bytes, as indexes are', async () => {
    const { jobs } = manager;
    const [task, groupId, tag] = [letters(1_000), letters(1_000), letters(1_000)];
    expect(await jobs.addJob(task, 1, { groupId, tags: [tag] })).toMatchObject({ task, groupId });
    expect(await jobs.scheduleCron({ id: letters(900), task, schedule: '0 0 * * *' })).toMatchObject({ task });
    const long = letters(1_001);
    const schedule = '0 0 * * *';
    for (const wrong of [
      jobs.addJob(long, 1),
      jobs.addJob('x', 1, { groupId: long }),
      jobs.addJob('x', 1, { tags: [long] }),
      jobs.scheduleCron({ id: letters(901), task: 'x', schedule }),
    ]) {
      await expect(wrong).rejects.toBeInstanceOf(InvalidArgumentError);
    }
  });
});

describe('a queue that a job was said to have none of', () => {
  it('is not given to its replay', async () => {
    const { jobs } = manager;
    createWorkerPool({ jobs, tasks: { 'has-a-queue': { handler: () => 1, queue: 'of-the-task' } } });
    const { id } = await jobs.addJob('has-a-queue', 1, { queue: null });
    await jobs.permanentlyFailJobs([id]);
    expect(await jobs.replayFailedJobs({ task: 'has-a-queue' })).toMatchObject([{ task: 'has-a-queue', queue: null }]);
  });
});
