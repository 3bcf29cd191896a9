// What specs need of a manager, and no other code may have: stored times that move, tables that empty, every job that a
// connection sees, and a report of each add. The only user is millrace/testing.
import type { AddedJob, Job, QueryExecutor } from '../interfaces/job.interface.js';
import type { Database } from '../storage/database.js';
import { listJobs } from '../storage/statements/inspect-jobs.js';
import { clearConfiguration, clearJobs, findPausedJobs, moveTimes } from '../storage/statements/testing.js';
import { check, option, section } from '../validation.js';
import { MAX_MS, rules } from '../validation.rules.js';
import type { JobAdder } from '../manager/job.adder.js';
import type { JobManager } from '../manager/job.manager.js';
import { toJob, toPause } from '../manager/job.mapper.js';
import type { PausedJobs } from './drained.jobs.js';

/** Stands around an add: runs it, and may do something about what was added before the caller is told. */
export type AddObserver = (add: () => Promise<AddedJob[]>, inTransaction: boolean) => Promise<AddedJob[]>;

const CLEAR = section({ configuration: option(rules.flag, false) });
const observersOf = new WeakMap<JobAdder, Set<AddObserver>>();

export class TestDatabase {
  private readonly database: Database;
  private readonly adder: JobAdder;

  constructor(private readonly jobs: JobManager) {
    this.database = jobs.engine.database;
    this.adder = jobs.engine.adder;
  }

  /** Makes everything stored older by so many ms. @throws InvalidArgumentError */
  async travel(ms: number): Promise<void> {
    check({ ms: [ms, rules.integer(0, MAX_MS)] });
    await this.database.run(moveTimes, [ms]);
  }

  /** Removes all jobs and their history; with `configuration` also what calls have configured. */
  async clear(options: { configuration?: boolean | undefined } = {}): Promise<void> {
    check({}, [CLEAR, options]);
    const { configuration } = CLEAR.read(options);
    await this.adder.idle();
    await this.database.run(clearJobs, []);
    this.jobs.engine.bounds.forget();
    if (!configuration) return;
    await this.database.run(clearConfiguration, []);
    await this.jobs.engine.declarations.declareQueues();
  }

  /** All jobs, oldest first, as a connection sees them. */
  async list(executor?: QueryExecutor): Promise<Job[]> {
    const anyJob = Array.from({ length: 12 }, () => null);
    const rows = await this.database.run(listJobs, anyJob, executor);
    return rows.map((row) => toJob(row, this.jobs.engine.cipher)).toReversed();
  }

  /** Due jobs that pauses keep from running; of these tasks and queues, without these flags, or null: any. */
  async findPaused(...filter: (string[] | null)[]): Promise<PausedJobs[]> {
    const rows = await this.database.run(findPausedJobs, filter);
    return rows.map((row) => ({ pause: toPause(row), jobs: row.jobs }));
  }

  /** Hears of every add through this manager, by whatever method, until the returned function is called. */
  observeAdds(observer: AddObserver): () => void {
    const observers = observersOf.get(this.adder) ?? this.observeAdder();
    observers.add(observer);
    return () => void observers.delete(observer);
  }

  /** Wraps the adder once for all observers, so that they may come and go in any order. */
  private observeAdder(): Set<AddObserver> {
    const { adder } = this;
    const observers = new Set<AddObserver>();
    const observed = (add: () => Promise<AddedJob[]>, inTransaction: boolean): Promise<AddedJob[]> =>
      [...observers].reduce<typeof add>((inner, observer) => () => observer(inner, inTransaction), add)();
    const [addOne, addMany] = [adder.addOne.bind(adder), adder.addMany.bind(adder)];
    adder.addOne = async (task, payload, options) => {
      const add = async (): Promise<AddedJob[]> => [await addOne(task, payload, options)];
      return (await observed(add, options.manager !== undefined))[0] as AddedJob;
    };
    adder.addMany = (specs, target) => observed(() => addMany(specs, target), target.manager !== undefined);
    observersOf.set(adder, observers);
    return observers;
  }
}
