// Databases as others have set them up: shared schemas, publications, renamed schemas, rows that SQL has written.
import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createJobManager,
  createWorkerPool,
  DatabaseUnavailableError,
  InvalidOptionsError,
  JobsMigrator,
} from '../../lib/index.js';
import { createTestDatabase, eventually, type TestDatabase } from '../support/database.js';
import { WORKER } from '../support/manager.js';

let database: TestDatabase;
const closing: (() => Promise<unknown>)[] = [];

beforeEach(async () => {
  database = await createTestDatabase();
});
afterEach(async () => {
  for (const close of closing.splice(0).toReversed()) await close();
  await database.drop();
});

const sql = async (text: string, values: unknown[] = []) => (await database.pool.query(text, values)).rows;

async function connect(options: object = {}) {
  const jobs = await createJobManager({ connection: database.url, ...options });
  closing.push(() => jobs.close());
  return jobs;
}

/** A role with a password, dropped at the end, and the URL under which it connects. */
async function createRole(): Promise<{ role: string; url: string }> {
  const role = `wild_${randomBytes(4).toString('hex')}`;
  await sql(`create role ${role} login password 'secret'`);
  closing.push(() => sql(`drop owned by ${role}; drop role ${role}`));
  const url = new URL(database.url);
  [url.username, url.password] = [role, 'secret'];
  return { role, url: url.href };
}

describe('a schema in which others may create', () => {
  it('gives an enqueue role nothing that runs with the rights of the owner', async () => {
    const { role, url } = await createRole();
    const migrator = new JobsMigrator({ connection: database.url, schema: 'public' });
    closing.push(() => migrator.close());
    await migrator.migrate();
    await migrator.grant('enqueue', role);
    await sql('grant create on schema public to public');
    const definers = await sql(
      `select proname, proconfig from pg_proc where prosecdef and pronamespace = 'public'::regnamespace`,
    );
    const proconfig = ['search_path="public", pg_temp', 'enable_seqscan=off', 'jit=off'];
    expect(definers.toSorted((a, b) => (a.proname < b.proname ? -1 : 1))).toEqual(
      ['add_keyed_jobs', 'add_windowed_jobs', 'take_tokens'].map((proname) => ({ proname, proconfig })),
    );

    const client = new pg.Client(url);
    await client.connect();
    closing.push(() => client.end());
    // They fit the calls better than those of PostgreSQL, which take any array, or any element.
    await client.query(`create table public.loot (who text); grant all on public.loot to public;
      create function public.cardinality(uuid[]) returns integer language plpgsql as $$
        begin insert into public.loot values (current_user); return pg_catalog.cardinality($1); end $$;
      create function public.unnest(uuid[]) returns setof uuid language plpgsql as $$
        begin insert into public.loot values (current_user); return query select * from pg_catalog.unnest($1); end $$`);
    const spec = { task: 't', priority: 0, max_attempts: 1, job_key_mode: 'replace', depends_on: [ID], flags: ['f'] };
    const refusals: unknown[] = [];
    for (const [id, mode] of [
      [ID, 'replace'],
      [OTHER_ID, 'replace'],
      [THIRD_ID, 'preserve_run_at'],
    ]) {
      const asked = [{ ...spec, id, job_key: 'k', job_key_mode: mode, ...(id === ID && { depends_on: null }) }];
      const call = client.query(`select * from public.add_keyed_jobs($1, '[1]', false, false)`, [
        JSON.stringify(asked),
      ]);
      refusals.push(
        await call.then(
          () => null,
          (error: pg.DatabaseError) => error.constraint,
        ),
      );
    }
    expect(refusals).toEqual([null, 'no_job_waits_for_itself', 'no_job_waits_for_itself']);
    await client.query(`select public.add_job('t', '1', job_key => 'l', tags => array['a'])`);
    await client.query(`
      create function public.unnest(integer[]) returns setof integer language plpgsql as $$
        begin insert into public.loot values (current_user); return query select * from pg_catalog.unnest($1); end $$;
      create function public.array_cat(integer[], integer[]) returns integer[] language plpgsql as $$
        begin insert into public.loot values (current_user); return pg_catalog.array_cat($1, $2); end $$;
      create function public.div(numeric, bigint) returns numeric language plpgsql as $$
        begin insert into public.loot values (current_user); return pg_catalog.div($1, $2); end $$;
      create function public.with_number(text, integer) returns text language plpgsql as $$
        begin insert into public.loot values (current_user); return $1; end $$;
      create operator public.|| (leftarg = text, rightarg = integer, function = public.with_number)`);
    await sql(`insert into public.rate_limits
      select a, a, 5, 3600000, 5, now() from pg_catalog.unnest(array['fixed', 'sliding', 'bucket']) a`);
    for (const key of ['fixed', 'sliding', 'bucket']) {
      for (const weight of [2, 4])
        await client.query(`select * from public.take_tokens($1, '', $2, true)`, [key, weight]);
      const heavy = [{ ...spec, id: OTHER_ID, job_key: key, limits: `${key}\x1d\x1d6` }];
      const { rows } = await client.query(`select missing from public.add_keyed_jobs($1, '[1]', false, false)`, [
        JSON.stringify(heavy),
      ]);
      expect(rows).toEqual([{ missing: `${key}\x1d6\x1d5` }]);
    }
    expect(await sql(`select distinct who from public.loot where who <> $1`, [role])).toEqual([]);
  });

  const ID = '01900000-0000-7000-8000-000000000001';
  const OTHER_ID = '01900000-0000-7000-8000-000000000002';
  const THIRD_ID = '01900000-0000-7000-8000-000000000003';
});

describe('under a publication of all tables', () => {
  it('jobs run, and history, receipts and jobs are removed', async () => {
    const jobs = await connect({ history: { retentionMs: 1_000 } });
    await sql('create publication everything for all tables');
    await jobs.addJobs([1, 2, 3].map((payload) => ({ task: 't', payload, tags: ['a'] })));
    const [done, failed, cancelled] = await jobs.getJobs(WORKER, { batchSize: 3 });
    await jobs.completeJobs(WORKER, [done!], 1);
    await jobs.permanentlyFailJobs([failed!.id], 'broken');
    await jobs.cancelJobs([cancelled!.id]);
    await jobs.failJobs(WORKER, [{ job: cancelled!, error: new Error('x') }], 1);
    expect(await sql('select from jobs.job_history')).toHaveLength(3);
    await sql(`update jobs.job_history set expires_at = expires_at - interval '1 hour'`);
    await sql(`insert into jobs.settle_receipts (job_ids, fences) values ('{}', '{}')`);
    await sql(`update jobs.settle_receipts set settled_at = settled_at - interval '2 hours'`);
    await jobs.gcJobHistory();
    expect(await sql('select from jobs.job_history')).toEqual([]);
    await jobs.purgeJobs({ status: 'exhausted', olderThanMs: 0 });
    await jobs.purgeJobs({ status: 'cancelled', olderThanMs: 0 });
    expect(await sql('select from jobs.jobs')).toEqual([]);
    expect(await sql('select from jobs.settle_receipts')).toEqual([]);
  });

  it('every table that rows are removed from has a replica identity, the partitions too', async () => {
    await connect();
    const without = await sql(
      `select c.relname from pg_class c where c.relnamespace = 'jobs'::regnamespace and c.relkind in ('r', 'p')
       and c.relreplident <> 'f' and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)`,
    );
    expect(without).toEqual([]);
  });
});

describe('a schema that was renamed', () => {
  it('is used under its new name, also beside a new one of the old name', async () => {
    const before = await connect();
    await before.addJob('t', 'old');
    await sql('alter schema jobs rename to jobs_b');
    await expect(connect({ schema: 'jobs_b', migrate: false })).rejects.toThrow(/has been renamed/);
    const renamed = await connect({ schema: 'jobs_b' });
    const fresh = await connect();
    await fresh.addJob('t', 'new');
    const [claimed] = await renamed.getJobs(WORKER, { batchSize: 5 });
    expect(claimed).toMatchObject({ payload: 'old' });
    await renamed.completeJobs(WORKER, [claimed!], 1);
    expect(await sql('select from jobs.jobs where locked_by is not null')).toEqual([]);
    expect(await sql('select from jobs_b.jobs')).toEqual([]);
    const [{ id }] = (await sql(`select jobs_b.add_job('t', '"by SQL"') as id`)) as [{ id: string }];
    expect(await renamed.findJob(id)).toMatchObject({ payload: 'by SQL' });
  });
});

it.each(['pg_x', 'pg_catalog'])('a schema whose name PostgreSQL keeps for itself is refused (%s)', async (schema) => {
  expect(() => new JobsMigrator({ connection: database.url, schema })).toThrow(InvalidOptionsError);
  await expect(createJobManager({ connection: database.url, schema })).rejects.toThrow(InvalidOptionsError);
});

describe('rows that an enqueue role has written by itself', () => {
  it.each([
    ['run_at', '-infinity', 'now'],
    ['run_at', 'infinity', 'now'],
    ['created_at', 'now', 'infinity'],
    ['created_at', 'now', '-infinity'],
    ['created_at', 'now', '290000-01-01'],
  ])(
    'with a %s of %s (created at %s) keep no other job from running, and can be looked at',
    async (_what, runAt, createdAt) => {
      const jobs = await connect();
      const { role, url } = await createRole();
      const migrator = new JobsMigrator({ connection: database.url });
      closing.push(() => migrator.close());
      await migrator.grant('enqueue', role);
      const client = new pg.Client(url);
      await client.connect();
      closing.push(() => client.end());
      const id = '01a21d2c-6cdf-7000-8438-33d964e015c5';
      await client.query(
        `with b as (
         insert into jobs.job_bodies (id, run_at, created_at, priority, max_attempts, task, payload)
         values ('${id}', $1::timestamptz, $2::timestamptz, 0, 25, 'ok', '0') returning *
       )
       insert into jobs.jobs (id, run_at, priority, max_attempts, task) select id, run_at, 0, 25, 'ok' from b`,
        [runAt, createdAt],
      );
      const ran: unknown[] = [];
      const pool = await createWorkerPool({ jobs, tasks: { ok: (n: number) => void ran.push(n) } }).start();
      closing.push(() => pool.stop());
      await jobs.addJobs([1, 2, 3].map((payload) => ({ task: 'ok', payload })));
      await eventually(() => ran.filter((n) => n !== 0).length === 3);
      expect((await jobs.listJobs()).items).toHaveLength(4);
      expect((await jobs.findJob(id))!.runAt.getTime()).not.toBeNaN();
      expect(await jobs.explain(id)).toBeDefined();
    },
  );
});

describe('installations in two schemas of one database', () => {
  it('do not wait for each other’s locks', async () => {
    const [one, two] = [await connect({ schema: 'one' }), await connect({ schema: 'two' })];
    for (const jobs of [one, two]) await jobs.configureQueue('mail', { concurrency: Infinity });
    await two.addJob('x', 1, { queue: 'mail' });
    const client = await database.pool.connect();
    await client.query(`begin; select one.edit_queue('mail', 5, false, null)`);
    expect(await two.getJobs(WORKER)).toHaveLength(1);
    await client.query('rollback');

    await client.query(`begin; select two.pauses_of_claim('by hand', true, now())`);
    await one.pause({ task: 'x' }, { reason: 'why', by: 'ada' });
    await client.query('rollback');
    client.release();
  });
});

describe('a role with short timeouts', () => {
  it.each(['statement_timeout', 'lock_timeout'])(
    '(%s) waits for a migration that another process is at',
    async (name) => {
      const { role, url } = await createRole();
      await sql(`alter role ${role} set ${name} = '200ms'`);
      await sql(`grant create on database "${new URL(database.url).pathname.slice(1)}" to ${role}`);
      const holder = await database.pool.connect();
      await holder.query('begin');
      await holder.query(`select pg_advisory_xact_lock(hashtextextended('millrace:migrate:jobs', 0))`);
      const migrator = new JobsMigrator({ connection: url });
      closing.push(() => migrator.close());
      const outcome = migrator.migrate().then(
        () => 'migrated',
        (error: unknown) => error,
      );
      const waits = `select from pg_stat_activity where usename = $1 and wait_event_type = 'Lock'
      and clock_timestamp() - xact_start > interval '600 ms'`;
      const waited = eventually(async () => (await sql(waits, [role])).length);
      await Promise.race([waited, outcome]);
      await holder.query('commit');
      holder.release();
      expect(await outcome).toBe('migrated');
      expect(await migrator.version()).toBeGreaterThan(0);
      await waited;
    },
  );
});

describe('a database that takes no writes', () => {
  it('is read by a process that only enqueues, though it declares queues', async () => {
    const primary = await connect();
    const { id } = await primary.addJob('t', 1);
    const { role, url } = await createRole();
    const migrator = new JobsMigrator({ connection: database.url });
    closing.push(() => migrator.close());
    await migrator.grant('admin', role);
    await sql(`alter role ${role} set default_transaction_read_only = on`);
    const jobs = await connect({ connection: url, queues: { mail: { concurrency: 3 } } });
    expect(await jobs.findJob(id)).toMatchObject({ payload: 1 });
    await expect(jobs.addJob('t', 2)).rejects.toThrow(DatabaseUnavailableError);
  });
});
