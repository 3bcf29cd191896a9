// The library's @Cron duties. Every process runs them; all of them are safe to run anywhere at once, and nothing
// depends on their being on time.
import { Logger, type OnApplicationBootstrap, type OnModuleDestroy } from '@nestjs/common';
import { ModulesContainer } from '@nestjs/core';
import { Cron, ScheduleModule } from '@nestjs/schedule';
import { CronJob } from 'cron';
import type { JobManager } from '../manager/job.manager.js';
import type { JobEvents } from '../monitoring/job.events.js';

export interface MaintenanceSchedule {
  resetLockedJobs: string | false;
  refillRateLimits: string | false;
  gc: string | false;
  timeZone: string;
}

interface Duty {
  method: 'refillRateLimits' | 'resetLockedJobs' | 'gc';
  name: string;
  cronTime: string;
}

type ScheduleOptions = { cronJobs?: boolean } | undefined;

export class JobsMaintenance implements OnApplicationBootstrap, OnModuleDestroy {
  private readonly logger = new Logger('JobsMaintenance');
  private readonly duties: Duty[];
  private own: CronJob[] = [];

  /** `jobs` null: a process that only enqueues, which has no duties. */
  constructor(
    private readonly jobs: JobManager | null,
    private readonly events: JobEvents,
    private readonly schedule: MaintenanceSchedule,
    private readonly modules: ModulesContainer,
    instance: string,
  ) {
    this.duties = jobs ? this.dutiesOf(instance) : [];
    for (const duty of this.duties) this.decorate(duty);
  }

  /** Where the application runs no crons, ours run all the same; an application's own @Cron methods stay untouched. */
  onApplicationBootstrap(): void {
    if (this.applicationRunsCrons()) return;
    this.own = this.duties.map(({ method, cronTime }) =>
      CronJob.from({
        cronTime,
        timeZone: this.schedule.timeZone,
        onTick: () => this[method](),
        start: true,
        waitForCompletion: true,
        unrefTimeout: true,
      }),
    );
  }

  async onModuleDestroy(): Promise<void> {
    await Promise.all(this.own.map((job) => job.stop()));
  }

  async refillRateLimits(): Promise<void> {
    await this.perform('refillRateLimits', async (jobs) => jobs.refillRateLimits());
  }

  async resetLockedJobs(): Promise<void> {
    await this.perform('resetLockedJobs', async (jobs) => jobs.resetLockedJobs());
  }

  async gc(): Promise<void> {
    await this.perform('gc', async (jobs) => {
      await jobs.gcJobHistory();
      await jobs.gcJobQueues();
      await jobs.gcTaskIdentifiers();
    });
  }

  private dutiesOf(instance: string): Duty[] {
    return (['refillRateLimits', 'resetLockedJobs', 'gc'] as const).flatMap((method) => {
      const cronTime = this.schedule[method];
      return cronTime === false ? [] : [{ method, name: `millrace.${instance}.${method}`, cronTime }];
    });
  }

  /** The schedule comes from options, so the decorator is applied to a method of this very instance. */
  private decorate({ method, name, cronTime }: Duty): void {
    const run = this[method].bind(this);
    Object.defineProperty(this, method, { value: run, configurable: true });
    const options = { name, timeZone: this.schedule.timeZone, waitForCompletion: true, unrefTimeout: true };
    Cron(cronTime, options)(this, method, { value: run } as PropertyDescriptor);
  }

  private applicationRunsCrons(): boolean {
    const schedules = [...this.modules.values()].filter(({ metatype }) => metatype === ScheduleModule);
    return schedules.some((module) => {
      const provider = [...module.providers.values()].find(({ token }) => token === 'SCHEDULE_MODULE_OPTIONS');
      return (provider?.instance as ScheduleOptions)?.cronJobs !== false;
    });
  }

  /** A duty that fails (the database is away) is reported; the next one tries again. */
  private async perform(name: string, duty: (jobs: JobManager) => Promise<unknown>): Promise<void> {
    if (!this.jobs) return;
    try {
      await duty(this.jobs);
      this.events.emit('cron.fired', null, { name });
    } catch (error) {
      this.logger.warn(
        `${name} failed and will be tried again: ${error instanceof Error ? error.message : String(error)}`,
      );
    }
  }
}
