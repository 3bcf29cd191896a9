// How a task is described: the options of @Task, typed payloads, and the schemas that payloads are checked by.
import type { TaskCron } from './cron.interface.js';
import type { JobRateLimit, JobSpec, Throttle, Unique } from './job.interface.js';

/**
 * Maps task names to payload types. Augment it, and every `addJob` is checked at compile time.
 *
 * @example
 * declare module 'millrace' {
 *   interface TaskPayloads { 'send-email': SendEmailDto }
 * }
 */
export interface TaskPayloads {}

/** A payload's type by task name: as declared in `TaskPayloads`, else anything. */
export type PayloadOf<T extends string> = T extends keyof TaskPayloads ? TaskPayloads[T] : unknown;

/** The specs of `addJobs`, each with the payload that its task takes. */
export type JobSpecs<T extends readonly string[]> = {
  readonly [K in keyof T]: JobSpec<PayloadOf<T[K]>> & { readonly task: T[K] };
};

export type DtoClass<P = unknown> = new (...args: any[]) => P;

/** The part of the Standard Schema interface that payload validation uses (zod, valibot, arktype and others). */
export interface StandardSchema<Output = unknown, Input = any> {
  readonly '~standard': {
    readonly version: 1;
    readonly vendor: string;
    readonly validate: (value: unknown) => StandardResult<Output> | Promise<StandardResult<Output>>;
    /** Only for the compiler. */
    readonly types?: { readonly input: Input; readonly output: Output } | undefined;
  };
}

export type StandardResult<P> =
  | { readonly value: P; readonly issues?: undefined }
  | {
      readonly issues: ReadonlyArray<{
        readonly message: string;
        readonly path?: ReadonlyArray<PropertyKey | { readonly key: PropertyKey }> | undefined;
      }>;
    };

/** A class-validator DTO class or any Standard Schema. */
export type PayloadSchema<P = unknown> = DtoClass<P> | StandardSchema<P>;

/** A task's name together with its payload type, usable in `@Task` and in `addJob`; made by `defineTask`. */
export interface TaskToken<Input = any, Output = Input> {
  readonly task: string;
  readonly payload: PayloadSchema | undefined;
  /** Only for the compiler: `addJob` takes the input, the handler gets the output. */
  readonly types?: { readonly input: Input; readonly output: Output } | undefined;
}

export interface RetryOptions {
  /** Delay before the second attempt. Default 1,000. */
  baseDelayMs?: number | undefined;
  /** Each further delay is so many times the last one. Default 2. */
  multiplier?: number | undefined;
  /** Upper bound of the delay, jitter included. Default 3,600,000 (an hour). */
  maxDelayMs?: number | undefined;
  /** Random share added to the delay, 0 to 1. Default 0.1. */
  jitter?: number | undefined;
}

/** Gets the attempt that failed (from 1) and its error; returns the delay in ms, or `false` to give up at once. */
export type RetryFunction = (attempt: number, error: unknown) => number | false;

/** What a mask is given. `partialResults` also for what the last attempt left behind. */
export type MaskedPart = 'payload' | 'result' | 'partialResults' | 'progress';

/**
 * What events and the log do not show: names of properties, masked wherever they stand (`'password'`), paths from the
 * top (`'card.number'`; arrays are passed through), or a function that returns what may be shown.
 */
export type Mask = string[] | ((value: any, task: string, part: MaskedPart) => unknown);

/** A rate limit of a task's jobs. */
export interface TaskRateLimit extends Omit<JobRateLimit, 'by'> {
  /**
   * Each value has tokens of its own: a name, or a function of the payload, which is called once, when the job is added, with the
   * payload as it is stored. Null and undefined: the tokens of all jobs that name none.
   */
  by?: JobRateLimit['by'] | ((payload: any) => string | null | undefined);
}

export interface TaskOptions {
  /**
   * What a payload must satisfy, at enqueue and again before the handler. Default: the handler's parameter type, if that is
   * a class; `false`: payloads are not checked.
   */
  payload?: PayloadSchema | false | undefined;
  queue?: string | undefined;
  /**
   * Whose job it is, within its queue: a name, or a function of the payload, which is called once, when the job is added,
   * with the payload as it is stored. Null and undefined: of no partition.
   */
  partition?: string | ((payload: any) => string | null | undefined) | undefined;
  priority?: number | undefined;
  maxAttempts?: number | undefined;
  /** How long one attempt may run. Default: the worker's `timeoutMs`. */
  timeoutMs?: number | undefined;
  retry?: RetryOptions | RetryFunction | undefined;
  /** One rate limit, by its key alone: as `rateLimit: key`. */
  rateLimitKey?: string | undefined;
  /** Up to three rate limits of the task's jobs, which take tokens of all of them or of none. */
  rateLimit?: string | TaskRateLimit | (string | TaskRateLimit)[] | undefined;
  /** For adds of the task that name no `jobKey`, `debounce`, `throttle` or `unique` of their own. Not for its crontab. */
  throttle?: Throttle | undefined;
  /** As `throttle`; one of the two. */
  unique?: Unique | undefined;
  flags?: string[] | undefined;
  /** What events and the log do not show of the task's payloads and results, besides the module's `mask`. */
  mask?: Mask | undefined;
  /**
   * Runs the handler in a database transaction (`ctx.manager`, a TypeORM EntityManager) in which the job is settled:
   * what it writes and the job's completion are committed together, or not at all. Needs TypeORM. Default false.
   */
  transactional?: boolean | undefined;
  /** Jobs of this task, or batches, that one process runs at once. Default: the pool's concurrency. */
  concurrency?: number | undefined;
  /**
   * Adds a job of this task at each slot: a crontab expression (its time zone is UTC), or one with more to it. Written
   * down when a pool starts whose process has the task; see docs/crons.md.
   */
  cron?: string | TaskCron | undefined;
  /** The module instance (`forRoot({ name })`) that the task belongs to. Default: the unnamed one. */
  instance?: string | undefined;
}

/** How jobs of one task are gathered for one call of its handler. See docs/batches.md. */
export interface BatchOptions<P = any> {
  /** Most jobs of one call, 1 to 1,000. */
  size: number;
  /** How long a batch that is not full waits for more jobs, from its first one on, up to 600,000. Default 100. */
  waitMs?: number | undefined;
  /**
   * Jobs of one batch share their queue, their partition, or what the function returns for their payloads as they are
   * stored. Default: any jobs of the task.
   */
  by?: 'queue' | 'partition' | ((payload: P) => string) | undefined;
}

/** The options of a task whose handler gets many jobs at once. */
export interface BatchTaskOptions<P = any> extends TaskOptions {
  /** The handler gets up to `size` jobs in one call, and a `BatchContext`. A batch takes one slot of the pool. */
  batch: BatchOptions<P>;
}

/** The options of any task. */
export type AnyTaskOptions = TaskOptions & Partial<Pick<BatchTaskOptions, 'batch'>>;
