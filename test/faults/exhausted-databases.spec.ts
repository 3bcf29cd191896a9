// A database that has run out of disk space, memory, temporary files or connections: callers are told by a typed error, and
// workers wait and lose nothing.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  DatabaseExhaustedError,
  DatabaseUnavailableError,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
const closing: (() => Promise<unknown>)[] = [];

beforeEach(async () => {
  test = await createTestManager({ history: { keep: 'all' } });
});
afterEach(async () => {
  for (const close of closing.splice(0).toReversed()) await close();
  await test.close();
});

const STATES = [
  ['53100', 'disk', /disk .* is full/],
  ['53200', 'memory', /out of memory/],
] as const;

/** From now on whatever writes to the table fails, as it does on a full disk. */
async function exhaust(table: string, code: string): Promise<void> {
  await test.sql(`
    create or replace function public.refuse() returns trigger language plpgsql as $$
    begin raise exception 'could not extend file' using errcode = '${code}'; end $$`);
  await test.sql(`
    create trigger refuse before insert or update or delete on jobs.${table} for each statement execute function public.refuse()`);
}

const letWrite = (table: string): Promise<unknown> => test.sql(`drop trigger refuse on jobs.${table}`);

describe('a database that has run out of something', () => {
  it.each(STATES)('tells callers of %s what is missing, and adds nothing', async (code, resource, text) => {
    await exhaust('jobs', code);
    const calls = [
      test.jobs.addJob('t', 1),
      test.jobs.addJob('t', 1, { jobKey: 'k' }),
      test.jobs.addJobs([{ task: 't', payload: 1, tags: ['a'] }]),
    ];
    for (const outcome of await Promise.allSettled(calls)) {
      const error = (outcome as PromiseRejectedResult).reason as DatabaseExhaustedError;
      expect(error).toBeInstanceOf(DatabaseExhaustedError);
      expect(error).toBeInstanceOf(DatabaseUnavailableError);
      expect(error).toMatchObject({ code: 'ERR_JOBS_DATABASE_EXHAUSTED', sqlState: code, resource, retriable: true });
      expect(error.inDoubt).toBe(false);
      expect(error.message).toMatch(text);
      expect(error.message).toContain('could not extend file');
    }
    await letWrite('jobs');
    expect((await test.jobs.counts()).byStatus.available).toBe(0);
  });

  it.each(STATES)(
    'is left alone by workers (%s), which keep outcomes and go on when it has enough',
    async (...[code]) => {
      const events = createCollectingEvents();
      let end!: () => void;
      const held = new Promise<void>((resolve) => (end = resolve));
      const runs: unknown[] = [];
      const pool = createWorkerPool({
        jobs: test.jobs,
        events,
        tasks: { t: (payload) => (runs.push(payload), held) },
        options: { pollIntervalMs: 50 },
      });
      closing.push(() => pool.stop(0));
      await pool.start();
      const added = await test.jobs.addJobs([1, 2, 3].map((payload) => ({ task: 't', payload })));
      await eventually(() => runs.length === 3);
      await exhaust('job_history', code);
      end();
      await eventually(() => events.ofType('circuit.open').length === 1);
      expect(events.ofType('circuit.open')[0]!.error).toBeInstanceOf(DatabaseExhaustedError);
      await letWrite('job_history');
      for (const { id } of added) expect((await test.jobs.waitForJob(id)).status).toBe('completed');
      await eventually(() => events.ofType('circuit.closed').length === 1);
      expect(runs).toHaveLength(3);
      expect(events.ofType('job.lost')).toEqual([]);
    },
  );

  it('tells a caller whose question needs too many temporary files that asking again is of no use', async () => {
    const { pathname } = new URL(test.url);
    await test.sql(`
      insert into jobs.job_history (job_id, fence, worker_id, status, started_at, completed_at, attempt, expires_at)
      select gen_random_uuid(), 1, 'w', 'completed', now(), now(), 1, now() + interval '1 day' from generate_series(1, 20000)`);
    await test.sql(`alter database ${pathname.slice(1)} set work_mem = '64kB'`);
    await test.sql(`alter database ${pathname.slice(1)} set temp_file_limit = 0`);
    const jobs = await createJobManager({ connection: test.url });
    closing.push(() => jobs.close());
    const error = await jobs.counts().catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(DatabaseExhaustedError);
    expect(error).toMatchObject({ sqlState: '53400', resource: 'temporary files', retriable: false });
    // Only this call is at its limit.
    expect((await jobs.addJob('t', 1)).created).toBe(true);
  });

  it('tells a process that finds no free connection at its start which limit to raise', async () => {
    const role = `r_${new URL(test.url).pathname.slice(1)}`;
    await test.sql(`create role ${role} login connection limit 0`);
    closing.push(() => test.sql(`drop role ${role}`));
    const url = new URL(test.url);
    url.username = role;
    const error = await createJobManager({ connection: url.href }).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(DatabaseExhaustedError);
    expect(error).toMatchObject({ sqlState: '53300', resource: 'connections', retriable: true, inDoubt: false });
  });
});
