// Calls whose answer was lost: asked again until it is known, or said to be in doubt.
import { expect, it } from '@jest/globals';
import {
  DatabaseExhaustedError,
  DatabaseUnavailableError,
  MissingPrivilegesError,
  RowsHeldError,
  SchemaOutdatedError,
  StoppedError,
  UnknownRateLimitError,
} from '../../lib/index.js';
import { retryUntilKnown } from '../../lib/storage/retry.js';

const lostAnswer = (): DatabaseUnavailableError =>
  Object.assign(new DatabaseUnavailableError('The connection broke.'), { inDoubt: true });

const withCode = (code: string): Error => Object.assign(new Error('The server has refused it.'), { code });

function failingWith(...errors: Error[]): (repeat: boolean) => Promise<never> {
  return () => Promise.reject(errors.length > 1 ? errors.shift()! : errors[0]!);
}

it.each([
  ['its manager was closed', new StoppedError('The manager was closed.')],
  ['a table was locked', new RowsHeldError({})],
  ['the database had run out of something', new DatabaseExhaustedError('53400', 'temporary files', {})],
  ['a time limit ended the repeat', withCode('57014')],
  ['a right was revoked', new MissingPrivilegesError('permission denied')],
  ['a table was gone', new SchemaOutdatedError('no such table')],
  ['the server had a fault of its own', withCode('XX000')],
  ['a row was in the way', withCode('23505')],
])('a call whose answer was lost before %s is in doubt', async (_what, error) => {
  await expect(retryUntilKnown(failingWith(lostAnswer(), error))).rejects.toMatchObject({
    code: 'ERR_JOBS_DATABASE_UNAVAILABLE',
    inDoubt: true,
    cause: error,
  });
});

it('a call whose answer was lost, and which is then refused for a reason of its own, was not done', async () => {
  const refusal = new UnknownRateLimitError(['limit']);
  await expect(retryUntilKnown(failingWith(lostAnswer(), refusal))).rejects.toBe(refusal);
});

it('a call that fails without any doubt says why', async () => {
  const error = withCode('57014');
  await expect(retryUntilKnown(failingWith(error))).rejects.toBe(error);
});

it('a call that a closed manager refuses says so', async () => {
  await expect(retryUntilKnown(failingWith(new StoppedError('The manager was closed.')))).rejects.toThrow(StoppedError);
});
