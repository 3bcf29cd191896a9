// Statements that take a list of jobs: what they read and compare grows with the list, not with its square.
import { afterAll, beforeAll, beforeEach, expect, it } from '@jest/globals';
import pg from 'pg';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';

const COUNT = 500;
/** Rows that one step of a plan may handle for each job. The square would be COUNT. */
const MOST_FOR_EACH = 20;

let test: TestManager;
let client: pg.Client;
let plans: string[] = [];

beforeAll(async () => {
  test = await createTestManager();
  client = new pg.Client(test.url);
  await client.connect();
  client.on('notice', ({ message = '' }) => plans.push(message));
  await client.query(`load 'auto_explain'`);
  await client.query(`set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;
    set auto_explain.log_analyze = on; set auto_explain.log_timing = off; set client_min_messages = log`);
});
afterAll(async () => {
  await client.end();
  await test.close();
});
beforeEach(() =>
  test.sql('truncate jobs.jobs, jobs.job_bodies, jobs.job_keys, jobs.job_dependencies, jobs.job_history'),
);

/** Adds the jobs, each with its options. Returns their ids. */
async function add(optionsOf: (n: number) => object = () => ({})): Promise<string[]> {
  const specs = Array.from({ length: COUNT }, (_, n) => ({ task: 't', payload: n, ...optionsOf(n) }));
  return (await test.jobs.addJobs(specs)).map(({ id }) => id);
}

const listOf = (ids: string[]): string => `'{${ids.join()}}'::uuid[]`;

const claimAll = async () => test.jobs.getJobs(WORKER, { batchSize: COUNT });

/** Runs a statement; returns the steps of its plans, and of those inside of it, that handle too many rows. */
async function stepsOverMeasure(text: string): Promise<string[]> {
  plans = [];
  await client.query(text);
  const lines = plans.flatMap((plan) => plan.split('\n'));
  let loops = 1;
  return lines.filter((line) => {
    const [, rows, times] = /actual rows=([\d.]+) loops=(\d+)/.exec(line) ?? [];
    const [, removed] = /Rows Removed by .*: (\d+)/.exec(line) ?? [];
    if (times) loops = Number(times);
    return Number(rows ?? removed ?? 0) * loops > COUNT * MOST_FOR_EACH;
  });
}

it('the children of one parent are told', async () => {
  const parent = await test.jobs.addJob('p', 1);
  await add(() => ({ dependsOn: [parent.id], onParentFailure: 'run' }));
  await test.sql(`delete from jobs.jobs where id = $1`, [parent.id]);
  expect(await stepsOverMeasure(`select * from jobs.tell_children(${listOf([parent.id])}, 1000)`)).toEqual([]);
  expect(plans.length).toBeGreaterThan(2);
  expect(await test.jobs.counts()).toMatchObject({ byStatus: { available: COUNT } });
});

it('the children of many parents are told', async () => {
  const parents = await add();
  await add((n) => ({ dependsOn: [parents[n]] }));
  await test.sql(`delete from jobs.jobs where id = any($1::uuid[])`, [parents]);
  expect(await stepsOverMeasure(`select * from jobs.tell_children(${listOf(parents)}, 1000)`)).toEqual([]);
});

it('jobs are failed by an operator', async () => {
  const ids = await add();
  const input = JSON.stringify(ids.map((id) => ({ id, fence: null, kind: 'doomed' })));
  const text = `select * from jobs.end_attempts(null, null, '${input}', true, true, 1000, null, null)`;
  expect(await stepsOverMeasure(text)).toEqual([]);
});

it('claims fail', async () => {
  await add((n) => (n % 2 ? {} : { jobKey: `k${n}` }));
  const input = JSON.stringify((await claimAll()).map(({ id, fence }) => ({ id, fence, kind: 'failed', delay_ms: 5 })));
  const text = `select * from jobs.end_attempts('${WORKER}', null, '${input}', true, true, 1000, null, null)`;
  expect(await stepsOverMeasure(text)).toEqual([]);
});

it.each([true, false])('claims are completed (with care: %s)', async (careful) => {
  await add();
  const claims = await claimAll();
  const fences = `'{${claims.map(({ fence }) => fence).join()}}'::bigint[]`;
  const text = `select * from jobs.complete_jobs(${careful ? `'${WORKER}'` : 'null'}, '${WORKER}', ${listOf(claims.map(({ id }) => id))},
    ${fences}, array_fill(1, array[${COUNT}]), null, true, 1000, null, true, ${careful})`;
  expect(await stepsOverMeasure(text)).toEqual([]);
});

it('jobs are cancelled', async () => {
  expect(await stepsOverMeasure(`select * from jobs.cancel_jobs(${listOf(await add())}, null, 1000)`)).toEqual([]);
});

it('jobs behind keys go on', async () => {
  await add((n) => ({ jobKey: `k${n}` }));
  const claims = await claimAll();
  await add((n) => ({ jobKey: `k${n}` }));
  await test.sql('delete from jobs.jobs where locked_by is not null');
  const holders = listOf(claims.map(({ id }) => id));
  expect(await stepsOverMeasure(`select * from jobs.free_successors(${holders}, null, 1000)`)).toEqual([]);
});

it('jobs with keys are replaced', async () => {
  await add((n) => ({ jobKey: `k${n}` }));
  const specs = Array.from({ length: COUNT }, (_, n) => {
    const id = `0190f000-0000-7000-8000-${String(n).padStart(12, '0')}`;
    return { id, task: 't', priority: 0, max_attempts: 5, job_key: `k${n}`, job_key_mode: 'replace' };
  });
  const payloads = JSON.stringify(specs.map(() => 1));
  const text = `select * from jobs.add_keyed_jobs('${JSON.stringify(specs)}', '${payloads}', false, false)`;
  expect(await stepsOverMeasure(text)).toEqual([]);
});
