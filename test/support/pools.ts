// For specs of what pools do with jobs: for each test a manager on a database of its own, and a pool that ends with it.
import { afterEach, beforeEach } from '@jest/globals';
import { createCollectingEvents, type CollectingJobEvents, type JobManager, type WorkerPool } from '../../lib/index.js';
import { createTestManager, type TestManager } from './manager.js';

export interface PoolScene {
  test: TestManager;
  jobs: JobManager;
  events: CollectingJobEvents;
  /** The test's pool, once it has made one. */
  pool: WorkerPool | null;
}

/** Retries come at once. */
export function sceneOfEachTest(): PoolScene {
  const scene = { pool: null } as PoolScene;
  beforeEach(async () => {
    scene.test = await createTestManager({ retry: { baseDelayMs: 1, jitter: 0 } });
    scene.jobs = scene.test.jobs;
    scene.events = createCollectingEvents();
  });
  afterEach(async () => {
    await scene.pool?.forceStop();
    scene.pool = null;
    await scene.test.close();
  });
  return scene;
}
