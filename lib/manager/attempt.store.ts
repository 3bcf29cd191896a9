// What running attempts leave behind before they end: steps, progress, log lines. Each is written in the name of a
// claim, so that a worker that has lost the job cannot write over the one that has it now.
import type { ClaimedJob, JobLogEntry, QueryExecutor } from '../interfaces/job.interface.js';
import type { Page, PageRequest } from '../interfaces/report.interface.js';
import { LeaseLostError } from '../jobs.errors.js';
import { retryHeld, retryOnContention } from '../storage/retry.js';
import type { Database } from '../storage/database.js';
import { toDate } from '../storage/row.types.js';
import * as attempts from '../storage/statements/attempts.js';
import { check } from '../validation.js';
import { rules } from '../validation.rules.js';
import { exactJson } from './exact.json.js';
import { ENVELOPE_START, isSealed, openText, plainLine, SEALED_LINE, sealText, type JobCipher } from './job.cipher.js';
import { correlationIdOf } from './job.id.js';
import { keyRules, pageOf, readCursor, readPageRequest } from './page.js';
import { storableText } from '../monitoring/error.text.js';
import { WriteBatcher } from './write.batcher.js';

/** The claim in whose name something is written. */
export interface Claim {
  job: ClaimedJob;
  workerId: string;
}

export interface Step {
  name: string;
  /** Grows with each step that is done: steps that run side by side have an order, too. */
  position: number;
  /** JSON text; null: the step returned nothing. */
  result: string | null;
}

interface Written {
  claim: Claim;
  text: string;
}

const MAX_MESSAGE = 10_000;

export class AttemptStore {
  private readonly progress = new WriteBatcher<Written>(
    (entries) => this.saveProgress(entries),
    ({ claim: { job } }) => job.id + job.fence,
  );
  private readonly logs = new WriteBatcher<Written>((entries) => this.saveLogs(entries));

  constructor(
    private readonly database: Database,
    private readonly cipher: JobCipher | undefined,
  ) {}

  /**
   * The claim stays valid until `executor`'s transaction ends.
   * @throws LeaseLostError where it is no longer valid, JobHeldError where an open transaction holds the job for seconds
   */
  async assertOwned({ job }: Claim, executor: QueryExecutor): Promise<void> {
    await retryHeld([job.id], async () => {
      const [row] = await this.database.run(attempts.assertOwned, [job.id, job.fence], executor);
      if (!row) throw new LeaseLostError(job.id);
      return row.locked ? [] : [job.id];
    });
  }

  /** The steps that this job's attempts have done so far, oldest first. */
  async findSteps(jobId: string, executor?: QueryExecutor): Promise<Step[]> {
    const steps = await this.database.run(attempts.findSteps, [jobId], executor);
    return steps.map(({ name, position, result }) => ({ name, position, result: this.openStep(jobId, name, result) }));
  }

  /** Keeps a step's result for good. @throws LeaseLostError, RowsHeldError */
  async saveStep({ job }: Claim, step: Step, executor?: QueryExecutor): Promise<void> {
    const result =
      step.result === null ? null : sealText(this.cipher, job.task, stepField(step.name), job.id, step.result);
    const values = [job.id, job.fence, step.name, step.position, result];
    const save = () => this.database.run(attempts.saveStep, values, executor);
    const [row] = await retryOnContention(save, executor !== undefined || this.database.isBound);
    if (!row?.saved) throw new LeaseLostError(job.id);
  }

  /** Forgets steps, so that the next attempt does them again. */
  async forgetSteps({ job }: Claim, names: string[], executor?: QueryExecutor): Promise<void> {
    const forget = () => this.database.run(attempts.forgetSteps, [job.id, job.fence, names], executor);
    await retryOnContention(forget, executor !== undefined || this.database.isBound);
  }

  /** Best effort: the last value counts, and a database that is away keeps no handler from working. */
  async setProgress(claim: Claim, value: unknown): Promise<void> {
    const { job } = claim;
    const text = sealText(this.cipher, job.task, 'progress', job.id, exactJson('progress', value) ?? 'null');
    return this.progress.write({ claim, text });
  }

  /** Best effort, in order. */
  async log(claim: Claim, message: string): Promise<void> {
    check({ message: [message, rules.string] });
    const line = storableText(message, MAX_MESSAGE);
    const text = this.cipher?.covers(claim.job.task)
      ? SEALED_LINE + this.cipher.seal(['log', claim.job.id], line)
      : plainLine(line);
    return this.logs.write({ claim, text });
  }

  async findLogs(jobId: string, page?: PageRequest): Promise<Page<JobLogEntry>> {
    check({ jobId: [jobId, rules.uuid] });
    const { limit, cursor } = readPageRequest(page);
    const rows = await this.database.run(attempts.findLogs, [jobId, ...readCursor(cursor, keyRules.count), limit + 1]);
    const toEntry = ({ fence, logged_at, message }: attempts.LogRow): JobLogEntry => ({
      at: toDate(logged_at),
      message: this.readLine(jobId, message),
      correlationId: correlationIdOf(jobId, fence),
    });
    return pageOf(rows, limit, toEntry, ({ id }) => [id]);
  }

  /** Resolves when nothing is on its way to the database. */
  async idle(): Promise<void> {
    await Promise.all([this.progress.idle(), this.logs.idle()]);
  }

  /** @throws DecryptionError: what was done cannot be told from what was not */
  private openStep(jobId: string, name: string, result: string | null): string | null {
    const envelope: unknown = result?.startsWith(ENVELOPE_START) ? JSON.parse(result) : null;
    return isSealed(envelope) ? openText(this.cipher, [stepField(name), jobId], envelope) : result;
  }

  private readLine(jobId: string, line: string): string {
    if (!line.startsWith(SEALED_LINE)) return line;
    try {
      return openText(this.cipher, ['log', jobId], JSON.parse(line.slice(SEALED_LINE.length)));
    } catch (error) {
      return `(${(error as Error).message})`;
    }
  }

  private async saveProgress(entries: Written[]): Promise<void> {
    const last = [...new Map(entries.map((entry) => [entry.claim.job.id + entry.claim.job.fence, entry])).values()];
    await this.database.run(attempts.saveProgress, [
      last.map(({ claim }) => claim.job.id),
      last.map(({ claim }) => claim.job.fence),
      last.map(({ text }) => text),
    ]);
  }

  private async saveLogs(entries: Written[]): Promise<void> {
    await this.database.run(attempts.addLogs, [
      entries.map(({ claim }) => claim.job.id),
      entries.map(({ claim }) => claim.job.fence),
      entries.map(({ text }) => text),
    ]);
  }
}

const stepField = (name: string): string => `step ${name}`;
