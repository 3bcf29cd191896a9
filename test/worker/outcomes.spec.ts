import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import {
  CancelJob,
  createWorkerPool,
  partialSuccess,
  PermanentFailure,
  snooze,
  type WorkerPool,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';

const raise = (value: unknown) => (): never => {
  throw value;
};

const tasks = {
  'returns a PermanentFailure': () => new PermanentFailure('never again'),
  'resolves to a CancelJob': async () => new CancelJob('not needed'),
  'throws a snooze': raise(snooze(60_000)),
  'throws a partialSuccess': raise(partialSuccess({ completedSteps: ['a'] })),
  'throws the class PermanentFailure': raise(PermanentFailure),
  'returns the class CancelJob': () => CancelJob,
  'returns a PermanentFailure after a write': {
    transactional: true,
    handler: async (_payload: unknown, ctx: { manager: { query(text: string): Promise<unknown> } }) => {
      await ctx.manager.query('insert into public.written values (1)');
      return new PermanentFailure('never again');
    },
  },
};

describe('an outcome in the wrong hand', () => {
  let test: TestManager;
  let pool: WorkerPool;
  beforeAll(async () => {
    test = await createTestManager({ retry: { baseDelayMs: 60_000 } });
    await test.sql('create table public.written (n integer)');
    pool = createWorkerPool({ jobs: test.jobs, tasks, options: { pollIntervalMs: 50 } });
    await pool.start();
  });
  afterAll(async () => {
    await pool.stop();
    await test.close();
  });

  const notMade = (name: string) => `Expected the handler to throw new ${name}(reason), got the class ${name} itself.`;

  it.each<[keyof typeof tasks, object]>([
    ['returns a PermanentFailure', { status: 'exhausted', attempts: 1, lastError: 'never again' }],
    ['resolves to a CancelJob', { status: 'cancelled' }],
    ['throws a snooze', { status: 'snoozed', attempts: 0 }],
    ['throws a partialSuccess', { status: 'scheduled', attempts: 1, lastError: null }],
    ['throws the class PermanentFailure', { status: 'exhausted', lastError: notMade('PermanentFailure') }],
    ['returns the class CancelJob', { status: 'exhausted', lastError: notMade('CancelJob') }],
    ['returns a PermanentFailure after a write', { status: 'exhausted', lastError: 'never again' }],
  ])('means what it says: a handler that %s', async (task, expected) => {
    const { id } = await test.jobs.addJob(task, 1);
    await eventually(async () => !['available', 'running'].includes((await test.jobs.findJob(id))!.status));
    expect(await test.jobs.findJob(id)).toMatchObject(expected);
    expect(await test.sql('select * from public.written')).toEqual([]);
  });
});
