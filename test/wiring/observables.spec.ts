import {
  type CallHandler,
  type ExecutionContext,
  Injectable,
  type NestInterceptor,
  UseInterceptors,
} from '@nestjs/common';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { concat, EMPTY, finalize, ignoreElements, NEVER, Observable, of, tap } from 'rxjs';
import { JobsModule, Task } from '../../lib/index.js';
import { applicationsOnOneDatabase, attempt, type Applications } from '../support/app.js';

const log: string[] = [];

@Injectable()
class Passing implements NestInterceptor {
  intercept(_context: ExecutionContext, next: CallHandler): Observable<unknown> {
    return next.handle().pipe(tap(() => log.push('passed')));
  }
}

const endless = (): Observable<string> => concat(of('begun'), NEVER).pipe(finalize(() => log.push('unsubscribed')));

@Injectable()
class Tasks {
  @Task('plain', { timeoutMs: 50 })
  plain(): Observable<string> {
    return endless();
  }

  @Task('intercepted', { timeoutMs: 50 })
  @UseInterceptors(Passing)
  intercepted(): Observable<string> {
    return endless();
  }

  @Task('without a value')
  ended(): Observable<never> {
    return EMPTY;
  }

  @Task('without a value, intercepted')
  @UseInterceptors(Passing)
  endedToo(): Observable<string> {
    return of('ignored').pipe(ignoreElements());
  }

  @Task('last')
  last(): Observable<string> {
    return of('first', 'last');
  }
}

describe('a handler that returns an Observable', () => {
  let apps: Applications;
  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
  });
  afterEach(() => {
    log.length = 0;
    return apps.close();
  });
  afterAll(() => apps.drop());

  const start = () =>
    apps.start({ imports: [JobsModule.forRoot({ connection: apps.database.url })], providers: [Tasks, Passing] });

  for (const [task, seen] of [
    ['plain', ['unsubscribed']],
    ['intercepted', ['passed', 'unsubscribed']],
  ] as const) {
    it(`does not go on after its time (${task})`, async () => {
      const record = await attempt(await start(), task);
      expect(record).toMatchObject({ status: 'failed', errorMessage: 'The attempt ran longer than 50 ms.' });
      expect(log).toEqual(seen);
    });
  }

  it('is what the Observable came to', async () => {
    expect(await attempt(await start(), 'last')).toMatchObject({ status: 'completed', result: 'last' });
  });

  it.each(['without a value', 'without a value, intercepted'])('has done its work where it ends %s', async (task) => {
    expect(await attempt(await start(), task)).toMatchObject({ status: 'completed', result: null });
  });
});
