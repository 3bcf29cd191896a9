// From a request to a committed row, and who hears of it: single adds share inserts, batches go whole. JobInserter writes the
// rows.
import type { AddedJob, AddJobOptions, JobSpec, QueryExecutor } from '../interfaces/job.interface.js';
import type { TaskToken } from '../interfaces/task.interface.js';
import type { CallerTransaction } from '../storage/caller.transaction.js';
import type { Database } from '../storage/database.js';
import type { News } from '../storage/job.news.js';
import { hasOthersToTell } from '../storage/statements/dependencies.js';
import { AddBatcher } from './add.batcher.js';
import { tryBriefly } from './brief.lock.js';
import type { JobCipher } from './job.cipher.js';
import type { JobPromoter } from './job.promoter.js';
import type { JobPreparer, PreparedJob } from './job.preparer.js';
import { isChild, isOneStatement, needsRounds, newsAhead, newsOfAdded, parentsOf } from './prepared.jobs.js';
import { JobInserter, type Insertion } from './job.inserter.js';
import type { QueueBounds } from './queue.bounds.js';
import type { NewsPublisher } from './news.publisher.js';
import { retryUntilKnown } from '../storage/retry.js';

interface Target<Connection = CallerTransaction> {
  /** The caller's connection; none: a commit of our own. */
  manager: Connection | undefined;
  notify: boolean;
  /** Whether queues that are full refuse it. Default true. */
  bounded?: boolean;
}

export interface AdderParts {
  database: Database;
  preparer: JobPreparer;
  promoter: JobPromoter;
  publisher: NewsPublisher;
  bounds: QueueBounds;
  /** The transaction to add in where the caller names none. Asked in the same turn as the call. */
  ambient: () => QueryExecutor | undefined;
  cipher: JobCipher | undefined;
}

export class JobAdder {
  private readonly inserter: JobInserter;
  private readonly batcher: AddBatcher<AddedJob> = new AddBatcher((jobs) =>
    retryUntilKnown(() => this.batcher.send(() => this.inserter.insert(jobs))),
  );

  private readonly database: Database;
  private readonly preparer: JobPreparer;
  private readonly promoter: JobPromoter;
  private readonly publisher: NewsPublisher;

  constructor(private readonly parts: AdderParts) {
    const { database, preparer, promoter, publisher, cipher } = parts;
    this.database = database;
    this.preparer = preparer;
    this.promoter = promoter;
    this.publisher = publisher;
    this.inserter = new JobInserter(database, promoter, cipher);
  }

  addOne(task: string | TaskToken, payload: unknown, options: AddJobOptions): Promise<AddedJob> {
    // Before the first await: by the insert the caller may be in another transaction, and its objects may say something else.
    const taken = this.preparer.take(task, payload, options);
    const target = this.targetOf({ manager: options?.manager, notify: options?.notify !== false });
    return this.counted(target, async () => {
      const job = await this.preparer.check(taken);
      if (target.manager || needsRounds(job)) return (await this.add([job], target))[0] as AddedJob;
      if (job.row.queue !== null) await this.parts.bounds.admit([job], this.database);
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
  private targetOf({ manager, ...others }: Target<QueryExecutor>): Target {
    return { manager: this.database.join(manager ?? this.parts.ambient()), ...others };
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
    if (target.bounded !== false) await this.parts.bounds.admit(jobs, this.database, executor);
    const children = jobs.filter(isChild);
    const how = { executor, patient: true, repeated: false, others: new Set<string>() };
    const news = target.notify ? newsAhead(jobs) : null;
    if (news) return this.inserter.insert(jobs, executor, this.publisher.parametersOf(news));
    if (!isOneStatement(jobs)) await this.inserter.refuseAhead(jobs, children, executor);
    const added = await this.inserter.insertAll(jobs, children, how).catch(async (error: unknown) => {
      // What was refused half-way must not be committed.
      if (!isOneStatement(jobs)) await this.database.failTransaction(executor);
      throw error;
    });
    await this.announceIn(executor, added, [...parentsOf(children), ...how.others], target);
    return added;
  }

  private async addApart(jobs: PreparedJob[], target: Target): Promise<AddedJob[]> {
    if (target.bounded !== false) await this.parts.bounds.admit(jobs, this.database);
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
    const known = how.repeated ? await this.inserter.findAgain(jobs) : null;
    if (known) return known;
    return this.batcher.send(() =>
      isOneStatement(jobs)
        ? this.inserter.insertAll(jobs, children, how)
        : this.database.transaction(async (executor) => {
            await this.inserter.refuseAhead(jobs, children, executor);
            return this.inserter.insertAll(jobs, children, { ...how, executor });
          }),
    );
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
}
