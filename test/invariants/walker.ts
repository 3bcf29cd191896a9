// Takes the library along the edges of the explorer's graph.
import { expect } from '@jest/globals';
import type { ClaimedJob, JobManager } from '../../lib/index.js';
import type { TestManager } from '../support/manager.js';
import { byHand } from '../../lib/manager/worker.registry.js';
import { asPool, claimAsPool, registerPool } from '../support/pool.claims.js';
import { completeAndClaim, outcomeOf } from './actions.js';
import { after, holds, MAX_CRASHES, nameOf, stepName, wayToOpen } from './explorer.js';
import type { Edge, Graph, Step, World, Worker } from './explorer.js';
import { letLeasesEnd, letPoolsDie, letTimeCome, readJobs, stateOf } from './tables.js';
import type { Outcome } from './transitions.js';

/** Sweeps look at all jobs, so one walker sweeps at a time. */
let sweeping: Promise<unknown> = Promise.resolve();
const alone = <T>(work: () => Promise<T>): Promise<T> => {
  const mine = sweeping.then(work);
  sweeping = mine.catch(() => undefined);
  return mine;
};

/** Takes a job along edges not taken yet, and compares it with the table after each step. */
export class Walker {
  private readonly jobs: JobManager;
  private readonly names: Record<Worker, string>;
  private readonly claims: Partial<Record<Worker, ClaimedJob>> = {};
  private id = '';
  private world: World;
  private starts = 0;
  private completions = 0;

  constructor(
    private readonly test: TestManager,
    private readonly graph: Graph,
    private readonly maxAttempts: number,
    private readonly name: string,
  ) {
    this.jobs = test.jobs;
    this.names = { hand: `by-hand-of-${name}`, pool: '' };
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
    agree([stepName(step), nameOf(before), stateOf(stored)], [stepName(step), nameOf(before), stateOf(expected)]);
  }

  private async perform(step: Step, before: World): Promise<void> {
    const { jobs, id, claims } = this;
    const { sql } = this.test;
    switch (step.kind) {
      case 'claim': {
        const [claim] = await this.claim(step.worker);
        agree(
          [stepName(step), nameOf(before), claim?.id],
          [stepName(step), nameOf(before), this.world === before ? undefined : id],
        );
        if (claim) claims[step.worker] = claim;
        return;
      }
      case 'settle': {
        const report = await this.settle(step.worker, claims[step.worker]!, step.outcome);
        agree(report, holds(before, step.worker) ? this.statusAfter(step.outcome, before) : 'lost');
        delete claims[step.worker];
        return;
      }
      case 'extend': {
        const extended = jobs.extendLease(this.names.hand, id).then(
          () => true,
          () => false,
        );
        agree(await extended, before.job.holder === 'hand' && !before.job.cancelRequested);
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
          await jobs.engine.registry.rescue(MAX_CRASHES);
          agree(await this.claim('pool'), []);
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
        agree(await revoked, before.job.standing === 'running');
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
    return claimAsPool(this.jobs, workerId, { limit: 1, taskIdentifiers });
  }

  /** Returns the status that the library reports. */
  private async settle(worker: Worker, job: ClaimedJob, outcome: Outcome): Promise<string> {
    if (worker === 'pool' && outcome === 'completed' && this.completions++ % 2) return this.completeAndClaim(job);
    const claimer = worker === 'hand' ? byHand(this.names.hand, 3_600_000) : asPool(this.names.pool);
    const request = { job, outcome: outcomeOf(outcome), executionTimeMs: 1 };
    const { results, late } = await this.jobs.engine.settlement.settle(claimer, [request]);
    return [...results, ...((await late) ?? [])][0]!.status;
  }

  /** Without a free slot: the jobs of other walkers are theirs. */
  private async completeAndClaim(job: ClaimedJob): Promise<string> {
    const claims = [{ worker: this.names.pool, job }];
    const { statuses } = await completeAndClaim(this.jobs, claims, { batch: 0, filter: 0, share: 1, alone: true });
    return statuses[0]!;
  }

  private statusAfter(outcome: Outcome, before: World): string {
    const { standing } = this.world.job;
    if (standing !== 'waiting') return standing;
    if (outcome === 'snoozed' || outcome === 'released') return outcome;
    agree(before.job.attempts < before.job.maxAttempts, true);
    return 'retrying';
  }

  /** Another incarnation: what has died claims no more. */
  private reviveThePool(): Promise<void> {
    this.names.pool = `pool-of-walker-${this.name} #${++this.starts}`;
    return registerPool(this.jobs, this.names.pool, 3_600_000);
  }
}

function agree(found: unknown, expected: unknown): void {
  expect(found).toEqual(expected);
}
