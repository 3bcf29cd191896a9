// Tasks of modules that LazyModuleLoader loads after the start. Nest calls none of their hooks and emits no event, so
// the loader itself is watched.
import type { LazyModuleLoader } from '@nestjs/core';
import type { JobsExplorer } from './jobs.explorer.js';
import type { JobManager } from './manager/job.manager.js';
import type { TaskDefinition, TaskRegistry } from './manager/task.registry.js';
import type { WorkerPool } from './worker/worker.pool.js';

export interface LazyTasksParts {
  loader: LazyModuleLoader;
  explorer: JobsExplorer;
  tasks: TaskRegistry;
  jobs: JobManager;
  pool: WorkerPool | null;
  /** How many transactional attempts may run at once. */
  concurrency: number;
}

export class LazyTasks {
  constructor(private readonly parts: LazyTasksParts) {}

  /** From now on, a module has its tasks when `load` resolves; what is wrong with them makes `load` reject. */
  watch(): void {
    const { loader } = this.parts;
    const load = loader.load.bind(loader);
    loader.load = async (...args) => {
      const moduleRef = await load(...args);
      await this.adopt();
      return moduleRef;
    };
  }

  private async adopt(): Promise<void> {
    const { explorer, tasks, pool } = this.parts;
    const known = [...tasks.names()];
    await explorer.exploreInstances();
    // A pool that has not been started yet does all of this when it is.
    if (tasks.names().length > known.length && pool && pool.state !== 'new') await this.introduce(known);
  }

  private async introduce(known: string[]): Promise<void> {
    const { tasks, jobs, concurrency } = this.parts;
    const definitions = tasks.names().map((name) => tasks.get(name) as TaskDefinition);
    const transactional = definitions.filter(({ options }) => options.transactional).map(({ task }) => task);
    if (transactional.length && !transactional.some((task) => known.includes(task))) {
      await jobs.engine.transactions.prepare(concurrency);
    }
    await this.parts.pool?.declareTasks();
  }
}
