// What a process declares (crontabs of its tasks, concurrencies of queues), written in the name of its release. While
// releases run side by side, the newest has the say: a process of an older one that starts again changes nothing, and a
// release that comes back has the say again once the newer one is gone.
import type { QueueSettings } from '../interfaces/jobs-options.interface.js';
import { MissingPrivilegesError } from '../jobs.errors.js';
import type { Database } from '../storage/database.js';
import { isReadOnly } from '../storage/database.errors.js';
import * as crons from '../storage/statements/crontabs.js';
import { declareQueue, findUndeclaredQueues } from '../storage/statements/queues.js';
import { joinRelease, leaveReleases, pruneReleases } from '../storage/statements/releases.js';
import { setBackTimes } from '../storage/statements/workers.js';
import { tryBriefly } from './brief.lock.js';
import type { Crontabs, PreparedCrontab } from './crontabs.js';
import { digestOf } from './digest.js';
import type { TaskDefinition } from './task.registry.js';

export interface DeclarationsParts {
  database: Database;
  crontabs: Crontabs;
  /** Declared queues by name. */
  queues: Readonly<Record<string, QueueSettings>>;
  /** Tells pools that jobs of these queues may run. */
  publish: (queues: string[]) => Promise<void>;
}

export class Declarations {
  private readonly queues: Map<string, { concurrency: number | null; partitions: string; maxWaiting: number | null }>;
  private readonly queueRelease: string;

  constructor(private readonly parts: DeclarationsParts) {
    const queues = Object.entries(parts.queues).map(
      ([name, queue]) => [name, { ...queue, partitions: JSON.stringify(queue.partitions) }] as const,
    );
    this.queues = new Map(queues.toSorted(([a], [b]) => (a < b ? -1 : 1)));
    this.queueRelease = digestOf(['queues', ...this.queues]);
  }

  /** Writes the declared queues' concurrencies. `workerId`: the pool that stands for them as long as it runs. */
  async declareQueues(workerId: string | null = null): Promise<void> {
    if (!this.queues.size) return;
    try {
      await join(this.parts.database, this.queueRelease, workerId);
      await this.writeQueues(this.queueRelease);
    } catch (error) {
      // A process that may only enqueue, or look, leaves it to those that work; theirs is what counts.
      const isOther = workerId === null && isReadOnly(error);
      if (!isOther && !(error instanceof MissingPrivilegesError)) throw error;
    }
  }

  /** The same for what has changed since: queues are busy rows, so they are left alone where all is as declared. */
  async repeatQueues(): Promise<void> {
    if (this.queues.size) await this.writeQueues(null);
  }

  /** What a pool's tasks declare. @throws InvalidOptionsError, InvalidArgumentError, PayloadValidationError */
  async ofTasks(definitions: TaskDefinition[], workerId: string | null = null): Promise<TaskDeclarations> {
    const crontabs = await this.parts.crontabs.prepareDeclared(definitions);
    return new TaskDeclarations(this.parts.database, this, {
      crontabs,
      tasks: definitions.map(({ task }) => task),
      workerId,
    });
  }

  /** Each apart: one that some session holds is tried again by pools every half minute. */
  private async writeQueues(release: string | null): Promise<void> {
    const { database, publish: tell } = this.parts;
    const all = [...this.queues.values()];
    const [limits, partitions] = [all.map(({ concurrency }) => concurrency), all.map((one) => one.partitions)];
    const bounds = all.map(({ maxWaiting }) => maxWaiting);
    const asked = [[...this.queues.keys()], limits, release, partitions, bounds];
    const stale = (await tryBriefly(database, findUndeclaredQueues, asked)) ?? [];
    const written: string[] = [];
    for (const { name } of stale) {
      const queue = this.queues.get(name)!;
      const values = [name, queue.concurrency, queue.partitions, this.queueRelease, queue.maxWaiting];
      const rows = await tryBriefly(database, declareQueue, values);
      if (rows?.[0]?.changed) written.push(name);
    }
    if (written.length) await tell(written);
  }
}

/** In order; no limit is null. */

interface Declared {
  crontabs: PreparedCrontab[];
  /** All tasks of the process, with or without a crontab. */
  tasks: string[];
  workerId: string | null;
}

/** The declarations of one pool. */
export class TaskDeclarations {
  private readonly release: string;
  private joined = false;

  constructor(
    private readonly database: Database,
    private readonly all: Declarations,
    private readonly declared: Declared,
  ) {
    const contents = declared.crontabs.map(({ id, content }) => JSON.stringify([id, content]));
    this.release = digestOf(['tasks', declared.tasks.toSorted(), contents.toSorted()]);
  }

  /** Writes down the pool's queues and crontabs, and retires crontabs that no release declares any more. */
  async declare(): Promise<void> {
    const { crontabs, workerId } = this.declared;
    await tryBriefly(this.database, pruneReleases, []);
    await this.join();
    if (workerId !== null) await this.all.declareQueues(workerId);
    for (const crontab of crontabs) await this.put(crontab, true);
    await this.retire();
  }

  /** The same for what has changed since: another release is gone, or has overwritten something. */
  async repeat(): Promise<void> {
    const { crontabs, workerId } = this.declared;
    if (!this.joined) await this.join();
    if (workerId !== null) await this.all.repeatQueues();
    const values = [crontabs.map(({ id }) => id), crontabs.map(({ content }) => content)];
    const undeclared = (await tryBriefly(this.database, crons.findUndeclared, values)) ?? [];
    const stale = new Set(undeclared.map(({ id }) => id));
    for (const crontab of crontabs) if (stale.has(crontab.id)) await this.put(crontab, false);
    await this.retire();
  }

  /** The pool stops: other releases need not wait for it. */
  async withdraw(): Promise<void> {
    if (this.declared.workerId !== null) await tryBriefly(this.database, leaveReleases, [this.declared.workerId]);
  }

  private async join(): Promise<void> {
    this.joined = await join(this.database, this.release, this.declared.workerId);
  }

  /** Of one whose row another transaction holds, `repeat` finds that it is not as declared. */
  private async put({ values, content }: PreparedCrontab, add: boolean): Promise<void> {
    await tryBriefly(this.database, crons.declareCrontab, [...values, this.release, content, add]);
  }

  private async retire(): Promise<void> {
    const { tasks, crontabs } = this.declared;
    await tryBriefly(this.database, crons.retireCrontabs, [this.release, tasks, crontabs.map(({ id }) => id)]);
  }
}

/** False where another transaction holds the release. One that seems to be of the future would be newer than this one. */
async function join(database: Database, release: string, workerId: string | null): Promise<boolean> {
  await tryBriefly(database, setBackTimes, []);
  return (await tryBriefly(database, joinRelease, [release, workerId])) !== null;
}
