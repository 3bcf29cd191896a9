// One job, here and now, without a pool: claim, run, settle.
import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import type { Claimer, SettleResult } from '../interfaces/claim.interface.js';
import type { JobEventFields, JobEventType } from '../interfaces/event.interface.js';
import type { ClaimedJob, WorkedOnce } from '../interfaces/job.interface.js';
import { LeaseLostError, ShutdownError, StoppedError } from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import { byHand } from '../manager/worker.registry.js';
import { settledWithin } from '../timing.js';
import { JobRunner, type JobRunnerParts } from './job.runner.js';
import type { Attempt } from './outcome.js';
import { OutcomeBatcher } from './outcome.batcher.js';

export type SingleRunParts = Omit<JobRunnerParts, 'workerId' | 'claimer' | 'onError'>;

/** Short, and renewed while the job runs: if this process dies, others need not wait for long. */
const LEASE_MS = 30_000;
const RENEW_MS = 10_000;
/** Handlers whose signal was aborted get so long to notice, and their outcomes to be written. */
const CLOSE_MS = 3_000;

/** What runs now: how to end it. */
interface Work {
  runner: JobRunner;
  batcher: OutcomeBatcher;
  ended: Promise<unknown>;
}

/** What `JobManager.workOnce` does; the wiring hands it in, because the manager knows no handlers. */
export class SingleRun {
  private prepared: Promise<void> | null = null;
  private readonly underWay = new Set<Work>();
  private closing: Promise<void> | null = null;

  constructor(private readonly parts: SingleRunParts) {}

  emit<T extends JobEventType>(type: T, fields: JobEventFields[T]): void {
    this.parts.events.emit(type, null, fields);
  }

  /** @throws StoppedError once closed */
  async workOnce(queues: string[] | null): Promise<WorkedOnce | null> {
    const { jobs, tasks } = this.parts;
    this.assertOpen();
    const workerId = `${hostname().slice(0, 12)}-once-${randomUUID()}`;
    const claim = { ...byHand(workerId, LEASE_MS), taskIdentifiers: [...tasks.names()], forbiddenFlags: null };
    const [job] = await jobs.engine.exactClaims.claim(claim, queues, 1);
    if (!job) return null;
    if (!this.closing) return this.work(job, workerId);
    await jobs.engine.settlement.release(byHand(workerId, LEASE_MS), [job]);
    throw closed();
  }

  /** Runs a job that `workerId` has claimed, and settles it. Never rejects because of the handler. */
  async work(job: ClaimedJob, workerId: string): Promise<WorkedOnce> {
    const { jobs, events } = this.parts;
    const onError = (error: unknown, context: string): void =>
      events.emit('worker.error', workerId, { error, context });
    const claimer = (): Claimer => byHand(workerId, LEASE_MS);
    const runner = new JobRunner({ ...this.parts, workerId, claimer, onError });
    const renewal = setInterval(() => void renew(jobs, runner, job, workerId), RENEW_MS);
    let result: SettleResult | null = null;
    const batcher = new OutcomeBatcher(jobs.engine, events, claimer, (settled) => (result = settled));
    // A turn later: a handler that closes the manager at once must find itself among what is under way.
    const ended = Promise.resolve()
      .then(() => this.runAndSettle(job, workerId, runner, batcher))
      .then((attempt) => this.report(attempt, result));
    const work = { runner, batcher, ended };
    this.underWay.add(work);
    try {
      return await ended;
    } finally {
      this.underWay.delete(work);
      clearInterval(renewal);
      await runner.stop();
    }
  }

  /**
   * Takes nothing more, and aborts what runs, so that its job is given back. What does not end within 3 s is left to its
   * lease.
   */
  close(): Promise<void> {
    return (this.closing ??= this.endAll());
  }

  private async endAll(): Promise<void> {
    const works = [...this.underWay];
    for (const { runner } of works) runner.abortAll(() => new ShutdownError('The application is closing.'));
    if (await settledWithin(CLOSE_MS, Promise.allSettled(works.map(({ ended }) => ended)))) return;
    for (const { batcher } of works) batcher.giveUp();
    await Promise.all(works.map(({ runner }) => runner.stop()));
  }

  private async runAndSettle(
    job: ClaimedJob,
    workerId: string,
    runner: JobRunner,
    batcher: OutcomeBatcher,
  ): Promise<Attempt> {
    const { events, tasks } = this.parts;
    if (tasks.get(job.task)?.options.transactional) await this.prepareTransactions(job, workerId);
    events.emit('job.started', workerId, { job });
    const isBatch = tasks.get(job.task)?.options.batch;
    const [attempt] = isBatch ? await runner.runBatch([job]) : [await runner.run(job)];
    if (attempt!.settled) batcher.announce([attempt!], [attempt!.settled]);
    else batcher.add(attempt!);
    await batcher.flush();
    return attempt!;
  }

  private async report(attempt: Attempt, result: SettleResult | null): Promise<WorkedOnce> {
    const { job, outcome } = attempt;
    if (!result) throw closed();
    if (result.status === 'lost') return { job, error: new LeaseLostError(job.id) };
    const found = (await this.parts.jobs.findJob(job.id)) ?? job;
    return 'error' in outcome ? { job: found, error: outcome.error } : { job: found };
  }

  /** Where that fails, the job is given back, and the next call tries again. */
  private async prepareTransactions(job: ClaimedJob, workerId: string): Promise<void> {
    const { jobs } = this.parts;
    this.prepared ??= jobs.engine.transactions.prepare(1);
    try {
      await this.prepared;
    } catch (error) {
      this.prepared = null;
      await jobs.engine.settlement.release(byHand(workerId, LEASE_MS), [job]).catch(() => undefined);
      throw error;
    }
  }

  private assertOpen(): void {
    if (this.closing) throw closed();
  }
}

const closed = (): StoppedError => new StoppedError('Expected an open JobManager, got one that was closed.');

/** A job that was not renewed in time is lost. */
async function renew(jobs: JobManager, runner: JobRunner, job: ClaimedJob, workerId: string): Promise<void> {
  await jobs.extendLease(workerId, job.id).catch((error: unknown) => {
    if ((error as { code?: string }).code?.startsWith('ERR_JOBS_DATABASE')) return;
    runner.abort(job.id, new LeaseLostError(job.id));
  });
}
