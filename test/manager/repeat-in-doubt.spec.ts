// Calls whose answer was lost: asked again until it is known, or said to be in doubt.
import { expect, it } from '@jest/globals';
import { DatabaseUnavailableError, StoppedError } from '../../lib/index.js';
import { repeatInDoubt } from '../../lib/manager/repeat.in.doubt.js';

const lostAnswer = (): DatabaseUnavailableError =>
  Object.assign(new DatabaseUnavailableError('The connection broke.'), { inDoubt: true });

function failingWith(...errors: Error[]): (repeat: boolean) => Promise<never> {
  return () => Promise.reject(errors.length > 1 ? errors.shift()! : errors[0]!);
}

it('a call whose answer was lost before its manager was closed is in doubt', async () => {
  const closed = new StoppedError('The manager was closed.');
  await expect(repeatInDoubt(failingWith(lostAnswer(), closed))).rejects.toMatchObject({
    code: 'ERR_JOBS_DATABASE_UNAVAILABLE',
    inDoubt: true,
    cause: closed,
  });
});

it('a call that a closed manager refuses says so', async () => {
  await expect(repeatInDoubt(failingWith(new StoppedError('The manager was closed.')))).rejects.toThrow(StoppedError);
});
