// Names and values that cannot be meant are refused, or warned of, with what was probably meant.
import { afterAll, afterEach, beforeAll, describe, expect, it, jest } from '@jest/globals';
import { createWorkerPool, defineTask, JobEvents, JobQueue, partialSuccess } from '../../lib/index.js';
import { TaskRegistry } from '../../lib/manager/task.registry.js';
import { createJobsTesting } from '../../lib/testing.js';
import { createTestManager, type TestManager, WORKER } from '../support/manager.js';

let manager: TestManager;
beforeAll(async () => (manager = await createTestManager()));
afterAll(() => manager.close());

describe('a misspelt type of event', () => {
  it('is refused', () => {
    expect(() => new JobEvents().on('job.complted' as never, () => undefined)).toThrow(
      /Expected type to be one of .* got "job\.complted"; did you mean job\.completed\?/,
    );
    expect(() => new JobEvents().on('all', 'handler' as never)).toThrow(/Expected handler to be a function/);
  });
});

describe('a misspelt value', () => {
  it('is refused with the nearest one', async () => {
    await expect(manager.jobs.listJobs({ status: 'complete' as never })).rejects.toThrow(/did you mean completed\?/);
    await expect(manager.jobs.purgeJobs({ status: 'canceled' as never, olderThanMs: 0 })).rejects.toThrow(
      /did you mean cancelled\?/,
    );
    const testing = createJobsTesting({ jobs: manager.jobs });
    await expect(testing.expectNotEnqueued({ status: 'availble' as never })).rejects.toThrow(
      /did you mean available\?/,
    );
    await testing.close();
  });
});

describe('a worker id that is too short', () => {
  it.each(['', 'short', 7, null])('is refused by pools and queues (%p)', (id) => {
    const workerId = id as string;
    expect(() => createWorkerPool({ jobs: manager.jobs, tasks: {}, workerId })).toThrow(/worker ?id/i);
    expect(() => new JobQueue({ jobs: manager.jobs, workerId })).toThrow(/worker ?id/i);
  });
});

describe('options of a JobQueue', () => {
  it.each([
    [{ pollIntervalMs: NaN }, 'pollIntervalMs'],
    [{ pollIntervalMs: 3e9 }, 'pollIntervalMs'],
    [{ queueTtlMs: -1 }, 'queueTtlMs'],
    [{ queueSize: 0.5 }, 'queueSize'],
    [{ queues: 'mail' }, 'queues'],
    [{ taskIdentifiers: 5 }, 'taskIdentifiers'],
    [{ leaseMs: '1h' }, 'leaseMs'],
    [{ admit: true }, 'admit'],
    [{ jobs: {} }, 'jobs'],
  ])('of nonsense are refused (%j)', (options, name) => {
    const make = () => new JobQueue({ jobs: manager.jobs, workerId: WORKER, ...(options as object) });
    expect(make).toThrow(expect.objectContaining({ problems: [expect.stringContaining(`Expected ${name} to be`)] }));
  });
});

describe('parts of a pool', () => {
  it.each([
    [{ jobs: undefined }, 'jobs'],
    [{ events: {} }, 'events'],
    [{ tasks: [] }, 'tasks'],
    [{ tasks: undefined }, 'tasks'],
    [{ unknownTasks: 'exhuast' }, 'unknownTasks'],
    [{ mask: 5 }, 'mask'],
  ])('of nonsense are refused (%j)', (parts, name) => {
    const make = () => createWorkerPool({ jobs: manager.jobs, tasks: {}, ...(parts as object) });
    expect(make).toThrow(expect.objectContaining({ problems: [expect.stringContaining(`Expected ${name} to be`)] }));
  });

  it('called what the module calls them are told their names here', () => {
    const make = () => createWorkerPool({ jobs: manager.jobs, tasks: {}, worker: { concurrency: 3 } } as never);
    expect(make).toThrow(expect.objectContaining({ problems: ['Unknown option worker; did you mean options?'] }));
  });

  it('are given a time to stop that is one', async () => {
    const pool = createWorkerPool({ jobs: manager.jobs, tasks: {} });
    await expect(pool.stop('5s' as never)).rejects.toThrow(/Expected timeoutMs to be a number of milliseconds/);
    await expect(pool.stop(NaN)).rejects.toThrow(/got NaN/);
  });
});

it('partialSuccess of nothing is refused', () => {
  expect(() => partialSuccess(undefined as never)).toThrow('Expected what partialSuccess is given to be an object');
});

describe('a misspelt task', () => {
  const seen: string[] = [];
  beforeAll(() => {
    createWorkerPool({ jobs: manager.jobs, tasks: { 'send-email': () => undefined, 'part-1': () => undefined } });
  });
  afterEach(() => {
    jest.restoreAllMocks();
    seen.length = 0;
  });
  const watch = (): void =>
    void jest.spyOn(process, 'emitWarning').mockImplementation((warning) => void seen.push(String(warning)));

  it('is added, and warned of once', async () => {
    watch();
    for (let count = 0; count < 3; count++) await manager.jobs.addJob('sned-email', {});
    expect(seen).toEqual([expect.stringMatching(/the task "sned-email".*did you mean "send-email"\?/)]);
    expect((await manager.jobs.listJobs({ task: 'sned-email' })).items).toHaveLength(3);
  });

  it('is noticed in addJobs, tokens and crontabs, too', async () => {
    watch();
    await manager.jobs.addJobs([{ task: 'Send-Email', payload: 1 }]);
    await manager.jobs.addJob(defineTask('send-emial'), {});
    await manager.jobs.scheduleCron({ id: 'c', task: 'send-mail', schedule: '0 0 1 1 *' });
    expect(seen).toHaveLength(3);
  });

  it.each(['send-email', 'part-2', 'part-17', 'resize-image', 'x', 'sendreport'])(
    'is not suspected in %s',
    async (task) => {
      watch();
      await manager.jobs.addJob(task, {});
      expect(seen).toEqual([]);
    },
  );

  it('is not looked for where no tasks are known', () => {
    const warn = jest.fn();
    new TaskRegistry(warn).notice('send-email');
    expect(warn).not.toHaveBeenCalled();
  });
});
