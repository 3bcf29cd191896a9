// From a checked request to a committed row: single adds share inserts, batches go whole, job keys take their turns.
import type { AddedJob, AddJobOptions, JobSpec, QueryExecutor } from '../interfaces/job.interface.js';
import type { TaskToken } from '../interfaces/task.interface.js';
import { DependencyCircleError, UnknownParentError, UnknownRateLimitError } from '../jobs.errors.js';
import type { CallerTransaction } from '../storage/caller.transaction.js';
import type { Database, Statement } from '../storage/database.js';
import { isContention, isUniqueViolation, violates } from '../storage/database.errors.js';
import type { News } from '../storage/job.news.js';
import {
  addAlikeAndTell,
  addAlikeJobs,
  addAndTell,
  addJobs,
  addKeyedJobs,
  findKeyOwners,
  findMissingLimits,
  type AddedRow,
} from '../storage/statements/add-jobs.js';
import {
  findCircleOf,
  findParents,
  hasOthersToTell,
  keepParents,
  linkParents,
} from '../storage/statements/dependencies.js';
import { findJobs } from '../storage/statements/inspect-jobs.js';
import { AddBatcher } from './add.batcher.js';
import { tryBriefly } from './brief.lock.js';
import { circleOf, circleThrough } from './dependency.circles.js';
import { toJob } from './job.mapper.js';
import type { JobCipher } from './job.cipher.js';
import type { JobPromoter } from './job.promoter.js';
import type { JobPreparer, PreparedJob } from './job.preparer.js';
import {
  CHUNK,
  describe,
  isChild,
  isOneStatement,
  mayLink,
  needsRounds,
  newsAhead,
  newsOfAdded,
  pairsOf,
  parametersOf,
  parametersOfAlike,
  parentsOf,
  roundsOf,
  toAddedJob,
} from './prepared.jobs.js';
import type { NewsPublisher } from './news.publisher.js';
import { inTermsOfDoubt, retryUntilKnown } from '../storage/retry.js';

interface Target<Connection = CallerTransaction> {
  /** The caller's connection; none: a commit of our own. */
  manager: Connection | undefined;
  notify: boolean;
}

/** On whose connection, and how it waits for keys that others hold. */
interface Insertion {
  executor?: QueryExecutor;
  /** A caller's transaction waits as long as its lock_timeout says. */
  patient: boolean;
  /** An earlier try may have gone through. */
  repeated: boolean;
  /** Collects the jobs that were replaced, and those behind whose keys the new ones wait. */
  others: Set<string>;
}

export class JobAdder {
  private readonly batcher: AddBatcher<AddedJob> = new AddBatcher((jobs) =>
    retryUntilKnown(() => this.batcher.send(() => this.insert(jobs))),
  );

  constructor(
    private readonly database: Database,
    private readonly preparer: JobPreparer,
    private readonly promoter: JobPromoter,
    private readonly publisher: NewsPublisher,
    /** The transaction to add in where the caller names none. Asked in the same turn as the call. */
    private readonly ambient: () => QueryExecutor | undefined,
    private readonly cipher: JobCipher | undefined,
  ) {}

  addOne(task: string | TaskToken, payload: unknown, options: AddJobOptions): Promise<AddedJob> {
    // Before the first await: by the insert the caller may be in another transaction, and its objects may say something else.
    const taken = this.preparer.take(task, payload, options);
    const target = this.targetOf({ manager: options?.manager, notify: options?.notify !== false });
    return this.counted(target, async () => {
      const job = await this.preparer.check(taken);
      if (target.manager || needsRounds(job)) return (await this.add([job], target))[0] as AddedJob;
      const added = await this.batcher.add(job);
      await this.announce([added], target);
      return added;
    });
  }

  addMany(specs: JobSpec[], asked: Target<QueryExecutor>): Promise<AddedJob[]> {
    const taken = specs.map(({ task, payload, ...options }) => this.preparer.take(task, payload, options));
    const target = this.targetOf(asked);
    return this.counted(target, async () => {
      const jobs: PreparedJob[] = [];
      for (const one of taken) jobs.push(await this.preparer.check(one));
      return jobs.length ? this.add(jobs, target) : [];
    });
  }

  /** Before the first await: by the insert the caller may be in another transaction, or in none. */
  private targetOf({ manager, notify }: Target<QueryExecutor>): Target {
    return { manager: this.database.join(manager ?? this.ambient()), notify };
  }

  /** What ends with a caller's transaction is not waited for. */
  private counted<T>({ manager }: Target, add: () => Promise<T>): Promise<T> {
    return manager ? manager.during(add) : this.batcher.track(add());
  }

  /** Resolves when nothing is on its way to the database. */
  async idle(): Promise<void> {
    await this.batcher.idle();
  }

  /** Nothing more is sent in commits of our own. */
  close(): void {
    this.batcher.close();
  }

  private add(jobs: PreparedJob[], target: Target): Promise<AddedJob[]> {
    const { manager } = target;
    return manager ? manager.inTurn(() => this.addIn(manager, jobs, target)) : this.addApart(jobs, target);
  }

  private async addIn(executor: QueryExecutor, jobs: PreparedJob[], target: Target): Promise<AddedJob[]> {
    const children = jobs.filter(isChild);
    const how = { executor, patient: true, repeated: false, others: new Set<string>() };
    const news = target.notify ? newsAhead(jobs) : null;
    if (news) return this.insert(jobs, executor, this.publisher.parametersOf(news));
    if (!isOneStatement(jobs)) await this.refuseAhead(jobs, children, executor);
    const added = await this.insertAll(jobs, children, how).catch(async (error: unknown) => {
      // What was refused half-way must not be committed.
      if (!isOneStatement(jobs)) await this.database.failTransaction(executor);
      throw error;
    });
    await this.announceIn(executor, added, [...parentsOf(children), ...how.others], target);
    return added;
  }

  private async addApart(jobs: PreparedJob[], target: Target): Promise<AddedJob[]> {
    const children = jobs.filter(isChild);
    const others = new Set<string>();
    const added = await retryUntilKnown((repeated) =>
      this.addOwn(jobs, children, { patient: false, repeated, others }),
    );
    // Parents, and holders of keys, may have ended while the jobs were on their way. Committed is committed: the sweep finds them.
    if (children.length) await this.promoter.resolve(parentsOf(children)).catch(() => undefined);
    if (others.size) await this.follow([...others]).catch(() => undefined);
    await this.announce(added, target);
    return added;
  }

  /** In a commit of our own. What the first try has stored, at its time, is found again, in the order of the call. */
  private async addOwn(jobs: PreparedJob[], children: PreparedJob[], how: Insertion): Promise<AddedJob[]> {
    const known = how.repeated ? await this.findAgain(jobs) : null;
    if (known) return known;
    return this.batcher.send(() =>
      isOneStatement(jobs)
        ? this.insertAll(jobs, children, how)
        : this.database.transaction(async (executor) => {
            await this.refuseAhead(jobs, children, executor);
            return this.insertAll(jobs, children, { ...how, executor });
          }),
    );
  }

  /** Before anything is written. */
  private async refuseAhead(jobs: PreparedJob[], children: PreparedJob[], executor: QueryExecutor): Promise<void> {
    const limits = [...new Set(jobs.flatMap(({ row }) => row.rate_limit_key ?? []))];
    if (limits.length) refuseMissing(await this.database.run(findMissingLimits, [limits], executor));
    if (children.length) await this.refuseUnknown(findParents, parentsOf(children), executor);
  }

  /** Null where nothing of the call is stored. A key may have kept an older job, or a newer one may have replaced ours. */
  private async findAgain(jobs: PreparedJob[]): Promise<AddedJob[] | null> {
    const known = new Map((await this.find(jobs.map(({ row }) => row.id))).map((job) => [job.id, job]));
    if (!known.size) return null;
    const keys = jobs.flatMap(({ row }) => (known.has(row.id) ? [] : (row.job_key ?? [])));
    const holders = new Map((await this.findHolders(keys)).map((job) => [job.jobKey, job]));
    return jobs.map(({ row, json }) => {
      const job = known.get(row.id) ?? holders.get(row.job_key);
      if (job) return { ...job, created: job.id === row.id };
      return { ...describe(row, json, 'completed', Date.now(), Date.now()), created: true };
    });
  }

  private insertAll(jobs: PreparedJob[], children: PreparedJob[], how: Insertion): Promise<AddedJob[]> {
    if (children.length) return this.insertChildren(jobs, children, how);
    return jobs.some(needsRounds) ? this.insertKeyed(jobs, how) : this.insert(jobs, how.executor);
  }

  /**
   * Children of jobs that were replaced wait for the new ones; behind a key waits nothing whose holder has ended. A role that
   * may only enqueue leaves it to the sweep of the pools.
   */
  private async follow(others: string[]): Promise<void> {
    const [waiting] = (await tryBriefly(this.database, hasOthersToTell, [others])) ?? [];
    if (waiting) await this.promoter.catchUp(others);
  }

  /** After a commit of ours. */
  private async announce(added: AddedJob[], { manager, notify }: Target): Promise<void> {
    if (!manager && notify) await this.publisher.publish(...newsOfAdded(added));
  }

  /** In a caller's transaction the notification must travel with its commit. `others`: jobs whose ends it may have missed. */
  private async announceIn(
    executor: QueryExecutor,
    added: AddedJob[],
    others: string[],
    { notify }: Target,
  ): Promise<void> {
    const ends: News[] = others.length ? [{ kind: 'parents', ids: others }] : [];
    await this.publisher.publishIn(executor, [...ends, ...(notify ? newsOfAdded(added) : [])]);
  }

  /** `told`: what to tell with it, for one statement alone. */
  private async insert(jobs: PreparedJob[], executor?: QueryExecutor, told: string[] = []): Promise<AddedJob[]> {
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
    const pairs = pairsOf(children.filter(({ row }) => row.job_key === null));
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
    const keyed = linked.filter(({ job }) => job.row.job_key !== null).map(({ id }) => id);
    if (!keyed.length) return;
    const circle = circleThrough(keyed, await this.database.run(findCircleOf, [keyed], executor));
    if (circle) throw new DependencyCircleError(circle);
  }

  /** Jobs whose keys occur twice in one call take turns: each round has every key once. */
  private async insertKeyed(jobs: PreparedJob[], how: Insertion): Promise<AddedJob[]> {
    const added = new Map<PreparedJob, AddedJob>();
    const plain = jobs.filter(({ row }) => row.job_key === null);
    (await this.insert(plain, how.executor)).forEach((job, index) => added.set(plain[index] as PreparedJob, job));
    for (const round of roundsOf(jobs.filter(({ row }) => row.job_key !== null))) {
      for (const [job, result] of await this.insertRound(round, how)) added.set(job, result);
    }
    return jobs.map((job) => added.get(job) as AddedJob);
  }

  private async insertRound(round: PreparedJob[], how: Insertion) {
    const { executor, patient, repeated, others } = how;
    const rows = await this.database
      .run(addKeyedJobs, [...parametersOf(round), patient, repeated], executor)
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
      // Another call of the transaction may have replaced it since.
      return [job, { ...(stored.get(row.id) ?? toAddedJob(job, Date.now())), created: row.created }];
    });
  }

  private async findHolders(keys: string[]): Promise<AddedJob[]> {
    if (!keys.length) return [];
    const owners = await this.database.run(findKeyOwners, [keys]);
    return this.find(owners.map(({ job_id }) => job_id));
  }

  private async find(ids: string[], executor?: QueryExecutor): Promise<AddedJob[]> {
    const rows = await this.database.run(findJobs, [ids], executor);
    return rows.map((row) => ({ ...toJob(row, this.cipher), created: true }));
  }
}

function refuseMissing(rows: { missing: string | null }[]): void {
  const missing = rows.flatMap((row) => row.missing ?? []);
  if (missing.length) throw new UnknownRateLimitError(missing);
}
