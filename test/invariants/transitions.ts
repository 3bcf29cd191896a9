// What may become of one job: the transition table, without queues, keys and parents. The explorer walks all of it, the
// model of the random commands builds on it, and both are replayed against the library.

export type Standing = 'waiting' | 'running' | 'exhausted' | 'completed' | 'cancelled';

export interface JobState {
  readonly standing: Standing;
  /** Whether its run-at has come. */
  readonly due: boolean;
  readonly attempts: number;
  readonly maxAttempts: number;
  readonly crashes: number;
  readonly fence: number;
  readonly holder: string | null;
  /** Held by hand, with a lease of its own; else by a pool, which lives by its heartbeat. */
  readonly byHand: boolean;
  readonly cancelRequested: boolean;
  /** Another job has taken its key while it ran. */
  readonly superseded: boolean;
  /** Its history: the status of each finished attempt. */
  readonly records: readonly string[];
}

export const newJob = (maxAttempts: number, due = true): JobState => ({
  standing: 'waiting',
  due,
  attempts: 0,
  maxAttempts,
  crashes: 0,
  fence: 0,
  holder: null,
  byHand: false,
  cancelRequested: false,
  superseded: false,
  records: [],
});

/** How a holder ends its attempt. Retries and snoozes of these models lie in the future. */
export type Outcome = 'completed' | 'failed' | 'permanent' | 'partial' | 'snoozed' | 'cancelled' | 'released';

/**
 * How an attempt ends without its holder's word. `rescue`: its pool died; `spare`: its pool died of another job, so its attempt
 * does not count.
 */
export type TakenAway = 'unlock' | 'revoke' | 'rescue' | 'spare';

const over = { holder: null, byHand: false } as const;

export const claimed = (job: JobState, holder: string, byHand: boolean): JobState => ({
  ...job,
  standing: 'running',
  attempts: job.attempts + 1,
  fence: job.fence + 1,
  holder,
  byHand,
});

export function settled(job: JobState, outcome: Outcome): JobState {
  const end = (standing: Standing, record: string | null, more: Partial<JobState> = {}): JobState => {
    const records = record ? [...job.records, record] : job.records;
    return { ...job, ...over, crashes: 0, ...more, standing, records };
  };
  const cancelled = (): JobState => end('cancelled', 'cancelled', { crashes: job.crashes });
  if (outcome === 'completed') return job.cancelRequested ? cancelled() : end('completed', 'completed');
  if (outcome === 'released' && !job.cancelRequested) {
    const given = end('waiting', null, { attempts: job.attempts - 1, crashes: job.crashes });
    return job.superseded ? leftWaiting(given) : given;
  }
  if (job.cancelRequested || job.superseded || outcome === 'cancelled') return cancelled();
  if (outcome === 'snoozed') return end('waiting', 'snoozed', { attempts: job.attempts - 1, due: false });
  const record = outcome === 'partial' ? 'partial_success' : 'failed';
  if (outcome === 'permanent' || job.attempts >= job.maxAttempts) return end('exhausted', record);
  return end('waiting', record, { due: false });
}

export function takenAway(job: JobState, how: TakenAway, maxCrashes = 3): JobState {
  if (job.cancelRequested || job.superseded)
    return { ...job, ...over, standing: 'cancelled', records: [...job.records, 'cancelled'] };
  const crashes = job.crashes + (how === 'rescue' ? 1 : 0);
  const isGivenBack = how === 'revoke' || how === 'spare';
  const usedUp = !isGivenBack && job.attempts >= job.maxAttempts;
  const exhausted = usedUp || (how === 'rescue' && crashes >= maxCrashes);
  return {
    ...job,
    ...over,
    crashes,
    attempts: job.attempts - (isGivenBack ? 1 : 0),
    standing: exhausted ? 'exhausted' : 'waiting',
    records: [...job.records, 'failed'],
  };
}

/** Whether it is to blame, and no other, when its pool dies. */
export const isSuspect = ({ crashes }: JobState, maxCrashes = 3): boolean => crashes > 0 && crashes >= maxCrashes - 1;

/** A job that waits, or is exhausted, is cancelled: it leaves a record of an attempt that never was. */
export const leftWaiting = (job: JobState): JobState => ({
  ...job,
  standing: 'cancelled',
  fence: job.fence + 1,
  records: [...job.records, 'cancelled'],
});

/** An operator cancels. */
export function cancelled(job: JobState): JobState {
  if (job.standing === 'running') return { ...job, cancelRequested: true };
  return job.standing === 'waiting' || job.standing === 'exhausted' ? leftWaiting(job) : job;
}

/** An operator fails it for good. */
export function failedForGood(job: JobState): JobState {
  if (job.standing !== 'waiting' && job.standing !== 'running') return job;
  return {
    ...job,
    ...over,
    standing: 'exhausted',
    cancelRequested: false,
    superseded: false,
    fence: job.fence + (job.standing === 'waiting' ? 1 : 0),
    records: [...job.records, 'failed'],
  };
}

/** An operator brings it back. */
export function retried(job: JobState): JobState {
  if (job.standing !== 'exhausted' && job.standing !== 'cancelled') return job;
  return { ...newJob(job.maxAttempts), fence: job.fence, records: job.records };
}

/** An operator changes run-at or the most attempts of a job that does not run; only more attempts bring back what has failed for good. */
export function rescheduled(job: JobState, due: boolean | null, maxAttempts: number | null): JobState {
  if (job.standing !== 'waiting' && job.standing !== 'exhausted') return job;
  if (job.standing === 'exhausted' && maxAttempts === null) return job;
  const asked = maxAttempts ?? job.maxAttempts;
  return {
    ...job,
    due: due ?? job.due,
    maxAttempts: Math.max(job.attempts, asked),
    standing: asked <= job.attempts ? 'exhausted' : 'waiting',
  };
}
