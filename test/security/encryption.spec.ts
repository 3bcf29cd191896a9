import { createDecipheriv, randomBytes } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import {
  createCollectingEvents,
  createJobManager,
  createWorkerPool,
  DecryptionError,
  EncryptedValue,
  type EncryptionOptions,
  InvalidOptionsError,
  type JobManager,
  type JobManagerOptions,
  partialSuccess,
  PayloadNotSerializableError,
  type PlainTask,
  type WorkerPool,
} from '../../lib/index.js';
import { createJobsTesting } from '../../lib/testing.js';
import { createTestDatabase, eventually, type TestDatabase } from '../support/database.js';
import { WORKER } from '../support/manager.js';
import { asPool } from '../support/pool.claims.js';

const OLD = { id: '2025', key: randomBytes(32) };
const NEW = { id: '2026', key: randomBytes(32).toString('base64') };
const SECRET = 'attack at dawn';
const JSON_COLUMNS = {
  job_bodies: ['payload'],
  jobs: ['previous'],
  job_history: ['result', 'partial_results'],
  job_steps: ['result'],
  job_progress: ['value'],
  job_logs: ['message'],
  crontabs: ['payload'],
};

let database: TestDatabase;
const open: (JobManager | WorkerPool)[] = [];

const sql = async (text: string, values: unknown[] = []): Promise<any[]> =>
  (await database.pool.query(text, values)).rows;

async function managerWith(encryption?: EncryptionOptions, options: JobManagerOptions = {}): Promise<JobManager> {
  const jobs = await createJobManager({ connection: database.url, ...(encryption && { encryption }), ...options });
  open.push(jobs);
  return jobs;
}

async function poolOf(jobs: JobManager, tasks: Record<string, PlainTask>) {
  const events = createCollectingEvents();
  const pool = createWorkerPool({ jobs, tasks, events, options: { pollIntervalMs: 20 } });
  await pool.start();
  open.unshift(pool);
  return { pool, events };
}

/** The tables and columns in which a text is found. */
async function placesOf(text: string): Promise<string[]> {
  const tables = await sql(
    `select relname as name from pg_class where relnamespace = 'jobs'::regnamespace and relkind in ('r', 'p')
     and not relispartition`,
  );
  const found: string[] = [];
  for (const { name } of tables) {
    const rows = await sql(`select 1 from jobs.${name} t where t::text like '%' || $1 || '%'`, [text]);
    if (rows.length) found.push(name as string);
  }
  return found;
}

async function keysInUse(): Promise<string[]> {
  const keys = new Set<string>();
  for (const [table, columns] of Object.entries(JSON_COLUMNS)) {
    for (const column of columns) {
      const rows = await sql(
        `select distinct substring(${column}::text from '"key":"([^"]+)"') as key from jobs.${table}
         where ${column}::text like '%"$encrypted":-0%'`,
      );
      for (const { key } of rows) keys.add(`${table}.${column}:${key as string}`);
    }
  }
  return [...keys].toSorted();
}

beforeAll(async () => {
  database = await createTestDatabase();
});
afterEach(async () => {
  for (const one of open.splice(0)) await ('stop' in one ? one.stop() : one.close());
  await sql(
    'truncate jobs.job_bodies, jobs.jobs, jobs.job_history, jobs.job_steps, jobs.job_progress, jobs.job_logs, jobs.crontabs',
  );
});
afterAll(() => database.drop());

/** One job that leaves the secret in every place where a job can. */
async function runSecretJob(jobs: JobManager): Promise<string> {
  const { events } = await poolOf(jobs, {
    secret: async (payload, ctx) => {
      expect(payload).toEqual({ secret: SECRET });
      await ctx.step('plan', () => ({ plan: SECRET }));
      await ctx.progress({ now: SECRET });
      await ctx.log(SECRET);
      if (ctx.attempt === 1) return partialSuccess({ completedSteps: ['plan'], results: { half: SECRET } });
      expect(ctx.previous).toEqual({ completedSteps: ['plan'], results: { half: SECRET } });
      return { answer: SECRET };
    },
  });
  const { id } = await jobs.addJob('secret', { secret: SECRET });
  await eventually(() => events.ofType('job.settled').some(({ job }) => job.id === id));
  return id;
}

async function endSecretJob(jobs: JobManager, id: string) {
  await jobs.rescheduleJobs([id], { runAt: new Date() });
  return jobs.waitForJob(id, { timeoutMs: 20_000 });
}

describe('what jobs carry, encrypted', () => {
  it('reaches handlers, history, logs and waiting calls as it was, and the database never', async () => {
    const jobs = await managerWith({ keys: [OLD] });
    const id = await runSecretJob(jobs);
    expect(await placesOf(SECRET)).toEqual([]);
    const result = await endSecretJob(jobs, id);
    expect(result).toMatchObject({
      status: 'completed',
      result: { answer: SECRET },
      job: { payload: { secret: SECRET } },
    });
    expect(await placesOf(SECRET)).toEqual([]);
    expect(await jobs.findJob(id)).toMatchObject({ payload: { secret: SECRET }, progress: { now: SECRET } });
    expect((await jobs.listJobs({ task: 'secret' })).items[0]).toMatchObject({ payload: { secret: SECRET } });
    expect(await jobs.jobHistory(id)).toMatchObject([
      { payload: { secret: SECRET }, partialResults: { results: { half: SECRET } }, result: null },
      { payload: { secret: SECRET }, partialResults: null, result: { answer: SECRET } },
    ]);
    expect((await jobs.jobLogs(id)).items.map(({ message }) => message)).toEqual([SECRET, SECRET]);
    expect((await jobs.listHistory({ jobId: id })).items).toHaveLength(2);
  });

  it('is described plainly by addJob, with a key and without, and by claims by hand', async () => {
    const jobs = await managerWith({ keys: [OLD] });
    const payload = { secret: SECRET };
    expect((await jobs.addJob('a', payload)).payload).toEqual(payload);
    for (const jobKeyMode of ['replace', 'preserve_run_at', 'preserve_run_at', 'unsafe_dedupe', 'replace'] as const) {
      expect((await jobs.addJob('a', payload, { jobKey: 'k', jobKeyMode })).payload).toEqual(payload);
      const claimable = await jobs.findJob((await jobs.listJobs({ task: 'a' })).items[0]!.id);
      expect(claimable!.payload).toEqual(payload);
    }
    const parent = await jobs.addJob('a', payload);
    expect((await jobs.addJob('a', payload, { dependsOn: [parent.id] })).payload).toEqual(payload);
    const claimed = await jobs.getJobs(WORKER, { batchSize: 10 });
    expect(claimed.map((job) => job.payload)).toEqual([payload, payload, payload]);
    expect(await placesOf(SECRET)).toEqual([]);
  });

  it('survives a replay, and a crontab’s payload its jobs', async () => {
    const jobs = await managerWith({ keys: [OLD] });
    const { id } = await jobs.addJob('a', { secret: SECRET });
    await jobs.permanentlyFailJobs([id]);
    expect((await jobs.replayFailedJobs())[0]!.payload).toEqual({ secret: SECRET });
    const cron = { id: 'c', task: 'b', schedule: '* * * * *', payload: { secret: SECRET } };
    expect((await jobs.scheduleCron(cron)).payload).toEqual({ secret: SECRET });
    expect((await jobs.listCrons())[0]!.payload).toEqual({ secret: SECRET });
    expect(await placesOf(SECRET)).toEqual([]);
    await sql(`update jobs.crontabs set known_since = now() - interval '61 s', last_slot_at = null`);
    expect((await jobs.engine.crontabs.fire('c')).fired[0]!.job.payload).toEqual({ secret: SECRET });
    expect(await placesOf(SECRET)).toEqual([]);
  });

  it('has another IV each time, the key’s id beside it, and no reader without the key', async () => {
    const jobs = await managerWith({ keys: [OLD] });
    await jobs.addJobs([1, 2].map(() => ({ task: 'a', payload: { secret: SECRET } })));
    const stored = (await sql('select id, payload::text as payload from jobs.job_bodies')).map(
      ({ id, payload }) => ({ id, ...JSON.parse(payload) }) as { id: string; key: string; data: string },
    );
    expect(stored.map(({ key }) => key)).toEqual([OLD.id, OLD.id]);
    const parts = stored.map(({ data }) => Buffer.from(data, 'base64'));
    expect(parts[0]!.subarray(0, 12).equals(parts[1]!.subarray(0, 12))).toBe(false);
    expect(parts[0]!.subarray(12).equals(parts[1]!.subarray(12))).toBe(false);
    // By the book, beside the library: what docs/security.md says of the format.
    const decipher = createDecipheriv('aes-256-gcm', OLD.key, parts[0]!.subarray(0, 12));
    decipher.setAAD(Buffer.from(JSON.stringify(['millrace', OLD.id, 'payload', stored[0]!.id, 'a'])));
    decipher.setAuthTag(parts[0]!.subarray(-16));
    expect(decipher.update(parts[0]!.subarray(12, -16), undefined, 'utf8') + decipher.final('utf8')).toBe(
      JSON.stringify({ secret: SECRET }),
    );
  });

  it('is plain in the transaction of a transactional task, to workOnce, and to specs', async () => {
    const jobs = await managerWith({ keys: [OLD] });
    const payload = { secret: SECRET };
    const testing = createJobsTesting({
      jobs,
      tasks: {
        parent: {
          transactional: true,
          handler: async (given, ctx) => {
            await ctx.step('s', () => SECRET);
            await ctx.jobs.addJob('child', given);
            return { answer: SECRET };
          },
        },
        child: (given) => ({ got: given as unknown }),
      },
    });
    const { id } = await jobs.addJob('parent', payload);
    expect(await testing.enqueued({ task: 'parent', payload })).toHaveLength(1);
    expect((await jobs.workOnce())!.job).toMatchObject({ payload, status: 'completed' });
    expect((await jobs.waitForJob(id)).result).toEqual({ answer: SECRET });
    await testing.expectEnqueued({ task: 'child', payload }, { times: 1 });
    expect(await testing.drain()).toMatchObject([{ job: { payload }, result: { got: payload } }]);
    await testing.close();
    expect(await placesOf(SECRET)).toEqual([]);
  });

  it('can be that of some tasks only', async () => {
    const jobs = await managerWith({ keys: [OLD], tasks: ['secret'] });
    await jobs.addJobs([
      { task: 'secret', payload: { secret: SECRET } },
      { task: 'open', payload: { secret: SECRET } },
    ]);
    const rows = await sql(`select task, payload::text like '%dawn%' as plain from jobs.job_bodies order by task`);
    expect(rows).toEqual([
      { task: 'open', plain: true },
      { task: 'secret', plain: false },
    ]);
    expect((await jobs.getJobs(WORKER, { batchSize: 2 })).map(({ payload }) => payload)).toEqual(
      [1, 2].map(() => ({ secret: SECRET })),
    );
  });

  it('lives beside jobs that were added before', async () => {
    const before = await managerWith();
    await before.addJob('a', { secret: SECRET });
    const jobs = await managerWith({ keys: [OLD] });
    await jobs.addJob('a', { secret: SECRET });
    const claimed = await jobs.getJobs(WORKER, { batchSize: 2 });
    expect(claimed.map(({ payload }) => payload)).toEqual([{ secret: SECRET }, { secret: SECRET }]);
  });
});

describe('a plain value that looks like an envelope', () => {
  it.each([undefined, { keys: [OLD] }])('is what it was (encryption: %j)', async (encryption) => {
    const jobs = await managerWith(encryption as EncryptionOptions | undefined);
    const fakes = [
      { $encrypted: 0, key: OLD.id, data: 'AAAA' },
      { $encrypted: -0, key: OLD.id, data: 'AAAA' },
      { $encrypted: '-0', key: 1 },
      { $encrypted: null },
    ];
    const plain = fakes.map((fake) => JSON.parse(JSON.stringify(fake)) as unknown);
    const ids: string[] = [];
    for (const payload of fakes) ids.push((await jobs.addJob('fake', payload)).id);
    const lines = ['\u0001encrypted:{"$encrypted":-0,"key":"2025","data":""}', '\u0001'];
    const { events } = await poolOf(jobs, {
      fake: async (payload, ctx) => {
        await ctx.step('s', () => payload as unknown);
        for (const line of lines) await ctx.log(line);
        return payload as unknown;
      },
    });
    await eventually(() => events.ofType('job.settled').length === fakes.length);
    for (const [index, id] of ids.entries()) {
      expect((await jobs.findJob(id))!.payload).toEqual(plain[index]);
      expect((await jobs.jobHistory(id))[0]!.result).toEqual(plain[index]);
      const kept = encryption ? lines : ['\uFFFD' + lines[0]!.slice(1), '\u0001'];
      expect((await jobs.jobLogs(id)).items.map(({ message }) => message)).toEqual(kept);
    }
  });
});

describe('a process without the key', () => {
  const wrong = { id: OLD.id, key: randomBytes(32) };

  it.each([
    ['no keys', undefined],
    ['another key', { keys: [{ id: NEW.id, key: NEW.key }] }],
    ['a wrong key by that id', { keys: [wrong] }],
  ])('never runs ciphertext and loses nothing: %s', async (_what, encryption) => {
    const right = await managerWith({ keys: [OLD] });
    const { id } = await right.addJob('a', { secret: SECRET }, { maxAttempts: 1 });
    const blind = await managerWith(encryption);
    const ran: unknown[] = [];
    const { pool, events } = await poolOf(blind, { a: (payload) => void ran.push(payload) });
    await eventually(() => events.ofType('worker.error').length > 0);
    expect(events.ofType('worker.error')[0]!.error).toBeInstanceOf(DecryptionError);
    await pool.stop();
    expect(ran).toEqual([]);
    expect(await right.findJob(id)).toMatchObject({
      status: 'snoozed',
      attempts: 0,
      lastError: expect.stringContaining(`"${OLD.id}"`),
    });
    await right.rescheduleJobs([id], { runAt: new Date() });
    expect(await blind.getJobs(WORKER)).toEqual([]);
    await right.rescheduleJobs([id], { runAt: new Date() });
    await poolOf(right, { a: (payload) => void ran.push(payload) });
    expect(await right.waitForJob(id, { timeoutMs: 10_000 })).toMatchObject({ status: 'completed' });
    expect(ran).toEqual([{ secret: SECRET }]);
  });

  it('sees that there is something, and cannot pass it on', async () => {
    const right = await managerWith({ keys: [OLD] });
    const id = await runSecretJob(right);
    await endSecretJob(right, id);
    const blind = await managerWith();
    const job = (await blind.findJob(id))!;
    expect([job.payload, job.progress]).toEqual([new EncryptedValue(OLD.id), new EncryptedValue(OLD.id)]);
    expect((await blind.jobHistory(id))[1]!.result).toBeInstanceOf(EncryptedValue);
    expect((await blind.jobLogs(id)).items[0]!.message).toContain(`"${OLD.id}"`);
    await expect(blind.waitForJob(id)).rejects.toThrow(DecryptionError);
    await expect(blind.addJob('a', job.payload)).rejects.toThrow(PayloadNotSerializableError);
    expect(JSON.stringify(job)).not.toContain(SECRET);
  });
});

describe('an encrypted value', () => {
  it('is no use in another job’s place, or changed', async () => {
    const jobs = await managerWith({ keys: [OLD] });
    const [mine, other] = await jobs.addJobs([
      { task: 'a', payload: 'mine' },
      { task: 'b', payload: 'other' },
    ]);
    await sql(`update jobs.job_bodies b set payload = o.payload from jobs.job_bodies o where b.id = $1 and o.id = $2`, [
      mine!.id,
      other!.id,
    ]);
    expect((await jobs.findJob(mine!.id))!.payload).toBeInstanceOf(EncryptedValue);
    const flip = `regexp_replace(payload::text, '"data":"(.)', case when payload::text ~ '"data":"A' then '"data":"B' else '"data":"A' end)`;
    await sql(`update jobs.job_bodies set payload = (${flip})::json where id = $1`, [other!.id]);
    expect((await jobs.findJob(other!.id))!.payload).toBeInstanceOf(EncryptedValue);
    await sql(`update jobs.job_bodies set task = 'c' where id = $1`, [other!.id]);
    for (const broken of ['{"$encrypted":-0,"key":"2025","data":""}', '{"$encrypted":-0}']) {
      await sql(`update jobs.job_bodies set payload = $2 where id = $1`, [other!.id, broken]);
      expect((await jobs.findJob(other!.id))!.payload).toBeInstanceOf(EncryptedValue);
    }
  });

  it('of a preserve_run_at job is bound to its task, and that cannot be claimed of others', async () => {
    const jobs = await managerWith({ keys: [OLD] });
    const { id } = await jobs.addJob('a', 1, { jobKey: 'k', jobKeyMode: 'preserve_run_at' });
    expect((await jobs.addJob('a', 2, { jobKey: 'k', jobKeyMode: 'preserve_run_at' })).id).toBe(id);
    expect((await jobs.getJobs(WORKER))[0]).toMatchObject({ id, payload: 2 });
    const plain = await jobs.addJob('a', 3);
    await sql(
      `update jobs.job_bodies set payload = (rtrim(payload::text, '}') || ',"bound":"task"}')::json where id = $1`,
      [plain.id],
    );
    expect((await jobs.findJob(plain.id))!.payload).toBeInstanceOf(EncryptedValue);
  });
});

describe('rotation', () => {
  it('old keys decrypt, the new one encrypts; everything is re-encrypted, and the old key can go', async () => {
    const before = await managerWith({ keys: [OLD] });
    const id = await runSecretJob(before);
    const done = await before.addJob('done', { secret: SECRET }, { jobKey: 'k', jobKeyMode: 'preserve_run_at' });
    const [claimed] = await before.getJobs(WORKER, { taskIdentifiers: ['done'] });
    for (const line of [SECRET, SECRET, SECRET])
      await before.engine.attempts.log({ job: claimed!, workerId: WORKER }, line);
    await before.scheduleCron({ id: 'c', task: 'b', schedule: '0 0 1 1 *', payload: { secret: SECRET } });
    await before.engine.settlement.settle(asPool(WORKER), [
      { job: claimed!, outcome: { kind: 'completed', result: JSON.stringify(SECRET) }, executionTimeMs: 1 },
    ]);
    const all = Object.entries(JSON_COLUMNS).flatMap(([table, columns]) =>
      columns.map((column) => `${table}.${column}`),
    );
    expect(await keysInUse()).toEqual(all.map((place) => `${place}:${OLD.id}`).toSorted());

    const both = await managerWith({ keys: [NEW, OLD] });
    const extra = await both.addJob('a', { secret: SECRET }, { delayMs: 60_000 });
    expect((await both.findJob(id))!.payload).toEqual({ secret: SECRET });
    const report = await both.reencryptJobs({ batchSize: 1 });
    expect(report).toEqual({ reencrypted: all.length + 1 + 3, left: 0, unreadable: [] });
    expect(await keysInUse()).toEqual(all.map((place) => `${place}:${NEW.id}`).toSorted());
    expect(await both.reencryptJobs()).toEqual({ reencrypted: 0, left: 0, unreadable: [] });

    for (const one of open.splice(0)) await ('stop' in one ? one.stop() : one.close());
    const after = await managerWith({ keys: [NEW] });
    expect((await after.findJob(extra.id))!.payload).toEqual({ secret: SECRET });
    expect((await after.waitForJob(done.id)).result).toBe(SECRET);
    expect((await after.listCrons())[0]!.payload).toEqual({ secret: SECRET });
    await poolOf(after, {
      secret: async (payload, ctx) => [
        payload,
        ctx.previous,
        await ctx.step('plan', () => 'done again'),
        (await after.jobLogs(id)).items[0]!.message,
        (await after.findJob(id))!.progress,
      ],
    });
    expect((await endSecretJob(after, id)).result).toEqual([
      { secret: SECRET },
      { completedSteps: ['plan'], results: { half: SECRET } },
      { plan: SECRET },
      SECRET,
      { now: SECRET },
    ]);
  });

  it('passes over what is held or cannot be read, and says how much is left', async () => {
    const before = await managerWith({ keys: [OLD] });
    const [held] = await before.addJobs([1, 2, 3].map((payload) => ({ task: 'a', payload })));
    const lost = await managerWith({ keys: [{ id: 'lost', key: randomBytes(32) }] });
    await lost.addJob('a', 4);
    const both = await managerWith({ keys: [NEW, OLD] });
    const client = await database.pool.connect();
    try {
      await client.query('begin');
      await client.query('select from jobs.job_bodies where id = $1 for update', [held!.id]);
      expect(await both.reencryptJobs({ batchSize: 2 })).toEqual({ reencrypted: 2, left: 2, unreadable: ['lost'] });
      const stopped = AbortSignal.abort();
      expect(await both.reencryptJobs({ signal: stopped })).toMatchObject({ reencrypted: 0, left: 2 });
    } finally {
      await client.query('rollback');
      client.release();
    }
    expect(await both.reencryptJobs()).toEqual({ reencrypted: 1, left: 1, unreadable: ['lost'] });
  });

  it('may go on while workers claim, replace and finish the same jobs', async () => {
    const before = await managerWith({ keys: [OLD] });
    await before.addJobs(Array.from({ length: 300 }, (_, n) => ({ task: 'a', payload: { n, secret: SECRET } })));
    const both = await managerWith({ keys: [NEW, OLD] });
    const seen: number[] = [];
    const { events } = await poolOf(both, {
      a: ({ n, secret }: { n: number; secret: string }) => {
        if (secret === SECRET) seen.push(n);
        return n;
      },
    });
    const reports = [await both.reencryptJobs({ batchSize: 20 }), await both.reencryptJobs({ batchSize: 20 })];
    await eventually(() => events.ofType('job.settled').length === 300);
    expect(events.ofType('worker.error')).toEqual([]);
    expect(seen.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 300 }, (_, n) => n));
    reports.push(await both.reencryptJobs());
    expect(reports.at(-1)!.left).toBe(0);
    expect((await keysInUse()).filter((key) => key.endsWith(OLD.id))).toEqual([]);
  });
});

describe('the option encryption', () => {
  it.each([
    [{ keys: [] }],
    [{}],
    [{ keys: [{ id: 'a', key: 'c2hvcnQ=' }] }],
    [{ keys: [{ id: '', key: randomBytes(32) }] }],
    [{ keys: [OLD, { ...OLD }] }],
    [{ keys: [{ ...OLD, more: 1 }] }],
    [{ keys: [OLD], task: ['x'] }],
    [{ keys: [null] }],
  ])('is refused, without showing a key: %#', async (encryption) => {
    const refusal = createJobManager({ connection: database.url, encryption: encryption as EncryptionOptions });
    await expect(refusal).rejects.toThrow(InvalidOptionsError);
    await expect(refusal).rejects.not.toThrow(/c2hvcnQ=/);
  });

  it('takes keys as bytes, base64, base64url and hex', async () => {
    const key = randomBytes(32);
    const first = await managerWith({ keys: [{ id: 'k', key }] });
    const { id } = await first.addJob('a', SECRET);
    for (const form of ['base64', 'base64url', 'hex'] as const) {
      const jobs = await managerWith({ keys: [{ id: 'k', key: key.toString(form) }] });
      expect((await jobs.findJob(id))!.payload).toBe(SECRET);
    }
  });
});
