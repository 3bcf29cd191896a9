// A process that dies between any two of its statements leaves nothing undone for ever: one sweep, one rescue and the
// work of others bring everything to its end.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { createJobManager, type ClaimedJob, type JobManager } from '../../lib/index.js';
import { createTestManager, type TestManager, WORKER } from '../support/manager.js';
import { asPool, claimAsPool, registerPool } from '../support/pool.claims.js';
import { completeAndClaim, HOUR, outcomeOf } from './actions.js';
import { expectInvariants } from './invariants.js';
import { emptyTables, letPoolsDie, letTimeCome, readJobs } from './tables.js';
import type { Outcome } from './transitions.js';

let test: TestManager;
beforeAll(async () => {
  test = await createTestManager({ retry: { baseDelayMs: HOUR } });
});
afterAll(() => test.close());

/** A process that dies after some statements: what it has sent is committed or rolled back, what comes next is never sent. */
class Mortal {
  left: number;
  private readonly clients = new Set<pg.Client>();

  constructor(statements: number) {
    this.left = statements;
  }

  static async start(url: string): Promise<{ jobs: JobManager; mortal: Mortal }> {
    const mortal = new Mortal(Infinity);
    const jobs = await createJobManager({
      connection: mortal.connection(url),
      migrate: false,
      retry: { baseDelayMs: HOUR },
    });
    await jobs.counts();
    return { jobs, mortal };
  }

  private connection(url: string): pg.PoolConfig {
    const { clients } = this;
    const mayLive = (): boolean => this.mayLive();
    class Client extends pg.Client {
      constructor(config?: pg.ClientConfig) {
        super(config);
        clients.add(this);
        this.on('error', () => undefined);
      }
      query(...asked: any[]): any {
        if (mayLive()) return (pg.Client.prototype.query as (...all: any[]) => any).apply(this, asked);
        const dead = new Error('this process is dead');
        const callback = asked.at(-1) as unknown;
        if (typeof callback === 'function') return process.nextTick(callback as (error: Error) => void, dead);
        return Promise.reject(dead);
      }
    }
    return { connectionString: url, max: 2, Client } as pg.PoolConfig;
  }

  private mayLive(): boolean {
    if (this.left-- > 0) return true;
    this.die();
    return false;
  }

  /** As a process that is killed: the server sees that its connections have gone. */
  die(): void {
    for (const client of this.clients)
      (client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
  }
}

const POOL = 'pool-of-the-dead';

interface Scene {
  claimed: ClaimedJob[];
  ids: string[];
}

/**
 * Three parents, one with a key, in a queue and with a limit, one whose only child waits whatever becomes of it; their
 * children and grandchild; one behind the key.
 */
async function setScene(): Promise<Scene> {
  const { jobs, sql } = test;
  await emptyTables(sql);
  await jobs.registerRateLimit('l', 100, HOUR);
  await registerPool(jobs, POOL, HOUR);
  const one = await jobs.addJob('x', {}, { queue: 'q', jobKey: 'k', maxAttempts: 2, rateLimitKey: 'l' });
  const two = await jobs.addJob('x', {}, { maxAttempts: 3 });
  const three = await jobs.addJob('x', {}, { maxAttempts: 3 });
  const child = await jobs.addJob('x', {}, { dependsOn: [one.id, two.id] });
  const lonely = await jobs.addJob('x', {}, { dependsOn: [three.id], onParentFailure: 'wait' });
  const patient = await jobs.addJob('x', {}, { dependsOn: [one.id], onParentFailure: 'wait' });
  const grandchild = await jobs.addJob('x', {}, { dependsOn: [child.id], onParentFailure: 'run' });
  const claimed = await claimAsPool(jobs, POOL, { limit: 3 });
  expect(claimed.map(({ id }) => id).toSorted()).toEqual([one.id, two.id, three.id].toSorted());
  const next = await jobs.addJob('x', {}, { queue: 'q' });
  const heir = await jobs.addJob('x', {}, { jobKey: 'k', queue: 'q' });
  return { claimed, ids: [one, two, child, patient, grandchild, next, heir, three, lonely].map(({ id }) => id) };
}

const settleAs =
  (outcome: Outcome) =>
  async (jobs: JobManager, { claimed }: Scene): Promise<void> => {
    const requests = claimed.map((job) => ({ job, outcome: outcomeOf(outcome), executionTimeMs: 1 }));
    await jobs.engine.settlement.settle(asPool(POOL), requests);
  };

const CALLS: Record<string, (jobs: JobManager, scene: Scene) => Promise<unknown>> = {
  'completing jobs': settleAs('completed'),
  'completing jobs and claiming by the same commit': (jobs, { claimed }) => {
    const claims = claimed.map((job) => ({ worker: POOL, job }));
    return completeAndClaim(jobs, claims, { batch: 2, filter: 0, share: 2, alone: true });
  },
  'failing jobs': settleAs('failed'),
  'failing jobs for good': settleAs('permanent'),
  'cancelling its own jobs': settleAs('cancelled'),
  'giving jobs back': settleAs('released'),
  'cancelling jobs': (jobs, { ids }) => jobs.cancelJobs(ids),
  'failing jobs for good by hand': (jobs, { ids }) => jobs.permanentlyFailJobs(ids),
  'unlocking jobs': (jobs) => jobs.forceUnlockJobs(),
  'rescuing jobs': async (jobs) => {
    await letPoolsDie(test.sql, [POOL]);
    await jobs.engine.registry.rescue(1);
  },
  'adding a job in the place of another': (jobs) => jobs.addJob('x', {}, { jobKey: 'k' }),
  'adding a child': (jobs, { ids }) => jobs.addJob('x', {}, { dependsOn: ids.slice(0, 4) }),
  'adding many': (jobs, { ids }) =>
    jobs.addJobs([
      { task: 'x', payload: 1, dependsOn: [ids[1]!] },
      { task: 'x', payload: 1, jobKey: 'k' },
      { task: 'x', payload: 1, queue: 'q' },
    ]),
  'claiming jobs': (jobs) => claimAsPool(jobs, POOL),
  'claiming jobs by hand': (jobs) => jobs.getJobs(WORKER, { batchSize: 10, leaseMs: 1 }),
  'signing off': (jobs) => jobs.engine.registry.unregister(POOL),
  sweeping: (jobs) => jobs.engine.promoter.sweepNow(),
  'retrying jobs': async (jobs, { ids }) => {
    await test.jobs.cancelJobs(ids.slice(2));
    await jobs.retryJobs(ids);
  },
  'purging jobs': async (jobs, { ids }) => {
    await test.jobs.cancelJobs(ids.slice(2, 4));
    await jobs.purgeJobs({ status: 'cancelled', olderThanMs: 0 });
  },
};

/** What pools and time do; then nothing may be left but what waits for an operator, or for a parent that failed by its own wish. */
async function liveOn(): Promise<void> {
  const { jobs, sql } = test;
  await jobs.engine.promoter.sweepNow();
  await expectInvariants(sql);
  await letPoolsDie(sql, [POOL]);
  await sql(`update jobs.jobs set lease_expires_at = now() - interval '1 s' where lease_ms is not null`);
  await jobs.resetLockedJobs();
  await expectInvariants(sql);
  for (let idle = 0; idle < 2;) {
    await letTimeCome(sql);
    const claimed = await jobs.getJobs(WORKER, { batchSize: 50 });
    expect((await jobs.completeJobs(WORKER, claimed, 1)).lost).toEqual([]);
    idle = claimed.length ? 0 : idle + 1;
  }
  await expectInvariants(sql);
  const left = [...(await readJobs(sql)).values()].filter(
    ({ standing }) => standing === 'waiting' || standing === 'running',
  );
  const patient = await sql<{ id: string }>(`
    select d.child_id as id from jobs.job_dependencies d
    left join jobs.jobs p on p.id = d.parent_id where p.id is null or p.parked = 'exhausted'`);
  expect(left.filter(({ id }) => !patient.some((job) => job.id === id))).toEqual([]);
}

describe('a process that dies while it is', () => {
  it.each(Object.keys(CALLS))(
    '%s leaves nothing undone, whichever statement was its last',
    async (name) => {
      for (let statements = 0; ; statements++) {
        const scene = await setScene();
        const { jobs, mortal } = await Mortal.start(test.url);
        mortal.left = statements;
        const finished = await CALLS[name]!(jobs, scene).then(
          () => mortal.left > 0,
          () => false,
        );
        await jobs.engine.publisher.idle();
        mortal.left = 0;
        mortal.die();
        await jobs.close().catch(() => undefined);
        try {
          await liveOn();
        } catch (error) {
          throw new Error(`${name}, dead after ${statements} statements: ${(error as Error).message}`, {
            cause: error,
          });
        }
        if (finished) return;
        expect(statements).toBeLessThan(40);
      }
    },
    120_000,
  );
});
