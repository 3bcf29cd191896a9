// A Nest application for one spec: silent, on a database of its own, and always closed.
import { Logger, type LoggerService, type ModuleMetadata } from '@nestjs/common';
import { Test, type TestingModule } from '@nestjs/testing';
import { jest } from '@jest/globals';
import { type HistoryRecord, JobEvents, JobManager } from '../../lib/index.js';
import { createTestDatabase, eventually, type TestDatabase } from './database.js';

/** What was logged, by level. */
export class CollectingLogger implements LoggerService {
  readonly lines: { level: string; message: string; context: string }[] = [];

  log = (message: unknown, ...rest: unknown[]): void => this.add('log', message, rest);
  error = (message: unknown, ...rest: unknown[]): void => this.add('error', message, rest);
  warn = (message: unknown, ...rest: unknown[]): void => this.add('warn', message, rest);
  debug = (message: unknown, ...rest: unknown[]): void => this.add('debug', message, rest);
  verbose = (message: unknown, ...rest: unknown[]): void => this.add('verbose', message, rest);
  fatal = (message: unknown, ...rest: unknown[]): void => this.add('fatal', message, rest);

  /** The messages of one level, from the library unless another context is named. */
  of(level: string, context = 'JobsModule'): string[] {
    return this.lines.filter((line) => line.level === level && line.context === context).map(({ message }) => message);
  }

  private add(level: string, message: unknown, rest: unknown[]): void {
    this.lines.push({ level, message: String(message), context: (rest.at(-1) as string | undefined) ?? '' });
  }
}

export interface Applications {
  readonly database: TestDatabase;
  readonly logger: CollectingLogger;
  /** Builds and starts an application; it is closed after the spec. */
  start(metadata: ModuleMetadata): Promise<TestingModule>;
  /** The reason why an application does not start. */
  startFailure(metadata: ModuleMetadata): Promise<Error>;
  /** Closes what is open. For `afterEach`. */
  close(): Promise<void>;
  drop(): Promise<void>;
}

export async function applicationsOnOneDatabase(): Promise<Applications> {
  const database = await createTestDatabase();
  const open: TestingModule[] = [];
  const logger = new CollectingLogger();
  const build = async (metadata: ModuleMetadata): Promise<TestingModule> => {
    const application = await Test.createTestingModule(metadata).setLogger(logger).compile();
    try {
      await application.init();
    } catch (error) {
      // What failed to start may refuse to be closed.
      await application.close().catch(() => undefined);
      throw error;
    }
    open.push(application);
    return application;
  };
  return {
    database,
    logger,
    start: build,
    startFailure: async (metadata) => {
      const outcome = await build(metadata).catch((error: unknown) => error);
      if (outcome instanceof Error) return outcome;
      throw new Error('Expected the application not to start, but it did.');
    },
    close: async () => {
      for (const application of open.splice(0)) await application.close();
      logger.lines.length = 0;
      jest.restoreAllMocks();
      Logger.overrideLogger(true);
    },
    drop: () => database.drop(),
  };
}

/** Runs one job to the end of its first and only attempt, and returns that attempt's record. */
export async function attempt(app: TestingModule, task: string, payload: unknown = {}): Promise<HistoryRecord> {
  const settled = new Set<string>();
  const events = app.get(JobEvents);
  const subscription = events.on('job.settled', ({ job }) => settled.add(job.id));
  const jobs = app.get(JobManager);
  const { id } = await jobs.addJob(task, payload, { maxAttempts: 1 });
  await eventually(() => settled.has(id));
  events.off(subscription);
  return (await jobs.jobHistory(id))[0]!;
}
