// Parents and children of a job, read from either end, live or long finished.
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { JobNotFoundError, type AddJobOptions, type JobManager } from '../../lib/index.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';

let test: TestManager;
let jobs: JobManager;

beforeEach(async () => {
  test = await createTestManager({ retry: { baseDelayMs: 0, jitter: 0 } });
  jobs = test.jobs;
});
afterEach(() => test.close());

const add = async (options: AddJobOptions = {}): Promise<string> => (await jobs.addJob('t', null, options)).id;
const ids = (...names: string[]): string[] => names.toSorted();
const edge = (parentId: string, childId: string) => ({ parentId, childId });

async function graph(id: string) {
  const { nodes, edges, truncated } = await jobs.jobGraph(id);
  expect(nodes[0]!.id).toBe(id);
  return { nodes: ids(...nodes.map((node) => node.id)), edges: new Set(edges), truncated };
}

async function completeAll(): Promise<void> {
  const claimed = await jobs.getJobs(WORKER, { batchSize: 100 });
  if (!claimed.length) return;
  await jobs.completeJobs(WORKER, claimed, 1);
  await completeAll();
}

describe('Job.dependsOn', () => {
  it('names the parents a job was added with, for as long as the job is known', async () => {
    const [first, second] = [await add(), await add()];
    const child = await jobs.addJob('t', null, { dependsOn: [first, second] });
    expect(child.dependsOn).toEqual([first, second]);
    expect((await jobs.findJob(first))!.dependsOn).toEqual([]);
    const parents = await jobs.getJobs(WORKER, { batchSize: 2 });
    expect(parents.map(({ dependsOn }) => dependsOn)).toEqual([[], []]);
    await jobs.completeJobs(WORKER, parents, 1);
    const [claimed] = await jobs.getJobs(WORKER);
    expect(claimed).toMatchObject({ id: child.id, dependsOn: [first, second], groupId: child.id });
    await jobs.completeJobs(WORKER, [claimed!], 1);
    expect(await jobs.findJob(child.id)).toMatchObject({ status: 'completed', dependsOn: [first, second] });
  });

  it('is claimed with a job of a lane, too', async () => {
    const parent = await add();
    const child = await add({ dependsOn: [parent], queue: 'q' });
    await jobs.completeJobs(WORKER, await jobs.getJobs(WORKER), 1);
    expect(await jobs.getJobs(WORKER)).toMatchObject([{ id: child, dependsOn: [parent] }]);
  });
});

describe('jobGraph', () => {
  it('shows a job with all of its ancestors and descendants, and no others', async () => {
    const [root, otherRoot] = [await add(), await add()];
    const [left, right] = [await add({ dependsOn: [root] }), await add({ dependsOn: [root, otherRoot] })];
    const end = await add({ dependsOn: [left, right], onParentFailure: 'run' });
    await add();
    const all = {
      nodes: ids(root, otherRoot, left, right, end),
      edges: new Set([edge(root, left), edge(root, right), edge(otherRoot, right), edge(left, end), edge(right, end)]),
      truncated: false,
    };
    expect(await graph(end)).toEqual(all);
    expect(await graph(left)).toEqual({
      nodes: ids(root, left, end),
      edges: new Set([edge(root, left), edge(left, end)]),
      truncated: false,
    });
    expect((await graph(root)).nodes).toEqual(ids(root, left, right, end));
    await completeAll();
    expect(await graph(end)).toEqual(all);
  });

  it('says of each job where it stands', async () => {
    const parent = await add({ queue: 'q', groupId: 'g' });
    const child = await add({ dependsOn: [parent] });
    const [claimed] = await jobs.getJobs(WORKER);
    expect((await jobs.jobGraph(child)).nodes).toMatchObject([
      { id: child, task: 't', status: 'blocked', queue: null, groupId: child, attempts: 0, onParentFailure: 'cancel' },
      { id: parent, status: 'running', queue: 'q', groupId: 'g', attempts: 1, onParentFailure: null },
    ]);
    await jobs.permanentlyFailJobs([claimed!.id], 'broken');
    expect((await jobs.jobGraph(child)).nodes.map(({ status }) => status)).toEqual(['cancelled', 'exhausted']);
  });

  it('follows a parent that was replaced under its key, waiting or running', async () => {
    const old = await add({ jobKey: 'k' });
    const child = await add({ dependsOn: [old] });
    const replacement = await add({ jobKey: 'k' });
    const expected = { nodes: ids(replacement, child), edges: new Set([edge(replacement, child)]), truncated: false };
    expect(await graph(child)).toEqual(expected);
    expect(await graph(replacement)).toEqual(expected);
    await jobs.getJobs(WORKER);
    const successor = await add({ jobKey: 'k' });
    const followed = { nodes: ids(successor, child), edges: new Set([edge(successor, child)]), truncated: false };
    expect(await graph(child)).toEqual(followed);
    expect(await graph(successor)).toEqual(followed);
    expect((await graph(replacement)).edges).toEqual(new Set());
  });

  it('shows the nearest 1,000 jobs of a larger family, and says that it is cut', async () => {
    const root = await add();
    const children = await jobs.addJobs(
      Array.from({ length: 1_200 }, () => ({ task: 't', payload: null, dependsOn: [root] })),
    );
    const grandchild = await add({ dependsOn: [children[0]!.id] });
    const family = await jobs.jobGraph(root);
    expect(family.truncated).toBe(true);
    expect(family.nodes).toHaveLength(1_000);
    expect(family.edges).toHaveLength(999);
    expect(family.nodes.map(({ id }) => id)).not.toContain(grandchild);
    expect((await graph(grandchild)).nodes).toEqual(ids(root, children[0]!.id, grandchild));
  });

  it('reads only the family, whatever the backlog is', async () => {
    const root = await add();
    await jobs.addJobs(Array.from({ length: 20_000 }, () => ({ task: 't', payload: 'x'.repeat(100) })));
    await add({ dependsOn: [root] });
    const readPages = async (): Promise<number> => {
      const plan = await test.sql(`explain (analyze, buffers) select * from jobs.family_of('${root}', 1001)`);
      const [, hit = '0', read = '0'] = /Buffers: shared hit=(\d+)(?: read=(\d+))?/.exec(JSON.stringify(plan)) ?? [];
      return Number(hit) + Number(read);
    };
    // Where the function is new to the session, this reads the catalogue.
    expect(await readPages()).toBeGreaterThan(0);
    expect(await readPages()).toBeLessThan(200);
  });

  it('refuses an id that no job has', async () => {
    await expect(jobs.jobGraph('01900000-0000-7000-8000-000000000000')).rejects.toThrow(JobNotFoundError);
  });
});
