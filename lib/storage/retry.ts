// Calls that do no harm when they are done twice: tried again where others' locks are in the way, and where their answer was
// lost.
import {
  DatabaseUnavailableError,
  DependencyCircleError,
  InvalidArgumentError,
  JobHeldError,
  UnknownParentError,
  UnknownRateLimitError,
} from '../jobs.errors.js';
import { jittered, pause } from '../timing.js';
import { mayAnswerSoon } from './database.errors.js';
import { isContention, isLockTimeout } from './sql.states.js';

const FIRST_LOCK_PAUSE_MS = 10;
const MAX_LOCK_PAUSE_MS = 1_000;
const PATIENCE_MS = 10_000;
/** While it is certain that nothing has happened, the caller learns soon that the database is away. */
const REPEATS = 2;
/** A connection that broke leaves a question, which is worth some seconds. */
const REPEATS_IN_DOUBT = 6;
const FIRST_DOUBT_PAUSE_MS = 50;
const MAX_DOUBT_PAUSE_MS = 1_500;

/**
 * Repeats what gave up waiting for a lock, for 10 s. No connection waits meanwhile. `once`: inside a caller's transaction a
 * failure has ended everything.
 * @throws RowsHeldError where that was not enough
 */
export async function retryOnContention<T>(
  work: () => Promise<T>,
  once = false,
  deadline = performance.now() + PATIENCE_MS,
): Promise<T> {
  for (let pauseMs = FIRST_LOCK_PAUSE_MS; ; pauseMs = Math.min(MAX_LOCK_PAUSE_MS, pauseMs * 2)) {
    try {
      return await work();
    } catch (error) {
      if (once || !isContention(error) || performance.now() > deadline) throw error;
      await pause(jittered(pauseMs));
    }
  }
}

/** How one call does each of its steps. */
export type Doing = <T>(step: () => Promise<T>) => Promise<T>;

/** What comes again by itself. */
export const once: Doing = (step) => step();

/** Repeats steps as retryOnContention does, for 10 s in all. */
export function withLockRetries(inTransaction: boolean): Doing {
  const deadline = performance.now() + PATIENCE_MS;
  return (step) => retryOnContention(step, inTransaction, deadline);
}

/**
 * Tries again what open transactions hold: `work` returns which of the ids these are.
 * @throws JobHeldError after some seconds; what could be done is done
 */
export async function retryHeld(ids: string[], work: (ids: string[]) => Promise<string[]>): Promise<void> {
  const deadline = performance.now() + PATIENCE_MS;
  let held = await work(ids);
  for (let pauseMs = FIRST_LOCK_PAUSE_MS / 2; held.length; pauseMs = Math.min(MAX_LOCK_PAUSE_MS, pauseMs * 2)) {
    if (performance.now() > deadline) throw new JobHeldError(held);
    await pause(pauseMs);
    held = await work(held);
  }
}

/** For a claim that a lock has cut short, and that has some jobs already: on a connection of the library's they are claimed. */
export const nullIfLocked =
  (hasSome: () => boolean) =>
  (error: unknown): null => {
    if (isLockTimeout(error) && hasSome()) return null;
    throw error;
  };

/** Adds are idempotent by id, settles are fenced. `repeat`: an earlier try may have gone through. */
export async function retryUntilKnown<T>(work: (repeat: boolean) => Promise<T>): Promise<T> {
  let inDoubt = false;
  for (let repeat = 0; ; repeat++) {
    try {
      return await work(repeat > 0);
    } catch (error) {
      // The call before may have gone through, and few errors tell that it has not.
      if (isRefusal(error)) throw error;
      if (!(error instanceof DatabaseUnavailableError) || !mayAnswerSoon(error)) {
        throw inDoubt ? unknown(inTermsOfDoubt(error)) : error;
      }
      inDoubt ||= error.inDoubt;
      if (repeat === (inDoubt ? REPEATS_IN_DOUBT : REPEATS)) throw inDoubt ? unknown(error) : error;
      const ceiling = Math.min(MAX_DOUBT_PAUSE_MS, FIRST_DOUBT_PAUSE_MS * 4 ** repeat);
      await pause(ceiling * (0.75 + Math.random() / 4));
    }
  }
}

/** The database was asked whether the call was done before, and then refused it for what it asks: nothing has happened. */
const REFUSALS = [UnknownRateLimitError, UnknownParentError, DependencyCircleError, InvalidArgumentError];

const isRefusal = (error: unknown): boolean => REFUSALS.some((refusal) => error instanceof refusal);

/** Whatever else it is (a time limit, a right that was revoked, a bug of the server), it says nothing about the call before. */
export const inTermsOfDoubt = (error: unknown): DatabaseUnavailableError => {
  const message = error instanceof Error ? error.message : String(error);
  return Object.assign(new DatabaseUnavailableError(message, { cause: error }), { inDoubt: true });
};

function unknown({ message, cause }: DatabaseUnavailableError): DatabaseUnavailableError {
  const error = new DatabaseUnavailableError(
    `${message} The connection broke while the call was under way, so it is unknown whether it went through ` +
      '(inDoubt). With a jobKey, an add can be repeated without adding the job twice.',
    { cause },
  );
  error.inDoubt = true;
  return error;
}
