// Checked jobs become rows, in one statement where that is possible: plain jobs share one, job keys take their turns, and
// children are linked with their parents.
import type { AddedJob, QueryExecutor } from '../interfaces/job.interface.js';
import { DependencyCircleError, UnknownParentError, UnknownRateLimitError } from '../jobs.errors.js';
import type { Database, Statement } from '../storage/database.js';
import { isUniqueViolation, violates } from '../storage/database.errors.js';
import { isContention } from '../storage/sql.states.js';
import {
  addAlikeAndTell,
  addAlikeJobs,
  addAndTell,
  addJobs,
  addKeyedJobs,
  addWindowedJobs,
  findKeyOwners,
  findMissingLimits,
  findWindowJobs,
  type AddedRow,
} from '../storage/statements/add-jobs.js';
import { findCircleOf, findParents, keepParents, linkParents } from '../storage/statements/dependencies.js';
import { findJobs } from '../storage/statements/inspect-jobs.js';
import { circleOf, circleThrough } from './dependency.circles.js';
import { toJob } from './job.mapper.js';
import type { JobCipher } from './job.cipher.js';
import type { JobPromoter } from './job.promoter.js';
import type { PreparedJob } from './job.preparer.js';
import {
  CHUNK,
  describeGone,
  isKeyed,
  mayLink,
  needsRounds,
  pairsOf,
  parametersOf,
  parametersOfAlike,
  parentsOf,
  roundsOf,
  toAddedJob,
} from './prepared.jobs.js';
import { RateLimitWeightError } from './rate.errors.js';
import { readRefused } from './rate.limits.js';
import { inTermsOfDoubt } from '../storage/retry.js';

/** On whose connection, and how it waits for keys that others hold. */
export interface Insertion {
  executor?: QueryExecutor;
  /** A caller's transaction waits as long as its lock_timeout says. */
  patient: boolean;
  /** An earlier try may have gone through. */
  repeated: boolean;
  /** Collects the jobs that were replaced, and those behind whose keys the new ones wait. */
  others: Set<string>;
}

export class JobInserter {
  constructor(
    private readonly database: Database,
    private readonly promoter: JobPromoter,
    private readonly cipher: JobCipher | undefined,
  ) {}

  insertAll(jobs: PreparedJob[], children: PreparedJob[], how: Insertion): Promise<AddedJob[]> {
    if (children.length) return this.insertChildren(jobs, children, how);
    return jobs.some(needsRounds) ? this.insertKeyed(jobs, how) : this.insert(jobs, how.executor);
  }

  /** `told`: what to tell with it, for one statement alone. */
  async insert(jobs: PreparedJob[], executor?: QueryExecutor, told: string[] = []): Promise<AddedJob[]> {
    const statement = told.length ? addAndTell : addJobs;
    const added: AddedJob[] = [];
    for (let start = 0; start < jobs.length; start += CHUNK) {
      const chunk = jobs.slice(start, start + CHUNK);
      const rows =
        (await this.insertAlike(chunk, executor, told)) ??
        (await this.database.run(statement, [...parametersOf(chunk), ...told], executor));
      refuseMissing(rows);
      const now = Number((rows[0] as { now: number }).now);
      for (const job of chunk) added.push(toAddedJob(job, now));
    }
    return added;
  }

  /** Null where the jobs are not alike, or are there already: an add whose answer was lost is being repeated. */
  private async insertAlike(jobs: PreparedJob[], executor: QueryExecutor | undefined, told: string[]) {
    const alike = parametersOfAlike(jobs);
    if (!alike) return null;
    try {
      return await this.database.run(told.length ? addAlikeAndTell : addAlikeJobs, [...alike, ...told], executor);
    } catch (error) {
      if (executor || !isUniqueViolation(error)) throw error;
      return null;
    }
  }

  /**
   * Pairs of a child and a parent are states: a parent that ends meanwhile is found by the next look. What was read of the
   * parents before they were locked is a proposal. Those of jobs with a key are written where the key is taken.
   */
  private async insertChildren(jobs: PreparedJob[], children: PreparedJob[], how: Insertion): Promise<AddedJob[]> {
    const { executor } = how;
    const parents = parentsOf(children);
    const added = await this.insertKeyed(jobs, how);
    const linked = jobs.map((job, index) => ({ job, id: added[index]!.id })).filter(({ job, id }) => mayLink(job, id));
    const pairs = pairsOf(children.filter((child) => !isKeyed(child)));
    if (pairs[0].length) await this.database.run(linkParents, pairs, executor);
    await this.refuseUnknown(keepParents, parents, executor);
    // Those that others have added wait in rows that must not be held until a caller commits.
    await this.promoter.resolveFor(
      parents,
      linked.map(({ id }) => id),
      executor,
    );
    await this.refuseCircles(linked, executor);
    const stored = new Map(
      (
        await this.find(
          added.map(({ id }) => id),
          executor,
        )
      ).map((job) => [job.id, job]),
    );
    return added.map((job) => ({ ...job, ...stored.get(job.id), created: job.created }));
  }

  /** Jobs whose keys or windows occur twice in one call take turns, in its order. */
  private async insertKeyed(jobs: PreparedJob[], how: Insertion): Promise<AddedJob[]> {
    const added = new Map<PreparedJob, AddedJob>();
    const plain = jobs.filter((job) => !isKeyed(job));
    (await this.insert(plain, how.executor)).forEach((job, index) => added.set(plain[index] as PreparedJob, job));
    for (const round of roundsOf(jobs.filter(isKeyed))) {
      for (const [job, result] of await this.insertRound(round, how)) added.set(job, result);
    }
    return jobs.map((job) => added.get(job) as AddedJob);
  }

  private async insertRound(round: PreparedJob[], how: Insertion) {
    const { executor, patient, repeated, others } = how;
    const statement = round.some(({ row }) => row.window_key !== null) ? addWindowedJobs : addKeyedJobs;
    const rows = await this.database
      .run(statement, [...parametersOf(round), patient, repeated], executor)
      .catch((error: unknown) => {
        throw violates(error, 'no_job_waits_for_itself') ? new DependencyCircleError(circleOf(error)) : error;
      });
    refuseMissing(rows);
    for (const { replaced, behind } of rows) for (const id of [replaced, behind]) if (id !== null) others.add(id);
    return this.pair(round, rows, executor);
  }

  /** Keys may have kept older jobs, so each is read back. What is in the way of that makes no add look failed. */
  private async pair(round: PreparedJob[], rows: AddedRow[], executor?: QueryExecutor) {
    const ids = rows.map(({ id }) => id);
    const found = await this.find(ids, executor).catch((error: unknown): AddedJob[] => {
      if (executor) throw error;
      if (!rows.every(({ created }) => created)) throw isContention(error) ? error : inTermsOfDoubt(error);
      return round.map((job) => ({ ...toAddedJob(job, Date.now()), jobKey: job.row.job_key }));
    });
    const stored = new Map(found.map((job) => [job.id, job]));
    const byRequest = new Map(rows.map((row) => [row.requested, row]));
    return round.map((job): [PreparedJob, AddedJob] => {
      const row = byRequest.get(job.row.id) as AddedRow;
      const known = stored.get(row.id);
      // Another call of the transaction may have replaced it since; a window lasts longer than its job.
      if (!known) return [job, row.created ? toAddedJob(job, Date.now()) : describeGone(job, row.id)];
      return [job, { ...known, created: row.created }];
    });
  }

  /** Before anything is written. */
  async refuseAhead(jobs: PreparedJob[], children: PreparedJob[], executor: QueryExecutor): Promise<void> {
    const limits = [...new Set(jobs.flatMap(({ row }) => row.limits ?? []))];
    if (limits.length) refuseMissing(await this.database.run(findMissingLimits, [limits], executor));
    if (children.length) await this.refuseUnknown(findParents, parentsOf(children), executor);
  }

  /** Null where nothing of the call is stored. A key may have kept an older job, or a newer one may have replaced ours. */
  async findAgain(jobs: PreparedJob[]): Promise<AddedJob[] | null> {
    const known = new Map((await this.find(jobs.map(({ row }) => row.id))).map((job) => [job.id, job]));
    if (!known.size) return null;
    const unknown = jobs.filter(({ row }) => !known.has(row.id));
    const holders = new Map(
      (await this.findHolders(unknown.flatMap(({ row }) => row.job_key ?? []))).map((job) => [job.jobKey, job]),
    );
    const windows = await this.findWindows(unknown.flatMap(({ row }) => row.window_key ?? []));
    return jobs.map((one) => {
      const { row } = one;
      const window = windows.get(row.window_key);
      const job = known.get(row.id) ?? holders.get(row.job_key) ?? window?.job;
      return job ? { ...job, created: job.id === row.id } : describeGone(one, window?.id ?? row.id);
    });
  }

  private async refuseUnknown(
    find: Statement<{ id: string }>,
    parents: string[],
    executor: QueryExecutor | undefined,
  ): Promise<void> {
    const known = new Set((await this.database.run(find, [parents], executor)).map(({ id }) => id));
    const unknown = parents.filter((id) => !known.has(id));
    if (unknown.length) throw new UnknownParentError(unknown);
  }

  /** Only a key lets a job be known to others before it waits for them. */
  private async refuseCircles(linked: { job: PreparedJob; id: string }[], executor?: QueryExecutor): Promise<void> {
    const keyed = linked.filter(({ job }) => isKeyed(job)).map(({ id }) => id);
    if (!keyed.length) return;
    const circle = circleThrough(keyed, await this.database.run(findCircleOf, [keyed], executor));
    if (circle) throw new DependencyCircleError(circle);
  }

  private async findHolders(keys: string[]): Promise<AddedJob[]> {
    if (!keys.length) return [];
    const owners = await this.database.run(findKeyOwners, [keys]);
    return this.find(owners.map(({ job_id }) => job_id));
  }

  /** The jobs of windows, by key; what is known of a job may be gone. */
  private async findWindows(keys: string[]): Promise<Map<string | null, { id: string; job: AddedJob | undefined }>> {
    if (!keys.length) return new Map();
    const rows = await this.database.run(findWindowJobs, [keys]);
    const found = new Map((await this.find(rows.map(({ job_id }) => job_id))).map((job) => [job.id, job]));
    return new Map(rows.map(({ key, job_id: id }) => [key, { id, job: found.get(id) }]));
  }

  private async find(ids: string[], executor?: QueryExecutor): Promise<AddedJob[]> {
    const rows = await this.database.run(findJobs, [ids], executor);
    return rows.map((row) => ({ ...toJob(row, this.cipher), created: true }));
  }
}

function refuseMissing(rows: { missing: string | null }[]): void {
  const refused = rows.flatMap((row) => (row.missing === null ? [] : readRefused(row.missing)));
  const unknown = refused.filter((one) => typeof one === 'string');
  if (unknown.length) throw new UnknownRateLimitError(unknown);
  for (const one of refused) if (typeof one !== 'string') throw new RateLimitWeightError(one.key, one.weight, one.most);
}
