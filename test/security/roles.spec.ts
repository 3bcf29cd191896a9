// What each kind of role may do, told by PostgreSQL itself: real roles, real connections.
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import {
  createJobManager,
  createWorkerPool,
  InvalidArgumentError,
  JobEvents,
  type JobManager,
  JobsMigrator,
  MissingPrivilegesError,
  type RoleKind,
} from '../../lib/index.js';
import { Maintenance } from '../../lib/worker/maintenance.js';
import { asPool } from '../support/pool.claims.js';
import { SEQUENCES_WITH_RIGHTS, TABLES_WITH_RIGHTS } from '../../lib/storage/role.rights.js';
import { createTestDatabase, eventually, type TestDatabase } from '../support/database.js';
import { WORKER } from '../support/manager.js';

const SCHEMA = 'my "Jobs"';
const PLACE = '"my ""Jobs"""';
const suffix = randomBytes(4).toString('hex');
const PASSWORD = 'se"cret\'';
const roles: Record<RoleKind | 'none', string> = {
  enqueue: `Web "${suffix}"`,
  worker: `worker_${suffix}`,
  admin: `admin_${suffix}`,
  none: `nobody_${suffix}`,
};

/** What only claims and ends write of a job. */
const FORGED: Record<string, string> = {
  fence: '7',
  revision: '7',
  attempts: '1',
  crashes: '2',
  locked_by: `'me'`,
  locked_at: 'now()',
  lease_ms: '1',
  lease_expires_at: 'now()',
  place: '1',
  cancel_requested: 'true',
  ended_before: 'true',
  replayed: 'true',
  snoozed: 'true',
  behind: 'gen_random_uuid()',
  job_key: `'theirs'`,
  last_error: `'x'`,
  previous: `'{}'`,
};

let database: TestDatabase;
let migrator: JobsMigrator;
const managers: JobManager[] = [];

const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`;

function urlOf(role: string): string {
  const url = new URL(database.url);
  url.username = encodeURIComponent(role);
  url.password = encodeURIComponent(PASSWORD);
  return url.href;
}

async function managerOf(kind: RoleKind, options: object = {}): Promise<JobManager> {
  const jobs = await createJobManager({ connection: urlOf(roles[kind]), schema: SCHEMA, ...options });
  managers.push(jobs);
  return jobs;
}

async function refused(kind: RoleKind | 'none', sql: string): Promise<string | undefined> {
  const client = new pg.Client(urlOf(roles[kind]));
  await client.connect();
  try {
    await client.query(sql);
    return undefined;
  } catch (error) {
    return (error as { code?: string }).code;
  } finally {
    await client.end();
  }
}

beforeAll(async () => {
  database = await createTestDatabase();
  for (const role of Object.values(roles)) {
    await database.pool.query(`create role ${quoted(role)} login password '${PASSWORD.replace("'", "''")}'`);
  }
  migrator = new JobsMigrator({ connection: database.url, schema: SCHEMA });
  await migrator.migrate();
});
beforeEach(async () => {
  for (const kind of ['enqueue', 'worker', 'admin'] as const) await migrator.grant(kind, roles[kind]);
});
afterAll(async () => {
  for (const jobs of managers) await jobs.close();
  await migrator.close();
  for (const role of Object.values(roles)) {
    await database.pool.query(`drop owned by ${quoted(role)}`);
    await database.pool.query(`drop role ${quoted(role)}`);
  }
  await database.drop();
});

describe('rights', () => {
  it('are given for every table and sequence of the schema, by name', async () => {
    const { rows } = await database.pool.query<{ name: string }>(
      `select relname as name from pg_class where relnamespace = $1::regnamespace
       and relkind in ('r', 'p') and not relispartition`,
      [PLACE],
    );
    expect(TABLES_WITH_RIGHTS.toSorted()).toEqual(rows.map(({ name }) => name).toSorted());
    const sequences = await database.pool.query<{ name: string }>(
      `select relname as name from pg_class c where relnamespace = $1::regnamespace and relkind = 'S'
       and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'i')`,
      [PLACE],
    );
    expect(sequences.rows.map(({ name }) => name)).toEqual(SEQUENCES_WITH_RIGHTS);
  });

  it('let no role migrate, alter, truncate, or use a partition or the version table directly', async () => {
    for (const kind of ['enqueue', 'worker', 'admin'] as const) {
      for (const sql of [
        `create table ${PLACE}.mine (a int)`,
        `alter table ${PLACE}.jobs add column mine int`,
        `truncate ${PLACE}.jobs`,
        `drop table ${PLACE}.jobs`,
        `drop schema ${PLACE} cascade`,
        `create trigger mine before insert on ${PLACE}.jobs execute function suppress_redundant_updates_trigger()`,
        `select from ${PLACE}.job_bodies_default`,
        `insert into ${PLACE}.migrations (version, name) values (99, 'mine')`,
        `delete from ${PLACE}.migrations`,
      ]) {
        expect([kind, sql, await refused(kind, sql)]).toEqual([kind, sql, '42501']);
      }
      const other = new JobsMigrator({ connection: urlOf(roles[kind]), schema: SCHEMA });
      await other.migrate(); // nothing to do
      await expect(other.rollback()).rejects.toThrow(MissingPrivilegesError);
      await other.close();
    }
  });

  it('are exactly those of the last grant, and none after a revoke', async () => {
    const rightsOf = async (role: string): Promise<unknown[]> =>
      (
        await database.pool.query(
          `select table_name, privilege_type, null as column_name from information_schema.role_table_grants
           where grantee = $1 union all
           select table_name, privilege_type, column_name from information_schema.column_privileges
           where grantee = $1 order by 1, 2, 3`,
          [role],
        )
      ).rows;
    const before = await rightsOf(roles.enqueue);
    await migrator.grant('enqueue', roles.enqueue);
    expect(await rightsOf(roles.enqueue)).toEqual(before);
    await migrator.grant('admin', roles.enqueue);
    expect((await rightsOf(roles.enqueue)).length).toBeGreaterThan(before.length);
    await migrator.grant('enqueue', roles.enqueue);
    expect(await rightsOf(roles.enqueue)).toEqual(before);
    await migrator.revoke(roles.enqueue);
    expect(await rightsOf(roles.enqueue)).toEqual([]);
    expect(await refused('enqueue', `select from ${PLACE}.jobs`)).toBe('42501');
  });

  it('are refused for roles that do not exist, owners and unknown kinds', async () => {
    const owner = decodeURIComponent(new URL(database.url).username);
    for (const role of ['nobody-knows', 'public', `x"; drop schema ${PLACE} cascade; --`, owner]) {
      await expect(migrator.grant('worker', role)).rejects.toThrow(InvalidArgumentError);
    }
    await expect(migrator.grant('root' as RoleKind, roles.none)).rejects.toThrow(
      /'enqueue', 'worker', 'admin', got "root"/,
    );
  });

  it('that are missing stop a process at its start, with the command that gives them', async () => {
    const start = createJobManager({ connection: urlOf(roles.none), schema: SCHEMA });
    await expect(start).rejects.toThrow(MissingPrivilegesError);
    await expect(start).rejects.toThrow(/millrace grant <enqueue\|worker\|admin> <role>/);
  });
});

describe('a process that may only enqueue', () => {
  it.each([true, false])('starts (migrate: %s), fails to declare queues, adds, finds and waits', async (migrate) => {
    const jobs = await managerOf('enqueue', { migrate, queues: { mail: { concurrency: 3 } } });
    const { id } = await jobs.addJob('mail', { to: 'a' }, { queue: 'mail', tags: ['t'], flags: ['f'], groupId: 'g' });
    await jobs.addJobs([
      { task: 'mail', payload: 1 },
      { task: 'mail', payload: 2, delayMs: 5 },
    ]);
    expect(await jobs.findJob(id)).toMatchObject({ payload: { to: 'a' }, status: 'available' });
    expect((await jobs.listJobs({ task: 'mail' })).items.length).toBeGreaterThan(2);
    expect(await jobs.jobHistory(id)).toEqual([]);
    expect((await jobs.explain(id)).reason).toBe('no_worker');
    expect((await jobs.counts()).byTask.mail).toBeGreaterThan(2);
    await (await managerOf('admin')).cancelJobs([id]);
    expect(await jobs.waitForJob(id, { timeoutMs: 5_000 })).toMatchObject({ status: 'cancelled' });
    await expect((await managerOf('admin')).purgeJobs({ status: 'cancelled', olderThanMs: 0 })).resolves.toBe(1);
  });

  it('adds in a transaction of its own', async () => {
    const jobs = await managerOf('enqueue');
    const client = new pg.Client(urlOf(roles.enqueue));
    await client.connect();
    await client.query('begin');
    const { id } = await jobs.addJob('in-transaction', {}, { manager: client });
    await client.query('commit');
    await client.end();
    expect(await jobs.findJob(id)).toMatchObject({ task: 'in-transaction' });
  });

  it('replaces jobs by their keys, and nothing else that way', async () => {
    const jobs = await managerOf('enqueue');
    const keyed = { jobKey: 'key', queue: 'keyed' } as const;
    const first = await jobs.addJob('keyed', 1, keyed);
    const second = await jobs.addJob('keyed', 2, keyed);
    expect([second.created, await jobs.findJob(first.id)]).toEqual([true, null]);
    const third = await jobs.addJob('keyed', 3, { ...keyed, jobKeyMode: 'preserve_run_at' });
    expect(third).toMatchObject({ id: second.id, created: false, payload: 3 });
    expect(await jobs.addJob('keyed', 4, { ...keyed, jobKeyMode: 'unsafe_dedupe' })).toMatchObject({ payload: 3 });
    await (await managerOf('worker')).getJobs(WORKER, { taskIdentifiers: ['keyed'] });
    const last = await jobs.addJob('keyed', 5, keyed);
    expect([last.status, (await jobs.findJob(second.id))!.status]).toEqual(['blocked', 'running']);

    const client = new pg.Client(urlOf(roles.enqueue));
    await client.connect();
    const add = (id: string, key: string): Promise<pg.QueryResult> =>
      client.query(`select * from ${PLACE}.add_keyed_jobs($1, '[6]', false, false)`, [
        JSON.stringify([{ id, task: 'forged', priority: 0, max_attempts: 1, job_key: key, job_key_mode: 'replace' }]),
      ]);
    // A finished job has a body, and no live row that would be in the way.
    const finished = await jobs.addJob('finished', 'true');
    await (await managerOf('admin')).cancelJobs([finished.id]);
    await expect(add(finished.id, 'another')).rejects.toMatchObject({ code: '23505' });
    expect(await jobs.findJob(finished.id)).toMatchObject({ status: 'cancelled', payload: 'true' });
    // A table of the caller's own in the place of the library's must not be taken for it.
    await client.query(`create temp table jobs (id uuid, job_key text)`);
    await client.query(`create temp table job_bodies (id uuid)`);
    const id = '01900000-0000-7000-8000-000000000001';
    expect((await add(id, 'mine')).rows).toMatchObject([{ id, created: true }]);
    await client.end();
    expect(await jobs.findJob(id)).toMatchObject({ task: 'forged', payload: 6, jobKey: 'mine' });
    expect(await refused('none', `select ${PLACE}.add_keyed_jobs('[]', '[]', false, false)`)).toBe('42501');
    const mayCall = `select has_function_privilege($1, $2, 'execute') as may`;
    const signature = `${PLACE}.add_keyed_jobs(json, json, boolean, boolean)`;
    const { rows } = await database.pool.query(mayCall, [roles.none, signature]);
    expect(rows).toEqual([{ may: false }]);
  });

  it('replaces a job that others wait for, also in a transaction; the sweep of the pools tells them', async () => {
    const jobs = await managerOf('enqueue');
    const admin = await managerOf('admin');
    const first = await jobs.addJob('parent', 1, { jobKey: 'family' });
    const child = await admin.addJob('child', 1, { dependsOn: [first.id] });
    const client = new pg.Client(urlOf(roles.enqueue));
    await client.connect();
    await client.query('begin');
    const second = await jobs.addJob('parent', 2, { jobKey: 'family', manager: client });
    const third = await jobs.addJob('parent', 3, { jobKey: 'family', manager: client });
    await client.query('commit');
    await client.end();
    const last = await jobs.addJob('parent', 4, { jobKey: 'family' });
    expect(new Set([first.id, second.id, third.id, last.id]).size).toBe(4);
    await admin.forceUnlockQueues();
    expect(await admin.explain(child.id)).toMatchObject({ reason: 'parents', blockedBy: [last.id] });
  });

  it('takes tokens of rate limits, and gives none back', async () => {
    await (
      await managerOf('admin')
    ).registerRateLimit('of enqueuers', { algorithm: 'sliding', capacity: 3, interval: 3_600_000 });
    const jobs = await managerOf('enqueue');
    expect(await jobs.takeTokens('of enqueuers', { by: 'x', weight: 3 })).toEqual({ ok: true, retryInMs: 0 });
    expect(await jobs.takeTokens('of enqueuers', { by: 'x' })).toMatchObject({ ok: false });
    for (const call of [
      `'of enqueuers', 'x', -3, true`,
      `'of enqueuers', 'x', null, true`,
      `'of enqueuers', E'a\\x1d', 1, true`,
    ]) {
      expect([call, await refused('enqueue', `select ${PLACE}.take_tokens(${call})`)]).toEqual([call, '22023']);
    }
    expect(await jobs.takeTokens('of enqueuers', { by: 'x' })).toMatchObject({ ok: false });
    expect((await jobs.listRateLimitValues('of enqueuers')).items).toMatchObject([{ by: 'x', availableTokens: 0 }]);
    expect(await refused('none', `select ${PLACE}.take_tokens('of enqueuers', '', 1, true)`)).toBe('42501');
  });

  it('is refused everything that claims, settles, edits or deletes', async () => {
    const jobs = await managerOf('enqueue');
    const { id } = await jobs.addJob('mine', {});
    const claimed = (await (await managerOf('worker')).getJobs(WORKER, { taskIdentifiers: ['mine'] }))[0]!;
    const calls: Record<string, () => Promise<unknown>> = {
      getJobs: () => jobs.getJobs('worker-of-the-web'),
      completeJobs: () => jobs.completeJobs(WORKER, [claimed], 1),
      failJobs: () => jobs.failJobs(WORKER, [{ job: claimed, error: 'x' }], 1),
      extendLease: () => jobs.extendLease(WORKER, id),
      revokeLease: () => jobs.revokeLease(id, 1),
      cancelJobs: () => jobs.cancelJobs([id]),
      permanentlyFailJobs: () => jobs.permanentlyFailJobs([id]),
      rescheduleJobs: () => jobs.rescheduleJobs([id], { priority: 1 }),
      retryJobs: () => jobs.retryJobs([id]),
      replayFailedJobs: () => jobs.replayFailedJobs(),
      forceUnlockJobs: () => jobs.forceUnlockJobs(),
      forceUnlockQueues: () => jobs.forceUnlockQueues(),
      resetLockedJobs: () => jobs.resetLockedJobs(),
      purgeJobs: () => jobs.purgeJobs({ status: 'exhausted', olderThanMs: 0 }),
      pauseQueue: () => jobs.pauseQueue('mail'),
      pause: () => jobs.pause({ task: 'mail' }, { reason: 'why', by: 'who' }),
      resume: () => jobs.resume({ task: 'mail' }),
      configureQueue: () => jobs.configureQueue('mail', { concurrency: 2 }),
      registerRateLimit: () => jobs.registerRateLimit('r', 1, 1000),
      refillRateLimits: () => jobs.refillRateLimits(),
      scheduleCron: () => jobs.scheduleCron({ id: 'c', task: 't', schedule: '* * * * *', payload: {} }),
      gcJobHistory: () => jobs.gcJobHistory(),
      gcJobQueues: () => jobs.gcJobQueues(),
      gcTaskIdentifiers: () => jobs.gcTaskIdentifiers(),
      dependents: () => jobs.addJob('mine', {}, { dependsOn: [id] }),
      'dependents with a key': () => jobs.addJob('mine', {}, { dependsOn: [id], jobKey: 'mine' }),
    };
    for (const [name, call] of Object.entries(calls)) {
      const refusal = await call().catch((error: unknown) => error);
      expect([name, refusal]).toEqual([name, expect.any(MissingPrivilegesError)]);
    }
    expect((await jobs.jobHistory(id)).map(({ status }) => status)).toEqual(['started']);
    for (const table of TABLES_WITH_RIGHTS) {
      expect([table, await refused('enqueue', `delete from ${PLACE}.${table}`)]).toEqual([table, '42501']);
    }
    for (const column of ['locked_by', 'priority', 'fence', 'parked']) {
      expect(await refused('enqueue', `update ${PLACE}.jobs set ${column} = null`)).toBe('42501');
    }
    // Nor can it add a job that seems to have run, or that nothing would ever give back.
    const plain = `id, task, run_at, priority, max_attempts`;
    const values = `gen_random_uuid(), 't', now(), 0, 5`;
    expect(await refused('enqueue', `insert into ${PLACE}.jobs (${plain}) values (${values})`)).toBe(undefined);
    for (const [column, value] of Object.entries(FORGED)) {
      const forged = `insert into ${PLACE}.jobs (${plain}, ${column}) values (${values}, ${value})`;
      expect([column, await refused('enqueue', forged)]).toEqual([column, '42501']);
    }
  });
});

describe('a process that works', () => {
  it('runs a pool: queues, rate limits, steps, progress, logs, failures, crons, transactions', async () => {
    await (await managerOf('admin')).registerRateLimit('api', 100, 1_000);
    const jobs = await managerOf('worker', { queues: { lane: { concurrency: 2 } } });
    const events = new JobEvents();
    const errors: unknown[] = [];
    events.on('worker.error', ({ error }) => errors.push(error));
    const pool = createWorkerPool({
      jobs,
      events,
      tasks: {
        all: async (_payload, ctx) => {
          await ctx.step('one', () => 1);
          await ctx.progress(50);
          await ctx.log('half');
          if (ctx.attempt === 1) throw new Error('once more');
          return 'done';
        },
        transactional: {
          transactional: true,
          handler: async (_payload, ctx) => {
            await ctx.jobs.addJob('all', {}, { delayMs: 60_000 });
          },
        },
        daily: { cron: '0 8 * * *', handler: () => undefined },
      },
      options: { pollIntervalMs: 50 },
    });
    await pool.start();
    const options = { queue: 'lane', rateLimitKey: 'api', jobKey: 'k' };
    const { id } = await jobs.addJob('all', {}, options);
    const child = await jobs.addJob('transactional', {}, { dependsOn: [id] });
    await eventually(
      async () => (await jobs.findJob(id))?.attempts === 1 && (await jobs.findJob(id))?.status !== 'running',
    );
    await jobs.rescheduleJobs([id], { runAt: new Date() });
    expect(await jobs.waitForJob(id, { timeoutMs: 20_000 })).toMatchObject({ status: 'completed', result: 'done' });
    expect(await jobs.waitForJob(child.id, { timeoutMs: 20_000 })).toMatchObject({ status: 'completed' });
    expect((await jobs.jobLogs(id)).items).toHaveLength(2);
    expect((await jobs.listCrons()).map((cron) => cron.id)).toEqual(['daily']);
    await pool.stop();
    expect(errors).toEqual([]);
  }, 40_000);

  it('looks after everything that maintenance does', async () => {
    const events = new JobEvents();
    const duties = new Maintenance(await managerOf('worker'), events);
    await duties.refillRateLimits();
    await duties.resetLockedJobs();
    await duties.collectGarbage();
    expect(events.events()).toEqual([]);
  });

  it('cannot register rate limits, rewrite history or re-encrypt it', async () => {
    const keys = [2, 1].map((byte) => ({ id: `key ${byte}`, key: new Uint8Array(32).fill(byte) }));
    const before = await managerOf('enqueue', { encryption: { keys: keys.slice(1) } });
    const { id } = await before.addJob('secret', 1);
    const worker = await managerOf('worker', { encryption: { keys: keys.slice(1) } });
    const [job] = await worker.getJobs(WORKER, { taskIdentifiers: ['secret'] });
    await worker.engine.settlement.settle(asPool(WORKER), [
      { job: job!, outcome: { kind: 'completed', result: '2' }, executionTimeMs: 1 },
    ]);
    expect((await before.waitForJob(id)).result).toBe(2);
    const encryption = { keys };
    await expect((await managerOf('worker', { encryption })).reencryptJobs()).rejects.toThrow(MissingPrivilegesError);
    expect(await (await managerOf('admin', { encryption })).reencryptJobs()).toMatchObject({ left: 0 });
    const jobs = await managerOf('worker');
    await expect(jobs.registerRateLimit('mine', 1, 1_000)).rejects.toThrow(MissingPrivilegesError);
    expect(await refused('worker', `update ${PLACE}.rate_limits set capacity = 10`)).toBe('42501');
    expect(await refused('worker', `delete from ${PLACE}.rate_limits`)).toBe('42501');
    expect(await refused('worker', `update ${PLACE}.rate_limit_states set counts = '{0}'`)).toBe('42501');
    expect(await refused('worker', `update ${PLACE}.job_history set worker_id = 'me'`)).toBe('42501');
    expect(await refused('worker', `update ${PLACE}.job_logs set message = 'me'`)).toBe('42501');
  });
});

describe('an operator', () => {
  it('has the whole API', async () => {
    const jobs = await managerOf('admin');
    const [one, two, three] = await jobs.addJobs(['a', 'b', 'c'].map((payload) => ({ task: 'operated', payload })));
    await jobs.permanentlyFailJobs([one!.id]);
    await jobs.rescheduleJobs([two!.id], { priority: 3 });
    await jobs.cancelJobs([three!.id]);
    await jobs.retryJobs([three!.id]);
    expect(await jobs.replayFailedJobs({ task: 'operated' })).toHaveLength(1);
    const [claimed] = await jobs.getJobs(WORKER, { taskIdentifiers: ['operated'] });
    await jobs.extendLease(WORKER, claimed!.id);
    await jobs.forceUnlockJobs([WORKER]);
    await jobs.pauseQueue('lane');
    await jobs.resumeQueue('lane');
    await jobs.pause({ task: 'lane' }, { reason: 'why', by: 'who' });
    await jobs.pause({ task: 'lane' }, { reason: 'why', by: 'someone else' });
    expect(await jobs.listPauses()).toHaveLength(1);
    expect(await jobs.resume({ task: 'lane' })).toBe(true);
    await jobs.configureQueue('lane', { concurrency: 7 });
    await jobs.forceUnlockQueues();
    await jobs.registerRateLimit('mine', 1, 1_000);
    await jobs.scheduleCron({ id: 'c', task: 'operated', schedule: '0 0 1 1 *', payload: {} });
    expect(await jobs.unscheduleCron('c')).toBe(true);
    expect(await jobs.purgeJobs({ status: 'exhausted', olderThanMs: 0 })).toBeGreaterThan(0);
    await jobs.resetLockedJobs();
    await jobs.gcJobHistory();
  });
});
