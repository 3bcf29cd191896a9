// One job, here and now, without a pool: claim, run, settle.
import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import type { Claimer, SettleResult } from '../interfaces/claim.interface.js';
import type { ClaimedJob, WorkedOnce } from '../interfaces/job.interface.js';
import { LeaseLostError } from '../jobs.errors.js';
import type { JobManager } from '../manager/job.manager.js';
import { byHand } from '../manager/worker.registry.js';
import { type Attempt, JobRunner, type JobRunnerParts } from './job.runner.js';
import { OutcomeBatcher } from './outcome.batcher.js';

export type SingleRunParts = Omit<JobRunnerParts, 'workerId' | 'claimer' | 'onError'>;

/** Short, and renewed while the job runs: if this process dies, others need not wait for long. */
const LEASE_MS = 30_000;
const RENEW_MS = 10_000;

/** What `JobManager.workOnce` does; the wiring hands it in, because the manager knows no handlers. */
export class SingleRun {
  private prepared: Promise<void> | null = null;

  constructor(private readonly parts: SingleRunParts) {}

  async workOnce(queues: string[] | null): Promise<WorkedOnce | null> {
    const { jobs, tasks } = this.parts;
    const workerId = `${hostname().slice(0, 12)}-once-${randomUUID()}`;
    const claim = { ...byHand(workerId, LEASE_MS), taskIdentifiers: [...tasks.names()], forbiddenFlags: null };
    const [job] = await jobs.claims.claimExactly(claim, queues, 1);
    return job ? this.work(job, workerId) : null;
  }

  /** Runs a job that `workerId` has claimed, and settles it. Never rejects because of the handler. */
  async work(job: ClaimedJob, workerId: string): Promise<WorkedOnce> {
    const { jobs, events, tasks } = this.parts;
    const onError = (error: unknown, context: string): void =>
      events.emit('worker.error', workerId, { error, context });
    const claimer = (): Claimer => byHand(workerId, LEASE_MS);
    const runner = new JobRunner({ ...this.parts, workerId, claimer, onError });
    const renewal = setInterval(() => void renew(jobs, runner, job, workerId), RENEW_MS);
    try {
      if (tasks.get(job.task)?.options.transactional) await (this.prepared ??= jobs.prepareTransactions(1));
      events.emit('job.started', workerId, { job });
      const attempt = await runner.run(job);
      return await this.settle(attempt, workerId);
    } finally {
      clearInterval(renewal);
      runner.stop();
    }
  }

  private async settle(attempt: Attempt, workerId: string): Promise<WorkedOnce> {
    const { jobs, events } = this.parts;
    let result: SettleResult | null = attempt.settled;
    const claimer = byHand(workerId, LEASE_MS);
    const batcher = new OutcomeBatcher(
      jobs,
      events,
      () => claimer,
      (settled) => (result = settled),
    );
    if (attempt.settled) batcher.announce([attempt], [attempt.settled]);
    else batcher.add(attempt);
    await batcher.flush();
    const job = (await jobs.findJob(attempt.job.id)) ?? attempt.job;
    if (result?.status === 'lost') return { job, error: new LeaseLostError(job.id) };
    return 'error' in attempt.outcome ? { job, error: attempt.outcome.error } : { job };
  }
}

/** Whoever was slower than his lease has lost the job. */
async function renew(jobs: JobManager, runner: JobRunner, job: ClaimedJob, workerId: string): Promise<void> {
  await jobs.extendLease(workerId, job.id).catch((error: unknown) => {
    if ((error as { code?: string }).code?.startsWith('ERR_JOBS_DATABASE')) return;
    runner.abort(job.id, new LeaseLostError(job.id));
  });
}
