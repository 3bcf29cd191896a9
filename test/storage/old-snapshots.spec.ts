// What claims and settles of a queue read beside a snapshot that keeps all its dead rows alive for the server's index scans.
import { afterAll, beforeAll, expect, it } from '@jest/globals';
import pg from 'pg';
import { placeInWalk } from '../../lib/manager/lane.names.js';
import { createTestManager, type TestManager } from '../support/manager.js';
import { claimAsPool, registerPool } from '../support/pool.claims.js';

const POOL = 'pool-beside-a-snapshot';
const DEAD = 5_000;
/** The dead rows, or their entries in an index, fill more pages. */
const FEW_BUFFERS = 100;
/** More often than PostgreSQL tries before it settles for one plan. */
const UNTIL_GENERIC = 8;
const LANE = 'q\x1f\x1f';

let test: TestManager;
let snapshot: pg.Client;
/** Runs what is measured. */
let client: pg.Client;

beforeAll(async () => {
  test = await createTestManager();
  [snapshot, client] = [new pg.Client(test.url), new pg.Client(test.url)];
  await Promise.all([snapshot.connect(), client.connect()]);
  await registerPool(test.jobs, POOL, 3_600_000);
  // Plans are made while the tables are empty, and stay.
  await test.sql('vacuum analyze');
  for (let n = 0; n < UNTIL_GENERIC; n++) await claimAndSettle();
  await snapshot.query('begin isolation level repeatable read');
  await snapshot.query('select 1');
  await test.jobs.addJobs(Array.from({ length: DEAD }, () => ({ task: 't', payload: 1, queue: 'q' })));
  await test.sql(`insert into jobs.job_places
    select 'q', nextval('jobs.job_place_numbers'), id, 1 from jobs.jobs`);
  await test.sql(`update jobs.job_queues set places_from = (select min(number) from jobs.job_places)`);
  await test.sql('delete from jobs.job_places');
  await test.sql('delete from jobs.jobs');
});
afterAll(async () => {
  await Promise.all([snapshot.end(), client.end()]);
  await test.close();
});

async function claimAndSettle(): Promise<void> {
  await test.jobs.addJob('t', 1, { queue: 'q' });
  const [job] = await claimAsPool(test.jobs, POOL);
  await buffersOf(settle(job!.id, job!.fence));
}

const settle = (id: string, fence: string): string =>
  `select * from jobs.complete_jobs(null, '${POOL}', '{${id}}', '{${fence}}', '{1}', null, true, 1000, null, true, false)`;

async function buffersOf(text: string): Promise<number> {
  const { rows } = await client.query<{ 'QUERY PLAN': string }>(`explain (analyze, buffers) ${text}`);
  const [, buffers = '0'] = /Buffers: shared hit=(\d+)/.exec(rows.map((row) => row['QUERY PLAN']).join('\n')) ?? [];
  return Number(buffers);
}

it('a settle in a queue reads no place but its own', async () => {
  await test.jobs.addJob('t', 1, { queue: 'q' });
  const [job] = await claimAsPool(test.jobs, POOL);
  expect(await buffersOf(settle(job!.id, job!.fence))).toBeLessThan(FEW_BUFFERS);
  expect(await test.sql('select from jobs.job_places')).toEqual([]);
});

it('a look at lanes reads nothing before the positions that the pool has in them', async () => {
  const [position] = await test.sql<{ at: string }>('select clock_timestamp()::text as at');
  await test.jobs.addJob('t', 1, { queue: 'q' });
  await test.sql(`update jobs.job_queues set places_from = 1e9`);
  const look = `select * from jobs.claim_lane_jobs('${POOL}', 10, null, null, null, null, null, null, null, '{}', '{}', '{}', '{}', '{}',
    '{}', '{}', '{}', '{}', null, array['${placeInWalk(0, LANE)}'], array['${position!.at}'::timestamptz],
    '{00000000-0000-0000-0000-000000000000}', '{}', '{}', null, null, 200)`;
  // The first one makes its plans.
  await buffersOf(look);
  expect(await buffersOf(look)).toBeLessThan(FEW_BUFFERS);
  expect(await test.sql('select count(*)::integer as places from jobs.job_places')).toEqual([{ places: 1 }]);
});
