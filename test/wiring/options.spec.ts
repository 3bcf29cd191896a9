import { describe, expect, it } from '@jest/globals';
import { InvalidOptionsError, type JobsModuleOptions } from '../../lib/index.js';
import { resolveManagerOptions, resolveOptions, resolveWorkerOptions } from '../../lib/jobs.options.js';

const problemsOf = (options: unknown): string[] => {
  try {
    resolveOptions(options as JobsModuleOptions);
  } catch (error) {
    if (error instanceof InvalidOptionsError) return error.problems;
    throw error;
  }
  return [];
};

const queue = (concurrency: number | null) => ({ concurrency, partitions: {}, maxWaiting: null });

describe('the options', () => {
  it('left out have the documented defaults', () => {
    expect(resolveOptions()).toEqual({
      name: 'default',
      connection: undefined,
      dataSource: undefined,
      migrate: true,
      waitForDatabaseMs: 0,
      listenConnection: undefined,
      preparedStatements: null,
      manager: {
        schema: 'jobs',
        retry: { baseDelayMs: 1_000, multiplier: 2, maxDelayMs: 3_600_000, jitter: 0.1, maxAttempts: 25 },
        history: { keep: 'all', retentionMs: 30 * 86_400_000 },
        lockTimeoutMs: 4 * 3_600_000,
        maxCrashes: 3,
        taskIdentifierRetentionMs: 7 * 86_400_000,
        maxPayloadBytes: 1_048_576,
        encryption: null,
        queues: {},
      },
      worker: {
        concurrency: 10,
        queueSize: null,
        queueTtlMs: 60_000,
        refetchThreshold: null,
        refetchDelayMs: 1_000,
        pollIntervalMs: 2_000,
        maxPollIntervalMs: 2_000,
        leaseMs: 30_000,
        keepaliveMs: 10_000,
        timeoutMs: 300_000,
        gracefulShutdownTimeoutMs: 30_000,
        taskIdentifiers: null,
        queues: null,
        forbiddenFlags: null,
        maxCrashes: 3,
        listen: true,
        autoStart: true,
        unknownTasks: 'leave',
      },
      maintenance: { resetLockedJobs: '* * * * *', refillRateLimits: '* * * * * *', gc: '0 3 * * *', timeZone: 'UTC' },
      globalEnhancers: false,
      mask: undefined,
    });
  });

  it('that are undefined have them, too', () => {
    const options = {
      schema: undefined,
      retry: { jitter: undefined },
      worker: { leaseMs: undefined },
      queues: undefined,
    };
    expect(resolveOptions(options as unknown as JobsModuleOptions)).toEqual(resolveOptions());
  });

  it('that are given are taken', () => {
    const { manager, worker, maintenance } = resolveOptions({
      schema: 'work',
      retry: { multiplier: 3 },
      queues: { a: { concurrency: 4 }, b: {}, c: { concurrency: Infinity } },
      worker: { leaseMs: 10_000, pollIntervalMs: 500, queues: ['a'] },
      maintenance: { gc: false, timeZone: 'Europe/Berlin' },
      unknownTasks: 'exhaust',
    });
    expect(manager).toMatchObject({ schema: 'work', queues: { a: queue(4), b: queue(1), c: queue(null) } });
    expect(manager.retry).toMatchObject({ multiplier: 3, baseDelayMs: 1_000 });
    expect(worker).toMatchObject({
      keepaliveMs: 7_000,
      maxPollIntervalMs: 500,
      queues: ['a'],
      unknownTasks: 'exhaust',
    });
    expect(maintenance).toMatchObject({ gc: false, timeZone: 'Europe/Berlin', resetLockedJobs: '* * * * *' });
  });

  it('say by worker: false that this process only enqueues', () => {
    expect(resolveOptions({ worker: false }).worker).toBeNull();
  });

  it('that are wrong are all named in one error', () => {
    const wrong = {
      schema: '',
      migrate: 'yes',
      retry: { jitter: 2, maxAttempts: 0 },
      history: { keep: 'some' },
      queues: { billing: { concurrency: 0 }, mail: 3 },
      worker: { concurrency: 1.5, taskIdentifiers: 'mail', leaseMs: 10 },
      maintenance: { gc: 'daily', timeZone: 'Berlin' },
      maxPayloadBytes: null,
    };
    expect(problemsOf(wrong)).toEqual([
      'Expected schema to be a string of 1 to 63 bytes, got "".',
      'Expected migrate to be true or false, got "yes".',
      'Expected retry.jitter to be a number from 0 to 1, got 2.',
      'Expected retry.maxAttempts to be an integer from 1 to 32767, got 0.',
      "Expected history.keep to be one of 'all', 'failures', 'none', got \"some\".",
      'Expected queues.billing.concurrency to be an integer from 1 to 2147483647, or Infinity, got 0.',
      'Expected queues.mail to be an object, got 3.',
      'Expected worker.concurrency to be an integer from 1 to 10000, got 1.5.',
      'Expected worker.taskIdentifiers to be an array of strings of 1 to 1000 bytes of UTF-8 without NUL and lone surrogates, got "mail".',
      'Expected worker.leaseMs to be an integer from 1000 to 2147000000, got 10.',
      'Expected maintenance.gc to be a crontab expression of 5 or 6 fields, or false, got "daily".',
      'Expected maintenance.timeZone to be the name of a time zone, such as \'Europe/Berlin\', got "Berlin".',
      'Expected maxPayloadBytes to be an integer from 1 to 268435456, got null.',
    ]);
  });

  it('that are unknown are named with what was probably meant, at any depth', () => {
    expect(
      problemsOf({ shema: 'jobs', Retry: {}, worker: { concurency: 3 }, queues: { a: { concurrencyy: 1 } } }),
    ).toEqual([
      'Unknown option shema; did you mean schema?',
      'Unknown option Retry; did you mean retry?',
      'Unknown option worker.concurency; did you mean concurrency?',
      'Unknown option queues.a.concurrencyy; did you mean concurrency?',
    ]);
  });

  it('that belong into a section are sent there', () => {
    expect(problemsOf({ concurrency: 3, maxAttempts: 4 })).toEqual([
      'Unknown option concurrency; did you mean worker.concurrency?',
      'Unknown option maxAttempts; did you mean retry.maxAttempts?',
    ]);
  });

  it('that resemble nothing are told what there is', () => {
    expect(problemsOf({ history: { frobnicate: 1 } })).toEqual([
      'Unknown option history.frobnicate; known are keep, retentionMs.',
    ]);
  });

  it('contradict each other in no way', () => {
    const worker = { keepaliveMs: 30_000, maxPollIntervalMs: 100, queueSize: 5, refetchThreshold: 5 };
    expect(problemsOf({ worker, connection: 'postgres://h/d', dataSource: { driver: {} } })).toEqual([
      'Expected either connection or dataSource, got both.',
      'Expected worker.keepaliveMs to be less than worker.leaseMs (30000), got 30000.',
      'Expected worker.maxPollIntervalMs to be at least worker.pollIntervalMs (2000), got 100.',
      'Expected worker.refetchThreshold to be less than worker.queueSize (5), got 5.',
    ]);
  });

  it.each([
    ['mysql://root:hunter2@db/app', 'a string that is no such URL'],
    ['', 'an empty string'],
    [5432, '5432'],
    [{ url: 'postgres://u:hunter2@h/d' }, 'one with "url", which pg calls "connectionString"'],
    [{ username: 'ada' }, 'one with "username", which pg calls "user"'],
  ])('refuse as a connection %j, without showing a password', (connection, got) => {
    expect(problemsOf({ connection })).toEqual([
      `Expected connection to be a PostgreSQL URL (postgres://…) or a pg pool configuration, got ${got}.`,
    ]);
  });

  it.each([
    'postgres://localhost/app',
    'postgresql:///app?host=/run/pg',
    '/run/pg app',
    { host: 'db', password: () => 'p' },
  ])('take as a connection %j', (connection) => expect(problemsOf({ connection })).toEqual([]));

  it.each([null, [], 'options', 7, { worker: true }, { worker: null }, { worker: [] }])('are no %j', (options) => {
    expect(problemsOf(options)).toHaveLength(1);
  });

  it('are read in the same way without Nest', () => {
    expect(resolveManagerOptions({ schema: 'x' }).manager).toEqual(resolveOptions({ schema: 'x' }).manager);
    expect(resolveWorkerOptions({ concurrency: 2 })).toEqual(resolveOptions({ worker: { concurrency: 2 } }).worker);
    expect(() => resolveManagerOptions({ worker: {} } as never)).toThrow(/Unknown option worker; known are/);
    expect(() => resolveWorkerOptions({ keepaliveMs: 40_000 })).toThrow(/worker\.keepaliveMs/);
    expect(() => resolveWorkerOptions({ timeout: 1 } as never)).toThrow(/worker\.timeout; did you mean timeoutMs\?/);
  });
});
