import { describe, expect, it } from '@jest/globals';
import { DatabaseExhaustedError, DatabaseUnavailableError, TransactionConflictError } from '../../lib/index.js';
import { translateError } from '../../lib/storage/database.errors.js';
import { isCertainlyRolledBack, isConflict } from '../../lib/storage/sql.states.js';

const failing = (code: string | undefined, message = 'it failed'): Error =>
  Object.assign(new Error(message), code && { code });
const translated = (error: unknown) => translateError(error, 'jobs');

describe('a failure of the connection', () => {
  it.each(['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', '57P03', '53300', '08001', '28P01', '25006'])(
    'with code %s has certainly done nothing',
    (code) => {
      expect(translated(failing(code))).toBeInstanceOf(DatabaseUnavailableError);
      expect(translated(failing(code))).toMatchObject({ inDoubt: false, cause: { code } });
    },
  );

  it.each(['ECONNRESET', 'EPIPE', 'ETIMEDOUT', '57P01', '57P02', '57P05', '25P03', '08006', '08P01'])(
    'with code %s may have done something',
    (code) => expect(translated(failing(code))).toMatchObject({ inDoubt: true, cause: { code } }),
  );

  it.each([
    ['Connection terminated unexpectedly', true],
    ['Query read timeout', true],
    ['timeout expired', false],
    ['timeout exceeded when trying to connect', false],
    ['Connection terminated due to connection timeout', false],
    ['Client has encountered a connection error and is not queryable', false],
  ])('that pg calls "%s" is in doubt: %s', (message, inDoubt) => {
    expect(translated(failing(undefined, message))).toBeInstanceOf(DatabaseUnavailableError);
    expect(translated(failing(undefined, message))).toMatchObject({ inDoubt });
  });

  it('of a host with several addresses is known by the first of them', () => {
    const error = new AggregateError([failing('ECONNREFUSED')]);
    expect(translated(error)).toMatchObject({ inDoubt: false, code: 'ERR_JOBS_DATABASE_UNAVAILABLE' });
  });
});

describe('a database that has run out of something', () => {
  it('has changed nothing', () => {
    const error = Object.assign(failing('53100'), { severity: 'ERROR' });
    expect(translated(error)).toBeInstanceOf(DatabaseExhaustedError);
    expect(translated(error)).toMatchObject({ inDoubt: false, retriable: true });
    // At a commit, no more is known than that it failed.
    expect(isCertainlyRolledBack(error)).toBe(false);
  });

  it('and panics over it may come back with what was being committed', () => {
    const error = Object.assign(failing('53100'), { severity: 'PANIC' });
    expect(translated(error)).not.toBeInstanceOf(DatabaseExhaustedError);
    expect(translated(error)).toMatchObject({ inDoubt: true, code: 'ERR_JOBS_DATABASE_UNAVAILABLE' });
    expect(isCertainlyRolledBack(error)).toBe(false);
  });
});

describe('a failure of a statement', () => {
  it.each(['57014', '23505', '22P02', undefined])('with code %s is left as it is', (code) => {
    const error = failing(code);
    expect(translated(error)).toBe(error);
  });

  it.each(['40001', '40P01'])('with code %s says that the transaction is to be repeated', (code) => {
    const error = failing(code);
    expect(translated(error)).toBeInstanceOf(TransactionConflictError);
    expect(translated(error)).toMatchObject({ sqlState: code, cause: error });
    expect(isConflict(translated(error))).toBe(true);
  });

  it('is a conflict, to be repeated, where others were in the way', () => {
    expect(['40001', '40P01', '57014', '23505', '55P03'].filter((code) => isConflict(failing(code)))).toEqual([
      '40001',
      '40P01',
    ]);
  });
});
