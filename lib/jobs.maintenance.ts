// Binds the duties to @Cron. The library has a ScheduleModule of its own that sees these methods and nothing else:
// the application's explores every provider, and two of them would fire all of the application's crons twice.
import { Module, type DynamicModule, type InjectionToken, type Provider, type Type } from '@nestjs/common';
import { MODULE_METADATA, PARAMTYPES_METADATA, SELF_DECLARED_DEPS_METADATA } from '@nestjs/common/constants.js';
import { DiscoveryService, MetadataScanner } from '@nestjs/core';
import { Cron, ScheduleModule, type CronOptions } from '@nestjs/schedule';
import type { Maintenance } from './worker/maintenance.js';

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

@Module({})
class MaintenanceScheduleModule {}

/**
 * A copy of ScheduleModule for the crons of one instance. It runs whether or not the application imports ScheduleModule,
 * has its crons switched off, or imports it twice; and it leaves the application's own crons alone. Its parts stand under
 * tokens of their own, so that `app.get(SchedulerRegistry)` and `app.get(DiscoveryService)` find the application's.
 */
export function maintenanceSchedule({ name, imports, inject }: MaintenanceScheduleSources): DynamicModule {
  const { providers = [] } = ScheduleModule.forRoot({ cronJobs: true, intervals: false, timeouts: false });
  const fixed = (Reflect.getMetadata(MODULE_METADATA.PROVIDERS, ScheduleModule) ?? []) as Provider[];
  const discovery: Provider = {
    provide: DiscoveryService,
    inject,
    useFactory: (schedule: MaintenanceSchedule, duties: Maintenance | null) =>
      onlyProvider(duties && cronsOf(name, schedule, duties)),
  };
  const parts = [...fixed, ...providers, MetadataScanner, discovery];
  return { module: MaintenanceScheduleModule, imports, providers: underOwnTokens(name, parts) };
}

/** The same providers under private tokens; among themselves they find each other. */
function underOwnTokens(name: string, providers: Provider[]): Provider[] {
  const tokens = new Map(
    providers.map((provider) => [tokenOf(provider), Symbol(`millrace:${name}:schedule:${nameOf(tokenOf(provider))}`)]),
  );
  const own = (token: InjectionToken): InjectionToken => tokens.get(token) ?? token;
  return providers.map((provider) => {
    if (typeof provider !== 'function') return { ...provider, provide: own(provider.provide) };
    const make = (...parts: unknown[]): unknown => new provider(...parts);
    return { provide: own(provider), inject: dependenciesOf(provider).map(own), useFactory: make };
  });
}

const tokenOf = (provider: Provider): InjectionToken => (typeof provider === 'function' ? provider : provider.provide);

const nameOf = (token: InjectionToken): string => (typeof token === 'function' ? token.name : String(token));

/** What Nest would give to the constructor. */
function dependenciesOf(type: Type): InjectionToken[] {
  const types = (Reflect.getMetadata(PARAMTYPES_METADATA, type) ?? []) as InjectionToken[];
  const named = (Reflect.getMetadata(SELF_DECLARED_DEPS_METADATA, type) ?? []) as {
    index: number;
    param: InjectionToken;
  }[];
  return types.map((token, index) => named.find((one) => one.index === index)?.param ?? token);
}

/** The schedule comes from options, so the class is made when they are known. */
function cronsOf(name: string, schedule: MaintenanceSchedule, duties: Maintenance): object {
  const cron = (duty: 'refillRateLimits' | 'resetLockedJobs' | 'gc'): MethodDecorator =>
    schedule[duty] === false ? noop : Cron(schedule[duty], optionsOf(`millrace.${name}.${duty}`, schedule.timeZone));

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

const noop: MethodDecorator = () => undefined;

/** A discovery that finds one instance, or none, in the shape that ScheduleModule's explorer looks at. */
const onlyProvider = (instance: object | null): Partial<DiscoveryService> => ({
  getControllers: () => [],
  getProviders: () =>
    instance ? [{ instance, name: instance.constructor.name, isDependencyTreeStatic: () => true } as never] : [],
});
