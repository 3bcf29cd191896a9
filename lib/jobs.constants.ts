// Names under which the parts of an instance are known to Nest. Fixed strings, so that several copies of the package in
// one process see each other's tasks.
import type { Abstract, InjectionToken, Type } from '@nestjs/common';

/** Metadata of a prototype: what @Task says of its methods. */
export const TASK_METADATA = 'millrace:tasks';
/** Metadata of a prototype: what @OnJobEvent says of its methods. */
export const JOB_EVENT_METADATA = 'millrace:events';
/** Metadata of a class and method: what the handler's parameters are, for Nest's pipes and parameter decorators. */
export const TASK_ARGS_METADATA = 'millrace:args';
/** What `ExecutionContext.getType()` says inside a handler. */
export const JOBS_CONTEXT = 'jobs';

/** The name of the instance that was given none. */
export const DEFAULT_INSTANCE = 'default';

/**
 * The injection token of `JobManager`, `WorkerPool`, `JobQueue` or `JobEvents` in a named instance; for the unnamed one
 * the class itself.
 *
 * @example
 * constructor(@Inject(getJobsToken(WorkerPool, 'reports')) private readonly pool: WorkerPool | null) {}
 */
export function getJobsToken<T>(part: Type<T> | Abstract<T>, name: string = DEFAULT_INSTANCE): InjectionToken<T> {
  return name === DEFAULT_INSTANCE ? part : `millrace:${name}:${part.name}`;
}

/** The token of an instance's resolved options; where it is, the instance is. */
export const getOptionsToken = (name: string): string => `${OPTIONS_TOKEN_PREFIX}${name}`;

/** The name of the instance whose options a token stands for; null for any other token. */
export const instanceOf = (token: unknown): string | null =>
  typeof token === 'string' && token.startsWith(OPTIONS_TOKEN_PREFIX) ? token.slice(OPTIONS_TOKEN_PREFIX.length) : null;

const OPTIONS_TOKEN_PREFIX = 'millrace:options:';
