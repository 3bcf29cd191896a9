// Runs one job and always answers with an Outcome: whatever the handler does, the worker goes on.
import type { Outcome, SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { WorkerSettings } from '../interfaces/jobs-options.interface.js';
import type { PayloadSchema } from '../interfaces/task.interface.js';
import { JobTimeoutError, LeaseLostError, ShutdownError, UnknownTaskError } from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import type { JobTransaction } from '../manager/job.transaction.js';
import { withReason } from '../manager/settlement.js';
import type { PayloadValidator } from '../manager/payload.validator.js';
import type { TaskDefinition, TaskRegistry } from '../manager/task.registry.js';
import type { JobEvents } from '../monitoring/job.events.js';
import { Deadlines } from './deadlines.js';
import { JobContext } from './job.context.js';
import { readReturned, readThrown, type DelayOf } from './outcome.js';
import { settleInside } from './transactional.settle.js';

export interface JobRunnerParts {
  jobs: JobManager;
  tasks: TaskRegistry;
  validator: PayloadValidator;
  events: JobEvents;
  options: Pick<WorkerSettings, 'timeoutMs'>;
  workerId: string;
  onError: (error: unknown, context: string) => void;
}

/** An attempt that has ended. */
export interface Attempt extends SettleRequest {
  /** What its own transaction has made of the job; null: it has yet to be settled. */
  settled: SettleResult | null;
}

/** How a handler ended: by an answer, or by throwing. */
type Ending = { outcome: Outcome; thrown: boolean };

export class JobRunner {
  private readonly deadlines = new Deadlines();
  private readonly contexts = new Map<string, JobContext>();

  constructor(private readonly parts: JobRunnerParts) {}

  /** Never rejects. Resolves when the handler has ended, or has run out of its time. */
  async run(job: ClaimedJob): Promise<Attempt> {
    const startedAt = performance.now();
    const attempt = (outcome: Outcome): Attempt => ({
      job,
      outcome,
      executionTimeMs: performance.now() - startedAt,
      settled: null,
    });
    const definition = this.parts.tasks.get(job.task);
    if (!definition) return attempt({ kind: 'permanent', error: unknownTask(job.task) });
    let { payload } = job;
    if (definition.schema) {
      const checked = await this.check(definition.schema, job);
      if ('error' in checked) return attempt({ kind: 'permanent', error: checked.error });
      payload = checked.payload;
    }
    if (definition.options.transactional) return this.runInTransaction(job, definition, payload, attempt);
    return attempt((await this.attempt(job, definition, payload, null)).outcome);
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

  /** What the handler writes through `ctx.manager` is committed together with the job's settling, or not at all. */
  private async runInTransaction(
    job: ClaimedJob,
    definition: TaskDefinition,
    payload: unknown,
    attempt: (outcome: Outcome) => Attempt,
  ): Promise<Attempt> {
    let transaction: JobTransaction;
    try {
      transaction = await this.parts.jobs.beginTransaction();
    } catch (error) {
      // Nothing has begun: the attempt does not count.
      this.parts.onError(error, `beginning the transaction of job ${job.id}`);
      return attempt({ kind: 'released' });
    }
    const { outcome, thrown } = await this.attempt(job, definition, payload, transaction);
    if (!thrown) {
      const delayOf = this.delayOf(job, definition);
      return settleInside(transaction, this.parts.workerId, attempt(outcome), delayOf);
    }
    // A handler that was left behind must not go on writing in a transaction that ends without it.
    await (isLeftBehind(outcome) ? transaction.destroy() : transaction.rollback());
    return attempt(outcome);
  }

  private async attempt(
    job: ClaimedJob,
    definition: TaskDefinition,
    payload: unknown,
    transaction: JobTransaction | null,
  ): Promise<Ending> {
    const context = new JobContext(job, this.parts.jobs, this.parts.workerId, transaction);
    this.contexts.set(job.id, context);
    try {
      const returned = await this.withinTime(job, definition, context, payload);
      const outcome = this.readAnswer(returned, job, definition);
      if (outcome.kind !== 'partial') return { outcome, thrown: false };
      const partialResults = await context.withSteps(outcome.partialResults);
      return { outcome: { ...outcome, partialResults }, thrown: false };
    } catch (error) {
      const outcome: Outcome =
        context.abortReason instanceof ShutdownError
          ? { kind: 'released' }
          : readThrown(transaction ? withReason(error) : error, this.delayOf(job, definition));
      return { outcome, thrown: true };
    } finally {
      if (context.isWriting) await context.written();
      // A job that was lost may run here again already, under another context.
      if (this.contexts.get(job.id) === context) this.contexts.delete(job.id);
    }
  }

  private readAnswer(returned: unknown, job: ClaimedJob, definition: TaskDefinition): Outcome {
    const { outcome, problem } = readReturned(returned, this.delayOf(job, definition));
    if (problem) this.parts.onError(problem, `task ${job.task}, job ${job.id}`);
    return outcome;
  }

  private delayOf(job: ClaimedJob, definition: TaskDefinition): DelayOf {
    return (error) => this.parts.jobs.claims.retryDelayMs(job, error, definition.options.retry);
  }

  /** What was stored before a release may not satisfy the schema after it; repeating would not mend that. */
  private async check(
    schema: PayloadSchema,
    { task, payload }: ClaimedJob,
  ): Promise<{ payload: unknown } | { error: unknown }> {
    try {
      return { payload: await this.parts.validator.validate(task, schema, payload) };
    } catch (error) {
      return { error };
    }
  }

  /** The handler's answer; rejects when its time is over. What it does after that goes nowhere, rejections included. */
  private withinTime(job: ClaimedJob, definition: TaskDefinition, context: JobContext, payload: unknown): unknown {
    const answer = definition.handler(payload, context);
    if (!isThenable(answer)) return answer;
    const timeoutMs = job.timeoutMs ?? definition.options.timeoutMs ?? this.parts.options.timeoutMs;
    return new Promise<unknown>((resolve, reject) => {
      const deadline = this.deadlines.add(timeoutMs, () => {
        const error = new JobTimeoutError(timeoutMs);
        context.abort(error);
        this.parts.events.emit('job.timeout', this.parts.workerId, { job, timeoutMs });
        reject(error);
      });
      answer.then(
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

const isThenable = (answer: unknown): answer is PromiseLike<unknown> =>
  typeof (answer as PromiseLike<unknown> | null | undefined)?.then === 'function';

const isLeftBehind = (outcome: Outcome): boolean =>
  'error' in outcome && (outcome.error instanceof JobTimeoutError || outcome.error instanceof LeaseLostError);

const unknownTask = (task: string): UnknownTaskError =>
  new UnknownTaskError(
    `Expected a handler for task "${task}" in this process, got none. Register one with @Task("${task}"), or set ` +
      "unknownTasks to 'leave'.",
  );
