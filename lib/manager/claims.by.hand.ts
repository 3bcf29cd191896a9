// Claims that callers of getJobs hold: their settles, their renewal, and how an operator takes one away.
import type { Outcome } from '../interfaces/claim.interface.js';
import type { ClaimedJob, CompleteOptions, Job, SettleReport } from '../interfaces/job.interface.js';
import type { ManagerSettings } from '../interfaces/jobs-options.interface.js';
import {
  InvalidArgumentError,
  InvalidStatusError,
  JobHeldError,
  JobNotFoundError,
  LeaseExpiredError,
  RevisionConflictError,
  WrongOwnerError,
} from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import { toDate } from '../storage/row.types.js';
import * as statements from '../storage/statements/claims-by-hand.js';
import { check } from '../validation.js';
import { rules } from '../validation.rules.js';
import { pause } from '../timing.js';
import { callOptions, checkWorkerId, claimedJobs } from './arguments.js';
import { exactJson } from './exact.json.js';
import type { JobInspector } from './job.inspector.js';
import type { ClaimEnds } from './claim.ends.js';
import type { JobSettlement } from './job.settlement.js';
import { retryOnContention, retryUntilKnown } from '../storage/retry.js';
import { byHand } from './worker.registry.js';

const MAX_PAUSE_MS = 1_000;

export class ClaimsByHand {
  constructor(
    private readonly database: Database,
    private readonly settings: ManagerSettings,
    private readonly settlement: JobSettlement,
    private readonly ends: ClaimEnds,
    private readonly inspector: JobInspector,
  ) {}

  /** Settles each job with the outcome that `outcomeOf` gives it. @throws InvalidWorkerIdError, InvalidArgumentError */
  async settle(
    workerId: string,
    executionTimeMs: number,
    given: ClaimedJob[],
    outcomeOf: (job: ClaimedJob, index: number) => Outcome,
  ): Promise<SettleReport> {
    checkWorkerId(workerId);
    check({ executionTimeMs: [executionTimeMs, rules.duration], jobs: [given, claimedJobs] });
    const jobs = [...given];
    if (!jobs.length) return { settled: [], lost: [] };
    const requests = jobs.map((job, index) => ({ job, outcome: outcomeOf(job, index), executionTimeMs }));
    const claimer = byHand(workerId, this.settings.lockTimeoutMs);
    const settle = (repeated: boolean) => this.settlement.settle(claimer, requests, { repeated });
    const { results: settled, late } = await retryUntilKnown((repeated) =>
      retryOnContention(() => settle(repeated), this.database.isBound),
    );
    const results = [...settled, ...((await late) ?? [])];
    const lost = new Set(results.filter(({ status }) => status === 'lost').map(({ job }) => job));
    return { settled: jobs.filter((job) => !lost.has(job)), lost: [...lost] };
  }

  /** Renews the claim; tries again for a while where another session holds the job's row. */
  async extend(workerId: string, jobId: string): Promise<Date> {
    for (let pauseMs = 5; ; pauseMs *= 2) {
      const [row] = await this.database.run(statements.extendLease, [workerId, jobId]);
      if (row?.expires_at) return toDate(row.expires_at);
      if (!row) throw await this.notClaimed(jobId);
      if (row.locked_by === null) throw new InvalidStatusError(jobId, row.status, 'claimed');
      if (row.locked_by !== workerId) throw new WrongOwnerError(jobId, row.locked_by, workerId);
      if (!row.by_hand)
        throw new InvalidStatusError(jobId, 'held by a pool, which renews its lease itself', 'claimed by hand');
      if (row.cancel_requested) throw new InvalidStatusError(jobId, cancelledBy(row.cancel_reason), 'claimed');
      if (row.expired) throw new LeaseExpiredError(jobId);
      if (pauseMs > MAX_PAUSE_MS) throw new JobHeldError([jobId]);
      await pause(pauseMs);
    }
  }

  async revoke(jobId: string, revision: number): Promise<Job> {
    const found = await this.database.run(statements.findClaimAt, [jobId, revision]);
    const ended = await this.ends.end(found, 'revoked', 'lease revoked');
    const job = await this.inspector.find(jobId);
    if (ended.length && job) return job;
    if (!job) throw new JobNotFoundError(jobId);
    if (job.status !== 'running') throw new InvalidStatusError(jobId, job.status, 'running');
    throw new RevisionConflictError(jobId, revision, job.revision);
  }

  private async notClaimed(jobId: string): Promise<Error> {
    const job = await this.inspector.find(jobId);
    return job ? new InvalidStatusError(jobId, job.status, 'claimed') : new JobNotFoundError(jobId);
  }
}

const cancelledBy = (reason: string | null): string => `asked to cancel${reason === null ? '' : ` (${reason})`}`;

/** The results that completeJobs is given, as JSON text, job by job; null: none. @throws InvalidArgumentError */
export function resultsByHand(jobs: ClaimedJob[], options: CompleteOptions): (string | null)[] {
  check({}, [callOptions.completeJobs, options]);
  const { results } = options;
  if (!results) return [];
  if (results.length !== jobs.length) {
    throw new InvalidArgumentError([
      `Expected a result for each of the ${jobs.length} jobs, got ${results.length}. Use null where there is none.`,
    ]);
  }
  return results.map((result, index) => exactJson(`results[${index}]`, result) ?? null);
}
