// Runs one job and always answers with an Outcome: whatever the handler does, the worker goes on.
import type { Claimer, Outcome, SettleRequest, SettleResult } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { WorkerSettings } from '../interfaces/jobs-options.interface.js';
import type { PayloadSchema } from '../interfaces/task.interface.js';
import { JobTimeoutError, LeaseLostError, ShutdownError, UnknownTaskError } from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import type { JobTransaction } from '../manager/job.transaction.js';
import { withReason } from '../storage/database.errors.js';
import type { PayloadValidator } from '../manager/payload.validator.js';
import type { TaskDefinition, TaskRegistry } from '../manager/task.registry.js';
import type { JobEvents } from '../monitoring/job.events.js';
import { Deadlines, type Deadline } from './deadlines.js';
import { InProgress } from './in.progress.js';
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
  /** In whose name attempts are settled. */
  claimer: () => Claimer;
  onError: (error: unknown, context: string) => void;
}

/** An attempt that has ended. */
export interface Attempt extends SettleRequest {
  /** What its own transaction has made of the job; null: it has yet to be settled. */
  settled: SettleResult | null;
}

/** An attempt whose handler has ended: by an answer, or by throwing. */
type Ended = Attempt & { thrown: boolean };

export class JobRunner {
  private readonly deadlines = new Deadlines();
  private readonly contexts = new InProgress<JobContext>();

  constructor(private readonly parts: JobRunnerParts) {}

  /** Never rejects. Resolves when the handler has ended, or has run out of its time. */
  run(job: ClaimedJob): Promise<Attempt> {
    const startedAt = performance.now();
    const definition = this.parts.tasks.get(job.task);
    if (definition && !definition.schema && !definition.options.transactional) {
      return this.attempt(job, definition, job.payload, null, startedAt);
    }
    return this.prepareAndRun(job, definition, startedAt);
  }

  /** Aborts the signal of one running job, or of one claim of it. */
  abort(jobId: string, reason: unknown, fence?: string): void {
    for (const context of this.contexts.all()) {
      if (context.job.id === jobId && (fence === undefined || context.job.fence === fence)) context.abort(reason);
    }
  }

  isRunning(jobId: string): boolean {
    return this.contexts.all().some(({ job }) => job.id === jobId);
  }

  abortAll(reasonOf: (job: ClaimedJob) => unknown): void {
    for (const context of this.contexts.all()) context.abort(reasonOf(context.job));
  }

  stop(): void {
    this.deadlines.clear();
  }

  private async prepareAndRun(
    job: ClaimedJob,
    definition: TaskDefinition | undefined,
    startedAt: number,
  ): Promise<Attempt> {
    if (!definition) return ended(job, { kind: 'permanent', error: unknownTask(job.task) }, startedAt);
    let { payload } = job;
    if (definition.schema) {
      const checked = await this.check(definition.schema, job);
      if ('error' in checked) return ended(job, { kind: 'permanent', error: checked.error }, startedAt);
      payload = checked.payload;
    }
    if (definition.options.transactional) return this.runInTransaction(job, definition, payload, startedAt);
    return this.attempt(job, definition, payload, null, startedAt);
  }

  /** What the handler writes through `ctx.manager` is committed together with the job's settling, or not at all. */
  private async runInTransaction(
    job: ClaimedJob,
    definition: TaskDefinition,
    payload: unknown,
    startedAt: number,
  ): Promise<Attempt> {
    let transaction: JobTransaction;
    try {
      transaction = await this.parts.jobs.beginTransaction();
    } catch (error) {
      // Nothing has begun: the attempt does not count.
      this.parts.onError(error, `beginning the transaction of job ${job.id}`);
      return ended(job, { kind: 'released' }, startedAt);
    }
    const attempt = await this.attempt(job, definition, payload, transaction, startedAt);
    if (!attempt.thrown) {
      const delayOf = this.delayOf(job, definition);
      return settleInside(transaction, this.parts.claimer(), attempt, delayOf);
    }
    // A handler that was left behind must not go on writing in a transaction that ends without it.
    await (isLeftBehind(attempt.outcome) ? transaction.destroy() : transaction.rollback());
    return attempt;
  }

  /** Calls the handler. One promise and a few closures for each job: at this rate, what is allocated is what costs. */
  private attempt(
    job: ClaimedJob,
    definition: TaskDefinition,
    payload: unknown,
    transaction: JobTransaction | null,
    startedAt: number,
  ): Promise<Ended> {
    const context = new JobContext(job, this.parts.jobs, this.parts.workerId, transaction);
    this.contexts.add(context);
    return new Promise((resolve) => {
      let deadline: Deadline | null = null;
      let over = false;
      const end = (outcome: Outcome, thrown: boolean): void => {
        over = true;
        if (deadline) this.deadlines.remove(deadline);
        const attempt = ended(job, outcome, startedAt, thrown);
        const unfinished = outcome.kind === 'partial' || context.isWriting;
        if (!unfinished) this.contexts.delete(context);
        resolve(unfinished ? this.finish(context, definition, attempt) : attempt);
      };
      // What a handler does after its time is over goes nowhere, rejections included.
      const fail = (error: unknown): void => {
        if (!over) end(this.readFailure(error, context, definition), true);
      };
      const answer = (value: unknown): void => {
        if (over) return;
        try {
          end(this.readAnswer(value, job, definition), false);
        } catch (error) {
          fail(error);
        }
      };
      try {
        const returned = definition.handler(payload, context);
        if (!isThenable(returned)) return answer(returned);
        deadline = this.limitTime(context, definition, fail);
        returned.then(answer, fail);
      } catch (error) {
        fail(error);
      }
    });
  }

  private limitTime(context: JobContext, definition: TaskDefinition, fail: (error: Error) => void): Deadline {
    const { job } = context;
    const timeoutMs = job.timeoutMs ?? definition.options.timeoutMs ?? this.parts.options.timeoutMs;
    return this.deadlines.add(timeoutMs, () => {
      const error = new JobTimeoutError(timeoutMs);
      context.abort(error);
      this.parts.events.emit('job.timeout', this.parts.workerId, { job, timeoutMs });
      fail(error);
    });
  }

  /** What the handler has said last is on its way to the database, or steps belong to what it leaves behind. */
  private async finish(context: JobContext, definition: TaskDefinition, attempt: Ended): Promise<Ended> {
    const { outcome } = attempt;
    try {
      if (outcome.kind !== 'partial') return attempt;
      return { ...attempt, outcome: { ...outcome, partialResults: await context.withSteps(outcome.partialResults) } };
    } catch (error) {
      return { ...attempt, outcome: this.readFailure(error, context, definition), thrown: true };
    } finally {
      await context.written();
      this.contexts.delete(context);
    }
  }

  private readFailure(error: unknown, context: JobContext, definition: TaskDefinition): Outcome {
    if (context.abortReason instanceof ShutdownError) return { kind: 'released' };
    const reason = definition.options.transactional ? withReason(error) : error;
    return readThrown(reason, this.delayOf(context.job, definition));
  }

  private readAnswer(returned: unknown, job: ClaimedJob, definition: TaskDefinition): Outcome {
    const { outcome, problem } = readReturned(returned, this.delayOf(job, definition));
    if (problem) this.parts.onError(problem, `task ${job.task}, job ${job.id}`);
    return outcome;
  }

  private delayOf(job: ClaimedJob, definition: TaskDefinition): DelayOf {
    return (error) => this.parts.jobs.settlement.retryDelayMs(job, error, definition.options.retry);
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
}

function ended(job: ClaimedJob, outcome: Outcome, startedAt: number, thrown = false): Ended {
  return { job, outcome, executionTimeMs: performance.now() - startedAt, settled: null, thrown };
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
