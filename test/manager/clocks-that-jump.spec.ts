// The database's clock was ahead, and has come back: what it has written lies in the future, and holds nothing up. `letClockJump`
// of the random lives says how such a clock is made.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { createJobManager, type JobManager } from '../../lib/index.js';
import { joinRelease } from '../../lib/storage/statements/releases.js';
import { letClockJump, TIMES, timesAhead } from '../invariants/clocks.js';
import { letDutiesCome } from '../invariants/tables.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';
import { claimAsPool, registerPool } from '../support/pool.claims.js';

const HOUR = 3_600_000;
/** More ms than an integer holds. */
const MONTHS = 1_500 * HOUR;

let test: TestManager;
let jobs: JobManager;

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
});
afterEach(() => test.close());

const clockComesBack = () => letClockJump(test.sql, -MONTHS);
async function audit(): Promise<void> {
  await letDutiesCome(test.sql);
  await jobs.engine.registry.audit();
}
const makeDue = () => test.sql('update jobs.jobs set run_at = now() where locked_by is null');

describe('after a clock that was ahead has come back', () => {
  it('the audit sets back every time of something that has happened, and leaves the others', async () => {
    await registerPool(jobs, 'stopped-pool');
    await jobs.engine.registry.unregister('stopped-pool');
    await registerPool(jobs, 'living-pool');
    await jobs.scheduleCron({ id: 'c', task: 't', schedule: '0 0 1 1 *', payload: 1 });
    await test.sql(`update jobs.crontabs set last_slot_at = now(), retired_at = now()`);
    await jobs.configureQueue('q', { concurrency: 1 });
    await test.sql(`update jobs.job_queues set declared_at = now()`);
    await test.sql(joinRelease.text('jobs'), ['release', 'pool']);
    await jobs.registerRateLimit('l', 1, HOUR);
    const { id } = await jobs.addJob('t', 1, { rateLimitKey: 'l' });
    await jobs.addJob('t', 2);
    expect(await claimAsPool(jobs, 'living-pool')).toHaveLength(2);
    const failed = await jobs.addJob('t', 3, { maxAttempts: 1 });
    await jobs.permanentlyFailJobs([failed.id]);
    await test.sql(`insert into jobs.settle_receipts (job_ids, fences) values (array[$1::uuid], array[1])`, [id]);
    await test.sql(`insert into jobs.job_replacements (old_id, new_id) values (gen_random_uuid(), $1)`, [id]);
    const all = Object.entries(TIMES).flatMap(([table, columns]) =>
      Object.entries(columns).flatMap(([column, kind]) => (kind === 'set back' ? [`${table}.${column}`] : [])),
    );
    await clockComesBack();
    expect((await timesAhead(test.sql)).toSorted()).toEqual(all.toSorted());
    await audit();
    expect(await timesAhead(test.sql)).toEqual(['rate_limit_states.at']);
    await jobs.refillRateLimits();
    expect(await timesAhead(test.sql)).toEqual([]);
    expect(await test.sql('select from jobs.jobs where run_at > now()')).toHaveLength(3);
  });

  it('a claim that its pool does not know of is given back', async () => {
    await registerPool(jobs, 'pool');
    const { id } = await jobs.addJob('t', 1);
    expect(await claimAsPool(jobs, 'pool')).toHaveLength(1);
    await clockComesBack();
    await audit();
    // It may still be on its way to the pool.
    expect(await jobs.engine.registry.releaseUnknown('pool', [], false)).toBe(0);
    await letClockJump(test.sql, 20_000);
    await jobs.engine.registry.heartbeat('pool');
    await audit();
    expect(await jobs.engine.registry.releaseUnknown('pool', [], false)).toBe(1);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'scheduled', attempts: 0 });
  });

  it('a claim by hand holds for its lease, and no longer', async () => {
    const { id } = await jobs.addJob('t', 1);
    expect(await jobs.getJobs(WORKER, { leaseMs: HOUR })).toHaveLength(1);
    await clockComesBack();
    await audit();
    await jobs.resetLockedJobs();
    expect(await jobs.findJob(id)).toMatchObject({ status: 'running' });
    await letClockJump(test.sql, HOUR + 120_000);
    await jobs.resetLockedJobs();
    expect(await jobs.findJob(id)).toMatchObject({ status: 'scheduled', lastError: 'lease expired' });
  });

  it('a running job can be taken from its worker, in no time at all', async () => {
    const { id } = await jobs.addJob('t', 1);
    expect(await jobs.getJobs(WORKER)).toHaveLength(1);
    await clockComesBack();
    expect(await jobs.forceUnlockJobs()).toHaveLength(1);
    expect(await jobs.jobHistory(id)).toMatchObject([{ status: 'failed', executionTimeMs: 0 }]);
  });

  it('the times of a crontab fire again, none of them that had passed', async () => {
    await jobs.scheduleCron({ id: 'c', task: 't', schedule: '0 0 * * *', payload: 1, backfillMs: 48 * HOUR });
    await test.sql(`update jobs.crontabs set known_since = now() - interval '1 year', last_slot_at = now()`);
    await clockComesBack();
    expect((await jobs.listCrons())[0]!.nextSlotAt!.getTime()).toBeGreaterThan(Date.now() + MONTHS - HOUR);
    await audit();
    const [cron] = await jobs.listCrons();
    expect(cron!.nextSlotAt!.getTime()).toBeGreaterThan(Date.now() - HOUR);
    expect(cron!.nextSlotAt!.getTime()).toBeLessThan(Date.now() + 25 * HOUR);
  });

  it('a release that starts now is newer than those that had started before', async () => {
    for (const release of ['older', 'old']) await test.sql(joinRelease.text('jobs'), [release, 'their-pool']);
    await clockComesBack();
    const newer = await createJobManager({ connection: test.url, queues: { q: { concurrency: 2 } } });
    await newer.close();
    const releases = await test.sql(
      'select id, first_seen_at <= now() as has_begun from jobs.releases order by first_seen_at',
    );
    expect(releases.slice(0, 2)).toMatchObject([{ id: 'older' }, { id: 'old' }]);
    expect(releases.filter(({ has_begun }) => !has_begun)).toEqual([]);
  });

  it('a purge finds what has just ended', async () => {
    const { id } = await jobs.addJob('t', 1, { maxAttempts: 1 });
    await jobs.permanentlyFailJobs([id]);
    await clockComesBack();
    expect(await jobs.purgeJobs({ status: 'exhausted', olderThanMs: 0 })).toBe(1);
  });

  it('a rate limit that is used up gives again, one window later', async () => {
    await jobs.registerRateLimit('l', 1, HOUR);
    await jobs.addJobs([1, 2].map((payload) => ({ task: 't', payload, rateLimitKey: 'l' })));
    expect(await jobs.getJobs(WORKER)).toHaveLength(1);
    await clockComesBack();
    await makeDue();
    expect(await jobs.getJobs(WORKER)).toEqual([]);
    await letClockJump(test.sql, HOUR);
    expect(await jobs.getJobs(WORKER)).toHaveLength(1);
  });

  it('a pool that died then is noticed a lease after the first look', async () => {
    await registerPool(jobs, 'pool', HOUR);
    await registerPool(jobs, 'other-pool', HOUR);
    const { id } = await jobs.addJob('t', 1);
    expect(await claimAsPool(jobs, 'pool')).toHaveLength(1);
    await clockComesBack();
    expect(await jobs.engine.registry.heartbeat('other-pool')).toMatchObject({ needsRescue: true });
    expect(await jobs.engine.registry.rescue()).toBe(0);
    await letClockJump(test.sql, HOUR + 1_000);
    expect(await jobs.engine.registry.rescue()).toBe(1);
    expect(await jobs.findJob(id)).toMatchObject({ status: 'scheduled' });
  });
});
