// When things start and stop. Pools live in a module that only the root imports: Nest starts it nearly last and
// destroys it nearly first, so handlers find every provider alive while they drain.
import { Logger, type OnApplicationBootstrap, type OnApplicationShutdown, type OnModuleDestroy } from '@nestjs/common';
import type { JobManager } from './manager/job.manager.js';
import type { WorkerPool } from './worker/worker.pool.js';

const HOOKS_CHECK_MS = 10_000;

/** Starts the pool when the application is up, drains it when the application goes down. */
export class PoolOrchestrator implements OnApplicationBootstrap, OnModuleDestroy {
  private readonly logger = new Logger('JobsModule');
  private check: NodeJS.Timeout | null = null;

  constructor(
    private readonly pool: WorkerPool | null,
    private readonly autoStart: boolean,
  ) {}

  async onApplicationBootstrap(): Promise<void> {
    if (!this.pool || !this.autoStart) return;
    await this.pool.start();
    // Later, because applications enable the hooks after they were created.
    this.check = setTimeout(() => this.warnWithoutHooks(), HOOKS_CHECK_MS).unref();
  }

  async onModuleDestroy(): Promise<void> {
    if (this.check) clearTimeout(this.check);
    await this.pool?.stop();
  }

  private warnWithoutHooks(): void {
    if (process.listenerCount('SIGTERM') > 0) return;
    this.logger.warn(
      'Nobody listens for SIGTERM: a deploy would kill running jobs. Call app.enableShutdownHooks() at start.',
    );
  }
}

/** Closes the database last of all: until then `addJob` works. */
export class ManagerOrchestrator implements OnApplicationShutdown {
  constructor(private readonly jobs: JobManager) {}

  async onApplicationShutdown(): Promise<void> {
    await this.jobs.close();
  }
}
