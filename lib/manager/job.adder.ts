// From a checked request to a committed row: single adds share inserts, batches go whole, job keys take their turns.
import type { AddedJob, AddJobOptions, JobSpec, JobStatus, QueryExecutor } from '../interfaces/job.interface.js';
import type { TaskToken } from '../interfaces/task.interface.js';
import {
  KeyContentionError,
  MissingPrivilegesError,
  UnknownParentError,
  UnknownRateLimitError,
} from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import { isUniqueViolation } from '../storage/database.errors.js';
import { toDate } from '../storage/row.types.js';
import { addAlikeJobs, addJobs, addKeyedJobs, type AddedRow, type NewJob } from '../storage/statements/add-jobs.js';
import { linkParents, lockParents } from '../storage/statements/dependencies.js';
import { findJobs } from '../storage/statements/inspect-jobs.js';
import { AddBatcher } from './add.batcher.js';
import { Announcer } from './announcer.js';
import { toJob } from './job.mapper.js';
import type { JobCipher } from './job.cipher.js';
import type { JobClaims } from './job.claims.js';
import type { JobPreparer, PreparedJob } from './job.preparer.js';
import { repeatInDoubt } from './repeat.in.doubt.js';

interface Target {
  /** The caller's connection; none: a commit of our own. */
  manager: QueryExecutor | undefined;
  notify: boolean;
}

const CHUNK = 2_000;
const KEY_RACES = 10;

export class JobAdder {
  private readonly batcher = new AddBatcher<AddedJob>((jobs) => repeatInDoubt(() => this.insert(jobs)));
  private readonly announcer: Announcer;

  constructor(
    private readonly database: Database,
    private readonly preparer: JobPreparer,
    private readonly claims: JobClaims,
    /** The transaction to add in where the caller names none. Asked in the same turn as the call. */
    private readonly ambient: () => QueryExecutor | undefined,
    private readonly cipher: JobCipher | undefined,
  ) {
    this.announcer = new Announcer(database);
  }

  async addOne(task: string | TaskToken, payload: unknown, options: AddJobOptions): Promise<AddedJob> {
    // Before the first await: by the insert the caller may be in another transaction, or in none.
    const target = { manager: options?.manager ?? this.ambient(), notify: options?.notify !== false };
    const job = await this.preparer.prepare(task, payload, options);
    if (target.manager || needsRounds(job)) return (await this.add([job], target))[0] as AddedJob;
    const added = await this.batcher.add(job);
    this.announce([added], target);
    return added;
  }

  async addMany(specs: JobSpec[], asked: Target): Promise<AddedJob[]> {
    const target = { ...asked, manager: asked.manager ?? this.ambient() };
    const jobs: PreparedJob[] = [];
    for (const { task, payload, ...options } of specs) jobs.push(await this.preparer.prepare(task, payload, options));
    return jobs.length ? this.add(jobs, target) : [];
  }

  /** Resolves when nothing is on its way to the database. */
  async idle(): Promise<void> {
    await this.batcher.idle();
    await this.announcer.idle();
  }

  private async add(jobs: PreparedJob[], target: Target): Promise<AddedJob[]> {
    const special = jobs.some(needsRounds);
    const children = jobs.filter(isChild);
    const work = (executor?: QueryExecutor): Promise<AddedJob[]> =>
      children.length
        ? this.insertChildren(jobs, children, executor!, this.channelOf(target))
        : special
          ? this.insertKeyed(jobs, executor, this.channelOf(target))
          : this.insert(jobs, executor, this.channelOf(target));
    if (target.manager) return work(target.manager);
    const added = await repeatInDoubt(async (repeat) => {
      // What was stored may have been stored by the first try, at its time.
      const known = repeat ? await this.find(jobs.map(({ row }) => row.id)) : [];
      if (known.length) return known;
      const needsTransaction = jobs.length > CHUNK || children.length > 0 || (special && jobs.length > 1);
      return needsTransaction ? this.database.transaction(work) : work();
    });
    this.announce(added, target);
    return added;
  }

  /** In a caller's transaction the notification must travel with its commit; after a commit of ours it follows. */
  private channelOf({ manager, notify }: Target): string | null {
    return manager && notify ? this.database.channel : null;
  }

  private announce(added: AddedJob[], { manager, notify }: Target): void {
    if (!manager && notify && added.some(({ status }) => status === 'available')) this.announcer.announce();
  }

  private async insert(
    jobs: PreparedJob[],
    executor?: QueryExecutor,
    channel: string | null = null,
  ): Promise<AddedJob[]> {
    const added: AddedJob[] = [];
    for (let start = 0; start < jobs.length; start += CHUNK) {
      const chunk = jobs.slice(start, start + CHUNK);
      const rows =
        (await this.insertAlike(chunk, executor, channel)) ??
        (await this.database.run(addJobs, [...parametersOf(chunk), channel], executor));
      refuseMissing(rows);
      const now = Number((rows[0] as { now: number }).now);
      for (const job of chunk) added.push(toAddedJob(job, now));
    }
    return added;
  }

  /** Null where the jobs are not alike, or are there already: an add whose answer was lost is being repeated. */
  private async insertAlike(jobs: PreparedJob[], executor: QueryExecutor | undefined, channel: string | null) {
    const first = jobs[0]!.row;
    if (!jobs.every(({ row }) => isPlain(row) && isAlike(row, first))) return null;
    const values = [
      `{${jobs.map(({ row }) => row.id).join()}}`,
      jobs.map(({ json, sealed }) => sealed ?? json).join('\n'),
      first.task,
      first.priority,
      first.max_attempts,
      first.run_at,
      first.delay_ms,
      channel,
    ];
    try {
      return await this.database.run(addAlikeJobs, values, executor);
    } catch (error) {
      if (executor || !isUniqueViolation(error)) throw error;
      return null;
    }
  }

  /** Parents are locked first, so that none can end before it is known who waits for it. */
  private async insertChildren(
    jobs: PreparedJob[],
    children: PreparedJob[],
    executor: QueryExecutor,
    channel: string | null,
  ): Promise<AddedJob[]> {
    const parents = [...new Set(children.flatMap(({ row }) => row.depends_on ?? []))];
    const known = new Set((await this.database.run(lockParents, [parents], executor)).map(({ id }) => id));
    const unknown = parents.filter((id) => !known.has(id));
    if (unknown.length) throw new UnknownParentError(unknown);
    const added = await this.insertKeyed(jobs, executor, channel);
    const linked = jobs.map((job, index) => ({ job, id: added[index]!.id })).filter(({ job, id }) => mayLink(job, id));
    const pairs = linked.flatMap(({ job, id }) => (job.row.depends_on ?? []).map((parent) => [id, parent]));
    await this.database.run(linkParents, [pairs.map(([child]) => child), pairs.map(([, parent]) => parent)], executor);
    await this.claims.dependents.resolve(parents, executor);
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

  /** Jobs whose keys occur twice in one call take turns: each round has every key once. */
  private async insertKeyed(
    jobs: PreparedJob[],
    executor?: QueryExecutor,
    channel: string | null = null,
  ): Promise<AddedJob[]> {
    const added = new Map<PreparedJob, AddedJob>();
    const plain = jobs.filter(({ row }) => row.job_key === null);
    (await this.insert(plain, executor, channel)).forEach((job, index) => added.set(plain[index] as PreparedJob, job));
    for (const round of roundsOf(jobs.filter(({ row }) => row.job_key !== null))) {
      for (const [job, result] of await this.insertRound(round, executor, channel)) added.set(job, result);
    }
    return jobs.map((job) => added.get(job) as AddedJob);
  }

  private async insertRound(round: PreparedJob[], executor: QueryExecutor | undefined, channel: string | null) {
    const rows: AddedRow[] = [];
    let open = round;
    for (let race = 0; open.length; race++) {
      if (race === KEY_RACES) throw new KeyContentionError(open.map(({ row }) => row.job_key as string));
      const answer = await this.database.run(addKeyedJobs, [...parametersOf(open), channel], executor);
      refuseMissing(answer);
      rows.push(...answer);
      if (!executor) await this.promote(answer.flatMap(({ freed_queue }) => freed_queue ?? []));
      const done = new Set(answer.map(({ requested }) => requested));
      open = open.filter(({ row }) => !done.has(row.id));
    }
    return this.pair(round, rows, executor);
  }

  /** A role that may only enqueue leaves it to the sweep of the pools. */
  private async promote(queues: string[]): Promise<void> {
    try {
      await this.claims.promote(queues);
    } catch (error) {
      if (!(error instanceof MissingPrivilegesError)) throw error;
    }
  }

  /** Keys may have kept older jobs: what came of each request is read back as it is stored. */
  private async pair(round: PreparedJob[], rows: AddedRow[], executor?: QueryExecutor) {
    const stored = new Map(
      (
        await this.find(
          rows.map(({ id }) => id),
          executor,
        )
      ).map((job) => [job.id, job]),
    );
    const byRequest = new Map(rows.map((row) => [row.requested, row]));
    return round.map((job): [PreparedJob, AddedJob] => {
      const row = byRequest.get(job.row.id) as AddedRow;
      return [job, { ...(stored.get(row.id) as AddedJob), created: row.created }];
    });
  }

  private async find(ids: string[], executor?: QueryExecutor): Promise<AddedJob[]> {
    const rows = await this.database.run(findJobs, [ids], executor);
    return rows.map((row) => ({ ...toJob(row, this.cipher), created: true }));
  }
}

const isChild = ({ row }: PreparedJob): boolean => row.depends_on !== null;

/** Plain jobs share inserts; those with a key or parents take statements of their own. */
const needsRounds = (job: PreparedJob): boolean => job.row.job_key !== null || isChild(job);

/** A key may have kept an older job as it is: its parents stay what they were. */
const mayLink = ({ row }: PreparedJob, id: string): boolean =>
  row.depends_on !== null && (row.id === id || row.job_key_mode !== 'unsafe_dedupe');

/** Nothing but a task, a payload, and when and how often to try. */
const isPlain = (row: NewJob): boolean =>
  row.timeout_ms === null &&
  row.queue === null &&
  row.rate_limit_key === null &&
  row.job_key === null &&
  row.flags === null &&
  row.tags === null &&
  row.group_id === null &&
  row.depends_on === null;

const isAlike = (row: NewJob, other: NewJob): boolean =>
  row.task === other.task &&
  row.priority === other.priority &&
  row.max_attempts === other.max_attempts &&
  row.run_at === other.run_at &&
  row.delay_ms === other.delay_ms;

/** Without what is null: the database spends most of an add on reading these. */
function compact(row: NewJob): string {
  const given: Record<string, unknown> = {};
  for (const key in row) {
    const value = row[key as keyof NewJob];
    if (value !== null) given[key] = value;
  }
  return JSON.stringify(given);
}

const parametersOf = (jobs: PreparedJob[]): [specs: string, payloads: string] => [
  `[${jobs.map(({ row }) => compact(row)).join(',')}]`,
  `[${jobs.map(({ json, sealed }) => sealed ?? json).join(',')}]`,
];

function refuseMissing(rows: { missing: string | null }[]): void {
  const missing = rows.flatMap((row) => row.missing ?? []);
  if (missing.length) throw new UnknownRateLimitError(missing);
}

function roundsOf(jobs: PreparedJob[]): PreparedJob[][] {
  const rounds: PreparedJob[][] = [];
  const turns = new Map<string, number>();
  for (const job of jobs) {
    const key = job.row.job_key as string;
    const turn = turns.get(key) ?? 0;
    turns.set(key, turn + 1);
    (rounds[turn] ??= []).push(job);
  }
  return rounds;
}

/** A plain add stores what was asked for; only the time comes from the database. */
const toAddedJob = ({ row, json }: PreparedJob, now: number): AddedJob => {
  const runAt = row.run_at === null ? now + (row.delay_ms ?? 0) : Date.parse(row.run_at);
  const status = row.depends_on ? 'blocked' : runAt > now ? 'scheduled' : 'available';
  return describe(row, json, status, runAt, now);
};

const describe = (row: NewJob, json: string, status: JobStatus, runAt: number, now: number): AddedJob => ({
  id: row.id,
  task: row.task,
  payload: JSON.parse(json) as unknown,
  status,
  priority: row.priority,
  queue: row.queue,
  rateLimitKey: row.rate_limit_key,
  runAt: toDate(runAt),
  attempts: 0,
  maxAttempts: row.max_attempts,
  lastError: null,
  jobKey: null,
  jobKeyMode: null,
  flags: row.flags ?? [],
  tags: row.tags ?? [],
  groupId: row.group_id,
  timeoutMs: row.timeout_ms,
  lockedBy: null,
  lockedAt: null,
  revision: 0,
  progress: null,
  createdAt: toDate(now),
  updatedAt: toDate(now),
  created: true,
});
