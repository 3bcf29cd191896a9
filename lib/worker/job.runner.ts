// Runs one job and always answers with an Outcome: whatever the handler does, the worker goes on.
import type { Outcome } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { WorkerSettings } from '../interfaces/jobs-options.interface.js';
import { JobTimeoutError, ShutdownError, UnknownTaskError } from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import type { PayloadValidator } from '../manager/payload.validator.js';
import type { TaskDefinition, TaskRegistry } from '../manager/task.registry.js';
import type { JobEvents } from '../monitoring/job.events.js';
import { Deadlines } from './deadlines.js';
import { JobContext } from './job.context.js';
import { readReturned, readThrown, type DelayOf } from './outcome.js';

export interface JobRunnerParts {
  jobs: JobManager;
  tasks: TaskRegistry;
  validator: PayloadValidator;
  events: JobEvents;
  options: WorkerSettings;
  workerId: string;
  onError: (error: unknown, context: string) => void;
}

export class JobRunner {
  private readonly deadlines = new Deadlines();
  private readonly contexts = new Map<string, JobContext>();

  constructor(private readonly parts: JobRunnerParts) {}

  /** Never rejects. Resolves when the handler has ended, or has run out of its time. */
  async run(job: ClaimedJob): Promise<Outcome> {
    const definition = this.parts.tasks.get(job.task);
    if (!definition) return { kind: 'permanent', error: unknownTask(job.task) };
    const context = new JobContext(job, this.parts.jobs, this.parts.workerId);
    this.contexts.set(job.id, context);
    try {
      return await this.attempt(job, definition, context);
    } finally {
      // A job that was lost may run here again already, under another context.
      if (this.contexts.get(job.id) === context) this.contexts.delete(job.id);
    }
  }

  /** Aborts the signal of one running job. */
  abort(jobId: string, reason: unknown): void {
    this.contexts.get(jobId)?.abort(reason);
  }

  abortAll(reason: unknown): void {
    for (const context of this.contexts.values()) context.abort(reason);
  }

  runningIds(): string[] {
    return [...this.contexts.keys()];
  }

  stop(): void {
    this.deadlines.clear();
  }

  private async attempt(job: ClaimedJob, definition: TaskDefinition, context: JobContext): Promise<Outcome> {
    const checked = await this.check(definition, job);
    if ('error' in checked) return { kind: 'permanent', error: checked.error };
    const delayOf: DelayOf = (error) => this.parts.jobs.claims.retryDelayMs(job, error, definition.options.retry);
    try {
      const returned = await this.withinTime(job, definition, context, checked.payload);
      const { outcome, problem } = readReturned(returned, delayOf);
      if (problem) this.parts.onError(problem, `task ${job.task}, job ${job.id}`);
      return outcome;
    } catch (error) {
      if (context.abortReason instanceof ShutdownError) return { kind: 'released' };
      return readThrown(error, delayOf);
    }
  }

  /** What was stored before a release may not satisfy the schema after it; repeating would not mend that. */
  private async check(
    { task, schema }: TaskDefinition,
    job: ClaimedJob,
  ): Promise<{ payload: unknown } | { error: unknown }> {
    try {
      return { payload: schema ? await this.parts.validator.validate(task, schema, job.payload) : job.payload };
    } catch (error) {
      return { error };
    }
  }

  private withinTime(job: ClaimedJob, definition: TaskDefinition, context: JobContext, payload: unknown) {
    const timeoutMs = job.timeoutMs ?? definition.options.timeoutMs ?? this.parts.options.timeoutMs;
    return new Promise<unknown>((resolve, reject) => {
      const deadline = this.deadlines.add(timeoutMs, () => {
        const error = new JobTimeoutError(timeoutMs);
        context.abort(error);
        this.parts.events.emit('job.timeout', this.parts.workerId, { job, timeoutMs });
        reject(error);
      });
      // `then` with both handlers: what the handler does after its time is over goes nowhere, rejections included.
      startHandler(definition, payload, context).then(
        (value) => {
          this.deadlines.remove(deadline);
          resolve(value);
        },
        (error: unknown) => {
          this.deadlines.remove(deadline);
          reject(error as Error);
        },
      );
    });
  }
}

/** `async`: a handler that throws at once rejects like any other. */
const startHandler = async ({ handler }: TaskDefinition, payload: unknown, context: JobContext): Promise<unknown> =>
  handler(payload, context);

const unknownTask = (task: string): UnknownTaskError =>
  new UnknownTaskError(
    `Expected a handler for task "${task}" in this process, got none. Register one with @Task("${task}"), or set ` +
      "unknownTasks to 'leave'.",
  );
