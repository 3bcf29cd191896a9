// The transition table is explored as far as it goes; then the library walks along every edge of it.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type { ClaimedJob, JobManager } from '../../lib/index.js';
import { createTestManager, type TestManager } from '../support/manager.js';
import { settle } from './actions.js';
import { after, explore, holds, MAX_CRASHES, nameOf, reaching, stepName, wayToOpen, WORKERS } from './explorer.js';
import type { Edge, Graph, Step, World, Worker } from './explorer.js';
import { expectInvariants } from './invariants.js';
import { letLeasesEnd, letPoolsDie, letTimeCome, readJobs, stateOf } from './tables.js';
import type { Outcome } from './transitions.js';

/** MILLRACE_RUNS=1 or more: with three attempts as well. */
const ATTEMPTS = process.env.MILLRACE_RUNS ? [1, 2, 3] : [1, 2];

describe.each(ATTEMPTS)('the transition table of a job with %i attempts', (maxAttempts) => {
  const graph = explore(maxAttempts);
  const all = [...graph.worlds.values()];

  it('keeps its invariants in every state that can be reached', () => {
    expect(all.length).toBeGreaterThan(30);
    for (const world of all) {
      const { job } = world;
      expect(job.attempts).toBeGreaterThanOrEqual(job.standing === 'running' ? 1 : 0);
      expect(job.attempts).toBeLessThanOrEqual(job.maxAttempts);
      expect(WORKERS.filter((worker) => holds(world, worker)).length).toBeLessThanOrEqual(1);
      expect(job.holder === null).toBe(job.standing !== 'running');
    }
  });

  it('leads from everywhere to an end, by what workers and time do alone', () => {
    const ended = ({ job }: World): boolean => ['completed', 'exhausted', 'cancelled'].includes(job.standing);
    const byThemselves = ({ step }: Edge): boolean =>
      ['claim', 'settle', 'time passes', 'lease ends', 'pool dies'].includes(step.kind);
    expect(reaching(graph, ended, byThemselves).size).toBe(graph.worlds.size);
  });

  it('leads to completion from everywhere, given an operator', () => {
    const completed = ({ job }: World): boolean => job.standing === 'completed';
    expect(reaching(graph, completed, () => true).size).toBe(graph.worlds.size);
  });

  it('never leads out of completion', () => {
    for (const [name, world] of graph.worlds) {
      if (world.job.standing !== 'completed') continue;
      for (const edge of graph.edges.get(name)!) expect(graph.worlds.get(edge.to)!.job.standing).toBe('completed');
    }
  });
});

describe('the library', () => {
  let test: TestManager;
  beforeAll(async () => {
    test = await createTestManager({ retry: { baseDelayMs: 3_600_000, maxDelayMs: 36_000_000 } });
  });
  afterAll(() => test.close());

  it.each(ATTEMPTS)(
    'does what the table says, along every edge of a job with %i attempts',
    async (maxAttempts) => {
      const graph = explore(maxAttempts);
      const open = new Set([...graph.edges.values()].flat());
      const walkers = ['a', 'b', 'c', 'd'].map((name) => new Walker(test, graph, maxAttempts, `${name}${maxAttempts}`));
      await Promise.all(walkers.map((walker) => walker.walk(open)));
      expect(open.size).toBe(0);
      await expectInvariants(test.sql);
    },
    300_000,
  );
});

/** Sweeps look at all jobs, so one walker sweeps at a time. */
let sweeping: Promise<unknown> = Promise.resolve();
const alone = <T>(work: () => Promise<T>): Promise<T> => {
  const mine = sweeping.then(work);
  sweeping = mine.catch(() => undefined);
  return mine;
};

/** Takes a job along edges that nobody has taken yet, and compares it with the table after each step. */
class Walker {
  private readonly jobs: JobManager;
  private readonly names: Record<Worker, string>;
  private readonly claims: Partial<Record<Worker, ClaimedJob>> = {};
  private id = '';
  private world: World;

  constructor(
    private readonly test: TestManager,
    private readonly graph: Graph,
    private readonly maxAttempts: number,
    private readonly name: string,
  ) {
    this.jobs = test.jobs;
    this.names = { hand: `by-hand-of-${name}`, pool: `pool-of-walker-${name}` };
    this.world = graph.start;
  }

  async walk(open: Set<Edge>): Promise<void> {
    await this.reviveThePool();
    while (open.size) {
      await this.begin();
      for (;;) {
        const way = wayToOpen(this.graph, nameOf(this.world), open);
        if (!way) break;
        open.delete(way.at(-1)!);
        for (const { step } of way) await this.take(step);
      }
      if (!wayToOpen(this.graph, nameOf(this.graph.start), open)) return;
    }
  }

  private async begin(): Promise<void> {
    delete this.claims.hand;
    delete this.claims.pool;
    this.world = this.graph.start;
    this.id = (await this.jobs.addJob(this.name, {}, { maxAttempts: this.maxAttempts })).id;
  }

  private async take(step: Step): Promise<void> {
    const before = this.world;
    this.world = after(before, step);
    await this.perform(step, before);
    const stored = (await readJobs(this.test.sql, [this.id])).get(this.id)!;
    const { job } = this.world;
    const expected = { ...job, holder: job.holder && this.names[job.holder as Worker] };
    expect([stepName(step), nameOf(before), stateOf(stored)]).toEqual([
      stepName(step),
      nameOf(before),
      stateOf(expected),
    ]);
  }

  private async perform(step: Step, before: World): Promise<void> {
    const { jobs, id, claims } = this;
    const { sql } = this.test;
    switch (step.kind) {
      case 'claim': {
        const [claim] = await this.claim(step.worker);
        expect(claim?.id).toBe(this.world === before ? undefined : id);
        if (claim) claims[step.worker] = claim;
        return;
      }
      case 'settle': {
        const report = await this.settle(step.worker, claims[step.worker]!, step.outcome);
        expect(report).toBe(holds(before, step.worker) ? this.statusAfter(step.outcome, before) : 'lost');
        delete claims[step.worker];
        return;
      }
      case 'extend': {
        const extended = jobs.extendLease(this.names.hand, id).then(
          () => true,
          () => false,
        );
        expect(await extended).toBe(before.job.holder === 'hand');
        return;
      }
      case 'time passes':
        return void (await letTimeCome(sql, [id]));
      case 'lease ends':
        return alone(async () => {
          await letLeasesEnd(sql, [this.names.hand]);
          await jobs.resetLockedJobs();
        });
      case 'pool dies':
        return alone(async () => {
          await letPoolsDie(sql, [this.names.pool]);
          await jobs.claims.rescue(MAX_CRASHES);
          expect(await this.claim('pool')).toEqual([]);
          await this.reviveThePool();
        });
      case 'unlock':
        return void (await jobs.forceUnlockJobs(Object.values(this.names)));
      case 'revoke': {
        const { revision } = (await readJobs(sql, [id])).get(id)!;
        const revoked = jobs.revokeLease(id, revision).then(
          () => true,
          () => false,
        );
        expect(await revoked).toBe(before.job.standing === 'running');
        return;
      }
      case 'cancel':
        return void (await jobs.cancelJobs([id]));
      case 'retry':
        return void (await jobs.retryJobs([id]));
      case 'fail for good':
        return void (await jobs.permanentlyFailJobs([id]));
      case 'reschedule':
        return void (await jobs.rescheduleJobs([id], { maxAttempts: step.maxAttempts }));
    }
  }

  private async claim(worker: Worker): Promise<ClaimedJob[]> {
    const workerId = this.names[worker];
    const taskIdentifiers = [this.name];
    if (worker === 'hand') return this.jobs.getJobs(workerId, { taskIdentifiers, leaseMs: 3_600_000 });
    const limits = { limit: 1, slots: 1, lookForSlots: true, slotPriorityLimit: null };
    const request = {
      workerId,
      taskIdentifiers,
      forbiddenFlags: null,
      queues: null,
      leaseMs: null,
      cursor: [],
      ...limits,
    };
    return (await this.jobs.claims.claim(request)).jobs;
  }

  /** Returns the status that the library reports. */
  private async settle(worker: Worker, job: ClaimedJob, outcome: Outcome): Promise<string> {
    return (await settle(this.jobs, [{ worker: this.names[worker], job }], outcome))[0]!;
  }

  private statusAfter(outcome: Outcome, before: World): string {
    const { standing } = this.world.job;
    if (standing !== 'waiting') return standing;
    if (outcome === 'snoozed' || outcome === 'released') return outcome;
    expect(before.job.attempts).toBeLessThan(before.job.maxAttempts);
    return 'retrying';
  }

  private reviveThePool(): Promise<void> {
    const identity = { id: this.names.pool, host: 'here', pid: 1, concurrency: 1, tasks: [], leaseMs: 3_600_000 };
    return this.jobs.claims.registerWorker(identity);
  }
}
