// Binds the duties to @Cron. The library has a ScheduleModule of its own that sees these methods and nothing else:
// the application's explores every provider, and two of them would fire all of the application's crons twice.
import type { DynamicModule, InjectionToken } from '@nestjs/common';
import { DiscoveryService } from '@nestjs/core';
import { Cron, ScheduleModule, type CronOptions } from '@nestjs/schedule';
import type { MaintenanceDuties } from './maintenance.duties.js';

/** A crontab expression for each duty; `false`: never. */
export interface MaintenanceSchedule {
  refillRateLimits: string | false;
  resetLockedJobs: string | false;
  gc: string | false;
  timeZone: string;
}

export interface MaintenanceScheduleSources {
  /** The instance's name, which makes the names of its crons unique. */
  name: string;
  imports: DynamicModule[];
  /** Tokens of the schedule and of the duties, which are null where a process has none. */
  inject: [schedule: InjectionToken, duties: InjectionToken];
}

/**
 * A ScheduleModule for the crons of one instance. It runs whether or not the application imports ScheduleModule, has
 * its crons switched off, or imports it twice; and it leaves the application's own crons alone.
 */
export function maintenanceSchedule({ name, imports, inject }: MaintenanceScheduleSources): DynamicModule {
  const module = ScheduleModule.forRoot({ cronJobs: true, intervals: false, timeouts: false });
  return {
    ...module,
    global: false,
    imports: [...(module.imports ?? []), ...imports],
    providers: [
      ...(module.providers ?? []),
      {
        // Comes before the one that ScheduleModule imports.
        provide: DiscoveryService,
        inject,
        useFactory: (schedule: MaintenanceSchedule, duties: MaintenanceDuties | null) =>
          onlyProvider(duties && cronsOf(name, schedule, duties)),
      },
    ],
    exports: [],
  };
}

/** The schedule comes from options, so the class is made when they are known. */
function cronsOf(name: string, schedule: MaintenanceSchedule, duties: MaintenanceDuties): object {
  const cron = (duty: 'refillRateLimits' | 'resetLockedJobs' | 'gc'): MethodDecorator =>
    schedule[duty] === false ? nothing : Cron(schedule[duty], optionsOf(`millrace.${name}.${duty}`, schedule.timeZone));

  class MaintenanceCrons {
    @cron('refillRateLimits')
    refillRateLimits(): Promise<void> {
      return duties.refillRateLimits();
    }

    @cron('resetLockedJobs')
    resetLockedJobs(): Promise<void> {
      return duties.resetLockedJobs();
    }

    @cron('gc')
    gc(): Promise<void> {
      return duties.collectGarbage();
    }
  }
  return new MaintenanceCrons();
}

/** A slow database must not pile up ticks, and a cron alone must not keep the process alive. */
const optionsOf = (name: string, timeZone: string): CronOptions => ({
  name,
  timeZone,
  waitForCompletion: true,
  unrefTimeout: true,
});

const nothing: MethodDecorator = () => undefined;

/** A discovery that finds one instance, or none, in the shape that ScheduleModule's explorer looks at. */
const onlyProvider = (instance: object | null): Partial<DiscoveryService> => ({
  getControllers: () => [],
  getProviders: () =>
    instance ? [{ instance, name: instance.constructor.name, isDependencyTreeStatic: () => true } as never] : [],
});
