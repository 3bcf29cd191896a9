import { Injectable } from '@nestjs/common';
import { afterAll, afterEach, beforeAll, describe, expect, it, jest } from '@jest/globals';
import { IsEmail } from 'class-validator';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  InvalidOptionsError,
  type JobManager,
  JobsModule,
  NoConnectionError,
  PayloadValidationError,
  SchemaOutdatedError,
  type WorkerPool,
} from '../../lib/index.js';
import { applicationsOnOneDatabase, attempt, type Applications } from '../support/app.js';
import { createTestDatabase, eventually, type TestDatabase } from '../support/database.js';

class Mail {
  @IsEmail()
  to!: string;
}

describe('without Nest', () => {
  let database: TestDatabase;
  let jobs: JobManager;
  const pools: WorkerPool[] = [];
  const start = async (parts: Omit<Parameters<typeof createWorkerPool>[0], 'jobs'>): Promise<WorkerPool> => {
    const pool = createWorkerPool({ jobs, ...parts });
    pools.push(pool);
    await pool.start();
    return pool;
  };

  beforeAll(async () => {
    database = await createTestDatabase();
    jobs = await createJobManager({ connection: database.url, queues: { lane: { concurrency: 3 } } });
  });
  afterEach(async () => {
    for (const pool of pools.splice(0)) await pool.stop();
  });
  afterAll(async () => {
    await jobs.close();
    await database.drop();
  });

  it('a manager migrates the schema and declares queues', async () => {
    expect(await jobs.listQueues()).toEqual([expect.objectContaining({ name: 'lane', concurrency: 3 })]);
  });

  it('a pool runs plain handlers, with the options and payload schemas of their tasks', async () => {
    const events = createCollectingEvents();
    const seen: unknown[] = [];
    await start({
      events,
      tasks: {
        plain: (payload, ctx) => seen.push([payload, ctx.attempt]),
        mail: { handler: (mail) => seen.push(mail instanceof Mail), payload: Mail, queue: 'lane', retry: () => false },
      },
    });
    await jobs.addJob('plain', 1);
    expect((await jobs.addJob('mail', { to: 'ada@example.org' })).queue).toBe('lane');
    await expect(jobs.addJob('mail', { to: 'x' })).rejects.toBeInstanceOf(PayloadValidationError);
    await eventually(() => seen.length === 2);
    expect(seen).toEqual(expect.arrayContaining([[1, 1], true]));
    await eventually(() => events.ofType('job.completed').length === 2);
  });

  it('two pools may handle the same tasks', async () => {
    const ran: string[] = [];
    await start({ tasks: { both: () => ran.push('a') } });
    await start({ tasks: { both: () => ran.push('b') } });
    await jobs.addJobs(Array.from({ length: 20 }, () => ({ task: 'both', payload: null })));
    await eventually(() => ran.length === 20);
    expect(new Set(ran).size).toBeGreaterThanOrEqual(1);
  });

  it('a pool names every fault of its options and tasks', () => {
    const make = (tasks: object, options: object = {}): unknown =>
      createWorkerPool({ jobs, tasks: tasks as never, options });
    expect(() => make({}, { concurency: 1 })).toThrow(/worker\.concurency; did you mean concurrency\?/);
    const handler = (): void => undefined;
    expect(() => make({ a: { handler, priority: 'x' }, b: { handler: 1 }, c: { handler, timeout: 1 } })).toThrow(
      new InvalidOptionsError([
        'tasks["a"]: Expected priority to be an integer from -2147483648 to 2147483647, got "x".',
        'tasks["b"]: Expected handler to be a function, got 1.',
        'tasks["c"]: Unknown option timeout; did you mean timeoutMs?',
      ]),
    );
  });

  it('a manager says what is missing', async () => {
    await expect(createJobManager({})).rejects.toBeInstanceOf(NoConnectionError);
    await expect(
      createJobManager({ connection: database.url, schema: 'not_there', migrate: false }),
    ).rejects.toBeInstanceOf(SchemaOutdatedError);
  });
});

describe('two copies of the package in one process', () => {
  let apps: Applications;

  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
  });
  afterAll(async () => {
    await apps.close();
    await apps.drop();
  });

  it('see each other’s tasks', async () => {
    jest.resetModules();
    const other = await import('../../lib/index.js');
    expect(other.JobsModule).not.toBe(JobsModule);
    @Injectable()
    class OtherTasks {
      @other.Task('from-the-other-copy')
      run(payload: string): string {
        return payload;
      }
    }
    const app = await apps.start({
      imports: [JobsModule.forRoot({ connection: apps.database.url })],
      providers: [OtherTasks],
    });
    expect((await attempt(app, 'from-the-other-copy', 'x')).result).toBe('x');
  });
});
