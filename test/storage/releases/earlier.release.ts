// A process of an earlier release, as far as the database can tell: the statements that release sent, kept as they were.
// Beside this file lies one of them for each schema version whose statements differ from those before.
import { readdirSync, readFileSync } from 'node:fs';
import pg from 'pg';
import { newJobId } from '../../../lib/manager/job.id.js';

const folder = new URL('.', import.meta.url);
const FROZEN = readdirSync(folder)
  .filter((name) => name.endsWith('.sql'))
  .map((name) => Number.parseInt(name, 10));

/** PostgreSQL undid the statement because of what others did: every release repeats it. */
const CONFLICTS = ['40001', '40P01'];
const RETENTION_MS = 3_600_000;
const ALL_PRIORITIES = [[false], [-(2 ** 31) - 1], [2 ** 31]];

interface Claim {
  id: string;
  fence: string;
}

export class EarlierRelease {
  readonly added: string[] = [];
  /** What went wrong that its users would have seen. */
  readonly failures: unknown[] = [];
  private readonly pool: pg.Pool;
  private readonly statements: Map<string, string>;
  private readonly claimsBy: string;
  private stopped = false;
  private loops: Promise<void>[] = [];

  /** The release that worked with this version of the schema. */
  constructor(
    url: string,
    version: number,
    readonly workerId: string,
  ) {
    const frozen = Math.max(...FROZEN.filter((one) => one <= version));
    const text = readFileSync(new URL(`${String(frozen).padStart(4, '0')}.sql`, folder), 'utf8');
    const parts = text.split(/^-- statement: (\w+)\n/m).slice(1);
    this.statements = new Map(parts.flatMap((part, n) => (n % 2 ? [] : [[part, parts[n + 1]!]])));
    this.claimsBy = this.statements.has('claim_plain_jobs') ? 'claim_plain_jobs' : 'claim_jobs';
    this.pool = new pg.Pool({ connectionString: url, max: 3, application_name: workerId });
    this.pool.on('error', () => undefined);
  }

  async register(): Promise<void> {
    await this.run('register_worker', [this.workerId, 'host', 1, 4, 30_000, ['task'], '{}']);
  }

  /** Enqueues and works without a pause until `stop`. */
  start(): void {
    this.loops = [this.repeat(() => this.addOne()), this.repeat(() => this.work()), this.repeat(() => this.beat())];
  }

  async stop(): Promise<void> {
    this.stopped = true;
    await Promise.all(this.loops);
  }

  async close(): Promise<void> {
    await this.stop();
    await this.pool.end();
  }

  async addOne(): Promise<string> {
    const id = newJobId();
    if (this.statements.has('add_alike_jobs')) {
      await this.run('add_alike_jobs', [[id], '{"by":"an earlier release"}', 'task', 0, 25, null, null, null]);
    } else {
      const spec = { id, task: 'task', priority: 0, max_attempts: 25 };
      await this.run('add_jobs', [JSON.stringify([spec]), '[{"by":"an earlier release"}]', null]);
    }
    this.added.push(id);
    return id;
  }

  async claim(limit: number): Promise<Claim[]> {
    if (this.claimsBy === 'claim_plain_jobs') {
      const rows = await this.run('claim_plain_jobs', [this.workerId, limit, ['task'], null, [], [], []]);
      const jobs = rows.slice(1).map(({ job }) => JSON.parse(job as string) as unknown[]);
      return jobs.map((job) => ({ id: job[0] as string, fence: String(job[8]) }));
    }
    const cursor = [[], [], [], [], ...ALL_PRIORITIES];
    const values: unknown[] = [this.workerId, limit, 0, ['task'], null, null, null, ...cursor, null];
    // Since version 3: whether to look for jobs that need a free slot.
    if (this.statements.get('claim_jobs')!.includes('$16')) values.push(false);
    const rows = await this.run('claim_jobs', values);
    const claimed = rows.filter(({ verdict }) => verdict === 'claimed');
    return claimed.map(({ id, fence }) => ({ id: id as string, fence: String(fence) }));
  }

  /** Effect and completion of each claim in one transaction, as a transactional task has them. */
  async complete(claims: Claim[]): Promise<void> {
    const ids = claims.map(({ id }) => id);
    const values: unknown[] = [this.workerId, ids, claims.map(({ fence }) => fence), ids.map(() => 1)];
    values.push(
      ids.map(() => '"done"'),
      true,
      RETENTION_MS,
      null,
    );
    if (this.statements.get('complete_jobs')!.includes('$9')) values.push('skip');
    await this.insist(async () => {
      const client = await this.pool.connect();
      try {
        await client.query('begin');
        await client.query('insert into effects select unnest($1::uuid[]), $2', [ids, this.workerId]);
        const { rows } = await client.query<{ became: string }>(this.query('complete_jobs', values));
        if (this.hasSkipped(ids, rows))
          throw Object.assign(new Error('Somebody is looking at the job.'), { code: '40001' });
        await client.query('commit');
      } catch (error) {
        await client.query('rollback');
        throw error;
      } finally {
        client.release();
      }
    });
  }

  /** Rows that somebody else has locked for a moment are skipped; every release settles them once more then. */
  private hasSkipped(ids: string[], rows: { became: string }[]): boolean {
    // Since version 3 a plain completion returns nothing.
    const quiet = this.statements.get('complete_jobs')!.includes('$9');
    return quiet ? rows.some(({ became }) => became === 'missing') : rows.length < ids.length;
  }

  private async work(): Promise<void> {
    const claims = await this.claim(2);
    if (claims.length) await this.complete(claims);
    else await pause();
  }

  private async beat(): Promise<void> {
    const values: unknown[] = [this.workerId];
    if (this.statements.get('heartbeat')!.includes('$2')) values.push([]);
    await this.run('heartbeat', values);
    await pause();
  }

  private async repeat(step: () => Promise<unknown>): Promise<void> {
    while (!this.stopped) {
      await step().catch((error: unknown) => this.failures.push(error));
      await pause();
    }
  }

  private async run(name: string, values: unknown[]): Promise<Record<string, unknown>[]> {
    return this.insist(async () => (await this.pool.query(this.query(name, values))).rows);
  }

  /** Named, as it was sent: the server keeps such a statement over the migration. */
  private query(name: string, values: unknown[]): pg.QueryConfig {
    return { name, text: this.statements.get(name)!, values };
  }

  private async insist<T>(work: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await work();
      } catch (error) {
        if (!CONFLICTS.includes((error as { code?: string }).code ?? '')) throw error;
      }
    }
  }
}

const pause = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));
