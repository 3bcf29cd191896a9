// The transition table is explored as far as it goes; then the library walks along every edge of it.
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { createTestManager, type TestManager } from '../support/manager.js';
import { after, explore, holds, nameOf, reaching, stepName, stepsOf, WORKERS } from './explorer.js';
import type { Edge, World } from './explorer.js';
import { expectInvariants } from './invariants.js';
import { Walker } from './walker.js';

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

describe('worlds of one name', () => {
  it.each(ATTEMPTS)('lead by the same step to worlds of one name, with %i attempts', (maxAttempts) => {
    const { start } = explore(maxAttempts);
    const met = new Set<string>();
    const leads = new Map<string, Set<string>>();
    walkOn(start);
    expect([...leads].filter(([, names]) => names.size > 1)).toEqual([]);

    /** Tells apart by all that a step may look at, not by the name alone. */
    function walkOn(world: World): void {
      const { job } = world;
      const whole = JSON.stringify([nameOf(world), job.due, job.attempts, job.crashes, job.maxAttempts]);
      if (met.has(whole)) return;
      met.add(whole);
      for (const step of stepsOf(world, maxAttempts)) {
        const to = after(world, step);
        const way = `${nameOf(world)}: ${stepName(step)}`;
        leads.set(way, (leads.get(way) ?? new Set()).add(nameOf(to)));
        walkOn(to);
      }
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
