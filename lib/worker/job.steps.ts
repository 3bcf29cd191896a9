// Durable steps of one attempt: what an earlier attempt has done is not done again.
import { AsyncLocalStorage } from 'node:async_hooks';
import type { ClaimedJob, PartialResults, QueryExecutor } from '../interfaces/job.interface.js';
import { DatabaseUnavailableError, InvalidArgumentError, StepResultError } from '../jobs.errors.js';
import type { AttemptStore, Claim, Step } from '../manager/attempt.store.js';
import { exactJson, MAX_JSON_BYTES } from '../manager/exact.json.js';
import { backoffMs, pause } from '../timing.js';

/** The fence of a job that was never claimed before. */
const FIRST_CLAIM = '1';
/** Steps that an earlier attempt reported by hand come before all that are kept by name. */
const REPORTED = -1;

/** The step inside which a call is made. */
const caller = new AsyncLocalStorage<{ steps: JobSteps; name: string }>();

/** `problem`: why the results of steps are not among the partial results. */
export interface Completion {
  partialResults: PartialResults;
  problem?: Error;
}

type Steps = Map<string, Step>;

/** What steps need to know of their attempt. */
interface AttemptOfSteps extends Claim {
  /** Of a transactional task. */
  readonly transaction: { readonly manager: QueryExecutor } | null;
  readonly isAborted: boolean;
  /** @throws AttemptOverError once the attempt has ended */
  assertOpen(): void;
  /** @throws AttemptOverError, or the reason of an abort */
  assertRunning(): void;
}

export class JobSteps {
  private known: Promise<Steps> | null = null;
  private readonly underWay = new Map<string, Promise<unknown>>();
  /** Which steps under way wait for which: a circle would never end. */
  private readonly waits = new Map<string, Set<string>>();
  private nextPosition = 0;
  private isUsed = false;
  private hasSaved = false;

  constructor(
    private readonly records: AttemptStore,
    private readonly attempt: AttemptOfSteps,
  ) {}

  /** Calls that come while the step is under way share its result. */
  async run(name: string, work: () => unknown): Promise<unknown> {
    const outer = caller.getStore();
    if (outer?.steps !== this) return this.share(name, work);
    this.assertNoCircle(outer.name, name);
    const inner = this.waits.get(outer.name) ?? new Set();
    this.waits.set(outer.name, inner.add(name));
    return this.share(name, work).finally(() => inner.delete(name));
  }

  /** Adds what the steps know to what a handler reports of a half-done attempt. */
  async complete(reported: PartialResults): Promise<Completion> {
    const { retryFromStep } = reported;
    if (!this.isUsed && !retryFromStep) return { partialResults: reported };
    const steps = [...(await this.load()).values()].toSorted((a, b) => a.position - b.position);
    const end = steps.findIndex(({ name }) => name === retryFromStep);
    const kept = end < 0 ? steps : steps.slice(0, end);
    const forgotten = steps.slice(kept.length).map(({ name }) => name);
    if (forgotten.length) await this.records.forgetSteps(this.attempt, forgotten, this.executor);
    const completedSteps = [...new Set([...(reported.completedSteps ?? []), ...kept.map(({ name }) => name)])];
    const partialResults = { ...reported, completedSteps };
    exactJson('the partial results', partialResults);
    return reported.results === undefined ? withResults(partialResults, kept) : { partialResults };
  }

  /** The transaction of a transactional task. */
  private get executor(): QueryExecutor | undefined {
    return this.attempt.transaction?.manager;
  }

  private share(name: string, work: () => unknown): Promise<unknown> {
    let step = this.underWay.get(name);
    if (!step) {
      step = this.runOnce(name, work).finally(() => this.underWay.delete(name));
      this.underWay.set(name, step);
    }
    return step;
  }

  private async runOnce(name: string, work: () => unknown): Promise<unknown> {
    this.isUsed = true;
    const done = (await this.load()).get(name);
    if (done) return parsed(done.result);
    this.attempt.assertRunning();
    const value = await caller.run({ steps: this, name }, work);
    const step = { name, result: resultText(name, value), position: this.nextPosition++ };
    await this.save(step);
    return parsed(step.result);
  }

  /** The work is done: its note is repeated while the database is away, as doing the work twice is what steps prevent. */
  private async save(step: Step): Promise<void> {
    for (let failures = 0; ; failures++) {
      this.attempt.assertOpen();
      try {
        await this.records.saveStep(this.attempt, step, this.executor);
        break;
      } catch (error) {
        const mayRepeat = !this.executor && error instanceof DatabaseUnavailableError && !this.attempt.isAborted;
        if (!mayRepeat) throw error;
        await pause(backoffMs(failures));
      }
    }
    this.hasSaved = true;
    (await this.known)?.set(step.name, step);
  }

  /**
   * What is done. In a transaction only the database knows: a step in a savepoint that was rolled back is not done, whatever
   * it returned.
   */
  private async load(): Promise<Steps> {
    if (this.executor) return this.read();
    const known = (this.known ??= this.read());
    try {
      return await known;
    } catch (error) {
      if (this.known === known) this.known = null;
      throw error;
    }
  }

  private async read(): Promise<Steps> {
    const { job } = this.attempt;
    const isNew = job.fence === FIRST_CLAIM && !this.hasSaved;
    const kept = isNew ? [] : await this.records.findSteps(job.id, this.executor);
    for (const { position } of kept) this.nextPosition = Math.max(this.nextPosition, position + 1);
    return new Map([...reportedSteps(job), ...kept].map((step) => [step.name, step]));
  }

  /** @throws InvalidArgumentError where `outer` would wait for a step that waits for it */
  private assertNoCircle(outer: string, name: string): void {
    if (!this.waitsFor(name, outer)) return;
    throw new InvalidArgumentError([
      `Expected step "${outer}" not to call a step that waits for it, got "${name}": it would wait for itself. Give the ` +
        'inner step a name of its own.',
    ]);
  }

  private waitsFor(name: string, other: string, seen = new Set<string>()): boolean {
    if (name === other) return true;
    if (seen.has(name)) return false;
    seen.add(name);
    return [...(this.waits.get(name) ?? [])].some((inner) => this.waitsFor(inner, other, seen));
  }
}

/** Steps that the last partial success said were completed, with the results it named. */
function reportedSteps({ previous }: ClaimedJob): Step[] {
  const { completedSteps = [], failedSteps = [], retryFromStep, results } = previous ?? {};
  const values = typeof results === 'object' && results !== null ? (results as Record<string, unknown>) : {};
  const valid = completedSteps.filter((name) => name !== retryFromStep && !failedSteps.includes(name));
  const textOf = (name: string): string | undefined =>
    Object.hasOwn(values, name) ? JSON.stringify(values[name]) : undefined;
  return valid.map((name) => ({ name, position: REPORTED, result: textOf(name) ?? null }));
}

/** The results of steps are kept with the steps: among the partial results they are for reading, and have to fit. */
function withResults(reported: PartialResults, steps: Step[]): Completion {
  const rest = Buffer.byteLength(JSON.stringify(reported));
  if (rest + steps.reduce((sum, step) => sum + bytesOf(step), 0) <= MAX_JSON_BYTES) {
    const results = Object.fromEntries(steps.map(({ name, result }) => [name, parsed(result)]));
    return { partialResults: { ...reported, results } };
  }
  const problem = new Error(
    `The results of ${steps.length} steps have more than ${MAX_JSON_BYTES} bytes of JSON together, so they are not among ` +
      'the partial results. The steps keep them.',
  );
  return { partialResults: reported, problem };
}

/** In JSON, with its name, two quotes, a colon and a comma. */
const bytesOf = ({ name, result }: Step): number =>
  Buffer.byteLength(JSON.stringify(name)) + Buffer.byteLength(result ?? '') + 4;

/** @throws StepResultError: the work is done, and a retry would do it again only to fail in the same way */
function resultText(name: string, value: unknown): string | null {
  try {
    return exactJson(`the result of step "${name}"`, value) ?? null;
  } catch (error) {
    throw new StepResultError(name, error as InvalidArgumentError);
  }
}

/** What the first run returns is what a retry will get: the value after its way through JSON. */
const parsed = (text: string | null): unknown => (text === null ? undefined : (JSON.parse(text) as unknown));
