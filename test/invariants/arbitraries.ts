// Actions as fast-check makes, shrinks and prints them.
import fc from 'fast-check';
import { FILTERS, JUMPS, LIMITS, NO_LIMIT, QUEUES, TASKS, type Action, type NewJob } from './actions.js';
import type { Outcome } from './transitions.js';

const number = fc.nat(30);
const worker = fc.nat(1);
const maybe = <T>(value: fc.Arbitrary<T>, freq = 2): fc.Arbitrary<T | null> => fc.option(value, { freq });

const newJob: fc.Arbitrary<NewJob> = fc.record({
  task: fc.constantFrom(...TASKS),
  priority: fc.integer({ min: -1, max: 1 }),
  flagged: fc.oneof({ arbitrary: fc.constant(false), weight: 3 }, { arbitrary: fc.constant(true), weight: 1 }),
  due: fc.oneof({ arbitrary: fc.constant(true), weight: 5 }, { arbitrary: fc.constant(false), weight: 1 }),
  maxAttempts: fc.integer({ min: 1, max: 3 }),
  queue: maybe(fc.constantFrom(...QUEUES), 1),
  limit: maybe(fc.constantFrom(...LIMITS), 1),
  key: maybe(fc.constantFrom('k1', 'k2'), 1),
  mode: fc.constantFrom('replace', 'replace', 'preserve_run_at', 'unsafe_dedupe'),
  parents: fc.oneof(
    { weight: 2, arbitrary: fc.constant<number[]>([]) },
    { weight: 1, arbitrary: fc.uniqueArray(number, { minLength: 1, maxLength: 2 }) },
  ),
  policy: fc.constantFrom('cancel', 'cancel', 'run', 'wait'),
});

const plainJob = newJob.map((job): NewJob => ({ ...job, key: null, parents: [] }));

const as = <const D extends Action['do'], T extends object>(
  name: D,
  fields: { [K in keyof T]: fc.Arbitrary<T[K]> },
): fc.Arbitrary<{ do: D } & T> => fc.record({ do: fc.constant(name), ...fields }) as fc.Arbitrary<{ do: D } & T>;

const outcome: fc.Arbitrary<Outcome> = fc.constantFrom(
  ...(['completed', 'completed', 'failed', 'permanent', 'partial', 'snoozed', 'cancelled', 'released'] as const),
);

/** As often as they are named. */
export const action: fc.Arbitrary<Action> = fc.oneof(
  { weight: 10, arbitrary: as('add', { jobs: fc.array(newJob, { minLength: 1, maxLength: 1 }) }) },
  { weight: 4, arbitrary: as('add', { jobs: fc.array(plainJob, { minLength: 2, maxLength: 4 }) }) },
  {
    weight: 10,
    arbitrary: as('claim', {
      worker,
      batch: fc.integer({ min: 1, max: 4 }),
      task: maybe(fc.constantFrom(...TASKS), 4),
      queues: maybe(fc.shuffledSubarray(QUEUES, { minLength: 1 }), 6),
    }),
  },
  {
    weight: 6,
    arbitrary: as('claim for a pool', {
      worker,
      batch: fc.integer({ min: 1, max: 4 }),
      plain: fc.boolean(),
      filter: fc.nat(FILTERS.length - 1),
      share: fc.integer({ min: 1, max: 4 }),
      remembers: fc.boolean(),
    }),
  },
  { weight: 14, arbitrary: as('settle', { claim: number, count: fc.integer({ min: 1, max: 3 }), outcome }) },
  {
    weight: 6,
    arbitrary: as('complete and claim', {
      claim: number,
      count: fc.integer({ min: 1, max: 3 }),
      batch: fc.integer({ min: 1, max: 4 }),
      filter: fc.nat(FILTERS.length - 1),
      share: fc.integer({ min: 1, max: 4 }),
      alone: fc.boolean(),
      remembers: fc.boolean(),
    }),
  },
  ...(['extend', 'revoke', 'cancel', 'fail for good', 'retry', 'retry'] as const).map((name) => ({
    weight: 2,
    arbitrary: as(name, { job: number }),
  })),
  {
    weight: 2,
    arbitrary: as('reschedule', {
      job: number,
      due: maybe(fc.boolean()),
      maxAttempts: maybe(fc.integer({ min: 1, max: 3 })),
      priority: maybe(fc.integer({ min: -1, max: 1 })),
    }),
  },
  ...(['unlock', 'let leases end', 'let a pool die', 'beat', 'restart', 'sign off'] as const).map((name) => ({
    weight: 1,
    arbitrary: as(name, { worker }),
  })),
  { weight: 1, arbitrary: as('pause', { queue: fc.constantFrom(...QUEUES) }) },
  { weight: 2, arbitrary: as('resume', { queue: fc.constantFrom(...QUEUES) }) },
  { weight: 4, arbitrary: as('pause a task', { task: fc.constantFrom(...TASKS) }) },
  { weight: 4, arbitrary: as('resume a task', { task: fc.constantFrom(...TASKS) }) },
  {
    weight: 2,
    arbitrary: as('configure', {
      queue: fc.constantFrom(...QUEUES),
      concurrency: fc.integer({ min: 1, max: NO_LIMIT }),
    }),
  },
  {
    weight: 1,
    arbitrary: as('limit', { limit: fc.constantFrom(...LIMITS), capacity: fc.integer({ min: 1, max: 3 }) }),
  },
  { weight: 2, arbitrary: as('let a window pass', { limit: fc.constantFrom(...LIMITS) }) },
  { weight: 1, arbitrary: as('purge', { status: fc.constantFrom('exhausted', 'completed', 'cancelled') }) },
  { weight: 2, arbitrary: as('the clock jumps', { hours: fc.constantFrom(...JUMPS) }) },
  ...(['reset', 'rescue', 'audit', 'refill', 'recount', 'replay', 'collect garbage'] as const).map((name) => ({
    weight: 1,
    arbitrary: as(name, {}),
  })),
  { weight: 3, arbitrary: as('let time come', {}) },
);

/** What fills and blocks lanes, and frees them, while one pool remembers what it has seen of them. */
export const laneAction: fc.Arbitrary<Action> = fc.oneof(
  {
    weight: 8,
    arbitrary: as('add', {
      jobs: fc.array(
        newJob.map((job): NewJob => ({ ...job, due: true, key: null, parents: [], queue: job.queue ?? QUEUES[0]! })),
        { minLength: 1, maxLength: 3 },
      ),
    }),
  },
  {
    weight: 12,
    arbitrary: fc.integer({ min: 1, max: 4 }).map((batch): Action => {
      return { do: 'claim for a pool', worker: 0, batch, plain: false, filter: 0, share: batch, remembers: true };
    }),
  },
  { weight: 6, arbitrary: as('settle', { claim: number, count: fc.integer({ min: 1, max: 3 }), outcome }) },
  {
    weight: 8,
    arbitrary: fc
      .record({
        claim: number,
        count: fc.integer({ min: 1, max: 3 }),
        batch: fc.integer({ min: 1, max: 4 }),
        alone: fc.boolean(),
      })
      .map((asked): Action => ({ do: 'complete and claim', ...asked, filter: 0, share: asked.batch, remembers: true })),
  },
  { weight: 2, arbitrary: as('pause', { queue: fc.constantFrom(...QUEUES) }) },
  { weight: 4, arbitrary: as('resume', { queue: fc.constantFrom(...QUEUES) }) },
  { weight: 1, arbitrary: as('pause a task', { task: fc.constantFrom(...TASKS) }) },
  { weight: 4, arbitrary: as('resume a task', { task: fc.constantFrom(...TASKS) }) },
  {
    weight: 3,
    arbitrary: as('configure', {
      queue: fc.constantFrom(...QUEUES),
      concurrency: fc.integer({ min: 1, max: NO_LIMIT }),
    }),
  },
  {
    weight: 2,
    arbitrary: as('limit', { limit: fc.constantFrom(...LIMITS), capacity: fc.integer({ min: 1, max: 6 }) }),
  },
  ...(['revoke', 'cancel', 'fail for good', 'retry', 'retry'] as const).map((name) => ({
    weight: 1,
    arbitrary: as(name, { job: number }),
  })),
  { weight: 1, arbitrary: as('unlock', { worker: fc.constant(0) }) },
  {
    weight: 1,
    arbitrary: as('claim', { worker, batch: fc.constant(2), task: fc.constant(null), queues: fc.constant(null) }),
  },
);

const mostly = <T>(value: T, others: fc.Arbitrary<T>): fc.Arbitrary<T> =>
  fc.oneof({ weight: 6, arbitrary: fc.constant(value) }, { weight: 1, arbitrary: others });

/** Mostly one lane of one queue, whose jobs two pools complete and take in turn; now and then, what makes them look at others. */
export const queueAction: fc.Arbitrary<Action> = fc.oneof(
  {
    weight: 10,
    arbitrary: fc
      .record({
        job: newJob,
        queue: mostly(QUEUES[0]!, fc.constant(QUEUES[1]!)),
        priority: mostly(0, fc.integer({ min: -1, max: 1 })),
        limit: mostly(null, fc.constantFrom<string | null>(...LIMITS)),
        parents: mostly<number[]>([], fc.array(number, { minLength: 1, maxLength: 1 })),
        count: fc.integer({ min: 1, max: 3 }),
      })
      .map(({ job, count, ...own }): Action => {
        const jobs = Array.from({ length: count }, () => ({ ...job, ...own, key: null, maxAttempts: 3 }));
        return { do: 'add', jobs };
      }),
  },
  {
    weight: 5,
    arbitrary: as('claim for a pool', {
      worker,
      batch: fc.integer({ min: 1, max: 3 }),
      plain: fc.constant(false),
      filter: mostly(0, fc.nat(FILTERS.length - 1)),
      share: fc.constant(4),
      remembers: mostly(true, fc.constant(false)),
    }),
  },
  {
    weight: 14,
    arbitrary: as('complete and claim', {
      claim: number,
      count: mostly(1, fc.integer({ min: 1, max: 3 })),
      batch: fc.integer({ min: 1, max: 4 }),
      filter: mostly(0, fc.nat(FILTERS.length - 1)),
      share: fc.constant(4),
      alone: mostly(true, fc.constant(false)),
      remembers: mostly(true, fc.constant(false)),
    }),
  },
  {
    weight: 3,
    arbitrary: as('configure', {
      queue: fc.constant(QUEUES[0]!),
      concurrency: fc.integer({ min: 1, max: NO_LIMIT - 1 }),
    }),
  },
  {
    weight: 1,
    arbitrary: as('reschedule', {
      job: number,
      due: maybe(fc.boolean()),
      maxAttempts: fc.constant(null),
      priority: maybe(fc.integer({ min: -1, max: 1 })),
    }),
  },
  { weight: 2, arbitrary: as('settle', { claim: number, count: fc.constant(1), outcome }) },
  ...(['pause', 'resume', 'resume'] as const).map((name) => ({
    weight: 1,
    arbitrary: as(name, { queue: fc.constant(QUEUES[0]!) }),
  })),
  ...(['revoke', 'cancel', 'retry'] as const).map((name) => ({ weight: 1, arbitrary: as(name, { job: number }) })),
  ...(['let a pool die', 'restart', 'unlock'] as const).map((name) => ({ weight: 1, arbitrary: as(name, { worker }) })),
  { weight: 1, arbitrary: as('pause a task', { task: fc.constantFrom(...TASKS) }) },
  { weight: 2, arbitrary: as('resume a task', { task: fc.constantFrom(...TASKS) }) },
  { weight: 1, arbitrary: as('rescue', {}) },
  { weight: 1, arbitrary: as('let time come', {}) },
);
