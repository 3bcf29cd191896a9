// Durable steps of one attempt: what an earlier attempt has done is not done again.
import type { ClaimedJob, PartialResults, QueryExecutor } from '../interfaces/job.interface.js';
import { type AttemptRecords, type Claim, jsonOf } from '../manager/attempt.records.js';

/** The fence of a job that nobody has claimed before. */
const FIRST_CLAIM = '1';

export class JobSteps {
  /** Results as JSON text by name, in the order in which they were done; null until somebody asks. */
  private done: Promise<Map<string, string | null>> | null = null;
  private readonly underWay = new Map<string, Promise<unknown>>();

  constructor(
    private readonly records: AttemptRecords,
    private readonly claim: Claim,
    /** The transaction of a transactional task. */
    private readonly executor: QueryExecutor | undefined,
  ) {}

  /** Calls that come while the step is under way share its result. */
  run(name: string, work: () => unknown): Promise<unknown> {
    let step = this.underWay.get(name);
    if (!step) {
      step = this.runOnce(name, work).finally(() => this.underWay.delete(name));
      this.underWay.set(name, step);
    }
    return step;
  }

  /** Adds what the steps know to what a handler reports of a half-done attempt. */
  async complete(reported: PartialResults): Promise<PartialResults> {
    if (reported.retryFromStep) await this.records.forgetSteps(this.claim, reported.retryFromStep, this.executor);
    if (!this.done) return reported;
    const steps = [...(await this.done)];
    const end = steps.findIndex(([name]) => name === reported.retryFromStep);
    const kept = end < 0 ? steps : steps.slice(0, end);
    return {
      ...reported,
      completedSteps: [...new Set([...(reported.completedSteps ?? []), ...kept.map(([name]) => name)])],
      results: reported.results ?? Object.fromEntries(kept.map(([name, text]) => [name, parsed(text)])),
    };
  }

  private async runOnce(name: string, work: () => unknown): Promise<unknown> {
    const done = await (this.done ??= this.load());
    if (!done.has(name)) {
      const result = jsonOf(`the result of step "${name}"`, await work()) ?? null;
      await this.records.saveStep(this.claim, { name, result }, done.size, this.executor);
      done.set(name, result);
    }
    return parsed(done.get(name)!);
  }

  private async load(): Promise<Map<string, string | null>> {
    const { job } = this.claim;
    const steps = job.fence === FIRST_CLAIM ? [] : await this.records.findSteps(job.id, this.executor);
    return new Map([
      ...reportedSteps(job),
      ...steps.map(({ name, result }): [string, string | null] => [name, result]),
    ]);
  }
}

/** Steps that the last partial success said were completed, with the results it named. */
function reportedSteps({ previous }: ClaimedJob): [string, string | null][] {
  const { completedSteps = [], failedSteps = [], retryFromStep, results } = previous ?? {};
  const values = typeof results === 'object' && results !== null ? (results as Record<string, unknown>) : {};
  const valid = completedSteps.filter((name) => name !== retryFromStep && !failedSteps.includes(name));
  return valid.map((name) => [name, jsonOf(name, Object.hasOwn(values, name) ? values[name] : undefined) ?? null]);
}

/** What the first run returns is what a retry will get: the value after its way through JSON. */
const parsed = (text: string | null): unknown => (text === null ? undefined : (JSON.parse(text) as unknown));
