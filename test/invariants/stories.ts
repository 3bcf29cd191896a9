// For short stories about jobs by hand: one manager for all tests of a file, whose tables each test finds empty.
import { afterAll, beforeAll, beforeEach } from '@jest/globals';
import type { AddJobOptions, ClaimedJob, JobManager } from '../../lib/index.js';
import { createTestManager, WORKER, type TestManager } from '../support/manager.js';
import { emptyTables } from './tables.js';

export function tellStories() {
  const scene = {} as { test: TestManager; jobs: JobManager };
  beforeAll(async () => {
    scene.test = await createTestManager();
    scene.jobs = scene.test.jobs;
  });
  afterAll(() => scene.test.close());
  beforeEach(() => emptyTables(scene.test.sql));

  const claim = (worker = WORKER): Promise<ClaimedJob[]> => scene.jobs.getJobs(worker, { batchSize: 10 });
  return {
    scene,
    add: (options: AddJobOptions = {}) => scene.jobs.addJob('x', 1, options),
    claim,
    claimOne: async (): Promise<ClaimedJob> => (await claim())[0]!,
    statusOf: async ({ id }: { id: string }) => (await scene.jobs.findJob(id))?.status,
  };
}
