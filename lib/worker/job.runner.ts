// Runs one job and always answers with an Outcome: whatever the handler does, the worker goes on.
import type { Claimer, Outcome } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { WorkerSettings } from '../interfaces/jobs-options.interface.js';
import type { PayloadSchema } from '../interfaces/task.interface.js';
import { JobTimeoutError, ShutdownError, UnknownTaskError } from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import type { PayloadValidator } from '../manager/payload.validator.js';
import type { TaskDefinition, TaskRegistry } from '../manager/task.registry.js';
import { withReason } from '../storage/database.errors.js';
import { openScope } from '../monitoring/async.scope.js';
import type { JobEvents } from '../monitoring/job.events.js';
import { BatchRunner } from './batch.runner.js';
import { BatchedAttempt } from './batched.attempt.js';
import { Deadlines, type Deadline } from './deadlines.js';
import { SwapList } from './swap.list.js';
import { JobContext } from './job.context.js';
import { ended, isVerdict, readReturned, readThrown, type Attempt, type DelayOf, type Ended } from './outcome.js';
import { RunningAttempt } from './running.attempt.js';
import { TransactionalRun } from './transactional.run.js';

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
  /** Hears of each try to begin a transaction; null: it has begun. */
  onBegin?: (error: unknown) => void;
}

export class JobRunner {
  private readonly deadlines = new Deadlines();
  private readonly running = new SwapList<RunningAttempt>();
  private readonly transactional: TransactionalRun;
  private readonly batches: BatchRunner;

  constructor(private readonly parts: JobRunnerParts) {
    this.transactional = new TransactionalRun(parts);
    const { deadlines, running, transactional } = this;
    this.batches = new BatchRunner(parts, { deadlines, running, transactional });
  }

  /**
   * Never rejects. Resolves when the handler, and all that the library does for it, has ended or has run out of its time.
   * Everything of the attempt runs in an async context of its own.
   */
  run(job: ClaimedJob): Promise<Attempt> {
    const scope = openScope();
    return scope.runInAsyncScope(() =>
      this.begin(new RunningAttempt(job, this.parts.jobs, this.parts.workerId, scope)),
    );
  }

  /** Runs jobs of one task by one call of its handler, which takes many. Never rejects. */
  async runBatch(jobs: ClaimedJob[]): Promise<Attempt[]> {
    const definition = this.parts.tasks.get(jobs[0]!.task);
    return definition?.options.batch
      ? this.batches.run(jobs, definition)
      : Promise.all(jobs.map((job) => this.run(job)));
  }

  /** Aborts the signal of one running job, or of one claim of it. */
  abort(jobId: string, reason: unknown, fence?: string): void {
    for (const running of this.running.all()) {
      if (running.job.id === jobId && (fence === undefined || running.job.fence === fence)) running.abort(reason);
    }
  }

  abortAll(reasonOf: (job: ClaimedJob) => unknown): void {
    for (const running of this.running.all()) running.abort(reasonOf(running.job));
  }

  /** What the handlers of batches have decided of single jobs; the pool does not wait for their end any longer. */
  takeDecided(): Attempt[] {
    return this.running.all().flatMap((running) => (running instanceof BatchedAttempt ? (running.take() ?? []) : []));
  }

  isRunning(jobId: string): boolean {
    return this.running.all().some(({ job }) => job.id === jobId);
  }

  /** Cuts the transactions of attempts that were left behind: they would keep their connections, and whatever closes those. */
  async stop(): Promise<void> {
    this.deadlines.clear();
    await this.transactional.stop();
  }

  private begin(running: RunningAttempt): Promise<Attempt> {
    const startedAt = performance.now();
    const { job } = running;
    const definition = this.parts.tasks.get(job.task);
    this.running.add(running);
    if (definition && !definition.schema && !definition.options.transactional) {
      return this.attempt(running, definition, job.payload, startedAt);
    }
    return this.prepareAndRun(running, definition, startedAt).finally(() => this.running.delete(running));
  }

  private async prepareAndRun(
    running: RunningAttempt,
    definition: TaskDefinition | undefined,
    startedAt: number,
  ): Promise<Attempt> {
    const { job } = running;
    if (!definition) return ended(job, { kind: 'permanent', error: unknownTask(job.task) }, startedAt);
    let { payload } = job;
    if (definition.schema) {
      const checked = await this.check(definition.schema, job);
      if ('error' in checked) return ended(job, { kind: 'permanent', error: checked.error }, startedAt);
      payload = checked.payload;
    }
    if (!definition.options.transactional) return this.attempt(running, definition, payload, startedAt);
    return this.transactional.run(running, startedAt, {
      attempt: () => this.attempt(running, definition, payload, startedAt),
      readFailure: (error) => this.readFailure(error, running, definition),
      delayOf: this.delayOf(job, definition),
    });
  }

  /** Calls the handler. One promise and a few closures for each job: at this rate, what is allocated is what costs. */
  private attempt(
    running: RunningAttempt,
    definition: TaskDefinition,
    payload: unknown,
    startedAt: number,
  ): Promise<Ended> {
    const { job } = running;
    const context = new JobContext(job, this.parts.jobs, this.parts.workerId, running);
    return new Promise((resolve) => {
      let deadline: Deadline | null = null;
      let over = false;
      const end = (outcome: Outcome, thrown: boolean): void => {
        over = true;
        if (deadline) this.deadlines.remove(deadline);
        const attempt = ended(job, outcome, startedAt, thrown);
        if (outcome.kind === 'partial' || running.isUnfinished) {
          return resolve(this.finish(running, definition, attempt, startedAt));
        }
        this.close(running);
        resolve(attempt);
      };
      // What a handler does after its time is over goes nowhere, rejections included.
      const fail = (error: unknown): void => {
        if (!over) end(this.readFailure(error, running, definition), true);
      };
      const answer = (value: unknown): void => {
        if (over) return;
        if (isVerdict(value)) return fail(value);
        try {
          end(this.readAnswer(value, job, definition), false);
        } catch (error) {
          fail(error);
        }
      };
      try {
        const returned = definition.handler(payload, context);
        if (!isThenable(returned)) return answer(returned);
        deadline = this.limitTime(running, definition, fail);
        returned.then(answer, fail);
      } catch (error) {
        fail(error);
      }
    });
  }

  private limitTime(running: RunningAttempt, definition: TaskDefinition, fail: (error: Error) => void): Deadline {
    const timeoutMs = this.timeoutOf(running, definition);
    return this.deadlines.add(timeoutMs, () =>
      running.scope.runInAsyncScope(fail, null, this.expire(running, timeoutMs)),
    );
  }

  private expire(running: RunningAttempt, timeoutMs: number): JobTimeoutError {
    const { job } = running;
    const error = new JobTimeoutError(timeoutMs);
    running.abort(error);
    this.parts.events.emit('job.timeout', this.parts.workerId, { job, timeoutMs });
    return error;
  }

  private timeoutOf({ job }: RunningAttempt, definition: TaskDefinition): number {
    return job.timeoutMs ?? definition.options.timeoutMs ?? this.parts.options.timeoutMs;
  }

  /**
   * The handler has ended, but steps, or what it has said last, are under way: they belong to this attempt, and must not go
   * on beside the next one. Then what they know is added to the outcome.
   */
  private async finish(
    running: RunningAttempt,
    definition: TaskDefinition,
    attempt: Ended,
    startedAt: number,
  ): Promise<Ended> {
    const timeoutMs = this.timeoutOf(running, definition);
    const leftMs = timeoutMs - (performance.now() - startedAt);
    const late = attempt.thrown
      ? await running.endEarly(leftMs)
      : await running.ended(leftMs, () => this.expire(running, timeoutMs));
    const failure = late ?? running.unheardFailure();
    try {
      if (attempt.thrown) return attempt;
      if (failure) throw failure.error;
      return await this.complete(running, attempt);
    } catch (error) {
      return { ...attempt, outcome: this.readFailure(error, running, definition), thrown: true };
    } finally {
      await running.written();
      this.close(running);
    }
  }

  private async complete(running: RunningAttempt, attempt: Ended): Promise<Ended> {
    const { outcome, job } = attempt;
    if (outcome.kind !== 'partial') return attempt;
    const { partialResults, problem } = await running.complete(outcome.partialResults);
    if (problem) this.parts.onError(problem, `task ${job.task}, job ${job.id}`);
    return { ...attempt, outcome: { ...outcome, partialResults } };
  }

  private close(running: RunningAttempt): void {
    running.close();
    this.running.delete(running);
  }

  private readFailure(error: unknown, running: RunningAttempt, definition: TaskDefinition): Outcome {
    if (running.abortReason instanceof ShutdownError) return { kind: 'released' };
    const reason = definition.options.transactional ? withReason(error) : error;
    return readThrown(reason, this.delayOf(running.job, definition));
  }

  private readAnswer(returned: unknown, job: ClaimedJob, definition: TaskDefinition): Outcome {
    const { outcome, problem } = readReturned(returned, this.delayOf(job, definition));
    if (problem) this.parts.onError(problem, `task ${job.task}, job ${job.id}`);
    return outcome;
  }

  private delayOf(job: ClaimedJob, definition: TaskDefinition): DelayOf {
    return (error) => this.parts.jobs.engine.settlement.retryDelayMs(job, error, definition.options.retry);
  }

  /** What was stored before a release may not satisfy the schema after it, and a retry would fail in the same way. */
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

const isThenable = (answer: unknown): answer is PromiseLike<unknown> =>
  typeof (answer as PromiseLike<unknown> | null | undefined)?.then === 'function';

const unknownTask = (task: string): UnknownTaskError =>
  new UnknownTaskError(
    `Expected a handler for task "${task}" in this process, got none. Register one with @Task("${task}"), or set ` +
      "unknownTasks to 'leave'.",
  );
