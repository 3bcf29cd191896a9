import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { createWorkerPool, type WorkerPool } from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';
import { claimAsPool, registerPool } from '../support/pool.claims.js';

let test: TestManager;
let pool: WorkerPool;
let stranger: pg.Client;

beforeEach(async () => {
  test = await createTestManager();
  stranger = new pg.Client(test.url);
  await stranger.connect();
});
afterEach(async () => {
  await stranger.end();
  await pool.forceStop();
  await test.close();
});

describe('while another session holds a whole table, as VACUUM FULL does', () => {
  it.each(['job_keys', 'job_dependencies', 'duties'])(
    '(%s) a pool frees the plain jobs of a dead worker',
    async (table) => {
      const { jobs, sql } = test;
      const ran: unknown[] = [];
      const tasks = { t: (payload: unknown) => void ran.push(payload), u: () => undefined };
      await registerPool(jobs, 'silent');
      await jobs.addJob('t', 'of the dead');
      expect(await claimAsPool(jobs, 'silent')).toHaveLength(1);
      // Whatever a sweep has to do.
      const { id } = await jobs.addJob('u', 1, { jobKey: 'k', delayMs: 3_600_000 });
      await jobs.addJob('u', 2, { dependsOn: [id] });
      await stranger.query(`begin; lock table jobs.${table} in access exclusive mode`);
      const options = { pollIntervalMs: 50, keepaliveMs: 100, leaseMs: 5_000 };
      pool = createWorkerPool({ jobs, tasks, options });
      await pool.start();
      // The sweep is on its way, or waits, before there is anything to rescue.
      await eventually(
        async () =>
          (await sql(`select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`))
            .length > 0,
      );
      await sql(`update jobs.workers set heartbeat_at = now() - interval '1 hour' where id = 'silent'`);
      await eventually(() => ran.length === 1);
      expect(ran).toEqual(['of the dead']);
      await stranger.query('rollback');
    },
  );
});
