import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { DependencyCircleError, type AddJobOptions, type Job, type JobManager } from '../../lib/index.js';
import { createTestManager, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;

beforeEach(async () => {
  test = await createTestManager();
  jobs = test.jobs;
});
afterEach(() => test.close());

const add = (options: AddJobOptions = {}) => jobs.addJob('t', null, options);
const idsOf = (some: Job[]) => some.map(({ id }) => id);

/** Layers of jobs, each of which waits for all of the layer before it. Returns the last one. */
async function addLayers(count: number, width: number, after: string[] = [], key?: string): Promise<string[]> {
  for (let layer = 0; layer < count; layer++) {
    const options = after.length ? { dependsOn: after } : { delayMs: 3_600_000 };
    const specs = Array.from({ length: width }, (_, place) => {
      return { task: 't', payload: null, ...options, ...(key && { jobKey: `${key}/${layer}/${place}` }) };
    });
    after = idsOf(await jobs.addJobs(specs));
  }
  return after;
}

/** Describes a waiting job again, so that it waits for these. */
const wait = (jobKey: string, dependsOn: string[], more: AddJobOptions = {}) =>
  add({ jobKey, jobKeyMode: 'preserve_run_at', dependsOn, ...more });

const circleOf = (work: Promise<unknown>): Promise<string[]> =>
  work.then(
    () => [],
    (error: unknown) => {
      if (error instanceof DependencyCircleError) return error.path;
      throw error;
    },
  );

describe('a circle of jobs that wait for each other', () => {
  it('is refused at the add, with the shortest way back as its path', async () => {
    const root = await add({ jobKey: 'root', delayMs: 3_600_000 });
    const short = await add({ dependsOn: [root.id] });
    const long = await add({ dependsOn: [short.id] });
    expect(await circleOf(wait('root', [long.id, short.id]))).toEqual([root.id, short.id, root.id]);
    expect((await jobs.findJob(root.id))?.dependsOn).toEqual([]);
  });

  it('is looked for once through each job, however many ways lead through layers of them', async () => {
    const root = await add({ jobKey: 'root', delayMs: 3_600_000 });
    const inner = await add({ jobKey: 'inner', delayMs: 3_600_000 });
    await add({ dependsOn: [inner.id] });
    const last = await addLayers(9, 8, [root.id]);
    expect(await wait('inner', last)).toMatchObject({ id: inner.id, status: 'blocked' });
    const path = await circleOf(wait('root', last));
    expect([path.length, path[0], path.at(-1)]).toEqual([11, root.id, root.id]);
  });

  it('is not suspected by a sweep where stages of jobs with keys wait for each other', async () => {
    const last = await addLayers(9, 8, [], 'stage');
    await add({ dependsOn: last });
    await jobs.engine.promoter.sweepNow();
    expect((await jobs.listJobs({ status: 'exhausted' })).items).toEqual([]);
  });

  it('is ended by a sweep where two transactions have closed it together, among layers of others', async () => {
    const [one, two] = [
      await add({ jobKey: 'one', delayMs: 3_600_000 }),
      await add({ jobKey: 'two', delayMs: 3_600_000 }),
    ];
    await addLayers(4, 8, [one.id, two.id], 'stage');
    const clients = [new pg.Client(test.url), new pg.Client(test.url)];
    for (const client of clients) await client.connect().then(() => client.query('begin'));
    await wait('one', [two.id], { manager: clients[0]! });
    await wait('two', [one.id], { manager: clients[1]! });
    for (const client of clients) await client.query('commit').then(() => client.end());
    await jobs.engine.promoter.sweepNow();
    expect(await jobs.findJob(two.id)).toMatchObject({ status: 'exhausted' });
    expect((await jobs.findJob(two.id))?.lastError).toContain(`${two.id} → ${one.id} → ${two.id}`);
  });
});
