// Runs the jobs of a batch by one call of their handler, and always answers with an attempt for each.
import type { AsyncResource } from 'node:async_hooks';
import type { Outcome } from '../interfaces/claim.interface.js';
import type { ClaimedJob } from '../interfaces/job.interface.js';
import type { WorkerSettings } from '../interfaces/jobs-options.interface.js';
import { CancelJob, JobTimeoutError, LeaseLostError, ShutdownError } from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import type { PayloadValidator } from '../manager/payload.validator.js';
import type { TaskDefinition } from '../manager/task.registry.js';
import { openScope } from '../monitoring/async.scope.js';
import type { JobEvents } from '../monitoring/job.events.js';
import { withReason } from '../storage/database.errors.js';
import { BatchContext } from './batch.context.js';
import { readResults } from './batch.results.js';
import type { BatchedAttempt } from './batched.attempt.js';
import type { Deadline, Deadlines } from './deadlines.js';
import { groupOf } from './gathering.batch.js';
import { ended, readReturned, readThrown, type Attempt, type DelayOf, type Ended } from './outcome.js';
import type { RunningAttempt } from './running.attempt.js';
import { RunningBatch } from './running.batch.js';
import type { SwapList } from './swap.list.js';
import type { TransactionalRun } from './transactional.run.js';

interface BatchRunnerParts {
  jobs: JobManager;
  validator: PayloadValidator;
  events: JobEvents;
  options: Pick<WorkerSettings, 'timeoutMs'>;
  workerId: string;
  onError: (error: unknown, context: string) => void;
}

/** What it shares with the runner of single jobs. */
interface Shared {
  deadlines: Deadlines;
  running: SwapList<RunningAttempt>;
  transactional: TransactionalRun;
}

/** One call of a handler. */
interface Call {
  batch: RunningBatch;
  definition: TaskDefinition;
  startedAt: number;
}

export class BatchRunner {
  constructor(
    private readonly parts: BatchRunnerParts,
    private readonly shared: Shared,
  ) {}

  /** Never rejects. The jobs are of one task, which has batches. Everything of the batch runs in an async context of its own. */
  run(jobs: ClaimedJob[], definition: TaskDefinition): Promise<Attempt[]> {
    const scope = openScope();
    return scope.runInAsyncScope(() => this.begin(jobs, definition, scope));
  }

  private async begin(jobs: ClaimedJob[], definition: TaskDefinition, scope: AsyncResource): Promise<Attempt[]> {
    const startedAt = performance.now();
    const refused: Attempt[] = [];
    // The checked payloads are for the handler; the pool settles its own records.
    const fit: ClaimedJob[] = [];
    const handed: ClaimedJob[] = [];
    for (const job of jobs) {
      const checked = await this.check(job, definition);
      if ('outcome' in checked) {
        refused.push(ended(job, checked.outcome, startedAt, true));
        continue;
      }
      fit.push(job);
      handed.push({ ...job, payload: checked.payload });
    }
    return fit.length ? [...refused, ...(await this.runFit(fit, handed, { definition, startedAt }, scope))] : refused;
  }

  private async runFit(
    jobs: ClaimedJob[],
    handed: ClaimedJob[],
    of: Omit<Call, 'batch'>,
    scope: AsyncResource,
  ): Promise<Attempt[]> {
    const { definition } = of;
    const isTransactional = definition.options.transactional === true;
    const batch: RunningBatch = new RunningBatch(jobs, this.parts.jobs, this.parts.workerId, scope, isTransactional, {
      returned: (value, { job }) => this.readReturned(value, job, definition),
      thrown: (error, attempt): Outcome => this.readThrown(error, attempt, batch, definition),
    });
    const call: Call = { batch, ...of };
    for (const attempt of batch.attempts) this.shared.running.add(attempt);
    try {
      return await (isTransactional ? this.runTransaction(call, handed) : this.attempt(call, handed));
    } finally {
      for (const attempt of batch.attempts) this.shared.running.delete(attempt);
    }
  }

  private runTransaction(call: Call, handed: ClaimedJob[]): Promise<Attempt[]> {
    const { batch, definition, startedAt } = call;
    return this.shared.transactional.runAll(batch.whole, {
      attempt: () => this.attempt(call, handed),
      endAll: (outcomeBy) =>
        batch.attempts.map((attempt) => {
          const outcome = outcomeBy((error) => this.readThrown(error, attempt, batch, definition));
          return ended(attempt.job, outcome, startedAt);
        }),
      delayOf: (job) => this.delayOf(job, definition),
    });
  }

  /** What was stored before a release may not satisfy the schema after it: such a job fails alone. */
  private async check(
    job: ClaimedJob,
    definition: TaskDefinition,
  ): Promise<{ payload: unknown } | { outcome: Outcome }> {
    try {
      groupOf(job, definition.options.batch!);
    } catch (error) {
      return { outcome: readThrown(error, this.delayOf(job, definition)) };
    }
    if (!definition.schema) return { payload: job.payload };
    try {
      return { payload: await this.parts.validator.validate(job.task, definition.schema, job.payload) };
    } catch (error) {
      return { outcome: { kind: 'permanent', error } };
    }
  }

  /** Calls the handler, and waits for its end or the end of its time. */
  private async attempt(call: Call, handed: ClaimedJob[]): Promise<Ended[]> {
    const { batch, definition } = call;
    const deadlines: Deadline[] = [];
    try {
      const returned: unknown = definition.handler(handed, new BatchContext(batch));
      const expired = this.limitTime(call, deadlines);
      const answer = await Promise.race([Promise.resolve(returned).then((value) => ({ value })), expired]);
      if (answer) this.readAnswer(answer.value, call);
    } catch (error) {
      this.failUndecided(error, call);
    } finally {
      for (const deadline of deadlines) this.shared.deadlines.remove(deadline);
    }
    return this.finish(call);
  }

  /** Each job has its own time. Resolves when all of them are over. */
  private limitTime({ batch, definition }: Call, deadlines: Deadline[]): Promise<null> {
    const times = new Map<number, BatchedAttempt[]>();
    for (const attempt of batch.attempts) {
      const ms = attempt.job.timeoutMs ?? definition.options.timeoutMs ?? this.parts.options.timeoutMs;
      times.set(ms, [...(times.get(ms) ?? []), attempt]);
    }
    const last = Math.max(...times.keys());
    return new Promise((resolve) => {
      for (const [ms, attempts] of times) {
        const expire = (): void => {
          this.expire(attempts, ms, batch, definition);
          if (ms === last) resolve(null);
        };
        deadlines.push(this.shared.deadlines.add(ms, () => batch.whole.scope.runInAsyncScope(expire)));
      }
    });
  }

  private expire(attempts: BatchedAttempt[], timeoutMs: number, batch: RunningBatch, definition: TaskDefinition): void {
    for (const attempt of attempts.filter(({ outcome }) => outcome === null)) {
      const error = new JobTimeoutError(timeoutMs);
      attempt.decide(this.readThrown(error, attempt, batch, definition), true);
      attempt.isFinal = true;
      attempt.abort(error);
      this.parts.events.emit('job.timeout', this.parts.workerId, { job: attempt.job, timeoutMs });
    }
    if (!batch.undecided.length) batch.whole.abort(new JobTimeoutError(timeoutMs));
  }

  private readAnswer(value: unknown, { batch }: Call): void {
    const { of, problem } = readResults(
      value,
      batch.attempts.map(({ job }) => job),
    );
    if (problem) this.report(problem, batch.whole.job);
    batch.attempts.forEach((attempt, index) => {
      if (attempt.outcome !== null) return;
      const result = of(attempt.job, index);
      if ('thrown' in result) batch.throw(attempt.job, result.thrown);
      else batch.return(attempt.job, result.returned);
    });
  }

  private failUndecided(error: unknown, { batch, definition }: Call): void {
    const isTransactional = definition.options.transactional === true;
    for (const attempt of isTransactional ? batch.attempts.filter(({ isFinal }) => !isFinal) : batch.undecided) {
      attempt.decide(this.readThrown(error, attempt, batch, definition), true);
    }
  }

  /** The handler has ended, but what it asked for last may be under way. Then nothing of the batch goes on. */
  private async finish(call: Call): Promise<Ended[]> {
    const { batch, startedAt } = call;
    await this.awaitChildren(call);
    await Promise.all(batch.attempts.map((attempt) => attempt.written()));
    for (const attempt of batch.attempts) {
      const failure = attempt.unheardFailure();
      if (failure) attempt.decide(this.readThrown(failure.error, attempt, batch, call.definition), true);
      attempt.close();
    }
    batch.whole.close();
    const left = batch.attempts.filter(({ isTaken }) => !isTaken);
    return left.map(({ job, outcome, thrown }) => ended(job, outcome!, startedAt, thrown));
  }

  /** Calls of a transaction's JobManager. */
  private async awaitChildren(call: Call): Promise<void> {
    const { batch, definition, startedAt } = call;
    if (!batch.whole.isUnfinished) return;
    const leftMs = (definition.options.timeoutMs ?? this.parts.options.timeoutMs) - (performance.now() - startedAt);
    const expired = new JobTimeoutError(definition.options.timeoutMs ?? this.parts.options.timeoutMs);
    const late = await batch.whole.ended(leftMs, () => batch.whole.abort(expired));
    const failure = late ?? batch.whole.unheardFailure();
    if (failure) this.failUndecided(failure.error, call);
  }

  private readReturned(value: unknown, job: ClaimedJob, definition: TaskDefinition): Outcome {
    const { outcome, problem } = readReturned(value, this.delayOf(job, definition));
    if (problem) this.report(problem, job);
    return outcome;
  }

  /** A job that had no part in the end of its transaction is given back, as all are when the pool stops. */
  private readThrown(
    error: unknown,
    attempt: BatchedAttempt,
    { whole }: RunningBatch,
    { options }: TaskDefinition,
  ): Outcome {
    if (attempt.abortReason instanceof ShutdownError) return { kind: 'released' };
    const isBystander = options.transactional && whole.isAborted && !attempt.isAborted;
    if (isBystander && isLoss(whole.abortReason)) return { kind: 'released' };
    const reason = options.transactional ? withReason(error) : error;
    return readThrown(reason, this.delayOf(attempt.job, { options }));
  }

  private delayOf(job: ClaimedJob, { options }: Pick<TaskDefinition, 'options'>): DelayOf {
    return (error) => this.parts.jobs.engine.settlement.retryDelayMs(job, error, options.retry);
  }

  private report(problem: Error, job: ClaimedJob): void {
    this.parts.onError(problem, `task ${job.task}, job ${job.id}`);
  }
}

const isLoss = (reason: unknown): boolean =>
  reason instanceof LeaseLostError || reason instanceof CancelJob || reason instanceof JobTimeoutError;
