// The results that completeJobs is given for claims by hand.
import type { ClaimedJob, CompleteOptions } from '../interfaces/job.interface.js';
import { InvalidArgumentError } from '../jobs.errors.js';
import { check } from '../validation.js';
import { callOptions } from './call.arguments.js';
import { exactJson } from './exact.json.js';

/** As JSON text, job by job; null: none. @throws InvalidArgumentError */
export function resultsByHand(jobs: ClaimedJob[], options: CompleteOptions): (string | null)[] {
  check({}, [callOptions.completeJobs, options]);
  const { results } = options;
  if (!results) return [];
  if (results.length !== jobs.length) {
    throw new InvalidArgumentError([
      `Expected a result for each of the ${jobs.length} jobs, got ${results.length}. Use null where there is none.`,
    ]);
  }
  return results.map((result, index) => exactJson(`results[${index}]`, result) ?? null);
}
