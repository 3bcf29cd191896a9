// A call takes over what it is given in its own turn: the caller may change or empty its lists and objects at once.
import { afterAll, beforeAll, beforeEach, expect, it } from '@jest/globals';
import { IsInt } from 'class-validator';
import pg from 'pg';
import { createWorkerPool, defineTask, type AddJobOptions, type JobManager } from '../../lib/index.js';
import type { StandardSchema, TaskToken } from '../../lib/interfaces/task.interface.js';
import { emptyTables } from '../invariants/tables.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;

beforeAll(async () => {
  test = await createTestManager();
  jobs = test.jobs;
  const handler = () => undefined;
  createWorkerPool({ jobs, tasks: { dto: { payload: Count, handler }, late: { payload: late, handler } } });
});
afterAll(() => test.close());
beforeEach(() => emptyTables(test.sql));

class Count {
  @IsInt()
  n!: number;
}

const late: StandardSchema<any> = {
  '~standard': { version: 1, vendor: 'test', validate: (value) => Promise.resolve({ value }) },
};
const TASKS = {
  'without a schema': defineTask<any>('plain'),
  'with a DTO class': defineTask('dto', Count),
  'with a schema that takes its time': defineTask('late', late),
};
const KINDS = Object.keys(TASKS) as (keyof typeof TASKS)[];

it.each(KINDS)('addJobs adds the list as it was at the call (%s)', async (kind) => {
  const specs = [1, 2, 3].map((n) => ({ task: TASKS[kind].task, payload: { n }, tags: ['kept'], priority: n }));
  const adding = jobs.addJobs(specs);
  for (const spec of specs) {
    spec.payload.n = 99;
    spec.priority = 99;
    spec.tags[0] = 'changed';
  }
  specs.length = 0;
  specs.push({ task: TASKS[kind].task, payload: { n: 4 }, tags: [], priority: -1e99 });
  const added = await adding;
  expect(added.map(({ payload }) => payload)).toEqual([{ n: 1 }, { n: 2 }, { n: 3 }]);
  expect((await jobs.listJobs()).items.toReversed()).toMatchObject(
    [1, 2, 3].map((n) => ({ payload: { n }, tags: ['kept'], priority: n })),
  );
});

it.each(KINDS)('addJob takes options and payload as they were at the call (%s)', async (kind) => {
  const options: AddJobOptions = {};
  const payload = { n: 0 };
  const flags = [''];
  const added = await Promise.all(
    ['x', 'y', 'z'].map((jobKey, n) => {
      payload.n = n;
      flags[0] = jobKey;
      return jobs.addJob(TASKS[kind] as TaskToken<any>, payload, Object.assign(options, { jobKey, flags }));
    }),
  );
  expect(added.map((job) => [job.jobKey, job.flags, job.payload])).toEqual([
    ['x', ['x'], { n: 0 }],
    ['y', ['y'], { n: 1 }],
    ['z', ['z'], { n: 2 }],
  ]);
});

it('an object says what it is stored as once, and its schema sees that', async () => {
  const seen: unknown[] = [];
  const watching: StandardSchema<any> = {
    '~standard': {
      version: 1,
      vendor: 'test',
      validate: (value) => {
        seen.push(value);
        return Promise.resolve({ value });
      },
    },
  };
  const at = new Date(0);
  const adding = jobs.addJob(defineTask('dates', watching), { at, url: new URL('http://a.example/') });
  at.setTime(1);
  const stored = { at: '1970-01-01T00:00:00.000Z', url: 'http://a.example/' };
  expect((await adding).payload).toEqual(stored);
  expect(seen).toEqual([stored]);
});

it('scheduleCron schedules what it was given', async () => {
  const cron = {
    id: 'c',
    task: TASKS['with a schema that takes its time'],
    schedule: '0 0 1 1 *',
    payload: { n: 1 },
    options: { tags: ['kept'], priority: 1 },
  };
  const scheduling = jobs.scheduleCron(cron);
  cron.id = 'other';
  cron.payload.n = 2;
  cron.options.tags.push('late');
  cron.options.priority = 2;
  expect(await scheduling).toMatchObject({ id: 'c', payload: { n: 1 }, options: { tags: ['kept'], priority: 1 } });
  await jobs.unscheduleCron('c');
});

it('calls with lists act on those that were named', async () => {
  const add = async (task = 'x') => (await jobs.addJob(task, 1)).id;
  /** Calls, and lets other calls have the list at once. */
  const emptied = <T, R>(list: T[], call: (list: T[]) => Promise<R>): Promise<R> => {
    const answer = call(list);
    list.length = 0;
    return answer;
  };
  const ids = async (found: Promise<{ id: string }[]>) => (await found).map(({ id }) => id);
  const id = await add();
  await add('other');

  expect(await ids(emptied(['x'], (taskIdentifiers) => jobs.getJobs(WORKER, { taskIdentifiers })))).toEqual([id]);
  expect(await ids(emptied([WORKER], (workers) => jobs.forceUnlockJobs(workers)))).toEqual([id]);
  expect(await ids(emptied([id], (list) => jobs.permanentlyFailJobs(list)))).toEqual([id]);
  expect(await ids(emptied([id], (list) => jobs.retryJobs(list)))).toEqual([id]);
  expect(await ids(emptied([id], (list) => jobs.rescheduleJobs(list, { priority: -1 })))).toEqual([id]);
  const claimed = await jobs.getJobs(WORKER);
  const { settled } = await emptied(claimed, (list) => jobs.completeJobs(WORKER, list, 1));
  expect(settled.map((job) => job.id)).toEqual([id]);

  const failing = await jobs.getJobs(WORKER);
  const failures = failing.map((job) => ({ job, error: 'no' }));
  expect((await emptied(failures, (list) => jobs.failJobs(WORKER, list, 1))).settled).toEqual(failing);
  const [waiting] = await ids(jobs.listJobs({ task: 'other' }).then(({ items }) => items));
  expect(await ids(emptied([waiting!], (list) => jobs.cancelJobs(list)))).toEqual([waiting]);

  await jobs.pauseQueue('mine');
  await jobs.pauseQueue('theirs');
  const queues = await emptied(['mine'], (names) => jobs.forceUnlockQueues(names));
  expect(queues.map(({ name }) => name)).toEqual(['mine']);
});

it('a report of partial success is what it was, also where another session holds the job at first', async () => {
  await jobs.addJob('x', 1);
  const [job] = await jobs.getJobs(WORKER);
  const report = { completedSteps: ['one'] };
  const holder = new pg.Client(test.url);
  await holder.connect();
  await holder.query('begin; select from jobs.jobs for update');
  const reporting = jobs.reportPartialSuccess(WORKER, job!, report, 1);
  report.completedSteps.push('two');
  for (let looks = 0; looks < 5; looks++) await jobs.counts();
  await holder.query('commit');
  await holder.end();
  await reporting;
  expect(await test.sql('select previous from jobs.jobs')).toEqual([{ previous: { completedSteps: ['one'] } }]);
});
