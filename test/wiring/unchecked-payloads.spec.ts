// Checks of payloads are never off without a word: where a class cannot be seen, or cannot be used, the start says so.
import 'reflect-metadata';
import { afterAll, afterEach, beforeAll, describe, expect, it, jest } from '@jest/globals';
import { Injectable } from '@nestjs/common';
import { IsEmail } from 'class-validator';
import { type InvalidOptionsError, JobManager, JobsModule, Task, type TaskOptions } from '../../lib/index.js';
import { PayloadValidator } from '../../lib/manager/payload.validator.js';
import { applicationsOnOneDatabase, type Applications, attempt } from '../support/app.js';

class Mail {
  @IsEmail()
  to!: string;
}

class Plain {
  to!: string;
}

let apps: Applications;
beforeAll(async () => (apps = await applicationsOnOneDatabase()));
afterEach(() => apps.close());
afterAll(() => apps.drop());

const application = (provider: new () => object) => ({
  imports: [JobsModule.forRoot({ connection: apps.database.url, worker: { pollIntervalMs: 50 } })],
  providers: [provider],
});

/** A class as esbuild compiles it: its parameters' types are written nowhere. */
function untyped(options: TaskOptions, parameters = 1): new () => object {
  class Handlers {
    send(): void {}
  }
  if (parameters)
    Object.defineProperty(Handlers.prototype, 'send', { value: (_mail: unknown) => undefined, writable: true });
  const descriptor = Object.getOwnPropertyDescriptor(Handlers.prototype, 'send')!;
  Task('send', options)(Handlers.prototype, 'send', descriptor as never);
  Injectable()(Handlers);
  return Handlers;
}

const warnings = (): string[] => apps.logger.of('warn').filter((line) => line.includes('not checked'));

describe('without emitted parameter types', () => {
  it('the start warns of tasks whose payloads are not checked, with the remedy', async () => {
    await apps.start(application(untyped({})));
    expect(warnings()).toEqual([expect.stringMatching(/"send".*@Task\(name, \{ payload: Dto \}\)/)]);
  });

  it('a DTO that the decorator names is checked, and nothing is warned of', async () => {
    const app = await apps.start(application(untyped({ payload: Mail })));
    await expect(app.get(JobManager).addJob('send', { to: 'nowhere' })).rejects.toThrow(/to must be an email/);
    expect(warnings()).toEqual([]);
  });

  it('payload: false says that there is nothing to check', async () => {
    const app = await apps.start(application(untyped({ payload: false })));
    expect(await attempt(app, 'send', { to: 1 })).toMatchObject({ status: 'completed' });
    expect(warnings()).toEqual([]);
  });

  it('a handler without parameters needs no check', async () => {
    await apps.start(application(untyped({}, 0)));
    expect(warnings()).toEqual([]);
  });
});

@Injectable()
class Typed {
  @Task('typed')
  run(_mail: Mail): void {}
}

@Injectable()
class Loose {
  @Task('loose')
  run(_plain: Plain): void {}
}

@Injectable()
class Off {
  @Task('off', { payload: false })
  run(_mail: Mail): void {}
}

describe('a DTO as a parameter', () => {
  it('is not used where the decorator says payload: false', async () => {
    const app = await apps.start(application(Off));
    expect(await attempt(app, 'off', { to: 1 })).toMatchObject({ status: 'completed' });
  });

  describe('without class-transformer', () => {
    /** As if only class-validator were installed. */
    const withoutTransformer = (): void => {
      jest.spyOn(PayloadValidator.prototype, 'load').mockImplementation(async function (this: PayloadValidator) {
        Object.assign(this, { validator: { validate: async () => [] }, transformer: null, loaded: true });
      });
    };

    it('keeps the application from starting where it has constraints, and the error names the package', async () => {
      withoutTransformer();
      const failure = (await apps.startFailure(application(Typed))) as InvalidOptionsError;
      expect(failure.problems).toEqual([
        expect.stringMatching(/@Task on Typed\.run .*task "typed" by the class Mail.*npm install class-transformer$/),
      ]);
    });

    it('is only a type where it has none', async () => {
      withoutTransformer();
      const app = await apps.start(application(Loose));
      expect(await attempt(app, 'loose', { to: 1 })).toMatchObject({ status: 'completed' });
    });
  });
});
