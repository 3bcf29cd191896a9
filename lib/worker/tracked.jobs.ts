// The JobManager that a transactional handler gets: the attempt waits for what the handler asks of it, awaited or not.
import type { JobManager } from '../manager/job.manager.js';

/** An attempt that waits for what it is given to keep. */
interface Keeper {
  readonly isOpen: boolean;
  keep<T>(work: () => Promise<T>): Promise<T>;
}

type Method = (...args: unknown[]) => unknown;

export const trackedJobs = (jobs: JobManager, attempt: Keeper): JobManager =>
  new Proxy(jobs, {
    get(target, property): unknown {
      const value: unknown = Reflect.get(target, property, target);
      if (typeof value !== 'function') return value;
      return (...args: unknown[]) => {
        if (!attempt.isOpen) return attempt.keep(refused);
        const answer = (value as Method).apply(target, args);
        return answer instanceof Promise ? attempt.keep(() => answer) : answer;
      };
    },
  });

/** The attempt refuses before it is called. */
const refused = (): Promise<never> => Promise.reject(new Error('not reached'));
