// What people look at: jobs, attempts, logs, counts, workers. Reads alone; JobManager has checked the arguments.
import type { Job, QueryExecutor } from '../interfaces/job.interface.js';
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
import type { JobGraph } from '../interfaces/job.graph.interface.js';
import { JobNotFoundError } from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import * as inspections from '../storage/statements/inspect-jobs.js';
import type { JobRow } from '../storage/statements/job-columns.js';
import { listWorkers } from '../storage/statements/workers.js';
import { isUuid } from '../validation.rules.js';
import type { JobCipher } from './job.cipher.js';
import { toCounts } from './job.counts.js';
import { explainLiveJob } from './job.explainer.js';
import { findGraph } from './job.graph.js';
import { toHistoryRecord, toJob, toWorkerInfo } from './job.mapper.js';
import { keyRules, pageOf, readCursor, readPageRequest, refusingCursor } from './page.js';
import { searchPatterns } from './search.patterns.js';

export class JobInspector {
  constructor(
    private readonly database: Database,
    private readonly cipher: JobCipher | undefined,
  ) {}

  async find(id: string): Promise<Job | null> {
    return (await this.findAll([{ id }]))[0] ?? null;
  }

  /** Those that are known, in no order. */
  async findAll(named: { id: string }[], executor?: QueryExecutor): Promise<Job[]> {
    if (!named.length) return [];
    const rows = await this.database.run(inspections.findJobs, [named.map(({ id }) => id)], executor);
    return rows.map(this.toJob);
  }

  async list(filter: JobFilter, page?: PageRequest): Promise<Page<Job>> {
    const { limit, cursor } = readPageRequest(page);
    const rows = await this.database.run(inspections.listJobs, [
      ...[filter.task, filter.queue, filter.status, filter.tag, filter.groupId, filter.flag].map(orNull),
      filter.from?.toISOString() ?? null,
      filter.to?.toISOString() ?? null,
      filter.search == null ? null : searchPatterns(filter.search),
      ...readCursor(cursor, keyRules.uuid),
      limit + 1,
      isUuid(filter.groupId) ? filter.groupId : null,
    ]);
    return pageOf(rows, limit, this.toJob, (row) => [row.id]);
  }

  /** @throws JobNotFoundError */
  async graph(id: string): Promise<JobGraph> {
    const graph = await findGraph(this.database, id);
    if (!graph) throw new JobNotFoundError(id);
    return graph;
  }

  async history(id: string): Promise<HistoryRecord[]> {
    return (await this.database.run(inspections.jobHistory, [id])).map(this.toRecord);
  }

  async listHistory(filter: HistoryFilter, page?: PageRequest): Promise<Page<HistoryRecord>> {
    const { limit, cursor } = readPageRequest(page);
    const values = [
      ...[filter.jobId, filter.task, filter.status, filter.workerId].map(orNull),
      filter.from?.toISOString() ?? null,
      filter.to?.toISOString() ?? null,
      ...readCursor(cursor, keyRules.time, keyRules.uuid, keyRules.count),
      limit + 1,
    ];
    const rows = await refusingCursor(this.database.run(inspections.listHistory, values));
    return pageOf(rows, limit, this.toRecord, (row) => [row.position, row.job_id, row.fence]);
  }

  async counts(): Promise<JobCounts> {
    return toCounts(await this.database.run(inspections.countJobs, []));
  }

  /** @throws JobNotFoundError */
  async explain(id: string): Promise<JobExplanation> {
    const job = await this.find(id);
    if (!job) throw new JobNotFoundError(id);
    const [row] = await this.database.run(inspections.explainJob, [id]);
    return explainLiveJob(job, row);
  }

  async workers(): Promise<WorkerInfo[]> {
    return (await this.database.run(listWorkers, [])).map(toWorkerInfo);
  }

  private readonly toJob = (row: JobRow): Job => toJob(row, this.cipher);
  private readonly toRecord = (row: inspections.HistoryRow): HistoryRecord => toHistoryRecord(row, this.cipher);
}

const orNull = <T>(value: T | undefined): T | null => value ?? null;
