// What is kept of a failed attempt names the reasons that its error carries, and nothing that may be secret.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { BadRequestException, HttpException } from '@nestjs/common';
import { createCollectingEvents, createWorkerPool, PermanentFailure, type WorkerPool } from '../../lib/index.js';
import { errorMessage, serializeError } from '../../lib/monitoring/error.text.js';
import { createTestManager, type TestManager } from '../support/manager.js';

const pgError = Object.assign(new Error('duplicate key value violates unique constraint "users_email"'), {
  code: '23505',
  detail: 'Key (email)=(ada@example.org) already exists.',
  table: 'users',
});

const THROWN: Record<string, () => unknown> = {
  aggregate: () => new AggregateError([new Error('first is down'), new Error('second is down')], 'no replica answered'),
  nameless: () => new AggregateError([Object.assign(new Error('connect refused'), { code: 'ECONNREFUSED' })]),
  many: () => new AggregateError(Array.from({ length: 12 }, (_, index) => new Error(`part ${index}`))),
  response: () => new BadRequestException(['to must be an email', 'cents must be an integer']),
  text: () => new HttpException('the shop is closed', 503),
  database: () => pgError,
  own: () => Object.assign(new Error('refused by the bank'), { reason: { insufficient: true }, iban: 'DE00' }),
  client: () =>
    Object.assign(new Error('Request failed with status code 401'), {
      code: 'ERR_BAD_REQUEST',
      status: 401,
      config: { headers: { Authorization: 'Bearer hunter2' } },
      token: 'hunter2',
      nested: { password: 'hunter2' },
    }),
  caused: () => new Error('sync failed', { cause: Object.assign(new Error('socket hang up'), { code: 'ECONNRESET' }) }),
  permanent: () => new PermanentFailure('the customer has no card'),
};

let manager: TestManager;
let pool: WorkerPool;
const events = createCollectingEvents();

beforeAll(async () => {
  manager = await createTestManager();
  const fail = (kind: keyof typeof THROWN): never => {
    throw THROWN[kind]!();
  };
  const tasks = { fail, value: () => ({ pages: 12, at: new Date(0) }), nothing: () => undefined };
  pool = createWorkerPool({ jobs: manager.jobs, tasks, events });
  await pool.start();
});

afterAll(async () => {
  await pool.stop();
  await manager.close();
});

const failed = async (kind: string) => {
  const { id } = await manager.jobs.addJob('fail', kind, { maxAttempts: 1 });
  const { error } = await manager.jobs.waitForJob(id);
  return { error, record: (await manager.jobs.jobHistory(id))[0]! };
};

describe('the reason of a failed attempt', () => {
  it.each([
    ['aggregate', 'no replica answered: first is down; second is down'],
    ['nameless', 'AggregateError: connect refused (ECONNREFUSED)'],
    ['response', 'Bad Request Exception: to must be an email; cents must be an integer'],
    ['text', 'the shop is closed'],
    [
      'database',
      'duplicate key value violates unique constraint "users_email" (23505; Key (email)=(ada@example.org) already exists.)',
    ],
    ['permanent', 'the customer has no card'],
  ])('is kept with what the error carries beside its message (%s)', async (kind, message) => {
    const { error, record } = await failed(kind);
    expect([error, record.errorMessage]).toEqual([message, message]);
  });

  it('names some of many errors, and how many there are', async () => {
    expect((await failed('many')).error).toMatch(/part 0; .*part 9; and 2 more$/);
  });

  it('is in the stack with the own properties of the error, and the stacks of those inside it', async () => {
    expect((await failed('own')).record.errorStack).toMatch(
      /Error: refused by the bank\n[^]*reason: \{ insufficient: true \}, iban: 'DE00'/,
    );
    expect((await failed('aggregate')).record.errorStack).toMatch(
      /one of them: Error: first is down\n[^]*one of them: Error: second/,
    );
    expect((await failed('caused')).record.errorStack).toMatch(
      /caused by: Error: socket hang up\n[^]*code: 'ECONNRESET'/,
    );
    expect((await failed('database')).record.errorStack).toContain("table: 'users'");
  });

  it('holds no credentials that a client has attached to its error', async () => {
    const { error, record } = await failed('client');
    expect(error).toBe('Request failed with status code 401 (ERR_BAD_REQUEST)');
    expect(record.errorStack).toContain('status: 401');
    expect(JSON.stringify(record)).not.toContain('hunter2');
  });

  it('is shown in the log without the values that PostgreSQL puts into its details', () => {
    expect(errorMessage(pgError)).toBe('duplicate key value violates unique constraint "users_email" (23505)');
  });

  it('is found however hostile the error is', () => {
    const cyclic = new AggregateError([], 'around');
    cyclic.errors.push(cyclic, Object.assign(new Error('inner'), { cause: cyclic }));
    expect(serializeError(cyclic).message).toBe('around: inner');
    const hostile = new Proxy(new Error('x'), {
      get: () => {
        throw new Error('no');
      },
    });
    expect(serializeError(hostile).message).toBe('unknown error (it could not be described)');
  });
});

describe('the event job.completed', () => {
  it('carries the value that waitForJob gives', async () => {
    for (const task of ['value', 'nothing']) {
      const { id } = await manager.jobs.addJob(task, {});
      const { result } = await manager.jobs.waitForJob(id);
      expect(events.ofType('job.completed').find(({ job }) => job.id === id)!.result).toEqual(result);
    }
    expect(events.ofType('job.completed')[0]!.result).toEqual({ pages: 12, at: '1970-01-01T00:00:00.000Z' });
  });
});

describe('the event pool.stop', () => {
  it('says forced where a stop under way was forced', async () => {
    let release!: () => void;
    const held = new Promise<void>((resolve) => (release = resolve));
    const seen = createCollectingEvents();
    const hold = (_payload: unknown, { signal }: { signal: AbortSignal }): Promise<void> => {
      signal.addEventListener('abort', release);
      return held;
    };
    const other = createWorkerPool({ jobs: manager.jobs, tasks: { hold }, events: seen });
    const started = new Promise<void>((resolve) => void seen.on('job.started', () => resolve()));
    await other.start();
    await manager.jobs.addJob('hold', {});
    await started;
    const stopped = other.stop(3e9);
    // Longer than a timer of Node can hold: nothing is aborted.
    await new Promise((resolve) => setImmediate(resolve));
    expect(other.activeWorkers).toBe(1);
    await other.forceStop();
    await stopped;
    expect(seen.ofType('pool.stop')).toMatchObject([{ forced: true }]);
  });
});
