import {
  type CallHandler,
  type ExecutionContext,
  Injectable,
  type NestInterceptor,
  UseInterceptors,
} from '@nestjs/common';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { concat, finalize, NEVER, Observable, of, tap } from 'rxjs';
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
});
