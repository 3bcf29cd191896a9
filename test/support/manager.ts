// A JobManager on a database of its own, for specs of the manager.
import { createJobManager, JobManager, type JobManagerOptions } from '../../lib/index.js';
import type { QueryExecutor } from '../../lib/interfaces/job.interface.js';
import { createTestDatabase } from './database.js';
import { migratedTemplate } from './template.js';

export interface TestManager {
  jobs: JobManager;
  url: string;
  /**
   * Runs SQL beside the library: to look, to hold locks, to move clocks. `name`: of a statement that is sent again and
   * again, so that PostgreSQL plans it once.
   */
  sql: <Row extends Record<string, any> = Record<string, any>>(
    text: string,
    values?: unknown[],
    name?: string,
  ) => Promise<Row[]>;
  close(): Promise<void>;
}

export async function createTestManager(options: JobManagerOptions = {}): Promise<TestManager> {
  const database = await createTestDatabase(options.schema === undefined ? await migratedTemplate() : null);
  const jobs = await createJobManager({ connection: database.url, ...options });
  return {
    jobs,
    url: database.url,
    sql: async (text, values = [], name = '') => (await database.pool.query({ text, values, name })).rows,
    close: async () => {
      await jobs.close();
      await database.drop();
    },
  };
}

export const WORKER = 'worker-aaaa-0001';
export const OTHER = 'worker-bbbb-0002';

/** The manager inside a transaction, as a transactional task gets it. */
export const managerWithin = (jobs: JobManager, executor: QueryExecutor): JobManager =>
  new JobManager(jobs.engine.within(executor));
