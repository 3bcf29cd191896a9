// What a spec can say of enqueued jobs, and what it is told when that is not so.
import { AssertionError } from 'node:assert';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { defineTask, InvalidArgumentError } from '../../lib/index.js';
import { createJobsTesting, type JobsTesting } from '../../lib/testing.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let manager: TestManager;
let testing: JobsTesting;

beforeAll(async () => {
  manager = await createTestManager();
  testing = createJobsTesting({ jobs: manager.jobs, tasks: { mail: () => undefined } });
});
afterEach(() => testing.clear());
afterAll(async () => {
  await testing.close();
  await manager.close();
});

const messageOf = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'passed',
    (error: Error) => (error instanceof AssertionError ? error.message : String(error)),
  );

describe('enqueued', () => {
  it('finds waiting jobs by any of their fields, and by parts of their payloads at any depth', async () => {
    const { jobs } = manager;
    const at = new Date('2030-01-02T03:04:05.678Z');
    await jobs.addJob('mail', { to: { name: 'Ada', at }, cc: ['bob', 'eve'] }, { queue: 'out', tags: ['x'] });
    await jobs.addJob('mail', { to: { name: 'Bob' } }, { delayMs: 60_000 });
    const found = async (filter: Parameters<JobsTesting['enqueued']>[0]): Promise<number> =>
      (await testing.enqueued(filter)).length;
    expect(await found({})).toBe(2);
    expect(await found({ task: defineTask('mail') })).toBe(2);
    expect(await found({ task: 'other' })).toBe(0);
    expect(await found({ payload: { to: { name: 'Ada' } } })).toBe(1);
    expect(await found({ payload: { to: { at } } })).toBe(1);
    expect(await found({ payload: { cc: ['bob', 'eve'] } })).toBe(1);
    expect(await found({ payload: { cc: ['bob'] } })).toBe(0);
    expect(await found({ payload: { to: expect.objectContaining({ name: expect.stringMatching(/^B/) }) } })).toBe(1);
    expect(await found({ queue: 'out', tags: ['x'] })).toBe(1);
    expect(await found({ queue: null, status: 'scheduled' })).toBe(1);
    expect(await found({ task: 'mail', queue: undefined })).toBe(2);
  });

  it('takes regular expressions and matchers in the place of texts, the task’s name included', async () => {
    await manager.jobs.addJob('mail', { to: 'ada@example.org' });
    const found = async (filter: object): Promise<number> => (await testing.enqueued(filter)).length;
    expect(await found({ task: /^ma/, payload: { to: /@example/ } })).toBe(1);
    expect(await found({ task: expect.stringContaining('ai'), status: expect.any(String) })).toBe(1);
    expect(await found({ task: /^x/ })).toBe(0);
    expect(await found({ task: expect.stringContaining('x') })).toBe(0);
    expect(await found({ payload: { to: /bob/ } })).toBe(0);
  });

  it.each<[string, object, string]>([
    ['a misspelt field', { quue: 'mail' }, 'quue'],
    ['a field in other letters', { Task: 'mail' }, 'Task'],
    ['a status that no job has', { status: 'enqueued' }, 'status'],
    ['a task that has no name', { task: {} }, 'task'],
    ['a Map', { payload: { by: new Map() } }, 'payload.by'],
    ['a number that JSON does not have', { payload: 1n }, 'payload'],
    ['a function', { payload: [() => 1] }, 'payload.0'],
    ['no number', { payload: { n: Number.NaN } }, 'payload.n'],
    ['a text for a Date', { runAt: '2026-01-01T00:00:00.000Z' }, 'runAt'],
    ['a pattern for a Date', { createdAt: /2026/ }, 'createdAt'],
    ['a text for a number', { priority: '5' }, 'priority'],
    ['null for a number', { attempts: null }, 'attempts'],
    ['a list for a number', { maxAttempts: [25] }, 'maxAttempts'],
    ['a number for a text', { queue: 5 }, 'queue'],
    ['an id that is none', { id: 'x' }, 'id'],
    ['a text for a list', { tags: 'x' }, 'tags'],
  ])('refuses what can say nothing of a job: %s', async (_what, filter, named) => {
    for (const call of ['enqueued', 'expectEnqueued', 'expectNotEnqueued'] as const) {
      const refused: unknown = await testing[call](filter).catch((error: unknown) => error);
      expect(refused).toBeInstanceOf(InvalidArgumentError);
      expect((refused as Error).message).toContain(named);
    }
  });

  it('and all other calls refuse options that they do not have', async () => {
    const calls: [() => Promise<unknown>, string][] = [
      [() => testing.enqueued({}, { transaction: 1 } as never), 'transaction'],
      [() => testing.expectEnqueued({}, { time: 1 } as never), 'time'],
      [() => testing.expectEnqueued({}, { times: -1 }), 'times'],
      [() => testing.expectNotEnqueued({}, { times: 1 } as never), 'times'],
      [() => testing.drain({ maxjobs: 1 } as never), 'maxjobs'],
      [() => testing.drain({ maxJobs: Number.NaN }), 'maxJobs'],
      [() => testing.clear({ configurations: true } as never), 'configurations'],
      [async () => testing.inline({ onfailure: 'record' } as never), 'onfailure'],
    ];
    for (const [call, named] of calls) {
      const refused: unknown = await call().catch((error: unknown) => error);
      expect(refused).toBeInstanceOf(InvalidArgumentError);
      expect((refused as Error).message).toContain(named);
    }
  });

  it('returns jobs in the order in which they were added', async () => {
    for (const payload of [1, 2, 3]) await manager.jobs.addJob('mail', payload);
    expect((await testing.enqueued()).map(({ payload }) => payload)).toEqual([1, 2, 3]);
  });

  it('knows jobs that ran by their status only', async () => {
    await manager.jobs.addJob('mail', null);
    await testing.drain();
    expect(await testing.enqueued()).toEqual([]);
    expect(await testing.enqueued({ status: 'completed' })).toMatchObject([{ task: 'mail' }]);
  });
});

describe('an expectation', () => {
  it('passes with the jobs that meet it', async () => {
    const { id } = await manager.jobs.addJob('mail', { to: 'ada' });
    expect(await testing.expectEnqueued({ task: 'mail', payload: { to: 'ada' } }, { times: 1 })).toMatchObject([
      { id },
    ]);
    await testing.expectNotEnqueued({ task: 'mail', payload: { to: 'bob' } });
  });

  it('fails with a list of what is enqueued instead', async () => {
    await manager.jobs.addJob('mail', { to: 'bob' }, { queue: 'out', priority: 3 });
    await manager.jobs.addJob('report', 7);
    expect(await messageOf(testing.expectEnqueued({ task: 'mail', payload: { to: 'ada' } }))).toBe(
      [
        "Expected a job like { task: 'mail', payload: { to: 'ada' } } to be enqueued, got none. Enqueued are:",
        "  1. mail { to: 'bob' } (available, queue out, priority 3)",
        '  2. report 7 (available)',
      ].join('\n'),
    );
  });

  it('says so when nothing is enqueued', async () => {
    expect(await messageOf(testing.expectEnqueued({ task: 'mail' }))).toBe(
      "Expected a job like { task: 'mail' } to be enqueued, got none. Nothing is enqueued.",
    );
  });

  it('fails where there are more or fewer than expected', async () => {
    await manager.jobs.addJob('mail', null);
    expect(await messageOf(testing.expectEnqueued({ task: 'mail' }, { times: 2 }))).toContain('exactly 2 of a job');
    expect(await messageOf(testing.expectNotEnqueued({ task: 'mail' }))).toContain('Expected no job');
  });

  it('tells where a job went that ran already', async () => {
    const { id } = await manager.jobs.addJob('mail', null);
    await testing.drain();
    expect(await messageOf(testing.expectEnqueued({ task: 'mail' }))).toContain(
      `Job ${id} is like it, but completed already.`,
    );
  });
});

describe('a transaction', () => {
  const rolledBack = async (work: (client: pg.Client) => Promise<void>): Promise<void> => {
    const client = new pg.Client(manager.url);
    await client.connect();
    await client.query('begin');
    try {
      await work(client);
    } finally {
      await client.query('rollback');
      await client.end();
    }
  };

  it('shows its jobs to an expectation that looks through its connection', async () => {
    await rolledBack(async (client) => {
      await manager.jobs.addJob('mail', { to: 'ada' }, { manager: client });
      const sought = { task: 'mail', payload: { to: 'ada' } };
      expect(await testing.expectEnqueued(sought, { manager: client, times: 1 })).toHaveLength(1);
      await testing.expectNotEnqueued({ task: 'mail' });
    });
    await testing.expectNotEnqueued({ task: 'mail' });
  });

  it('that rolls back leaves its jobs in the list of what was added', async () => {
    await rolledBack(async (client) => {
      await manager.jobs.addJob('mail', { to: 'ada' }, { manager: client });
      await manager.jobs.addJobs([{ task: 'report', payload: 1 }], { manager: client });
    });
    expect(testing.added.map(({ task, payload }) => [task, payload])).toEqual([
      ['mail', { to: 'ada' }],
      ['report', 1],
    ]);
    expect(await messageOf(testing.expectEnqueued({ task: 'mail' }))).toContain('1 like it cannot be seen');
  });
});

describe('the list of what was added', () => {
  it('has jobs that calls add for their own reasons, but none that were refused', async () => {
    const { jobs } = manager;
    const { id } = await jobs.addJob('mail', null);
    await jobs.permanentlyFailJobs([id]);
    await jobs.replayFailedJobs();
    await expect(jobs.addJob('mail', null, { priority: 0.5 })).rejects.toThrow('priority');
    expect(testing.added.map(({ flags }) => flags)).toEqual([[], ['replay']]);
  });

  it('is each testing’s own, and ends with close()', async () => {
    const other = createJobsTesting({ jobs: manager.jobs });
    await manager.jobs.addJob('mail', 1);
    await other.close();
    await manager.jobs.addJob('mail', 2);
    expect([testing.added.length, other.added.length]).toEqual([2, 1]);
  });
});
