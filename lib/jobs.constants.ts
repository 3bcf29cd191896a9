// Names under which the parts of an instance are known to Nest. Fixed strings, so that several copies of the package in
// one process see each other's tasks.
import type { Abstract, InjectionToken, Type } from '@nestjs/common';

/** Metadata of a method: its @Task decorations. */
export const TASK_METADATA = 'millrace:tasks';
/** Metadata of a method: its @OnJobEvent decorations. */
export const JOB_EVENT_METADATA = 'millrace:events';
/** Metadata of a class: what the parameters of its handlers are, for pipes. */
export const TASK_ARGS_METADATA = 'millrace:args';
/** What `ExecutionContext.getType()` says inside a handler. */
export const JOBS_CONTEXT = 'jobs';

export const DEFAULT_INSTANCE = 'default';

/**
 * The injection token of `JobManager`, `WorkerPool`, `JobQueue` or `JobEvents` in a named instance; for the unnamed one
 * the class itself.
 *
 * @example
 * constructor(@Inject(getJobsToken(WorkerPool, 'reports')) private readonly pool: WorkerPool) {}
 */
export function getJobsToken<T>(part: Type<T> | Abstract<T>, name: string = DEFAULT_INSTANCE): InjectionToken<T> {
  return name === DEFAULT_INSTANCE ? part : `millrace:${name}:${part.name}`;
}

/** The token of an instance's resolved options. */
export const getOptionsToken = (name: string): string => `millrace:${name}:options`;
