// What a process costs the database while it has nothing to do.
import { afterAll, afterEach, beforeAll, describe, expect, it, jest } from '@jest/globals';
import pg from 'pg';
import { createJobManager, JobsModule } from '../../lib/index.js';
import { SURROUNDINGS } from '../../lib/storage/pool.sessions.js';
import { applicationsOnOneDatabase, type Applications } from '../support/app.js';
import { eventually } from '../support/database.js';

const NO_MAINTENANCE = { resetLockedJobs: false, gc: false, refillRateLimits: false } as const;

/** The statements that a process sends from its main thread from now on, by their names in PostgreSQL. */
function statementsSent(): () => string[] {
  const query = jest.spyOn(pg.Client.prototype, 'query');
  const nameOf = ([first]: unknown[]): string => {
    const { name, text } = first as { name?: string; text?: string };
    return name ?? text ?? String(first);
  };
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
  /** What a pool asks in each poll interval, and what it sends now and then for all pools together. */
  const POLLS = ['claim_plain_jobs', 'claim_lane_jobs'];
  const SHARED =
    /^(heartbeat|check_claims|unknown_claims|take_duty|find_untold|find_circles|next_bulk_page|free_\w+|find_expired_leases)$/;

  const start = () =>
    apps.start({
      imports: [JobsModule.forRoot({ connection: apps.database.url, worker, maintenance: NO_MAINTENANCE })],
    });
  const countIn = (names: string[], name: string): number => names.filter((one) => one === name).length;

  it('sends a plain claim in each poll interval, hardly more looks at lanes, and little else', async () => {
    await start();
    const sent = statementsSent();
    await eventually(() => countIn(sent(), 'claim_plain_jobs') >= 50);
    const names = sent();
    expect(countIn(names, 'claim_lane_jobs')).toBeLessThanOrEqual(countIn(names, 'claim_plain_jobs') + 2);
    // Each new connection is asked once what it has by default.
    const asks = (name: string): boolean => name.startsWith(SURROUNDINGS.ask);
    const known = (name: string): boolean => POLLS.includes(name) || SHARED.test(name) || asks(name);
    expect(names.filter((name) => !known(name))).toEqual([]);
    expect(names.filter(asks).length).toBeLessThan(10);
    expect(names.filter((name) => SHARED.test(name)).length).toBeLessThan(50);
  });

  it('shares what has to be done now and then with the others: one of those that ask at once sweeps', async () => {
    const { url, pool } = apps.database;
    const managers = await Promise.all([1, 2, 3, 4].map(() => createJobManager({ connection: url })));
    for (const dueIn of ['-1 s', '1 h']) {
      // A clock that was ahead puts nothing off.
      await pool.query('update jobs.duties set due_at = now() + $1::interval', [dueIn]);
      const swept = await Promise.all(managers.map(({ engine }) => engine.promoter.sweep()));
      expect(swept.filter((queues) => queues !== null)).toEqual([[]]);
    }
    await Promise.all(managers.map((jobs) => jobs.close()));
  });

  it('forgets what was taken of a rate limit that is full again by its cron, wherever it was registered', async () => {
    await apps.start({ imports: [JobsModule.forRoot({ connection: apps.database.url, worker })] });
    const { pool } = apps.database;
    await pool.query(
      `insert into jobs.rate_limits values ('elsewhere', 'fixed', 5, 3600000, 5, now() - interval '90 min')`,
    );
    await pool.query(
      `insert into jobs.rate_limit_states values ('elsewhere', '', 7, now() - interval '90 min', '{5}', now() - interval '30 min')`,
    );
    const states = async () => (await pool.query('select from jobs.rate_limit_states')).rowCount;
    await eventually(async () => (await states()) === 0);
    expect(await states()).toBe(0);
  });
});
