// What people look at, as JobManager offers it.
import type { JobGraph } from '../interfaces/job.graph.interface.js';
import type { Job, JobLogEntry } from '../interfaces/job.interface.js';
import type {
  HistoryFilter,
  HistoryRecord,
  JobCounts,
  JobExplanation,
  JobFilter,
  Page,
  PageRequest,
  WorkerInfo,
} from '../interfaces/report.interface.js';
import { check } from '../validation.js';
import { rules } from '../validation.rules.js';
import { callOptions } from './arguments.js';
import type { JobEngine } from './job.engine.js';

/** Jobs, attempts and workers as they are now. */
export abstract class JobReports {
  /**
   * What pools, handlers, maintenance and millrace/testing work with.
   * @internal
   */
  readonly engine: JobEngine;

  constructor(engine: JobEngine) {
    this.engine = engine;
  }

  /** A job, live or as its history last knew it; null where no job has the id. */
  async findJob(id: string): Promise<Job | null> {
    check({ id: [id, rules.uuid] });
    return this.engine.inspector.find(id);
  }

  /** Jobs, newest first. */
  async listJobs(filter: JobFilter = {}, page?: PageRequest): Promise<Page<Job>> {
    check({}, [callOptions.jobFilter, filter]);
    return this.engine.inspector.list(filter, page);
  }

  /**
   * A job with all that it depends on and all that depends on it, through any number of generations, as far as they are
   * remembered; at most 1,000 jobs.
   * @throws JobNotFoundError
   */
  async jobGraph(id: string): Promise<JobGraph> {
    check({ id: [id, rules.uuid] });
    return this.engine.inspector.graph(id.toLowerCase());
  }

  /** The attempts of a job, oldest first; the running one comes last, as `started`. */
  async jobHistory(id: string): Promise<HistoryRecord[]> {
    check({ id: [id, rules.uuid] });
    return this.engine.inspector.history(id);
  }

  /** What the attempts of a job wrote with `ctx.log`, oldest first. */
  async jobLogs(id: string, page?: PageRequest): Promise<Page<JobLogEntry>> {
    return this.engine.attempts.findLogs(id, page);
  }

  /** Finished attempts, newest first. */
  async listHistory(filter: HistoryFilter = {}, page?: PageRequest): Promise<Page<HistoryRecord>> {
    check({}, [callOptions.historyFilter, filter]);
    return this.engine.inspector.listHistory(filter, page);
  }

  /** How many jobs there are, by status, task and queue. Reads all live rows: for people, not for loops. */
  async counts(): Promise<JobCounts> {
    return this.engine.inspector.counts();
  }

  /** Why is this job not running? @throws JobNotFoundError */
  async explain(id: string): Promise<JobExplanation> {
    check({ id: [id, rules.uuid] });
    return this.engine.inspector.explain(id);
  }

  /** The workers that are alive. */
  async workers(): Promise<WorkerInfo[]> {
    return this.engine.inspector.workers();
  }
}
