// Random lives of two real pools while jobs are added in partitions, batches and windows, and an operator pauses, resumes and
// changes limits: what triggers, handlers and events have seen is held against the promises.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import {
  type BatchContext,
  type ClaimedJob,
  createCollectingEvents,
  createWorkerPool,
  type JobContext,
  PermanentFailure,
  type PlainTasks,
  snooze,
  type WorkerPool,
} from '../../lib/index.js';
import { eventually } from '../support/database.js';
import { createTestManager, type TestManager } from '../support/manager.js';
import { expectInvariants } from './invariants.js';

const TIMES = Number(process.env.MILLRACE_RUNS ?? 1);
const SEED = Number(process.env.MILLRACE_SEED ?? Math.floor(Math.random() * 2 ** 31));
const TIMEOUT = 60_000 * Math.max(1, TIMES);
const WINDOW_MS = 40;
const SIZE = 3;
const POOLS = ['pool-of-flow-1', 'pool-of-flow-2'];
const WHY = { reason: 'to see what happens', by: 'spec' };

/** What becomes of a job: `fail` for good, `snooze` once. */
type Fate = 'complete' | 'fail' | 'snooze';
/** `fifo` runs one job at a time, `pair` two; the limit of `free` changes. */
type Place = 'fifo' | 'pair' | 'free';

type Step =
  { do: 'add'; task: 'batch' | 'single'; place: Place; fates: Fate[] } | { do: 'throttle'; key: number; times: number };

type Order =
  | { do: 'pause'; what: number; forMs: number | null }
  | { do: 'resume'; what: number }
  | { do: 'configure'; concurrency: number };

const fate = fc.constantFrom<Fate>('complete', 'complete', 'fail', 'snooze');
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant('add' as const),
      task: fc.constantFrom('batch' as const, 'single' as const),
      place: fc.constantFrom<Place>('fifo', 'pair', 'free'),
      fates: fc.array(fate, { minLength: 1, maxLength: 5 }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('throttle' as const),
      key: fc.nat(1),
      times: fc.integer({ min: 1, max: 4 }),
    }),
  },
);
/** Targets of `targetsOf`: a partition more often than what stops everything. */
const what = fc.constantFrom(0, 1, 2, 3, 3, 3, 4, 5, 6);
const order: fc.Arbitrary<Order> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant('pause' as const),
      what,
      forMs: fc.option(fc.integer({ min: 1, max: 60 })),
    }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('resume' as const), what }) },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('configure' as const), concurrency: fc.integer({ min: 1, max: 3 }) }),
  },
);

let test: TestManager;
let pools: WorkerPool[];
let lives = 0;
const events = createCollectingEvents();

/** What handlers have seen. */
const seen = {
  /** The jobs of each partition, in the order in which they began. */
  begun: new Map<string, ClaimedJob[]>(),
  /** Jobs that run now, and the most that ever did, by partition. */
  running: new Map<string, number>(),
  most: new Map<string, number>(),
  attempts: [] as string[],
  batches: [] as ClaimedJob[][],
};

beforeAll(async () => {
  console.log(`MILLRACE_SEED=${SEED}`);
  test = await createTestManager({ retry: { baseDelayMs: 1 } });
  await test.jobs.configureQueue('q', { concurrency: Infinity, partitions: { concurrency: 2 } });
  await watch();
  pools = POOLS.map((workerId) =>
    createWorkerPool({
      jobs: test.jobs,
      tasks,
      events,
      workerId,
      instance: 'of-flow',
      options: { concurrency: 3, pollIntervalMs: 50, leaseMs: 10_000, keepaliveMs: 100 },
    }),
  );
  await Promise.all(pools.map((pool) => pool.start()));
});
afterAll(async () => {
  await Promise.all(pools.map((pool) => pool.stop(1_000)));
  await test.close();
});

/** Claims, overfull partitions and windows, as the database sees them. */
async function watch(): Promise<void> {
  await test.sql(`
    create table claims (job_id uuid, fence bigint, task text, queue text, partition text, worker text,
      began timestamptz not null default now(), at timestamptz not null default clock_timestamp());
    create table overfull (partition text, running integer, most integer);
    create table windows (key text, job_id uuid, begins_at timestamptz, until timestamptz);
    create table pauses (kind text, name text, partition text, began timestamptz not null default clock_timestamp(), ended timestamptz);
    create function see_claim() returns trigger language plpgsql as $$
    begin
      insert into public.claims (job_id, fence, task, queue, partition, worker)
      values (new.id, new.fence, new.task, new.queue, new.partition, (select label from jobs.workers where id = new.locked_by));
      return null;
    end $$;
    create trigger see_claim after update on jobs.jobs for each row
      when (old.locked_by is null and new.locked_by is not null) execute function see_claim();
    create function see_partition() returns trigger language plpgsql as $$
    declare
      most integer := coalesce(
        (select concurrency from jobs.job_partitions where queue = new.queue and partition = new.partition),
        (select partition_concurrency from jobs.job_queues where name = new.queue));
      running integer := (
        select count(*) from jobs.jobs where queue = new.queue and partition = new.partition and locked_by is not null);
    begin
      if running > most then
        insert into public.overfull values (new.partition, running, most);
      end if;
      return null;
    end $$;
    create constraint trigger see_partition after update on jobs.jobs deferrable initially deferred for each row
      when (old.locked_by is null and new.locked_by is not null and new.partition is not null) execute function see_partition();
    create function see_window() returns trigger language plpgsql as $$
    begin
      insert into public.windows values (new.key, new.job_id, new.begins_at, new.until);
      return null;
    end $$;
    create trigger see_window after insert or update on jobs.job_windows for each row
      when (new.until > new.begins_at) execute function see_window()`);
}

const fateOf = (job: ClaimedJob<{ fate: Fate }>): Fate =>
  // It was snoozed before: a claim of a new job has fence 1, unless it went back unstarted.
  job.payload.fate === 'snooze' && seen.attempts.filter((one) => one.startsWith(job.id)).length > 1
    ? 'complete'
    : job.payload.fate;

function begin(job: ClaimedJob): void {
  const partition = job.partition ?? '';
  seen.attempts.push(`${job.id} ${job.fence}`);
  seen.begun.set(partition, [...(seen.begun.get(partition) ?? []), job]);
  const running = (seen.running.get(partition) ?? 0) + 1;
  seen.running.set(partition, running);
  seen.most.set(partition, Math.max(running, seen.most.get(partition) ?? 0));
}

const end = ({ partition }: ClaimedJob): void =>
  void seen.running.set(partition ?? '', seen.running.get(partition ?? '')! - 1);

const moment = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 2));

async function moments(count: number): Promise<void> {
  for (let n = 0; n < count; n++) await moment();
}

const tasks: PlainTasks = {
  batch: {
    batch: { size: SIZE, waitMs: 5, by: 'partition' },
    handler: async (jobs: ClaimedJob<{ fate: Fate }>[], ctx: BatchContext<{ fate: Fate }>) => {
      seen.batches.push(jobs);
      jobs.forEach(begin);
      await moment();
      for (const job of jobs) {
        const decided = fateOf(job);
        if (decided === 'fail') ctx.fail(job, new PermanentFailure('as it was told'));
        if (decided === 'snooze') ctx.snooze(job, 1);
      }
      jobs.forEach(end);
    },
  },
  single: async (_payload: unknown, { job }: JobContext<{ fate: Fate }>) => {
    begin(job);
    await moment();
    end(job);
    if (fateOf(job) === 'fail') throw new PermanentFailure('as it was told');
    return fateOf(job) === 'snooze' ? snooze(1) : undefined;
  },
  throttled: () => undefined,
};

/** Jobs of a partition that keeps its order are added one after the other, and none of them comes back. */
async function add(life: string, steps: Step[]): Promise<void> {
  const { jobs } = test;
  for (const task of ['batch', 'single']) {
    await jobs.configurePartition('q', `fifo ${task} ${life}`, { concurrency: 1 });
  }
  for (const one of steps) {
    // No faster than the operator, so that pauses meet adds.
    await moments(5);
    if (one.do === 'throttle') {
      const throttle = { key: `${life} ${one.key}`, ms: WINDOW_MS };
      const adds = Array.from({ length: one.times }, () => jobs.addJob('throttled', {}, { throttle }));
      await Promise.all(adds);
      continue;
    }
    // Batches are claimed apart, so that a partition has one order for each task that has them.
    const isOrdered = one.place === 'fifo';
    const partition = `${one.place} ${isOrdered ? one.task : 'any'} ${life}`;
    const specs = one.fates.map((given) => {
      const payload = { fate: isOrdered && given === 'snooze' ? 'complete' : given };
      return { task: one.task, payload, queue: 'q', partition };
    });
    await jobs.addJobs(specs);
  }
}

const targetsOf = (life: string) =>
  [
    ['task', 'batch', ''],
    ['task', 'single', ''],
    ['queue', 'q', ''],
    ['partition', 'q', `free any ${life}`],
    ['worker', POOLS[0]!, ''],
    ['instance', 'of-flow', ''],
    ['all', '', ''],
  ] as const;

function targetOf([kind, name, partition]: ReturnType<typeof targetsOf>[number]): any {
  if (kind === 'all') return { all: true };
  return kind === 'partition' ? { partition: { queue: name, partition } } : { [kind]: name };
}

/** Pauses are noted when their call has resolved, their ends before they can begin. */
async function operate(life: string, orders: Order[]): Promise<void> {
  const { jobs, sql } = test;
  for (const one of orders) {
    if (one.do === 'configure') {
      await jobs.configurePartition('q', `free any ${life}`, { concurrency: one.concurrency });
      continue;
    }
    const target = targetsOf(life)[one.what]!;
    await sql(
      `update pauses set ended = clock_timestamp() where (kind, name, partition) = ($1, $2, $3) and ended > clock_timestamp()`,
      [...target],
    );
    if (one.do === 'resume') {
      await jobs.resume(targetOf(target));
      continue;
    }
    const until = one.forMs === null ? null : new Date(Date.now() + one.forMs);
    await jobs.pause(targetOf(target), { ...WHY, until }).catch((error: Error) => {
      // So short a pause is over before it begins.
      if (!error.message.includes('later than now')) throw error;
    });
    await sql(
      `insert into pauses (kind, name, partition, ended) values ($1, $2, $3, coalesce($4, 'infinity'::timestamptz))`,
      [...target, until],
    );
    // Meanwhile pools go on with what is not paused.
    await moments(5);
  }
  await sql(`update pauses set ended = clock_timestamp() where ended > clock_timestamp()`);
  for (const target of targetsOf(life)) await jobs.resume(targetOf(target));
}

const isOver = async (): Promise<boolean> => {
  const [row] = await test.sql<{ left: number }>(
    `select count(*)::integer as left from jobs.jobs where parked is distinct from 'exhausted'`,
  );
  return row!.left === 0;
};

/** Claims that began when a pause had been told to its caller, and ended before it was lifted. */
const claimedInPauses = (): Promise<object[]> =>
  test.sql(`
    select c.task, c.partition, c.worker, p.kind, p.name from claims c join pauses p on c.began > p.began and c.at < p.ended
      and case p.kind when 'all' then true when 'task' then c.task = p.name when 'queue' then c.queue = p.name
        when 'partition' then c.queue = p.name and c.partition = p.partition when 'worker' then c.worker = p.name
        else true end`);

const overlappingWindows = (): Promise<object[]> =>
  test.sql(`select a.key, a.job_id, b.job_id as other from windows a join windows b on a.key = b.key and a.job_id < b.job_id
    and tstzrange(a.begins_at, a.until) && tstzrange(b.begins_at, b.until)`);

const withoutWindow = (): Promise<object[]> =>
  test.sql(`select b.id from jobs.job_bodies b where b.task = 'throttled' and not exists (
    select from windows w where w.job_id = b.id)`);

async function expectPromises(life: string): Promise<void> {
  expect(await test.sql('select * from overfull')).toEqual([]);
  expect(await claimedInPauses()).toEqual([]);
  expect(await overlappingWindows()).toEqual([]);
  expect(await withoutWindow()).toEqual([]);
  // A partition of concurrency 1 keeps its order, in batches too; one of 2 runs no more than 2.
  for (const task of ['batch', 'single']) {
    const begun = (seen.begun.get(`fifo ${task} ${life}`) ?? []).map(({ id }) => id);
    expect(begun).toEqual(begun.toSorted());
    expect(seen.most.get(`fifo ${task} ${life}`) ?? 1).toBe(1);
  }
  expect(seen.most.get(`pair any ${life}`) ?? 0).toBeLessThanOrEqual(2);
  for (const batch of seen.batches) {
    expect(batch.length).toBeLessThanOrEqual(SIZE);
    expect(new Set(batch.map(({ partition }) => partition)).size).toBe(1);
  }
  // Each attempt began once, and was settled once.
  expect(seen.attempts.toSorted()).toEqual([...new Set(seen.attempts)].toSorted());
  const settled = events.ofType('job.settled').filter(({ job }) => job.task !== 'throttled');
  await eventually(() => settled.length >= seen.attempts.length);
  expect(settled.map(({ job }) => `${job.id} ${(job as ClaimedJob).fence}`).toSorted()).toEqual(
    seen.attempts.toSorted(),
  );
  expect(events.ofType('job.lost')).toEqual([]);
  expect(events.ofType('worker.error').map(({ error }) => String(error))).toEqual([]);
  await expectInvariants(test.sql, { atRest: false });
}

function forgetLife(): Promise<unknown> {
  for (const map of [seen.begun, seen.running, seen.most]) map.clear();
  seen.attempts.length = 0;
  seen.batches.length = 0;
  events.clear();
  return test.sql('truncate claims, overfull, pauses');
}

describe('pools, while an operator pauses and jobs come in partitions, batches and windows,', () => {
  it.each([
    { seed: 20_250_101, runs: 6 },
    { seed: SEED, runs: 6 },
  ])(
    'keep limits, orders, pauses and windows, and settle each job once, with seed $seed',
    async ({ seed, runs }) => {
      const steps = fc.array(step, { minLength: 10, maxLength: 25, size: 'max' });
      const orders = fc.array(order, { minLength: 5, maxLength: 20, size: 'max' });
      await fc.assert(
        fc.asyncProperty(steps, orders, async (list, operator) => {
          const life = String(++lives);
          await Promise.all([add(life, list), operate(life, operator)]);
          await eventually(isOver, { timeoutMs: 20_000 });
          await eventually(() => [...seen.running.values()].every((running) => running === 0));
          await expectPromises(life);
          await forgetLife();
        }),
        {
          seed,
          numRuns: runs * TIMES,
          endOnFailure: true,
          interruptAfterTimeLimit: TIMEOUT - 25_000,
          markInterruptAsFailure: false,
        },
      );
      expect(lives).toBeGreaterThan(0);
    },
    TIMEOUT,
  );
});
