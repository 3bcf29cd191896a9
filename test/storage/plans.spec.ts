// The plans of the hot statements: whatever the statistics say, none reads or sorts the backlog. Statements are planned
// on empty tables first and keep those plans, as those of a pool do that has been idle for a while.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import type { Statement } from '../../lib/storage/database.js';
import { addAlikeJobs, addJobs } from '../../lib/storage/statements/add-jobs.js';
import { findCancelRequests, heartbeat } from '../../lib/storage/statements/lease-jobs.js';
import { promoteQueued, stalledQueues } from '../../lib/storage/statements/queues.js';
import { refillRateLimits } from '../../lib/storage/statements/rate-limits.js';
import { unblockSuccessors } from '../../lib/storage/statements/settle-jobs.js';
import { createTestManager, type TestManager } from '../support/manager.js';

const BACKLOG = 40_000;
/** More often than PostgreSQL tries before it settles for one plan. */
const UNTIL_GENERIC = 8;
/** A batch of ten touches some dozen pages, and the catalogue's where a plan is new; the backlog has thousands. */
const FEW_BUFFERS = 1_000;

let test: TestManager;
let client: pg.Client;
let plans: string[] = [];

const WORKER = 'planning-worker';
const none = `'{}'`;
const claim = (slots: number, count = 10): string =>
  `select * from jobs.claim_jobs('${WORKER}', ${count}, ${slots}, '{t}', null, null, 3600000, ${none}, ${none}, ${none},
    ${none}, ${none}, ${none}, ${none}, null, ${slots > 0})`;
const claimPlain = `select * from jobs.claim_plain_jobs('${WORKER}', 10, '{t}', null, ${none}, ${none}, ${none})`;
const settle = (ids: string, fences: string): string =>
  `select * from jobs.complete_jobs('${WORKER}', ${ids}, ${fences}, array_fill(1, array[cardinality(${ids})]),
    array_fill(null::text, array[cardinality(${ids})]), true, 1000, null, 'direct')`;
const fail = (input: string): string =>
  `select * from jobs.end_attempts('${WORKER}', ${input}, true, true, 1000, null, 'skip')`;

/** What the worker holds, as parameters of the settles. */
async function held(): Promise<{ ids: string; fences: string; input: string }> {
  const { rows } = await test
    .sql('select 1')
    .then(() =>
      client.query<{ id: string; fence: string }>(
        `select id, fence from jobs.jobs where locked_by = '${WORKER}' limit 10`,
      ),
    );
  const input = rows.map(({ id, fence }) => ({ id, fence, kind: 'failed', delay_ms: 1e6, permanent: false }));
  return {
    ids: `'{${rows.map(({ id }) => id).join()}}'::uuid[]`,
    fences: `'{${rows.map(({ fence }) => fence).join()}}'::bigint[]`,
    input: `'${JSON.stringify(input)}'::json`,
  };
}

/** What pools and callers run again and again beside claims and settles, prepared like theirs. Arguments in SQL. */
const repeated: [Statement<unknown>, string][] = [
  [addAlikeJobs, `'{' || gen_random_uuid() || '}', '1', 't', 0, 5, null, null, null`],
  [addJobs, `('[{"id":"' || gen_random_uuid() || '","task":"t","priority":0,"max_attempts":5}]')::json, '[1]', null`],
  [heartbeat, `'${WORKER}'`],
  [findCancelRequests, `'${WORKER}'`],
  [promoteQueued, `'{q0,q20}', false`],
  [promoteQueued, `'{q0,q20}', true`],
  [stalledQueues, ''],
  [refillRateLimits, `'channel'`],
  [unblockSuccessors, `'{00000000-0000-7000-8000-000000000000}', 1000`],
  [unblockSuccessors, 'null, 1000'],
];

async function prepareRepeated(): Promise<void> {
  for (const [{ name, text }] of new Map(repeated)) await client.query(`prepare ${name} as ${text('jobs')}`);
}

const execution = ([{ name }, values]: [Statement<unknown>, string]): string =>
  `execute ${name}${values && `(${values})`}`;

/** Runs a statement; returns the plans of all that it ran inside, and how many pages it touched. */
async function run(text: string): Promise<{ plans: string; buffers: number }> {
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

async function faults(): Promise<string[]> {
  const claims = [
    ...(await faultsOf('a claim of plain jobs', claimPlain)),
    ...(await faultsOf('a claim by hand', claim(0))),
    ...(await faultsOf('a claim of any jobs', claim(10))),
  ];
  const { ids, fences } = await held();
  const completed = await faultsOf('a settle of completions', settle(ids, fences));
  const failed = await faultsOf('a settle of failures', fail((await held()).input));
  const others: string[] = [];
  for (const one of repeated) others.push(...(await faultsOf(execution(one), execution(one))));
  return [...claims, ...completed, ...failed, ...others];
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

describe.each([
  ['the default partitions alone', 0],
  ['several partitions', 5],
])('claims and settles read no more than they need, with %s,', (_, partitions) => {
  beforeAll(async () => {
    test = await createTestManager();
    if (partitions) await makePartitions();
    client = new pg.Client(test.url);
    await client.connect();
    client.on('notice', ({ message = '' }) => plans.push(message));
    await client.query(`load 'auto_explain'`);
    await client.query(`set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;
    set client_min_messages = log`);
    await prepareRepeated();
  });
  afterAll(async () => {
    await client.end();
    await test.close();
  });

  it('on tables that were analysed while they were empty, and planned so', async () => {
    await test.sql('vacuum analyze jobs.jobs, jobs.job_bodies, jobs.job_history, jobs.job_queues');
    for (let round = 0; round < UNTIL_GENERIC; round++) {
      for (const text of [claim(0), claim(10), claimPlain]) await client.query(text);
      const { ids, fences, input } = await held();
      await client.query(settle(ids, fences));
      await client.query(fail(input));
      for (const one of repeated) await client.query(execution(one));
    }
    expect(await faultsOf('a claim of plain jobs', claimPlain)).toEqual([]);
    expect(await faultsOf('a claim by hand', claim(0))).toEqual([]);
  });

  it('after a load that nobody has analysed, with those very plans', async () => {
    await test.sql('alter table jobs.jobs set (autovacuum_enabled = off)');
    for (let added = 0; added < BACKLOG; added += 2_000) {
      const specs = Array.from({ length: 2_000 }, (_, n) => ({ task: 't', payload: n, queue: `q${added + n}` }));
      await test.jobs.addJobs(specs.map((spec, n) => (n % 20 ? { task: 't', payload: spec.payload } : spec)));
    }
    expect(await faults()).toEqual([]);
    const places = await test.sql(`
      select tableoid::regclass::text as place from jobs.job_bodies group by 1 order by count(*) desc limit 1`);
    expect(places).toEqual([{ place: expect.stringMatching(partitions ? /_\d{8}_/ : /_default$/) }]);
  });

  it('after the load was analysed', async () => {
    await test.sql('analyze');
    expect(await faults()).toEqual([]);
  });
});
