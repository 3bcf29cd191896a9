// The public API, in the order in which a reader meets it.
export {
  JobsModule,
  type JobsModuleAsyncOptions,
  type JobsModuleAsyncResult,
  type JobsOptionsFactory,
} from './jobs.module.js';
export type { PgClientOptions, PgPoolOptions } from './interfaces/connection.interface.js';
export type { Stored } from './interfaces/json.interface.js';
export type {
  EncryptionOptions,
  HistoryOptions,
  JobManagerOptions,
  JobsModuleOptions,
  MaintenanceOptions,
  QueueOptions,
  WorkerOptions,
} from './interfaces/jobs-options.interface.js';
export { defineTask, Task } from './decorators/task.decorator.js';
export type {
  BatchOptions,
  BatchTaskOptions,
  DtoClass,
  Mask,
  MaskedPart,
  PayloadOf,
  PayloadSchema,
  RetryFunction,
  RetryOptions,
  StandardSchema,
  TaskOptions,
  TaskPayloads,
  TaskToken,
} from './interfaces/task.interface.js';
export { BatchContext } from './worker/batch.context.js';
export { JobContext } from './worker/job.context.js';
export { isPartialSuccess, partialSuccess, snooze } from './worker/outcome.js';
export { InjectJobManager } from './decorators/inject-job-manager.decorator.js';
export { getJobsToken } from './jobs.constants.js';
export { JobManager } from './manager/job.manager.js';
export { EncryptedValue } from './manager/job.cipher.js';
export type { Reencryption, ReencryptOptions } from './manager/reencryption.js';
export type { WaitOptions } from './manager/job.waiter.js';
export type * from './interfaces/job.interface.js';
export type * from './interfaces/report.interface.js';
export type * from './interfaces/bulk.interface.js';
export type * from './interfaces/job.graph.interface.js';
export type * from './interfaces/cron.interface.js';
export {
  createJobManager,
  createWorkerPool,
  type PlainBatchHandler,
  type PlainHandler,
  type PlainTask,
  type PlainTasks,
  type WorkerPoolOptions,
} from './jobs.factory.js';
export { WorkerPool, type WorkerPoolState, type WorkerPoolStats } from './worker/worker.pool.js';
export type { CircuitState } from './worker/circuit.breaker.js';
export { JobQueue, type JobQueueOptions, type JobQueueStats } from './worker/job.queue.js';
export { OnJobEvent, type OnJobEventOptions } from './decorators/on-job-event.decorator.js';
export type { JobEventFields, JobEventType } from './interfaces/event.interface.js';
export {
  CollectingJobEvents,
  createCollectingEvents,
  createNoopEvents,
  JobEvents,
  type JobEvent,
  type JobEventHandler,
} from './monitoring/job.events.js';
export { JobsMigrator } from './storage/jobs.migrator.js';
export { type JobsMigratorOptions } from './storage/migrator.options.js';
export { PackageFilesMissingError } from './storage/migration.files.js';
export type { RoleKind } from './storage/role.rights.js';
export * from './jobs.errors.js';
export { DatabaseExhaustedError, PoolerModeError, type DatabaseResource } from './database.refusals.js';
export type { BulkActions } from './manager/bulk.actions.js';
export { BulkActionNotFoundError } from './manager/bulk.errors.js';
export { CrontabLockedError } from './manager/crontab.errors.js';
export { RateLimitedError, RateLimitWeightError } from './manager/rate.errors.js';
export { QueueFullError } from './manager/queue.errors.js';
export { ClaimsUnderWayError } from './manager/pause.errors.js';
export { PartitionsHeldError } from './manager/retention.errors.js';
