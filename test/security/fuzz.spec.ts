// Hostile strings in every place where one can get to SQL: either a typed error before anything has happened, or the
// very same string comes back, and matches nothing but itself.
// oxlint-disable jest/no-conditional-expect -- which of the two must be is for the string to decide
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import {
  type AddJobOptions,
  createJobManager,
  InvalidArgumentError,
  InvalidOptionsError,
  JobContext,
  type JobFilter,
  type JobManager,
  JobsError,
  JobsMigrator,
  PayloadNotSerializableError,
  PayloadTooLargeError,
  UnknownRateLimitError,
} from '../../lib/index.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { WORKER } from '../support/manager.js';
import { asPool } from '../support/pool.claims.js';

const RUNS = { numRuns: 60 };
/** Every known string, then some at random. */
const all = (fits: (text: string) => boolean = () => true): { numRuns: number; examples: [string][] } => {
  const examples = KNOWN.filter(fits).map((text): [string] => [text]);
  return { numRuns: examples.length + 30, examples };
};

const KNOWN = [
  `'; drop schema jobs cascade; --`,
  `"; drop table canary; --`,
  `' or '1'='1`,
  `x' union select payload from jobs.job_bodies --`,
  `$1`,
  `$2::text`,
  `$$ select 1 $$`,
  `%s`,
  `%`,
  `_`,
  `\\`,
  `\\'`,
  `\\x00`,
  `{a,b}`,
  `{"a":1}`,
  `NULL`,
  `null`,
  `(1,2)`,
  `/* */`,
  `--`,
  `;`,
  `'`,
  `''`,
  `"`,
  `""`,
  '`',
  ' ',
  '\t\r\n',
  '\0',
  'a\0b',
  '\ud800',
  'a\udc00b',
  '\ufeff',
  '\u202e',
  '😀',
  'é vs e\u0301',
  '__proto__',
  'constructor',
  'toString',
  'hasOwnProperty',
  '[object Object]',
  '${process.env}',
  '\u0001encrypted:',
  '-infinity',
  'x'.repeat(1_000),
  'é'.repeat(500),
  'é'.repeat(1_000),
  'x'.repeat(1_001),
  `'`.repeat(5_000),
];
const utf16 = fc
  .array(fc.integer({ min: 0, max: 0xffff }), { maxLength: 40 })
  .map((units) => String.fromCharCode(...units));
const hostile = fc.oneof(
  fc.constantFrom(...KNOWN),
  fc.string({ unit: 'binary', maxLength: 60 }),
  utf16,
  fc.tuple(fc.constantFrom(...KNOWN), fc.constantFrom(...KNOWN)).map((parts) => parts.join('')),
);

/** What the library promises to take as a name. */
const isName = (text: unknown, maxBytes = 1_000): boolean =>
  typeof text === 'string' && text.length > 0 && Buffer.byteLength(text) <= maxBytes && isText(text);
const isReason = (text: string): boolean => text.length > 0 && text.length <= 1_000 && isText(text);
const isText = (text: string): boolean => !text.includes('\0') && !/\p{Surrogate}/u.test(text);
/** What lanes are made of: control characters stand between their parts. */
const isLaneName = (text: unknown): boolean => isName(text) && !/[^\u0020-\uffff]/.test(text as string);
const isJobKey = (text: unknown): boolean => isName(text, 2_000);
/** Texts that are taken whatever they contain: what PostgreSQL cannot store is replaced. */
const stored = (text: string): string => text.replaceAll('\0', '\ufffd').replace(/\p{Surrogate}/gu, '\ufffd');

let database: TestDatabase;
let jobs: JobManager;

const sql = async (text: string, values: unknown[] = []): Promise<any[]> =>
  (await database.pool.query(text, values)).rows;
const countJobs = async (): Promise<unknown> =>
  (await sql('select (select count(*) from jobs.job_bodies) as bodies, (select count(*) from jobs.jobs) as live'))[0];
const outcomeOf = <T>(work: Promise<T>): Promise<T | Error> => work.catch((error: unknown) => error as Error);
const failed = (outcome: unknown): outcome is Error => Object(outcome) instanceof JobsError || isRawError(outcome);
const isRawError = (outcome: unknown): boolean =>
  typeof outcome === 'object' && outcome !== null && 'stack' in outcome && 'message' in outcome;

/** What a call was refused by, or what would have been right where it was not. */
const refusalOf = (outcome: unknown): Error => (failed(outcome) ? outcome : new InvalidArgumentError([]));

/** Everything beside the library’s own rows. */
const surroundings = (): Promise<unknown[]> =>
  sql(`select n.nspname, c.relname, c.relkind::text, (select count(*) from public.canary) as canary
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
       where n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema' order by 1, 2, 3`);
let before: unknown[];

beforeAll(async () => {
  database = await createTestDatabase();
  await sql('create table canary (a int)');
  await sql('insert into canary values (1)');
  jobs = await createJobManager({ connection: database.url });
  before = await surroundings();
});
afterAll(async () => {
  await jobs.close();
  await database.drop();
});

describe('names of jobs', () => {
  const LISTS = ['flags', 'tags'] as const;
  const options = fc.record(
    {
      queue: hostile,
      jobKey: hostile,
      groupId: hostile,
      flags: fc.array(hostile, { maxLength: 3 }),
      tags: fc.array(hostile, { maxLength: 3 }),
    },
    { requiredKeys: [] },
  );

  it('are refused before anything is inserted, or come back as they were, and match literally', async () => {
    await fc.assert(
      fc.asyncProperty(hostile, options, async (task, given: AddJobOptions) => {
        const names = [task, ...(given.groupId === undefined ? [] : [given.groupId])];
        names.push(...LISTS.flatMap((key) => given[key] ?? []));
        const counted = await countJobs();
        const outcome = await outcomeOf(jobs.addJob(task, { task }, { ...given, delayMs: 3_600_000 }));
        const { queue: lane = 'q', jobKey = 'k' } = given;
        if (!names.every((name) => isName(name)) || !isLaneName(lane) || !isJobKey(jobKey)) {
          expect(outcome).toBeInstanceOf(InvalidArgumentError);
          expect(await countJobs()).toEqual(counted);
          return;
        }
        expect(failed(outcome)).toBe(false);
        const { id } = outcome as { id: string };
        const job = (await jobs.findJob(id))!;
        const expected = { queue: null, jobKey: null, groupId: id, flags: [], tags: [], ...given };
        expect(job).toMatchObject({ task, payload: { task }, ...expected });
        const { queue, groupId } = given;
        const filters: JobFilter[] = [
          { task },
          ...(typeof queue === 'string' ? [{ queue }] : []),
          ...(groupId !== undefined ? [{ groupId }] : []),
          ...(given.tags ?? []).map((tag) => ({ tag })),
          ...(given.flags ?? []).map((flag) => ({ flag })),
        ];
        for (const filter of filters) {
          const { items } = await jobs.listJobs(filter, { limit: 1_000 });
          expect(items.some((item) => item.id === id)).toBe(true);
          const [[field, value]] = Object.entries(filter) as [[string, string]];
          const held = (item: (typeof items)[number]): unknown =>
            field === 'tag' ? item.tags : field === 'flag' ? item.flags : [item[field as 'task']];
          for (const item of items) expect(held(item)).toContain(value);
        }
        expect((await jobs.counts()).byTask[task]).toBeGreaterThan(0);
      }),
      RUNS,
    );
  }, 60_000);

  it('choose what is claimed, and nothing else', async () => {
    await fc.assert(
      fc.asyncProperty(hostile.filter(isName), hostile.filter(isName), async (task, flag) => {
        await jobs.addJobs([
          { task, payload: 1, flags: [flag] },
          { task: `${task.slice(0, 400)}%`, payload: 2 },
        ]);
        const claimed = await jobs.getJobs(WORKER, { taskIdentifiers: [task], batchSize: 100 });
        expect(new Set(claimed.map((job) => job.task))).toEqual(new Set([task]));
        await jobs.addJob(task, 1, { flags: [flag] });
        expect(await jobs.getJobs(WORKER, { taskIdentifiers: [task], forbiddenFlags: [flag] })).toEqual([]);
        await sql('truncate jobs.jobs');
      }),
      RUNS,
    );
  }, 60_000);

  it('of which one is wrong keep a whole batch out', async () => {
    await fc.assert(
      fc.asyncProperty(
        hostile.filter((text) => !isName(text)),
        fc.nat({ max: 5 }),
        async (task, place) => {
          const counted = await countJobs();
          const specs = Array.from({ length: 6 }, (_, index) => ({
            task: index === place ? task : 'fine',
            payload: 1,
          }));
          await expect(jobs.addJobs(specs)).rejects.toBeInstanceOf(InvalidArgumentError);
          expect(await countJobs()).toEqual(counted);
        },
      ),
      RUNS,
    );
  });
});

describe('names of queues, rate limits and crontabs', () => {
  it('are refused, or are those of one queue', async () => {
    await fc.assert(
      fc.asyncProperty(hostile, async (name) => {
        const outcome = await outcomeOf(jobs.configureQueue(name, { concurrency: 3 }));
        expect(failed(outcome) ? outcome : null).toEqual(isLaneName(name) ? null : expect.any(InvalidArgumentError));
        const found = (await jobs.listQueues()).filter((queue) => queue.name === name);
        expect(found.map(({ concurrency }) => concurrency)).toEqual(isLaneName(name) ? [3] : []);
        await outcomeOf(jobs.pauseQueue(name));
        expect(await outcomeOf(jobs.forceUnlockQueues([name]))).toMatchObject(
          isLaneName(name) ? [{ name, paused: true }] : {},
        );
      }),
      all(),
    );
  }, 60_000);

  it('are refused, or are those of one rate limit; unknown ones keep jobs out', async () => {
    await fc.assert(
      fc.asyncProperty(hostile, async (key) => {
        const counted = await countJobs();
        const unregistered = await outcomeOf(jobs.addJob('limited', {}, { rateLimitKey: `${key}!` }));
        expect(unregistered).toBeInstanceOf(isLaneName(`${key}!`) ? UnknownRateLimitError : InvalidArgumentError);
        expect(await countJobs()).toEqual(counted);
        const outcome = await outcomeOf(jobs.registerRateLimit(key, 5, 1_000));
        if (!isLaneName(key)) return expect(outcome).toBeInstanceOf(InvalidArgumentError);
        expect(outcome).toMatchObject({ key, capacity: 5 });
        const { id } = await jobs.addJob('limited', {}, { rateLimitKey: key, delayMs: 3_600_000 });
        expect((await jobs.findJob(id))!.rateLimitKey).toBe(key);
      }),
      all(),
    );
  }, 60_000);

  it('and a rate limit’s interval: refused, or an interval', async () => {
    const intervals = fc.oneof(
      hostile,
      fc.constantFrom(
        '1 minute',
        '-1 s',
        '0',
        '999999999 years',
        '1e30 s',
        'infinity',
        'P1D',
        '1 s; drop table canary',
      ),
    );
    await fc.assert(
      fc.asyncProperty(intervals, async (interval) => {
        const outcome = await outcomeOf(jobs.registerRateLimit('interval', 1, interval));
        expect(refusalOf(outcome)).toBeInstanceOf(InvalidArgumentError);
        const intervalMs = failed(outcome) ? 1 : (outcome as { intervalMs: number }).intervalMs;
        expect(intervalMs).toBeGreaterThan(0);
      }),
      RUNS,
    );
  });

  it('are refused, or are those of one crontab', async () => {
    await fc.assert(
      fc.asyncProperty(hostile, hostile, hostile, async (id, task, timeZone) => {
        const cron = { id, task, schedule: '0 0 1 1 *', payload: { id } };
        expect(await outcomeOf(jobs.scheduleCron({ ...cron, schedule: timeZone }))).toBeInstanceOf(
          InvalidArgumentError,
        );
        expect(await outcomeOf(jobs.scheduleCron({ ...cron, timeZone: `${timeZone}!` }))).toBeInstanceOf(
          InvalidArgumentError,
        );
        const outcome = await outcomeOf(jobs.scheduleCron(cron));
        const fits = isName(id, 900) && isName(task);
        if (!fits) return expect(outcome).toBeInstanceOf(InvalidArgumentError);
        expect(outcome).toMatchObject({ id, task, payload: { id } });
        expect((await jobs.listCrons()).map((one) => one.id)).toEqual([id]);
        expect(await outcomeOf(jobs.unscheduleCron(`${id}?`.slice(0, 900)))).not.toBe(true);
        expect(await jobs.unscheduleCron(id)).toBe(true);
      }),
      { numRuns: 40 },
    );
  }, 60_000);
});

describe('texts of attempts', () => {
  it('(worker id, error, log, step, progress, result, reason) come back, and no other job’s are touched', async () => {
    const texts = fc.record({ workerId: hostile, error: hostile, line: hostile, step: hostile, value: hostile });
    await fc.assert(
      fc.asyncProperty(texts, async ({ workerId: name, error, line, step, value }) => {
        const workerId = `worker-${name}`;
        const { id } = await jobs.addJob('texts', { value });
        const outcome = await outcomeOf(jobs.getJobs(workerId, { taskIdentifiers: ['texts'] }));
        if (failed(outcome)) {
          expect([outcome, isText(workerId) && workerId.length >= 10]).toEqual([expect.any(JobsError), false]);
          await jobs.cancelJobs([id]);
          return;
        }
        const [job] = outcome as Awaited<ReturnType<JobManager['getJobs']>>;
        expect(job).toMatchObject({ id, lockedBy: workerId, payload: { value } });
        const context = new JobContext(job!, jobs, workerId);
        await context.progress({ [value]: value });
        await context.log(line);
        const stepped = await outcomeOf(context.step(step, () => ({ value })));
        if (isName(step)) expect(stepped).toEqual({ value });
        else expect(stepped).toBeInstanceOf(InvalidArgumentError);
        if (isName(step)) expect((await jobs.engine.attempts.findSteps(id))[0]).toMatchObject({ name: step });
        await jobs.reportPartialSuccess(workerId, job!, { results: { value }, completedSteps: [value] }, 1);
        await jobs.rescheduleJobs([id], { runAt: new Date(0) });
        const [again] = await jobs.getJobs(workerId, { taskIdentifiers: ['texts'] });
        expect(again!.previous).toEqual({ results: { value }, completedSteps: [value] });
        await jobs.failJobs(workerId, [{ job: again!, error: new Error(error) }], 1);
        const history = await jobs.jobHistory(id);
        const message = stored((error || 'Error').slice(0, 10_000));
        expect(history.map((record) => record.errorMessage)).toEqual([null, message]);
        expect(history.map((record) => record.workerId)).toEqual([workerId, workerId]);
        expect((await jobs.listHistory({ workerId })).items.every((record) => record.workerId === workerId)).toBe(true);
        const found = (await jobs.findJob(id))!;
        expect([found.lastError, found.progress]).toEqual([message, JSON.parse(JSON.stringify({ [value]: value }))]);
        const [logged] = (await jobs.jobLogs(id)).items;
        const plain = stored(line.slice(0, 10_000));
        const looksSealed = plain.startsWith('\u0001encrypted:');
        expect(logged!.message).toBe(looksSealed ? `\ufffd${plain.slice(1)}` : plain);
        await jobs.cancelJobs([id]);
      }),
      RUNS,
    );
  }, 60_000);

  it('of a cancellation or failure by hand are refused, or come back', async () => {
    await fc.assert(
      fc.asyncProperty(hostile, async (reason) => {
        const [cancelled, exhausted] = await jobs.addJobs([1, 2].map((payload) => ({ task: 'reasons', payload })));
        const outcome = await outcomeOf(jobs.cancelJobs([cancelled!.id], reason));
        const other = await outcomeOf(jobs.permanentlyFailJobs([exhausted!.id], reason));
        if (isReason(reason)) {
          expect((await jobs.jobHistory(cancelled!.id))[0]!.errorMessage).toBe(reason);
          expect((await jobs.findJob(exhausted!.id))!.lastError).toBe(reason);
        } else {
          expect([outcome, other]).toEqual([expect.any(InvalidArgumentError), expect.any(InvalidArgumentError)]);
          expect((await jobs.findJob(cancelled!.id))!.status).toBe('available');
        }
      }),
      all(),
    );
  }, 60_000);

  it('that a handler returns come back as results', async () => {
    await fc.assert(
      fc.asyncProperty(hostile, async (value) => {
        const { id } = await jobs.addJob('results', null);
        const [job] = await jobs.getJobs(WORKER, { taskIdentifiers: ['results'] });
        const outcome = { kind: 'completed' as const, result: JSON.stringify({ value, [value]: [value] }) };
        await jobs.engine.settlement.settle(asPool(WORKER), [{ job: job!, outcome, executionTimeMs: 1 }]);
        const expected = JSON.parse(JSON.stringify({ value, [value]: [value] })) as unknown;
        expect((await jobs.waitForJob(id)).result).toEqual(expected);
        expect((await jobs.jobHistory(id))[0]!.result).toEqual(expected);
      }),
      all(),
    );
  }, 60_000);
});

describe('filters, ids and cursors', () => {
  const junk = fc.oneof(hostile, fc.constantFrom(null, undefined, 1, {}, [], true, new Date(Number.NaN)));

  it('are refused with a typed error, or match literally', async () => {
    await jobs.addJobs([
      { task: 'plain', payload: { text: 'plain 100% sure_thing' }, tags: ['a'], delayMs: 3_600_000 },
    ]);
    const fields = fc.constantFrom(
      'task',
      'queue',
      'status',
      'tag',
      'groupId',
      'flag',
      'from',
      'to',
      'search',
      'unknown',
    );
    await fc.assert(
      fc.asyncProperty(fields, junk, async (field, value) => {
        const outcome = await outcomeOf(jobs.listJobs({ [field]: value } as JobFilter));
        expect(refusalOf(outcome)).toBeInstanceOf(InvalidArgumentError);
        const page = await outcomeOf(jobs.listHistory({ [field]: value }));
        expect(refusalOf(page)).toBeInstanceOf(InvalidArgumentError);
      }),
      { numRuns: 200 },
    );
  }, 60_000);

  it('search for what is written, whatever SQL makes of it', async () => {
    await fc.assert(
      fc.asyncProperty(
        hostile.filter((text) => isText(text) && text.length > 0),
        async (text) => {
          const { id } = await jobs.addJob('search', { plain: true }, { delayMs: 3_600_000 });
          await jobs.permanentlyFailJobs([id], `find ${text.slice(0, 900)} here`);
          const decoy = await jobs.addJob('search', { plain: true }, { delayMs: 3_600_000 });
          await jobs.permanentlyFailJobs([decoy.id], `find ${text.slice(0, 900).replace(/[%_\\]/g, 'x')} here`);
          const search = text.slice(0, 900);
          const { items } = await jobs.listJobs({ task: 'search', search }, { limit: 1_000 });
          expect(items.map((item) => item.id)).toContain(id);
          for (const item of items) {
            const where = [item.lastError, item.task, JSON.stringify(item.payload)].join('\n').toLowerCase();
            expect(where).toContain(search.toLowerCase());
          }
          await sql('truncate jobs.jobs, jobs.job_bodies');
        },
      ),
      all((text) => isText(text) && text.length > 0),
    );
  }, 60_000);

  it('that are no ids are refused by every call that takes one', async () => {
    const calls: ((id: string) => Promise<unknown>)[] = [
      (id) => jobs.findJob(id),
      (id) => jobs.jobHistory(id),
      (id) => jobs.jobLogs(id),
      (id) => jobs.explain(id),
      (id) => jobs.waitForJob(id, { timeoutMs: 10 }),
      (id) => jobs.extendLease(WORKER, id),
      (id) => jobs.revokeLease(id, 1),
      (id) => jobs.cancelJobs([id]),
      (id) => jobs.rescheduleJobs([id], { priority: 1 }),
      (id) => jobs.retryJobs([id]),
      (id) => jobs.permanentlyFailJobs([id]),
      (id) => jobs.addJob('child', 1, { dependsOn: [id] }),
      (id) => jobs.listHistory({ jobId: id }),
    ];
    await fc.assert(
      fc.asyncProperty(junk, async (id) => {
        for (const call of calls) {
          const outcome = await outcomeOf(call(id as string));
          expect(id === null || id === undefined ? refusalOf(outcome) : outcome).toBeInstanceOf(InvalidArgumentError);
        }
      }),
      RUNS,
    );
  }, 60_000);

  it('that are made up are refused', async () => {
    const encode = (keys: unknown): string => Buffer.from(JSON.stringify(keys)).toString('base64url');
    const times = fc.constantFrom('2026-01-01', 'infinity', '99999-99-99', 'now', '1; select 1', '2026-13-45 99:99');
    const id = '00000000-0000-7000-8000-000000000000';
    const cursors = fc.oneof(
      junk,
      fc.array(hostile, { maxLength: 4 }).map(encode),
      fc.tuple(times, fc.constantFrom(id, 'x'), fc.constantFrom('1', '9'.repeat(30), '-1', "1' or '1")).map(encode),
      fc.tuple(hostile).map(encode),
      fc.constantFrom(encode([id]), encode(['1']), encode({}), encode(null), '%%%', encode([[id]])),
    );
    await fc.assert(
      fc.asyncProperty(cursors, async (cursor) => {
        const page = { cursor: cursor as string };
        for (const outcome of [
          await outcomeOf(jobs.listJobs({}, page)),
          await outcomeOf(jobs.listHistory({}, page)),
          await outcomeOf(jobs.jobLogs(id, page)),
        ]) {
          expect(refusalOf(outcome)).toBeInstanceOf(InvalidArgumentError);
        }
      }),
      { numRuns: 200 },
    );
  }, 60_000);
});

describe('payloads', () => {
  it('of any JSON come back as they were, NUL, lone surrogates and __proto__ included', async () => {
    const value = fc.letrec<{ any: unknown }>((tie) => ({
      any: fc.oneof(
        { maxDepth: 4 },
        hostile,
        fc.constantFrom(null, true, 0, -1.5, 1e300),
        fc.array(tie('any'), { maxLength: 3 }),
        fc.dictionary(hostile, tie('any'), { maxKeys: 3 }),
      ),
    })).any;
    await fc.assert(
      fc.asyncProperty(value, async (payload) => {
        const { id } = await jobs.addJob('json', payload);
        const expected = JSON.stringify(payload);
        expect(JSON.stringify((await jobs.findJob(id))!.payload)).toBe(expected);
        const [claimed] = await jobs.getJobs(WORKER, { taskIdentifiers: ['json'] });
        expect([claimed!.id, JSON.stringify(claimed!.payload)]).toEqual([id, expected]);
        expect(({} as Record<string, unknown>).polluted).toBeUndefined();
      }),
      RUNS,
    );
  }, 60_000);

  const nested = (depth: number): unknown => {
    let value: unknown = 1;
    for (let level = 0; level < depth; level++) value = [value];
    return value;
  };

  it.each<[string, unknown, new (...args: any[]) => Error]>([
    ['a byte too much', 'x'.repeat(1_048_576 - 1), PayloadTooLargeError],
    ['bytes, not characters', 'é'.repeat(524_288), PayloadTooLargeError],
    ['nested beyond JSON.stringify', nested(100_000), PayloadNotSerializableError],
    ['a BigInt', { n: 1n }, PayloadNotSerializableError],
    ['NaN', { n: [Number.NaN] }, PayloadNotSerializableError],
    ['Infinity', -Infinity, PayloadNotSerializableError],
    ['a Map', { m: new Map([[1, 2]]) }, PayloadNotSerializableError],
    ['a function', () => 1, PayloadNotSerializableError],
    ['a symbol', Symbol('s'), PayloadNotSerializableError],
  ])('that cannot be kept are refused: %s', async (_what, payload, type) => {
    const counted = await countJobs();
    for (const work of [
      jobs.addJob('limits', payload),
      jobs.addJobs([
        { task: 'fine', payload: 1 },
        { task: 'limits', payload },
      ]),
    ])
      await expect(work).rejects.toBeInstanceOf(type);
    expect(await countJobs()).toEqual(counted);
  });

  it.each([3_000, 5_000, 6_000, 7_000, 9_000])(
    'nested %i deep are kept or refused, and harm no neighbour',
    async (depth) => {
      const [deep, neighbour] = await Promise.all([
        outcomeOf(jobs.addJob('deep', nested(depth))),
        outcomeOf(jobs.addJob('fine', { depth })),
      ]);
      expect(failed(neighbour)).toBe(false);
      if (failed(deep)) return expect(deep).toBeInstanceOf(PayloadNotSerializableError);
      let { payload } = (await jobs.findJob((deep as { id: string }).id))!;
      for (let level = 0; level < depth; level++) payload = (payload as unknown[])[0];
      expect(payload).toBe(1);
    },
  );

  it('at the limits are kept', async () => {
    const date = new Date('2026-01-02T03:04:05.678Z');
    for (const [payload, back] of [
      ['x'.repeat(1_048_574), 'x'.repeat(1_048_574)],
      [{ date }, { date: date.toISOString() }],
      [nested(1_000), nested(1_000)],
      [undefined, null],
    ]) {
      const { id } = await jobs.addJob('limits', payload);
      expect((await jobs.findJob(id))!.payload).toEqual(back);
    }
  });
});

describe('the name of a schema', () => {
  it('is refused, or is one, quoted everywhere', async () => {
    const names = fc.oneof(
      hostile,
      fc.constantFrom('pg_evil', 'my "Jobs"', "it's", 'drop table canary', 'x'.repeat(63), 'é'.repeat(32)),
    );
    const left = await surroundings();
    await fc.assert(
      fc.asyncProperty(names, async (schema) => {
        const fits = isName(schema) && Buffer.byteLength(schema) <= 63 && !schema.startsWith('pg_');
        const outcome = await outcomeOf(createJobManager({ connection: database.url, schema }));
        const migrate = async (): Promise<void> => {
          const migrator = new JobsMigrator({ connection: database.url, schema });
          try {
            await migrator.version();
          } finally {
            await migrator.close();
          }
        };
        expect(await outcomeOf(migrate())).toEqual(fits ? undefined : expect.any(InvalidOptionsError));
        if (!fits) return expect(outcome).toBeInstanceOf(InvalidOptionsError);
        const other = outcome as JobManager;
        try {
          const { id } = await other.addJob('t', 1, { queue: 'q', jobKey: 'k' });
          await other.getJobs(WORKER);
          expect(await other.findJob(id)).toMatchObject({ status: 'running' });
          expect(await sql('select 1 from pg_namespace where nspname = $1', [schema])).toHaveLength(1);
          expect(await jobs.findJob(id)).toBeNull();
        } finally {
          await other.close();
          await sql(`drop schema "${schema.replaceAll('"', '""')}" cascade`);
        }
      }),
      { numRuns: 25 },
    );
    expect(await surroundings()).toEqual(left);
  }, 120_000);
});

// Last: it looks at what all of the above have left.
describe('all of this', () => {
  it('has touched no table, no schema and no row but the library’s own', async () => {
    expect(await surroundings()).toEqual(before);
  });
});
