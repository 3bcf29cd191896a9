// Calls that do no harm when they are done twice: repeated until their answer is known, for some seconds.
import {
  DatabaseUnavailableError,
  DependencyCircleError,
  InvalidArgumentError,
  UnknownParentError,
  UnknownRateLimitError,
} from '../jobs.errors.js';
import { mayAnswerSoon } from '../storage/database.errors.js';
import { pause } from '../timing.js';

/** While it is certain that nothing has happened, the caller learns soon that the database is away. */
const REPEATS = 2;
/** A connection that broke leaves a question, which is worth some seconds. */
const REPEATS_IN_DOUBT = 6;
const FIRST_PAUSE_MS = 50;
const MAX_PAUSE_MS = 1_500;

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
      const ceiling = Math.min(MAX_PAUSE_MS, FIRST_PAUSE_MS * 4 ** repeat);
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
