// What a batch handler returns: results in the order of its jobs, or by their ids.
import type { ClaimedJob } from '../interfaces/job.interface.js';
import { show } from '../validation.js';
import { isPartialSuccess, isSnooze, isVerdict } from './outcome.js';

/** What one job is given: as a handler of its own returns or throws it. */
export type Result = { returned: unknown } | { thrown: unknown };

export interface BatchResults {
  of: (job: ClaimedJob, index: number) => Result;
  /** Why what was returned could not be kept. The work is done all the same. */
  problem?: Error;
}

const NOTHING: Result = { returned: undefined };

/**
 * An array has one result for each job; an Error in it fails its job, and what Promise.allSettled returns is understood. A
 * Map has results by job or id. A snooze, a partial success and a verdict are for all jobs.
 */
export function readResults(value: unknown, jobs: ClaimedJob[]): BatchResults {
  if (value === undefined || value === null) return { of: () => NOTHING };
  if (isVerdict(value)) return { of: () => ({ thrown: value }) };
  if (isSnooze(value) || isPartialSuccess(value)) return { of: () => ({ returned: value }) };
  if (Array.isArray(value) && value.length === jobs.length) return ofArray(value);
  if (value instanceof Map) return ofMap(value, jobs);
  const got = Array.isArray(value) ? `an array of ${value.length}` : show(value);
  const expected = `an array of ${jobs.length} results, a Map of results by job id, or nothing`;
  const problem = new Error(`Expected a batch handler to return ${expected}, got ${got}; it was not kept.`);
  return { of: () => NOTHING, problem };
}

function ofArray(values: unknown[]): BatchResults {
  if (values.every(isSettled)) {
    return { of: (_job, index) => resultOf(values[index] as PromiseSettledResult<unknown>) };
  }
  return {
    of: (_job, index) => (values[index] instanceof Error ? { thrown: values[index] } : { returned: values[index] }),
  };
}

function ofMap(results: Map<unknown, unknown>, jobs: ClaimedJob[]): BatchResults {
  const byId = new Map([...results].map(([key, value]) => [(key as ClaimedJob | null)?.id ?? key, value]));
  const unknown = [...byId.keys()].filter((id) => !jobs.some((job) => job.id === id));
  const of = ({ id }: ClaimedJob): Result => {
    const value = byId.get(id);
    return value instanceof Error ? { thrown: value } : { returned: value };
  };
  if (!unknown.length) return { of };
  return {
    of,
    problem: new Error(`Expected results of jobs of the batch, got some of ${unknown.map(show).join(', ')}.`),
  };
}

const resultOf = (settled: PromiseSettledResult<unknown>): Result =>
  settled.status === 'fulfilled' ? { returned: settled.value } : { thrown: settled.reason };

/** What Promise.allSettled makes, and nothing else. */
function isSettled(value: unknown): value is PromiseSettledResult<unknown> {
  if (typeof value !== 'object' || value === null || Object.keys(value).length !== 2) return false;
  const { status } = value as { status?: unknown };
  return (status === 'fulfilled' && 'value' in value) || (status === 'rejected' && 'reason' in value);
}
