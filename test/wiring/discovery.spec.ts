import { Controller, Get, Inject, Injectable, type ModuleMetadata, Scope } from '@nestjs/common';
import { REQUEST } from '@nestjs/core';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { of } from 'rxjs';
import {
  DuplicateTaskError,
  InvalidOptionsError,
  type Job,
  type JobContext,
  JobManager,
  JobsModule,
  Task,
  type TaskOptions,
} from '../../lib/index.js';
import { applicationsOnOneDatabase, attempt, type Applications } from '../support/app.js';

@Injectable()
class Greeter {
  greet(name: string): string {
    return `hello ${name}`;
  }
}

@Injectable()
class GreetTasks {
  constructor(private readonly greeter: Greeter) {}

  @Task('greet')
  greet(name: string): string {
    return this.greeter.greet(name);
  }
}

describe('@Task', () => {
  let apps: Applications;

  beforeAll(async () => {
    apps = await applicationsOnOneDatabase();
  });
  afterEach(() => apps.close());
  afterAll(() => apps.drop());

  const application = (metadata: ModuleMetadata): ModuleMetadata => ({
    imports: [JobsModule.forRoot({ connection: apps.database.url })],
    ...metadata,
  });

  it('is found on a provider, with what its constructor injects', async () => {
    const app = await apps.start(application({ providers: [Greeter, GreetTasks] }));
    expect((await attempt(app, 'greet', 'Ada')).result).toBe('hello Ada');
  });

  it('is found on a controller, beside its routes', async () => {
    @Controller('greetings')
    class GreetController {
      constructor(private readonly greeter: Greeter) {}

      @Get()
      @Task('greet-route')
      greet(name: string): string {
        return this.greeter.greet(name);
      }
    }
    const app = await apps.start(application({ providers: [Greeter], controllers: [GreetController] }));
    expect((await attempt(app, 'greet-route', 'Ada')).result).toBe('hello Ada');
  });

  it.each([
    ['a factory', { provide: 'T', inject: [Greeter], useFactory: async (greeter: Greeter) => new GreetTasks(greeter) }],
    ['a value', { provide: 'T', useValue: new GreetTasks(new Greeter()) }],
    ['a class under a token', { provide: 'T', useClass: GreetTasks }],
  ])('is found on %s', async (_kind, provider) => {
    const app = await apps.start(application({ providers: [Greeter, provider] }));
    expect((await attempt(app, 'greet', 'Ada')).result).toBe('hello Ada');
  });

  it('goes to what stands in for its class in a test', async () => {
    const stub = { greet: (name: string) => `stubbed ${name}` };
    const app = await apps.start(application({ providers: [{ provide: GreetTasks, useValue: stub }] }));
    expect((await attempt(app, 'greet', 'Ada')).result).toBe('stubbed Ada');
  });

  it('counts once where a provider has a second name', async () => {
    const alias = { provide: 'ALIAS', useExisting: GreetTasks };
    const handedOut = { provide: 'SAME', inject: [GreetTasks], useFactory: (tasks: GreetTasks) => tasks };
    const app = await apps.start(application({ providers: [Greeter, GreetTasks, alias, handedOut] }));
    expect((await attempt(app, 'greet', 'Ada')).result).toBe('hello Ada');
  });

  it('is inherited, and what overrides its method is called', async () => {
    @Injectable()
    class PoliteTasks extends GreetTasks {
      override greet(name: string): string {
        return `${super.greet(name)}, how do you do`;
      }
    }
    const app = await apps.start(application({ providers: [Greeter, PoliteTasks] }));
    expect((await attempt(app, 'greet', 'Ada')).result).toBe('hello Ada, how do you do');
  });

  it('outlives decorators that put another function in the method’s place', async () => {
    const shouting: MethodDecorator = (_target, _key, descriptor: PropertyDescriptor) => {
      const method = descriptor.value as (payload: string) => string;
      descriptor.value = function (this: unknown, payload: string) {
        return method.call(this, payload).toUpperCase();
      };
    };
    @Injectable()
    class ShoutTasks {
      @shouting
      @Task('shout')
      shout(word: string): string {
        return word;
      }
    }
    const app = await apps.start(application({ providers: [ShoutTasks] }));
    expect((await attempt(app, 'shout', 'ada')).result).toBe('ADA');
  });

  it('may stand more than once on a method', async () => {
    @Injectable()
    class TwoNames {
      @Task('old-name')
      @Task('new-name')
      run(_payload: unknown, ctx: JobContext): string {
        return ctx.job.task;
      }
    }
    const app = await apps.start(application({ providers: [TwoNames] }));
    expect((await attempt(app, 'old-name')).result).toBe('old-name');
    expect((await attempt(app, 'new-name')).result).toBe('new-name');
  });

  it('may return an observable, whose last value is the result', async () => {
    @Injectable()
    class Streams {
      @Task('stream')
      run() {
        return of(1, 2, 3);
      }
    }
    const app = await apps.start(application({ providers: [Streams] }));
    expect((await attempt(app, 'stream')).result).toBe(3);
  });

  it('on a provider in request scope gets a new one for each job, with the job as REQUEST', async () => {
    let made = 0;
    @Injectable({ scope: Scope.REQUEST })
    class Tenant {
      constructor(@Inject(REQUEST) readonly job: Job<{ tenant: string }>) {
        made++;
      }
    }
    @Injectable()
    class TenantTasks {
      constructor(private readonly tenant: Tenant) {}

      @Task('tenant')
      run(_payload: unknown, ctx: JobContext): unknown {
        return [this.tenant.job.payload.tenant, this.tenant.job.id === ctx.job.id];
      }
    }
    const app = await apps.start(application({ providers: [Tenant, TenantTasks] }));
    const results = await Promise.all(['a', 'b', 'c'].map((tenant) => attempt(app, 'tenant', { tenant })));
    expect(results.map(({ result }) => result)).toEqual(['a', 'b', 'c'].map((tenant) => [tenant, true]));
    expect(made).toBe(3);
  });

  it('on a provider in transient scope, or a controller in request scope, gets a new one for each job, too', async () => {
    @Injectable({ scope: Scope.TRANSIENT })
    class Counting {
      private calls = 0;

      @Task('transient')
      run(): number {
        return ++this.calls;
      }
    }
    @Controller({ path: 'scoped', scope: Scope.REQUEST })
    class ScopedController {
      constructor(@Inject(REQUEST) private readonly job: Job) {}

      @Task('scoped-controller')
      run(): string {
        return this.job.task;
      }
    }
    const app = await apps.start(application({ providers: [Counting], controllers: [ScopedController] }));
    expect((await attempt(app, 'transient')).result).toBe(1);
    expect((await attempt(app, 'transient')).result).toBe(1);
    expect((await attempt(app, 'scoped-controller')).result).toBe('scoped-controller');
  });

  it('gives addJob its defaults', async () => {
    @Injectable()
    class Defaults {
      @Task('defaults', { queue: 'q', priority: 3, maxAttempts: 4, flags: ['slow'] })
      run(): void {}
    }
    const app = await apps.start(application({ providers: [Defaults] }));
    const job = await app.get(JobManager).addJob('defaults', {}, { delayMs: 60_000 });
    expect(job).toMatchObject({ queue: 'q', priority: 3, maxAttempts: 4, flags: ['slow'] });
  });

  it('for one name on two methods fails at start, and names both', async () => {
    @Injectable()
    class OtherTasks {
      @Task('greet')
      hello(): void {}
    }
    const failure = await apps.startFailure(application({ providers: [Greeter, GreetTasks, OtherTasks] }));
    expect(failure).toBeInstanceOf(DuplicateTaskError);
    expect(failure.message).toMatch(/GreetTasks\.greet in RootTestModule and OtherTasks\.hello in RootTestModule/);
  });

  it('on a class that two modules provide fails at start', async () => {
    class FirstModule {}
    class SecondModule {}
    const providers = [Greeter, GreetTasks];
    const failure = await apps.startFailure({
      imports: [
        JobsModule.forRoot({ connection: apps.database.url }),
        { module: FirstModule, providers },
        { module: SecondModule, providers },
      ],
    });
    expect(failure.message).toMatch(/GreetTasks\.greet in FirstModule and GreetTasks\.greet in SecondModule/);
  });

  it('with wrong options fails at start, naming every fault of every task', async () => {
    @Injectable()
    class Wrong {
      @Task('', { priority: 0.5 })
      nameless(): void {}

      @Task('typo', { maxAttempt: 3, retry: { jitter: 2, multiplyer: 3 } } as TaskOptions)
      typo(): void {}
    }
    const failure = (await apps.startFailure(application({ providers: [Wrong] }))) as InvalidOptionsError;
    expect(failure).toBeInstanceOf(InvalidOptionsError);
    const [first, second] = ['nameless', 'typo'].map((method) => `@Task on Wrong.${method} in RootTestModule`);
    expect(failure.problems).toEqual([
      `${first}: Expected the task's name to be a string of 1 to 1000 characters without NUL and lone surrogates, got "".`,
      `${first}: Expected priority to be an integer from -2147483648 to 2147483647, got 0.5.`,
      `${second}: Unknown option maxAttempt; did you mean maxAttempts?`,
      `${second}: Expected retry.jitter to be a number from 0 to 1, got 2.`,
      `${second}: Unknown option retry.multiplyer; did you mean multiplier?`,
    ]);
  });

  it('bound to an instance that does not exist fails at start', async () => {
    @Injectable()
    class Lost {
      @Task('lost', { instance: 'report' })
      run(): void {}
    }
    const failure = await apps.startFailure({
      imports: [
        JobsModule.forRoot({ connection: apps.database.url }),
        JobsModule.forRoot({ connection: apps.database.url, name: 'reports', schema: 'reports' }),
      ],
      providers: [Lost],
    });
    expect(failure.message).toMatch(
      /Lost\.run .*: Expected instance to be one of 'default', 'reports', got "report"; did you mean reports\?/,
    );
  });

  it('on a static method fails when the class is loaded', () => {
    expect(() => {
      class Statics {
        @Task('static')
        static run(): void {}
      }
      return Statics;
    }).toThrow(/Expected @Task on a method of an instance, got the static Statics\.run/);
  });
});
