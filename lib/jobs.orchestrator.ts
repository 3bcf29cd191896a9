// When things start and stop. The manager is ready before it can be injected, and stops last. The pool starts
// after the whole application has started, and drains while all of it is still there.
import {
  Logger,
  type OnApplicationBootstrap,
  type OnApplicationShutdown,
  type OnModuleDestroy,
  type OnModuleInit,
  type Type,
} from '@nestjs/common';
import type { ModulesContainer } from '@nestjs/core';
import type { JobsExplorer } from './jobs.explorer.js';
import type { LazyTasks } from './jobs.lazy.js';
import type { Maintenance } from './worker/maintenance.js';
import type { JobManager } from './manager/job.manager.js';
import type { WorkerPool } from './worker/worker.pool.js';

/** Applications enable the hooks after they were created, some after a while. */
const HOOKS_CHECK_MS = 10_000;
const NO_HOOKS =
  'The process does not listen for SIGTERM, so a deploy kills running jobs instead of waiting for them. Call ' +
  'app.enableShutdownHooks() before the application starts to listen.';

export interface ManagerOrchestratorParts {
  explorer: JobsExplorer;
  /** Null where a spec has put a stub in the manager's place. */
  jobs: JobManager | null;
  duties: Maintenance | null;
  lazy: LazyTasks | null;
}

/** Lives in the core, which Nest starts early and destroys late. */
export class ManagerOrchestrator implements OnModuleInit, OnApplicationShutdown {
  constructor(private readonly parts: ManagerOrchestratorParts) {}

  async onModuleInit(): Promise<void> {
    try {
      await this.parts.explorer.exploreInstances();
      this.parts.lazy?.watch();
    } catch (error) {
      await this.onApplicationShutdown();
      throw error;
    }
  }

  warnOfMissing(takes: (task: string) => boolean): void {
    this.parts.explorer.warnOfMissing(takes);
  }

  makePartitions(): void {
    void this.parts.duties?.makePartitions();
  }

  async onApplicationShutdown(): Promise<void> {
    await this.parts.duties?.stop();
    await this.parts.jobs?.close();
  }
}

/** Lives in the module that applications import. */
export class PoolOrchestrator implements OnApplicationBootstrap, OnModuleDestroy {
  private static warned = false;
  private readonly logger = new Logger('JobsModule');
  private hooksCheck: NodeJS.Timeout | null = null;

  constructor(
    private readonly manager: ManagerOrchestrator,
    private readonly pool: WorkerPool | null,
    private readonly autoStart: boolean,
    private readonly collectsGarbage: boolean,
    /** The tasks that the pool takes; null: all that have a handler. */
    private readonly taskIdentifiers: string[] | null,
  ) {}

  async onApplicationBootstrap(): Promise<void> {
    if (!this.pool || !this.autoStart) return;
    try {
      await this.pool.start();
    } catch (error) {
      await this.manager.onApplicationShutdown();
      throw error;
    }
    this.manager.warnOfMissing((task) => this.taskIdentifiers?.includes(task) ?? true);
    if (this.collectsGarbage) this.manager.makePartitions();
    this.hooksCheck = setTimeout(() => this.warnWithoutHooks(), HOOKS_CHECK_MS).unref();
  }

  async onModuleDestroy(): Promise<void> {
    if (this.hooksCheck) clearTimeout(this.hooksCheck);
    await this.pool?.stop();
  }

  /** Once in a process, however many instances it has. */
  private warnWithoutHooks(): void {
    if (PoolOrchestrator.warned || process.listenerCount('SIGTERM') > 0) return;
    PoolOrchestrator.warned = true;
    this.logger.warn(NO_HOOKS);
  }
}

/**
 * Makes Nest call the hooks of these modules last at start and first at the end, wherever they are imported. Nest goes
 * by a module's distance from the root, which is 1: without this, a provider of the root module that closes itself in
 * `onModuleDestroy` would be gone while handlers that need it drain.
 */
export function startLast(modules: ModulesContainer, type: Type): void {
  for (const module of modules.values()) if (module.metatype === type) module.distance = 0;
}
