// Calls whose answer was lost: asked again until it is known, or said to be in doubt.
import { expect, it } from '@jest/globals';
import {
  DatabaseExhaustedError,
  DatabaseUnavailableError,
  RowsHeldError,
  StoppedError,
  UnknownRateLimitError,
} from '../../lib/index.js';
import { repeatInDoubt } from '../../lib/manager/repeat.in.doubt.js';

const lostAnswer = (): DatabaseUnavailableError =>
  Object.assign(new DatabaseUnavailableError('The connection broke.'), { inDoubt: true });

function failingWith(...errors: Error[]): (repeat: boolean) => Promise<never> {
  return () => Promise.reject(errors.length > 1 ? errors.shift()! : errors[0]!);
}

it.each([
  ['its manager was closed', new StoppedError('The manager was closed.')],
  ['a table was locked', new RowsHeldError({})],
  ['the database had run out of something', new DatabaseExhaustedError('53400', 'temporary files', {})],
])('a call whose answer was lost before %s is in doubt', async (_what, error) => {
  await expect(repeatInDoubt(failingWith(lostAnswer(), error))).rejects.toMatchObject({
    code: 'ERR_JOBS_DATABASE_UNAVAILABLE',
    inDoubt: true,
    cause: error,
  });
});

it('a call whose answer was lost, and which is then refused for a reason of its own, was not done', async () => {
  const refusal = new UnknownRateLimitError(['limit']);
  await expect(repeatInDoubt(failingWith(lostAnswer(), refusal))).rejects.toBe(refusal);
});

it('a call that a closed manager refuses says so', async () => {
  await expect(repeatInDoubt(failingWith(new StoppedError('The manager was closed.')))).rejects.toThrow(StoppedError);
});
