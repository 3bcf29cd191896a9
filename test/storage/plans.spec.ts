// The plans of the hot statements: whatever the statistics say, none reads or sorts the backlog. Statements are planned
// on empty tables first and keep those plans, as those of a pool do that has been idle for a while.
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { statement, type Statement } from '../../lib/storage/database.js';
import { addAlikeJobs, addJobs, addKeyedJobs } from '../../lib/storage/statements/add-jobs.js';
import { nextPlainPriority } from '../../lib/storage/statements/claim-jobs.js';
import { findExpiredLeases } from '../../lib/storage/statements/claims-by-hand.js';
import * as bulk from '../../lib/storage/statements/bulk-actions.js';
import * as ends from '../../lib/storage/statements/end-jobs.js';
import { refillRateLimits } from '../../lib/storage/statements/rate-limits.js';
import * as workers from '../../lib/storage/statements/workers.js';
import { registerPool } from '../support/pool.claims.js';
import { createTestManager, type TestManager } from '../support/manager.js';

const BACKLOG = 40_000;
/** More often than PostgreSQL tries before it settles for one plan. */
const UNTIL_GENERIC = 8;
/** A batch of ten touches some hundred pages; the backlog has thousands. */
const FEW_BUFFERS = 800;

let test: TestManager;
let client: pg.Client;
let plans: string[] = [];

const WORKER = 'planning-worker';
const HAND = 'planning-by-hand';
const none = `'{}'`;
const claimPlain = `select * from jobs.claim_plain_jobs('${WORKER}', 10, 65536, '{t}', null, null, null, null, ${none},
  ${none}, ${none}, null, null)`;
const claimLanes = (worker = WORKER, lease = 'null'): string =>
  `select * from jobs.claim_lane_jobs('${worker}', 10, '{t}', null, null, null, ${lease}, null, null, ${none},
    ${none}, ${none}, ${none}, ${none}, ${none}, ${none}, ${none}, ${none}, null, ${none}, ${none}, ${none}, ${none}, ${none}, null, null, 200)`;
const claimByHand = claimLanes(HAND, '3600000');
const settle = ({ ids, fences }: Held, placed: boolean, careful: boolean): string =>
  `select * from jobs.complete_jobs(null, '${WORKER}', ${ids}, ${fences}, array_fill(1, array[cardinality(${ids})]),
    null, true, 1000, null, ${placed}, ${careful})`;
const fail = ({ input }: Held): string =>
  `select * from jobs.end_attempts(null, '${WORKER}', ${input}, true, true, 1000, null, null)`;

/** Claims, as parameters of the settles. */
interface Held {
  ids: string;
  fences: string;
  input: string;
}

/** What the worker holds of plain jobs, or of lanes. */
async function held(lanes: boolean): Promise<Held> {
  const { rows } = await client.query<{ id: string; fence: string }>(
    `select id, fence from jobs.jobs where locked_by in ('${WORKER}', '${HAND}') and (lane is not null) = ${lanes} limit 10`,
  );
  const input = rows.map(({ id, fence }) => ({ id, fence, kind: 'failed', delay_ms: 1e6, permanent: false }));
  return {
    ids: `'{${rows.map(({ id }) => id).join()}}'::uuid[]`,
    fences: `'{${rows.map(({ fence }) => fence).join()}}'::bigint[]`,
    input: `'${JSON.stringify(input)}'::json`,
  };
}

const SOME = '{00000000-0000-7000-8000-000000000000}';
const specWith = (more = ''): string =>
  `'[{"id":"' || gen_random_uuid() || '","task":"t","priority":0,"max_attempts":5${more}}]'`;
/** What retries ask of each job. */
const isKeyTaken = statement('is_key_taken', (schema) => `select ${schema}.is_key_taken($1::text, $2::uuid)`);
const keyed = specWith(',"job_key":"k","job_key_mode":"replace"');

/** The first page of a bulk action that ten jobs are looked at for. */
const pageOf = (source: string): string =>
  `'${source}', '00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '{}', '{available}', 'infinity', 10, 10`;

/** What pools and callers run again and again beside claims and settles, prepared like theirs. Arguments in SQL. */
const repeated: [Statement<unknown>, string][] = [
  [addAlikeJobs, `'{' || gen_random_uuid() || '}', '1', 't', 0, 5, null, null, null`],
  [addJobs, `${specWith()}, '[1]'`],
  [addKeyedJobs, `${keyed}, '[1]', false, false`],
  [isKeyTaken, `'k', gen_random_uuid()`],
  [nextPlainPriority, '-5'],
  [findExpiredLeases, 'null'],
  [workers.heartbeat, `'${WORKER}'`],
  [workers.endIncarnations, 'null'],
  [workers.checkClaims, `'${SOME}', '{1}'`],
  [workers.unknownClaims, `'${WORKER}', '${SOME}', '{1}', '', 0`],
  [workers.auditClaims, '0, 10'],
  [workers.takeDuty, `'sweep', 1`],
  [ends.freeSuccessors, `'${SOME}', null, 1000`],
  [ends.findPassedOver, `'00000000-0000-0000-0000-000000000000'`],
  [ends.freeKeys, `'{k}'`],
  [ends.freeStaleKeys, `''`],
  [ends.tellChildren, `'${SOME}', 1000`],
  [ends.findUntold, `'00000000-0000-0000-0000-000000000000'`],
  [ends.findCircles, ''],
  [ends.freePlaces, `'', 0`],
  [refillRateLimits, ''],
  ...['live', 'exhausted', 'all'].map((source): [Statement<unknown>, string] => [bulk.findBulkPage, pageOf(source)]),
  [bulk.lockBulkJobs, `'${SOME}', 'update'`],
  [bulk.moveJobs, `'${SOME}', 'q'`],
  [bulk.nextBulkPage, ''],
  [bulk.takeBulkAction, ''],
];

async function prepareRepeated(): Promise<void> {
  for (const [{ name, text }] of new Map(repeated)) await client.query(`prepare ${name} as ${text('jobs')}`);
}

const execution = ([{ name }, values]: [Statement<unknown>, string]): string =>
  `execute ${name}${values && `(${values})`}`;

/** Runs a statement that matches nothing, to read its catalogue entries: other databases' changes empty the caches. */
async function warm(text: string): Promise<void> {
  await client.query('begin');
  await client.query(text);
  await client.query('rollback');
}

/** Runs a statement; returns the plans of all that it ran inside, and how many pages it touched. */
async function run(text: string): Promise<{ plans: string; buffers: number }> {
  await warm(text);
  plans = [];
  const { rows } = await client.query<{ 'QUERY PLAN': string }>(`explain (analyze, buffers) ${text}`);
  const answer = rows.map((row) => row['QUERY PLAN']).join('\n');
  const [, hit = '0'] = /Buffers: shared hit=(\d+)/.exec(answer) ?? [];
  const [, read = '0'] = /Buffers: shared (?:hit=\d+ )?read=(\d+)/.exec(answer) ?? [];
  return { plans: [answer, ...plans].join('\n'), buffers: Number(hit) + Number(read) };
}

/** What is wrong with the way in which a statement runs. */
async function faultsOf(name: string, text: string): Promise<string[]> {
  const { plans: found, buffers } = await run(text);
  return [
    ...(found.includes('Scan') || found.includes('Insert on') ? [] : [`${name}: no plan was seen`]),
    ...(found.match(/Seq Scan on (jobs|job_bodies|job_history)\w*/g) ?? []).map((scan) => `${name}: ${scan}`),
    ...(found.match(/Sort Key: j\.(run_at|priority)/g) ?? []).map((sort) => `${name}: ${sort}`),
    ...(buffers < FEW_BUFFERS ? [] : [`${name}: read ${buffers} pages`]),
  ];
}

/** Claims take turns with settles of what they took; then everything else. */
async function faults(): Promise<string[]> {
  const found = [...(await faultsOf('a claim of plain jobs', claimPlain))];
  found.push(...(await faultsOf('a settle of completions', settle(await held(false), false, false))));
  await client.query(claimPlain);
  found.push(...(await faultsOf('a settle with care', settle(await held(false), false, true))));
  await client.query(claimPlain);
  found.push(...(await faultsOf('a settle of failures', fail(await held(false)))));

  found.push(...(await faultsOf('a claim of lanes', claimLanes())));
  found.push(...(await faultsOf('a settle of completions in queues', settle(await held(true), true, false))));
  found.push(...(await faultsOf('a claim by hand', claimByHand)));
  found.push(...(await faultsOf('a settle of failures in queues', fail(await held(true)))));
  for (const one of repeated) found.push(...(await faultsOf(execution(one), execution(one))));
  return found;
}

/** Four and more partitions of each table; the second ones take what this spec adds. */
async function makePartitions(): Promise<void> {
  for (const table of ['job_bodies', 'job_history']) {
    for (let days = 2; days > -3; days--) {
      const made = await test.sql(
        `select made from jobs.make_partition($1, 0, 864e5::bigint, 864e5::bigint, 1e9::bigint, now() - $2 * interval '1 day')`,
        [table, days],
      );
      expect(made).toEqual([{ made: expect.stringMatching(`^${table}_`) }]);
    }
  }
}

/** Nothing analyses the tables but this spec: plans that are made again would be others, and read the catalogue. */
async function leaveAlone(): Promise<void> {
  const tables = await test.sql<{ name: string }>(
    `select oid::regclass::text as name from pg_class where relnamespace = 'jobs'::regnamespace and relkind = 'r'`,
  );
  for (const { name } of tables) await test.sql(`alter table ${name} set (autovacuum_enabled = off)`);
}

async function begin(partitioned = false): Promise<void> {
  test = await createTestManager();
  if (partitioned) await makePartitions();
  await leaveAlone();
  client = new pg.Client(test.url);
  await client.connect();
  client.on('notice', ({ message = '' }) => plans.push(message));
  await registerPool(test.jobs, WORKER, 1e9);
  await client.query(`load 'auto_explain'`);
  await client.query(`set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;
    set client_min_messages = log`);
}

describe.each([
  ['the default partitions alone', 0],
  ['several partitions', 5],
])('claims and settles read no more than they need, with %s,', (_, partitions) => {
  beforeAll(async () => {
    await begin(partitions > 0);
    await prepareRepeated();
  });
  afterAll(async () => {
    await client.end();
    await test.close();
  });

  it('on tables that were analysed while they were empty, and planned so', async () => {
    await test.sql('vacuum analyze jobs.jobs, jobs.job_bodies, jobs.job_history, jobs.job_queues');
    for (let round = 0; round < UNTIL_GENERIC; round++) {
      for (const text of [claimPlain, claimLanes(), claimByHand]) await client.query(text);
      for (const lanes of [false, true]) {
        const claims = await held(lanes);
        for (const careful of [false, true]) await client.query(settle(claims, lanes, careful));
        await client.query(fail(claims));
      }
      for (const one of repeated) await client.query(execution(one));
    }
    expect(await faultsOf('a claim of plain jobs', claimPlain)).toEqual([]);
    expect(await faultsOf('a claim of lanes', claimLanes())).toEqual([]);
  });

  it('after a load that was not analysed, with those very plans', async () => {
    for (let added = 0; added < BACKLOG; added += 2_000) {
      const specs = Array.from({ length: 2_000 }, (_, n) => ({ task: 't', payload: n, queue: `q${added + n}` }));
      await test.jobs.addJobs(specs.map((spec, n) => (n % 20 ? { task: 't', payload: spec.payload } : spec)));
    }
    await test.sql(`insert into jobs.job_queues (name) select distinct queue from jobs.jobs where queue is not null`);
    const settled = await test.sql('select from jobs.job_history');
    expect(await faults()).toEqual([]);
    expect(await test.sql('select from jobs.job_history')).toHaveLength(settled.length + 50);
    const places = await test.sql(`
      select tableoid::regclass::text as place from jobs.job_bodies group by 1 order by count(*) desc limit 1`);
    expect(places).toEqual([{ place: expect.stringMatching(partitions ? /_\d{8}_/ : /_default$/) }]);
  });

  it('after the load was analysed', async () => {
    await test.sql('analyze');
    expect(await faults()).toEqual([]);
  });
});

describe('a claim in a table that was never analysed', () => {
  afterEach(async () => {
    await client.end();
    await test.close();
  });

  it('reads nothing of a partition that holds almost all that is due, and came first', async () => {
    await begin();
    await test.jobs.configureQueue('shared', { concurrency: Infinity, partitions: {} });
    const specs = Array.from({ length: 10_000 }, (_, n) => ({ n, partition: n < 9_900 ? 'noisy' : `small${n % 20}` }));
    await test.jobs.addJobs(specs.map(({ n, partition }) => ({ task: 't', payload: n, queue: 'shared', partition })));
    expect(await faultsOf('a claim of partitions', claimLanes())).toEqual([]);
    await test.sql(`update jobs.jobs set task = 'other' where partition <> 'noisy'`);
    expect(await faultsOf('a claim that passes partitions', claimLanes())).toEqual([]);
  });
});
