// What a process costs the database while it has nothing to do.
import { afterAll, afterEach, beforeAll, describe, expect, it, jest } from '@jest/globals';
import pg from 'pg';
import { JobManager, JobsModule } from '../../lib/index.js';
import { applicationsOnOneDatabase, type Applications } from '../support/app.js';
import { eventually } from '../support/database.js';

/** The statements that a process sends from its main thread from now on, by their names in PostgreSQL. */
function statementsSent(): () => string[] {
  const query = jest.spyOn(pg.Client.prototype, 'query');
  const nameOf = ([first]: unknown[]): string => (first as { name?: string }).name ?? String(first);
  return () => query.mock.calls.map((call) => nameOf(call).replace(/^millrace_(\w+)_[0-9a-f]{12}$/, '$1'));
}

describe('an idle process', () => {
  let apps: Applications;
  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
  });
  afterEach(async () => {
    jest.restoreAllMocks();
    await apps.close();
  });
  afterAll(() => apps.drop());

  const worker = { pollIntervalMs: 50, keepaliveMs: 1_000, leaseMs: 3_000 };
  const maintenance = { resetLockedJobs: false, gc: false } as const;

  it('sends one statement in each poll interval, once a heartbeat has told that there is nothing else to do', async () => {
    const app = await apps.start({
      imports: [JobsModule.forRoot({ connection: apps.database.url, worker, maintenance })],
    });
    const { claims } = app.get(JobManager);
    await eventually(() => !claims.mayHaveRateLimits);
    const sent = statementsSent();
    await eventually(() => sent().filter((name) => name === 'claim_jobs').length >= 50);
    expect(sent().filter((name) => name !== 'claim_jobs')).toEqual([]);
  });

  it('refills rate limits by its cron once there are any, whoever registers them', async () => {
    const app = await apps.start({
      imports: [JobsModule.forRoot({ connection: apps.database.url, worker, maintenance })],
    });
    const { claims } = app.get(JobManager);
    await eventually(() => !claims.mayHaveRateLimits);
    await apps.database.pool.query(
      `insert into jobs.rate_limits values ('elsewhere', 5, 1, 0, now() - interval '1 min', null)`,
    );
    const left = () => apps.database.pool.query(`select from jobs.rate_limits where available = 5`);
    expect(await eventually(async () => (await left()).rowCount === 1)).toBe(true);
  });
});
